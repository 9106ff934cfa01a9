"""What the trainer calls while it trains: finish each checkpoint, and report to the trackers.

Import it after unsloth, which replaces parts of transformers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pipeline.core.console import Bar
from pipeline.training.checkpoints import PREFIX, rotate, write_manifest
from pipeline.training.measure import return_freed
from pipeline.training.trackers import Trackers, trainer_values


class CheckpointKeeper(TrainerCallback):
    """Gives each checkpoint its manifest once it is written, and only then removes old ones.

    transformers removes old checkpoints before the new one could be checked; so its own ``save_total_limit`` is not used.

    Args:
        identity: see ``pipeline.training.checkpoints.identity``.
        keep: how many stay, ``training.save_total_limit``.
        progress: what has been counted so far, for a resumed run to go on counting.
    """

    def __init__(self, identity: dict[str, Any], keep: int, progress: Callable[[], dict[str, float]] = dict):
        self.identity, self.keep, self.progress = identity, keep, progress

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            write_manifest(folder / f"{PREFIX}{state.global_step}", self.identity, self.progress())
            rotate(folder, self.keep, state.best_model_checkpoint)


def tracker_callbacks(trackers: Trackers) -> list[TrainerCallback]:
    """What the trainer has to call; empty without trackers."""
    return [TrackerCallback(trackers)] if trackers.names else []


class TrackerCallback(TrainerCallback):
    """Hands the trainer's log to the trackers."""

    def __init__(self, trackers: Trackers):
        self.trackers = trackers

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.trackers.begin(state.global_step, state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.trackers.log(trainer_values(logs or {}), state.global_step)


class FreedMemory(TrainerCallback):
    """Every ten seconds, gives back what glibc keeps of freed memory: batches of many shapes leave more and more of it behind.

    After every step it would cost a quarter of the speed (docs/real_weights.md).
    """

    SECONDS = 10.0

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self._last >= self.SECONDS:
            return_freed()
            self._last = time.monotonic()


class StepBar(TrainerCallback):
    """The progress of the steps, in place of transformers' own bar and of the log that it prints."""

    def __init__(self) -> None:
        self._bar: Bar | None = None

    def __enter__(self) -> StepBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = Bar("train", state.max_steps, state.global_step).__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.done)
