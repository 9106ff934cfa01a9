from __future__ import annotations

import numpy as np
import pytest

from pipeline.statistics import bootstrap, interval95, items_for_difference, paired_permutation


def _means(scores: dict[str, np.ndarray]) -> np.ndarray:
    return np.array([array.mean(axis=(1, 2)) for array in scores.values()])


def test_interval_of_one_rate_agrees_with_the_normal_one() -> None:
    rng = np.random.default_rng(1)
    items = (rng.random((1, 1, 400)) < 0.7).astype(float)
    low, high = interval95(bootstrap({"a": items}, _means))
    rate = items.mean()
    half = 1.96 * np.sqrt(rate * (1 - rate) / 400)
    assert low[0][0] == pytest.approx(rate - half, abs=0.01) and high[0][0] == pytest.approx(rate + half, abs=0.01)


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(150):
        items = (rng.random((1, 1, 120)) < 0.6).astype(float)
        low, high = interval95(bootstrap({"a": items}, _means, seed=trial, repeats=300))
        covered += low[0][0] <= 0.6 <= high[0][0]
    assert 0.88 <= covered / 150 <= 1.0


def test_seeds_that_differ_widen_the_interval() -> None:
    alike = np.tile(np.repeat([0.0, 1.0], 100), (1, 3, 1))
    apart = np.array([[[0.0] * 80 + [1.0] * 120, [0.0] * 100 + [1.0] * 100, [0.0] * 120 + [1.0] * 80]])
    assert alike.mean() == apart.mean() == 0.5

    def width(scores: np.ndarray) -> float:
        low, high = interval95(bootstrap({"a": scores}, _means))
        return float(high[0][0] - low[0][0])

    assert width(apart) > 1.15 * width(alike)


def test_differences_between_settings_are_paired() -> None:
    rng = np.random.default_rng(3)
    first = (rng.random((1, 1, 300)) < 0.5).astype(float)
    second = first.copy()
    second[0, 0, np.flatnonzero(first[0, 0] == 0)[:15]] = 1  # the same items, fifteen more right
    draws = bootstrap({"a": np.concatenate([first, second])}, _means)
    low, high = interval95(draws[:, 0, 1] - draws[:, 0, 0])
    assert 0.02 < low < 0.05 < high < 0.08  # unpaired, it would reach below 0


def test_bootstrap_needs_the_same_seeds_everywhere() -> None:
    with pytest.raises(ValueError, match="same number of seeds"):
        bootstrap({"a": np.zeros((1, 1, 5)), "b": np.zeros((1, 2, 5))}, _means)


def test_permutation_agrees_with_the_sign_test() -> None:
    # Nine items better, one worse: the exact two-sided p is 2 × (1 + 10) / 1024.
    first, second = np.zeros(50), np.zeros(50)
    second[:9], first[9] = 1, 1
    assert paired_permutation(first, second) == pytest.approx(22 / 1024, abs=0.005)
    assert paired_permutation(first, first) == 1.0


def test_items_for_a_difference() -> None:
    # Fleiss' formula, worked out by hand for 0.90 against 0.93: (1.96 √(2·0.915·0.085) + 0.8416 √(0.09 + 0.0651))² / 0.0009.
    assert items_for_difference(0.90, 0.03) == 1356
    assert items_for_difference(0.93, -0.03) == 1356
    assert items_for_difference(0.5, 0.3) < 50
    for rate, difference in ((0.99, 0.03), (0.5, 0.0)):
        with pytest.raises(ValueError, match="must lie in"):
            items_for_difference(rate, difference)
