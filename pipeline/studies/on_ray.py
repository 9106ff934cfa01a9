"""The cells of a study on a Ray cluster: a cell is a task, and its result goes to storage that all nodes see.

In: cells, an engine, a storage. Out: the cells' runs in the study's folder, as the local pool leaves them; ``failed.json`` beside
a run that failed. The base evaluation that cells share is a task of its own, which they wait for.

Ray gives a task whose node or worker is lost to another node. A cell that is done in the storage is not run again, whoever
ran it: a study that was stopped, or whose head was lost, goes on by the same command.

Nodes need this project and its packages in the same versions, and the files that a recipe names at the same paths.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.studies.arms import SweepCell
from pipeline.studies.cells import inputs, note_failure
from pipeline.studies.coordinator import only_coordinator
from pipeline.studies.engine import CellWatch, StudyEngine
from pipeline.studies.losses import validation_losses
from pipeline.studies.node import (
    FOLDER,
    LOOK_SECONDS,
    REPORT,
    TOKEN,
    Order,
    Outcome,
    carry_out,
    code_here,
    losses_key,
    program,
)
from pipeline.studies.storage import PARTIAL, Storage

VERSION = "2.60.0"  # also in pyproject.toml, extra "ray"
INSTALL = f'python -m pip install "ray[client]=={VERSION}"'
ANSWER_SECONDS = 5.0
LOST_NODES = 5  # how many nodes or workers a cell may lose
# HTTP/2's opening, which Ray's servers speak (gRPC): the preface, and a frame of empty settings; the answer is such a frame.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


# --- the cluster --------------------------------------------------------------------------------------------------------


def require_answer(address: str) -> None:
    """See that something that may be Ray listens; Ray itself waits for minutes, and then ends the process.

    Raises:
        UserError: no ``host:port``, or nothing answers within ``ANSWER_SECONDS``: look-up, connection and answer together.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UserError(
            f"--address {address}: needs HOST:PORT of Ray's head, ray://HOST:PORT of its client server, or auto."
        )
    try:
        answered = _first_answer(host, int(port), time.monotonic() + ANSWER_SECONDS)[3:4] == b"\x04"
    except OSError as error:
        raise UserError(
            f"No Ray cluster answers at {address} ({error.strerror or error}). Start one with `ray start --head`, and see "
            "that this machine reaches it (a firewall?)."
        ) from error
    if not answered:
        raise UserError(f"What listens at {address} is no Ray cluster. `ray status` on its head says its address.")


def _first_answer(host: str, port: int, end: float) -> bytes:
    """The first bytes of the answer to ``HELLO``; fewer than four where the connection was closed.

    Args:
        end: of all together, the look-up of the name too, on the clock of ``time.monotonic``.
    """
    failed: OSError | None = None
    for family, kind, protocol, _, place in _look_up(host, port, end):
        try:
            with socket.socket(family, kind, protocol) as connection:
                connection.settimeout(_left(end))
                connection.connect(place)
                connection.sendall(HELLO)
                answer = b""
                while len(answer) < 4:
                    connection.settimeout(_left(end))
                    piece = connection.recv(9)
                    if not piece:
                        break
                    answer += piece
                return answer
        except OSError as error:
            failed = error
    raise failed or OSError("the name has no address")


def _look_up(host: str, port: int, end: float) -> list[Any]:
    """Addresses of a name. The system sets no time limit to a look-up, so it is done in a thread that is left to itself."""
    results: queue.SimpleQueue[list[Any] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            results.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            results.put(error)
        except UnicodeError:
            results.put(OSError(f"{host!r} is no name of a machine"))

    threading.Thread(target=look_up, daemon=True).start()
    try:
        found = results.get(timeout=_left(end))
    except queue.Empty:
        raise TimeoutError(f"timed out: the name {host} was not resolved") from None
    if isinstance(found, OSError):
        raise found
    return found


def _left(end: float) -> float:
    """Seconds until then; ``TimeoutError`` where it is past."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Ray, connected; a connection that the process has already is used and kept.

    Raises:
        UserError: Ray is not installed (with the command), or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"--engine ray needs Ray, which is not installed. Install it on all nodes: {INSTALL}")
    if address != "auto":
        require_answer(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"Ray cannot be joined at {address}: {str(error).splitlines()[0]} Start it with `ray start --head`, or give "
            "its --address."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def resources(engine: StudyEngine, cell: SweepCell, nodes: Sequence[dict[str, float]]) -> dict[str, float]:
    """What a cell asks for: ``num_cpus`` and ``num_gpus``.

    Args:
        nodes: resources of each node that is alive.

    Raises:
        UserError: no node has so much; the cell would wait for ever.
    """
    cpus = float(cell.profile.model.cpu_threads or 1) if engine.cpus is None else engine.cpus
    gpus = float(any(node.get("GPU") for node in nodes)) if engine.gpus is None else engine.gpus
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        largest = ", ".join(f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise UserError(
            f"No node of the cluster has {cpus:g} cores and {gpus:g} GPUs, which a cell asks for (nodes: {largest}). "
            "Lower --cell-cpus or --cell-gpus."
        )
    return {"num_cpus": cpus, "num_gpus": gpus}


# --- orders -------------------------------------------------------------------------------------------------------------


def key_of(cell: SweepCell, root: Path) -> str:
    """Where the cell's run lies in the storage."""
    return f"{cell.folder.relative_to(root).as_posix()}/run"


def plan_orders(cells: Sequence[SweepCell], root: Path, store: str, token: str, watched: bool = False) -> list[Order]:
    """The orders of some cells; that of a base that several share stands before theirs, and is never watched."""
    orders: dict[str, Order] = {}
    for cell in cells:
        files = inputs(cell, f"{FOLDER}/recipe.yaml")
        common: dict[str, Any] = {"store": store, "token": token, "files": files, "code": code_here()}
        common["keep_threads"] = cell.profile.model.cpu_threads is not None
        base, key = cell.base_key, key_of(cell, root)
        first: dict[str, Any] = {
            "name": f"base evaluation for {cell.name}",
            "key": base,
            "base": None,
            "watched": False,
        }
        evaluate = program("evaluate", "--which", "base")
        orders.setdefault(base, cast(Order, common | first | {"part": "evaluation/base", "program": evaluate}))
        own: dict[str, Any] = {"name": cell.name, "key": key, "base": base, "part": "", "program": program("run")}
        orders[key] = cast(Order, common | own | {"watched": watched})
    return list(orders.values())


def take_storage(storage: Storage, study: str | None) -> str:
    """Its token, which nodes look for; a storage belongs to one study, or (None) to all that share cells in it.

    Raises:
        UserError: it belongs to another study, or cannot be used.
    """
    record = storage.read(TOKEN)
    if record is None:
        record = {"token": uuid.uuid4().hex, "study": study}
        storage.write(TOKEN, record)
    if record["study"] != study:
        raise UserError(
            f"{storage.path('')} holds the cells of another study. Choose another --store; nothing was changed."
        )
    return str(record["token"])


def fetch_done(cells: Sequence[SweepCell], root: Path, storage: Storage) -> None:
    """Bring what is done in the storage to the study's folder."""
    for cell in cells:
        if storage.has(key_of(cell, root), REPORT):
            storage.get(key_of(cell, root), cell.folder / "run")
        base = root / cell.base_key
        if not base.exists() and storage.has(cell.base_key):
            storage.get(cell.base_key, base)


# --- running ------------------------------------------------------------------------------------------------------------


def run_on_ray(
    cells: Sequence[SweepCell],
    root: Path,
    engine: StudyEngine,
    store: str,
    held: Path,
    at_once: int | None = None,
    study: str | None = None,
    watch: CellWatch | None = None,
) -> None:
    """Run cells as tasks of a Ray cluster; see the module's docstring.

    Args:
        root: the folder below which the cells' folders lie. store: a folder or URL.
        held: the folder in which the caller is the only coordinator; of another storage, it becomes that here.
        at_once: at most so many tasks wait or run; None: all, and Ray runs as many as fit.
        study: see ``take_storage``.
        watch: see ``pipeline.studies.engine.CellWatch``; the losses of a cell at work come by the storage. One that it stops has
            neither a report nor ``failed.json``.

    Raises:
        UserError: Ray is not installed; the cluster does not answer, or has no node that is large enough; the storage is full,
            gone or another study's; a node has other versions. Cells that are done stay done.
    """
    if not cells:
        return
    storage = Storage(store)
    with cluster(engine.address) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for cell in cells:
            resources(engine, cell, nodes)
        token = take_storage(storage, study)
        is_held = storage.is_folder and Path(storage.root).resolve() == held.resolve()
        with nullcontext() if is_held else only_coordinator(storage):
            if storage.is_folder:
                _clear_partial(Path(storage.root))
            say(f"{len(cells)} cells on {len(nodes)} nodes of Ray")
            orders = plan_orders(cells, root, store, token, watch is not None)
            by_key = {key_of(cell, root): cell for cell in cells}
            asked = {key: resources(engine, cell, nodes) for key, cell in by_key.items()}
            bases = {cell.base_key: asked[key_of(cell, root)] for cell in cells}
            done = 0

            def stopped(order: Order) -> bool:
                return (
                    watch is not None
                    and order["watched"]
                    and watch(by_key[order["key"]], _noted(storage, order["key"]))
                )

            for order, outcome in submit(ray, orders, asked | bases, at_once, None if watch is None else stopped):
                named = by_key.get(order["key"])
                if named is None:
                    if outcome["state"] == "done":
                        storage.get(order["key"], root / order["key"])
                    continue  # else the cells themselves will fail with the same reason, and say it
                done += 1
                result = "stopped"
                if outcome["state"] != "stopped":
                    _take(named, outcome, storage, root)
                    result = "done" if outcome["state"] == "done" else f"failed: {outcome['reason']}"
                    if watch is not None:
                        here = named.report.exists()
                        watch(named, validation_losses(named.folder / "run") if here else _noted(storage, order["key"]))
                say(f"[{done}/{len(cells)}] {named.name}: {result} ({outcome['node']})")


def _take(cell: SweepCell, outcome: Outcome, storage: Storage, root: Path) -> None:
    (cell.folder / "failed.json").unlink(missing_ok=True)
    if outcome["state"] == "done":
        storage.get(key_of(cell, root), cell.folder / "run")
    else:
        note_failure(cell, outcome["code"], outcome["reason"])


def _noted(storage: Storage, key: str) -> dict[int, float]:
    """The validation losses that the node has noted of a cell."""
    return {int(step): float(loss) for step, loss in storage.read(losses_key(key)) or ()}


def _clear_partial(folder: Path) -> None:
    """Copies that were being made when a worker was killed."""
    for pattern in ("*", "*/*"):  # base/NAME, CELL/run or cells/CELL/run
        for left in folder.glob(f"{pattern}/{PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)


def submit(
    ray: Any,
    orders: Sequence[Order],
    asked: dict[str, dict[str, float]],
    at_once: int | None = None,
    stopped: Callable[[Order], bool] | None = None,
) -> Iterator[tuple[Order, Outcome]]:
    """Hand orders to Ray and yield each with its outcome, in the order in which they end; what is left is cancelled at the end.

    Args:
        asked: resources by the order's key.
        stopped: whether to cancel an order; it is asked again and again while they run.

    Raises:
        UserError: an outcome says that nothing else can be done either.
    """
    task = ray.remote(carry_out)
    refs: dict[str, Any] = {}  # of bases, which cells wait for
    running: dict[Any, Order] = {}
    waiting = list(orders)
    try:
        while waiting or running:
            while waiting and (at_once is None or len(running) < at_once):
                order = waiting.pop(0)
                options = {**asked[order["key"]], "max_retries": LOST_NODES, "name": order["name"]}
                base = refs.get(order["base"]) if order["base"] else None
                ref = task.options(**options).remote(json.dumps(order), base)
                refs[order["key"]] = ref
                running[ref] = order
            ready, _ = ray.wait(list(running), num_returns=1, timeout=None if stopped is None else LOOK_SECONDS)
            for ref in ready:
                order = running.pop(ref)
                outcome = _outcome(ray, ref)
                if outcome["state"] == "stop":
                    raise UserError(outcome["reason"])
                yield order, outcome
            for ref, order in list(running.items()):
                if stopped is not None and stopped(order):
                    ray.cancel(ref, force=True)
                    del running[ref]
                    yield order, {"node": "", "state": "stopped", "code": 0, "reason": "", "seconds": 0.0}
    finally:
        for ref in running:
            ray.cancel(ref, force=True)


def _outcome(ray: Any, ref: Any) -> Outcome:
    try:
        return cast(Outcome, json.loads(ray.get(ref)))
    except ray.exceptions.RayTaskError as error:
        lines = str(error).strip().splitlines()
        reason = f"the task failed on its node: {lines[-1]}"
    except ray.exceptions.RayError as error:
        reason = f"its node or worker was lost {LOST_NODES + 1} times: {str(error).strip().splitlines()[0]}"
    return {"node": "lost", "state": "failed", "code": 0, "reason": reason, "seconds": 0.0}
