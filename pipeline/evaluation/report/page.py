"""``report.html``: one file, no script, no network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES
from pipeline.core.templates import environment
from pipeline.evaluation.report.compare import changes, fidelity_changes, replies
from pipeline.evaluation.report.pictures import COLOURS, all_plots
from pipeline.evaluation.report.schema import MODELS, modes_measured
from pipeline.evaluation.report.words import (
    bytes_text,
    cell_text,
    duration_text,
    headline,
    interval_text,
    label_of,
    percent_text,
    public_name,
    rate_text,
    short_label,
    truncation_warnings,
)
from pipeline.settings import UNITS

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
EXAMPLES_PER_CELL = 3
EXAMPLE_CHARACTERS = 4000  # a longer reply is shown without its middle: the answer stands at the end


# --- page and card ----------------------------------------------------------------------------------------------------


def page_environment(escape: bool) -> jinja2.Environment:
    return environment(
        TEMPLATES,
        escape,
        rate=rate_text,
        interval=interval_text,
        percent=percent_text,
        bytes=bytes_text,
        label=label_of,
        md=cell_text,
        short=short_label,
    )


def _printable(text: str) -> str:
    """Text that can be written as UTF-8 and shown: lone surrogates and control characters become U+FFFD."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", text)


def _pieces(reply: str) -> list[tuple[str, str]]:
    """Split a reply into (kind, text): ``tag`` for the think tags, ``reasoning`` between them, else ``answer``."""
    if len(reply) > EXAMPLE_CHARACTERS:
        left_out = len(reply) - EXAMPLE_CHARACTERS
        head, tail = 3 * EXAMPLE_CHARACTERS // 4, EXAMPLE_CHARACTERS // 4
        reply = f"{reply[:head]}\n[… {left_out:,} characters left out …]\n{reply[-tail:]}"
    found, kind = [], "answer"
    for text in re.split(r"(</?think>)", reply):
        if text in ("<think>", "</think>"):
            found.append(("tag", text))
            kind = "reasoning" if text == "<think>" else "answer"
        elif text:
            found.append((kind, text))
    return found


def _choose(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first row of each benchmark, then the next rows, up to ``EXAMPLES_PER_CELL``: not picked for their looks."""
    first: dict[Any, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row.get("benchmark"), index)
    order = [*first.values(), *(i for i in range(len(rows)) if i not in set(first.values()))]
    return [rows[i] for i in order[:EXAMPLES_PER_CELL]]


def _examples(predictions: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] | None) -> list[dict[str, Any]]:
    """A few replies, those to the same prompt side by side: ``[{benchmark, prompt, expected, replies[…]}]``."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    cells = [(model, mode) for model in MODELS for mode in MODES]
    for model, mode in predictions or {}:
        if (model, mode) not in cells:
            raise UserError(f"predictions: there is no cell {model!r}, {mode!r}; the models are base and tuned.")
    for model, mode in cells:
        for row in _choose((predictions or {}).get((model, mode), ())):
            for key in ("prompt", "reply"):
                if not isinstance(row.get(key), str):
                    raise UserError(f"predictions of {model}, {mode}: {key!r} should be text, found {row.get(key)!r}.")
            benchmark, prompt = str(row.get("benchmark") or ""), row["prompt"]
            expected = row.get("expected")
            group = groups.setdefault(
                (benchmark, prompt),
                {
                    "benchmark": _printable(benchmark),
                    "prompt": _printable(prompt),
                    "expected": None if expected is None else _printable(str(expected)),
                    "replies": [],
                },
            )
            group["replies"].append(
                {
                    "model": model,
                    "mode": mode,
                    "pieces": _pieces(_printable(row["reply"])),
                    "correct": row.get("correct"),
                    "truncated": bool(row.get("truncated")),
                }
            )
    return list(groups.values())


def template_context(report: Mapping[str, Any]) -> dict[str, Any]:
    """What both templates need."""
    return {
        "distance": None,
        **report,
        "model_name": public_name(report["run"]["model"]),
        "headline": headline(report),
        "warnings": truncation_warnings(report),
        "duration": duration_text(report["run"]),
        "units": UNITS,
        "modes": modes_measured(report),
        "models": MODELS,
    }


def html(
    report: Mapping[str, Any], predictions: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] | None = None
) -> str:
    """The page: one file with its plots inside, no script, nothing loaded from anywhere.

    Args:
        report: a valid report.
        predictions: see ``write_report``.

    Raises:
        UserError: a prediction is not as described.
    """
    found = changes(report)
    names, modes = list(dict.fromkeys(c.name for c in found)), modes_measured(report)
    grid = [(name, [next((c for c in found if (c.name, c.mode) == (name, m)), None) for m in modes]) for name in names]
    grid.append(("mode fidelity", list(fidelity_changes(report))))
    cells = [(model, mode, report["evaluation"][model][mode]) for model in MODELS for mode in modes]
    return (
        page_environment(escape=True)
        .get_template("report.html.j2")
        .render(
            **template_context(report),
            grid=grid,
            cells=[(model, mode, cell, replies(cell), cell.get("mode_fidelity_ci95")) for model, mode, cell in cells],
            plots=all_plots(report),
            colours=COLOURS,
            examples=_examples(predictions),
        )
    )
