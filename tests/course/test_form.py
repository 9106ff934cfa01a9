"""What a learner may rely on in every notebook: a model that answers soon, and library calls that stand in cells."""

from __future__ import annotations

import importlib
import inspect
import re
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


def test_a_model_answers_within_the_first_six_cells() -> None:
    answering = [i for i, cell in enumerate(cells("00")) if cell.cell_type == "code" and "print(ask(" in cell.source]
    assert answering[0] < 6


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


def text_of(number: str) -> str:
    return "\n".join(cell.source for cell in cells(number) if cell.cell_type == "markdown")


NUMBERS = [path.name.partition("_")[0] for path in sorted(NOTEBOOKS.glob("*.ipynb"))]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_question_stands_at_the_top_and_the_answer_with_its_number_at_the_bottom(number: str) -> None:
    assert re.search(r"^\*\*The question\*\*: .+\?$", cells(number)[0].source, re.MULTILINE)
    places = [i for i, cell in enumerate(cells(number)) if cell.source.startswith("## The answer\n")]
    exercises = [i for i, cell in enumerate(cells(number)) if cell.source.startswith("## Exercises")]
    assert len(places) == len(exercises) == 1 and places[0] == exercises[0] - 1
    answer = cells(number)[places[0]].source
    assert re.search(r"^\*\*Answer\*\*: .*?\d", answer, re.MULTILINE | re.DOTALL)
    assert "### What could go wrong\n\n| what you see | what to do |" in answer
    assert re.search(r"^### On a GPU\n\n- .+", answer, re.MULTILINE)


@pytest.mark.parametrize("number", NUMBERS)
def test_results_are_read(number: str) -> None:
    text = text_of(number)
    assert text.count("**What you see**") == text.count("**What it does not show**")
    assert number == "01" or text.count("**What you see**") >= 1


def test_a_dozen_exercises_train_or_ask_a_model() -> None:
    """Their checks go through the bench, and the text says so."""
    found = [
        name
        for number in NUMBERS
        for name in re.findall(r"^\*\*(\w+\.\d+)\*\* \((?:trains|asks)", text_of(number), re.MULTILINE)
    ]
    assert len(found) >= 12
    for name in found:
        module = importlib.import_module(f"pipeline.course.exercises.nb{name.partition('.')[0]}")
        source = inspect.getsource(module)
        own = source.partition(f'@exercise("{name}")')[2].partition("@exercise")[0]
        assert "teach(" in own or "= embedded()" in own or "ask_adapter(" in source


def test_every_notebook_has_such_an_exercise() -> None:
    for number in NUMBERS:
        assert re.search(r"^\*\*\w+\.\d+\*\* \((?:trains|asks)", text_of(number), re.MULTILINE), number
