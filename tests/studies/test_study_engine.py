"""Cells on other machines: what a node does, where results go, who may coordinate; and Ray itself where it is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint, read_json, write_json
from pipeline.core.place import ROOT
from pipeline.studies import coordinator, node, on_ray, storage
from pipeline.studies.arms import plan_axis
from pipeline.studies.coordinator import only_coordinator
from pipeline.studies.engine import CellPlace, StudyEngine, remembered_store
from pipeline.studies.node import FOLDER, PYTHON, TOKEN, Order, carry_out, code_here, work
from pipeline.studies.on_ray import fetch_done, key_of, plan_orders, require_answer, resources, submit, take_storage
from pipeline.studies.search import run_search
from pipeline.studies.storage import Storage
from pipeline.studies.sweep import run_sweep

HAS_RAY = importlib.util.find_spec("ray") is not None
# A cell that takes no second, or goes on when the file "go" is there: it notes that it ran, and writes a report.
TINY = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1], "run"); run.mkdir(exist_ok=True)
with open(sys.argv[2] + "/ran.txt", "a") as file: file.write(sys.argv[3] + "\\n")
end = time.monotonic() + float(sys.argv[4])
while time.monotonic() < end and not pathlib.Path(sys.argv[2], "go").exists(): time.sleep(0.05)
(run / "report.json").write_text(json.dumps({"cell": sys.argv[3]}))
"""


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def order(tmp_path: Path, name: str = "a", seconds: float = 0, **changes: Any) -> Order:
    """A tiny cell, with a storage that is ready for it."""
    store = tmp_path / "store"
    own: dict[str, Any] = {
        "name": name,
        "store": str(store),
        "token": take_storage(Storage(str(store)), "study"),
        "key": f"cells/{name}/run",
        "part": "",
        "base": None,
        "files": {"profile.yaml": f"recipe: {FOLDER}/recipe.yaml\n"},
        "program": [PYTHON, "-c", TINY, FOLDER, str(tmp_path), name, str(seconds)],
        "watched": False,
        "keep_threads": False,
        "code": code_here(),
    }
    return cast(Order, own | changes)


def ran(tmp_path: Path) -> list[str]:
    return (tmp_path / "ran.txt").read_text(encoding="utf-8").split()


# --- a node -------------------------------------------------------------------------------------------------------------


def test_a_cell_runs_once_and_leaves_nothing_behind(tmp_path: Path, own_scratch: Path) -> None:
    first = json.loads(carry_out(json.dumps(order(tmp_path))))
    assert first["state"] == "done" and first["node"] == socket.gethostname()
    assert read_json(tmp_path / "store/cells/a/run/report.json") == {"cell": "a"}
    assert work(order(tmp_path))["state"] == "done" and ran(tmp_path) == ["a"]
    assert not any((own_scratch / "hybrid-course-cells").iterdir())


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit('error: it cannot be')", "it cannot be"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9"),
        ("pass", "no output"),
    ],
)
def test_a_cell_that_fails_says_why(tmp_path: Path, code: str, reason: str) -> None:
    outcome = work(order(tmp_path, program=[PYTHON, "-c", code]))
    assert (outcome["state"], outcome["reason"]) == ("failed", reason)
    assert not (tmp_path / "store/cells/a/run").exists()


def test_a_node_with_other_versions_runs_nothing(tmp_path: Path) -> None:
    outcome = work(order(tmp_path, code=code_here() | {"torch": "1.0"}))
    assert outcome["state"] == "stop" and "instead of 1.0" in outcome["reason"] and not (tmp_path / "ran.txt").exists()


def test_a_node_that_does_not_see_the_storage_says_so(tmp_path: Path) -> None:
    outcome = work(order(tmp_path, store=str(tmp_path / "elsewhere")))
    assert (
        outcome["state"] == "stop" and "is not the coordinator's. Give a folder that all nodes see" in outcome["reason"]
    )
    assert not (tmp_path / "elsewhere").exists()


def test_scratch_folders_of_workers_that_are_gone_are_removed(tmp_path: Path, own_scratch: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = own_scratch / "hybrid-course-cells" / f"{gone.pid}-x"
    left.mkdir(parents=True)
    kept = own_scratch / "hybrid-course-cells" / f"{os.getpid()}-other"
    kept.mkdir()
    work(order(tmp_path))
    assert not left.exists() and kept.exists()


# As TINY; its validation losses grow, one a step, and it ends with its first argument.
LOSING = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1], "run")
for step in (1, 2, 3):
    folder = run / f"checkpoints/checkpoint-{step}"; folder.mkdir(parents=True)
    log = [{"step": n, "eval_loss": n / 2} for n in range(1, step + 1)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    time.sleep(float(sys.argv[2]))
if sys.argv[3] == "fails": sys.exit("error: no")
(run / "training.json").write_text(json.dumps({"eval_loss": [{"step": n, "loss": n / 2} for n in (1, 2, 3)]}))
(run / "report.json").write_text("{}")
"""


@pytest.mark.parametrize("end", ["ends", "fails"])
def test_a_cell_that_is_watched_notes_its_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(node, "LOOK_SECONDS", 0.05)
    seen = []
    write = Storage.write

    def note(self: Storage, key: str, data: Any) -> None:
        seen.append((key, data))
        write(self, key, data)

    watched = order(tmp_path, program=[PYTHON, "-c", LOSING, FOLDER, "0.4", end], watched=True)
    monkeypatch.setattr(Storage, "write", note)
    outcome = work(watched)
    assert outcome["state"] == ("done" if end == "ends" else "failed")
    assert {key for key, _ in seen} == {"cells/a/losses.json"} and len(seen) >= 2  # while it runs
    assert read_json(tmp_path / "store/cells/a/losses.json") == [[1, 0.5], [2, 1.0], [3, 1.5]]


def test_a_run_ends_with_its_worker(tmp_path: Path) -> None:
    text = json.dumps(order(tmp_path, seconds=60))
    code = "import sys; from pipeline.studies.node import carry_out; carry_out(sys.stdin.read())"
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, text=True)
    assert worker.stdin is not None
    worker.stdin.write(text)
    worker.stdin.close()
    deadline = time.monotonic() + 60
    while not (tmp_path / "ran.txt").exists():
        assert worker.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(worker.pid).children(recursive=True)
    worker.kill()
    worker.wait()
    assert len(children) >= 2 and not psutil.wait_procs(children, timeout=20)[1]


# --- storage ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "kept") if request.param == "folder" else f"memory://{tmp_path.name}")


def test_folders_come_back_as_they_were(place: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_json(source / "report.json", {"a": 1})
    (source / "deep").mkdir()
    (source / "deep" / "weights").write_bytes(bytes(range(256)))
    assert not place.has("cells/a/run", "report.json")
    place.put(source, "cells/a/run")
    write_json(source / "report.json", {"a": 2})
    place.put(source, "cells/a/run")  # over the first
    assert place.has("cells/a/run", "report.json")
    place.get("cells/a/run", tmp_path / "back")
    assert read_json(tmp_path / "back" / "report.json") == {"a": 2}
    assert (tmp_path / "back" / "deep" / "weights").read_bytes() == bytes(range(256))
    assert not list(tmp_path.rglob(f"{storage.PARTIAL}*"))
    place.write("x.json", [1])
    assert place.read("x.json") == [1] and place.read("y.json") is None
    place.remove("x.json")
    place.remove("x.json")
    assert place.read("x.json") is None


def test_a_copy_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    place = Storage(f"memory://{tmp_path.name}")
    place.system.pipe_file(place.path("cells/a/run/report.json"), b"{}")
    assert not place.has("cells/a/run", "report.json")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "is full. Free some space"),
        (OSError(5, "Input/output error"), "cannot be used (Input/output error)"),
        (ConnectionError("no route"), "cannot be used (no route)"),
    ],
)
def test_storage_that_is_full_or_gone(
    place: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    write_json(tmp_path / "source" / "report.json", {})
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(place.system, "put_file", fail)
    monkeypatch.setattr("shutil.copytree", fail)
    with pytest.raises(UserError) as caught:
        place.put(tmp_path / "source", "cells/a/run")
    assert words in str(caught.value) and "are not repeated" in str(caught.value)
    assert not place.has("cells/a/run", "report.json")


def test_a_storage_on_a_full_disk(tmp_path: Path) -> None:
    """A real one: a file system of one MiB."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "weights").write_bytes(bytes(2**21))
        with pytest.raises(UserError, match="is full. Free some space"):
            Storage(str(small)).put(tmp_path / "source", "cells/a/run")
        assert not list(small.rglob("weights"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_store_that_is_no_store() -> None:
    with pytest.raises(UserError, match="--store nosuch://x: .*Give a folder that all nodes see"):
        Storage("nosuch://x")


def test_a_store_belongs_to_one_study(tmp_path: Path) -> None:
    place = Storage(str(tmp_path))
    assert take_storage(place, "one") == take_storage(place, "one")
    with pytest.raises(UserError, match="cells of another study"):
        take_storage(place, "two")


def test_a_store_is_remembered_but_for_its_secrets(tmp_path: Path) -> None:
    assert remembered_store(tmp_path, StudyEngine()) is None
    assert remembered_store(tmp_path, StudyEngine(store="s3://user:word@bucket/x")) == "s3://user:word@bucket/x"
    assert remembered_store(tmp_path, StudyEngine()) is None
    remembered_store(tmp_path, StudyEngine(store="s3://bucket/x"))
    assert remembered_store(tmp_path, StudyEngine()) == "s3://bucket/x"


# --- one coordinator ----------------------------------------------------------------------------------------------------


def test_two_coordinators(tmp_path: Path) -> None:
    place = Storage(str(tmp_path))
    with only_coordinator(place):
        words = f"Another coordinator works on this study: process {os.getpid()} on"
        with pytest.raises(UserError, match=words), only_coordinator(place):
            pass
        assert place.read(coordinator.RECORD)["pid"] == os.getpid()
    assert place.read(coordinator.RECORD) is None


@pytest.mark.parametrize("engine", [StudyEngine(), StudyEngine("ray")])
def test_a_sweep_has_one_coordinator_whatever_its_engine(tmp_path: Path, engine: StudyEngine) -> None:
    (cell,) = plan_axis("embedded", [], "chat_share", ["0"], 1, tmp_path)[1]
    write_json(tmp_path / "plan.json", {"cells": fingerprint([[cell.profile.model_dump(), cell.recipe.model_dump()]])})
    with (
        only_coordinator(Storage(str(tmp_path))),
        pytest.raises(UserError, match="Another coordinator works on this study"),
    ):
        run_sweep("embedded", "chat_share", ["0"], 1, tmp_path, place=CellPlace(engine=engine))
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(("host", "age", "alive"), [("other", 5, True), ("other", 100, False), ("this", 0, False)])
def test_a_coordinator_that_is_gone_is_forgotten(tmp_path: Path, host: str, age: float, alive: bool) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    began = psutil.Process(gone.pid).create_time()
    gone.wait()
    record = {"id": "x", "pid": gone.pid, "process_began": began, "since": "then", "seen": time.time() - age}
    place = Storage(str(tmp_path))
    place.write(coordinator.RECORD, record | {"host": socket.gethostname() if host == "this" else host})
    if alive:
        with pytest.raises(UserError, match="Another coordinator"), only_coordinator(place):
            pass
    else:
        with only_coordinator(place):
            pass


# --- Ray: before it is asked ----------------------------------------------------------------------------------------------


def test_ray_that_is_not_installed_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    arguments = ["sweep", "--values", "0", "--output-dir", str(tmp_path / "s"), "--engine", "ray"]
    assert main(arguments) == 2
    assert 'python -m pip install "ray[client]==2.60.0"' in capsys.readouterr().err


def test_the_version_is_the_extra_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["ray"] == [f"ray[client]=={on_ray.VERSION}"]


@pytest.fixture
def listener() -> Iterator[tuple[str, socket.socket]]:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        yield f"127.0.0.1:{own.getsockname()[1]}", own


def test_an_address_that_does_not_answer(listener: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "ANSWER_SECONDS", 0.3)
    with pytest.raises(UserError, match="No Ray cluster answers .*timed out"):
        require_answer(listener[0])  # it takes connections, and says nothing
    listener[1].close()
    for prefix in ("", "ray://"):
        with pytest.raises(UserError, match="No Ray cluster answers .*efused"):
            require_answer(prefix + listener[0])
    with pytest.raises(UserError, match="needs HOST:PORT"):
        require_answer("localhost")
    with pytest.raises(UserError, match="needs HOST:PORT"):
        require_answer("localhost:99999")


def test_one_time_limit_for_all(listener: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that takes long to resolve, and a listener that says nothing: each alone, and both together."""
    monkeypatch.setattr(on_ray, "ANSWER_SECONDS", 0.6)
    found, go_on = socket.getaddrinfo, threading.Event()
    host, _, port = listener[0].rpartition(":")

    def never(*_: Any, **__: Any) -> list[Any]:
        go_on.wait(30)
        raise OSError("nobody waits for this")

    def late(*_: Any, **__: Any) -> list[Any]:
        time.sleep(0.4)
        return 2 * found(host, int(port), type=socket.SOCK_STREAM)

    for resolver, said in ((never, "timed out: the name head.example was not resolved"), (late, "timed out")):
        monkeypatch.setattr(socket, "getaddrinfo", resolver)
        began = time.monotonic()
        with pytest.raises(UserError, match=f"No Ray cluster answers .*{said}"):
            require_answer(f"head.example:{port}")
        assert 0.5 < time.monotonic() - began < 1.0  # three limits in a row would be 0.4 + 0.6 + 0.6
    go_on.set()


@pytest.mark.parametrize("host", ["no..name", "x" * 80 + ".example"])
def test_what_is_no_name_is_said(host: str) -> None:
    with pytest.raises(UserError, match="No Ray cluster answers"):
        require_answer(f"{host}:6379")


def test_an_answer_in_pieces(listener: tuple[str, socket.socket]) -> None:
    sent = []

    def serve() -> None:
        connection, _ = listener[1].accept()
        with connection:
            for byte in bytes([0, 0, 6, 4]):
                sent.append(byte)
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
            connection.recv(64)

    thread = threading.Thread(target=serve)
    thread.start()
    require_answer(listener[0])  # raises where it judges by the first piece
    assert sent == [0, 0, 6, 4]
    thread.join()


def test_something_else_that_answers(listener: tuple[str, socket.socket]) -> None:
    def serve() -> None:
        connection, _ = listener[1].accept()
        connection.recv(64)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(UserError, match="is no Ray cluster"):
        require_answer(listener[0])
    thread.join()


def test_what_a_cell_asks_for(tmp_path: Path) -> None:
    (cell,) = plan_axis("embedded", [], "chat_share", ["0"], 1, tmp_path)[1]
    laptop, server = {"CPU": 2.0}, {"CPU": 16.0, "GPU": 1.0}
    assert resources(StudyEngine("ray"), cell, [laptop]) == {"num_cpus": 1.0, "num_gpus": 0.0}
    assert resources(StudyEngine("ray"), cell, [laptop, server]) == {"num_cpus": 1.0, "num_gpus": 1.0}
    assert resources(StudyEngine("ray", cpus=4, gpus=0.5), cell, [server]) == {"num_cpus": 4, "num_gpus": 0.5}
    with pytest.raises(UserError, match="No node .* 4 cores and 0 GPUs.*--cell-cpus"):
        resources(StudyEngine("ray", cpus=4), cell, [laptop])
    with pytest.raises(UserError, match="for --engine ray"):
        StudyEngine(cpus=1)


def test_orders_share_a_base_and_say_what_the_local_pool_runs(tmp_path: Path) -> None:
    cells = plan_axis("embedded", [], "learning_rate", ["1e-3", "2e-3"], 2, tmp_path)[1]
    orders = plan_orders(cells, tmp_path, "s3://bucket/x", "token", watched=True)
    assert [o["key"].split("/")[0] for o in orders] == ["base"] + ["cells"] * 4
    assert {o["base"] for o in orders[1:]} == {orders[0]["key"]} and orders[0]["base"] is None
    assert [o["watched"] for o in orders] == [False] + [True] * 4
    assert orders[1]["program"][:4] == [PYTHON, "-m", "pipeline", "run"] and "--resume" in orders[1]["program"]
    assert f"recipe: '{FOLDER}/recipe.yaml'" in orders[1]["files"]["profile.yaml"]
    assert json.loads(json.dumps(orders)) == orders


def test_what_is_done_in_the_store_is_brought_here(tmp_path: Path) -> None:
    root = tmp_path / "study"
    cells = plan_axis("embedded", [], "learning_rate", ["1e-3", "2e-3"], 1, root)[1]
    place = Storage(f"memory://{tmp_path.name}")
    write_json(tmp_path / "made" / "report.json", {})
    place.put(tmp_path / "made", key_of(cells[1], root))
    place.put(tmp_path / "made", cells[0].base_key)
    fetch_done(cells, root, place)
    assert [cell.report.exists() for cell in cells] == [False, True] and (root / cells[0].base_key).is_dir()


# --- Ray itself -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    if not HAS_RAY:
        pytest.skip(f"Ray is not installed ({on_ray.INSTALL})")
    import ray
    from ray.cluster_utils import Cluster

    # What the nodes inherit: this checkout; no lower priority than the tests have, and patience, on a machine that is busy.
    wanted = {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0", "RAY_agent_register_timeout_ms": "120000"}
    memory = 100 * 2**20
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            patch.setenv(name, value)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "object_store_memory": memory, "include_dashboard": False},
        )
        try:
            cluster.add_node(num_cpus=1, object_store_memory=memory)
            cluster.wait_for_nodes()
            with on_ray.cluster(cluster.address):
                yield ray, cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.mark.slow
def test_a_cell_is_stopped_by_its_losses(two_nodes: Any, tmp_path: Path) -> None:
    ray, _ = two_nodes
    orders = []
    for name, seconds in (("stays", "0"), ("goes", "200")):
        words = [PYTHON, "-c", LOSING, FOLDER, seconds, "ends", str(tmp_path / name)]
        orders.append(order(tmp_path, name, program=words, watched=True))
    asked = {o["key"]: {"num_cpus": 1, "num_gpus": 0} for o in orders}
    place = Storage(orders[0]["store"])

    def stopped(one: Order) -> bool:
        return one["name"] == "goes" and bool(place.read(node.losses_key(one["key"])))

    found = {one["name"]: outcome["state"] for one, outcome in submit(ray, orders, asked, stopped=stopped)}
    assert found == {"stays": "done", "goes": "stopped"}
    deadline = time.monotonic() + 30
    while at_work(str(tmp_path / "goes")):
        assert time.monotonic() < deadline, "what was stopped still runs"
        time.sleep(0.2)
    assert not (tmp_path / "store/cells/goes/run").exists()


def at_work(word: str) -> int:
    """How many processes have this word in their command line."""
    found = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found += word in process.cmdline()
    return found


@pytest.mark.nightly
def test_a_search_tries_the_same_on_ray_and_here(two_nodes: Any, tmp_path: Path) -> None:
    """Two trials at a time, pruning on: the same trials with the same results; and a study that Ray began goes on here."""
    ray, here = StudyEngine("ray", address=two_nodes[1].address), StudyEngine()

    def search(folder: str, trials: int, engine: StudyEngine) -> dict[str, Any]:
        sets = ["training.max_steps=4", "training.logging_steps=1", "evaluation.limit=4", "mix.total=200"]
        found: Any = run_search("embedded", tmp_path / folder, trials, sets, workers=2, engine=engine)
        for trial in found["trials"]:
            assert trial.pop("seconds") is None or trial["state"] == "complete"
        return {key: value for key, value in found.items() if key != "best"} | {
            "best": (found["best"] or {}).get("number")
        }

    local = search("local", 5, here)
    assert len(local["trials"]) == 5 and {"complete"} <= {trial["state"] for trial in local["trials"]}
    assert search("ray", 5, ray) == local
    assert search("both", 2, ray)["trials"] == local["trials"][:2]
    assert search("both", 5, here) == local


@pytest.mark.slow
def test_cells_on_two_nodes_of_which_one_is_killed(two_nodes: Any, tmp_path: Path) -> None:
    ray, cluster = two_nodes
    orders = [order(tmp_path, f"cell-{n}", 400) for n in range(4)]
    orders.append(order(tmp_path, "bad", program=[PYTHON, "-c", "raise SystemExit('error: no')"]))
    orders.append(order(tmp_path, "killer", program=[PYTHON, "-c", "import os; os.kill(os.getpid(), 9)"]))
    asked = {o["key"]: {"num_cpus": 1, "num_gpus": 0} for o in orders}
    found = {}

    def kill() -> None:
        """When a cell is at work on each node, kill one of them, and let all cells end."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and (not (tmp_path / "ran.txt").exists() or len(ran(tmp_path)) < 2):
            time.sleep(0.05)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        time.sleep(5)  # its workers notice, and the cell ends with them
        (tmp_path / "go").touch()

    watcher = threading.Thread(target=kill)
    watcher.start()
    for one, outcome in submit(ray, orders, asked):
        assert one["name"] not in found
        found[one["name"]] = outcome["state"], outcome["reason"]
    watcher.join()
    assert sorted(set(ran(tmp_path))) == [f"cell-{n}" for n in range(4)]
    assert len(ran(tmp_path)) == 5, "the cell of the node that was killed has run twice"
    assert {n: s for n, (s, _) in found.items() if n.startswith("cell")} == {f"cell-{n}": "done" for n in range(4)}
    assert found["bad"] == ("failed", "no") and found["killer"] == ("failed", "ended by signal 9")
    for n in range(4):
        assert read_json(tmp_path / f"store/cells/cell-{n}/run/report.json") == {"cell": f"cell-{n}"}
    assert read_json(tmp_path / "store" / TOKEN)["study"] == "study"
