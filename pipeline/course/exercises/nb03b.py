"""Exercises of notebook 03b: a loss, ranks of sums of adapters, a rank for an error, and a learning rate that is too large."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.course.exercises import exercise
from pipeline.course.lab import lesson, teach


@exercise("03b.1")
def cross_entropy(answer: Any) -> None:
    """``answer(scores, right)``: −log softmax(scores)[right]."""
    assert callable(answer), "The answer should be a function of the list of scores and the number of the right token."
    for scores, right in (([0.0, 0.0], 0), ([2.0, 1.0, 0.0], 1), ([-3.0, 5.0, 0.5, 1.0], 0), ([7.0] * 1024, 17)):
        wanted = math.log(sum(math.exp(score) for score in scores)) - scores[right]
        given = answer(list(scores), right)
        assert isinstance(given, int | float), "The function should return one number."
        assert not math.isclose(given, -wanted, abs_tol=1e-9) or wanted == 0, "A loss is positive: mind the sign."
        assert not math.isclose(given, math.exp(-wanted), abs_tol=1e-9), (
            "That is the likelihood. The loss is −log of it."
        )
        assert math.isclose(given, wanted, rel_tol=1e-6), (
            f"For {len(scores)} scores, {given:.4g} is not right. Make likelihoods first, then take −log of the right one."
        )


def changes() -> list[Any]:
    """Three changes of a matrix of 128 × 384 by LoRA, as arrays of numbers drawn at random.

    Returns:
        The sum of two adapters of rank 4; the sum of two of rank 4 with the same A; one adapter of rank 200.
    """
    draw = np.random.default_rng(5)
    a, other = draw.normal(size=(2, 4, 384))
    b, more = draw.normal(size=(2, 128, 4))
    return [b @ a + more @ other, b @ a + more @ a, draw.normal(size=(128, 200)) @ draw.normal(size=(200, 384))]


@exercise("03b.2")
def ranks_of_changes(answer: Any) -> None:
    """``answer``: the ranks of the three ``changes``."""
    assert isinstance(answer, tuple | list) and len(answer) == 3, "The answer should be three ranks, one a change."
    assert all(isinstance(rank, int | np.integer) and rank >= 0 for rank in answer), (
        "A rank is a whole number from 0 on."
    )
    two, shared, large = (int(np.linalg.matrix_rank(change)) for change in changes())
    assert answer[0] == two, (
        "The first is not right. Two adapters that have nothing in common: how many independent directions have both together?"
    )
    assert answer[1] == shared, (
        "The second is not right. Take the same A out of the sum: (B₁ + B₂) · A. What is its rank?"
    )
    assert answer[2] == large, (
        "The third is not right. How many rows has the matrix, and can its rank be larger than that?"
    )


@exercise("03b.3")
def smallest_rank(answer: Any) -> None:
    """``answer(values, limit)``: the smallest rank with relative error √(Σ rest² / Σ all²) ≤ limit."""
    assert callable(answer), "The answer should be a function of the singular values and the limit."
    for values, limit in (
        ([3.0, 4.0][::-1], 0.7),
        ([5.0, 1.0, 1.0, 1.0], 0.4),
        ([1.0] * 10, 0.5),
        ([2.0, 0.0], 0.0),
        ([1.0], 1.0),
    ):
        squares = np.array(values) ** 2
        rest = np.sqrt(np.array([squares[r:].sum() for r in range(len(values) + 1)]) / squares.sum())
        wanted = int(np.argmax(rest <= limit + 1e-12))
        given = answer(list(values), limit)
        assert isinstance(given, int | np.integer), "The function should return a whole number."
        assert given == wanted, (
            f"For {len(values)} values and the limit {limit}, {given} is not right. The error is made of the squares of the "
            "values that are left out, and rank 0 is possible too."
        )


@exercise("03b.4")
def rate_that_is_too_large(answer: Any) -> None:
    """A learning rate with which 20 steps raise the loss."""
    assert isinstance(answer, int | float) and not isinstance(answer, bool), "The answer should be a number."
    assert 1e-5 <= answer <= 1, "The answer should lie between 1e-5 and 1."
    loss = teach(lesson(0.0, 200), steps=20, rate=answer, rank=4)["loss"]
    first, last = loss[0], sum(loss[-5:]) / 5
    assert last > first, (
        f"At {answer:g} the loss went from {first:.2f} to {last:.2f}: no worse. What does a much larger step do?"
    )
