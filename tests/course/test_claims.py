"""docs/claims.md: every number in a notebook's answer has a line, and every line that names a file says what stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ROWS = [
    [part.strip() for part in line.strip().strip("|").split("|")]
    for line in (ROOT / "docs" / "claims.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d\d", line)
]


def answer_of(path: Path) -> str:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.source.startswith("## The answer"):
            return cell.source.partition("### What could go wrong")[0]
    return ""


def numbers(text: str) -> set[str]:
    """Results in a text: decimal numbers, without shares such as 0.25 of a mix and settings such as 1,400 steps."""
    return set(re.findall(r"(?<![\d.,])\d\.\d{2,3}(?!\d)", text))


def leaf(path: str) -> tuple[float, list[float] | None]:
    """Value and interval at ``base/thinking/…`` or ``points[0.25]/modes/…`` of a document of docs/results."""
    name, _, places = path.partition(" ")
    node: Any = json.loads((ROOT / "docs" / "results" / name.strip("`")).read_text(encoding="utf-8"))
    before: Any = None
    for place in places.split("/"):
        key, _, wanted = place.partition("[")
        before, node = node, node[key]
        if wanted:
            (node,) = [p for p in node if str(p.get("value", p.get("name"))) == wanted.rstrip("]")]
    if isinstance(node, dict):
        return node["value"] if "value" in node else node["score"], node["ci95"]
    return node, before.get("mode_fidelity_ci95")


def test_every_notebook_has_lines() -> None:
    assert {row[0] for row in ROWS} == {n.name.partition("_")[0] for n in NOTEBOOKS}
    assert all(len(row) == 7 and all(row) for row in ROWS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_each_number_of_an_answer_has_its_line(path: Path) -> None:
    number = path.name.partition("_")[0]
    lines = " ".join(" ".join(row[1:6]) for row in ROWS if row[0] == number)
    missing = {n for n in numbers(answer_of(path)) if n not in lines and f"share {n}" not in lines}
    assert not missing, f"no line of docs/claims.md for notebook {number} has {', '.join(sorted(missing))}"


def test_a_number_without_a_line_is_noticed() -> None:
    assert numbers("at share 0.25 it is 0.843 [0.786, 0.887] after 1,400 steps") == {"0.25", "0.843", "0.786", "0.887"}


FROM_FILES = [row for row in ROWS if re.match(r"`\w+\.json` ", row[6])]


@pytest.mark.parametrize("row", FROM_FILES, ids=[f"{row[0]}: {row[1]}" for row in FROM_FILES])
def test_a_line_says_what_the_file_says(row: list[str]) -> None:
    value, interval = leaf(row[6])
    assert row[2] == f"{value:.3f}"
    assert interval and row[4] == f"{interval[0]:.3f} to {interval[1]:.3f}"
