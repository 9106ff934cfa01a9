"""Cells that ran become a curve: scores with intervals, differences, the Pareto front, a recommended range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, read_json, read_jsonl, write_json
from pipeline.core.modes import MODES
from pipeline.core.statistics import (
    bootstrap,
    difference_interval95,
    flips,
    interval95,
    paired_permutation,
    rate_interval95,
)
from pipeline.evaluation.report.pictures import COLOURS
from pipeline.studies.arms import SweepCell
from pipeline.studies.dose import dose_response, dose_text
from pipeline.studies.forgetting import distance_of, forgetting, forgetting_text
from pipeline.studies.price import PRICE_HEADS, price_cells, price_of
from pipeline.studies.results import BenchmarkRate, Estimate, Failure, Flips, ModeRates, Point, Sweep, SweepRate

FIDELITY_FLOOR = 0.95  # of the recommended range, in both modes
KNOWN = 0.5  # a benchmark that the base solves so often was known before
LEARNT = 0.05  # a rise by so much, its interval above 0, counts as learnt
BASE, TUNED = 0, 1  # the first axis of item scores
RULE = (
    "A value is recommended if its mode fidelity is at least {floor} in both modes and its balance is not shown to be lower than "
    "the best one (the interval of the paired difference, over items and seeds, reaches 0). Balance is the smaller of two "
    "parts: what was learnt, as a part of the most that any value learnt, and what was kept of the benchmark that was kept "
    "worst among those that the base knew. Every value is measured against its own base."
)


# --- item scores --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemScores:
    """One kind of score (right or not, faithful to the mode or not) of all cells, with its bootstrap.

    Every value stands beside its own base: that of the same cells, whose model or evaluation may differ from other values'.

    items: name → [2, values, seeds, items], the first axis base and tuned; a name is "mode/benchmark", or a mode.
    draws: name → [repeats, 2, values]: means under resampling of seeds and items.
    """

    items: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]

    @property
    def means(self) -> np.ndarray:
        """[2, names, values]."""
        return np.stack([array.mean(axis=(2, 3)) for array in self.items.values()], axis=1)

    @property
    def drawn_means(self) -> np.ndarray:
        """[2, repeats, names, values]."""
        return np.stack([array.swapaxes(0, 1) for array in self.draws.values()], axis=2)

    def rate(self, name: str, side: int, value: int) -> SweepRate:
        """Mean and interval of one value, and the difference of its tuned model from that of the first value."""
        own, drawn = self.items[name][side], self.draws[name][:, side]
        result: SweepRate = {**_estimate(own[value].mean(), rate_interval95(own[value], drawn[:, value]))}
        if side == TUNED and value > 0:
            ends = difference_interval95(own[0], own[value], drawn[:, value] - drawn[:, 0])
            difference = _estimate(own[value].mean() - own[0].mean(), ends)
            result["from_first"] = {**difference, "flips": flips_of(own[0], own[value])}
        return result


def flips_of(first: np.ndarray, second: np.ndarray) -> Flips:
    """``flips`` of two settings' item scores, [seeds, items] each."""
    found: Any = flips(first, second)
    return cast(Flips, found)


def _estimate(value: float, ends: Sequence[float]) -> Estimate:
    return {"value": float(value), "ci95": [float(end) for end in ends]}


def _read_items(cell: SweepCell, side: str) -> dict[str, np.ndarray]:
    """By "mode/benchmark": ``score`` and ``faithful`` [2, items], in the order of the items."""
    result: dict[str, np.ndarray] = {}
    for mode in MODES:
        rows = read_jsonl(cell.folder / "run" / "evaluation" / side / mode / "predictions.jsonl")
        for name in dict.fromkeys(row["benchmark"] for row in rows):
            own = sorted((r for r in rows if r["benchmark"] == name), key=lambda r: (r["subset"], r["index"]))
            result[f"{mode}/{name}"] = np.array([[float(r[kind]) for r in own] for kind in ("score", "faithful")])
    return result


def load_scores(values: Sequence[Any], cells: Sequence[SweepCell]) -> tuple[ItemScores, ItemScores]:
    """Item scores of cells that are done, and whether each reply was faithful to its mode; every value needs the same seeds."""
    groups = [[cell for cell in cells if cell.value == value] for value in values]
    read = [[[_read_items(cell, side) for cell in group] for group in groups] for side in ("base", "tuned")]
    names = list(read[BASE][0][0])
    # [2, values, seeds, kinds, items] by name
    arrays = {name: np.array([[[found[name] for found in group] for group in side] for side in read]) for name in names}
    score, faithful = ({name: array[..., kind, :] for name, array in arrays.items()} for kind in (0, 1))
    return _with_draws(score), _with_draws(faithful)


def _with_draws(items: dict[str, np.ndarray]) -> ItemScores:
    sides, values = next(iter(items.values())).shape[:2]
    settings = {name: array.reshape(sides * values, *array.shape[2:]) for name, array in items.items()}
    drawn = bootstrap(settings, lambda d: np.array([array.mean(axis=(1, 2)) for array in d.values()]))
    return ItemScores(items, {name: drawn[:, i].reshape(-1, sides, values) for i, name in enumerate(items)})


def mode_fidelity(faithful: ItemScores) -> ItemScores:
    """By mode instead of "mode/benchmark": all replies of a mode together, each counting once."""
    items: dict[str, np.ndarray] = {}
    draws: dict[str, np.ndarray] = {}
    for mode in MODES:
        names = [name for name in faithful.items if name.startswith(f"{mode}/")]
        items[mode] = np.concatenate([faithful.items[name] for name in names], axis=-1)
        counts = [faithful.items[name].shape[-1] for name in names]
        draws[mode] = np.average([faithful.draws[name] for name in names], axis=0, weights=counts)
    return ItemScores(items, draws)


# --- the curve ----------------------------------------------------------------------------------------------------------


def balance(base: np.ndarray, tuned: np.ndarray, learnt: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[..., 3, values]: gain, keep and balance of each value against its own base; see ``RULE``.

    Args:
        base, tuned: mean scores [..., names, values].
        learnt: which benchmarks count as learnt, [names].
        known: which of the others the base of each value knew, [names, values].
    """
    rises = np.where(learnt[:, None], tuned - base, 0)
    gain = rises.sum(axis=-2) / max(1, learnt.sum())
    keep = kept_part(base, tuned, known).min(axis=-2)
    most = gain.max(axis=-1, keepdims=True)
    part = np.where(most > 0, np.clip(gain / np.where(most > 0, most, 1), 0, 1), 1)
    return np.stack([gain, keep, np.minimum(part, keep)], axis=-2)


def kept_part(base: np.ndarray, tuned: np.ndarray, known: np.ndarray) -> np.ndarray:
    """What is left of each base score, at most 1; 1 also for what was not known. All arrays have one shape.

    Of few items, a draw of the bootstrap may hold none that the base solves: then nothing could be lost.
    """
    could_fall = known & (base > 0)
    return np.where(could_fall, np.minimum(1, tuned / np.where(could_fall, base, 1)), 1)


def pareto(gain: Sequence[float], keep: Sequence[float]) -> list[int]:
    """Numbers of the values that no other value beats in one of the two without losing in the other."""
    points = list(zip(gain, keep, strict=True))
    return [
        i for i, (g, k) in enumerate(points) if not any(og >= g and ok >= k and (og > g or ok > k) for og, ok in points)
    ]


def summarise_sweep(key: str, cells: Sequence[SweepCell], folder: Path, question: str = "") -> Sweep:
    """Read the cells' predictions and write ``sweep.json`` and ``sweep.png``.

    Values of which a seed is missing are left out of the curve and named in ``failed``.

    Raises:
        UserError: no value is complete.
    """
    failed = _failures(cells)
    missing = [f["value"] for f in failed]
    values = _complete(cells, missing)
    if not values:
        raise UserError(f"No value of the sweep is complete; the first failure: {failed[0]['reason']}")
    score, faithful = load_scores(values, cells)
    fidelity = mode_fidelity(faithful)
    learnt, known = _learnt_and_known(score)  # [names], [names, values]
    drawn = score.drawn_means
    parts = balance(score.means[BASE], score.means[TUNED], learnt, known)  # [3, values]
    drawn_parts = balance(drawn[BASE], drawn[TUNED], learnt, known)  # [repeats, 3, values]
    modes = [[_mode_rates(score, faithful, fidelity, side, v) for v in range(len(values))] for side in (BASE, TUNED)]
    names = np.array(list(score.items))
    result: Sweep = {
        "axis": key,
        "question": question,
        "seeds": sorted({cell.seed for cell in cells}),
        "base": modes[BASE][0],
        "points": [
            _point(value, modes[BASE][v], modes[TUNED][v], parts[:, v], drawn_parts[:, :, v])
            for v, value in enumerate(values)
        ],
        "learnt": names[learnt].tolist(),
        "known": names[known.any(axis=1)].tolist(),
        "pareto": [values[v] for v in pareto(parts[0].tolist(), parts[1].tolist())],
        "recommended": [values[v] for v in _recommended(parts[2], drawn_parts[:, 2], fidelity.means[TUNED])],
        "rule": RULE.format(floor=FIDELITY_FLOOR),
        "failed": failed,
    }
    for point in result["points"]:
        own = [cell.folder / "run" for cell in cells if cell.value == point["value"]]
        point["price"] = price_of(own)
        if found := distance_of(own):
            point["distance"] = found
    runs = [cell.folder / "run" for cell in cells if cell.value in values]
    if (agreement := forgetting(runs, result["learnt"], result["known"])) is not None:
        result["forgetting"] = agreement
    mean, drawn_mean = (score_of[TUNED][..., known.all(axis=1), :].mean(axis=-2) for score_of in (score.means, drawn))
    doses = [next(cell.dose for cell in cells if cell.value == value) for value in values]
    if known.any() and (response := dose_response(values, doses, mean, drawn_mean)) is not None:
        result["dose"] = response
    write_json(folder / "sweep.json", result)
    draw_sweep(result, folder / "sweep.png")
    return result


def _failures(cells: Sequence[SweepCell]) -> list[Failure]:
    failed: list[Failure] = []
    for cell in cells:
        if not cell.report.exists():
            path = cell.folder / "failed.json"
            reason = read_json(path)["reason"] if path.exists() else "not run"
            failed.append({"value": cell.value, "seed": cell.seed, "reason": reason})
    return failed


def _complete(cells: Sequence[SweepCell], missing: Sequence[Any]) -> list[Any]:
    values: list[Any] = []
    for cell in cells:
        if cell.value not in missing and cell.value not in values:
            values.append(cell.value)
    return values


def _learnt_and_known(score: ItemScores) -> tuple[np.ndarray, np.ndarray]:
    """Which benchmarks were learnt by any value [names], and which others each value's base knew [names, values]."""
    base, tuned = score.means
    drawn_base, drawn_tuned = score.drawn_means
    shown = np.quantile(drawn_tuned - drawn_base, 0.025, axis=0) > 0
    learnt = ((tuned - base >= LEARNT) & shown).any(axis=1)
    return learnt, ~learnt[:, None] & (base >= KNOWN)


def _recommended(balances: np.ndarray, draws: np.ndarray, fidelity: np.ndarray) -> list[int]:
    """Numbers of the values that ``RULE`` recommends.

    Args:
        balances: [values]. draws: of them, [repeats, values]. fidelity: of the tuned models, [modes, values].
    """
    best = int(np.argmax(balances))
    as_good = np.quantile(draws - draws[:, [best]], 0.975, axis=0) >= 0
    return np.flatnonzero(as_good & (fidelity >= FIDELITY_FLOOR).all(axis=0)).tolist()


def _mode_rates(
    score: ItemScores, faithful: ItemScores, fidelity: ItemScores, side: int, value: int
) -> dict[str, ModeRates]:
    """All rates of one value's base or tuned model."""
    result: dict[str, ModeRates] = {
        mode: {"benchmarks": {}, "mode_fidelity": fidelity.rate(mode, side, value)} for mode in MODES
    }
    for name, array in score.items.items():
        mode, _, benchmark = name.partition("/")
        base, tuned = array[:, value].mean(axis=1)  # [items] each
        entry: BenchmarkRate = {
            **score.rate(name, side, value),
            "n": array[0, 0].size,
            "p": paired_permutation(base, tuned) if side == TUNED else None,
            "mode_fidelity": faithful.rate(name, side, value),
        }
        if side == TUNED:
            entry["flips"] = flips_of(*array[:, value])
        result[mode]["benchmarks"][benchmark] = entry
    return result


def _point(
    value: Any, base: dict[str, ModeRates], tuned: dict[str, ModeRates], parts: np.ndarray, draws: np.ndarray
) -> Point:
    """``parts``: gain, keep, balance [3]; ``draws`` of them: [repeats, 3]."""
    gain, keep, both = (_estimate(part, interval95(draws[:, k])) for k, part in enumerate(parts))
    return {"value": value, "modes": tuned, "base": base, "gain": gain, "keep": keep, "balance": both}


# --- showing ------------------------------------------------------------------------------------------------------------


def base_rows(result: Sweep) -> list[tuple[str, dict[str, ModeRates]]]:
    """Name and rates of each base: one where all values have the same, else one for each that differs, with its values."""
    bases: list[dict[str, ModeRates]] = []
    users: list[list[str]] = []
    for point in result["points"]:
        own = point.get("base", result["base"])
        if own not in bases:
            bases.append(own)
            users.append([])
        users[bases.index(own)].append(str(point["value"]))
    names = ["base"] if len(bases) == 1 else [f"base of {', '.join(of)}" for of in users]
    return list(zip(names, bases, strict=True))


def sweep_table(result: Sweep) -> str:
    """``sweep.json`` for a terminal or a notebook: scores, differences from the first value, the recommendation."""
    benchmarks = [(mode, name) for mode in MODES for name in result["base"][mode]["benchmarks"]]
    short = {"thinking": "think", "non_thinking": "direct"}
    heads = [result["axis"], *(f"{name.removeprefix('embedded_')} ({short[mode]})" for mode, name in benchmarks)]
    heads += [f"fidelity ({short[mode]})" for mode in MODES]

    def entries(modes: Mapping[str, ModeRates]) -> list[SweepRate]:
        return [modes[mode]["benchmarks"][name] for mode, name in benchmarks] + [
            modes[mode]["mode_fidelity"] for mode in MODES
        ]

    rows = [[name, *map(_shown, entries(modes)), ""] for name, modes in base_rows(result)]
    rows += [[str(p["value"]), *map(_shown, entries(p["modes"])), _shown(p["balance"])] for p in result["points"]]
    lines = [result["question"], ""] if result["question"] else []
    lines += _lines([*heads, "balance"], rows)
    n = next(iter(result["points"][0]["modes"]["thinking"]["benchmarks"].values()))["n"]
    lines += ["", f"{n} replies a cell over {len(result['seeds'])} seed(s), 95 % intervals over items and seeds"]
    if len(result["points"]) > 1:
        lines += ["", f"difference from {result['points'][0]['value']}; * the interval leaves out 0"]
        others = result["points"][1:]
        differences = [[str(p["value"]), *map(_difference, entries(p["modes"]))] for p in others]
        if any("(+" in text for row in differences for text in row):  # older sweeps did not count them
            lines[-1] += "; (+ items that became right, − items that became wrong, over all seeds)"
        lines += _lines(heads, differences)
    if any("distance" in p for p in result["points"]):
        lines += ["", "distance: KL(base ‖ tuned), nats a token of the base's own replies"]
        far = [
            [str(p["value"]), *(_shown(p["distance"][m][n]) if n in p["distance"][m] else "" for m, n in benchmarks)]
            for p in result["points"]
            if "distance" in p
        ]
        lines += _lines(heads[: 1 + len(benchmarks)], far)
    priced = [p for p in result["points"] if "price" in p]
    if priced:
        lines += ["", "price, means over seeds"]
        lines += _lines([result["axis"], *PRICE_HEADS], [[str(p["value"]), *price_cells(p["price"])] for p in priced])
    if "forgetting" in result:
        lines += ["", forgetting_text(result["forgetting"])]
    if "dose" in result:
        lines += ["", dose_text(result["dose"])]
    lines += ["", recommendation(result)]
    lines += [f"failed: {f['value']} (seed {f['seed']}): {f['reason']}" for f in result["failed"]]
    return "\n".join(lines)


def fidelity_table(result: Sweep) -> str:
    """Mode fidelity by benchmark: which kind of question loses its mode."""
    short = {"thinking": "think", "non_thinking": "direct"}
    pairs = [(mode, name) for mode in MODES for name in result["base"][mode]["benchmarks"]]
    heads = [f"fidelity: {result['axis']}"]
    heads += [f"{name.removeprefix('embedded_')} ({short[mode]})" for mode, name in pairs]
    named = [*base_rows(result), *((str(p["value"]), p["modes"]) for p in result["points"])]
    rows = [[v, *(_shown(modes[m]["benchmarks"][n]["mode_fidelity"]) for m, n in pairs)] for v, modes in named]
    return "\n".join(_lines(heads, rows))


def recommendation(result: Sweep) -> str:
    """Which values to take, the Pareto front, and the rule in words."""
    recommended = ", ".join(map(str, result["recommended"])) or "none"
    front = ", ".join(map(str, result["pareto"]))
    return f"recommended: {recommended} (Pareto front: {front})\n{result['rule']}"


def _lines(heads: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows]]


def _difference(entry: SweepRate) -> str:
    difference = entry["from_first"]
    low, high = difference["ci95"]
    turned = difference.get("flips")
    counts = f" (+{turned['gained']}, −{turned['lost']})" if turned else ""
    return f"{difference['value']:+.3f} [{low:+.3f}, {high:+.3f}]" + ("" if low <= 0 <= high else " *") + counts


def _shown(entry: Estimate) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(entry["value"], *entry["ci95"])


def draw_sweep(result: Sweep, path: Path) -> None:
    """The curve as a picture: a panel a mode with all benchmarks, one with mode fidelity and balance; bands are 95 %."""
    from matplotlib.figure import Figure

    points = result["points"]
    values = [point["value"] for point in points]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    order = sorted(range(len(values)), key=lambda i: values[i]) if numeric else list(range(len(values)))
    x: list[Any] = [values[i] for i in order] if numeric else [str(values[i]) for i in order]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)

    def curve(axes: Any, entries: Sequence[Estimate], colour: str, label: str, bases: Sequence[float] = ()) -> None:
        low, high = zip(*(entry["ci95"] for entry in entries), strict=True)
        axes.plot(x, [entry["value"] for entry in entries], "o-", color=colour, label=label)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        if len(set(bases)) == 1:
            axes.axhline(bases[0], color=colour, linestyle=":", linewidth=1)
        elif bases:
            axes.plot(x, bases, "o:", color=colour, linewidth=1, markersize=3)

    for axes, mode in zip(panels, MODES, strict=False):
        for colour, name in zip(COLOURS, result["base"][mode]["benchmarks"], strict=False):
            entries = [points[i]["modes"][mode]["benchmarks"][name] for i in order]
            bases = [points[i].get("base", result["base"])[mode]["benchmarks"][name]["value"] for i in order]
            curve(axes, entries, colour, name.removeprefix("embedded_"), bases)
        axes.set_title(f"score, {mode.replace('_', '-')}")
    for colour, mode in zip(COLOURS, MODES, strict=False):
        fidelity = [points[i]["modes"][mode]["mode_fidelity"] for i in order]
        curve(panels[2], fidelity, colour, f"fidelity, {mode.replace('_', '-')}")
    curve(panels[2], [points[i]["balance"] for i in order], COLOURS[2], "balance")
    panels[2].set_title("mode fidelity, balance")
    for axes in panels:
        axes.set(xlabel=result["axis"], ylabel="part of the items", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
        if numeric and result["recommended"]:
            axes.axvspan(
                min(result["recommended"]), max(result["recommended"]), color="#999999", alpha=0.12, linewidth=0
            )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
