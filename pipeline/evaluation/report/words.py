"""The numbers of a report in words and in a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pipeline.evaluation.report.compare import changes, fidelity_changes, replies
from pipeline.evaluation.report.schema import MODELS, modes_measured

LABELS = {"thinking": "thinking", "non_thinking": "non-thinking", "mixed": "both", "loss_tokens": "loss tokens"}


# --- words and numbers ------------------------------------------------------------------------------------------------


def rate_text(value: float, digits: int = 2) -> str:
    """A rate with as many digits as it takes not to show 0 or 1 for what is neither (up to five)."""
    while digits < 5 and round(value, digits) in (0, 1) and value not in (0, 1):
        digits += 1
    return f"{value:.{digits}f}"


def interval_text(interval: Sequence[float] | None, digits: int = 2, signed: bool = False) -> str:
    if interval is None:
        return ""
    sign = "+" if signed else ""
    return "[{}]".format(", ".join(f"{end:{sign}.{digits}f}" for end in interval))


def percent_text(value: float) -> str:
    return f"{100 * value:.1f} %" if 0 < value < 1 else f"{100 * value:.0f} %"


def bytes_text(count: float) -> str:
    size, unit = count / 2**20, "MiB"
    if size >= 1024:
        size, unit = size / 1024, "GiB"
    return f"{size:,.1f} {unit}"


def label_of(name: str) -> str:
    return LABELS.get(name, name)


def public_name(model: str) -> str:
    """A hub name or a relative path as it stands; of a path of one machine, the last part."""
    here = model.replace("\\", "/").rstrip("/")
    return here.rsplit("/", 1)[-1] if re.match(r"/|~|\.\.?/|[A-Za-z]:", here) else model


def duration_text(run: Mapping[str, Any]) -> str:
    """Hours, minutes, seconds from start to finish; empty where the clock makes no sense of it."""
    started, finished = (datetime.fromisoformat(run[key]) for key in ("started", "finished"))
    if (started.tzinfo is None) != (finished.tzinfo is None) or finished < started:
        return ""
    minutes, seconds = divmod(round((finished - started).total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _cut(cell: Mapping[str, Any]) -> int:
    """How many replies of a cell were cut by the token limit; at least 1 where the rate is not 0."""
    return max(round(cell["truncated"] * replies(cell)), 1) if cell["truncated"] > 0 else 0


def _listed(items: Sequence[str], at_most: int = 4) -> str:
    more = f"; and {len(items) - at_most} more" if len(items) > at_most else ""
    return "; ".join(items[:at_most]) + more


def headline(report: Mapping[str, Any]) -> list[str]:
    """What came out, in plain words: what rose, what fell, what stayed, mode fidelity, how many replies were cut.

    "Rose" and "fell" are said only where the 95 % interval of the difference leaves out 0.
    """
    groups: dict[str, list[str]] = {"rose": [], "fell": [], "stayed": []}
    for c in sorted(changes(report), key=lambda c: -abs(c.delta)):
        base, tuned = rate_text(c.base), rate_text(c.tuned)
        if base == tuned and c.base != c.tuned:
            base, tuned = rate_text(c.base, 3), rate_text(c.tuned, 3)
        where = f"({label_of(c.mode)}, n = {c.n})"
        if c.verdict != "stayed":
            groups[c.verdict].append(f"{c.name} {c.verdict} from {base} to {tuned} {where}")
        elif base == tuned:
            groups["stayed"].append(f"{c.name} stayed at {tuned} {where}")
        else:
            groups["stayed"].append(f"{c.name} went from {base} to {tuned} {where}")
    sentences = [_listed(groups[verdict]) + "." for verdict in ("rose", "fell") if groups[verdict]]
    if not groups["rose"]:
        sentences.append("Nothing rose beyond chance.")
    if not groups["fell"]:
        sentences.append("Nothing fell beyond chance.")
    if groups["stayed"]:
        sentences.append(f"Within chance of the base: {_listed(groups['stayed'])}.")
    fidelity = [f"{label_of(c.mode)} {rate_text(c.base)} → {rate_text(c.tuned)}" for c in fidelity_changes(report)]
    sentences.append(f"Mode fidelity, base → tuned: {', '.join(fidelity)}.")
    cells = [report["evaluation"][model][mode] for model in MODELS for mode in modes_measured(report)]
    cut = sum(map(_cut, cells))
    verb = "was" if cut == 1 else "were"
    sentences.append(f"{cut:,} of {sum(map(replies, cells)):,} replies {verb} cut by the token limit.")
    return sentences


def truncation_warnings(report: Mapping[str, Any]) -> list[str]:
    """One sentence for every cell in which replies were cut, with the setting to raise."""
    found = []
    for model in MODELS:
        for mode in modes_measured(report):
            cell = report["evaluation"][model][mode]
            if cell["truncated"] > 0:
                share = f"{_cut(cell):,} of {replies(cell):,} replies ({percent_text(cell['truncated'])})"
                found.append(
                    f"{model}, {label_of(mode)}: the token limit cut {share}. "
                    f"Raise evaluation.sampling.{mode}.max_new_tokens and evaluate again."
                )
    return found


def cell_text(text: str) -> str:
    """Text that stays inside one cell of a Markdown table and is shown as it is."""
    text = " ".join(str(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


def table(
    report: Mapping[str, Any], *, escape: bool = False, word: Callable[[str], str] = lambda english: english
) -> str:
    """The 2×2 as an aligned Markdown table: benchmark, mode, n, base, tuned, change, the last three with ci95.

    Args:
        escape: make names safe for Markdown; off for a terminal.
        word: the words of the heading, and the names of modes and measures, in another language.
    """
    from rich.cells import cell_len  # a Chinese character is two wide

    head = [word(name) for name in ("benchmark", "mode", "n", "base", "tuned", "change")]
    rows = [head, []]
    for c in [*changes(report), *fidelity_changes(report)]:
        values = [(f"{c.base:.3f}", c.base_ci95, False), (f"{c.tuned:.3f}", c.tuned_ci95, False)]
        values.append((f"{c.delta:+.3f}", c.ci95, True))
        shown = [f"{value} {interval_text(ci95, 3, signed)}".rstrip() for value, ci95, signed in values]
        rows.append([cell_text(c.name) if escape else word(c.name), word(label_of(c.mode)), c.n, *shown])
    widths = [max(cell_len(row[i]) for row in rows if row) for i in range(len(head))]
    rows[1] = ["-" * (width - 1) + ":" if i == 2 else "-" * width for i, width in enumerate(widths)]
    lines = []
    for row in rows:
        blanks = [" " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True)]
        padded = [
            blank + text if i == 2 else text + blank for i, (text, blank) in enumerate(zip(row, blanks, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


# --- plots ------------------------------------------------------------------------------------------------------------


def short_label(name: str, limit: int = 28) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
