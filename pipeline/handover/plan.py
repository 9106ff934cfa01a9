"""A training in numbers that every framework understands, from a profile and the size of its mix.

Steps and warm-up are whole numbers here, so that no framework's own rounding changes the schedule. What other frameworks
cannot do is refused by name, before anything is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.core.errors import UserError
from pipeline.settings import Profile
from pipeline.settings.load import locate

HANDED_OVER_METHODS = ("full", "lora", "qlora", "dora", "rslora")  # all four targets have these


@dataclass(frozen=True)
class HandoverPlan:
    """One training on ``gpus`` GPUs. Batch sizes are those of one GPU; the global batch is the profile's, whatever the number."""

    profile: Profile
    gpus: int
    per_device: int
    accumulation: int
    steps: int
    warmup: int

    @property
    def base(self) -> str:
        """The base as another program finds it from another folder: a whole path, or a hub's name."""
        model = self.profile.model
        return str(locate(model.name).resolve()) if model.source == "local" else model.name

    @property
    def dora(self) -> bool:
        return self.profile.chosen_method == "dora"

    @property
    def rslora(self) -> bool:
        return self.profile.chosen_method == "rslora" or self.profile.lora.use_rslora

    @property
    def adapter(self) -> bool:
        """Whether an adapter is trained, and not the whole model."""
        return self.profile.chosen_method != "full"

    @property
    def in_4bit(self) -> bool:
        return self.profile.model.load_in_4bit

    @property
    def in_bfloat16(self) -> bool:
        return self.profile.model.dtype != "float32"


def plan_handover(profile: Profile, rows: int, gpus: int) -> HandoverPlan:
    """The training of ``rows`` examples.

    Raises:
        UserError: the profile asks for something that the frameworks cannot do, or the batch does not go up evenly in the GPUs.
    """
    require_expressible(profile)
    t = profile.training
    per_device, accumulation = t.per_device_train_batch_size, t.gradient_accumulation_steps
    if accumulation % gpus == 0:
        accumulation //= gpus
    elif per_device * accumulation % gpus == 0 and per_device % gpus == 0:
        per_device //= gpus
    else:
        raise UserError(
            f"A global batch of {per_device} × {accumulation} rows cannot be dealt to {gpus} GPUs evenly; set "
            "training.per_device_train_batch_size or training.gradient_accumulation_steps to a multiple of them."
        )
    batches = math.ceil(rows / (per_device * gpus))
    an_epoch = max(math.ceil(batches / accumulation), 1)
    steps = t.max_steps if t.max_steps > 0 else math.ceil(an_epoch * t.num_train_epochs)
    warmup = math.ceil(steps * t.warmup_steps) if t.warmup_steps < 1 else int(t.warmup_steps)
    return HandoverPlan(profile, gpus, per_device, accumulation, steps, warmup)


def require_expressible(profile: Profile) -> None:
    """Raises: UserError: what the frameworks have no settings for, all of it at once."""
    t = profile.training
    lacking = []
    if profile.chosen_method not in HANDED_OVER_METHODS:
        lacking.append(f"method={profile.chosen_method} (there are {', '.join(HANDED_OVER_METHODS)})")
    if t.lr_scheduler_type == "exponential":
        lacking.append("training.lr_scheduler_type=exponential (take cosine, linear or constant_with_warmup)")
    if t.kl_to_base:
        lacking.append("training.kl_to_base (a term of the loss that only this project has; 0)")
    if t.reasoning_first:
        lacking.append("training.reasoning_first (two phases of data; 0)")
    if profile.lora.trainable_token_indices:
        lacking.append("lora.trainable_token_indices (rows of the embedding)")
    if lacking:
        raise UserError(f"The other frameworks cannot do what this profile asks for: {'; '.join(lacking)}.")


# What is not the same there, for the README of what is written.
NOT_CARRIED = (
    "The order of the rows: each framework shuffles by its own generator, also with the same seed.",
    "Batches of similar length (training.group_by_length): rows are in random order there.",
    "Unsloth's kernels and its way of quantising: numbers differ in the last digits from the first step on.",
    "The evaluation in both modes: bring the adapter back and measure it here.",
)
