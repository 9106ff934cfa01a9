"""Draw docs/two_modes.png from finished runs:  python docs/make_picture.py LABEL=RUN_DIR [LABEL=RUN_DIR ...]

One panel a mode; groups of bars are the benchmarks and mode fidelity, bars are the base and each run, with 95 % intervals.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pipeline.files import read_json

NAMES = {
    "embedded_chat": "chat",
    "embedded_arithmetic": "arithmetic\n(known)",
    "embedded_skill": "multiplication\n(new skill)",
}
COLOURS = ("#9aa5b1", "#1f77b4", "#d1672b", "#5b9a68")


def values(cell: dict) -> list[tuple[float, list[float]]]:
    scores = [(cell["benchmarks"][name]["score"], cell["benchmarks"][name]["ci95"]) for name in NAMES]
    return [*scores, (cell["mode_fidelity"], cell["mode_fidelity_ci95"])]


def main() -> None:
    runs = [argument.split("=", 1) for argument in sys.argv[1:]]
    reports = {label: read_json(Path(folder) / "report.json")["evaluation"] for label, folder in runs}
    bars = {"base": next(iter(reports.values()))["base"]} | {label: r["tuned"] for label, r in reports.items()}
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for axis, mode in zip(axes, ("thinking", "non_thinking"), strict=True):
        for number, (label, cells) in enumerate(bars.items()):
            width = 0.8 / len(bars)
            points = values(cells[mode])
            x = [i + (number - (len(bars) - 1) / 2) * width for i in range(len(points))]
            errors = [[max(0.0, v - lo) for v, (lo, _) in points], [max(0.0, hi - v) for v, (_, hi) in points]]
            axis.bar(
                x, [v for v, _ in points], width * 0.92, label=label, color=COLOURS[number], yerr=errors, capsize=2
            )
        axis.set_xticks(range(len(NAMES) + 1), [*NAMES.values(), "mode\nfidelity"])
        axis.set_title(mode.replace("_", "-") + " mode")
        axis.set_ylim(0, 1.05)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncols=len(bars), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    figure.savefig(Path(__file__).with_name("two_modes.png"), dpi=130)


if __name__ == "__main__":
    main()
