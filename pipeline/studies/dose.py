"""How much of the effect each dose of a remedy has, and which dose has nine tenths of it.

In: item scores of arms that differ in one amount, such as the part of the rows that the base wrote. The effect of a dose is the
rise of the mean score over what the base knew, above the arm without the remedy; the largest dose counts as the whole of it.
Intervals come from the bootstrap over seeds and items that the rest of a sweep rests on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.core.statistics import interval95
from pipeline.studies.results import DoseResponse

WANTED = 0.9  # part of the effect
FEWEST_DOSES = 3


def enough(doses: np.ndarray, effects: np.ndarray, wanted: float = WANTED) -> np.ndarray:
    """The smallest dose that has the wanted part of the largest dose's effect, straight lines between the measured ones.

    Args:
        doses: [doses], rising from 0. effects: [..., doses], 0 at the first.

    Returns:
        [...]. The largest dose where that one has no effect: then nothing says that less would do.
    """
    whole = effects[..., -1:]
    shown = whole > 0
    parts = np.maximum.accumulate(np.where(shown, effects / np.where(shown, whole, 1), 0), axis=-1)
    reached = (parts >= wanted) & shown
    above = np.where(reached.any(axis=-1), reached.argmax(axis=-1), len(doses) - 1)
    below = np.maximum(above - 1, 0)
    low, high = (np.take_along_axis(parts, at[..., None], axis=-1)[..., 0] for at in (below, above))
    way = np.where(high > low, (wanted - low) / np.where(high > low, high - low, 1), 1.0)
    return np.where(shown[..., 0], doses[below] + np.clip(way, 0, 1) * (doses[above] - doses[below]), doses[-1])


def dose_response(
    values: Sequence[Any], doses: Sequence[float | None], means: np.ndarray, draws: np.ndarray
) -> DoseResponse | None:
    """Parts of the effect and the dose for nine tenths of it; None with fewer than three doses, or none of 0.

    Args:
        doses: of each value; None: it is no dose of this remedy.
        means: mean score over what the base knew, [values]. draws: of them, [repeats, values].
    """
    own = sorted((dose, place) for place, dose in enumerate(doses) if dose is not None)
    if len(own) < FEWEST_DOSES or own[0][0] != 0:
        return None
    amounts, places = np.array([dose for dose, _ in own]), [place for _, place in own]
    effects, drawn = means[places] - means[places[0]], draws[:, places] - draws[:, places[:1]]
    ends = interval95(drawn)
    needed = float(enough(amounts, effects))
    low, high = interval95(enough(amounts, drawn))
    return {
        "effects": [
            {
                "value": values[place],
                "dose": dose,
                "effect": {"value": float(effects[i]), "ci95": [ends[0][i], ends[1][i]]},
            }
            for i, (dose, place) in enumerate(own)
        ],
        "wanted": WANTED,
        "enough": {"value": needed, "ci95": [min(low, needed), max(high, needed)]},
    }


def dose_text(found: DoseResponse) -> str:
    """The effects and the dose, for a terminal and for Markdown."""
    lines = ["effect of each dose: rise of the mean score over what the base knew"]
    for entry in found["effects"][1:]:
        low, high = entry["effect"]["ci95"]
        lines.append(
            f"- {entry['value']} ({entry['dose']:g}): {entry['effect']['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
        )
    needed, (low, high) = found["enough"]["value"], found["enough"]["ci95"]
    largest = found["effects"][-1]["value"]
    lines.append(f"{found['wanted']:.0%} of the effect of {largest}: at a dose of {needed:.3f} [{low:.3f}, {high:.3f}]")
    return "\n".join(lines)
