"""Exercises of notebook 06: the Pareto front, a bootstrap over seeds and items, shares by rows and by loss tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.core.statistics import bootstrap, interval95
from pipeline.course.exercises import exercise
from pipeline.course.lab import lesson, questions, rate_of, teach


@exercise("06.1")
def pareto_front(answer: Any) -> None:
    """``answer(points)``: positions of the (gain, keep) points that no other point beats."""
    assert callable(answer), "The answer should be a function of a list of pairs."
    rng = np.random.default_rng(6)
    cases: list[list[tuple[float, float]]] = [[(0.9, 0.3), (0.8, 0.9)], [(0.5, 0.5)], [(0.2, 0.9), (0.2, 0.4)]]
    cases += [[(float(g), float(k)) for g, k in rng.integers(0, 5, (6, 2)) / 5] for _ in range(20)]
    for points in cases:
        # A point is beaten if another one is at least as good in both and better in one.
        front = {i for i, p in enumerate(points) if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)}
        given = answer(list(points))
        assert isinstance(given, list | tuple | set), "The function should return a list of positions, counted from 0."
        assert set(given) == front, (
            f"For {points} it gives {sorted(given)}. Only a point that another one beats in one of the two, without "
            "losing in the other, is off the front. Equal points do not beat each other."
        )


def _scores_of_seeds() -> list[np.ndarray]:
    """Three arrays [seeds, items] of 0 and 1: the items differ, the seeds differ, both do."""
    rng = np.random.default_rng(7)
    easy = rng.choice([0.02, 0.98], 200)
    seeds = np.array([0.3, 0.5, 0.7, 0.9, 0.95])[:, None]
    rates = (np.tile(easy, (5, 1)), np.tile(seeds, (1, 200)), (seeds + easy) / 2)
    return [(rng.random(rate.shape) < rate).astype(float) for rate in rates]


@exercise("06.2")
def interval_over_seeds(answer: Any) -> None:
    """``answer(scores)``: 95 % bootstrap interval of the mean of [seeds, items], the same items drawn for all seeds."""
    assert callable(answer), "The answer should be a function of an array with a row for each seed."
    for scores in _scores_of_seeds():
        draws = bootstrap({"all": scores[None]}, lambda drawn: drawn["all"].mean())
        right = interval95(draws)
        given = answer(scores.copy())
        assert isinstance(given, tuple | list) and len(given) == 2, "The function should return a pair: (low, high)."
        low, high = float(given[0]), float(given[1])
        assert low < high, "The lower end comes first, and must be below the upper one."
        half = (right[1] - right[0]) / 2
        assert abs((low + high) / 2 - scores.mean()) < 0.5 * half, "The interval is not around the mean of all scores."
        assert 0.8 * half < (high - low) / 2 < 1.25 * half, (
            f"The interval is {(high - low) / 2 / half:.1f} times as wide as it should be. Are seeds and items both drawn "
            "again, the same items for all seeds, and are its ends the 2.5th and the 97.5th percentile?"
        )


@exercise("06.3")
def rows_for_half_of_the_loss(answer: Any) -> None:
    """The share of chat rows x with 12 x = 88 (1 - x)."""
    assert isinstance(answer, int | float) and not isinstance(answer, bool), "The answer should be a number."
    assert 0 <= answer <= 1, f"{answer!r} is no share; a share lies between 0 and 1."
    assert not math.isclose(answer, 0.12, abs_tol=0.005), (
        "That is the share of loss tokens when half of the rows are chat."
    )
    assert math.isclose(answer, 0.88, abs_tol=0.005), (
        "12 · x loss tokens from chat must equal 88 · (1 − x) from the rest."
    )


@exercise("06.4")
def steps_until_thinking_is_lost(answer: Any) -> None:
    """Steps with loss on the empty block, after which less than half of the chat answers think."""
    assert isinstance(answer, int) and not isinstance(answer, bool), "The answer should be a whole number of steps."
    assert 1 <= answer <= 30, "The answer should lie between 1 and 30."
    rows = lesson(1.0, 200, empty_think="trained")
    kept = rate_of(teach(rows, questions("chat", 8), steps=answer, rate=1e-2)["replies"], "faithful")
    assert kept < 0.5, f"After {answer} steps, {kept:.0%} of 8 chat answers still think. Give it some more."
