"""What is said while work goes on: one place for the project's own words, one display of progress, a file for the rest.

Libraries print warnings and bars of their own. ``foreign`` sends them to a log file beside the results, so that the console of a
healthy run holds nothing but what the project says.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from pipeline.core.language import translate
from pipeline.core.processes import is_first

LOG = "log.txt"
EVERY_SECONDS = 0.2  # between two states of a bar on a terminal
LINE_SECONDS = 30.0  # between two lines of a bar where there is no terminal


def stream() -> TextIO:
    """Where the project speaks: standard error, also while libraries' own words go elsewhere."""
    return sys.stderr.real if isinstance(sys.stderr, _Foreign) else sys.stderr


def say(text: str) -> None:
    """Print a line of progress to standard error, in the reader's language; of several processes, the first does."""
    from rich.console import Console

    if is_first():
        _clear()
        Console(file=stream(), soft_wrap=True, highlight=False).print(translate(text), markup=False)


# --- what others print --------------------------------------------------------------------------------------------------


class _Foreign:
    """A text stream whose lines go to a file as soon as its folder exists; closed, it passes them on to the real one.

    Libraries keep the stream that they find while being imported, so it goes on working after its time.
    """

    def __init__(self, real: TextIO, path: Path | None):
        self.real, self.path, self.closed_down = real, path, False
        self._kept: list[str] = []
        self._file: TextIO | None = None

    def write(self, text: str) -> int:
        if self.closed_down:
            return self.real.write(text)
        if self._file is None and self.path is not None and self.path.parent.is_dir():
            self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
            self._file.write("".join(self._kept))
        if self._file is None:
            self._kept.append(text)
        else:
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        (self._file or self.real).flush()

    def close_down(self) -> None:
        if self._kept and self._file is None:
            self.write("")  # the folder may be there by now
        self.closed_down = True
        if self._file is not None:
            self._file.close()
            self._file = None

    def isatty(self) -> bool:
        return self.closed_down and self.real.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@contextlib.contextmanager
def foreign(folder: Path | None) -> Iterator[None]:
    """What is printed within the block, other than by ``say`` and ``Bar``, goes to ``folder/log.txt``.

    The folder is not made: until it exists the text is kept, and where it never does, dropped. An error that leaves the block is
    printed as ever.
    """
    if isinstance(sys.stderr, _Foreign):
        yield
        return
    before = sys.stdout, sys.stderr
    tap = _Foreign(sys.stderr, None if folder is None else folder / LOG)
    sys.stdout = sys.stderr = tap
    try:
        yield
    finally:
        tap.close_down()
        sys.stdout, sys.stderr = before


# --- progress -----------------------------------------------------------------------------------------------------------

_expected: dict[str, float] = {}  # seconds of the stages that are still to come, where they are known
_bar: Bar | None = None  # the one that is drawn


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel; one that has only imported Jupyter's packages, as papermill does, is none."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and bool(kernel.IPKernelApp.initialized())


def expect(seconds: Mapping[str, float]) -> None:
    """Say how long the stages to come will take, for the time that is left of the whole; {} forgets it."""
    _expected.clear()
    _expected.update(seconds)


class Bar:
    """The progress of a stage: what is done of how much, the time left of it and, where it is known, of the whole.

    On a terminal and in a notebook one line that is drawn over; elsewhere a line every half minute.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.done, self._from = what, total, done, done
        self._began = self._drawn = time.monotonic()
        self._over = stream().isatty() or in_notebook()

    def __enter__(self) -> Bar:
        global _bar
        _bar = self
        return self

    def __exit__(self, *_: object) -> None:
        global _bar
        _clear()
        _bar = None

    def update(self, count: int) -> None:
        """``count`` more are done."""
        self.done += count
        now = time.monotonic()
        if now - self._drawn >= (EVERY_SECONDS if self._over else LINE_SECONDS) and is_first():
            self._drawn = now
            text = translate(self.text(), ours=True)
            print(f"\r{text}\x1b[K" if self._over else text, end="" if self._over else "\n", file=stream())
            stream().flush()

    def seconds_left(self) -> float | None:
        """Of this stage, at the pace so far."""
        if self.done <= self._from:
            return None
        return (time.monotonic() - self._began) / (self.done - self._from) * (self.total - self.done)

    def text(self) -> str:
        """``train: 350 of 1,400, 2.2 minutes left; 3.1 minutes left of the whole``."""
        left = self.seconds_left()
        what, done, total = self.what, f"{self.done:,}", f"{self.total:,}"
        if left is None:
            return f"{what}: {done} of {total}"
        if not _expected:
            return f"{what}: {done} of {total}, {duration(left)} left"
        whole = duration(left + sum(_expected.values()))
        return f"{what}: {done} of {total}, {duration(left)} left; {whole} left of the whole"


def _clear() -> None:
    """Take the bar off the line before something else is written."""
    if _bar is not None and _bar._over and is_first():
        print("\r\x1b[K", end="", file=stream())


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would say."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 60:,.1f} minutes" if seconds >= 2 * 60 else f"{seconds:,.0f} seconds"
