"""The numbers of a run become a report: a file for programs, a page for people, a card for the hub.

In: what the run was, the mix, the training figures, the 2×2 of evaluation cells (base/tuned × thinking/non-thinking)
and, if wanted, the predictions. Out: ``report.json`` (schema_version 1, checked), ``report.html`` (one file, no script,
no network) and ``model_card.md``; the same input gives the same bytes.

All rates are 0..1. Intervals are 95 %.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import write_json, write_text
from pipeline.evaluation.report.card import model_card
from pipeline.evaluation.report.compare import retention
from pipeline.evaluation.report.page import html
from pipeline.evaluation.report.schema import EvaluationSection, SourceSection, modes_measured, validate_report
from pipeline.settings import SamplingTable, parse

# --- assembling -------------------------------------------------------------------------------------------------------


def mix_section(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The report's ``mix`` out of a mix's manifest (``pipeline.data.mix``), which holds more."""
    keys = list(SourceSection.model_fields)
    return {"unit": manifest["unit"], "sources": [{key: s[key] for key in keys} for s in manifest["sources"]]}


def build_report(
    *,
    run: Mapping[str, Any],
    mix: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    distance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put the sections together, compute ``retention``, check everything.

    The result is plain JSON data and shares nothing with the arguments.

    Raises:
        UserError: something is missing or wrong, with its path (see ``validate_report``).
    """
    sections = {"run": run, "mix": mix, "training": training}
    parts = {**sections, "evaluation": evaluation, **({} if distance is None else {"distance": distance})}
    try:
        plain = json.loads(json.dumps(parts))  # tuples become lists; NaN passes here and is refused below, by name
    except (TypeError, ValueError) as error:
        raise UserError(f"report.json: the report has to be plain JSON data: {error}.") from error
    parse(EvaluationSection, plain["evaluation"], "report.json: evaluation")
    cells = plain["evaluation"]
    kept = {
        mode: retention(cells["base"][mode], cells["tuned"][mode])
        for mode in modes_measured(plain)
        if cells["tuned"].get(mode) is not None
    }
    report = {"schema_version": 1, **plain, "retention": kept}
    validate_report(report)
    return report


def write_report(
    report: dict[str, Any],
    output_dir: Path,
    predictions: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] | None = None,
    *,
    licence: str = "apache-2.0",
    sampling: SamplingTable | None = None,
    datasets: Sequence[str] = (),
) -> dict[str, Path]:
    """Write report.json, report.html and model_card.md, each atomically.

    Args:
        report: as ``build_report`` returns it; checked again.
        predictions: by (model, mode), e.g. ``("tuned", "thinking")``; a few are shown. Each has ``prompt`` and
            ``reply`` (text as decoded, think tags included), and may have ``benchmark``, ``expected``, ``correct``
            and ``truncated``; further keys are ignored.
        licence: the card's ``license``, as the hub spells it.
        sampling: what the card gives for decoding; None: that of the run's profile, if it is one of this package.
        datasets: ids of the hub datasets that it was trained on, for the card.

    Returns:
        The three paths by file name.

    Raises:
        UserError: the report or a prediction is not as described, or the folder cannot be written.
    """
    validate_report(report)
    texts = {
        "report.html": html(report, predictions),
        "model_card.md": model_card(report, licence=licence, sampling=sampling, datasets=datasets),
    }
    paths = {name: output_dir / name for name in ("report.json", *texts)}
    for name, text in texts.items():
        write_text(paths[name], text)
    write_json(paths["report.json"], report)  # last: its presence says "complete"
    return paths
