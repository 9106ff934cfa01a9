"""Intervals and tests for scores of the same items under several settings and seeds, and how many items they need.

In: arrays of item scores. Out: intervals by a bootstrap over seeds and items together, a paired permutation test, and the
number of items that a difference takes. What they mean, and when to use which: docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.core.errors import UserError

REPEATS = 2000  # of the bootstrap; the ends of a 95 % interval then rest on 50 draws each
Z95 = 1.959964  # of the normal distribution, 2.5 % beyond it


# --- intervals ----------------------------------------------------------------------------------------------------------


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


def wilson(successes: float, n: float, z: float = Z95) -> list[float]:
    """Wilson's score interval of a proportion (Wilson 1927), [low, high]; 95 % with the default z."""
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def interval(scores: Sequence[float], z: float = Z95) -> list[float]:
    """95 % interval of a mean: Wilson's where every score is 0 or 1, else the normal approximation.

    Scores that all lie in 0..1 keep their interval in 0..1.
    """
    n, total = len(scores), sum(scores)
    if all(score in (0.0, 1.0) for score in scores):
        return wilson(total, n, z)
    mean = total / n
    half = z * math.sqrt(sum((score - mean) ** 2 for score in scores) / max(n - 1, 1) / n)
    inside = all(0 <= score <= 1 for score in scores)
    return [max(0.0, mean - half), min(1.0, mean + half)] if inside else [mean - half, mean + half]


def rate_interval95(scores: np.ndarray, draws: np.ndarray) -> list[float]:
    """95 % interval of a mean of scores: where all are 0 or 1, Wilson's with the number of items that the bootstrap implies.

    Quantiles of a bootstrap are too narrow near 0 and 1, and have no width where every score is the same. The spread of the
    draws says how many independent items would vary as much: rate × (1 − rate) ÷ variance. With that number Wilson's
    interval is right at the ends and agrees with the quantiles in the middle (Kott and Carr 1997 do so for surveys). Where
    the draws do not vary, the number of items counts once, however many seeds there are: seeds may all agree.

    Args:
        scores: [seeds, items] of one setting. draws: [repeats], the bootstrap's means of the same.
    """
    if not np.isin(scores, (0.0, 1.0)).all():
        return [float(end) for end in interval95(draws)]
    rate, variance = float(scores.mean()), float(np.var(draws))
    if rate in (0.0, 1.0) or variance == 0:
        n: float = scores.shape[1]
    else:
        n = min(rate * (1 - rate) / variance, scores.size)
    return wilson(rate * n, n)


def difference_interval95(first: np.ndarray, second: np.ndarray, draws: np.ndarray) -> list[float]:
    """95 % interval of a paired difference of means: the draws' quantiles, unless nothing in the pairs varies.

    Where every pair of scores differs by the same amount, a bootstrap has no width. None of n items did otherwise, which
    leaves up to Wilson's bound for 0 of n that would, and no difference can change by more than that.

    Args:
        first, second: [seeds, items] of the two settings, within 0..1. draws: [repeats] of ``second − first``.
    """
    each = np.asarray(second, float) - np.asarray(first, float)
    if (each != each.flat[0]).any():
        return [float(end) for end in interval95(draws)]
    bound = wilson(0, each.shape[1])[1]
    return [max(-1.0, float(each.flat[0]) - bound), min(1.0, float(each.flat[0]) + bound)]


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    result: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return result


# --- tests --------------------------------------------------------------------------------------------------------------


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


def flips(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Items that only one of two settings gets right, counted in both directions, and a paired test of "no difference".

    Args:
        first, second: [seeds, items] of 0 and 1, the same items. Scores in between count as right from 0.5 on.

    Returns:
        ``gained``: wrong by the first, right by the second, over all seeds; ``lost``: the other way; ``n``: pairs; ``p``,
        two-sided: with one seed by McNemar's exact test (a binomial test of the two counts); with several, whose answers to one
        item hang together, by ``paired_permutation`` of the items' means, which is the same test where there is one.
    """
    a, b = np.asarray(first) >= 0.5, np.asarray(second) >= 0.5
    gained, lost = int((~a & b).sum()), int((a & ~b).sum())
    p = mcnemar(gained, lost) if len(a) == 1 else paired_permutation(a.mean(axis=0), b.mean(axis=0))
    return {"gained": gained, "lost": lost, "n": int(a.size), "p": p}


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: how likely counts at least as uneven are if both directions are alike."""
    total = gained + lost
    tail = sum(math.comb(total, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**total)


def discordance(first: np.ndarray, second: np.ndarray) -> float:
    """The share of items (and seeds) on which two settings do not score alike; what ``paired_items_for_difference`` asks."""
    return float(np.mean(np.asarray(first) != np.asarray(second)))


# --- how many items -----------------------------------------------------------------------------------------------------

RATES = (0.5, 0.8, 0.9, 0.95)
DISCORDANT = (0.05, 0.1, 0.2)
POWERS = (0.8, 0.9)


def items_for_difference(rate: float, difference: float, power: float = 0.8) -> int:
    """How many items a side it takes to see that two rates differ, at the 5 % level, unpaired (Fleiss 1981, section 3.2).

    Args:
        rate: the lower or the higher one. difference: to the other one, signed.
    """
    other = rate + difference
    if not (0 <= rate <= 1 and 0 <= other <= 1 and difference):
        raise ValueError(f"both rates must lie in 0..1 and differ; given {rate} and {other}")
    mean = (rate + other) / 2
    z_alpha, z_power = Z95, _normal_quantile(power)
    spread = z_alpha * math.sqrt(2 * mean * (1 - mean))
    spread += z_power * math.sqrt(rate * (1 - rate) + other * (1 - other))
    return math.ceil((spread / difference) ** 2)


def paired_items_for_difference(difference: float, discordant: float, power: float = 0.8) -> int:
    """How many items it takes if both settings answer the same ones, at the 5 % level, by ``paired_permutation``.

    Connor (1987) for McNemar's test, with the correction for continuity (1 on the difference of the two counts): for scores
    of 0 and 1 the permutation test is the exact form of McNemar's.

    Args:
        difference: between the two rates. discordant: the share of items that one setting gets right and the other wrong,
            both ways together; at least the difference.

    Raises:
        ValueError: the difference is 0, or larger than the share of discordant items, or that is above 1.
    """
    size = abs(difference)
    if not 0 < size <= discordant <= 1:
        raise ValueError(f"0 < difference <= discordant <= 1 must hold; given {difference} and {discordant}")
    spread = Z95 * math.sqrt(discordant) + _normal_quantile(power) * math.sqrt(max(0.0, discordant - size * size))
    root = (spread + math.sqrt(spread * spread + 4 * size)) / (2 * size)  # size × n − spread × √n = 1
    return math.ceil(root * root)


def power_table(
    difference: float, rates: Sequence[float] = RATES, discordant: Sequence[float] = DISCORDANT
) -> list[dict[str, Any]]:
    """How many items show a difference, for each rate: unpaired, paired if the answers were independent, and paired.

    Args:
        difference: signed, from each rate to the other one.
        discordant: shares of discordant items to look at; one that two such rates cannot have is None in the result.

    Raises:
        UserError: a rate, a difference or a share that cannot be.
    """
    for value in (*rates, *discordant):
        if not 0 <= value <= 1:
            raise UserError(f"--rate and --discordant are between 0 and 1, given: {value:g}.")
    rows = []
    for rate in rates:
        other = round(rate + difference, 12)
        if not 0 <= other <= 1 or other == rate:
            raise UserError(
                f"A difference of {difference:g} from a rate of {rate:g} cannot be; give another --difference."
            )
        independent = rate * (1 - other) + other * (1 - rate)
        row: dict[str, Any] = {"rate": rate, "other": other, "independent": independent, "items": []}
        for power in POWERS:
            paired = {}
            for share in discordant:
                possible = abs(difference) <= share <= min(rate + other, 2 - rate - other) + 1e-12
                paired[f"{share:g}"] = paired_items_for_difference(difference, share, power) if possible else None
            row["items"].append(
                {
                    "power": power,
                    "unpaired": items_for_difference(rate, difference, power),
                    "paired_independent": paired_items_for_difference(difference, independent, power),
                    "paired": paired,
                }
            )
        rows.append(row)
    return rows


def power_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """``power_table`` as a table."""
    shares = list(rows[0]["items"][0]["paired"])
    heads = ["rates", "power", "unpaired, a side", "paired, independent answers"]
    heads += [f"paired, {share} discordant" for share in shares]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        for entry in row["items"]:
            cells = [f"{row['rate']:g}, {row['other']:g}", f"{entry['power']:g}", f"{entry['unpaired']:,}"]
            cells.append(f"{entry['paired_independent']:,} ({row['independent']:.3f} discordant)")
            cells += ["cannot be" if entry["paired"][s] is None else f"{entry['paired'][s]:,}" for s in shares]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _normal_quantile(probability: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)
