"""Intervals and tests for scores of the same items under several settings and seeds.

In: arrays of item scores. Out: intervals by a bootstrap over seeds and items together, and a paired permutation test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

REPEATS = 2000  # of the bootstrap; the ends of a 95 % interval then rest on 50 draws each


def bootstrap(
    scores: Mapping[str, np.ndarray],
    measure: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    seed: int = 0,
    repeats: int = REPEATS,
) -> np.ndarray:
    """Draws of a measure under resampling of seeds and items (Efron and Tibshirani 1993, chapter 8: by strata).

    Args:
        scores: benchmark → array [settings, seeds, items]. The items of a benchmark are the same for all settings and seeds,
            so one draw of items serves all of them: differences between settings are paired. Seeds are drawn once for all.
        measure: from benchmark → array [settings, seeds, items], drawn anew, to an array of any shape.

    Returns:
        Array [repeats, *shape of the measure].
    """
    rng = np.random.default_rng(seed)
    seeds = {array.shape[1] for array in scores.values()}
    if len(seeds) != 1:
        raise ValueError(f"all benchmarks need the same number of seeds, found {sorted(seeds)}")
    count = seeds.pop()
    draws = []
    for _ in range(repeats):
        chosen = rng.integers(0, count, count)
        items = {name: rng.integers(0, array.shape[2], array.shape[2]) for name, array in scores.items()}
        draws.append(measure({name: array[:, chosen][:, :, items[name]] for name, array in scores.items()}))
    return np.asarray(draws)


def interval95(draws: np.ndarray) -> list[Any]:
    """The central 95 % of draws along the first axis: [low, high], each of the measure's shape."""
    return [np.quantile(draws, q, axis=0).tolist() for q in (0.025, 0.975)]


def paired_permutation(first: np.ndarray, second: np.ndarray, repeats: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of "no difference" between two scores of the same items, by random exchanges within items.

    Args:
        first, second: [items]; with several seeds, an item's mean over them.
    """
    difference = np.asarray(second, float) - np.asarray(first, float)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    rng = np.random.default_rng(seed)
    observed = abs(difference.sum())
    signs = rng.integers(0, 2, (repeats, len(difference)), dtype=np.int8) * 2 - 1
    extreme = int((np.abs(signs @ difference) >= observed - 1e-12).sum())
    return (extreme + 1) / (repeats + 1)


def items_for_difference(rate: float, difference: float, power: float = 0.8) -> int:
    """How many items a side it takes to see that two rates differ, at the 5 % level, unpaired (Fleiss 1981, section 3.2).

    Args:
        rate: the lower or the higher one. difference: to the other one, signed.
    """
    other = rate + difference
    if not (0 <= rate <= 1 and 0 <= other <= 1 and difference):
        raise ValueError(f"both rates must lie in 0..1 and differ; given {rate} and {other}")
    mean = (rate + other) / 2
    z_alpha, z_power = 1.959964, _normal_quantile(power)
    spread = z_alpha * math.sqrt(2 * mean * (1 - mean))
    spread += z_power * math.sqrt(rate * (1 - rate) + other * (1 - other))
    return math.ceil((spread / difference) ** 2)


def _normal_quantile(probability: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)
