"""SFTTrainer with batches of similar length in random order, an exponential schedule, and a clear end where it cannot go on:
a bad loss, memory that does not suffice, a disk that is full.

Import it after unsloth, which replaces parts of TRL.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback, TrainerState
from trl import SFTTrainer

from pipeline.core.console import in_notebook
from pipeline.core.errors import UserError
from pipeline.core.files import FULL
from pipeline.data.chat_format import IGNORE_INDEX
from pipeline.model.attention import SHORT, written_out_attention
from pipeline.model.bottleneck import has_bottlenecks, load_bottlenecks
from pipeline.model.divergence import require_own_logits
from pipeline.model.memory import out_of_memory
from pipeline.training.callbacks import FreedMemory, StepBar
from pipeline.training.close import FLAG, WithFlags, losses
from pipeline.training.measure import TokenCounter
from pipeline.training.watch import Scaled, Seen, Watch, without_gradient

if TYPE_CHECKING:
    from datasets import Dataset


KL = "kl_to_base"  # in the trainer's log
WINDOW = 50  # batches that are sorted together, as transformers does
LOWEST = 0.01  # part of the peak learning rate that the exponential schedule ends at


class LengthGroupedSampler(Sampler[int]):
    """Indices such that each batch has examples of similar length, and the batches come in random order.

    transformers' own grouping sorts 50 batches at a time and leaves them sorted: where lengths go with kinds of data, as
    in a mix of short chat and long reasoning, training sees one kind for dozens of steps and then the other. Here the
    sorted batches are shuffled, so padding is as little and any few steps hold the mix. The batch with the longest example
    comes first: if memory does not suffice, that shows at once.

    Args:
        lengths: tokens of each example.
        seed: of the order; each epoch has its own.
        first: numbers of examples with which the first epoch begins, grouped among themselves.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, first: Sequence[int] = ()):
        self.lengths, self.batch_size, self.seed, self.epoch = torch.tensor(lengths), batch_size, seed, 0
        self.first = torch.zeros(len(lengths), dtype=torch.bool)
        self.first[torch.tensor(list(first), dtype=torch.long)] = True

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of each epoch, also of a resumed one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self), generator=generator)
        if self.epoch == 0 and self.first.any():
            early = self.first[order]
            for phase in (order[early], order[~early]):
                yield from self._grouped(phase, generator)
        else:
            yield from self._grouped(order, generator)

    def _grouped(self, order: torch.Tensor, generator: torch.Generator) -> Iterator[int]:
        batches: list[torch.Tensor] = []
        for window in order.split(WINDOW * self.batch_size):
            batches += window[self.lengths[window].argsort(descending=True, stable=True)].split(self.batch_size)
        if batches:
            whole = len(batches) - (len(batches[-1]) < self.batch_size)  # a smaller last batch stays the last
            shuffled = [batches[i] for i in torch.randperm(whole, generator=generator).tolist()]
            longest = max(range(whole), key=lambda i: int(self.lengths[shuffled[i]].max()), default=0)
            if shuffled:
                shuffled[0], shuffled[longest] = shuffled[longest], shuffled[0]
            for batch in [*shuffled, *batches[whole:]]:
                yield from batch.tolist()


def exponential(warm_up: int, steps: int) -> Any:
    """Factor of the learning rate at a step: linear warm-up to 1, then the same ratio each step, down to ``LOWEST``."""

    def factor(step: int) -> float:
        if step < warm_up:
            return step / warm_up
        return LOWEST ** ((step - warm_up) / max(1, steps - warm_up))

    return factor


# How torch and safetensors say that a file could not be written; they keep the number of the error to themselves.
_NOT_WRITTEN = (
    *("file write failed", "pytorchstreamwriter failed", "iostream error", "inline_container.cc"),
    *("no space left", "os error 28", "os error 122"),
)


def disk_full(error: BaseException) -> bool:
    """Whether an error while writing a checkpoint means that the disk, or a quota, is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(words in str(error).lower() for words in _NOT_WRITTEN)


def memory_advice(
    batch: int, accumulation: int, checkpointing: bool, length: int | None, section: str = "training"
) -> list[str]:
    """What to lower when a batch does not fit, and to what, the change that costs least first; as ``--set`` takes it.

    Half the batch with twice the accumulation gives the same steps of the optimiser. Gradient checkpointing costs about a
    third more time (Chen et al. 2016, one more forward pass) and changes no result but rounding. A shorter limit drops rows.

    Args:
        length: the limit in tokens (``model.max_seq_length``); None: not known.
        section: of the profile, where the settings stand.
    """
    advice = []
    if batch > 1:
        accumulated = accumulation * batch // (batch // 2)
        advice.append(
            f"{section}.per_device_train_batch_size={batch // 2} with {section}.gradient_accumulation_steps={accumulated}"
        )
    if not checkpointing:
        advice.append("training.gradient_checkpointing=true")
    if length:
        advice.append(f"model.max_seq_length={max(1, length // 2)} (longer rows are dropped and counted)")
    return advice


@contextlib.contextmanager
def memory_explained(what: str, advice: Callable[[], list[str]], can_force: bool = False) -> Iterator[None]:
    """Turn memory that does not suffice for ``what`` into words.

    Args:
        advice: gives settings as ``--set`` takes them, the one that costs least first.
        can_force: the command has ``--resume --force``.

    Raises:
        UserError: it does not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        numbered = "; ".join(f"{i}. {text}" for i, text in enumerate(advice(), 1))
        raise UserError(
            f"Memory does not suffice for {what}. Set, until it fits: {numbered}. Checkpoints before it are kept; other "
            f"settings need another --output-dir{', or --resume --force' if can_force else ''}."
        ) from error


class StopsInTime:
    """What every trainer of this project does beside TRL's: it ends with words instead of going on with nothing.

    Stands before TRL's class among the bases.

    Raises:
        UserError: a loss, of training or validation, or the norm of the gradient is NaN or infinite, naming the step where it
            happened, with the batch (on a GPU, when that step's numbers are next looked at); what is trained has no gradient
            at the first step; or weights are, before a checkpoint of them would take the place of a good one; a batch
            does not fit into memory (says which settings to lower, and to what); the disk is full while a checkpoint is
            written. The checkpoints before are kept.
    """

    section = "training"  # of the profile, where the settings stand
    length_limit: int | None = None  # tokens of a row; for the advice where memory does not suffice
    counter: TokenCounter | None = None  # for a loss that passes by the model's own forward pass
    _batch: Any = None  # of the step that is being done
    _has_gradients = False  # it was seen that everything that is trained has one

    def _batch_ids(self, inputs: Any) -> Any:
        """Token ids of a batch, [rows, tokens]; None where they are not to be had."""
        return inputs["input_ids"]

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        """With the project's own display of progress; a notebook keeps transformers' table."""
        self.add_callback(FreedMemory())
        if in_notebook():
            return super().train(*args, **kwargs)  # type: ignore[misc]
        for theirs in (ProgressCallback, PrinterCallback):
            self.remove_callback(theirs)
        with StepBar() as bar:
            self.add_callback(bar)
            return super().train(*args, **kwargs)  # type: ignore[misc]

    def take(self: Any, checkpoint: Path) -> None:
        """Take weights and history of a checkpoint at which the training was over, as ``train`` would have left them.

        ``train`` itself would do one step more.
        """
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            self.state.best_model_checkpoint = str(checkpoint.with_name(Path(best).name))
            self._load_best_model()

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._batch = inputs
        with self._memory_explained(inputs, "training"):
            loss = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        self._note("The loss", loss)
        return loss

    def _get_grad_norm(self: Any, model: Any, grad_norm: Any = None) -> Any:
        if not self._has_gradients:
            self._require_gradients()
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        if norm is None:
            return norm
        if getattr(self.accelerator, "scaler", None) is None:
            self._note("The norm of the gradient", torch.as_tensor(norm))
        elif not self._scaled.fine(float(norm)):  # the scaler asks the device at every step, too
            self._stop(f"The norm of the gradient stayed {float(norm)} for {self._scaled.skipped} steps", self._batch)
        return norm

    def _note(self: Any, what: str, value: torch.Tensor) -> None:
        """Have a value of this step looked at: now where that costs nothing, else when the step is logged."""
        ids, rate = self._batch_ids(self._batch), self._get_learning_rate()
        self._watch.add(what, self.state.global_step + 1, value, rate, ids)
        if self._watch.at_once:
            self._look()

    def _look(self: Any) -> None:
        bad = self._watch.look()
        if bad is not None:
            self._stop_at(f"{bad.what} became {float(bad.value.mean())}", bad)

    def _maybe_log_save_evaluate(self: Any, *args: Any, **kwargs: Any) -> None:
        wanted = self.control
        if wanted.should_log or wanted.should_save or wanted.should_evaluate or wanted.should_training_stop:
            self._look()
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    @cached_property
    def _watch(self: Any) -> Watch:
        self.args.logging_nan_inf_filter = False  # transformers would ask the device about every batch by itself
        return Watch(at_once=self.args.device.type == "cpu")

    @cached_property
    def _scaled(self: Any) -> Scaled:
        return Scaled()

    def _require_gradients(self: Any) -> None:
        """See at the first step that all that is to be trained takes part in the loss.

        Raises:
            UserError: something does not; training would change nothing of it, without a word.
        """
        self._has_gradients = True
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return  # they keep gradients elsewhere
        names, trained = without_gradient(self.model)
        if names:
            raise UserError(
                f"{len(names)} of {trained} trained weights took no part in the loss of the first step ({names[0]}, …), so "
                "nothing would be learnt in them. Take another method, or leave these modules out of it; nothing was written."
            )

    def prediction_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with self._memory_explained(inputs, "validation"):
            result = super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if result[0] is not None and not torch.isfinite(result[0]).all():
            self._stop(f"The validation loss became {float(result[0].mean())}", inputs, after=True)
        return result

    def _save_checkpoint(self: Any, *args: Any, **kwargs: Any) -> None:
        if not all(torch.isfinite(p).all() for p in self.model.parameters() if p.requires_grad):
            self._stop("Weights became NaN or infinite", None, after=True)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        except (OSError, RuntimeError, SafetensorError) as error:
            if not disk_full(error):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            free = shutil.disk_usage(self.args.output_dir).free / 2**20
            raise UserError(
                f"The disk is full ({free:,.0f} MiB are free): the checkpoint at step {self.state.global_step} could not be "
                f"written. Those before it are kept. Free some space, or keep fewer (now "
                f"{self.keep or 'all'}), and go on with --resume."
            ) from error
        self.accelerator.wait_for_everyone()  # each process writes a file of its own

    @property
    def keep(self: Any) -> int | None:
        """How many checkpoints are kept; None: all."""
        limits = [getattr(callback, "keep", None) for callback in self.callback_handler.callbacks]
        return next((limit for limit in limits if limit), self.args.save_total_limit)

    @contextlib.contextmanager
    def _memory_explained(self: Any, inputs: Any, what: str) -> Iterator[None]:
        rows = self._batch_ids(inputs)
        size = "" if rows is None else f": {rows.shape[0]} rows of up to {rows.shape[1]} tokens"
        step = self.state.global_step + (what == "training")
        with memory_explained(
            f"a batch of {what} at step {step}{size}", self._memory_advice, self.section == "training"
        ):
            yield

    @property
    def _rows(self: Any) -> int:
        """Rows a batch, as the profile counts them."""
        return int(self.args.per_device_train_batch_size)

    def _memory_advice(self: Any) -> list[str]:
        return memory_advice(
            self._rows,
            self.args.gradient_accumulation_steps,
            bool(self.args.gradient_checkpointing),
            self.length_limit,
            self.section,
        )

    def _stop(self: Any, what: str, inputs: Any | None, after: bool = False) -> None:
        """Stop with what is known about the step.

        Args:
            after: the step is done: during it, the count stands at the steps before.
        """
        watch = Watch(at_once=True)
        ids = None if inputs is None else self._batch_ids(inputs)
        watch.add(what, self.state.global_step + (not after), torch.empty(0), self._get_learning_rate(), ids)
        self._stop_at(what, watch.seen[0])

    def _stop_at(self: Any, what: str, seen: Seen) -> None:
        batch = ""
        if seen.first is not None:
            text = self.processing_class.decode(seen.first)
            batch = f" The batch has {seen.rows} rows of up to {seen.tokens} tokens; the first begins {text[:160]!r}."
        raise UserError(
            f"{what} at step {seen.step} (learning rate {seen.rate:.3g}).{batch} Lower {self.section}.learning_rate "
            f"(now {self.args.learning_rate:g}) or {self.section}.max_grad_norm (now {self.args.max_grad_norm:g}) and run "
            "again; checkpoints before it are kept."
        )


class Trainer(StopsInTime, SFTTrainer):
    """SFTTrainer with the additions of this module.

    Args:
        lengths: tokens of each training example; None: random order.
        exponential_schedule: replaces ``args.lr_scheduler_type``.
        length_limit: ``model.max_seq_length``, for the advice where memory does not suffice.
        plus_lr_ratio: LoRA+: the matrices B learn so many times faster than the matrices A; None: off.
        kl_to_base: weight of KL(base ‖ tuned) on the rows whose column ``counts`` is true; 0: off (pipeline.training.close).
        first: numbers of the rows that the first epoch begins with.
    """

    def __init__(
        self,
        *args: Any,
        lengths: Sequence[int] | None = None,
        exponential_schedule: bool = False,
        length_limit: int | None = None,
        plus_lr_ratio: float | None = None,
        kl_to_base: float = 0.0,
        first: Sequence[int] = (),
        **kwargs: Any,
    ):
        self.example_lengths, self.exponential_schedule = lengths, exponential_schedule
        self.length_limit, self.plus_lr_ratio = length_limit, plus_lr_ratio
        self.kl_to_base, self.first_rows = kl_to_base, first
        self._kl = [0.0, 0]  # sum and tokens since the last entry of the log
        super().__init__(*args, **kwargs)
        if kl_to_base:
            require_own_logits(self.model)
            self.data_collator: Any = WithFlags(self.data_collator)

    def _set_signature_columns_if_needed(self: Any) -> None:
        super()._set_signature_columns_if_needed()
        if self.kl_to_base and FLAG not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, FLAG]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        flags = inputs.pop(FLAG, None)
        if not self.kl_to_base or flags is None or not model.training:
            return super().compute_loss(model, inputs, *args, num_items_in_batch=num_items_in_batch, **kwargs)
        if self.counter is not None:
            self.counter.count(inputs)
        entropy, divergence, held = losses(model, {**inputs, FLAG: flags})
        self._kl[0] += float(divergence.detach())
        self._kl[1] += held
        count = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
        return (entropy + self.kl_to_base * divergence) / torch.as_tensor(count, device=entropy.device).clamp(min=1)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.kl_to_base and "loss" in logs and self._kl[1]:
            logs = {**logs, KL: self._kl[0] / self._kl[1]}
            self._kl = [0.0, 0]
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self.plus_lr_ratio is None or getattr(self, "optimizer", None) is not None:
            return super().create_optimizer(*args, **kwargs)
        from peft.optimizers import create_loraplus_optimizer

        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = create_loraplus_optimizer(
            self.model,
            kind,
            loraplus_lr_ratio=self.plus_lr_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **options,
        )
        return self.optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Load their states; where a run goes on under other settings (--force), those count and not the stored ones."""
        if self.args.device.type == "cpu":  # of several processes, "cpu:0", where torch.load can put nothing
            self.args.__dict__["_setup_devices"] = torch.device("cpu")
        fresh = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not hasattr(self.lr_scheduler, "lr_lambdas"):
            return
        scheduler = self.lr_scheduler
        if [group["initial_lr"] for group in fresh] != list(scheduler.base_lrs):
            scheduler.base_lrs = [group["initial_lr"] for group in fresh]
            rates = [b * f(scheduler.last_epoch) for b, f in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
            for group, base, rate in zip(self.optimizer.param_groups, scheduler.base_lrs, rates, strict=True):
                group["initial_lr"], group["lr"] = base, rate
            scheduler._last_lr = rates
        for group, wanted in zip(self.optimizer.param_groups, fresh, strict=True):
            group["weight_decay"] = wanted["weight_decay"]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if has_bottlenecks(self.model):
            load_bottlenecks(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if has_bottlenecks(self.model):
            load_bottlenecks(self.model, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        length = getattr(self.model, "max_seq_length", None)
        with written_out_attention(self.model) if length and length <= SHORT else contextlib.nullcontext():
            return super().train(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        if self.example_lengths is None and not self.first_rows:
            return super()._get_train_sampler(train_dataset)
        # accelerate deals consecutive batches out to the processes: grouped over all of them, those of one step are of
        # similar length, so that none waits for another, and their rows are those of one process with the whole batch.
        batch = self.args.train_batch_size * self.args.world_size
        lengths = self.example_lengths or [1] * len(self.train_dataset)  # all alike: a random order
        return LengthGroupedSampler(lengths, batch, self.args.seed, self.first_rows)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if not self.exponential_schedule:
            return super().create_scheduler(num_training_steps, optimizer)
        warm_up = self.args.get_warmup_steps(num_training_steps)
        factor = exponential(warm_up, num_training_steps)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler
