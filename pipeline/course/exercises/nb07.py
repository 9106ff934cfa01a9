"""Exercises of notebook 07: a logarithmic scale, the best trial under a constraint, accumulation, a search under a floor."""

from __future__ import annotations

import math
from typing import Any

from pipeline.course.exercises import exercise
from pipeline.course.lab import lesson, questions, rate_of, teach

# (balance, fidelity thinking, fidelity non-thinking) of trials, as a search might leave them.
PRACTICE_TRIALS: tuple[tuple[float, float, float], ...] = (
    (0.71, 0.99, 1.00),
    (0.84, 0.62, 1.00),
    (0.78, 0.97, 0.99),
    (0.80, 0.99, 0.94),
    (0.78, 0.94, 0.99),
)


@exercise("07.1")
def log_scale(answer: Any) -> None:
    """``answer(u, low, high)``: u = 0 gives low, u = 1 gives high, and equal steps of u give equal factors."""
    assert callable(answer), "The answer should be a function of three numbers."
    for low, high in ((1e-5, 5e-4), (1e-3, 1e-1), (2.0, 8.0)):
        for u in (0.0, 0.25, 0.5, 0.9, 1.0):
            given = answer(u, low, high)
            assert isinstance(given, int | float), "The function should return a number."
            assert math.isclose(given, math.exp((1 - u) * math.log(low) + u * math.log(high)), rel_tol=1e-6), (
                f"u = {u} between {low:g} and {high:g} gives {given:g}. On a logarithmic scale the middle is the "
                "geometric mean, so take the logarithm, go straight, and come back."
            )


@exercise("07.2")
def best_feasible_trial(answer: Any) -> None:
    """Position (from 0) of the best of PRACTICE_TRIALS whose fidelity is at least 0.95 in both modes."""
    assert isinstance(answer, int) and not isinstance(answer, bool), "The answer should be a position, counted from 0."
    assert answer != 1, "Its balance is the highest, but four in ten of its thinking-mode answers do not think."
    feasible = [i for i, (_, *fidelity) in enumerate(PRACTICE_TRIALS) if min(fidelity) >= 0.95]
    assert answer in feasible, "The constraint holds for each mode by itself, not for their mean."
    assert answer == max(feasible, key=lambda i: PRACTICE_TRIALS[i][0]), (
        "Among those that may be taken, one scores higher."
    )


@exercise("07.3")
def accumulation_steps(answer: Any) -> None:
    """``answer(effective, rows, cards)``: accumulation steps so that at least ``effective`` rows make a step."""
    assert callable(answer), "The answer should be a function of three whole numbers."
    for effective, rows, cards in ((16, 4, 1), (16, 2, 4), (64, 8, 2), (16, 3, 1), (16, 32, 1), (100, 8, 3)):
        given = answer(effective, rows, cards)
        assert isinstance(given, int) and given >= 1, "The function should return a whole number, at least 1."
        assert given * rows * cards >= effective, (
            f"{given} × {rows} rows × {cards} card(s) are {given * rows * cards}, fewer than {effective}. Round up."
        )
        assert (given - 1) * rows * cards < effective or given == 1, (
            f"{given} is more than it takes for {effective} with {rows} rows on {cards} card(s)."
        )


@exercise("07.4")
def a_search_under_a_floor(answer: Any) -> None:
    """``{"learning_rate": …, "rank": …}`` with which 20 steps bring the loss below 0.45 and leave 0.9 of the chat right."""
    assert isinstance(answer, dict) and set(answer) == {"learning_rate", "rank"}, (
        "The answer should be a dict with the keys learning_rate and rank, as study.best_params is."
    )
    rate, rank = answer["learning_rate"], answer["rank"]
    assert isinstance(rate, int | float) and 0 < rate <= 1, "The learning rate should lie between 0 and 1."
    assert isinstance(rank, int) and 1 <= rank <= 128, "The rank should be a whole number from 1 to 128."
    taught = teach(lesson(0.0, 200), questions("chat", 20), steps=20, rate=rate, rank=rank)
    last, kept = sum(taught["loss"][-5:]) / 5, rate_of(taught["replies"])
    assert kept >= 0.9, (
        f"With these values only {kept:.2f} of the chat is right. A trial below the floor must not win, however low its loss is."
    )
    assert last < 0.45, (
        f"With these values the loss of the last five steps is {last:.2f}. Give the search a wider range, or more trials."
    )
