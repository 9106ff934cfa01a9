"""How sampling changes a model's answers: temperature × mode, each cell an evaluation of the same items.

In: a finished run and temperatures. Out: ``sampling.json`` and ``sampling.png``: accuracy, mode fidelity, truncation and
repetition by temperature, with the profile's own table as one more row, and whether that is shown to be worse than the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, fingerprint, make_folder, read_json, read_jsonl, write_json
from pipeline.core.modes import MODES
from pipeline.core.statistics import bootstrap, difference_interval95, wilson
from pipeline.data.cleaning.repetition import looping_part
from pipeline.evaluation.cells import Cell
from pipeline.evaluation.report.pictures import COLOURS
from pipeline.model.load import load_tokenizer
from pipeline.model.thinking_style import thinking_style
from pipeline.run import open_run
from pipeline.settings import EvaluationSettings, Sampling
from pipeline.studies.results import CountedRate, SamplingMode, SamplingRow, SamplingStudy, Verdict

TEMPERATURES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3)
REPEATED_NGRAM, REPEATED_PART = 8, 0.3  # words; above it a reply counts as going in circles, as in cleaning
Side = Literal["base", "tuned"]
TABLE = "as recommended"
Shown = Literal["accuracy", "mode_fidelity", "truncated", "repetition"]
RATES: tuple[Shown, ...] = ("accuracy", "mode_fidelity", "truncated", "repetition")


def rows_of_study(table: EvaluationSettings, temperatures: Sequence[float]) -> dict[str, EvaluationSettings]:
    """Name of each row → evaluation settings: the table as it is, then each temperature in both modes.

    Raises:
        UserError: a temperature below 0, or one given twice.
    """
    rows = {TABLE: table}
    for temperature in temperatures:
        if not 0 <= temperature < float("inf") or f"{temperature:g}" in rows:
            raise UserError(f"Temperatures are numbers from 0 on, each given once; found {temperature:g}.")
        changed = table.model_copy(deep=True)
        for mode in MODES:
            sampling: Sampling = getattr(changed.sampling, mode)
            sampling.temperature = temperature
        rows[f"{temperature:g}"] = changed
    return rows


def run_sampling(
    run_folder: Path,
    folder: Path,
    temperatures: Sequence[float] = TEMPERATURES,
    which: Side = "tuned",
    limit: int | None = None,
) -> SamplingStudy:
    """Evaluate the run's model at each temperature; finished rows are read, not repeated.

    Args:
        limit: items a benchmark; None: as in the run.

    Raises:
        UserError: no run directory, no adapter, a bad temperature, a model with one mode, or the folder holds another study.
    """
    from pipeline.evaluation.evaluate import evaluate_engine

    run = open_run(run_folder)
    table = run.profile.evaluation.model_copy(deep=True)
    table.limit = limit or table.limit
    rows = rows_of_study(table, temperatures)
    make_folder(folder)
    identity = fingerprint([run.identity(which), table.model_dump()])
    record = folder / "study.json"
    if record.exists() and read_json(record)["identity"] != identity:
        raise UserError(f"{folder} holds a study of another model or other items. Choose another --output-dir.")
    write_json(record, {"identity": identity})
    thinking_style(load_tokenizer(run.profile.model)).require_both("A sampling study")
    entries: list[SamplingRow] = []
    with run.engine(which) as engine:
        for name, settings in rows.items():
            cells = evaluate_engine(engine, f"{run.identity(which)}-{name}", settings, folder / name, progress=False)
            entries.append({"name": name, "modes": {mode: _entry(cells[mode], folder / name / mode) for mode in MODES}})
    result: SamplingStudy = {
        "model": which,
        "table": table.sampling.model_dump(),
        "rows": entries,
        "verdict": {mode: _verdict(folder, list(rows), mode) for mode in MODES},
    }
    write_json(folder / "sampling.json", result)
    draw_sampling(result, folder / "sampling.png")
    return result


def _entry(cell: Cell, folder: Path) -> SamplingMode:
    replies = read_jsonl(folder / "predictions.jsonl")
    n = len(replies)
    circles = sum(looping_part(row["reply"], REPEATED_NGRAM) > REPEATED_PART for row in replies)

    def counted(rate: float) -> CountedRate:
        return {"value": rate, "ci95": wilson(rate * n, n), "n": n}

    return {
        "accuracy": counted(sum(row["score"] for row in replies) / n),
        "mode_fidelity": counted(cell["mode_fidelity"]),
        "truncated": counted(cell["truncated"]),
        "repetition": counted(circles / n),
        "benchmarks": cell["benchmarks"],
    }


def _scores(folder: Path, mode: str) -> np.ndarray:
    rows = read_jsonl(folder / mode / "predictions.jsonl")
    ordered = sorted(rows, key=lambda row: (row["benchmark"], row["subset"], row["index"]))
    return np.array([[row["score"] for row in ordered]])


def _verdict(folder: Path, names: list[str], mode: str) -> Verdict:
    """The recommended row against the best one of the others, on the same items."""
    scores = {name: _scores(folder / name, mode) for name in names}
    table = scores.pop(TABLE)
    best = max(scores, key=lambda name: scores[name].mean())
    both = np.stack([table, scores[best]])
    draws = bootstrap({"all": both}, lambda d: d["all"].mean(axis=(1, 2)))
    low, high = difference_interval95(table, scores[best], draws[:, 1] - draws[:, 0])
    return {
        "best": best,
        "difference": {"value": float(scores[best].mean() - table.mean()), "ci95": [low, high], "n": table.size},
        "shown_to_be_worse": low > 0,
    }


def sampling_text(result: SamplingStudy) -> str:
    """``sampling.json`` for a terminal."""
    short = {"thinking": "think", "non_thinking": "direct"}
    heads = ["temperature", *(f"{name.replace('_', ' ')} ({short[mode]})" for mode in MODES for name in RATES)]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in result["rows"]:
        cells = [row["modes"][mode][name] for mode in MODES for name in RATES]
        shown = ["{:.3f} [{:.3f}, {:.3f}]".format(c["value"], *c["ci95"]) for c in cells]
        lines.append(f"| {' | '.join([row['name'], *shown])} |")
    lines.append("")
    for mode, verdict in result["verdict"].items():
        values, d = result["table"][mode], verdict["difference"]
        shown_worse = "is shown to be worse" if verdict["shown_to_be_worse"] else "is not shown to be worse"
        lines.append(
            f"{mode}: {values['temperature']:g}/{values['top_p']:g}/{values['top_k']} {shown_worse} than temperature "
            f"{verdict['best']}, the best of the others: {d['value']:+.3f} [{d['ci95'][0]:+.3f}, {d['ci95'][1]:+.3f}] "
            f"(n = {d['n']}, paired; the best of several is flattered)"
        )
    return "\n".join(lines)


def draw_sampling(result: SamplingStudy, path: Path) -> None:
    """Accuracy, fidelity, truncation and repetition by temperature, a panel a mode."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    rows = sorted((row for row in result["rows"] if row["name"] != TABLE), key=lambda row: float(row["name"]))
    for axes, mode in zip(figure.subplots(1, 2, sharey=True), MODES, strict=True):
        x = [float(row["name"]) for row in rows]
        for name, colour in zip(RATES, COLOURS, strict=False):
            own = [row["modes"][mode][name] for row in rows]
            axes.plot(x, [e["value"] for e in own], "o-", color=colour, label=name.replace("_", " "))
            low, high = zip(*(e["ci95"] for e in own), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.axvline(result["table"][mode]["temperature"], color="#999999", linestyle=":")
        axes.set(title=mode.replace("_", "-"), xlabel="temperature", ylabel="part of the replies", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
