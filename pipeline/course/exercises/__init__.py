"""Checks for the exercises at the end of each notebook; one module a notebook (``nb00`` … ``nb12``).

In: the name of an exercise (``"01.2"``) and a learner's answer. Out: a line that says "right"; a wrong answer raises ``Hint``,
which does not give it away, and so does an answer that fails with an error of its own; both in the reader's language. ``...``
means "not answered yet" and lets the notebook run on, so that it can be executed in batch. Solutions: notebooks/solutions/.
"""

from __future__ import annotations

import importlib
import linecache
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from pipeline.core.errors import UserError, nearest
from pipeline.core.language import translate

_CHECKS: dict[str, Callable[[Any], None]] = {}


class Hint(AssertionError):
    """What to think about after a wrong answer. IPython shows this text alone; in batch it fails as any exception does."""

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython prints in the place of a traceback, which would show the check, and with it the solution."""
        return [translate("Hint: ") + str(self)]


def exercise(name: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a check. It asserts what must hold of the answer, with a hint as the assertion's message."""

    def register(check: Callable[[Any], None]) -> Callable[[Any], None]:
        _CHECKS[name] = check
        return check

    return register


def check(name: str, answer: Any) -> str:
    """Check an answer.

    Args:
        name: notebook and exercise, such as ``"01.2"``.
        answer: what the exercise asks for (a value or a function); ``...`` if not answered yet.

    Raises:
        Hint: the answer is wrong, or raised an exception, which is the hint's cause.
        UserError: there is no such exercise.
    """
    number = name.partition(".")[0]
    module = f"pipeline.course.exercises.nb{number}"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(f"There is no exercise {name!r}: no notebook begins with {number!r}.") from error
    if name not in _CHECKS:
        raise UserError(f"There is no exercise {name!r}.{nearest(name, _CHECKS)}")
    if answer is ...:
        return translate(f"{name}: not answered yet")
    try:
        _CHECKS[name](answer)
    except Exception as error:  # a learner's code may raise anything; all of it is told, and kept as the cause
        caught = error
    else:
        return translate(f"{name}: right")
    # Here and not within `except`: IPython looks for groups of exceptions in the context too, and would print all of it.
    frames = list(traceback.walk_tb(caught.__traceback__))
    if isinstance(caught, AssertionError) and frames[-1][0].f_globals["__name__"] == module:
        raise Hint(translate(str(caught)))
    notebook = sys._getframe(1).f_globals  # a function with these globals is the learner's
    raise Hint(_told(caught, [(frame, line) for frame, line in frames if frame.f_globals is notebook])) from caught


def _told(error: Exception, own: list[tuple[FrameType, int]]) -> str:
    """An exception in words: what it says, and the line of the learner's code where it arose, if there is one.

    Args:
        own: frames of the learner's code and their lines, the innermost last.
    """
    said = f"{type(error).__name__}: {error}".removesuffix(": ").removesuffix(".")
    if isinstance(error, UserError):
        text = translate(str(error))
    else:
        text = translate(f"Your code raised {said}." if own else f"The check cannot work with this answer. {said}.")
    if not own:
        return text
    frame, line = own[-1]
    source = linecache.getline(frame.f_code.co_filename, line, frame.f_globals).strip()
    where = translate(f"That was in line {line} of your code. What did it get there, and what does it expect?")
    return "\n".join([text, *([f"    {source}"] if source else []), where])
