"""Draw docs/two_modes.png and docs/ratio.png from docs/results/chat_share.json:  python docs/make_picture.py

two_modes.png: one panel a mode; groups of bars are the benchmarks and mode fidelity, bars are the base and two shares of chat.
ratio.png: the curves over all shares, as a sweep draws them. Intervals are 95 %, over items and seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pipeline.core.files import read_json
from pipeline.studies.curve import draw_sweep

DOCS = Path(__file__).resolve().parent
NAMES = {
    "embedded_chat": "chat",
    "embedded_arithmetic": "arithmetic\n(known)",
    "embedded_skill": "multiplication\n(new skill)",
}
LABELS = {"base": "base", 0.25: "a quarter of the rows chat", 0.0: "no chat"}
COLOURS = ("#9aa5b1", "#1f77b4", "#d1672b")


def values(cell: dict[str, Any]) -> list[tuple[float, list[float]]]:
    """Value and interval of every benchmark, then of mode fidelity."""
    estimates = [*(cell["benchmarks"][name] for name in NAMES), cell["mode_fidelity"]]
    return [(estimate["value"], estimate["ci95"]) for estimate in estimates]


def two_modes(result: dict[str, Any], path: Path) -> None:
    """Draw the base and the shares of LABELS side by side."""
    modes = {point["value"]: point["modes"] for point in result["points"]} | {"base": result["base"]}
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    width = 0.8 / len(LABELS)
    for axis, mode in zip(axes, ("thinking", "non_thinking"), strict=True):
        for number, (value, label) in enumerate(LABELS.items()):
            points = values(modes[value][mode])
            x = [i + (number - (len(LABELS) - 1) / 2) * width for i in range(len(points))]
            errors = [[max(0.0, v - lo) for v, (lo, _) in points], [max(0.0, hi - v) for v, (_, hi) in points]]
            heights = [v for v, _ in points]
            axis.bar(x, heights, width * 0.92, label=label, color=COLOURS[number], yerr=errors, capsize=2)
        axis.set_xticks(range(len(NAMES) + 1), [*NAMES.values(), "mode\nfidelity"])
        axis.set_title(mode.replace("_", "-") + " mode")
        axis.set_ylim(0, 1.05)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncols=len(LABELS), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    result = read_json(DOCS / "results" / "chat_share.json")
    two_modes(result, DOCS / "two_modes.png")
    draw_sweep(result, DOCS / "ratio.png")


if __name__ == "__main__":
    main()
