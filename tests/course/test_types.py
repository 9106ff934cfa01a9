"""Notebooks call the pipeline as it is: with arguments that are there, by names that are there.

mypy reads the cells. Of what it finds, only wrong calls count: cells are short, untyped and use a name twice.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
WRONG_CALL = re.compile(r"\[(call-arg|call-overload|name-defined)\]$|^\S+ error: Module .* \[attr-defined\]$")
PLANTED = "from pipeline.core.files import gone, write_json\n\nwrite_json(there=1)\nprint(nowhere)\n"


def test_notebooks_call_the_pipeline_as_it_is(tmp_path: Path) -> None:
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb")) + sorted(
        (ROOT / "notebooks" / "solutions").glob("*.ipynb")
    )
    for path in notebooks:
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        lines = "\n\n".join(cells).split("\n")
        code = "\n".join(f"# {line}" if line.startswith(("%", "!")) else line for line in lines)
        (tmp_path / f"{path.parent.name}_{path.stem}.py").write_text(code + "\n", encoding="utf-8")
    (tmp_path / "planted.py").write_text(PLANTED, encoding="utf-8")
    files = [os.fspath(path) for path in sorted(tmp_path.glob("*.py"))]
    cache = os.fspath(ROOT / ".mypy_cache")  # that of make lint
    command = [sys.executable, "-m", "mypy", "--config-file", os.fspath(ROOT / "pyproject.toml"), "--cache-dir", cache]
    # In a process of its own: mypy sets the limit of recursion, and how garbage is collected, for whatever runs after it.
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    told = done.stdout
    assert not done.stderr, done.stderr
    found = [Path(line).name for line in told.splitlines() if WRONG_CALL.search(line)]
    planted = [line for line in found if line.startswith("planted.py")]
    assert {line.split("[")[-1] for line in planted} == {"attr-defined]", "call-arg]", "name-defined]"}, told
    assert not (wrong := [line for line in found if line not in planted]), "\n".join(wrong)
