"""What a folder of an evaluation holds: ``<mode>/cell.json`` of each mode, written last.

A model with one mode has one cell; ``modes.json`` beside the folders of the modes says which. It is there only for such models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict  # of typing's own, pydantic wants Python 3.12

from pipeline.core.files import read_json, write_json
from pipeline.core.modes import MODES, Mode
from pipeline.core.statistics import interval, wilson

if TYPE_CHECKING:
    from pipeline.evaluation.evalscope.task import TaskRow


class Score(TypedDict):
    """Mean score of one benchmark over ``n`` items, with its 95 % interval."""

    score: float
    n: int
    ci95: list[float]


class Cell(TypedDict):
    """What one model did in one mode. Rates are shares of its ``n`` replies, over all benchmarks."""

    benchmarks: dict[str, Score]
    n: int
    mode_fidelity: float
    mode_fidelity_ci95: list[float]
    opened: float
    closed: float
    leaked: float
    truncated: float
    mean_reasoning_tokens: float
    mean_answer_tokens: float


class StoredCell(TypedDict):
    """``cell.json``: a cell, and what it is of."""

    fingerprint: str
    model_id: str
    mode: Mode
    notes: list[str]
    cell: Cell


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


def finished_cells(folder: Path) -> dict[Mode, StoredCell] | None:
    """What ``<mode>/cell.json`` holds of each mode of the model; None where one is missing."""
    paths = {mode: folder / mode / "cell.json" for mode in modes_in(folder)}
    if not paths or not all(path.exists() for path in paths.values()):
        return None
    return {mode: read_json(path) for mode, path in paths.items()}


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A prediction as the report prints it."""
    messages = row["messages"]
    prompt = (
        messages[-1]["content"] if len(messages) == 1 else "\n".join(f"{m['role']}: {m['content']}" for m in messages)
    )
    return {
        "benchmark": row["benchmark"],
        "prompt": prompt,
        "reply": row["reply"],
        "expected": str(row["reference"]),
        "correct": row["score"] == 1.0,
        "truncated": row["truncated"],
    }


def summarised(rows: Sequence[TaskRow]) -> Cell:
    """Scores with intervals by benchmark, and the form of the replies over all of them."""
    by_name: dict[str, list[float]] = {}
    for row in rows:
        by_name.setdefault(row["benchmark"], []).append(row["score"])
    faithful = sum(row["faithful"] for row in rows)

    def mean(key: str) -> float:
        return float(sum(row[key] for row in rows) / len(rows))

    return {
        "benchmarks": {
            name: {"score": sum(scores) / len(scores), "n": len(scores), "ci95": interval(scores)}
            for name, scores in by_name.items()
        },
        "n": len(rows),
        "mode_fidelity": faithful / len(rows),
        "mode_fidelity_ci95": wilson(faithful, len(rows)),
        "opened": mean("opened"),
        "closed": mean("closed"),
        "leaked": mean("leaked"),
        "truncated": mean("truncated"),
        "mean_reasoning_tokens": mean("reasoning_tokens"),
        "mean_answer_tokens": mean("answer_tokens"),
    }
