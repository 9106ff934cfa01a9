"""Base against tuned model: what changed, what was kept, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pipeline.core.modes import Mode
from pipeline.core.statistics import Z95
from pipeline.evaluation.report.schema import MODELS, modes_measured

# --- intervals --------------------------------------------------------------------------------------------------------


def ratio_interval(tuned: float, tuned_n: int, base: float, base_n: int) -> dict[str, Any]:
    """Return ``{"ratio", "ci95"}`` of two proportions: tuned ÷ base, with the Katz log interval.

    log(ratio) ± 1.96 · sqrt(1/x₁ − 1/n₁ + 1/x₀ − 1/n₀), x = score · n (Katz, Baptista, Azen and Pike 1978, Biometrics
    34:469–474). That is undefined at a rate of 0 and has no width at a rate of 1, so where either rate is 0 or 1, the
    interval is computed with one half added to each of the four cells (the Haldane–Anscombe correction: x + ½ of
    n + 1), and then widened, if need be, to hold the plain ratio: its lower end is 0 where tuned is 0. Simulated with
    n of 100 and 200 and rates from 0.02 to 0.999, it held the true ratio in 94.8 % to 100 % of 4,000 draws each.

    The two samples are taken as independent. Base and tuned answer the same items, so the interval is, as a rule, wider
    than a paired one.

    Args:
        tuned, base: rates, 0..1.
        tuned_n, base_n: the number of items behind each.

    Returns:
        ``ratio`` and ``ci95`` are both None where base is 0.
    """
    if base <= 0:
        return {"ratio": None, "ci95": None}
    ratio = tuned / base
    half = 0.5 if tuned <= 0 or tuned >= 1 or base >= 1 else 0.0
    x1, n1 = tuned * tuned_n + half, tuned_n + 2 * half
    x0, n0 = base * base_n + half, base_n + 2 * half
    centre = math.log(x1 / n1) - math.log(x0 / n0)
    width = Z95 * math.sqrt(max(1 / x1 - 1 / n1 + 1 / x0 - 1 / n0, 0.0))
    low = 0.0 if tuned <= 0 else math.exp(centre - width)
    return {"ratio": ratio, "ci95": [min(low, ratio), max(math.exp(centre + width), ratio)]}


def replies(cell: Mapping[str, Any]) -> int:
    """The number of replies in a cell: its ``n``, or else the sum over its benchmarks."""
    return cell.get("n") or sum(result["n"] for result in cell["benchmarks"].values())


def retention(base_cell: Mapping[str, Any], tuned_cell: Mapping[str, Any]) -> dict[str, Any]:
    """What one mode kept: ``{"accuracy": {benchmark: {"ratio", "ci95"}}, "mode_fidelity": {"ratio", "ci95"}}``.

    Benchmarks that only one of the two cells has are left out; ``validate_report`` refuses them.
    """
    base, tuned = base_cell["benchmarks"], tuned_cell["benchmarks"]
    return {
        "accuracy": {
            name: ratio_interval(tuned[name]["score"], tuned[name]["n"], base[name]["score"], base[name]["n"])
            for name in base
            if name in tuned
        },
        "mode_fidelity": ratio_interval(
            tuned_cell["mode_fidelity"], replies(tuned_cell), base_cell["mode_fidelity"], replies(base_cell)
        ),
    }


class Change(NamedTuple):
    """Tuned − base of one rate in one mode, with n and, where both rates have one, an interval of the difference."""

    name: str
    mode: Mode
    n: str
    base: float
    base_ci95: list[float] | None
    tuned: float
    tuned_ci95: list[float] | None
    ci95: list[float] | None

    @property
    def delta(self) -> float:
        """Tuned − base."""
        return self.tuned - self.base

    @property
    def verdict(self) -> Literal["rose", "fell", "stayed"]:
        """Rose or fell where the interval of the difference leaves out 0, else stayed."""
        if self.ci95 is None or self.ci95[0] <= 0 <= self.ci95[1]:
            return "stayed"
        return "rose" if self.delta > 0 else "fell"


def _change(name: str, mode: Mode, ns: Sequence[int], base: Sequence[Any], tuned: Sequence[Any]) -> Change:
    """Pair (rate, its interval or None) of base and tuned.

    The interval of the difference is Newcombe's hybrid (1998, Statistics in Medicine 17:873–890, method 10), built from
    the limits of the two rates.
    """
    (p0, ci0), (p1, ci1) = base, tuned
    interval = None
    if ci0 is not None and ci1 is not None:
        low = p1 - p0 - math.hypot(p1 - ci1[0], ci0[1] - p0)
        high = p1 - p0 + math.hypot(ci1[1] - p1, p0 - ci0[0])
        interval = [low, high]
    n = f"{ns[0]:,}" if ns[0] == ns[1] else f"{ns[0]:,} / {ns[1]:,}"
    return Change(name, mode, n, p0, ci0, p1, ci1, interval)


def changes(report: Mapping[str, Any]) -> list[Change]:
    """Every benchmark in each mode, base against tuned, in the report's order, thinking first."""
    found = []
    for mode in modes_measured(report):
        base, tuned = (report["evaluation"][model][mode]["benchmarks"] for model in MODELS)
        for name, b in base.items():
            t = tuned[name]
            found.append(_change(name, mode, (b["n"], t["n"]), (b["score"], b["ci95"]), (t["score"], t["ci95"])))
    return found


def fidelity_changes(report: Mapping[str, Any]) -> list[Change]:
    """Mode fidelity in each mode, base against tuned, thinking first."""
    found = []
    for mode in modes_measured(report):
        base, tuned = (report["evaluation"][model][mode] for model in MODELS)
        pairs = [(c["mode_fidelity"], c.get("mode_fidelity_ci95")) for c in (base, tuned)]
        found.append(_change("mode fidelity", mode, (replies(base), replies(tuned)), *pairs))
    return found
