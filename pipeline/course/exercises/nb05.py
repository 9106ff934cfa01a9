"""Exercises of notebook 05: mode fidelity, how many items an interval takes, which replies count as right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.statistics import wilson
from pipeline.course.exercises import exercise
from pipeline.course.lab import Answered, LabQuestion, lesson, questions, rate_of, teach
from pipeline.data.chat_format import EmptyThink

# (reply, cut by the token limit): what a thinking-mode evaluation might hold.
PRACTICE_REPLIES: tuple[tuple[str, bool], ...] = (
    ("<think>\n6 × 7 = 42.\n</think>\n\n42", False),
    ("42", False),
    ("<think>\n\n</think>\n\n42", False),
    ("<think>\n6 × 7 = 42, so \\boxed{42}", True),
    ("<think>\n6 × 7 = 42.\n</think>\n\n", False),
    ("<think>\nLet me see.\n</think>\n\n41", False),
    ("<think>\n6 × 7 = 42.\n</think>\n\nThe answer is 42", True),
    ("<think>\n6 + 7 = 13.\n</think>\n\nThe answer is 13.", False),
)


@exercise("05.1")
def fidelity_of_practice_replies(answer: Any) -> None:
    """Share of PRACTICE_REPLIES that are faithful to the thinking mode."""
    faithful = 0
    for text, cut in PRACTICE_REPLIES:
        head, closed, tail = text.partition("</think>")
        faithful += not cut and bool(closed) and bool(head.removeprefix("<think>").strip()) and bool(tail.strip())
    assert isinstance(answer, int | float) and not isinstance(answer, bool), (
        "The answer should be a number from 0 to 1."
    )
    assert 0 <= answer <= 1, f"{answer!r} is no share; a share lies between 0 and 1."
    assert math.isclose(answer, faithful / len(PRACTICE_REPLIES), abs_tol=1e-9), (
        f"{answer!r} is not right. Faithful means: opens, thinks something, closes, answers, and was not cut. "
        "Whether the answer is correct does not matter here."
    )


def _width(rate: float, items: int) -> float:
    low, high = wilson(rate * items, items)
    return high - low


@exercise("05.2")
def items_for_a_width(answer: Any) -> None:
    """``answer(rate, width)``: the smallest number of items with which Wilson's 95 % interval is at most so wide."""
    assert callable(answer), "The answer should be a function of a rate and a width, both from 0 to 1."
    for rate, width in ((0.7, 0.3), (0.9, 0.1), (0.5, 0.1), (1.0, 0.1), (0.9, 0.05), (0.99, 0.02)):
        given = answer(rate, width)
        assert isinstance(given, Integral) and not isinstance(given, bool) and int(given) >= 1, (
            "The function should return a whole number of items, 1 or more."
        )
        items = int(given)
        # Half a thousandth of play, for z may be 1.96 or 1.959964.
        assert _width(rate, items) <= width * 1.0005, (
            f"For a rate of {rate:g} and a width of {width:g}, {items} items are too few: the interval is "
            f"{_width(rate, items):.4f} wide, from its lower to its upper end."
        )
        assert items == 1 or _width(rate, items - 1) > width * 0.9995, (
            f"For a rate of {rate:g} and a width of {width:g}, {items} items are enough, but fewer are enough too."
        )


@exercise("05.3")
def replies_that_count_as_right(answer: Any) -> None:
    """Positions (from 0) of PRACTICE_REPLIES that count as right for the question 6 × 7."""
    assert isinstance(answer, list | tuple | set), "The answer should be a list of positions, counted from 0."
    given = set(answer)
    assert not any(PRACTICE_REPLIES[i][1] for i in given if 0 <= i < len(PRACTICE_REPLIES)), (
        "One of these was cut by the token limit. Such a reply never counts as right, whatever number stands in it."
    )
    right = {i for i, (text, cut) in enumerate(PRACTICE_REPLIES) if not cut and "42" in text.rpartition("</think>")[2]}
    assert given == right, (
        "Not quite. Accuracy looks at what follows the reasoning; the form is measured by mode fidelity, not here."
    )


# --- 05.4: one of three adapters ------------------------------------------------------------------------------------------

_ADAPTERS: dict[str, tuple[float, EmptyThink]] = {"a": (1.0, "masked"), "b": (0.5, "masked"), "c": (1.0, "trained")}


def ask_adapter(name: str, asked: Sequence[LabQuestion]) -> list[Answered]:
    """Replies of one of three adapters, ``a``, ``b`` or ``c``; it is trained on the spot, in seconds.

    Raises:
        UserError: there is no such adapter.
    """
    if name not in _ADAPTERS:
        raise UserError(f"There is no adapter {name!r}; there are {', '.join(_ADAPTERS)}.")
    share, empty_think = _ADAPTERS[name]
    rows = lesson(share, 160, empty_think=empty_think)
    return teach(rows, asked, steps=25, rate=1e-2)["replies"]


@exercise("05.4")
def broken_adapter(answer: Any) -> None:
    """The adapter that does not think any more."""
    assert answer in _ADAPTERS, 'The answer should be "a", "b" or "c".'
    kept = rate_of(ask_adapter(answer, questions("chat", 6)), "faithful")
    assert kept < 0.5, (
        f"Asked 6 chat questions in thinking mode, this adapter keeps its form in {kept:.0%}. Ask the others the same."
    )
