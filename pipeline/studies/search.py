"""Search for hyper-parameters: an Optuna study whose trials are runs of the pipeline.

In: a profile and the ranges of ``search_space.yaml``. Out: a directory with one run a trial, the study (SQLite, or any storage
that Optuna takes), and ``search.json`` (``pipeline.studies.search_result``): every trial with its balance, its mode fidelity,
its losses and what became of it, beside the untouched base.

Workers on one machine or on many share a study by its storage. A trial is ``python -m pipeline run`` in a process of its own,
in a folder named by its settings: a trial whose worker was killed is given out again, and goes on where its run stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.core.errors import UserError
from pipeline.core.files import make_folder, read_json
from pipeline.studies.cells import write_inputs
from pipeline.studies.curve import FIDELITY_FLOOR
from pipeline.studies.results import SearchResult
from pipeline.studies.search_result import measure_trial, summarise_search
from pipeline.studies.search_space import Search, make_search
from pipeline.studies.sweep import cell_failure, share_bases, start

if TYPE_CHECKING:
    import optuna


HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 45  # without a heartbeat, after which a trial counts as killed and is given out again
RETRIES = 3
Sampler = Literal["tpe", "grid"]


# --- trials -------------------------------------------------------------------------------------------------------------


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

    Returns:
        Its balance (``pipeline.studies.search_result.OBJECTIVE``).

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
    reported: set[int] = set()
    with base_made:
        if not cell.report.exists():
            share_bases([cell], store)
    if not cell.report.exists():
        process = start(cell, store)
        try:
            while process.poll() is None:
                time.sleep(0.5)
                for step, loss in _report_losses(trial, cell.folder / "run", reported):
                    if trial.should_prune():
                        raise optuna.TrialPruned(f"validation loss {loss:.4f} at step {step}")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if not cell.report.exists():
            raise UserError(cell_failure(cell, process.returncode or 0))
    list(_report_losses(trial, cell.folder / "run", reported))  # the last ones, or those of a run that was done before
    measured = measure_trial(cell)
    for key, value in measured.items():
        trial.set_user_attr(key, value)
    trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
    return measured["balance"]


def _report_losses(trial: optuna.Trial, run: Path, reported: set[int]) -> Iterator[tuple[int, float]]:
    """Report the validation losses that are new, and give each with its step."""
    for step, loss in validation_losses(run).items():
        if step not in reported:
            reported.add(step)
            trial.report(-loss, step)  # larger is better, as of the objective
            yield step, loss


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
            f"The study {name!r} in {_without_password(url)} tries other things (another profile, space, floor or sampler, or "
            "it has the objective of an earlier version). Choose another --study or --output-dir; nothing was changed."
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
    floor: float = FIDELITY_FLOOR,
    prune: bool = True,
) -> SearchResult:
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
        return summarise_search(study, search.space, search.floor, search.folder, prune)
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
