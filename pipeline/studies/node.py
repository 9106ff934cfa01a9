"""A cell on another machine: its run in a scratch folder of that machine, and what it made in the study's storage.

In: an order, plain JSON, so that an engine has nothing to understand. Out: an outcome, plain JSON too. The scratch
folder is removed whatever happens; of a worker that was killed, by the next one on that machine. The run itself ends with
the worker (``pipeline.model.engines.guard``).

A cell that is done in the storage is not run again, so an order may be carried out twice.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from typing_extensions import TypedDict

from pipeline.core.errors import UserError
from pipeline.core.place import PACKAGE, ROOT
from pipeline.core.versions import installed
from pipeline.model.engines import guard
from pipeline.settings import load_profile
from pipeline.studies.failures import reason_of
from pipeline.studies.losses import validation_losses
from pipeline.studies.storage import Storage

REPORT = "report.json"  # the last file of a run
FOLDER, PYTHON = "{scratch folder}", "{python of the node}"  # stand for what only the node knows
TOKEN = "storage.json"  # by which a node sees that its storage is the coordinator's
LOOK_SECONDS = 1.0  # between looks at a run's losses
Code = dict[str, str | None]


class Order(TypedDict):
    """What a node is told about a cell, or about a base evaluation that cells share."""

    name: str  # for people
    store: str  # URL or folder
    token: str
    key: str  # where the result goes, below the store
    part: str  # of the run folder: "" all of it
    base: str | None  # key of the base evaluation to begin with
    files: dict[str, str]  # profile.yaml and recipe.yaml, with FOLDER
    program: list[str]  # with FOLDER and PYTHON
    watched: bool  # note the validation losses in the storage while it runs
    keep_threads: bool  # the profile says how many threads; the engine's own variable must not
    code: Code  # versions that a node must have


class Outcome(TypedDict):
    """What became of an order."""

    node: str
    state: str  # done, failed, stopped: by the study, stop: nothing else can be done either
    code: int
    reason: str
    seconds: float


@functools.cache
def code_here() -> Code:
    """The versions that decide what a run gives: Python, the pinned packages, and this package's own source."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return {"python": platform.python_version(), "the project's source": digest.hexdigest()[:12], **installed()}


def work(order: Order) -> Outcome:
    """Carry out an order; never raises for what the user can mend, as engines show exceptions badly."""
    began = time.monotonic()

    def outcome(state: str, reason: str = "", code: int = 0) -> Outcome:
        seconds = round(time.monotonic() - began, 2)
        return {"node": socket.gethostname(), "state": state, "code": code, "reason": reason, "seconds": seconds}

    here = code_here()
    if other := [f"{name} {here.get(name)} instead of {v}" for name, v in order["code"].items() if here.get(name) != v]:
        return outcome("stop", f"{socket.gethostname()} has {', '.join(other)}. Install the same version on all nodes.")
    try:
        storage = Storage(order["store"])
        if (storage.read(TOKEN) or {}).get("token") != order["token"]:
            place = storage.path("")
            return outcome("stop", f"{place} on {socket.gethostname()} is not the coordinator's. {SHARE}")
        if storage.has(order["key"], REPORT if not order["part"] else ""):
            return outcome("done")
        with _scratch() as folder:
            code = _run(order, storage, folder)
            made = folder / "run" / order["part"]
            if code == 0 and (made / REPORT if not order["part"] else made).exists():
                storage.put(made, order["key"])
                return outcome("done")
            return outcome("failed", reason_of(folder, code), code)
    except UserError as error:
        return outcome("stop", str(error))


SHARE = "Give a folder that all nodes see by --store, or a URL such as s3://bucket/folder."


def _run(order: Order, storage: Storage, folder: Path) -> int:
    for name, text in order["files"].items():
        (folder / name).write_text(text.replace(FOLDER, str(folder)), encoding="utf-8", newline="\n")
    run = folder / "run"
    if order["base"] and storage.has(order["base"]):
        begin_with_base(folder, run, storage, order["base"])
    command = [part.replace(FOLDER, str(folder)).replace(PYTHON, sys.executable) for part in order["program"]]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, guard.__file__, *command],
            cwd=ROOT,
            env=_environment(order["keep_threads"]),
            stdin=subprocess.PIPE,  # the guard ends the run when this closes
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        with process:
            if order["watched"]:
                _note_losses(process, run, storage, losses_key(order["key"]))
            code = process.wait()
    return code - 256 if code > 192 else code  # the guard ends with the status of what it ran: -9 is 247 to a shell


def losses_key(key: str) -> str:
    """Where the validation losses of a cell stand that is at work, or has failed: beside its run."""
    return f"{key.rpartition('/')[0]}/losses.json"


def _note_losses(process: subprocess.Popen[bytes], run: Path, storage: Storage, key: str) -> None:
    """Until the run has ended, and once more then: those of a run that failed are known, too."""
    noted: dict[int, float] = {}
    ended = False
    while not ended:
        try:
            process.wait(LOOK_SECONDS)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        losses = validation_losses(run)
        if losses != noted:
            storage.write(key, list(losses.items()))
            noted = losses


def begin_with_base(folder: Path, run: Path, storage: Storage, key: str) -> None:
    """A run directory that holds the base evaluation which cells share."""
    from pipeline.run import Run

    try:
        Run.open(load_profile(str(folder / "profile.yaml")), run, resume=True)
    except UserError:
        return  # the run itself will fail with the same reason, and say it
    storage.get(key, run / "evaluation" / "base")


def _environment(keep_threads: bool) -> dict[str, str]:
    own = dict(os.environ)
    if keep_threads:
        own.pop("OMP_NUM_THREADS", None)  # Ray sets it to the cores that a task asks for
    return own


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for one order; those of workers that are gone are removed."""
    root = Path(tempfile.gettempdir()) / "hybrid-course-cells"
    root.mkdir(mode=0o700, exist_ok=True)
    for left in root.iterdir():
        number = left.name.partition("-")[0]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=root, prefix=f"{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def program(*command: str) -> list[str]:
    """``python -m pipeline COMMAND`` for an order."""
    places = ["--profile", f"{FOLDER}/profile.yaml", "--output-dir", f"{FOLDER}/run", "--resume"]
    return [PYTHON, "-m", "pipeline", *command, *places]


def carry_out(text: str, base: str | None = None) -> str:
    """``work``, JSON in and JSON out: whatever an engine does with objects, it has none.

    Args:
        base: the outcome of the order that has to be carried out before; an engine waits for it.
    """
    return json.dumps(work(json.loads(text)))
