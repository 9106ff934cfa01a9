"""Less of the adapter: a finished run's model with its adapter scaled from 0 (the base) to 1 (as trained), trained but once.

In: a finished run and values. Out: ``scale.json`` and ``scale.png``: accuracy and mode fidelity at each value, in both modes, on
the same items, with paired differences from the adapter as it was trained, flips both ways, and the distance to the base.

PEFT's ``rescale_adapter_scale`` does the scaling. At scale s the weights are W + s·ΔW, a point on the straight line between the
base's and the tuned model's: scaling a LoRA is interpolating the two (WiSE-FT, Wortsman et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, fingerprint, make_folder, read_json, read_jsonl, write_json
from pipeline.core.modes import MODES
from pipeline.core.statistics import bootstrap, difference_interval95, flips
from pipeline.evaluation.report.pictures import COLOURS
from pipeline.model.divergence import require_own_logits
from pipeline.run import open_run
from pipeline.settings import LORA_METHODS
from pipeline.studies.results import ScaleRow, ScaleStudy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VALUES = (0.25, 0.5, 0.75, 1.0)


@contextmanager
def scaled(model: PreTrainedModel, value: float) -> Iterator[None]:
    """Within it, the adapter counts so much; 1 is as it was trained."""
    from peft.helpers import rescale_adapter_scale

    with rescale_adapter_scale(model, float(value)):
        yield


def require_scalable(values: Sequence[float], method: str) -> list[float]:
    """The values in order, and 1 with them.

    Raises:
        UserError: a value outside 0 to 1, or given twice; a method whose adapter does not scale.
    """
    for value in values:
        if not 0 <= value <= 1 or math.isnan(value) or list(values).count(value) > 1:
            raise UserError(f"--values are numbers from 0 to 1, each given once; found {value:g}.")
    if method not in LORA_METHODS or method in ("dora", "lora_attention_full"):
        # DoRA's magnitude does not scale with the adapter; modules_to_save are whole matrices.
        raise UserError(
            f"An adapter of method {method} cannot be scaled by PEFT's means; a plain LoRA (lora, qlora, rslora) can."
        )
    return sorted({*values, 1.0})  # the adapter as it was trained is what the others are compared with


def run_scale(run_folder: Path, folder: Path, values: Sequence[float] = VALUES, limit: int | None = None) -> ScaleStudy:
    """Evaluate the run's model at each value; finished ones are read, not repeated.

    Args:
        limit: items a benchmark; None: as in the run.

    Raises:
        UserError: no run directory, no adapter or none that can be scaled, a bad value, or the folder holds another study.
    """
    from pipeline.evaluation.distance import measure_distance
    from pipeline.evaluation.evaluate import evaluate_model

    run = open_run(run_folder)
    wanted = require_scalable(values, run.profile.chosen_method)
    settings = run.profile.evaluation.model_copy(deep=True)
    settings.limit = limit or settings.limit
    make_folder(folder)
    identity = fingerprint([run.identity("tuned"), settings.model_dump(exclude={"batch_size", "workers"})])
    record = folder / "study.json"
    if record.exists() and read_json(record)["identity"] != identity:
        raise UserError(f"{folder} holds a study of another model or other items. Choose another --output-dir.")
    write_json(record, {"identity": identity})
    model, tokenizer = run.model("tuned")
    if settings.kl_items:
        require_own_logits(model)
    base = {mode: run.folder / "evaluation" / "base" / mode / "predictions.jsonl" for mode in MODES}
    replies: dict[Any, list[Any]] = {mode: read_jsonl(path) for mode, path in base.items() if path.exists()}
    rows: list[ScaleRow] = []
    for value in wanted:
        name = f"{value:g}"
        with scaled(model, value):
            model_id = f"{run.identity('tuned')}-scale{name}"
            cells = evaluate_model(model, tokenizer, model_id, settings, folder / name)
            row: ScaleRow = {
                "scale": value,
                "modes": {mode: cells[mode] for mode in MODES},
                "distance": None,
                "from_trained": None,
            }
            kept = folder / name / "distance.json"
            if settings.kl_items and len(replies) == len(MODES):
                if not kept.exists():
                    found = measure_distance(model, tokenizer, replies, settings.kl_items, settings.batch_size)
                    write_json(kept, found)
                row["distance"] = read_json(kept)
        rows.append(row)
    trained = _scores(folder / "1")
    for row in rows[:-1]:
        row["from_trained"] = _compared(trained, _scores(folder / f"{row['scale']:g}"))
    result: ScaleStudy = {"method": run.profile.chosen_method, "rows": rows}
    write_json(folder / "scale.json", result)
    draw_scale(result, folder / "scale.png")
    return result


def _scores(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """{mode: {benchmark, or "mode_fidelity": 0..1 of each item}}."""
    result: dict[str, dict[str, np.ndarray]] = {}
    for mode in MODES:
        rows = read_jsonl(folder / mode / "predictions.jsonl")
        rows.sort(key=lambda row: (row["benchmark"], row["subset"], row["index"]))
        names = dict.fromkeys(row["benchmark"] for row in rows)
        result[mode] = {n: np.array([float(r["score"]) for r in rows if r["benchmark"] == n]) for n in names}
        result[mode]["mode_fidelity"] = np.array([float(r["faithful"]) for r in rows])
    return result


def _compared(
    trained: Mapping[str, Mapping[str, np.ndarray]], other: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """Of each mode and benchmark: the paired difference from the adapter as trained, with its interval and flips."""
    result: dict[str, dict[str, Any]] = {mode: {} for mode in MODES}
    for mode, name in [(of, name) for of in MODES for name in trained[of]]:
        first, second = trained[mode][name], other[mode][name]
        both = np.stack([first[None], second[None]])
        draws = bootstrap({"all": both}, lambda d: d["all"].mean(axis=(1, 2)))
        ends = difference_interval95(first[None], second[None], draws[:, 1] - draws[:, 0])
        difference = {"value": float(second.mean() - first.mean()), "ci95": ends}
        result[mode][name] = {**difference, "flips": flips(first[None], second[None])}
    return result


def scale_text(result: ScaleStudy) -> str:
    """``scale.json`` for a terminal."""
    short = {"thinking": "think", "non_thinking": "direct"}
    names = [(mode, name) for mode in MODES for name in result["rows"][0]["modes"][mode]["benchmarks"]]
    heads = ["scale", *(f"{name.removeprefix('embedded_')} ({short[mode]})" for mode, name in names)]
    heads += [f"fidelity ({short[mode]})" for mode in MODES]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in result["rows"]:
        cells = [row["modes"][mode]["benchmarks"][name] for mode, name in names]
        shown = ["{:.3f} [{:.3f}, {:.3f}]".format(c["score"], *c["ci95"]) for c in cells]
        shown += [f"{row['modes'][mode]['mode_fidelity']:.3f}" for mode in MODES]
        lines.append(f"| {row['scale']:g} | {' | '.join(shown)} |")
    lines += ["", "difference from the adapter as trained; (items that became right, items that became wrong; p)"]
    for row in result["rows"]:
        compared = row["from_trained"]
        if compared is None:
            continue
        for mode in MODES:
            parts = []
            for name, d in compared[mode].items():
                turned = d["flips"]
                counts = f"{turned['gained']}, {turned['lost']}; p {turned['p']:.3g}"
                parts.append(f"{name.removeprefix('embedded_').replace('_', ' ')} {d['value']:+.3f} ({counts})")
            lines.append(f"{row['scale']:g}, {mode.replace('_', '-')}: {'; '.join(parts)}")
    return "\n".join(lines)


def draw_scale(result: ScaleStudy, path: Path) -> None:
    """Scores and mode fidelity by scale, a panel a mode, and the distance to the base."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    rows = result["rows"]
    x = [row["scale"] for row in rows]
    for axes, mode in zip(panels, MODES, strict=False):
        for colour, name in zip(COLOURS, rows[0]["modes"][mode]["benchmarks"], strict=False):
            own = [row["modes"][mode]["benchmarks"][name] for row in rows]
            axes.plot(x, [e["score"] for e in own], "o-", color=colour, label=name.removeprefix("embedded_"))
            low, high = zip(*(e["ci95"] for e in own), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, [row["modes"][mode]["mode_fidelity"] for row in rows], ":", color="#555555", label="mode fidelity")
        axes.set(title=mode.replace("_", "-"), ylabel="part of the items", ylim=(-0.03, 1.03))
    for style, mode in zip(("o-", "o--"), MODES, strict=True):
        for colour, name in zip(COLOURS, rows[0]["modes"][mode]["benchmarks"], strict=False):
            points = [(row["scale"], row["distance"][mode][name]["kl"]) for row in rows if row["distance"]]
            if points:
                label = f"{name.removeprefix('embedded_')}, {mode.replace('_', '-')}"
                panels[2].plot(*zip(*points, strict=True), style, color=colour, label=label)
    panels[2].set(title="KL(base ‖ tuned)", ylabel="nats a token")
    for axes in panels:
        axes.set(xlabel="scale of the adapter")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
