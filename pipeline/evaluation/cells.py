"""What a folder of an evaluation holds: ``<mode>/cell.json`` of each mode, written last.

A model with one mode has one cell; ``modes.json`` beside the folders of the modes says which. It is there only for such models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.files import read_json, write_json
from pipeline.core.modes import MODES, Mode

_MODES = "modes.json"


def write_modes(folder: Path, modes: Sequence[Mode]) -> None:
    """Note which modes the evaluated model has."""
    if tuple(modes) == MODES:
        (folder / _MODES).unlink(missing_ok=True)
    else:
        write_json(folder / _MODES, list(modes))


def modes_in(folder: Path) -> list[Mode]:
    """The modes of the model that is evaluated in this folder; both where nothing else is noted."""
    path = folder / _MODES
    noted = read_json(path) if path.exists() else MODES
    return [mode for mode in MODES if mode in noted]


def finished_cells(folder: Path) -> dict[Mode, dict[str, Any]] | None:
    """What ``<mode>/cell.json`` holds of each mode of the model; None where one is missing."""
    paths = {mode: folder / mode / "cell.json" for mode in modes_in(folder)}
    if not paths or not all(path.exists() for path in paths.values()):
        return None
    return {mode: dict(read_json(path)) for mode, path in paths.items()}
