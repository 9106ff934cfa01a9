"""Exercises of notebook 12: how many replies may lose the form, intervals that overlap, and what thinking is worth."""

from __future__ import annotations

import math
from typing import Any

from pipeline.course import lab
from pipeline.course.exercises import exercise

REPLIES, ASKED = 600, 20


@exercise("12.1")
def replies_that_may_lose_the_form(answer: Any) -> None:
    """``answer``: the largest number of 600 replies without the form at which mode fidelity is 0.995 or more."""
    assert isinstance(answer, int) and not isinstance(answer, bool), "The answer should be a whole number."
    allowed = REPLIES - math.ceil(0.995 * REPLIES)
    assert answer <= allowed, f"Then the mode fidelity is {1 - answer / REPLIES:.4f}, which is below 0.995."
    assert answer == allowed, "That many may, and more may too. How many replies have to keep the form?"


@exercise("12.2")
def intervals_that_overlap(answer: Any) -> None:
    """``answer(first, second)``: whether two intervals have a value in common."""
    assert callable(answer), "The answer should be a function of two intervals, each a pair (low, high)."
    pairs = [((0.1, 0.3), (0.2, 0.5)), ((0.1, 0.9), (0.4, 0.5)), ((0.0, 0.2), (0.2, 0.4)), ((0.1, 0.2), (0.3, 0.4))]
    for one, other in [*pairs, *((b, a) for a, b in pairs)]:
        given = answer(one, other)
        assert isinstance(given, bool), f"It returned {given!r}; return True or False."
        shared = not (one[1] < other[0] or other[1] < one[0])
        assert given == shared, (
            f"For {one} and {other} it says {given}. Draw both on a line: where does each begin and end?"
        )


@exercise("12.3")
def what_thinking_is_worth(answer: Any) -> None:
    """``answer``: parts of 20 sums that the base has right with thinking and without."""
    assert isinstance(answer, tuple | list) and len(answer) == 2, (
        "The answer should be a pair: (with thinking, without)."
    )
    assert all(isinstance(part, int | float) and 0 <= part <= 1 for part in answer), "Each part lies between 0 and 1."
    asked = [q for mode in ("thinking", "non_thinking") for q in lab.questions("arithmetic", ASKED, mode)]
    replies = lab.teach([], asked, steps=0)["replies"]
    thinking, direct = lab.rate_of(replies[:ASKED]), lab.rate_of(replies[ASKED:])
    assert abs(answer[0] - thinking) <= 0.15, (
        "With thinking, your guess is too far from what comes out. Ask a few sums, and read how the digits are worked out."
    )
    assert abs(answer[1] - direct) <= 0.15, (
        "Without thinking, your guess is too far from what comes out. The model has to say the sum at once: ask a few."
    )
