"""The order of the notebooks: what needs nothing runs side by side, a failure stops what has not begun, and it resumes."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import pytest

from pipeline.core.files import read_json
from pipeline.course import execute
from pipeline.course.execute import NEEDS, course_notebooks, execute_course, number_of, ready


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Notebooks of one cell that need no pipeline."""
    books = tmp_path / "notebooks"
    books.mkdir()
    for number in ("00", "01", "02", "03", "04", "05", "06"):
        cell = nbformat.v4.new_code_cell("output_dir = ''", metadata={"tags": ["parameters"]})
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
        book = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell("1 + 1")], metadata=kernel)
        nbformat.write(book, books / f"{number}_x.ipynb")
    monkeypatch.setattr(execute, "NOTEBOOKS", books)
    return tmp_path


def test_the_needs_name_notebooks_of_the_course() -> None:
    numbers = {number_of(notebook.name) for notebook in course_notebooks()}
    assert {*NEEDS, *(need for needs in NEEDS.values() for need in needs)} <= numbers


def test_the_last_notebook_waits_for_all_others() -> None:
    *others, last = [number_of(notebook.name) for notebook in course_notebooks()]
    assert NEEDS[last] == set(others)


def test_what_is_ready(folder: Path) -> None:
    names = lambda found: [number_of(notebook.name) for notebook in found]  # noqa: E731
    every = course_notebooks()
    assert names(ready(every)) == ["00", "01", "02", "03"]
    assert names(ready(every[4:])) == ["04"]
    assert names(ready(every[5:], running=every[4:5])) == []  # 05 needs 04, which has not ended
    assert names(ready(every[6:])) == ["06"]  # asked for alone: what it needs is on disk, or it makes it


def test_two_at_a_time_in_the_order_of_their_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []
    ended: list[str] = []
    both = threading.Barrier(2, timeout=20)

    def run(notebook: Path, executed: Path, parameters: dict) -> dict:
        for need in NEEDS.get(number_of(notebook.name), set()):
            assert f"{need}_x" in ended
        began.append(notebook.stem)
        if notebook.stem in ("00_x", "01_x"):
            both.wait()  # neither ends before the other has begun
        # 02 ends while 04 runs: the lane is free, and 05 has to wait all the same.
        time.sleep({"02_x": 0.6, "03_x": 0.1, "04_x": 1.2}.get(notebook.stem, 0))
        ended.append(notebook.stem)
        return {"name": notebook.stem, "status": "done", "seconds": 1.0}

    monkeypatch.setattr(execute, "_execute", run)
    result = execute_course("embedded", folder / "out")
    assert result["ok"] and [n["name"][:2] for n in result["notebooks"]] == ["00", "01", "02", "03", "04", "05", "06"]
    assert len(began) == 7
    again = execute_course("embedded", folder / "out")
    assert {n["status"] for n in again["notebooks"]} == {"done before"}


@pytest.mark.slow
def test_a_failure_stops_what_has_not_begun(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "notebooks" / "03_x.ipynb"
    book = json.loads(path.read_text())
    book["cells"][1]["source"] = "1 / 0"
    path.write_text(json.dumps(book))
    result = execute_course("embedded", folder / "out", workers=1)
    status = {n["name"][:2]: n["status"] for n in result["notebooks"]}
    del status["02"]
    assert status == {"00": "done", "01": "done", "03": "failed", "04": "not run", "05": "not run", "06": "not run"}
    said = capfd.readouterr().err
    assert "ZeroDivisionError" in said and "without encryption" not in said  # nothing of the kernels' own
    assert set(read_json(folder / "out" / "course.json")["finished"]) == {"00_x", "01_x", "02_x"}
    book["cells"][1]["source"] = "1 / 1"
    path.write_text(json.dumps(book))
    assert execute_course("embedded", folder / "out")["ok"]


def test_temporary_files_of_a_killed_kernel_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel ends by a signal, so what a library would clear at the end of its process stays."""
    temporary = folder / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    path = folder / "notebooks" / "00_x.ipynb"
    book = json.loads(path.read_text())
    book["cells"][1]["source"] = "import tempfile\nprint(tempfile.mkdtemp())"
    path.write_text(json.dumps(book))
    assert execute_course("embedded", folder / "out", only=["00"])["ok"]
    executed = json.loads((folder / "out" / "notebooks" / "00_x.ipynb").read_text())
    left = Path(executed["cells"][-1]["outputs"][0]["text"][0].strip())
    assert temporary in left.parents and not left.exists()
    assert list(temporary.iterdir()) == [] and os.environ["TMPDIR"] == str(temporary)
