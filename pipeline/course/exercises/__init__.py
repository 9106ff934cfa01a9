"""Checks for the exercises at the end of each notebook; one module a notebook (``nb00`` … ``nb11``).

In: the name of an exercise (``"01.2"``) and a learner's answer. Out: a line that says "right"; a wrong answer raises
``AssertionError`` with a hint that does not give it away; both in the reader's language. ``...`` means "not answered yet" and
lets the notebook run on, so that it can be executed in batch. Solutions: notebooks/solutions/.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from pipeline.core.errors import UserError, nearest
from pipeline.core.language import translate

_CHECKS: dict[str, Callable[[Any], None]] = {}


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
        AssertionError: the answer is wrong (with a hint).
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
    except AssertionError as error:
        raise AssertionError(translate(str(error))) from None
    return translate(f"{name}: right")
