"""An ablation as a forest plot: for each score the difference of every arm from the first, with its interval.

In: a sweep over named arms (``sweep.json``). Out: a picture. Filled point: the interval leaves out 0. Hollow: it does not,
so the difference may be chance.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path
from pipeline.core.modes import MODES
from pipeline.evaluation.report.pictures import COLOURS
from pipeline.studies.results import Point, Sweep, SweepRate

SHORT = {"thinking": "thinking", "non_thinking": "non-thinking"}


def panels(result: Sweep) -> list[tuple[str, list[SweepRate]]]:
    """(title, the entry of each point) of what is drawn: the benchmarks with thinking, then mode fidelity in each mode.

    Raises:
        UserError: the study has one value only, so there is nothing to compare.
    """
    points = result["points"]
    if len(points) < 2:
        raise UserError("A forest plot compares values with the first one, and this study has one value only.")

    def score(point: Point, mode: str, name: str) -> SweepRate:
        return point["modes"][mode]["benchmarks"][name]

    first = MODES[0]
    found = [
        (f"{name.removeprefix('embedded_')}, {SHORT[first]}", [score(point, first, name) for point in points])
        for name in result["base"][first]["benchmarks"]
    ]
    for mode in MODES:
        if mode in result["base"]:
            found.append((f"mode fidelity, {SHORT[mode]}", [point["modes"][mode]["mode_fidelity"] for point in points]))
    return found


def draw_forest(result: Sweep, path: Path) -> None:
    """Draw every arm's difference from the first one; in scores from −1 to 1, intervals 95 %.

    Raises:
        UserError: see ``panels``.
    """
    from matplotlib.figure import Figure

    arms = [str(point["value"]) for point in result["points"]]
    wanted = panels(result)
    figure = Figure(figsize=(2.4 * len(wanted) + 1.4, 0.34 * len(arms) + 1.3), layout="constrained")
    axes = figure.subplots(1, len(wanted), sharex=True, sharey=True)
    places = range(len(arms) - 1, -1, -1)  # the first arm on top
    for axis, (title, entries) in zip(axes, wanted, strict=True):
        axis.axvline(0, color="#555555", linewidth=1)
        for place, entry in zip(list(places)[1:], entries[1:], strict=True):
            difference = entry["from_first"]
            low, high = difference["ci95"]
            shown = low > 0 or high < 0
            colour = COLOURS[0] if difference["value"] >= 0 else COLOURS[5]
            axis.plot([low, high], [place, place], color=colour, linewidth=1.5)
            axis.plot(difference["value"], place, "o", color=colour, markerfacecolor=colour if shown else "white")
        axis.text(0, len(arms) - 1, f" {entries[0]['value']:.2f}", va="center", fontsize="small")
        axis.set_title(title, fontsize="medium")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(list(places), arms)
    axes[0].set_ylim(-0.6, len(arms) - 0.4)
    figure.supxlabel(f"difference from {arms[0]!r} (its score is the number on top), 95 % intervals", fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
