"""One setting, several values, several seeds: each cell is a run of its own, and together they are a curve.

In: a profile, an axis and its values (or a file of arms: named lists of settings), a number of seeds. Out: a directory with
one run a cell, and ``sweep.json``, ``sweep.png``: scores and mode fidelity by value with intervals over items and seeds, the
differences from the first value, the Pareto front, and a recommended range with its rule.

Every cell is ``python -m pipeline run`` in a process of its own, so whatever happens to one leaves the others alone. What
cells have in common is made once: the tokenised pools (by their cache) and the evaluation of the base (copied). Sweeps that
are given the same folder for their cells share the cells that they have in common, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from pydantic import BaseModel, Field

from pipeline.conversations import MODES
from pipeline.errors import UserError, nearest
from pipeline.files import fingerprint, read_json, read_jsonl, require_folder, write_json, write_text
from pipeline.pools import say
from pipeline.run import Run
from pipeline.settings import (
    ROOT,
    Profile,
    Recipe,
    Section,
    apply_overrides,
    load_profile,
    load_recipe,
    locate,
    parse,
    read_yaml,
)
from pipeline.statistics import (
    bootstrap,
    difference_interval95,
    interval95,
    paired_permutation,
    rate_interval95,
)

FIDELITY_FLOOR = 0.95  # of the recommended range, in both modes
KNOWN = 0.5  # a benchmark that the base solves so often was known before
LEARNT = 0.05  # a rise by so much, its interval above 0, counts as learnt
PROGRESS_BAR = re.compile(r"\d+%\|.*\| *\d+/\d+ \[")  # tqdm's
RULE = (
    "A value is recommended if its mode fidelity is at least {floor} in both modes and its balance is not shown to be lower than "
    "the best one (the interval of the paired difference, over items and seeds, reaches 0). Balance is the smaller of two "
    "parts: what was learnt, as a part of the most that any value learnt, and what was kept of the benchmark that was kept "
    "worst among those that the base knew."
)


# --- axes and cells -----------------------------------------------------------------------------------------------------


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all single settings of a settings class."""
    names = []
    for name, field in model.model_fields.items():
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        is_list = getattr(field.annotation, "__origin__", None) is list
        if inner is None or is_list:
            names.append(prefix + name)
        else:
            names += [prefix + name, *_keys(inner, f"{prefix}{name}.")]
    return names


def axis_key(axis: str) -> str:
    """The dotted key of an axis: ``chat_share`` → ``mix.chat_share``; keys of the recipe begin with ``recipe.``.

    Raises:
        UserError: there is no such setting (names the nearest), or several that end so.
    """
    known = [*_keys(Profile), *(f"recipe.{key}" for key in _keys(Recipe))]
    if axis in known:
        return axis
    ending = [key for key in known if key.rpartition(".")[2] == axis]
    # Of a setting of training and of what may follow it, training's is meant; of the profile and of the recipe, the profile's.
    ending = [key for key in ending if not key.startswith(("preference.", "grpo."))] or ending
    ending = [key for key in ending if not key.startswith("recipe.")] or ending
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UserError(f"--axis {axis} could be {', '.join(ending)}; name one of them whole.")
    hint = nearest(axis, known) or nearest(axis, [key.rpartition(".")[2] for key in known])
    raise UserError(f"There is no setting {axis!r} to sweep.{hint} Any key of a profile works, or recipe.KEY.")


class Arm(Section):
    """One thing to try."""

    set: list[str] = Field([])  # KEY=VALUE; keys of the recipe begin with ``recipe.``
    why: str = ""
    source: str = ""


class Arms(Section):
    """A file of arms: what is compared, and the question it answers. The others are compared with the first arm."""

    question: str = ""
    set: list[str] = Field([])  # of all arms
    arms: dict[str, Arm] = Field(min_length=1)


def load_arms(path: str) -> Arms:
    """Read a file of arms, looked for in the working directory and then in the project; ``presets``: those of the search.

    Raises:
        UserError: no such file, or a key in it that is not known.
    """
    if path == "presets":
        from pipeline.search import load_space

        return load_space().presets
    return parse(Arms, read_yaml(locate(path)), path)


@dataclass
class Cell:
    """One value with one seed."""

    number: int
    value: Any
    seed: int
    profile: Profile
    recipe: Recipe
    folder: Path

    @property
    def report(self) -> Path:
        return self.folder / "run" / "report.json"

    @property
    def name(self) -> str:
        return f"{self.value} (seed {self.seed})"


def resolve(profile: str, overrides: list[str]) -> tuple[Profile, Recipe]:
    """Profile and recipe of a cell: as the profile's section ``sweep`` says, then ``overrides`` (also of the recipe)."""
    short = load_profile(profile).sweep.overrides
    own = [text for text in overrides if not text.startswith("recipe.")]
    settings = load_profile(profile, [*short, *own])
    recipe = load_recipe(settings.recipe, settings.mix)
    changes = [text.removeprefix("recipe.") for text in overrides if text.startswith("recipe.")]
    if changes:
        recipe = parse(
            Recipe, apply_overrides(recipe.model_dump(), changes), f"recipe {settings.recipe} with {changes}"
        )
    return settings, recipe


def plan(
    profile: str,
    overrides: list[str],
    axis: str,
    values: Sequence[str],
    seeds: int,
    folder: Path,
    cells_folder: Path | None = None,
) -> tuple[str, list[Cell]]:
    """All cells of an axis, checked: every value fits its setting.

    Args:
        cells_folder: where cells are kept by their settings, to be shared with other sweeps; None: in ``folder``.

    Raises:
        UserError: unknown axis, a value of the wrong type, fewer than one value or seed, a value given twice.
    """
    key = axis_key(axis)
    resolved: list[tuple[Any, Profile, Recipe]] = []
    for text in values:
        settings, recipe = resolve(profile, [*overrides, f"{key}={text}"])
        data = (
            {**settings.model_dump(), "recipe": recipe.model_dump()}
            if key.startswith("recipe.")
            else settings.model_dump()
        )
        value = _at(data, key)
        if value in [seen for seen, _, _ in resolved]:
            raise UserError(f"--values: {text} is given twice.")
        resolved.append((value, settings, recipe))
    return key, _cells(resolved, seeds, folder, cells_folder)


def plan_arms(
    profile: str, overrides: list[str], arms: Arms, seeds: int, folder: Path, cells_folder: Path | None = None
) -> list[Cell]:
    """All cells of a file of arms, checked.

    Raises:
        UserError: a setting that does not exist, or a value of the wrong type (names the arm).
    """
    resolved = []
    for name, arm in arms.arms.items():
        try:
            resolved.append((name, *resolve(profile, [*arms.set, *overrides, *arm.set])))
        except UserError as error:
            raise UserError(f"arm {name!r}: {error}") from error
    return _cells(resolved, seeds, folder, cells_folder)


def _cells(
    resolved: Sequence[tuple[Any, Profile, Recipe]], seeds: int, folder: Path, cells_folder: Path | None
) -> list[Cell]:
    if not resolved or seeds < 1:
        raise UserError("A sweep needs at least one value and one seed.")
    cells: list[Cell] = []
    for number, (value, settings, recipe) in enumerate(resolved):
        for add in range(seeds):
            one = settings.model_copy(update={"seed": settings.seed + add}, deep=True)
            if cells_folder:
                identity = fingerprint([one.model_dump(exclude={"recipe", "mix", "sweep"}), recipe.model_dump()])
                path = cells_folder / identity[:16]
            else:
                path = folder / "cells" / f"{number:02d}-seed{one.seed}"
            cells.append(Cell(len(cells), value, one.seed, one, recipe, path))
    return cells


def _at(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data[part]
    return data


# --- running ------------------------------------------------------------------------------------------------------------


def run_sweep(
    profile: str,
    axis: str,
    values: Sequence[str],
    seeds: int,
    folder: Path,
    overrides: list[str] | None = None,
    workers: int | None = None,
    arms: str | None = None,
    cells_folder: Path | None = None,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Run all cells that are not done, then summarise; see the module's docstring.

    Args:
        workers: runs at a time; None: as many as the cores allow at the profile's number of threads.
        arms: a file of arms, instead of axis and values.
        cells_folder: see ``plan``.
        only: names of arms to run; none: all.

    Returns:
        What ``sweep.json`` holds; ``failed`` names cells without a result, with the reason.

    Raises:
        UserError: see ``plan``; or the directory belongs to another sweep; or every cell failed.
    """
    question = ""
    if arms:
        compared = load_arms(arms)
        if only:
            compared.arms = {name: arm for name, arm in compared.arms.items() if name in only}
        key, question, values = Path(arms).stem, compared.question, list(compared.arms)
        cells = plan_arms(profile, overrides or [], compared, seeds, folder, cells_folder)
    else:
        key, cells = plan(profile, overrides or [], axis, values, seeds, folder, cells_folder)
    require_folder(folder)
    if cells_folder:
        require_folder(cells_folder)
    identity = fingerprint([[c.profile.model_dump(), c.recipe.model_dump()] for c in cells])
    record = folder / "plan.json"
    if record.exists():
        if read_json(record)["cells"] != identity:
            raise UserError(f"{folder} holds another sweep. Choose another --output-dir; nothing was changed.")
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no sweep. Choose another --output-dir; nothing was changed.")
    write_json(record, {"axis": key, "values": [str(v) for v in values], "seeds": seeds, "cells": identity})
    for cell in cells:
        write_inputs(cell)
    threads = cells[0].profile.model.cpu_threads or os.cpu_count() or 1
    at_once = workers or max(1, (os.cpu_count() or 1) // threads)
    _run_all([cell for cell in cells if not cell.report.exists()], at_once, cells_folder or folder)
    return summarise(key, cells, folder, question)


def write_inputs(cell: Cell) -> None:
    """The cell's own profile and recipe as files, so that its run can be repeated by hand."""
    recipe = cell.folder / "recipe.yaml"
    data = cell.profile.model_dump() | {"recipe": str(recipe), "mix": {}, "sweep": {}}
    for name, content in (("recipe.yaml", cell.recipe.model_dump()), ("profile.yaml", data)):
        write_text(cell.folder / name, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _base_folder(cell: Cell, folder: Path) -> Path:
    """Where the base evaluation that this cell shares with others lies."""
    same = {"model": cell.profile.model.model_dump(), "evaluation": cell.profile.evaluation.model_dump()}
    return folder / "base" / fingerprint(same)[:16]


def _command(cell: Cell, *command: str) -> list[str]:
    arguments = ["--profile", str(cell.folder / "profile.yaml"), "--output-dir", str(cell.folder / "run")]
    return [sys.executable, "-m", "pipeline", *command, *arguments, "--resume"]


class _Orphan:
    """A cell's process that outlived the sweep that started it."""

    def __init__(self, process: psutil.Process):
        self.process, self.returncode = process, 0

    def poll(self) -> int | None:
        return None if self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE else 0

    def terminate(self) -> None:
        self.process.terminate()

    def wait(self) -> None:
        self.process.wait()


def _alive(cell: Cell) -> _Orphan | None:
    """The process that a killed sweep left at work on this cell: two at once would spoil it, so it is waited for."""
    path = cell.folder / "pid"
    try:
        process = psutil.Process(int(path.read_text(encoding="utf-8")))
        return _Orphan(process) if str(cell.folder / "run") in process.cmdline() else None
    except (FileNotFoundError, ValueError, psutil.Error):
        return None


def start(cell: Cell, folder: Path) -> subprocess.Popen[bytes] | _Orphan:
    """Start the cell's run; it finds the base evaluation of its kind where another cell has made it."""
    orphan = _alive(cell)
    if orphan:
        return orphan
    base = _base_folder(cell, folder)
    run = cell.folder / "run"
    if not (run / "run.json").exists():
        shutil.rmtree(run, ignore_errors=True)
    if base.exists() and not (run / "evaluation" / "base").exists():
        with contextlib.suppress(UserError):  # the run itself will fail with the same reason, and say it
            Run.open(load_profile(str(cell.folder / "profile.yaml")), run, resume=True)
            _copy_whole(base, run / "evaluation" / "base")
    for stale in (cell.folder / "failed.json", run / "failure.json"):
        stale.unlink(missing_ok=True)
    with (cell.folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(_command(cell, "run"), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    write_text(cell.folder / "pid", str(process.pid))
    return process


def _run_all(cells: list[Cell], at_once: int, folder: Path) -> None:
    waiting, running = list(cells), dict[int, tuple[Cell, subprocess.Popen[bytes] | _Orphan]]()
    done = 0
    try:
        share_bases(waiting, folder)
        while waiting or running:
            while waiting and len(running) < at_once:
                cell = waiting.pop(0)
                running[cell.number] = (cell, start(cell, folder))
            time.sleep(0.2)
            for number, (cell, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[number]
                done += 1
                outcome = "done" if cell.report.exists() else f"failed: {cell_failure(cell, process.returncode)}"
                say(f"[{done}/{len(cells)}] {cell.name}: {outcome}")
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def share_bases(cells: list[Cell], folder: Path) -> None:
    """Evaluate the base once for each kind of model and evaluation among the cells, and give it to all of them."""
    for cell in cells:
        base = _base_folder(cell, folder)
        if not base.exists():
            say(f"base evaluation for {cell.name}")
            with (cell.folder / "log.txt").open("wb") as log:
                command = [*_command(cell, "evaluate"), "--which", "base"]
                code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
            own = cell.folder / "run" / "evaluation" / "base"
            if code or not own.exists():
                continue  # the cell itself will fail with the same reason, and say it
            _copy_whole(own, base)


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a folder; the copy appears when it is complete."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    os.replace(partial, target)


def log_failure(text: str) -> str | None:
    """The last ``error: …`` of a log, or its last line that is no progress bar; None: there is neither.

    A progress bar that was never closed stands in front of the error on the same line, and may be drawn again after it.
    """
    errors = re.findall(r"(?<![\w.])error: ([^\r\n]+)", text)
    if errors:
        return str(errors[-1]).strip()
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line and not PROGRESS_BAR.search(line)), None)


def cell_failure(cell: Cell, code: int) -> str:
    """Why a cell has no result: the error that its run noted or printed, or the signal that ended it; in ``failed.json``."""
    noted = cell.folder / "run" / "failure.json"
    if noted.exists():
        reason = str(read_json(noted)["error"])
    else:
        printed = log_failure((cell.folder / "log.txt").read_text(encoding="utf-8", errors="replace"))
        reason = f"ended by signal {-code}" if code < 0 else printed or "no output"
    write_json(cell.folder / "failed.json", {"value": cell.value, "seed": cell.seed, "code": code, "reason": reason})
    return reason


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

    from pipeline.files import atomic_path

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
