"""SFTTrainer with batches of similar length in random order, an exponential schedule, and a stop at the first bad loss.

Import it after unsloth, which replaces parts of TRL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from trl import SFTTrainer

from pipeline.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

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
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = torch.tensor(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of each epoch, also of a resumed one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self), generator=generator)
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


class StopsAtBadLoss:
    """What every trainer of this project does beside TRL's: it stops at the first bad loss. Stands before TRL's class.

    Raises:
        UserError: a loss is NaN or infinite, at the step where it happens, with the batch; or weights are, before a
            checkpoint of them would take the place of a good one.
    """

    section = "training"  # of the profile, where the settings stand

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(loss).all():
            self._stop(f"The loss became {float(loss.mean())}", inputs)
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if not all(torch.isfinite(p).all() for p in self.model.parameters() if p.requires_grad):  # type: ignore[attr-defined]
            self._stop("Weights became NaN or infinite", None)
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def _batch_ids(self, inputs: Any) -> Any:
        """Token ids of a batch, [rows, tokens]; None where they are not to be had."""
        return inputs["input_ids"]

    def _stop(self: Any, what: str, inputs: Any) -> None:
        """Stop with what is known about the step."""
        # During a step the count stands at the steps before it; at a checkpoint it has been raised.
        step = self.state.global_step + (inputs is not None)
        batch = ""
        rows = None if inputs is None else self._batch_ids(inputs)
        if rows is not None:
            text = self.processing_class.decode(rows[0][:60])
            batch = f" The batch has {len(rows)} rows of up to {rows.shape[1]} tokens; the first begins {text[:160]!r}."
        raise UserError(
            f"{what} at step {step} (learning rate {self._get_learning_rate():.3g}).{batch} Lower {self.section}.learning_rate "
            f"(now {self.args.learning_rate:g}) or {self.section}.max_grad_norm (now {self.args.max_grad_norm:g}) and run "
            "again; checkpoints before it are kept."
        )


class Trainer(StopsAtBadLoss, SFTTrainer):
    """SFTTrainer with the additions of this module.

    Args:
        lengths: tokens of each training example; None: random order.
        exponential_schedule: replaces ``args.lr_scheduler_type``.
    """

    def __init__(
        self, *args: Any, lengths: Sequence[int] | None = None, exponential_schedule: bool = False, **kwargs: Any
    ):
        self.example_lengths, self.exponential_schedule = lengths, exponential_schedule
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        if self.example_lengths is None:
            return super()._get_train_sampler(train_dataset)
        return LengthGroupedSampler(self.example_lengths, self.args.train_batch_size, self.args.seed)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if not self.exponential_schedule:
            return super().create_scheduler(num_training_steps, optimizer)
        warm_up = self.args.get_warmup_steps(num_training_steps)
        factor = exponential(warm_up, num_training_steps)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler
