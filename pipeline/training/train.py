"""Fine-tune: Unsloth loads the base, a method is put on it (LoRA on 4 bit, unless the profile says otherwise), TRL's
SFTTrainer trains on the pre-tokenised mix.

In: a ``Profile`` and a ``Mix``. Out: a trained model in memory, its adapter on disk, and the ``training`` section of the
report (loss, eval loss, throughput, memory). A killed run goes on from its last whole checkpoint.

Notebook 04 makes the same library calls one by one; both give the same adapter weights (tests/test_run.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.processes import first, is_sharded, require_same_size
from pipeline.data.mix import Mix
from pipeline.model.load import name_base
from pipeline.model.methods import add_adapter as add_adapter  # of this step, too
from pipeline.model.methods import add_method, finish
from pipeline.model.methods import load_adapter as load_adapter
from pipeline.model.save import save_adapter
from pipeline.settings import Profile
from pipeline.training.checkpoints import (
    finished,
    identity,
    last_checkpoint,
    progress,
    require_same,
    resume_point,
    step_of,
)
from pipeline.training.measure import MemoryMeter, TokenCounter, count_parameters, over_processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import SFTConfig, SFTTrainer


def sft_config(profile: Profile, output_dir: Path, has_validation: bool) -> SFTConfig:
    """TRL's arguments from the profile. The mix is pre-tokenised, so nothing here touches templates or masks."""
    import torch
    from trl import SFTConfig

    t = profile.training
    evaluate = "steps" if has_validation else "no"
    patience = t.early_stopping_patience
    if patience and not has_validation:
        raise UserError(
            "training.early_stopping_patience needs a validation split; set data.validation_fraction above 0."
        )
    if patience and t.save_steps % t.eval_steps:
        raise UserError("With early stopping, training.save_steps must be a multiple of training.eval_steps.")
    return SFTConfig(
        output_dir=str(output_dir),
        max_length=None,  # too long rows were dropped and counted; nothing may be cut
        max_steps=t.max_steps,
        num_train_epochs=t.num_train_epochs,
        per_device_train_batch_size=t.per_device_train_batch_size,
        per_device_eval_batch_size=t.per_device_train_batch_size,
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        learning_rate=t.learning_rate,
        lr_scheduler_type=t.scheduler_name,
        warmup_steps=t.warmup_steps,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        optim=t.optim,
        gradient_checkpointing=t.gradient_checkpointing,
        eval_strategy=evaluate,
        eval_steps=t.eval_steps,
        save_strategy="steps",
        save_steps=t.save_steps,
        save_total_limit=None,  # CheckpointKeeper removes old ones, once the new one is known to be whole
        restore_callback_states_from_checkpoint=True,  # early stopping goes on counting
        load_best_model_at_end=bool(patience),
        metric_for_best_model="eval_loss" if patience else None,
        greater_is_better=False if patience else None,
        logging_steps=t.logging_steps,
        neftune_noise_alpha=t.neftune_noise_alpha,
        report_to="none",  # pipeline.training.trackers reports
        seed=profile.seed,
        data_seed=profile.seed,
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=torch.cuda.is_available(),
        packing=False,
        remove_unused_columns=True,
    )


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    profile: Profile,
    mix: Mix,
    output_dir: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTTrainer:
    """The SFTTrainer of this run, ready for ``.train()``."""
    from transformers import EarlyStoppingCallback

    from pipeline.training.trainer import Trainer

    columns = ["input_ids", "labels"]
    validation = mix.validation.select_columns(columns) if len(mix.validation) else None
    trainer = Trainer(
        lengths=[len(ids) for ids in mix.train["input_ids"]] if profile.training.group_by_length else None,
        exponential_schedule=profile.training.lr_scheduler_type == "exponential",
        length_limit=profile.model.max_seq_length,
        plus_lr_ratio=profile.lora.plus_lr_ratio,
        model=model,
        processing_class=tokenizer,
        train_dataset=mix.train.select_columns(columns),
        eval_dataset=validation,
        args=sft_config(profile, output_dir, validation is not None),
        callbacks=list(callbacks),
    )
    # SFTTrainer puts the adapter of a 4-bit base into bfloat16, and a checkpoint is read back as float32. Float32 from the
    # first step on lets a resumed run continue exactly, and lets small updates count.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if profile.training.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(profile.training.early_stopping_patience))
    return trainer


def save_trained(trainer: SFTTrainer, folder: Path) -> None:
    """Save adapter and tokenizer of a trained model, from the first of several processes.

    Where each process holds a part of the weights, all of them give theirs.
    """
    model, tokenizer = trainer.model, trainer.processing_class
    if is_sharded(model):
        weights = trainer.accelerator.get_state_dict(model)
        first("adapter", lambda: save_adapter(model, tokenizer, folder, weights), lambda: None)
    else:
        first("adapter", lambda: save_adapter(model, tokenizer, folder), lambda: None)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    profile: Profile,
    mix: Mix,
    output_dir: Path,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    force: bool = False,
    note: Callable[[str], None] = say,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Put the profile's method on the base, train, save what it trained to ``output_dir/adapter``.

    Args:
        model: the base, from ``load_model``.
        resume: go on from the last whole checkpoint in ``output_dir/checkpoints``, if there is one.
        callbacks: transformers' own kind, called while training runs.
        force: go on from a checkpoint of other settings, data or versions.
        note: told what ``force`` went past.

    Returns:
        The tuned model, and the report's ``training`` section.

    Raises:
        UserError: the checkpoint was written with other settings, data or versions; see also ``Trainer``.
    """
    checkpoints = output_dir / "checkpoints"
    who = identity(profile, mix.manifest["fingerprint"])
    checkpoint = None
    if resume:
        checkpoint = first("checkpoint", lambda: resume_point(checkpoints), lambda: last_checkpoint(checkpoints))
    if checkpoint:
        require_same_size(checkpoint)
        differing = require_same(checkpoint, who, force)
        if differing:
            note(f"went on from {checkpoint.name} by --force although {'; '.join(differing)}")
    precision, meter = model.dtype, MemoryMeter()
    model = add_method(model, profile)
    name_base(model, profile.model.name)
    from pipeline.training.callbacks import CheckpointKeeper

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

    keeper = CheckpointKeeper(who, profile.training.save_total_limit, counted)
    trainer = make_trainer(model, tokenizer, profile, mix, checkpoints, [keeper, *callbacks])
    started = time.monotonic()
    try:
        if checkpoint and over:
            trainer.take(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        counter.close()
    seconds = before["seconds"] if over and before else counted()["seconds"]
    history = trainer.state.log_history
    loss = [{"step": e["step"], "loss": e["loss"]} for e in history if "loss" in e]
    evaluations = [{"step": e["step"], "loss": e["eval_loss"]} for e in history if "eval_loss" in e]
    memory = meter.read()
    trainable, total = count_parameters(model)
    finish(model, profile.chosen_method, precision)
    save_trained(trainer, output_dir / "adapter")
    tokens, loss_tokens, peak = over_processes(trainer, counter)
    return model, {
        "method": profile.chosen_method,
        "steps": trainer.state.global_step,
        "loss": loss,
        "eval_loss": evaluations,
        "tokens_per_second": tokens / seconds,
        "loss_tokens_per_second": loss_tokens / seconds,
        "training_seconds": seconds,
        "peak_memory_bytes": peak,
        "memory_above_base_bytes": memory,
        "trainable_parameters": trainable,
        "total_parameters": total,
    }
