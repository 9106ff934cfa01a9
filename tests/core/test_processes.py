"""Ranks, who waits for whom, and how an error of one process reaches the others, on real processes without a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from launcher import torchrun

from pipeline.core import processes
from pipeline.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_needs_no_launcher() -> None:
    assert (processes.size(), processes.rank(), processes.is_first(), processes.label()) == (1, 0, True, "")
    assert processes.first("it", lambda: "first", lambda: "others") == "first"
    with pytest.raises(ValueError, match="mine"), processes.together():
        raise ValueError("mine")


def test_a_world_without_its_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    processes._store.cache_clear()
    with pytest.raises(UserError, match="Use torchrun or accelerate launch"):
        processes.first("it", lambda: 0, lambda: 0)
    with pytest.raises(UserError, match="`sweep` works in one process, and 2 were started"):
        processes.require_one("sweep")


def test_a_broken_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE='two'"):
        processes.size()


@pytest.mark.parametrize(("files", "states"), [(["rng_state.pth"], 1), (["rng_state_0.pth", "rng_state_1.pth"], 2)])
def test_a_checkpoint_knows_how_many_wrote_it(
    files: list[str], states: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setenv("WORLD_SIZE", str(states))
    processes.require_same_size(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=rf"written by {states} process.*3 would go on"):
        processes.require_same_size(tmp_path)


SCRIPT = """
import os, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from pipeline.core.errors import UserError
from pipeline.core.processes import first, rank, together

case, folder = sys.argv[1], Path(sys.argv[2])
try:
    with together():
        if case == "works":
            def write():
                time.sleep(1)
                (folder / "written").write_text("by 0")
                return "first"
            print(rank(), first("write", write, lambda: (folder / "written").read_text()))
        if case == "first fails":
            def fail():
                raise UserError("no such recipe")
            first("write", fail, lambda: print("never"))
        if case == "one fails inside":
            dist.init_process_group("gloo")
            for step in range(5):
                if rank() == 1 and step == 3:
                    raise UserError("the loss became nan at step 3")
                dist.all_reduce(torch.ones(1))
        if case == "one is killed":
            dist.init_process_group("gloo")
            if rank() == 1:
                os._exit(9)
            dist.all_reduce(torch.ones(1))
except UserError as error:
    (folder / f"error_{rank()}").write_text(str(error))
    sys.exit(2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    ["works", pytest.param("first fails", marks=pytest.mark.nightly), "one fails inside", "one is killed"],
)
def test_two_processes(case: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    result = torchrun(str(script), case, str(tmp_path))
    errors = {path.name[-1]: path.read_text(encoding="utf-8") for path in tmp_path.glob("error_*")}
    if case == "works":
        assert result.returncode == 0, result.stderr[-2000:]
        assert sorted(result.stdout.split("\n")[:2]) == ["0 first", "1 by 0"]
        return
    assert result.returncode != 0 and "never" not in result.stdout
    if case == "first fails":
        assert errors == {"0": "no such recipe", "1": "process 0: no such recipe"}
    if case == "one fails inside":
        reason = "the loss became nan at step 3"
        assert errors == {"0": f"process 1: {reason}", "1": reason}
    if case == "one is killed":  # the launcher may end the survivor before it can say anything
        assert "1" not in errors and "gone without a message" in errors.get("0", "gone without a message")
