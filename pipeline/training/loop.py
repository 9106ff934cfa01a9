"""The one training loop, of supervised fine-tuning and of the second stages: it goes on where a kill left off, and records.

In: a ``Task``: a folder, what a checkpoint of it is known by, and how to make the model and TRL's trainer. Out, in the folder:

    checkpoints/     the newest ``keep``, each with its manifest (see ``pipeline.training.checkpoints``)
    adapter/         what was trained, with the tokenizer
    training.json    curves, seconds, memory, parameters; written last
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.processes import first, is_sharded, require_same_size
from pipeline.model.save import save_adapter
from pipeline.training.checkpoints import (
    clear_aside,
    finished,
    last_checkpoint,
    progress,
    require_same,
    resume_point,
    step_of,
)
from pipeline.training.measure import MemoryMeter, TokenCounter, count_parameters, over_processes
from pipeline.training.records import read_record
from pipeline.training.space import require_space

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback


R = TypeVar("R")


def _nothing(model: Any) -> None:
    """What has to be done to a trained model before it is saved: nothing."""


@dataclass(frozen=True)
class Session:
    """How a training is gone about, whatever is trained.

    Args:
        folder: where ``checkpoints/``, ``adapter/`` and ``training.json`` go.
        resume: go on from the last whole checkpoint, if there is one.
        force: go on from a checkpoint of other settings, data or versions.
        note: told what ``force`` went past.
        callbacks: transformers' own kind, called while training runs.
    """

    folder: Path
    resume: bool = False
    force: bool = False
    note: Callable[[str], None] = say
    callbacks: Sequence[TrainerCallback] = ()

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


@dataclass
class Task:
    """A training beside its trainer.

    Args:
        session: where it lies, and whether it is gone on with.
        identity: what a checkpoint to go on from must have been written with (``checkpoints.identity``).
        keep: checkpoints that stay.
        load: gives (model, tokenizer), ready to be trained.
        make_trainer: from (model, tokenizer, folder of checkpoints) to a trainer with ``StopsInTime``.
        finish: called with the trained model before it is saved.
        metrics: name in the curves → name in the trainer's log, e.g. ``{"margin": "rewards/margins"}``.
    """

    session: Session
    identity: dict[str, Any]
    keep: int
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    make_trainer: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Path], Any]
    finish: Callable[[PreTrainedModel], None] = _nothing
    metrics: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Trained:
    """What came of a training; numbers are of the whole of it, also where it was resumed.

    ``curve`` and ``eval_curve``: [{"step", "loss", …metrics}]. ``seconds``: of training, without those of validation.
    ``memory_above_base_bytes``: above what was in use before ``Task.load``; None where it is not measured.
    """

    model: PreTrainedModel
    steps: int
    resumed_from: int
    curve: list[dict[str, Any]]
    eval_curve: list[dict[str, Any]]
    seconds: float
    tokens: int
    loss_tokens: int
    peak_memory_bytes: int
    memory_above_base_bytes: int | None
    trainable_parameters: int
    total_parameters: int


def done(folder: Path, resume: bool, form: type[R]) -> R | None:
    """``training.json`` of a training that is finished; None: it is to be begun, or gone on with.

    Raises:
        UserError: it is unfinished, and ``resume`` is off; or ``training.json`` has not the form.
    """
    record = folder / "training.json"
    if record.exists():
        return read_record(record, form)
    if not resume and last_checkpoint(folder / "checkpoints") is not None:
        raise UserError(f"{folder} holds checkpoints of an unfinished training; add --resume to go on with it.")
    return None


def run_task(task: Task, record: Callable[[Trained], R]) -> tuple[PreTrainedModel, R]:
    """Train, save the adapter, write ``training.json``.

    Args:
        record: from the outcome to the content of ``training.json``.

    Returns:
        The trained model, and that content.

    Raises:
        UserError: the checkpoint was written under other conditions, the disk is too small; see also ``StopsInTime``.
    """
    checkpoint = _starting_point(task)
    trained = _train(task, checkpoint)
    section = record(trained)

    def write() -> R:
        write_json(task.session.folder / "training.json", section)
        clear_aside(task.session.checkpoints)
        return section

    return trained.model, first("training.json", write, lambda: section)


def _starting_point(task: Task) -> Path | None:
    """The checkpoint to go on from; None: step 0."""
    session = task.session
    if not session.resume:
        return None
    folder = session.checkpoints
    checkpoint = first("checkpoint", lambda: resume_point(folder), lambda: last_checkpoint(folder))
    if checkpoint:
        require_same_size(checkpoint)
        differing = require_same(checkpoint, task.identity, session.force)
        if differing:
            session.note(f"went on from {checkpoint.name} by --force although {'; '.join(differing)}")
    return checkpoint


def _train(task: Task, checkpoint: Path | None) -> Trained:
    from pipeline.training.callbacks import CheckpointKeeper

    session, meter = task.session, MemoryMeter()
    model, tokenizer = task.load()
    trainable, total = count_parameters(model)
    before = progress(checkpoint)
    from_step = step_of(checkpoint) if checkpoint else 0
    over = checkpoint is not None and finished(checkpoint)  # asked now: training removes old checkpoints
    counter = TokenCounter(model, int(before.get("tokens", 0)), int(before.get("loss_tokens", 0)))
    started = time.monotonic()

    def counted() -> dict[str, float]:
        """Tokens, and seconds of training without those of validation, this process and the ones before it together."""
        evaluating = sum(e.get("eval_runtime", 0.0) for e in trainer.state.log_history if e["step"] > from_step)
        seconds = before.get("seconds", 0.0) + time.monotonic() - started - evaluating
        return {"tokens": counter.tokens, "loss_tokens": counter.loss_tokens, "seconds": max(seconds, 1e-9)}

    trainer = task.make_trainer(model, tokenizer, session.checkpoints)
    trainer.counter = counter
    room = (session.folder, trainable, task.keep, trainer.args.optim)
    first("space", lambda: require_space(*room), lambda: None)
    for callback in (CheckpointKeeper(task.identity, task.keep, counted), *session.callbacks):
        trainer.add_callback(callback)
    started = time.monotonic()
    try:
        if checkpoint and over:
            trainer.take(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        counter.close()
    seconds = before["seconds"] if over and "seconds" in before else counted()["seconds"]
    memory = meter.read()
    task.finish(model)
    save_trained(trainer, session.folder / "adapter")
    tokens, loss_tokens, peak = over_processes(trainer, counter)
    return Trained(
        model=model,
        steps=trainer.state.global_step,
        resumed_from=from_step,
        curve=_curve(trainer.state.log_history, "loss", "", task.metrics),
        eval_curve=_curve(trainer.state.log_history, "eval_loss", "eval_", task.metrics),
        seconds=seconds,
        tokens=tokens,
        loss_tokens=loss_tokens,
        peak_memory_bytes=peak,
        memory_above_base_bytes=memory,
        trainable_parameters=trainable,
        total_parameters=total,
    )


def _curve(
    history: Sequence[Mapping[str, Any]], loss: str, prefix: str, metrics: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The entries of transformers' log that have a loss, by the names of ``training.json``."""
    return [
        {"step": e["step"], "loss": e[loss], **{name: e.get(prefix + key) for name, key in metrics.items()}}
        for e in history
        if loss in e
    ]


def save_trained(trainer: Any, folder: Path) -> None:
    """Save adapter and tokenizer of a trained model, from the first of several processes.

    Where each process holds a part of the weights, all of them give theirs.
    """
    model, tokenizer = trainer.model, trainer.processing_class
    if is_sharded(model):
        weights = trainer.accelerator.get_state_dict(model)
        first("adapter", lambda: save_adapter(model, tokenizer, folder, weights), lambda: None)
    else:
        first("adapter", lambda: save_adapter(model, tokenizer, folder), lambda: None)
