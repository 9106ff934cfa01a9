"""examples/one_page.py: short, made of libraries, and it runs from the base to the measured adapter."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "examples" / "one_page.py"


def test_it_is_one_page_of_library_calls() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {name for name in imported if name and name.startswith("pipeline")} == {"pipeline.data.corpora"}


@pytest.mark.slow
@pytest.mark.nightly
def test_it_measures_both_modes_before_and_after(tmp_path: Path, environment: dict[str, str]) -> None:
    few = ["--rows", "80", "--steps", "3", "--items", "3", "--share", "0.25", "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, str(PAGE), *few], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"^20 of 80 rows are chat: \d+% of the tokens with loss$", done.stdout, re.MULTILINE)
    row = r"^(base|tuned) +(thinking|non-thinking) +(chat|arithmetic|skill) +right (\S+) +mode fidelity (\S+)$"
    found = re.findall(row, done.stdout, re.MULTILINE)
    assert len({line[:3] for line in found}) == 12
    base = {line[1:3]: (float(line[3]), float(line[4])) for line in found if line[0] == "base"}
    assert base["thinking", "chat"] == base["non-thinking", "chat"] == (1.0, 1.0)
    assert base["thinking", "skill"][0] == 0.0
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
