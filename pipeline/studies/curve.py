"""Cells that ran become a curve: scores with intervals, differences, the Pareto front, a recommended range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, read_jsonl, write_json
from pipeline.core.modes import MODES
from pipeline.core.statistics import bootstrap, difference_interval95, interval95, paired_permutation, rate_interval95
from pipeline.studies.arms import Cell

FIDELITY_FLOOR = 0.95  # of the recommended range, in both modes
KNOWN = 0.5  # a benchmark that the base solves so often was known before
LEARNT = 0.05  # a rise by so much, its interval above 0, counts as learnt
RULE = (
    "A value is recommended if its mode fidelity is at least {floor} in both modes and its balance is not shown to be lower than "
    "the best one (the interval of the paired difference, over items and seeds, reaches 0). Balance is the smaller of two "
    "parts: what was learnt, as a part of the most that any value learnt, and what was kept of the benchmark that was kept "
    "worst among those that the base knew."
)


# --- the curve ----------------------------------------------------------------------------------------------------------


def _items(cell: Cell, which: str) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """(mode, benchmark) → item arrays ``score`` and ``faithful``, in the order of the items."""
    result: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for mode in MODES:
        rows = read_jsonl(cell.folder / "run" / "evaluation" / which / mode / "predictions.jsonl")
        for name in dict.fromkeys(row["benchmark"] for row in rows):
            own = sorted((r for r in rows if r["benchmark"] == name), key=lambda r: (r["subset"], r["index"]))
            result[mode, name] = {k: np.array([float(r[k]) for r in own]) for k in ("score", "faithful")}
    return result


@dataclass
class Scores:
    """Item scores of all values, ``[1 + values, seeds, items]`` by "mode/benchmark"; entry 0 is the base."""

    score: dict[str, np.ndarray]
    faithful: dict[str, np.ndarray]


def load_scores(values: Sequence[Any], cells: Sequence[Cell]) -> Scores:
    """Item scores of cells that are done; every value needs the same seeds."""
    tables: dict[str, dict[str, list[list[np.ndarray]]]] = {"score": {}, "faithful": {}}
    own = [[cell for cell in cells if cell.value == value] for value in values]
    groups = [(("base"), own[0]), *(("tuned", group) for group in own)]
    for number, (which, group) in enumerate(groups):
        for cell in group:
            for (mode, name), arrays in _items(cell, which).items():
                for kind, array in arrays.items():
                    rows = tables[kind].setdefault(f"{mode}/{name}", [[] for _ in groups])
                    rows[number].append(array)
    return Scores(*({name: np.array(rows) for name, rows in tables[kind].items()} for kind in ("score", "faithful")))


def _means(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.mean(axis=(1, 2)) for name, array in arrays.items()}


def _fidelity(faithful: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mode fidelity [modes, 1 + values]: the mean over all replies of a mode."""
    result = []
    for mode in MODES:
        own = [array for name, array in faithful.items() if name.startswith(f"{mode}/")]
        result.append(np.concatenate(own, axis=2).mean(axis=(1, 2)))
    return np.array(result)


def balance(means: Mapping[str, np.ndarray], learnt: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """[3, values]: gain, keep and balance of each value; see ``RULE``.

    Args:
        means: "mode/benchmark" → [1 + values], the base first.
    """
    count = len(next(iter(means.values()))) - 1
    gain = np.mean([means[n][1:] - means[n][0] for n in learnt], axis=0) if learnt else np.zeros(count)
    # Of few items, a draw of the bootstrap may hold none that the base solves: then nothing could be lost.
    kept = [np.minimum(1, means[n][1:] / means[n][0]) if means[n][0] > 0 else np.ones(count) for n in known]
    keep = np.min(kept, axis=0) if known else np.ones(count)
    most = gain.max()
    part = np.clip(gain / most, 0, 1) if learnt and most > 0 else np.ones(count)
    return np.array([gain, keep, np.minimum(part, keep)])


def pareto(gain: Sequence[float], keep: Sequence[float]) -> list[int]:
    """Numbers of the values that no other value beats in one of the two without losing in the other."""
    points = list(zip(gain, keep, strict=True))
    return [
        i for i, (g, k) in enumerate(points) if not any(og >= g and ok >= k and (og > g or ok > k) for og, ok in points)
    ]


def summarise(key: str, cells: Sequence[Cell], folder: Path, question: str = "") -> dict[str, Any]:
    """Read the cells' predictions and write ``sweep.json`` and ``sweep.png``.

    Values of which a seed is missing are left out of the curve and named in ``failed``.

    Raises:
        UserError: no value is complete.
    """
    failed = []
    for cell in cells:
        if not cell.report.exists():
            path = cell.folder / "failed.json"
            reason = read_json(path)["reason"] if path.exists() else "not run"
            failed.append({"value": cell.value, "seed": cell.seed, "reason": reason})
    missing = [f["value"] for f in failed]
    values = _complete(cells, missing)
    if not values:
        raise UserError(f"No value of the sweep is complete; the first failure: {failed[0]['reason']}")
    scores = load_scores(values, cells)
    means, fidelity = _means(scores.score), _fidelity(scores.faithful)
    draws = bootstrap(scores.score, lambda drawn: np.array(list(_means(drawn).values())))
    names = list(means)
    rises = draws[:, :, 1:] - draws[:, :, :1]
    rise_low = np.quantile(rises, 0.025, axis=0)
    learnt = [n for i, n in enumerate(names) if any((means[n][1:] - means[n][0] >= LEARNT) & (rise_low[i] > 0))]
    known = [n for n in names if n not in learnt and means[n][0] >= KNOWN]
    parts = balance(means, learnt, known)
    part_draws = np.array([balance(dict(zip(names, draw, strict=True)), learnt, known) for draw in draws])
    part_low, part_high = (np.array(end) for end in interval95(part_draws))
    fidelity_draws, faithful_draws = _fidelity_draws(scores.faithful)
    best = int(np.argmax(parts[2]))
    behind = part_draws[:, 2, :] - part_draws[:, 2, best : best + 1]
    as_good = np.quantile(behind, 0.975, axis=0) >= 0
    recommended = [v for i, v in enumerate(values) if as_good[i] and (fidelity[:, i + 1] >= FIDELITY_FLOOR).all()]

    def entry(value: float, lower: float, upper: float) -> dict[str, Any]:
        return {"value": float(value), "ci95": [float(lower), float(upper)]}

    def rate(of: np.ndarray, drawn: np.ndarray, i: int) -> dict[str, Any]:
        """Of value i of [1 + values, seeds, items], with its difference from the first value where it is another one."""
        result = entry(of[i].mean(), *rate_interval95(of[i], drawn[:, i]))
        if i > 1:
            result["from_first"] = entry(
                of[i].mean() - of[1].mean(), *difference_interval95(of[1], of[i], drawn[:, i] - drawn[:, 1])
            )
        return result

    points = []
    for i, value in enumerate([None, *values]):
        point: dict[str, Any] = {"value": value, "modes": {}}
        for m, mode in enumerate(MODES):
            own = {}
            for j, name in enumerate(names):
                if name.startswith(f"{mode}/"):
                    array = scores.score[name]
                    own[name.partition("/")[2]] = rate(array, draws[:, j], i) | {
                        "n": int(array.shape[1] * array.shape[2]),
                        "p": paired_permutation(array[0].mean(axis=0), array[i].mean(axis=0)) if i else None,
                        "mode_fidelity": rate(scores.faithful[name], faithful_draws[:, j], i),
                    }
            whole = np.concatenate([scores.faithful[n] for n in names if n.startswith(f"{mode}/")], axis=2)
            faithful = rate(whole, fidelity_draws[:, m], i)
            point["modes"][mode] = {"benchmarks": own, "mode_fidelity": faithful}
        if i:
            for k, name in enumerate(("gain", "keep", "balance")):
                point[name] = entry(parts[k, i - 1], part_low[k, i - 1], part_high[k, i - 1])
        points.append(point)
    result = {
        "axis": key,
        "question": question,
        "seeds": sorted({cell.seed for cell in cells}),
        "base": points[0]["modes"],
        "points": points[1:],
        "learnt": learnt,
        "known": known,
        "pareto": [values[i] for i in pareto(parts[0], parts[1])],
        "recommended": recommended,
        "rule": RULE.format(floor=FIDELITY_FLOOR),
        "failed": failed,
    }
    write_json(folder / "sweep.json", result)
    draw(result, folder / "sweep.png")
    return result


def _fidelity_draws(faithful: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap draws of mode fidelity [draws, modes, 1 + values] and of each benchmark's part [draws, names, 1 + values]."""
    drawn = bootstrap(faithful, lambda d: np.concatenate([_fidelity(d), list(_means(d).values())]))
    return drawn[:, : len(MODES)], drawn[:, len(MODES) :]


def _complete(cells: Sequence[Cell], missing: Sequence[Any]) -> list[Any]:
    values: list[Any] = []
    for cell in cells:
        if cell.value not in missing and cell.value not in values:
            values.append(cell.value)
    return values


def table(result: Mapping[str, Any]) -> str:
    """``sweep.json`` for a terminal or a notebook: scores, differences from the first value, the recommendation."""
    benchmarks = [(mode, name) for mode in MODES for name in result["base"][mode]["benchmarks"]]
    short = {"thinking": "think", "non_thinking": "direct"}
    heads = [result["axis"], *(f"{name.removeprefix('embedded_')} ({short[mode]})" for mode, name in benchmarks)]
    heads += [f"fidelity ({short[mode]})" for mode in MODES]

    def entries(modes: Mapping[str, Any]) -> list[Any]:
        return [modes[mode]["benchmarks"][name] for mode, name in benchmarks] + [
            modes[mode]["mode_fidelity"] for mode in MODES
        ]

    rows = [["base", *map(_shown, entries(result["base"])), ""]]
    rows += [[str(p["value"]), *map(_shown, entries(p["modes"])), _shown(p["balance"])] for p in result["points"]]
    lines = [result["question"], ""] if result["question"] else []
    lines += _lines([*heads, "balance"], rows)
    n = next(iter(result["points"][0]["modes"]["thinking"]["benchmarks"].values()))["n"]
    lines += ["", f"{n} replies a cell over {len(result['seeds'])} seed(s), 95 % intervals over items and seeds"]
    if len(result["points"]) > 1:
        lines += ["", f"difference from {result['points'][0]['value']}; * the interval leaves out 0"]
        others = result["points"][1:]
        lines += _lines(heads, [[str(p["value"]), *map(_difference, entries(p["modes"]))] for p in others])
    lines += ["", recommendation(result)]
    lines += [f"failed: {f['value']} (seed {f['seed']}): {f['reason']}" for f in result["failed"]]
    return "\n".join(lines)


def fidelity_table(result: Mapping[str, Any]) -> str:
    """Mode fidelity by benchmark: which kind of question loses its mode."""
    short = {"thinking": "think", "non_thinking": "direct"}
    pairs = [(mode, name) for mode in MODES for name in result["base"][mode]["benchmarks"]]
    heads = [f"fidelity: {result['axis']}"]
    heads += [f"{name.removeprefix('embedded_')} ({short[mode]})" for mode, name in pairs]
    named = [("base", result["base"]), *((str(p["value"]), p["modes"]) for p in result["points"])]
    rows = [[v, *(_shown(modes[m]["benchmarks"][n]["mode_fidelity"]) for m, n in pairs)] for v, modes in named]
    return "\n".join(_lines(heads, rows))


def recommendation(result: Mapping[str, Any]) -> str:
    """Which values to take, the Pareto front, and the rule in words."""
    recommended = ", ".join(map(str, result["recommended"])) or "none"
    front = ", ".join(map(str, result["pareto"]))
    return f"recommended: {recommended} (Pareto front: {front})\n{result['rule']}"


def _lines(heads: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows]]


def _difference(entry: Mapping[str, Any]) -> str:
    difference = entry["from_first"]
    low, high = difference["ci95"]
    return f"{difference['value']:+.3f} [{low:+.3f}, {high:+.3f}]" + ("" if low <= 0 <= high else " *")


def _shown(entry: Mapping[str, Any]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(entry["value"], *entry["ci95"])


def draw(result: Mapping[str, Any], path: Path) -> None:
    """The curve as a picture: a panel a mode with all benchmarks, one with mode fidelity and balance; bands are 95 %."""
    from matplotlib.figure import Figure

    from pipeline.core.files import atomic_path

    values = [point["value"] for point in result["points"]]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    order = sorted(range(len(values)), key=lambda i: values[i]) if numeric else list(range(len(values)))
    x: list[Any] = [values[i] for i in order] if numeric else [str(values[i]) for i in order]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    colours = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")

    def curve(axes: Any, entries: list[Mapping[str, Any]], colour: str, label: str, base: float | None) -> None:
        low, high = zip(*(entry["ci95"] for entry in entries), strict=True)
        axes.plot(x, [entry["value"] for entry in entries], "o-", color=colour, label=label)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        if base is not None:
            axes.axhline(base, color=colour, linestyle=":", linewidth=1)

    for axes, mode in zip(panels, MODES, strict=False):
        for colour, name in zip(colours, result["base"][mode]["benchmarks"], strict=False):
            entries = [result["points"][i]["modes"][mode]["benchmarks"][name] for i in order]
            base = result["base"][mode]["benchmarks"][name]["value"]
            curve(axes, entries, colour, name.removeprefix("embedded_"), base)
        axes.set_title(f"score, {mode.replace('_', '-')}")
    for colour, mode in zip(colours, MODES, strict=False):
        entries = [result["points"][i]["modes"][mode]["mode_fidelity"] for i in order]
        curve(panels[2], entries, colour, f"fidelity, {mode.replace('_', '-')}", None)
    curve(panels[2], [result["points"][i]["balance"] for i in order], colours[2], "balance", None)
    panels[2].set_title("mode fidelity, balance")
    for axes in panels:
        axes.set(xlabel=result["axis"], ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
        if numeric and result["recommended"]:
            axes.axvspan(
                min(result["recommended"]), max(result["recommended"]), color="#999999", alpha=0.12, linewidth=0
            )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
