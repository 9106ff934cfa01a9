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
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from pipeline.core.console import say
from pipeline.core.errors import UserError, nearest
from pipeline.core.files import fingerprint, read_json, require_folder, write_json, write_text
from pipeline.core.place import ROOT
from pipeline.run import Run
from pipeline.settings import (
    Profile,
    load_profile,
)
from pipeline.studies.arms import SweepCell, load_arms, plan_arms, plan_axis
from pipeline.studies.cells import note_failure, write_inputs
from pipeline.studies.coordinator import only_coordinator
from pipeline.studies.curve import summarise_sweep
from pipeline.studies.engine import LOCAL, StudyEngine, remembered_store
from pipeline.studies.failures import reason_of
from pipeline.studies.on_ray import fetch_done, run_on_ray
from pipeline.studies.results import Sweep
from pipeline.studies.storage import Storage

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
    engine: StudyEngine = LOCAL,
) -> Sweep:
    """Run all cells that are not done, then summarise_sweep; see the module's docstring.

    Args:
        workers: runs at a time; None: as many as the cores allow at the profile's number of threads, on a GPU one.
        arms: a file of arms, instead of axis and values.
        cells_folder: see ``plan_axis``.
        only: names of arms to run; none: all.
        engine: where cells run (``pipeline.studies.engine``); each takes up what another has left.

    Returns:
        What ``sweep.json`` holds; ``failed`` names cells without a result, with the reason.

    Raises:
        UserError: see ``plan_axis``; or the directory belongs to another sweep, or another coordinator works on it; or every
            cell failed; or the engine or its storage cannot be used.
    """
    question = ""
    if arms:
        compared = load_arms(arms)
        if unknown := [name for name in only if name not in compared.arms]:
            raise UserError(f"{arms} has no arm {unknown[0]!r}.{nearest(unknown[0], compared.arms)}")
        if only:
            compared.arms = {name: arm for name, arm in compared.arms.items() if name in only}
        key, question, values = Path(arms).stem, compared.question, list(compared.arms)
        cells = plan_arms(profile, overrides or [], compared, seeds, folder, cells_folder)
    else:
        key, cells = plan_axis(profile, overrides or [], axis, values, seeds, folder, cells_folder)
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
    with only_coordinator(Storage(str(folder))):
        for cell in cells:
            write_inputs(cell)
        root = cells_folder or folder
        store = remembered_store(folder, engine)
        if store:
            fetch_done([cell for cell in cells if not cell.report.exists()], root, Storage(store))
        waiting = [cell for cell in cells if not cell.report.exists()]
        if engine.name == "ray":
            for cell in waiting:
                _wait_for_orphan(cell)
            run_on_ray(waiting, root, engine, store or str(root), folder, workers, None if cells_folder else identity)
        else:
            _run_all(waiting, workers or runs_at_once(cells[0].profile), root)
        return summarise_sweep(key, cells, folder, question)


def runs_at_once(profile: Profile) -> int:
    """How many runs share this machine: on a GPU one, as each takes the memory of a card; else as the cores allow."""
    import torch

    if torch.cuda.is_available():
        return 1
    cores = os.cpu_count() or 1
    return max(1, cores // (profile.model.cpu_threads or cores))


def _base_folder(cell: SweepCell, folder: Path) -> Path:
    """Where the base evaluation that this cell shares with others lies."""
    return folder / cell.base_key


def _command(cell: SweepCell, *command: str) -> list[str]:
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


def _alive(cell: SweepCell) -> _Orphan | None:
    """The process that a killed sweep left at work on this cell: two at once would spoil it, so it is waited for."""
    path = cell.folder / "pid"
    try:
        process = psutil.Process(int(path.read_text(encoding="utf-8")))
        return _Orphan(process) if str(cell.folder / "run") in process.cmdline() else None
    except (FileNotFoundError, ValueError, psutil.Error):
        return None


def _wait_for_orphan(cell: SweepCell) -> None:
    if orphan := _alive(cell):
        say(f"{cell.name} is still at work, started by a sweep that has ended: waiting for it")
        orphan.wait()


def start(cell: SweepCell, folder: Path) -> subprocess.Popen[bytes] | _Orphan:
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


def _run_all(cells: list[SweepCell], at_once: int, folder: Path) -> None:
    waiting, running = list(cells), dict[int, tuple[SweepCell, subprocess.Popen[bytes] | _Orphan]]()
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


def share_bases(cells: list[SweepCell], folder: Path) -> None:
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


def cell_failure(cell: SweepCell, code: int) -> str:
    """Why a cell has no result: the error that its run noted or printed, or the signal that ended it; in ``failed.json``."""
    reason = reason_of(cell.folder, code)
    note_failure(cell, code, reason)
    return reason
