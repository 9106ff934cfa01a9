"""Settings of a second stage: pairs and rewards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.settings.data import RowsSettings
from pipeline.settings.section import NOTHING, Section


class SecondStageSettings(Section):
    """What preference tuning and GRPO have in common: a training that starts from a base or from a run's adapter."""

    max_steps: int = Field(100, gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    learning_rate: float = Field(5e-6, gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: float = Field(0.1, ge=0)  # below 1: a fraction of all steps
    max_grad_norm: float = Field(1.0, gt=0)
    logging_steps: int = Field(5, gt=0)
    save_steps: int = Field(50, gt=0)
    save_total_limit: Annotated[int, NOTHING] = Field(2, gt=0)


class PreferenceSettings(SecondStageSettings):
    """Preference tuning with TRL. Learning rate, warm-up, schedule: the alignment handbook's QLoRA recipe of zephyr-7b-beta.

    beta is 0.1, TRL's default for all three. Of DPO (Rafailov et al. 2023) and KTO (Ethayarajh et al. 2024) it says how dear
    it is to leave the reference; of ORPO (Hong et al. 2024) it is the weight of the odds ratio beside the chosen answer's loss.
    """

    method: Literal["dpo", "orpo", "kto"] = "dpo"
    beta: float = Field(0.1, gt=0)
    pairs: RowsSettings | None = None  # what to train on; any of the layouts that "preference" rows come in
    held_out: RowsSettings | None = (
        None  # what to judge on; null: held_out_fraction of the prompts of ``pairs``, by their hash
    )
    held_out_fraction: float = Field(0.1, gt=0, lt=1)
    thinking_share: float | None = Field(None, ge=0, le=1)  # of the training pairs; null: as they come
    per_device_train_batch_size: int = Field(8, gt=0)  # pairs
    eval_steps: int = Field(50, gt=0)


class GRPOSettings(SecondStageSettings):
    """GRPO with TRL (Shao et al. 2024). Generations, temperature, beta and epsilon: TRL's defaults."""

    prompts: RowsSettings | None = None  # rows with a question and its ``expected_answer``
    thinking_share: float = Field(1.0, ge=0, le=1)  # of the prompts that are asked in thinking mode
    num_generations: int = Field(8, ge=2)  # replies a prompt: they are compared with each other
    prompts_per_step: int = Field(8, gt=0)
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int | None = Field(None, gt=0)  # null: as the evaluation of the mode
    beta: float = Field(0.0, ge=0)  # weight of the KL divergence from the start; 0: no reference is kept
    epsilon: float = Field(0.2, gt=0, lt=1)
    correct_weight: float = Field(1.0, ge=0)
    # Small: form must not pay for a wrong answer. A power of two, so that equal sums of rewards are equal to the last bit.
    form_weight: float = Field(0.25, ge=0)
