from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.core.statistics import (
    Z95,
    bootstrap,
    difference_interval95,
    discordance,
    interval95,
    items_for_difference,
    paired_items_for_difference,
    paired_permutation,
    power_table,
    power_text,
    rate_interval95,
    wilson,
)


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


# --- where a bootstrap has no width -------------------------------------------------------------------------------------


def _draws(scores: np.ndarray, seed: int = 0, repeats: int = 2000) -> np.ndarray:
    """Bootstrap means [repeats] of scores [seeds, items]."""
    return bootstrap({"a": scores[None]}, _means, seed=seed, repeats=repeats)[:, 0, 0]


def test_wilson_agrees_with_the_quadratic_that_defines_it() -> None:
    # Its ends are the rates p with |k/n − p| = z √(p (1 − p) / n).
    for successes, n in ((0, 600), (3, 50), (50, 50), (120, 200)):
        for end in wilson(successes, n):
            assert abs(successes / n - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / n), abs=1e-7)


@pytest.mark.parametrize(("value", "ends"), [(0.0, (0.0, 0.01885)), (1.0, (0.98115, 1.0))])
def test_nothing_right_or_nothing_wrong_still_has_an_interval(value: float, ends: tuple[float, float]) -> None:
    scores = np.full((3, 200), value)  # 600 replies to 200 items
    draws = _draws(scores)
    assert interval95(draws) == [value, value]  # what is mended here
    assert rate_interval95(scores, draws) == pytest.approx(ends, abs=1e-5)


def test_scores_that_do_not_vary_between_draws_have_an_interval() -> None:
    scores = np.array([[1.0], [1.0]])
    assert rate_interval95(scores, _draws(scores)) == wilson(1, 1)


def test_in_the_middle_the_interval_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(4)
    hard = rng.random(300)  # items differ in how hard they are, so seeds agree more than by chance
    scores = (rng.random((3, 300)) < hard).astype(float)
    draws = _draws(scores)
    assert rate_interval95(scores, draws) == pytest.approx(interval95(draws), abs=0.006)
    assert rate_interval95(scores, draws)[1] - rate_interval95(scores, draws)[0] > 1.2 * np.diff(wilson(450, 900))


def test_near_one_the_interval_covers_where_quantiles_do_not() -> None:
    rng = np.random.default_rng(5)
    trials, covered, covered_by_quantiles = 300, 0, 0
    for trial in range(trials):
        scores = (rng.random((1, 150)) < 0.99).astype(float)
        draws = _draws(scores, seed=trial, repeats=200)
        (low, high), (first, last) = rate_interval95(scores, draws), interval95(draws)
        covered += low <= 0.99 <= high
        covered_by_quantiles += first <= 0.99 <= last
    assert covered / trials >= 0.93
    assert covered_by_quantiles / trials < 0.85


def test_scores_between_0_and_1_keep_the_quantiles() -> None:
    scores = np.random.default_rng(6).random((2, 50))
    draws = _draws(scores)
    assert rate_interval95(scores, draws) == interval95(draws)


def test_two_settings_that_never_differ_may_still_differ_a_little() -> None:
    right, wrong = np.ones((2, 200)), np.zeros((2, 200))
    none = np.zeros(10)
    low, high = difference_interval95(right, right, none)
    assert (low, high) == pytest.approx((-0.01885, 0.01885), abs=1e-5)
    assert difference_interval95(wrong, right, none + 1) == pytest.approx([0.98115, 1.0], abs=1e-5)
    # The same holds where the rate is neither 0 nor 1, but no item changed.
    mixed = np.tile([0.0, 1.0], (2, 100))
    assert difference_interval95(mixed, mixed, none)[1] == pytest.approx(0.01885, abs=1e-5)


def test_differences_that_vary_keep_the_quantiles() -> None:
    first = np.array([[0.0, 1.0, 1.0, 0.0]])
    second = np.array([[1.0, 1.0, 0.0, 1.0]])
    draws = np.linspace(-0.5, 0.7, 1001)
    assert difference_interval95(first, second, draws) == interval95(draws) == pytest.approx([-0.47, 0.67])


# --- how many items: the power, simulated -------------------------------------------------------------------------------

TRIALS = 20_000


def _tolerance(power: float) -> float:
    """Three standard errors of a simulated rate, and 0.005 for a formula that rounds to whole items."""
    return 3 * math.sqrt(power * (1 - power) / TRIALS) + 0.005


@pytest.mark.parametrize("power", [0.8, 0.9])
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.9])
def test_unpaired_power_is_what_was_asked(rate: float, power: float) -> None:
    n = items_for_difference(rate, 0.03, power)
    rng = np.random.default_rng(7)
    first, second = rng.binomial(n, rate, TRIALS) / n, rng.binomial(n, rate + 0.03, TRIALS) / n
    pooled = (first + second) / 2
    seen = np.abs(second - first) / np.sqrt(2 * pooled * (1 - pooled) / n) > Z95
    assert seen.mean() == pytest.approx(power, abs=_tolerance(power))


def _sign_test(worse: np.ndarray, better: np.ndarray) -> np.ndarray:
    """The exact two-sided p of ``paired_permutation`` for scores of 0 and 1: McNemar's, from a table of binomial sums."""
    result = np.empty(len(worse))
    for total in np.unique(worse + better):
        logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(total + 1)]
        sums = np.cumsum(np.exp(np.array(logs) - total * math.log(2)))
        own = worse + better == total
        result[own] = np.minimum(1, 2 * sums[np.minimum(worse, better)[own]])
    return result


@pytest.mark.parametrize("power", [0.8, 0.9])
@pytest.mark.parametrize("discordant", [0.1, 0.2, 0.5])
def test_paired_power_is_what_was_asked(discordant: float, power: float) -> None:
    n = paired_items_for_difference(0.03, discordant, power)
    rng = np.random.default_rng(8)
    differing = rng.binomial(n, discordant, TRIALS)
    better = rng.binomial(differing, (discordant + 0.03) / (2 * discordant))
    seen = _sign_test(differing - better, better) < 0.05
    assert seen.mean() == pytest.approx(power, abs=_tolerance(power))
    equal = rng.binomial(differing, 0.5)  # no difference: never more than 5 % are "found"
    assert (_sign_test(differing - equal, equal) < 0.05).mean() < 0.05 + _tolerance(0.05)


def test_few_discordant_items_have_more_power_than_asked() -> None:
    # 25 discordant items: an exact test of so few cannot reach 5 % exactly, so the formula errs to the safe side.
    n = paired_items_for_difference(0.03, 0.05)
    rng = np.random.default_rng(9)
    differing = rng.binomial(n, 0.05, TRIALS)
    better = rng.binomial(differing, 0.8)
    seen = (_sign_test(differing - better, better) < 0.05).mean()
    assert 0.8 <= seen < 0.86


def test_the_permutation_test_itself_has_the_power() -> None:
    n = paired_items_for_difference(0.1, 0.2)
    rng = np.random.default_rng(10)
    trials, found = 300, 0
    for trial in range(trials):
        kind = rng.random(n)
        first = ((kind >= 0.15) & (kind < 0.5)).astype(float)  # 0.15 better, 0.05 worse, the rest alike
        second = np.where(kind < 0.15, 1.0, np.where(kind < 0.2, 0.0, first))
        found += paired_permutation(first, second, repeats=500, seed=trial) < 0.05
    assert found / trials == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / trials))


def test_pairs_by_hand_and_what_cannot_be() -> None:
    # Connor's part, (1.96 √0.1 + 0.8416 √0.0991)² / 0.0009 = 870.9, and about 2 ÷ 0.03 more for the correction.
    assert paired_items_for_difference(0.03, 0.1) == paired_items_for_difference(-0.03, 0.1) == 936
    for difference, discordant in ((0.0, 0.1), (0.2, 0.1), (0.1, 1.1), (math.nan, 0.1)):
        with pytest.raises(ValueError, match="must hold"):
            paired_items_for_difference(difference, discordant)


def test_discordance_counts_items_that_changed() -> None:
    assert discordance(np.array([[1, 0, 1, 0]]), np.array([[1, 1, 0, 0]])) == 0.5


def test_table_of_items() -> None:
    rows = power_table(0.03, [0.9, 0.95], [0.05, 0.1])
    assert [(row["rate"], row["other"]) for row in rows] == [(0.9, 0.93), (0.95, 0.98)]
    assert rows[0]["independent"] == pytest.approx(0.9 * 0.07 + 0.93 * 0.1)
    first = rows[0]["items"][0]
    assert first["power"] == 0.8 and first["unpaired"] == 1356 and first["paired"]["0.1"] == 936
    # Rates of 0.95 and 0.98 leave at most 0.07 of the items on which one of them is wrong.
    assert rows[1]["items"][0]["paired"]["0.1"] is None and "cannot be" in power_text(rows)
    for arguments in ((0.03, [0.99]), (0.0, [0.5]), (1e-15, [0.5]), (math.nan, [0.5]), (0.03, [math.nan])):
        with pytest.raises(UserError):
            power_table(*arguments)
    with pytest.raises(UserError, match="discordant"):
        power_table(0.03, [0.5], [1.5])


def test_power_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "--difference=-0.03", "--rate", "0.93", "--discordant", "0.1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["rate"], row["other"]) == (0.93, 0.9)
    assert [entry["paired"]["0.1"] for entry in row["items"]] == [936, 1230]
    assert main(["power"]) == 0
    assert capsys.readouterr().out.count("\n") == 2 + 4 * 2
    assert main(["power", "--rate", "0.99"]) == 2
    assert "another --difference" in capsys.readouterr().err
