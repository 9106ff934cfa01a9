"""What a learner may rely on in every notebook: a model that answers soon, and library calls that stand in cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def cells(number: str) -> list[Any]:
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    return list(nbformat.read(path, as_version=4).cells)


def code(number: str) -> str:
    return "\n".join(cell.source for cell in cells(number) if cell.cell_type == "code")


def test_a_model_answers_within_the_first_five_cells() -> None:
    answering = [i for i, cell in enumerate(cells("00")) if cell.cell_type == "code" and "print(ask(" in cell.source]
    assert answering[0] < 5
