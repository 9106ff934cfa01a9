"""The tables of docs/audit.md from audit.json, and from what ``data handover --check --json`` prints."""

from __future__ import annotations

from typing import Any

from pipeline.handover.records import MEANING, Audit, SettingAudit
from pipeline.handover.words import kinds, only_newline

SIGN = {"newline_after_end": "⏎"}  # of the one that inference never sees; the others stand by their name


def audit_table(result: dict[str, Any], part: str | None = None) -> str:
    """Markdown. None: a line a setting; ``cases``: which differences each case shows; ``kinds``: what the words mean."""
    found = Audit.model_validate(result)
    if part == "kinds":
        shown = {kind for setting in found.settings for kind in kinds(setting.rows)}
        lines = ["| difference | what it means |", "|---|---|"]
        return "\n".join([*lines, *(f"| `{kind}` | {text} |" for kind, text in MEANING.items() if kind in shown)])
    return _cases(found) if part == "cases" else _summary(found)


def _summary(found: Audit) -> str:
    lines = [
        "| framework | settings | versions | rows equal | equal but for ⏎ | tokens with loss equal | tokens with loss there |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for setting in found.settings:
        name = f"{setting.framework}, {setting.setting}"
        if setting.error:
            lines.append(f"| {name} | {setting.how} | did not run: {setting.error} | | | | |")
            continue
        versions = ", ".join(f"{package} {version}" for package, version in setting.versions.items())
        also = sum(map(only_newline, setting.rows))
        lines.append(
            f"| {name} | {setting.how} | {versions} | {setting.equal_rows} of {len(setting.rows)} | {also} | "
            f"{setting.equal_loss_tokens} of {setting.loss_tokens} | {setting.framework_loss_tokens} |"
        )
    return "\n".join(lines)


def _cases(found: Audit) -> str:
    ran = [setting for setting in found.settings if not setting.error]
    cases = list(dict.fromkeys(row.source for setting in ran for row in setting.rows))
    lines = [f"| framework, settings | {' | '.join(cases)} |", f"|---|{'---|' * len(cases)}"]
    for setting in ran:
        cells = [_cell(setting, case) for case in cases]
        lines.append(f"| {setting.framework}, {setting.setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(setting: SettingAudit, case: str) -> str:
    names = dict.fromkeys(f.kind for row in setting.rows if row.source == case for f in row.findings)
    return "<br>".join(SIGN.get(name, f"`{name}`") for name in names) or "equal"


def handover_table(result: list[dict[str, Any]], part: str | None = None) -> str:
    """Markdown: a line a target."""
    lines = [
        "| target | version | rows | rows with the same tokens with loss | left out when written |",
        "|---|---|--:|--:|--:|",
    ]
    for record in result:
        check = record["check"]
        if check["error"]:
            lines.append(f"| {record['target']} | did not run: {check['error']} | | | |")
        else:
            share = f"{check['equal']:,} ({check['equal'] / check['rows']:.1%})"
            cells = (f"{record['package']} {check['version']}", f"{check['rows']:,}", share, record["left_out"])
            lines.append(f"| {record['target']} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
