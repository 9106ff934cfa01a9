"""What a learner may rely on in every notebook: a model that answers soon, and library calls that stand in cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def cells(number: str) -> list[Any]:
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    return list(nbformat.read(path, as_version=4).cells)


def code(number: str) -> str:
    return "\n".join(cell.source for cell in cells(number) if cell.cell_type == "code")


def test_a_model_answers_within_the_first_five_cells() -> None:
    answering = [i for i, cell in enumerate(cells("00")) if cell.cell_type == "code" and "print(ask(" in cell.source]
    assert answering[0] < 5


@pytest.mark.parametrize(
    ("number", "calls"),
    [
        ("00", ["FastLanguageModel.from_pretrained("]),
        ("03", ["load_dataset(", "concatenate_datasets(", ".shuffle("]),
        ("04", ["SFTConfig(", "SFTTrainer(", "trainer.train()"]),
        ("05", ["TaskConfig("]),
        ("07", ["create_study(", "def objective(trial)"]),
        ("08", ["LoraConfig(", "PrefixTuningConfig(", "PromptTuningConfig(", "IA3Config(", "get_peft_model("]),
        ("09", ["DPOConfig(", "DPOTrainer(", "GRPOConfig(", "GRPOTrainer("]),
    ],
)
def test_the_calls_of_the_libraries_stand_in_cells(number: str, calls: list[str]) -> None:
    source = code(number)
    assert [call for call in calls if call not in source] == []
