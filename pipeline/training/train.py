"""Fine-tune: Unsloth loads the base, a method is put on it (LoRA on 4 bit, unless the profile says otherwise), TRL's
SFTTrainer trains on the pre-tokenised mix.

In: a ``Profile`` and a ``Mix``. Out: a trained model in memory, its adapter on disk, and the ``training`` section of the
report (loss, eval loss, throughput, memory). A killed run goes on from its last whole checkpoint.

Notebook 04 makes the same library calls one by one; both give the same adapter weights (tests/test_run.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError
from pipeline.data.mix import Mix
from pipeline.model.dtype import mixed_precision
from pipeline.model.load import name_base
from pipeline.model.methods import add_adapter as add_adapter  # of this step, too
from pipeline.model.methods import add_method, finish
from pipeline.model.methods import load_adapter as load_adapter
from pipeline.settings import Profile
from pipeline.training.checkpoints import identity
from pipeline.training.keeping import held_to_base, reasoning_rows, require_one_process
from pipeline.training.loop import Session, Task, Trained, run_task
from pipeline.training.records import TrainingRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
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
        per_device_eval_batch_size=t.per_device_eval_batch_size or t.per_device_train_batch_size,
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
        logging_steps=min(t.logging_steps, t.max_steps) if t.max_steps > 0 else t.logging_steps,
        neftune_noise_alpha=t.neftune_noise_alpha,
        report_to="none",  # pipeline.training.trackers reports
        seed=profile.seed,
        data_seed=profile.seed,
        **mixed_precision(profile.model),
        dataloader_pin_memory=torch.cuda.is_available(),
        packing=False,
        # Left open, Unsloth joins the rows of a batch into one on a GPU: without the mask that virtual tokens need, and with
        # a validation loss that cannot be compared with that of another machine. And rows stay rows,
        # so that each can be held to the base or not (kl_to_base).
        padding_free=False,
        remove_unused_columns=True,
    )


def make_sft_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    profile: Profile,
    mix: Mix,
    output_dir: Path,
) -> SFTTrainer:
    """The SFTTrainer of this run, ready for ``.train()``."""
    from transformers import EarlyStoppingCallback

    from pipeline.training.trainer import Trainer

    columns, t = ["input_ids", "labels"], profile.training
    validation = mix.validation.select_columns(columns) if len(mix.validation) else None
    rows = mix.train.select_columns(columns)
    if t.kl_to_base:
        require_one_process(t.kl_to_base)
        rows = rows.add_column("counts", held_to_base(profile, mix))
    trainer = Trainer(
        lengths=[len(ids) for ids in mix.train["input_ids"]] if profile.training.group_by_length else None,
        exponential_schedule=profile.training.lr_scheduler_type == "exponential",
        length_limit=profile.model.max_seq_length,
        plus_lr_ratio=profile.lora.plus_lr_ratio,
        kl_to_base=t.kl_to_base,
        first=reasoning_rows(profile, mix),
        model=model,
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=validation,
        args=sft_config(profile, output_dir, validation is not None),
    )
    # SFTTrainer puts the adapter of a 4-bit base into bfloat16, and a checkpoint is read back as float32. Float32 from the
    # first step on lets a resumed run continue exactly, and lets small updates count.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if profile.training.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(profile.training.early_stopping_patience))
    return trainer


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    profile: Profile,
    mix: Mix,
    session: Session,
) -> tuple[PreTrainedModel, TrainingRecord]:
    """Put the profile's method on the base, train, save what it trained to the session's folder; see ``loop.Task``.

    Args:
        model: the base, from ``load_model``.
        session: where the training lies, and whether it is gone on with.

    Returns:
        The tuned model, and the report's ``training`` section.

    Raises:
        UserError: see ``loop.run_task``.
    """
    precision, method = model.dtype, profile.chosen_method
    if profile.training.kl_to_base and method in ("full", "prefix", "prompt"):
        raise UserError(
            f"training.kl_to_base compares with the base by switching the adapter off, and method {method} has none that can be; "
            "use a method of LoRA's kind, ia3 or adapter, or set it to 0."
        )

    def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        tuned = add_method(model, profile)
        name_base(tuned, profile.model.name)
        return tuned, tokenizer

    task = Task(
        session=session,
        identity=identity(profile, mix.manifest["fingerprint"]),
        keep=profile.training.save_total_limit,
        load=load,
        make_trainer=lambda tuned, tok, checkpoints: make_sft_trainer(tuned, tok, profile, mix, checkpoints),
        finish=lambda tuned: finish(tuned, method, precision),
        metrics={"kl": "kl_to_base"} if profile.training.kl_to_base else {},
    )
    return run_task(task, lambda trained: training_section(trained, method))


def training_section(trained: Trained, method: str) -> TrainingRecord:
    """The report's ``training`` section."""
    return {
        "method": method,
        "steps": trained.steps,
        "loss": trained.curve,
        "eval_loss": trained.eval_curve,
        "tokens_per_second": trained.tokens / trained.seconds,
        "loss_tokens_per_second": trained.loss_tokens / trained.seconds,
        "training_seconds": trained.seconds,
        "peak_memory_bytes": trained.peak_memory_bytes,
        "memory_above_base_bytes": trained.memory_above_base_bytes,
        "trainable_parameters": trained.trainable_parameters,
        "total_parameters": trained.total_parameters,
    }
