"""The study of a search, Optuna's part of it: its storage, which trials are tried next, and which count.

In: a search, a storage. Out: batches of trials. What a trial tries depends on the seed, its number, and what was known when its
batch began, so a study that was stopped goes on as if it had not been. Workers that share a storage are seen by their heartbeats.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.core.errors import UserError
from pipeline.studies.search_space import Search

if TYPE_CHECKING:
    import optuna


HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 45  # without a heartbeat, after which a trial counts as killed and is given out again
RETRIES = 3
BATCH = "batch"  # attribute of a trial: the first number of its batch
Sampler = Literal["tpe", "grid"]


# --- the storage --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudySettings:
    """An Optuna study: where it is kept, and how it chooses what is tried.

    Args:
        storage: any URL that Optuna takes; None: in the search's folder. Only then is it known that nobody else works on it.
        name: of the study in its storage.
        prune: stop trials whose validation loss is behind that of the trials of earlier batches.
    """

    storage: str | None = None
    name: str = "search"
    sampler: Sampler = "tpe"
    seed: int = 0
    prune: bool = True


def open_study(search: Search, settings: StudySettings) -> optuna.Study:
    """Create the study, or join it.

    Raises:
        UserError: the storage cannot be reached, or the study of that name tries other things.
    """
    import optuna
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url, sampler, name = url_of(search, settings), settings.sampler, settings.name
    try:
        place = RDBStorage(
            url,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
        )
        study = optuna.create_study(
            storage=place,
            sampler=make_sampler(search, settings, 0),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3) if settings.prune else optuna.pruners.NopPruner(),
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
        raise UserError(gone(url, error)) from error
    identity = search.identity + sampler + ("" if settings.prune else ", no pruning")
    if study.user_attrs.setdefault("identity", identity) != identity:
        raise UserError(
            f"The study {name!r} in {_without_password(url)} tries other things (another profile, space, floor or sampler, or "
            "it has the objective of an earlier version). Choose another --study or --output-dir; nothing was changed."
        )
    study.set_user_attr("identity", identity)
    return study


def url_of(search: Search, settings: StudySettings) -> str:
    """Where the study is kept."""
    return settings.storage or f"sqlite:///{search.folder / 'study.db'}"


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "(no URL)"


def gone(url: str, error: Exception) -> str:
    """That the storage cannot be used, with the database's own reason."""
    while not hasattr(error, "orig") and isinstance(error.__cause__ or error.__context__, Exception):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    reason = str(getattr(error, "orig", None) or error).splitlines()[0]
    return (
        f"The study's storage {_without_password(url)} cannot be used ({reason}). What trials have finished stays in their "
        "folders; run the same command again when it is back, and they are not repeated."
    )


# --- what is tried ------------------------------------------------------------------------------------------------------


def constraints(floor: float) -> Callable[[Any], Sequence[float]]:
    """Optuna's form of "mode fidelity is at least the floor": what is above 0 is violated."""

    def violated(trial: Any) -> Sequence[float]:
        fidelity = trial.user_attrs.get("mode_fidelity")
        return [floor - f for f in fidelity] if fidelity else [1.0, 1.0]

    return violated


def make_sampler(search: Search, settings: StudySettings, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for the trial of that number: one with draws of its own, whatever was drawn before by whom."""
    import optuna

    if settings.sampler == "grid":

        class Grid(optuna.samplers.GridSampler):
            """Without its call to end ``optimize``, which is not used here."""

            def after_trial(self, *_: Any) -> None:
                pass

        return Grid({n: d.grid for n, d in search.space.items()}, seed=settings.seed)
    own = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=own, n_startup_trials=5, constraints_func=constraints(search.floor), constant_liar=True
        )


def next_batch(
    search: Search, study: optuna.Study, trials: int, size: int, settings: StudySettings
) -> list[optuna.Trial]:
    """The trials to run now, with their settings drawn; none: there is nothing left to try.

    Args:
        trials: finished ones that are wanted in all. size: trials at a time.
    """
    import optuna

    known = study.get_trials(deepcopy=False)
    # Where nobody else works on the study, trials at work are those that a killed coordinator has left; they are taken up.
    alone = settings.storage is None
    left = [t for t in known if alone and t.state.name == "RUNNING"]
    number = left[0].user_attrs.get(BATCH, left[0].number) if left else len(known)
    before = [t for t in finished_trials(study) if t.user_attrs.get(BATCH) != number]
    room = min(size, trials - len(before)) - sum(t.user_attrs.get(BATCH) == number for t in known)
    batch = []
    grid = settings.sampler == "grid"
    for trial in left:
        study.sampler = make_sampler(search, settings, trial.number)  # for what it had not drawn yet
        batch.append(optuna.trial.Trial(study, trial._trial_id))
        search.suggest(batch[-1], grid)
    for _ in range(room):
        new = _ask(search, study, settings)
        if new is None:
            break
        new.set_user_attr(BATCH, number)
        search.suggest(new, grid)
        if grid and take_point(new) is not None:
            study.tell(new, state=optuna.trial.TrialState.PRUNED)
            break
        batch.append(new)
    return batch


def _ask(search: Search, study: optuna.Study, settings: StudySettings) -> optuna.Trial | None:
    """A new trial, or that of a worker that was killed; None: the grid is done."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used with")  # see ``heartbeats``
        optuna.storages.fail_stale_trials(study)
        known = study.get_trials(deepcopy=False)
        study.sampler = make_sampler(search, settings, len(known))
        is_done = isinstance(study.sampler, optuna.samplers.GridSampler) and study.sampler.is_exhausted(study)
        return None if is_done and not any(t.state.name == "WAITING" for t in known) else study.ask()


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


@contextmanager
def heartbeats(trials: Sequence[optuna.Trial]) -> Iterator[None]:
    """Let others who work on the same study see that these trials are alive."""
    from optuna.storages._heartbeat import get_heartbeat_thread  # as ``Study.optimize`` does it

    with ExitStack() as beating:
        for trial in trials:
            thread: Any = get_heartbeat_thread(trial._trial_id, trial.storage)
            beating.enter_context(thread)
        yield


# --- what counts --------------------------------------------------------------------------------------------------------


def finished_trials(study: optuna.Study) -> list[Any]:
    """Trials with a result, pruned or failed with a reason; not those of a worker that was killed."""
    return [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and _counts(t)]


def _counts(trial: Any) -> bool:
    if "duplicate_of" in trial.user_attrs:
        return False
    return trial.state.name != "FAIL" or "reason" in trial.user_attrs
