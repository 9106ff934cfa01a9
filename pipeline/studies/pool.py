"""The local pool: cells as processes of this machine, so many at a time.

In: cells whose profile and recipe are written. Out: a run beside each, or ``failed.json`` with the reason. The base evaluation
that cells share is made once, and copied; until it is there, the other processes train.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import write_text
from pipeline.core.place import ROOT
from pipeline.run import Run
from pipeline.settings import Profile, load_profile
from pipeline.studies.arms import SweepCell
from pipeline.studies.cells import note_failure
from pipeline.studies.engine import CellWatch
from pipeline.studies.failures import reason_of
from pipeline.studies.losses import validation_losses

LOOK_SECONDS = 0.2
Kind = Literal["evaluate", "train", "run"]  # a command of the pipeline; the first is of the base alone


def runs_at_once(profile: Profile) -> int:
    """How many runs share this machine: on a GPU one, as each takes the memory of a card; else as the cores allow."""
    import torch

    if torch.cuda.is_available():
        return 1
    cores = os.cpu_count() or 1
    return max(1, cores // (profile.model.cpu_threads or cores))


def _command(cell: SweepCell, kind: Kind) -> list[str]:
    arguments = ["--profile", str(cell.folder / "profile.yaml"), "--output-dir", str(cell.folder / "run"), "--resume"]
    return [sys.executable, "-m", "pipeline", kind, *arguments, *(["--which", "base"] if kind == "evaluate" else [])]


class _Orphan:
    """A cell's process that outlived the sweep that started it."""

    def __init__(self, process: psutil.Process, kind: Kind):
        self.process, self.kind, self.returncode = process, kind, 0

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
        words = process.cmdline()
    except (FileNotFoundError, ValueError, psutil.Error):
        return None
    kinds: tuple[Kind, ...] = ("evaluate", "train", "run")
    return next((_Orphan(process, kind) for kind in kinds if {kind, str(cell.folder / "run")} <= set(words)), None)


def wait_for_orphan(cell: SweepCell) -> None:
    if orphan := _alive(cell):
        say(f"{cell.name} is still at work, started by a sweep that has ended: waiting for it")
        orphan.wait()


@dataclass
class _Job:
    """A process at work on a cell."""

    kind: Kind
    cell: SweepCell
    process: subprocess.Popen[bytes] | _Orphan


class _Work:
    """What is left to do, and in which order: bases; cells whose base is there; trainings of cells that wait for theirs."""

    def __init__(self, cells: Sequence[SweepCell], folder: Path):
        self.cells, self.folder = list(cells), folder
        self.ended: set[str] = set()  # keys of bases that were tried; where that failed, the cells say why
        self.trained: set[int] = set()  # numbers of cells

    def _waits(self, cell: SweepCell) -> bool:
        return cell.base_key not in self.ended and not (self.folder / cell.base_key).exists()

    def next(self, running: dict[int, _Job]) -> tuple[Kind, SweepCell] | None:
        """What to begin now, if there is anything; ``running``: by the number of the cell."""
        free = [cell for cell in self.cells if cell.number not in running]
        evaluated = {job.cell.base_key for job in running.values() if job.kind == "evaluate"}
        for cell in free:
            if self._waits(cell) and cell.base_key not in evaluated:
                return "evaluate", cell
        for cell in free:
            if not self._waits(cell):
                return "run", cell
        return next((("train", cell) for cell in free if cell.number not in self.trained), None)

    def start(self, kind: Kind, cell: SweepCell) -> _Job:
        """Start it, or take over the process that is at work on the cell already."""
        if orphan := _alive(cell):
            return _Job(orphan.kind, cell, orphan)
        run = cell.folder / "run"
        if not (run / "run.json").exists():
            shutil.rmtree(run, ignore_errors=True)
        base = self.folder / cell.base_key
        if kind == "evaluate":
            say(f"base evaluation for {cell.name}")
        elif kind == "train":
            say(f"{cell.name}: training, while the base is evaluated")
        elif base.exists() and not (run / "evaluation" / "base").exists():
            with contextlib.suppress(UserError):  # the run itself will fail with the same reason, and say it
                Run.open(load_profile(str(cell.folder / "profile.yaml")), run, resume=True)
                _copy_whole(base, run / "evaluation" / "base")
        for stale in (cell.folder / "failed.json", run / "failure.json"):
            stale.unlink(missing_ok=True)
        goes_on = kind == "run" and cell.number in self.trained
        with (cell.folder / "log.txt").open("ab" if goes_on else "wb") as log:
            process = subprocess.Popen(_command(cell, kind), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        write_text(cell.folder / "pid", str(process.pid))
        return _Job(kind, cell, process)

    def end(self, job: _Job) -> bool:
        """Take up what a process left; whether the cell is done."""
        if job.kind != "run" and isinstance(job.process, _Orphan):
            return False  # how it ended is not known: it is begun again, and goes on with what is there
        if job.kind == "evaluate":
            own, base = job.cell.folder / "run" / "evaluation" / "base", self.folder / job.cell.base_key
            if own.exists() and not job.process.returncode and not base.exists():
                _copy_whole(own, base)
            self.ended.add(job.cell.base_key)
        elif job.kind == "train":
            self.trained.add(job.cell.number)
        else:
            self.cells.remove(job.cell)
        return job.kind == "run"


def run_in_pool(cells: list[SweepCell], at_once: int, folder: Path, watch: CellWatch | None = None) -> None:
    """Run cells; see the module's docstring.

    Args:
        folder: where the base evaluations lie that cells share.
        watch: see ``pipeline.studies.engine.CellWatch``; a cell that it stops has neither a report nor ``failed.json``.
    """
    work, running = _Work(cells, folder), dict[int, _Job]()
    try:
        while work.cells:
            while len(running) < at_once and (job := work.next(running)):
                running[job[1].number] = work.start(*job)
            time.sleep(LOOK_SECONDS)
            for number, at_work in list(running.items()):
                cell, process = at_work.cell, at_work.process
                ended = process.poll() is not None
                stopped = False
                if watch is not None and at_work.kind != "evaluate":
                    stopped = watch(cell, validation_losses(cell.folder / "run"))
                if not ended and not stopped:
                    continue
                if not ended:
                    process.terminate()
                    process.wait()
                del running[number]
                if stopped:
                    work.cells.remove(cell)
                elif not work.end(at_work):
                    continue
                say(f"[{len(cells) - len(work.cells)}/{len(cells)}] {cell.name}: {_outcome(cell, process, stopped)}")
    finally:
        for at_work in running.values():
            at_work.process.terminate()
        for at_work in running.values():
            at_work.process.wait()


def _outcome(cell: SweepCell, process: subprocess.Popen[bytes] | _Orphan, stopped: bool) -> str:
    if stopped:
        return "stopped"
    return "done" if cell.report.exists() else f"failed: {cell_failure(cell, process.returncode or 0)}"


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
