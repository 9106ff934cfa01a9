"""The local pool: what is begun when. The commands are stood in for; what they leave is what the real ones leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.files import write_text
from pipeline.studies import pool
from pipeline.studies.arms import SweepCell, plan_axis
from pipeline.studies.cells import write_inputs
from pipeline.studies.pool import run_in_pool

# Notes what was begun, and does it. A base is measured until EXPECTED trainings are there.
COMMAND = """
import os, sys, time
from pathlib import Path
kind, run, log, expected, fails = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
with log.open("a") as file:
    file.write(f"{kind} {run.parent.name}\\n")
run.mkdir(exist_ok=True)
deadline = time.monotonic() + 60
while kind == "evaluate" and len(list(log.parent.glob("study/cells/*/run/training.json"))) < expected:
    assert time.monotonic() < deadline
    time.sleep(0.02)
if kind == fails:
    sys.exit("it failed")
if kind == "evaluate":
    (run / "evaluation/base").mkdir(parents=True)
    (run / "evaluation/base/cell.json").write_text(run.parent.name)
elif kind == "train":
    (run / "training.json").write_text('{"eval_loss": []}')
else:
    base = run / "evaluation/base/cell.json"
    (run / "report.json").write_text(base.read_text() if base.exists() else "its own base")
"""


class Study:
    """Three cells and the stand-in for their commands."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.log, self.expected, self.fails = folder / "study", folder / "log.txt", 0, ""
        self.cells = plan_axis("embedded", [], "learning_rate", ["1e-3", "2e-3", "3e-3"], 1, self.folder)[1]
        for cell in self.cells:
            write_inputs(cell)
        monkeypatch.setattr(pool, "_command", self.command)

    def command(self, cell: SweepCell, kind: str) -> list[str]:
        rest = [str(self.log), str(self.expected), self.fails]
        return [sys.executable, "-c", COMMAND, kind, str(cell.folder / "run"), *rest]

    def begun(self) -> list[str]:
        return [line.replace("-seed3407", "") for line in self.log.read_text(encoding="utf-8").splitlines()]

    def reports(self) -> list[str]:
        return [cell.report.read_text(encoding="utf-8").replace("-seed3407", "") for cell in self.cells]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return Study(tmp_path, monkeypatch)


def test_cells_are_trained_while_the_base_is_evaluated(study: Study) -> None:
    study.expected = 2
    run_in_pool(study.cells, 2, study.folder)
    begun = study.begun()
    assert sorted(begun[:2]) == ["evaluate 00", "train 01"] and begun[2] == "train 02"
    assert sorted(begun[3:]) == ["run 00", "run 01", "run 02"]
    assert study.reports() == ["00", "00", "00"]  # one base, given to all


def test_one_process_evaluates_the_base_first(study: Study) -> None:
    run_in_pool(study.cells, 1, study.folder)
    assert study.begun() == ["evaluate 00", "run 00", "run 01", "run 02"]


def test_a_base_that_is_there_is_not_evaluated_again(study: Study) -> None:
    run_in_pool(study.cells[:1], 2, study.folder)
    run_in_pool(study.cells[1:], 2, study.folder)
    assert sorted(study.begun()[2:]) == ["run 01", "run 02"] and study.reports() == ["00", "00", "00"]


def test_a_base_that_cannot_be_evaluated_leaves_it_to_the_cells(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    study.fails = "evaluate"
    run_in_pool(study.cells, 1, study.folder)
    assert study.begun() == ["evaluate 00", "run 00", "run 01", "run 02"]
    assert study.reports() == ["its own base"] * 3


def test_a_training_that_failed_is_left_to_the_run(study: Study) -> None:
    study.fails = "train"
    study.expected = 0
    run_in_pool(study.cells, 3, study.folder)
    assert sorted(study.begun()[3:]) == ["run 00", "run 01", "run 02"] and study.reports() == ["00", "00", "00"]


def test_a_watch_may_stop_a_cell_in_its_training(study: Study) -> None:
    study.expected = 1
    run_in_pool(study.cells, 2, study.folder, lambda cell, losses: cell.folder.name.startswith("01"))
    assert "train 01" in study.begun() and "run 01" not in study.begun()
    assert [cell.report.exists() for cell in study.cells] == [True, False, True]


@pytest.mark.parametrize("kind", ["evaluate", "train", "run"])
def test_what_a_killed_sweep_left_at_work_is_waited_for(study: Study, kind: str) -> None:
    cell = study.cells[0]
    wait = [sys.executable, "-c", "import sys, time; time.sleep(1)", kind, str(cell.folder / "run")]
    with subprocess.Popen(wait) as left:
        write_text(cell.folder / "pid", str(left.pid))
        write_text(cell.folder / "log.txt", "")
        run_in_pool(study.cells, 1, study.folder)
        assert left.poll() is not None
    if kind == "run":  # that one ended without a report: it failed
        assert study.begun() == ["evaluate 01", "run 01", "run 02"] and not cell.report.exists()
    else:
        assert study.begun() == ["evaluate 00", "run 00", "run 01", "run 02"] and study.reports() == ["00"] * 3
