"""The local pool: cells as processes of this machine, so many at a time.

In: cells whose profile and recipe are written. Out: a run beside each, or ``failed.json`` with the reason. The base evaluation
that cells share is made before the first of them, and copied.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

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


def wait_for_orphan(cell: SweepCell) -> None:
    if orphan := _alive(cell):
        say(f"{cell.name} is still at work, started by a sweep that has ended: waiting for it")
        orphan.wait()


def _start(cell: SweepCell, folder: Path) -> subprocess.Popen[bytes] | _Orphan:
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


def run_in_pool(cells: list[SweepCell], at_once: int, folder: Path, watch: CellWatch | None = None) -> None:
    """Run cells; see the module's docstring.

    Args:
        folder: where the base evaluations lie that cells share.
        watch: see ``pipeline.studies.engine.CellWatch``; a cell that it stops has neither a report nor ``failed.json``.
    """
    waiting, running = list(cells), dict[int, tuple[SweepCell, subprocess.Popen[bytes] | _Orphan]]()
    done = 0
    try:
        _share_bases(waiting, folder)
        while waiting or running:
            while waiting and len(running) < at_once:
                cell = waiting.pop(0)
                running[cell.number] = (cell, _start(cell, folder))
            time.sleep(LOOK_SECONDS)
            for number, (cell, process) in list(running.items()):
                ended = process.poll() is not None
                stopped = watch is not None and watch(cell, validation_losses(cell.folder / "run"))
                if not ended and not stopped:
                    continue
                if not ended:
                    process.terminate()
                    process.wait()
                del running[number]
                done += 1
                say(f"[{done}/{len(cells)}] {cell.name}: {_outcome(cell, process, stopped)}")
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def _outcome(cell: SweepCell, process: subprocess.Popen[bytes] | _Orphan, stopped: bool) -> str:
    if stopped:
        return "stopped"
    return "done" if cell.report.exists() else f"failed: {cell_failure(cell, process.returncode or 0)}"


def _share_bases(cells: list[SweepCell], folder: Path) -> None:
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
