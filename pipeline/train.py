"""Fine-tune: Unsloth loads the base in 4 bit and adds LoRA, TRL's SFTTrainer trains on the pre-tokenised mix.

In: a ``Profile`` and a ``Mix``. Out: a trained model in memory, its adapter on disk, and the ``training`` section of the
report (loss, eval loss, throughput, memory). A killed run goes on from its last whole checkpoint.

Notebook 04 makes the same library calls one by one; both give the same adapter weights (tests/test_run.py).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.hubs import require_hub
from pipeline.mix import Mix
from pipeline.settings import LoraSettings, ModelSettings, Profile, TrainingSettings, locate
from pipeline.versions import import_unsloth

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import SFTConfig, SFTTrainer


# --- model and adapter --------------------------------------------------------------------------------------------------


def model_location(settings: ModelSettings, weights: bool = True) -> str:
    """The folder or hub name to load, checked before any library tries.

    Args:
        weights: whether the folder has to hold a whole model; its tokenizer is enough to build data.

    Raises:
        UserError: the folder is missing or holds no model; the hub cannot be reached.
    """
    if settings.source != "local":
        require_hub(
            settings.source,
            f"model {settings.name!r}",
            "put the model's folder here and give it as model.name with model.source=local, or use the embedded profile.",
        )
        if settings.source == "modelscope":
            os.environ["UNSLOTH_USE_MODELSCOPE"] = "1"
        return settings.name
    folder = locate(settings.name)
    if not folder.is_dir():
        raise UserError(
            f"There is no model folder {settings.name!r}. Give a folder with model.name, or set model.source=huggingface "
            "(or modelscope) to load that name from a hub."
        )
    needed = ("config.json", "tokenizer_config.json") if weights else ("tokenizer_config.json",)
    lacking = [what for what in needed if not (folder / what).exists()]
    if weights and not any(folder.glob("*.safetensors")):
        lacking.append("*.safetensors")
    if lacking:
        kind = "model" if weights else "tokenizer"
        raise UserError(f"{settings.name!r} is no {kind} folder: it has no {', no '.join(lacking)}.")
    return str(folder)


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer alone; a folder that holds nothing else will do."""
    location = model_location(settings, weights=False)
    if settings.source == "modelscope":
        from modelscope import snapshot_download

        location = snapshot_download(
            settings.name, revision=settings.revision, ignore_patterns=["*.safetensors", "*.bin"]
        )
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(location, revision=settings.revision)


def load_model(settings: ModelSettings, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Base model and tokenizer through ``FastLanguageModel``, quantised to NF4 where ``load_in_4bit``.

    A 16-bit checkpoint is quantised on the fly, a pre-quantised one (``…-bnb-4bit``) is taken as it is.

    Raises:
        UserError: wrong versions, missing folder, or no way to the hub.
    """
    location = model_location(settings)
    import_unsloth()
    import torch
    from unsloth import FastLanguageModel

    if settings.cpu_threads:
        torch.set_num_threads(settings.cpu_threads)
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=location,
        max_seq_length=settings.max_seq_length,
        load_in_4bit=settings.load_in_4bit,
        load_in_16bit=not settings.load_in_4bit,
        dtype=None,
        revision=settings.revision,
        random_state=seed,
    )
    return model, tokenizer


def add_adapter(model: PreTrainedModel, lora: LoraSettings, training: TrainingSettings, seed: int) -> PreTrainedModel:
    """Put LoRA on the model; its matrix A is drawn from ``seed``, its matrix B is zero.

    Raises:
        UserError: a target module that the model does not have.
    """
    from transformers import set_seed
    from unsloth import FastLanguageModel

    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    unknown = [module for module in lora.target_modules if module not in names]
    if unknown:
        raise UserError(f"lora.target_modules: the model has no module {', '.join(unknown)}.")
    set_seed(seed)
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora.rank,
        lora_alpha=lora.scale_alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.use_rslora,
        bias="none",
        use_gradient_checkpointing="unsloth" if training.gradient_checkpointing else False,
        random_state=seed,
    )
    return model


def load_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Put a trained adapter on its base, for evaluation.

    Raises:
        UserError: the folder holds no adapter.
    """
    if not (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} holds no adapter (no adapter_config.json); train one first, or give another folder.")
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder))


# --- training -----------------------------------------------------------------------------------------------------------


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
        save_total_limit=t.save_total_limit,
        load_best_model_at_end=bool(patience),
        metric_for_best_model="eval_loss" if patience else None,
        greater_is_better=False if patience else None,
        logging_steps=t.logging_steps,
        report_to=t.report_to,
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

    from pipeline.trainer import Trainer

    columns = ["input_ids", "labels"]
    validation = mix.validation.select_columns(columns) if len(mix.validation) else None
    trainer = Trainer(
        lengths=[len(ids) for ids in mix.train["input_ids"]] if profile.training.group_by_length else None,
        exponential_schedule=profile.training.lr_scheduler_type == "exponential",
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


class TokenCounter:
    """Counts the tokens that training really sees: all of them without padding, and those with loss.

    It hooks the model's forward pass, so it holds for every sampler, schedule and resumed run.
    """

    def __init__(self, model: PreTrainedModel):
        self.tokens = 0
        self.loss_tokens = 0
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if model.training and kwargs.get("labels") is not None:
            mask = kwargs.get("attention_mask")
            self.tokens += int(kwargs["input_ids"].numel() if mask is None else mask.sum())
            self.loss_tokens += int((kwargs["labels"] != -100).sum())

    def close(self) -> None:
        self._hook.remove()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in the folder. A half-written one, left by a kill, lacks its last file and is skipped."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for checkpoint in checkpoints:
        needed = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
        try:
            if all((checkpoint / name).stat().st_size > 0 for name in needed):
                json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
                return checkpoint
        except (OSError, json.JSONDecodeError):
            continue
    return None


def peak_memory_bytes() -> int:
    """Peak memory so far, in bytes: reserved on the GPU where there is one, else of this process (resident set)."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def save_adapter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save adapter and tokenizer as a whole: written beside the folder first, then renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """(trainable, all) parameters. A 4-bit weight counts as the parameters it stands for, not as its packed bytes."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        size = int(state.shape.numel()) if state is not None else parameter.numel()
        total += size
        trainable += size if parameter.requires_grad else 0
    return trainable, total


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    profile: Profile,
    mix: Mix,
    output_dir: Path,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Add an adapter, train it, save it to ``output_dir/adapter``.

    Args:
        model: the base, from ``load_model``.
        resume: go on from the last whole checkpoint in ``output_dir/checkpoints``, if there is one.
        callbacks: transformers' own kind, called while training runs.

    Returns:
        The model with its adapter, and the report's ``training`` section.

    Raises:
        UserError: the loss is not a number, with the step.
    """
    import torch

    model = add_adapter(model, profile.lora, profile.training, profile.seed)
    checkpoints = output_dir / "checkpoints"
    trainer = make_trainer(model, tokenizer, profile, mix, checkpoints, callbacks)
    checkpoint = last_checkpoint(checkpoints) if resume else None
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    counter = TokenCounter(model)
    started = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        counter.close()
    seconds = time.monotonic() - started
    history = trainer.state.log_history
    loss = [{"step": e["step"], "loss": e["loss"]} for e in history if "loss" in e]
    evaluations = [{"step": e["step"], "loss": e["eval_loss"]} for e in history if "eval_loss" in e]
    for what, entries in (("loss", loss), ("validation loss", evaluations)):
        for entry in entries:
            if not math.isfinite(entry["loss"]):
                raise UserError(
                    f"The {what} became {entry['loss']} at step {entry['step']}. Lower training.learning_rate "
                    f"(now {profile.training.learning_rate:g}) or training.max_grad_norm and run again; checkpoints "
                    "before it are kept."
                )
    first = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    evaluation_seconds = sum(e.get("eval_runtime", 0.0) for e in history if e["step"] > first)
    training_seconds = max(seconds - evaluation_seconds, 1e-9)
    trainable, total = count_parameters(model)
    save_adapter(model, tokenizer, output_dir / "adapter")
    return model, {
        "steps": trainer.state.global_step,
        "loss": loss,
        "eval_loss": evaluations,
        "tokens_per_second": counter.tokens / training_seconds,
        "loss_tokens_per_second": counter.loss_tokens / training_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "trainable_parameters": trainable,
        "total_parameters": total,
    }


def prequantise(settings: ModelSettings, output_dir: Path) -> None:
    """Save the base as it stands after 4-bit quantisation, so that later runs load NF4 weights and quantise nothing."""
    model, tokenizer = load_model(settings.model_copy(update={"load_in_4bit": True}), seed=0)
    save_adapter(model, tokenizer, output_dir)
