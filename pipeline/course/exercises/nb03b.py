"""Exercises of notebook 03b: a loss, a merge, a rank, and a learning rate that is too large."""

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


@exercise("03b.2")
def merge(answer: Any) -> None:
    """``answer(W, A, B, alpha, rank)``: W + alpha / rank · B · A."""
    assert callable(answer), "The answer should be a function of W, A, B, alpha and rank."
    draw = np.random.default_rng(5)
    for outputs, inputs, rank, alpha in ((6, 6, 2, 2), (12, 5, 3, 6), (4, 9, 1, 16)):
        weight, down, up = (
            draw.normal(size=(outputs, inputs)),
            draw.normal(size=(rank, inputs)),
            draw.normal(size=(outputs, rank)),
        )
        before = weight.copy()
        given = np.asarray(answer(weight, down, up, alpha, rank))
        assert given.shape == before.shape, (
            f"One matrix of the shape of W, {before.shape}, is wanted, not {given.shape}."
        )
        assert np.array_equal(weight, before), "The function changed W itself. Give back a new matrix."
        assert not np.allclose(given, before + up @ down) or alpha == rank, "The strength is missing: alpha / rank."
        vector = draw.normal(size=inputs)
        wanted = before @ vector + alpha / rank * (up @ (down @ vector))
        assert np.allclose(given @ vector, wanted), (
            "Merged, the layer gives another result. Look at the sum in section 3."
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
