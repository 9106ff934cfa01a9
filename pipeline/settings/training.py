"""Settings of a training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.settings.section import NOTHING, Section


class TrainingSettings(Section):
    """What SFTTrainer is given. Names are TRL's and transformers' own."""

    max_steps: int = -1  # -1: num_train_epochs decides
    num_train_epochs: float = Field(1.0, gt=0)
    per_device_train_batch_size: int = Field(16, gt=0)
    per_device_eval_batch_size: int | None = Field(None, gt=0)  # of the validation; null: as in training
    gradient_accumulation_steps: int = Field(1, gt=0)
    learning_rate: float = Field(2e-4, gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup", "exponential"] = "cosine"
    warmup_steps: float = Field(0.05, ge=0)  # below 1: a fraction of all steps (transformers 5)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optim: str = "adamw_torch"
    group_by_length: bool = True  # batches of similar length in random order, so that padding is not paid for
    eval_steps: int = Field(50, gt=0)
    save_steps: int = Field(50, gt=0)
    save_total_limit: Annotated[int, NOTHING] = Field(2, gt=0)
    logging_steps: int = Field(5, gt=0)
    early_stopping_patience: int | None = Field(None, gt=0)  # evaluations without improvement; null: off
    gradient_checkpointing: bool = False
    # NEFTune (Jain et al. 2023): uniform noise on the embeddings while training, ± alpha / √(tokens × hidden); they use 5 to 15
    neftune_noise_alpha: float | None = Field(None, gt=0)
    # Weight of KL(base ‖ tuned), added to the loss of a token; on all rows, or on those that the base itself wrote. 0: off
    kl_to_base: float = Field(0.0, ge=0)
    kl_rows: Literal["all", "rehearsal"] = "all"
    # Two phases: so large a part of the first epoch's rows, of sources of kind reasoning alone, comes first. 0: one mix
    reasoning_first: float = Field(0.0, ge=0, lt=1)
    report_to: Annotated[list[Literal["none", "wandb", "swanlab", "tensorboard"]], NOTHING] = ["none"]

    @property
    def scheduler_name(self) -> str:
        """What transformers is given; the exponential schedule is ``pipeline.training.trainer``'s own."""
        return "constant_with_warmup" if self.lr_scheduler_type == "exponential" else self.lr_scheduler_type


class EstimateSettings(Section):
    """Rates measured in a run of this profile, for the estimate before a run starts."""

    machine: str
    tokens_per_second: float = Field(gt=0)  # of training
    replies_per_second: float = Field(gt=0)  # of evaluation, both modes together
    start_seconds: float = Field(ge=0)  # imports, loading, building the mix
