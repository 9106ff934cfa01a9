"""The validation losses of a run so far, for a study that stops what is behind."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import read_json


def validation_losses(run: Path) -> dict[int, float]:
    """Validation loss by step so far: of a finished training, else of its newest checkpoint."""
    record = run / "training.json"
    if record.exists():
        return {entry["step"]: entry["loss"] for entry in read_json(record)["eval_loss"]}
    states = sorted(run.glob("checkpoints/checkpoint-*/trainer_state.json"), key=lambda p: int(p.parent.name[11:]))
    for path in reversed(states):
        try:
            history = read_json(path)["log_history"]
        except (UserError, OSError):  # it is being written, or has just been removed
            continue
        return {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    return {}
