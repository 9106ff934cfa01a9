"""Fine-tune: Unsloth loads the base, a method is put on it (LoRA on 4 bit, unless the profile says otherwise), TRL's
SFTTrainer trains on the pre-tokenised mix.

In: a ``Profile`` and a ``Mix``. Out: a trained model in memory, its adapter on disk, and the ``training`` section of the
report (loss, eval loss, throughput, memory). A killed run goes on from its last whole checkpoint.

Notebook 04 makes the same library calls one by one; both give the same adapter weights (tests/test_run.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints import finished, identity, last_checkpoint, progress, require_same, resume_point, step_of
from pipeline.errors import UserError
from pipeline.hubs import require_hub
from pipeline.methods import add_adapter as add_adapter  # of this step, too
from pipeline.methods import add_method, describe, finish
from pipeline.methods import load_adapter as load_adapter
from pipeline.mix import Mix
from pipeline.pools import say
from pipeline.processes import first, is_sharded, require_same_size, size
from pipeline.settings import ModelSettings, Profile, locate
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


def load_model(
    settings: ModelSettings, seed: int, full_finetuning: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Base model and tokenizer through ``FastLanguageModel``, quantised to NF4 where ``load_in_4bit``.

    A 16-bit checkpoint is quantised on the fly, a pre-quantised one (``…-bnb-4bit``) is taken as it is.

    Args:
        full_finetuning: load for method ``full``: on a GPU Unsloth then takes other code.

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
        # Checkpointing is the trainer's business; with full_finetuning alone the loader would switch it on by itself.
        **({"full_finetuning": True, "use_gradient_checkpointing": False} if full_finetuning else {}),
    )
    if settings.load_in_4bit and model.device.type == "cpu":
        let_go_of_file(model)
    return model, tokenizer


def let_go_of_file(model: PreTrainedModel) -> None:
    """Copy the weights that were not quantised, so that nothing holds the checkpoint's file in memory any more.

    They are views of the mapped file, and as long as one is, the pages of all that was read from it stay resident: the 16-bit
    weights beside their 4-bit copies, 840 MiB in the shape of Qwen3-0.6B.
    """
    for parameter in model.parameters():
        if getattr(parameter, "quant_state", None) is None:
            parameter.data = parameter.data.clone()


def name_base(model: PreTrainedModel, name: str) -> None:
    """Have the adapter name its base as the profile does, not by the folder that it was loaded from on this machine."""
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = name


# --- training -----------------------------------------------------------------------------------------------------------

SHORT = 512  # tokens; up to here attention written out is the faster one on a CPU, and its scores take little memory


@contextlib.contextmanager
def written_out_attention(model: PreTrainedModel) -> Iterator[None]:
    """On a CPU, attention as plain matrix products ("eager") instead of torch's fused kernel, and afterwards as it was.

    With short rows the fused kernel is the slower one there, above all backwards. (Measured with the embedded profile, one
    core: 60 steps in 6.8 s against 8.3 s; decoding takes half the time.)
    """
    written_out = model.device.type == "cpu" and getattr(model.config, "_attn_implementation", None) == "sdpa"
    if written_out:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if written_out:
            model.set_attn_implementation("sdpa")


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
        save_total_limit=None,  # pipeline.callbacks.CheckpointKeeper removes old ones, once the new one is known to be whole
        restore_callback_states_from_checkpoint=True,  # early stopping goes on counting
        load_best_model_at_end=bool(patience),
        metric_for_best_model="eval_loss" if patience else None,
        greater_is_better=False if patience else None,
        logging_steps=t.logging_steps,
        neftune_noise_alpha=t.neftune_noise_alpha,
        report_to="none",  # pipeline.trackers reports
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


class TokenCounter:
    """Counts the tokens that training really sees: all of them without padding, and those with loss.

    It hooks the model's forward pass, so it holds for every sampler, schedule and resumed run.

    Args:
        tokens, loss_tokens: counted before, where a run is resumed.
    """

    def __init__(self, model: PreTrainedModel, tokens: int = 0, loss_tokens: int = 0):
        self.tokens, self.loss_tokens = tokens, loss_tokens
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if model.training and kwargs.get("labels") is not None:
            mask = kwargs.get("attention_mask")
            self.tokens += int(kwargs["input_ids"].numel() if mask is None else mask.sum())
            self.loss_tokens += int((kwargs["labels"] != -100).sum())

    def close(self) -> None:
        self._hook.remove()


def peak_memory_bytes() -> int:
    """Peak memory so far, in bytes: reserved on the GPU where there is one, else of this process (resident set)."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(_earlier_peak, int(peak if sys.platform == "darwin" else peak * 1024))


_earlier_peak = 0  # bytes, of this process before a MemoryMeter set the system's own mark back


class MemoryMeter:
    """The most memory in use from now on, above what is in use now: of training, above the base that was loaded before it.

    On a GPU: allocated bytes. On Linux: the resident set, after memory that is free inside the process was given back; the
    system's mark of the highest is set back (``/proc/self/clear_refs``, see proc(5)). Elsewhere nothing is measured.
    """

    def __init__(self) -> None:
        import torch

        gc.collect()
        self._before = None
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return
        global _earlier_peak
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # of glibc: what was freed would otherwise be used again unseen
            _earlier_peak = peak_memory_bytes()
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _resident("VmRSS")
        except (OSError, AttributeError):
            pass

    def read(self) -> int | None:
        """Bytes; None where it is not measured."""
        import torch

        if self._before is None:
            return None
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM")
        return max(0, int(peak - self._before))


def _resident(field: str) -> int:
    """Bytes, from Linux' own account of this process: ``VmRSS`` now, ``VmHWM`` the highest since it was set back."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def save_adapter(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict[str, Any] | None = None
) -> None:
    """Save adapter and tokenizer as a whole: written beside the folder first, then renamed.

    Args:
        weights: name → tensor, where the model itself does not hold all of them; None: the model's own.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.save_pretrained(str(temporary), **({"state_dict": weights} if weights else {}))
        tokenizer.save_pretrained(str(temporary))
        describe(model, temporary)
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def over_processes(trainer: SFTTrainer, counter: TokenCounter) -> tuple[int, int, int]:
    """(tokens, loss-bearing tokens) of all processes together, and the peak memory in bytes of the one with most."""
    own = (counter.tokens, counter.loss_tokens, peak_memory_bytes())
    if size() == 1:
        return own
    import torch

    rows = trainer.accelerator.gather(torch.tensor([own], device=trainer.accelerator.device)).tolist()
    return sum(row[0] for row in rows), sum(row[1] for row in rows), max(row[2] for row in rows)


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """(trainable, all) parameters. A 4-bit weight counts as the parameters it stands for, not as its packed bytes."""
    trainable = total = 0
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue  # PEFT keeps the matrix of which it trains a copy
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
        UserError: the checkpoint was written with other settings, data or versions; see also ``pipeline.trainer.Trainer``.
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
    from pipeline.callbacks import CheckpointKeeper

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


def prequantise(settings: ModelSettings, output_dir: Path) -> None:
    """Save the base as it stands after 4-bit quantisation, so that later runs load NF4 weights and quantise nothing."""
    model, tokenizer = load_model(settings.model_copy(update={"load_in_4bit": True}), seed=0)
    save_adapter(model, tokenizer, output_dir)
