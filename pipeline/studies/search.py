"""Search for hyper-parameters: an Optuna study whose trials are runs of the pipeline.

In: a profile and the ranges of ``search_space.yaml``. Out: a directory with one run a trial, the study (SQLite, or any storage
that Optuna takes), and ``search.json`` (``pipeline.studies.search_result``): every trial with its balance, its mode fidelity,
its losses and what became of it, beside the untouched base.

Trials go in batches: as many as run at a time are drawn one after the other, run where the engine says, and their results are
told in the order of their numbers when all have ended. So which trials a study tries, and which it stops, depends on the seed and
on how many run at a time; not on the engine, nor on which trial was faster.

A trial is ``python -m pipeline run`` in a process of its own, in a folder named by its settings: where one was interrupted, its
run goes on. Commands with folders of their own may share a study by its storage; what they try then depends on their speed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.files import make_folder
from pipeline.studies.arms import SweepCell
from pipeline.studies.cells import failure_of, write_inputs
from pipeline.studies.coordinator import only_coordinator
from pipeline.studies.curve import FIDELITY_FLOOR
from pipeline.studies.engine import LOCAL, StudyEngine
from pipeline.studies.on_ray import cluster
from pipeline.studies.results import SearchResult
from pipeline.studies.running import Cells, run_cells
from pipeline.studies.search_result import measure_trial, summarise_search
from pipeline.studies.search_space import Search, make_search
from pipeline.studies.search_study import (
    StudySettings,
    gone,
    heartbeats,
    next_batch,
    open_study,
    url_of,
)
from pipeline.studies.storage import Storage

if TYPE_CHECKING:
    import optuna

OWN = StudySettings()  # in the search's folder


# --- trials -------------------------------------------------------------------------------------------------------------


@dataclass
class TrialRun:
    """A trial and its run.

    Args:
        reported: steps whose loss the study knows.
    """

    trial: optuna.Trial
    cell: SweepCell
    reported: set[int]
    pruned: bool
    seconds: float = 0.0

    def watch(self, losses: dict[int, float]) -> bool:
        """Report the losses that are new, in the order of their steps; whether the study stops the trial by one of them.

        Losses are judged one by one, also where a run was so fast that several came at once, or had ended: a trial is pruned by
        what its losses are, not by when they are seen.
        """
        for step, loss in sorted(losses.items()):
            if step not in self.reported and not self.pruned:
                self.trial.report(-loss, step)  # larger is better, as of the objective
                self.reported.add(step)
                self.pruned = self.trial.should_prune()
        return self.pruned


def run_batch(search: Search, trials: list[optuna.Trial], engine: StudyEngine, at_once: int) -> None:
    """Run trials whose settings are drawn, and tell the study what became of them.

    Raises:
        UserError: see ``pipeline.studies.running.run_cells``; the trials are taken up by the next call.
    """
    began = time.monotonic()
    root = search.folder / "trials"
    runs: dict[Path, list[TrialRun]] = defaultdict(list)  # trials with the same settings have one run
    for trial in trials:
        cell = search.cell(trial.number, [f"{name}={value}" for name, value in trial.params.items()])
        trial.set_user_attr("folder", cell.folder.relative_to(search.folder).as_posix())
        write_inputs(cell)
        reported = trial.storage.get_trial(trial._trial_id).intermediate_values
        runs[cell.folder].append(TrialRun(trial, cell, set(reported), trial.should_prune()))

    def watch(cell: SweepCell, losses: dict[int, float]) -> bool:
        own = runs[cell.folder]
        for run in own:
            run.seconds = round(time.monotonic() - began, 1)
        return all([run.watch(losses) for run in own])

    with heartbeats(trials):
        run_cells(
            [own[0].cell for own in runs.values()], Cells(root, search.folder, engine, search.identity), at_once, watch
        )
        for run in sorted((run for own in runs.values() for run in own), key=lambda run: run.trial.number):
            tell(run)


def tell(run: TrialRun) -> None:
    """Tell the study what became of a trial: stopped, measured, or failed with a reason."""
    import optuna

    trial, study, states = run.trial, run.trial.study, optuna.trial.TrialState
    if run.pruned:
        study.tell(trial, state=states.PRUNED)
        return
    try:
        if not run.cell.report.exists():
            raise UserError(failure_of(run.cell))
        measured = measure_trial(run.cell)
    except UserError as error:
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=states.FAIL)
        return
    for key, value in measured.items():
        trial.set_user_attr(key, value)
    trial.set_user_attr("seconds", run.seconds)
    study.tell(trial, measured["balance"])


# --- the study ----------------------------------------------------------------------------------------------------------


def run_search(
    profile: str,
    folder: Path,
    trials: int,
    overrides: list[str] | None = None,
    study: StudySettings = OWN,
    workers: int = 1,
    floor: float = FIDELITY_FLOOR,
    engine: StudyEngine = LOCAL,
) -> SearchResult:
    """Work on the study until it has ``trials`` finished trials in all, or the grid is done.

    Args:
        study: where it is kept, and how it chooses what is tried.
        workers: trials at a time, a batch; see the module's docstring.
        floor: of mode fidelity.
        engine: where trials run (``pipeline.studies.engine``); each takes up what another has left.

    Returns:
        What ``search.json`` holds.

    Raises:
        UserError: see ``make_search`` and ``open_study``; another coordinator works in the folder; the storage went away in the
            middle; or the engine or its storage cannot be used.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    search = make_search(profile, list(overrides or []), folder, floor)
    make_folder(folder)
    connected: AbstractContextManager[Any] = cluster(engine.address) if engine.name == "ray" else nullcontext()
    with only_coordinator(Storage(str(folder))), connected:
        opened = open_study(search, study)
        try:
            while batch := next_batch(search, opened, trials, workers, study):
                run_batch(search, batch, engine, workers)
            return summarise_search(opened, search.space, search.floor, search.folder, study.prune)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise UserError(gone(url_of(search, study), error)) from error
