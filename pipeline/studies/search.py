"""Search for hyper-parameters: an Optuna study whose trials are runs of the pipeline.

In: a profile and the ranges of ``search_space.yaml``. Out: a directory with one run a trial, the study (SQLite, or any storage
that Optuna takes), and ``search.json``: every trial with its score, its mode fidelity, its losses and what became of it.

Workers on one machine or on many share a study by its storage. A trial is ``python -m pipeline run`` in a process of its own,
in a folder named by its settings: a trial whose worker was killed is given out again, and goes on where its run stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint, make_folder, read_json, read_jsonl, write_json
from pipeline.core.modes import MODES
from pipeline.settings import Section, load_profile, parse, read_yaml
from pipeline.studies.arms import Cell, resolve
from pipeline.studies.sweep import cell_failure, share_bases, start, write_inputs

if TYPE_CHECKING:
    import optuna


SPACE = Path(__file__).with_name("search_space.yaml")
FLOOR = 0.95  # of mode fidelity, in both modes
HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 45  # without a heartbeat, after which a trial counts as killed and is given out again
RETRIES = 3
OBJECTIVE = (
    "The objective is the mean score of the tuned model over all benchmarks and both modes. A trial may be taken only if its "
    "mode fidelity is at least {floor} in each mode. {pruning}"
)
PRUNING = "A trial is pruned when its validation loss is above the median of the trials before it at the same step."
Sampler = Literal["tpe", "grid"]


# --- the space ----------------------------------------------------------------------------------------------------------


class Dimension(Section):
    """What one setting may be: a range, or choices; ``grid`` is what a grid search takes of it."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[Any] | None = None
    grid: list[Any] = Field(min_length=1)
    source: str = Field(min_length=10)

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("a dimension has either low and high, or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        inside = self.choices if self.choices is not None else [g for g in self.grid if self.low <= g <= self.high]
        if any(value not in inside for value in self.grid):
            raise ValueError(f"the grid {self.grid} leaves the dimension")
        return self


class Fixed(Section):
    """A setting that no search changes."""

    value: Any
    source: str = Field(min_length=10)


class EffectiveBatch(Section):
    """Rows before each optimiser step; reached by accumulation."""

    at_least: int = Field(gt=0)
    source: str = Field(min_length=10)


class Card(Section):
    """Batch size and accumulation for a GPU."""

    model: str
    per_device_train_batch_size: int = Field(gt=0)
    gradient_accumulation_steps: int = Field(gt=0)


class OwnRanges(Section):
    """What differs for a profile."""

    space: dict[str, Dimension] = Field({})
    effective_batch: EffectiveBatch | None = None


class SearchSpace(Section):
    """All of ``search_space.yaml``."""

    space: dict[str, Dimension] = Field(min_length=1)
    fixed: dict[str, Fixed]
    effective_batch: EffectiveBatch
    cards: dict[int, Card]
    profiles: dict[str, OwnRanges]

    def of(self, profile: str) -> dict[str, Dimension]:
        """The dimensions that hold for a profile."""
        own = self.profiles.get(profile)
        return self.space | (own.space if own else {})

    def rows_a_step(self, profile: str) -> int:
        """The smallest effective batch that holds for a profile."""
        own = self.profiles.get(profile)
        return (own.effective_batch if own and own.effective_batch else self.effective_batch).at_least

    def card(self, gib: float) -> Card:
        """Batch size and accumulation for a GPU with so much memory: those of the largest card that is not larger.

        Raises:
            UserError: less memory than the smallest card of the table.
        """
        fitting = [size for size in self.cards if size <= gib]
        if not fitting:
            raise UserError(f"The table begins at {min(self.cards)} GiB; for {gib:g} GiB look at: run --dry-run.")
        return self.cards[max(fitting)]


def load_space(path: Path = SPACE) -> SearchSpace:
    """Read the file of ranges.

    Raises:
        UserError: it does not exist, or a value in it does not pass.
    """
    return parse(SearchSpace, read_yaml(path), str(path))


# --- trials -------------------------------------------------------------------------------------------------------------


@dataclass
class Search:
    """What all workers of a study share."""

    profile: str
    overrides: list[str]
    folder: Path
    space: dict[str, Dimension]
    settings: list[str]  # of all trials, before ``overrides``
    floor: float

    @property
    def identity(self) -> str:
        """Studies with equal ones try the same things."""
        space = {name: dimension.model_dump(exclude={"source"}) for name, dimension in self.space.items()}
        base, recipe = resolve(self.profile, [*self.settings, *self.overrides])
        return fingerprint([base.model_dump(exclude={"sweep"}), recipe.model_dump(), space, self.floor])

    def suggest(self, trial: optuna.Trial, grid: bool) -> list[str]:
        """The trial's settings, as --set takes them."""
        chosen = []
        for name, d in self.space.items():
            value: Any
            if grid or d.choices is not None:
                value = trial.suggest_categorical(name, d.grid if grid else (d.choices or []))
            else:
                assert d.low is not None and d.high is not None
                value = trial.suggest_float(name, d.low, d.high, log=d.log)
            chosen.append(f"{name}={value}")
        return chosen

    def cell(self, number: int, chosen: Sequence[str]) -> Cell:
        """The trial as a run, in a folder named by its settings."""
        profile, recipe = resolve(self.profile, [*self.settings, *chosen, *self.overrides])
        name = fingerprint([profile.model_dump(exclude={"recipe", "mix", "sweep"}), recipe.model_dump()])[:16]
        return Cell(number, f"trial {number}", profile.seed, profile, recipe, self.folder / "trials" / name)


def make_search(profile: str, overrides: list[str], folder: Path, floor: float = FLOOR) -> Search:
    """Check everything that can be checked before a study is opened.

    Raises:
        UserError: a setting that does not exist, or a value that does not fit.
    """
    file = load_space()
    base = load_profile(profile)
    space = {name: d for name, d in file.of(base.name).items() if not any(o.startswith(f"{name}=") for o in overrides)}
    if not space:
        raise UserError("Every setting of the search space is given with --set; nothing is left to search.")
    settings = [f"{name}={'null' if fixed.value is None else fixed.value}" for name, fixed in file.fixed.items()]
    rows = base.training.per_device_train_batch_size
    settings.append(f"training.gradient_accumulation_steps={-(-file.rows_a_step(base.name) // rows)}")
    steps = resolve(profile, [*settings, *overrides])[0].training.max_steps
    if steps > 0:  # four validations a run: three of them can prune it
        settings += [f"training.{name}_steps={max(1, steps // 4)}" for name in ("eval", "save")]
    search = Search(profile, overrides, folder, space, settings, floor)
    checked = search.cell(0, [f"{name}={d.grid[0]}" for name, d in space.items()])
    if not checked.profile.data.validation_fraction:
        raise UserError("A search prunes on the validation loss; set data.validation_fraction above 0.")
    return search


def validation_losses(run: Path) -> dict[int, float]:
    """Validation loss by step so far: of a finished training, else of its newest checkpoint."""
    record = run / "training.json"
    if record.exists():
        return {entry["step"]: entry["loss"] for entry in read_json(record)["eval_loss"]}
    states = sorted(run.glob("checkpoints/checkpoint-*/trainer_state.json"), key=lambda p: int(p.parent.name[11:]))
    for path in reversed(states):
        try:
            history = read_json(path)["log_history"]
        except (UserError, OSError):  # it is being written, or has just been removed
            continue
        return {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    return {}


def run_trial(search: Search, trial: optuna.Trial, settings: list[str], base_made: threading.Lock) -> float:
    """Run one trial with these settings; reports its validation losses, and stops it where the study says so.

    Raises:
        optuna.TrialPruned: it was stopped.
        UserError: the run failed, with its reason.
    """
    import optuna

    cell = search.cell(trial.number, settings)
    trial.set_user_attr("folder", str(cell.folder.relative_to(search.folder)))
    began = time.monotonic()
    write_inputs(cell)
    store = search.folder / "trials"
    with base_made:
        if not cell.report.exists():
            share_bases([cell], store)
    if not cell.report.exists():
        process = start(cell, store)
        try:
            reported: set[int] = set()
            while process.poll() is None:
                time.sleep(0.5)
                for step, loss in validation_losses(cell.folder / "run").items():
                    if step not in reported:
                        reported.add(step)
                        trial.report(-loss, step)  # larger is better, as of the objective
                        if trial.should_prune():
                            raise optuna.TrialPruned(f"validation loss {loss:.4f} at step {step}")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if not cell.report.exists():
            raise UserError(cell_failure(cell, process.returncode or 0))
    tuned = read_json(cell.report)["evaluation"]["tuned"]
    fidelity = [tuned[mode]["mode_fidelity"] for mode in MODES]
    scores = [b["score"] for mode in MODES for b in tuned[mode]["benchmarks"].values()]
    trial.set_user_attr("mode_fidelity", fidelity)
    trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
    return sum(scores) / len(scores)


def take_point(trial: optuna.Trial) -> int | None:
    """Take the trial's point of the grid; where another trial that runs or has finished took it before, that one's number.

    When every point is done or being tried, Optuna's grid sampler hands one of the latter to the next worker that asks, in
    case its first one has died. That is known here anyway: a trial whose worker was killed becomes FAIL, and is tried again.
    """
    for other in trial.study.get_trials(deepcopy=False):
        alive = other.state.name in ("RUNNING", "COMPLETE", "PRUNED") and other.user_attrs.get("taken")
        if other.number != trial.number and alive and other.params == trial.params:
            trial.set_user_attr("duplicate_of", other.number)
            return int(other.number)
    trial.set_user_attr("taken", True)
    return None


# --- the study ----------------------------------------------------------------------------------------------------------


def constraints(floor: float) -> Callable[[Any], Sequence[float]]:
    """Optuna's form of "mode fidelity is at least the floor": what is above 0 is violated."""

    def violated(trial: Any) -> Sequence[float]:
        fidelity = trial.user_attrs.get("mode_fidelity")
        return [floor - f for f in fidelity] if fidelity else [1.0, 1.0]

    return violated


def open_study(
    search: Search, storage: str | None, name: str, sampler: Sampler, seed: int, prune: bool = True
) -> optuna.Study:
    """Create the study, or join it.

    Raises:
        UserError: the storage cannot be reached, or the study of that name tries other things.
    """
    import optuna
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = storage or f"sqlite:///{search.folder / 'study.db'}"
    chosen: optuna.samplers.BaseSampler
    if sampler == "grid":
        chosen = optuna.samplers.GridSampler({n: d.grid for n, d in search.space.items()}, seed=seed)
    else:
        chosen = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=5, constraints_func=constraints(search.floor), constant_liar=True
        )
    try:
        place = RDBStorage(
            url,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
        )
        study = optuna.create_study(
            storage=place,
            sampler=chosen,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3) if prune else optuna.pruners.NopPruner(),
            study_name=name,
            direction="maximize",
            load_if_exists=True,
        )
    except (ArgumentError, ImportError) as error:
        raise UserError(
            f"--storage {_without_password(url)}: {str(error).splitlines()[0]}. Give a URL that SQLAlchemy knows, such as "
            "sqlite:///study.db or postgresql://user@host/name, and install its driver."
        ) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(_gone(url, error)) from error
    identity = search.identity + sampler + ("" if prune else ", no pruning")
    if study.user_attrs.setdefault("identity", identity) != identity:
        raise UserError(
            f"The study {name!r} in {_without_password(url)} tries other things (another profile, space, floor or sampler). "
            "Choose another --study or --output-dir; nothing was changed."
        )
    study.set_user_attr("identity", identity)
    return study


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "(no URL)"


def _gone(url: str, error: Exception) -> str:
    while not hasattr(error, "orig") and isinstance(error.__cause__ or error.__context__, Exception):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    reason = str(getattr(error, "orig", None) or error).splitlines()[0]
    return (
        f"The study's storage {_without_password(url)} cannot be used ({reason}). What trials have finished stays in their "
        "folders; run the same command again when it is back, and they are not repeated."
    )


def run_search(
    profile: str,
    folder: Path,
    trials: int,
    overrides: list[str] | None = None,
    *,
    storage: str | None = None,
    name: str = "search",
    sampler: Sampler = "tpe",
    seed: int = 0,
    workers: int = 1,
    floor: float = FLOOR,
    prune: bool = True,
) -> dict[str, Any]:
    """Work on the study until it has ``trials`` finished trials in all, or the grid is done.

    Args:
        workers: trials at a time, of this command; others may work on the same study elsewhere.
        prune: stop trials whose validation loss is behind. Which ones depends on what has finished before them, so with
            several workers only a study without pruning gives the same trials each time.

    Returns:
        What ``search.json`` holds.

    Raises:
        UserError: see ``make_search`` and ``open_study``; or the storage went away in the middle.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    search = make_search(profile, list(overrides or []), folder, floor)
    make_folder(folder)
    study = open_study(search, storage, name, sampler, seed, prune)
    base_made, points = threading.Lock(), threading.Lock()

    def objective(trial: optuna.Trial) -> float:
        with points:
            settings = search.suggest(trial, sampler == "grid")
            first = take_point(trial) if sampler == "grid" else None
        if first is not None:
            raise optuna.TrialPruned(f"trial {first} has the same point of the grid")
        try:
            return run_trial(search, trial, settings, base_made)
        except UserError as error:
            trial.set_user_attr("reason", str(error))
            raise

    def stop_when_done(study: optuna.Study, _: Any) -> None:
        if len(_finished(study)) >= trials:
            study.stop()

    try:
        if len(_finished(study)) < trials:
            study.optimize(
                objective, n_jobs=workers, callbacks=[stop_when_done], catch=(UserError,), show_progress_bar=False
            )
        return summarise(search, study, prune)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, UnboundLocalError) as error:
        # Optuna 5.0 trips over a variable of its own when the storage fails while a result is being told.
        if isinstance(error, UnboundLocalError) and not isinstance(error.__context__, optuna.exceptions.OptunaError):
            raise
        raise UserError(_gone(storage or f"sqlite:///{folder / 'study.db'}", error)) from error


def _finished(study: optuna.Study) -> list[Any]:
    """Trials with a result, pruned or failed with a reason; not those of a worker that was killed."""
    return [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and _counts(t)]


def _counts(trial: Any) -> bool:
    if "duplicate_of" in trial.user_attrs:
        return False
    return trial.state.name != "FAIL" or "reason" in trial.user_attrs


# --- what came out ------------------------------------------------------------------------------------------------------


def summarise(search: Search, study: optuna.Study, prune: bool = True) -> dict[str, Any]:
    """Write ``search.json`` and ``search.png``."""
    import optuna

    entries: list[dict[str, Any]] = []
    for trial in study.get_trials(deepcopy=False):
        if "duplicate_of" in trial.user_attrs:
            continue
        entry: dict[str, Any] = {"number": trial.number, "state": trial.state.name.lower(), "params": trial.params}
        entry |= {"score": trial.value if trial.state.name == "COMPLETE" else None}
        entry |= {key: trial.user_attrs.get(key) for key in ("mode_fidelity", "seconds", "folder", "reason")}
        entry["validation_loss"] = {str(step): -value for step, value in trial.intermediate_values.items()}
        fidelity = entry["mode_fidelity"]
        entry["feasible"] = bool(fidelity) and min(fidelity) >= search.floor
        entries.append(entry)
    complete = [e for e in entries if e["state"] == "complete"]
    best = max((e for e in complete if e["feasible"]), key=lambda e: e["score"], default=None)
    if best:
        best = best | {"ci95": _interval(search.folder / best["folder"])}
    importance = {}
    if len(complete) >= 8 and len({e["score"] for e in complete}) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        importance = optuna.importance.get_param_importances(study, evaluator=evaluator)
    result = {
        "study": study.study_name,
        "objective": OBJECTIVE.format(floor=search.floor, pruning=PRUNING if prune else "No trial is pruned."),
        "space": {name: d.model_dump() for name, d in search.space.items()},
        "trials": entries,
        "best": best,
        "importance": importance,
    }
    write_json(search.folder / "search.json", result)
    draw(result, search.folder / "search.png")
    return result


def _interval(cell: Path) -> list[float]:
    """95 % interval over items of a trial's objective."""
    import numpy as np

    from pipeline.core.statistics import bootstrap, interval95

    scores: dict[str, Any] = {}
    for mode in MODES:
        rows = read_jsonl(cell / "run" / "evaluation" / "tuned" / mode / "predictions.jsonl")
        for benchmark in {row["benchmark"] for row in rows}:
            own = [float(row["score"]) for row in rows if row["benchmark"] == benchmark]
            scores[f"{mode}/{benchmark}"] = np.array(own)[None, None]
    draws = bootstrap(scores, lambda drawn: np.array(np.mean([a.mean() for a in drawn.values()])))
    return [float(end) for end in interval95(draws)]


def table(result: dict[str, Any]) -> str:
    """``search.json`` for a terminal: one line a trial, the best first."""
    names = list(result["space"])
    heads = ["trial", *(name.rpartition(".")[2] for name in names), "score", "fidelity (think, direct)", "outcome"]
    ordered = sorted(result["trials"], key=lambda t: (not t["feasible"], -(t["score"] or 0), t["number"]))
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for t in ordered:
        params = [_number(t["params"].get(name)) for name in names]
        fidelity = ", ".join(f"{f:.3f}" for f in t["mode_fidelity"] or [])
        outcome = "feasible" if t["feasible"] else "below the floor" if t["state"] == "complete" else t["state"]
        losses = list(t["validation_loss"].items())
        if t["state"] == "pruned" and losses:
            outcome += f" at step {losses[-1][0]}, validation loss {losses[-1][1]:.3f}"
        if t["reason"]:
            outcome += f": {t['reason']}"
        score = "" if t["score"] is None else f"{t['score']:.3f}"
        lines.append(f"| {' | '.join([str(t['number']), *params, score, fidelity, outcome])} |")
    best = result["best"]
    if best:
        low, high = best["ci95"]
        lines += ["", f"best: trial {best['number']}, {best['score']:.3f} [{low:.3f}, {high:.3f}] (95 % over items)"]
        lines.append("  " + " ".join(f"--set {name}={value}" for name, value in best["params"].items()))
    else:
        lines += ["", "no trial keeps both modes; nothing can be recommended"]
    if result["importance"]:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in result["importance"].items())
        lines.append(f"importance (fANOVA): {shares}")
    return "\n".join([*lines, result["objective"]])


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(result: dict[str, Any], path: Path) -> None:
    """Score and lowest mode fidelity of each finished trial."""
    from matplotlib.figure import Figure

    from pipeline.core.files import atomic_path

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    done = [t for t in result["trials"] if t["score"] is not None]
    for feasible, colour, label in ((True, "#0072b2", "score"), (False, "#d55e00", "score, below the floor")):
        own = [t for t in done if t["feasible"] == feasible]
        axes.plot([t["number"] for t in own], [t["score"] for t in own], "o", color=colour, label=label)
    axes.plot(
        [t["number"] for t in done], [min(t["mode_fidelity"]) for t in done], "x", color="#999999", label="fidelity"
    )
    axes.set(xlabel="trial", ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
