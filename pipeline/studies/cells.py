"""The files of a cell beside its run: its profile and recipe, so that it can be repeated by hand, and why it has no result."""

from __future__ import annotations

import yaml

from pipeline.core.files import read_json, write_json, write_text
from pipeline.studies.arms import SweepCell


def inputs(cell: SweepCell, recipe: str) -> dict[str, str]:
    """The cell's profile and recipe as texts, by the names of their files; ``recipe``: where its recipe will lie."""
    data = cell.profile.model_dump() | {"recipe": recipe, "mix": {}, "sweep": {}}
    contents = {"recipe.yaml": cell.recipe.model_dump(), "profile.yaml": data}
    return {name: yaml.safe_dump(c, sort_keys=False, allow_unicode=True) for name, c in contents.items()}


def write_inputs(cell: SweepCell) -> None:
    """The cell's own profile and recipe as files, so that its run can be repeated by hand."""
    recipe = cell.folder / "recipe.yaml"
    for name, text in inputs(cell, str(recipe)).items():
        write_text(cell.folder / name, text)


def note_failure(cell: SweepCell, code: int, reason: str) -> None:
    """``failed.json``, which the summary reads."""
    write_json(cell.folder / "failed.json", {"value": cell.value, "seed": cell.seed, "code": code, "reason": reason})


def failure_of(cell: SweepCell) -> str:
    """The reason that ``note_failure`` noted."""
    return str(read_json(cell.folder / "failed.json")["reason"])
