"""Notebooks 06 to 08 from first to last cell, with tiny trainings. (03 and 04 are held against the modules in test_run.)"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = ["training.max_steps=4", "evaluation.limit=4", "mix.total=200", "training.logging_steps=1"]


@pytest.mark.slow
@pytest.mark.parametrize("number", ["06", "07", "08"])
def test_the_notebook_runs(number: str, tmp_path: Path) -> None:
    sets = [part for text in TINY for part in ("--set", text)]
    command = [sys.executable, "-m", "pipeline", "course", "--only", number, "--output-dir", str(tmp_path), "--json"]
    done = subprocess.run([*command, *sets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (notebook,) = json.loads(done.stdout)["notebooks"]
    assert notebook["status"] == "done"
    page = next((tmp_path / "notebooks").glob("*.html")).read_text(encoding="utf-8")
    words = {"06": "recommended:", "07": "The objective is the mean score", "08": "Memory above the base"}
    assert words[number] in page
