"""Why a cell has no result: what its run noted or printed, or the signal that ended it."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.core.files import read_json

PROGRESS_BAR = re.compile(r"\d+%\|.*\| *\d+/\d+ \[")  # tqdm's


def log_failure(text: str) -> str | None:
    """The last ``error: …`` of a log, or its last line that is no progress bar; None: there is neither.

    A progress bar that was never closed stands in front of the error on the same line, and may be drawn again after it.
    """
    errors = re.findall(r"(?<![\w.])error: ([^\r\n]+)", text)
    if errors:
        return str(errors[-1]).strip()
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line and not PROGRESS_BAR.search(line)), None)


def reason_of(folder: Path, code: int) -> str:
    """Of a cell's folder: the error that its run noted, the signal, or the last words of its log."""
    noted = folder / "run" / "failure.json"
    if noted.exists():
        return str(read_json(noted)["error"])
    printed = log_failure((folder / "log.txt").read_text(encoding="utf-8", errors="replace"))
    return f"ended by signal {-code}" if code < 0 else printed or "no output"
