"""Does what a training forgets go with how far it took the model from its base?

In: finished runs. Out: mean distances, and two rank correlations over the runs: of the distance measured on the new task with the
mean loss of what was known (the claim of Shenfeld et al. 2025, arXiv 2509.04259), and of the distance on each known benchmark
with the loss on that one. An interval resamples runs, whose values hang together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.files import read_json
from pipeline.core.modes import MODES
from pipeline.core.statistics import Z95, interval95, ranks
from pipeline.studies.results import Estimate, Forgetting, RankCorrelation

REPEATS = 2000
FEWEST_RUNS = 4


def _distances(run: Path) -> dict[str, Any] | None:
    """The report's section ``distance``; None: it has none."""
    return read_json(run / "report.json").get("distance") or None


def distance_of(runs: Sequence[Path]) -> dict[str, dict[str, Estimate]] | None:
    """Mean over the runs of one value, by mode and benchmark; None where a run has none.

    The interval adds what the items leave open within a run to what differs between runs.
    """
    found = [_distances(run) for run in runs]
    if not found or any(distance is None for distance in found):
        return None
    result: dict[str, dict[str, Estimate]] = {mode: {} for mode in MODES}
    for mode in MODES:
        for name in (found[0] or {})[mode]:
            own = [distance[mode][name] for distance in found if distance is not None]
            values = np.array([entry["kl"] for entry in own])
            within = np.mean([((entry["ci95"][1] - entry["ci95"][0]) / 2 / Z95) ** 2 for entry in own])
            between = values.var(ddof=1) if len(values) > 1 else 0.0
            half = Z95 * math.sqrt((within + between) / len(values))
            mean = float(values.mean())
            result[mode][name] = {"value": mean, "ci95": [max(0.0, mean - half), mean + half]}
    return result


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rank correlation; None where one side does not vary."""
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return None
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def correlation(distance: np.ndarray, lost: np.ndarray, seed: int = 0) -> RankCorrelation:
    """Rank correlation of two arrays [runs, values of a run], runs drawn anew for the interval."""
    runs = len(distance)
    rho = spearman(distance.ravel(), lost.ravel()) if runs >= FEWEST_RUNS else None
    if rho is None:
        return {"spearman": None, "ci95": None, "runs": runs}
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(REPEATS):
        chosen = rng.integers(0, runs, runs)
        drawn = spearman(distance[chosen].ravel(), lost[chosen].ravel())
        if drawn is not None:
            draws.append(drawn)
    low, high = interval95(np.array(draws))
    return {"spearman": rho, "ci95": [min(low, rho), max(high, rho)], "runs": runs}


def forgetting(runs: Sequence[Path], learnt: Sequence[str], known: Sequence[str]) -> Forgetting | None:
    """Both correlations over finished runs; None where a run has no distances, or nothing was known.

    Args:
        learnt, known: "mode/benchmark". Where nothing was learnt, the distance on the new task is not defined.
    """
    reports = [read_json(run / "report.json") for run in runs]
    if not reports or not known or any(not report.get("distance") for report in reports):
        return None
    lost, own, new = [], [], []
    for report in reports:
        places = [name.partition("/")[::2] for name in known]
        cells = report["evaluation"]
        scores = [[cells[which][m]["benchmarks"][b]["score"] for m, b in places] for which in ("base", "tuned")]
        lost.append([before - after for before, after in zip(*scores, strict=True)])
        own.append([report["distance"][m][b]["kl"] for m, b in places])
        task = [name.partition("/")[::2] for name in learnt]
        new.append([float(np.mean([report["distance"][m][b]["kl"] for m, b in task])) if task else 0.0])
    mean_lost = np.array(lost).mean(axis=1, keepdims=True)
    return {"new_task": correlation(np.array(new), mean_lost), "own_task": correlation(np.array(own), np.array(lost))}


def forgetting_text(found: Forgetting) -> str:
    """Both correlations in a sentence each."""
    lines = []
    for name, words in (
        ("new_task", "distance on what was learnt, with the mean loss of what was known"),
        ("own_task", "distance on each known benchmark, with the loss there"),
    ):
        entry: Any = found[name]  # type: ignore[literal-required]
        if entry["spearman"] is None:
            value = "not defined"
        else:
            value = "{:+.2f} [{:+.2f}, {:+.2f}]".format(entry["spearman"], *entry["ci95"])
        lines.append(f"rank correlation over {entry['runs']} runs, {words}: {value}")
    return "\n".join(lines)
