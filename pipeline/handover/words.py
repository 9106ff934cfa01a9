"""An audit in words: for a terminal (coloured), and as a page that works offline (jinja2, everything escaped)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.templates import environment
from pipeline.handover.records import MEANING, Audit, Kind, RowAudit, SettingAudit, Span

TEMPLATES = Path(__file__).with_name("templates")
GREEN, DIM, MARKED, OFF = "\x1b[1;32m", "\x1b[2m", "\x1b[7m", "\x1b[0m"


def audit_text(found: Audit, colour: bool) -> str:
    """Everything, for a terminal: a line a framework, then each row that differs, both sides, what differs shown inverted."""
    lines = [f"{found.recipe}, {found.model}; rows to {found.max_length} tokens", ""]
    for setting in found.settings:
        lines.append(f"=== {setting.framework}, {setting.setting}: {setting.how}")
        lines += _summary(setting)
        for row in setting.rows:
            if not row.equal:
                lines += ["", *_row(row, colour)]
        lines.append("")
    return "\n".join(lines).rstrip()


def _summary(setting: SettingAudit) -> list[str]:
    if setting.error:
        return [f"did not run: {setting.error}"]
    versions = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    lines = [versions + (f" ({setting.version_note})" if setting.version_note else "")] if versions else []
    lines.append(
        f"{setting.equal_rows} of {len(setting.rows)} rows equal; of {setting.loss_tokens} tokens with loss here "
        f"{setting.equal_loss_tokens} are equal there, which has {setting.framework_loss_tokens}"
    )
    if also := sum(only_newline(row) for row in setting.rows):
        lines.append(
            f"{also} more rows differ in the line break behind the end token alone, where inference has stopped"
        )
    return lines + [f"  {kind}: {count} rows. {MEANING[kind]}" for kind, count in kinds(setting.rows).items()]


def kinds(rows: Sequence[RowAudit]) -> dict[Kind, int]:
    """In how many rows each kind of difference is, most frequent first."""
    return dict(Counter(kind for row in rows for kind in {f.kind for f in row.findings}).most_common())


def only_newline(row: RowAudit) -> bool:
    """Whether the line break behind the end token is all that differs."""
    return not row.equal and {finding.kind for finding in row.findings} == {"newline_after_end"}


def _row(row: RowAudit, colour: bool) -> list[str]:
    lines = [f"--- row {row.row}, {row.source}, {row.mode}, {row.turns} answers"]
    for number, example in enumerate(row.ours, 1):
        which = f" ({number} of {len(row.ours)})" if len(row.ours) > 1 else ""
        lines.append(f"here{which}: {spans_text(example, colour)}")
    lines.append(f"there: {spans_text(row.framework, colour)}")
    return lines + [
        f"  {f.kind} ({f.tokens} tokens{', with loss' if f.loss else ''}): {f.text!r}" for f in row.findings
    ]


def spans_text(spans: Sequence[Span], colour: bool) -> str:
    """Loss green (or in ``[[…]]``), the rest dim; what differs inverted (or in ``{…}``)."""
    if colour:
        return "".join(
            f"{GREEN if span.loss else DIM}{MARKED if span.differs else ''}{visible(span.text)}{OFF}" for span in spans
        )
    pieces = [f"{{{visible(s.text)}}}" if s.differs else visible(s.text) for s in spans]
    return "".join(f"[[{piece}]]" if span.loss else piece for piece, span in zip(pieces, spans, strict=True))


def visible(text: str) -> str:
    """The text with its line breaks as a sign, so that one that differs can be seen."""
    return text.replace("\n", "⏎\n") if text.strip() else text.replace("\n", "⏎")


def audit_page(found: Audit) -> str:
    """The same as one HTML page."""
    page = environment(TEMPLATES, escape=True, visible=visible).get_template("audit.html.j2")
    return page.render(audit=found, meaning=MEANING, kinds=kinds)
