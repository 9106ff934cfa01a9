"""The pictures of a report."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from pipeline.evaluation.report.compare import changes, fidelity_changes
from pipeline.evaluation.report.schema import modes_measured
from pipeline.evaluation.report.words import label_of, percent_text, short_label
from pipeline.settings import UNITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito (2008), told apart by colour-blind readers too
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure as an inline SVG element: no fixed size, page font, black becomes the colour of the page's text.

    ``name`` makes its ids differ from those of the page's other figures.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing", category=UserWarning)  # the browser has them
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = text.replace("#000000", "currentColor")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    opening = f'<svg role="img" aria-label="{Markup.escape(description)}"'
    text = re.sub(r'^<svg([^>]*?) width="[^"]*" height="[^"]*"', lambda m: opening + m[1], text)
    return Markup(text.strip())


def _style_axes(axes: Any, grid: Literal["x", "y"]) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color="#888888", alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)


def _plot_scores(report: Mapping[str, Any]) -> Markup:
    """Base and tuned with their intervals, one panel a mode."""
    found = [*changes(report), *fidelity_changes(report)]
    modes = modes_measured(report)
    groups = [[c for c in found if c.mode == mode] for mode in modes]
    figure = _new_figure(9, 1.1 + 0.5 * max(map(len, groups)))
    panels = figure.subplots(1, len(modes), sharex=True, squeeze=False)[0]
    for axes, mode, group in zip(panels, modes, groups, strict=True):
        for row, c in enumerate(group):
            for value, ci95, shift, colour in (
                (c.base, c.base_ci95, -0.14, "#888888"),
                (c.tuned, c.tuned_ci95, 0.14, COLOURS[0]),
            ):
                if ci95 is not None:
                    axes.plot(ci95, [row + shift] * 2, color=colour, linewidth=2, solid_capstyle="butt")
                axes.plot([value], [row + shift], marker="o", markersize=6, color=colour, clip_on=False)
        axes.set_yticks(range(len(group)), [short_label(c.name) for c in group])
        axes.set_ylim(len(group) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_title(label_of(mode), loc="left", fontsize=10, fontweight="bold")
        axes.tick_params(axis="y", length=0)
        _style_axes(axes, "x")
    return _svg(figure, "scores", "Scores of base and tuned model with 95 % intervals, by mode")


def _plot_mix(report: Mapping[str, Any]) -> Markup:
    """Requested share, and achieved shares in the three units, as stacked bars."""
    mix = report["mix"]
    bars = [(f"requested ({label_of(mix['unit'])})", [s["requested"] for s in mix["sources"]])]
    bars += [(f"achieved, {label_of(unit)}", [s["achieved"][unit] for s in mix["sources"]]) for unit in UNITS]
    figure = _new_figure(9, 2.3)
    axes = figure.subplots()
    for row, (_, shares) in enumerate(bars):
        left = 0.0
        for index, share in enumerate(shares):
            colour = COLOURS[index % len(COLOURS)]
            axes.barh(row, share, left=left, height=0.62, color=colour)
            if share >= 0.06:
                ink = "#ffffff" if colour in ("#0072b2", "#009e73", "#d55e00") else "#111111"
                axes.text(left + share / 2, row, percent_text(share), ha="center", va="center", color=ink, fontsize=9)
            left += share
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.tick_params(axis="y", length=0)
    axes.axhline(0.5, color="#888888", linewidth=0.8, linestyle=":")
    _style_axes(axes, "x")
    return _svg(figure, "mix", "Share of each source, requested and achieved")


def _plot_loss(report: Mapping[str, Any]) -> Markup | None:
    """Training and validation loss over steps; None where neither was logged."""
    training = report["training"]
    if not training["loss"] and not training["eval_loss"]:
        return None
    figure = _new_figure(9, 3)
    axes = figure.subplots()
    for name, points, colour in (
        ("training", training["loss"], COLOURS[0]),
        ("validation", training["eval_loss"], COLOURS[5]),
    ):
        if points:
            marker = "o" if name == "validation" or len(points) == 1 else None  # one point makes no line
            steps, loss = [p["step"] for p in points], [p["loss"] for p in points]
            axes.plot(steps, loss, color=colour, marker=marker, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.legend(frameon=False)
    axes.margins(x=0.02)
    _style_axes(axes, "y")
    return _svg(figure, "loss", "Training and validation loss by step")


def all_plots(report: Mapping[str, Any]) -> dict[str, Markup | None]:
    """All figures of the page. Nothing of the user's matplotlib settings gets in, and none is changed."""
    import matplotlib
    import matplotlib.style

    ours: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 10}
    with matplotlib.style.context("default"), matplotlib.rc_context(ours):
        return {"scores": _plot_scores(report), "mix": _plot_mix(report), "loss": _plot_loss(report)}
