"""Exercises of notebook 11: a row for a new token, how many items a verdict needs, and a form without the skill."""

from __future__ import annotations

import math
from typing import Any

from pipeline.course import lab
from pipeline.course.exercises import exercise

ASKED, STEPS = 20, 60
BOUND, TRUE, CHANCE = 0.95, 0.92, 0.05


@exercise("11.1")
def row_of_its_pieces(answer: Any) -> None:
    """``answer(table, ids)``: the mean of those rows of the table."""
    import torch

    assert callable(answer), "The answer should be a function of a table and a list of token ids."
    table = torch.arange(12.0).reshape(4, 3)
    for ids, wanted in (([0, 2], [3.0, 4.0, 5.0]), ([3], [9.0, 10.0, 11.0])):
        row = answer(table.clone(), list(ids))
        assert isinstance(row, torch.Tensor) and row.shape == (3,), (
            "The function should return one row: as many numbers as a row of the table has."
        )
        assert torch.allclose(row, torch.tensor(wanted)), (
            "That is not the mean of the rows with these ids. Is it the mean over the rows, number by number?"
        )


@exercise("11.2")
def items_of_a_verdict(answer: Any) -> None:
    """``answer``: the smallest multiple of 20 with which a model of fidelity 0.92 is hardly ever taken."""
    from scipy.stats import binom

    def chance(n: int) -> float:
        return float(binom.sf(math.ceil(BOUND * n - 1e-9) - 1, n, TRUE))

    assert isinstance(answer, int) and answer > 0 and answer % 20 == 0, (
        "The answer should be a whole number that 20 divides."
    )
    assert chance(answer) <= CHANCE, "With so few replies such a model is still taken too often."
    assert all(chance(n) > CHANCE for n in range(20, answer, 20)), (
        "It holds for a smaller number too. Try them in order."
    )


@exercise("11.3")
def form_without_skill(answer: Any) -> None:
    """``answer``: after a training that always thinks, parts of replies without thinking that have the form, and are right."""
    assert isinstance(answer, tuple | list) and len(answer) == 2, "The answer should be a pair: (faithful, right)."
    assert all(isinstance(part, int | float) and 0 <= part <= 1 for part in answer), "Each part lies between 0 and 1."
    replies = lab.teach(lab.lesson(0), lab.questions("skill", ASKED, "non_thinking"), steps=STEPS)["replies"]
    faithful, right = lab.rate_of(replies, "faithful"), lab.rate_of(replies)
    assert abs(answer[0] - faithful) <= 0.15, (
        "For the form, your guess is too far from what comes out. Did this model have the mode before the training?"
    )
    assert abs(answer[1] - right) <= 0.15, (
        "For what is right, your guess is too far from what comes out. Where did the rows show the digits worked out?"
    )
