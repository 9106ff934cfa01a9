"""A profile: all settings of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.settings.data import DataSettings, MixSettings
from pipeline.settings.evaluation import EvaluationSettings, SweepSettings
from pipeline.settings.hybrid import HybridSettings
from pipeline.settings.model import (
    WHOLE_MATRICES,
    AdapterSettings,
    Ia3Settings,
    LoraSettings,
    Method,
    ModelSettings,
    PrefixSettings,
    PromptSettings,
)
from pipeline.settings.second import GRPOSettings, PreferenceSettings
from pipeline.settings.section import NOTHING, Affects, Section
from pipeline.settings.training import EstimateSettings, TrainingSettings

TRAINING = Affects("training")


class Profile(Section):
    """All settings of a run. One YAML file a size stands in pipeline/profiles/.

    ``Affects`` says what a section changes; a setting in it may say otherwise for itself.
    """

    name: Annotated[str, NOTHING]
    based_on: Annotated[list[str], NOTHING] = []  # the profiles that it extends, the nearest first; set while loading
    seed: Annotated[int, Affects("mix", "training")] = 3407
    recipe: Annotated[str, Affects("mix")]
    model: Annotated[ModelSettings, Affects("training", "evaluation")]
    # null: LoRA on a base as model.load_in_4bit says. A method decides that itself
    method: Annotated[Method | None, TRAINING] = None
    lora: Annotated[LoraSettings, TRAINING] = LoraSettings()
    adapter: Annotated[AdapterSettings, TRAINING] = AdapterSettings()
    prefix: Annotated[PrefixSettings, TRAINING] = PrefixSettings()
    prompt: Annotated[PromptSettings, TRAINING] = PromptSettings()
    ia3: Annotated[Ia3Settings, TRAINING] = Ia3Settings()
    mix: Annotated[MixSettings, Affects("mix")] = MixSettings()
    data: Annotated[DataSettings, Affects("mix")] = DataSettings()
    training: Annotated[TrainingSettings, TRAINING] = TrainingSettings()
    evaluation: Annotated[EvaluationSettings, Affects("evaluation")]
    sweep: Annotated[SweepSettings, NOTHING] = SweepSettings()
    estimate: Annotated[EstimateSettings | None, NOTHING] = None
    hybrid: Annotated[HybridSettings | None, NOTHING] = None  # of a profile whose model is made by hybridise
    preference: Annotated[PreferenceSettings, Affects("preference")] = Field(default_factory=PreferenceSettings)
    grpo: Annotated[GRPOSettings, Affects("grpo")] = Field(default_factory=GRPOSettings)

    @model_validator(mode="after")
    def _check(self) -> Profile:
        if self.length_limit > self.model.max_seq_length:
            raise ValueError(
                f"data.max_length ({self.length_limit}) is above model.max_seq_length ({self.model.max_seq_length})"
            )
        _check_method(self)
        return self

    @property
    def lineage(self) -> list[str]:
        """Its name and those of the profiles that it extends, the farthest first."""
        return [*reversed(self.based_on), self.name]

    @property
    def chosen_method(self) -> Method:
        """The method in force."""
        return self.method or ("qlora" if self.model.load_in_4bit else "lora")

    @property
    def length_limit(self) -> int:
        """Tokens of the longest example."""
        return self.data.max_length or self.model.max_seq_length


def _check_method(profile: Profile) -> None:
    """Raises: ValueError: settings that contradict the method, with what to change."""
    method, in_4bit = profile.method, profile.model.load_in_4bit
    if method == "qlora" and not in_4bit:
        raise ValueError("method qlora is LoRA on a 4-bit base, but model.load_in_4bit is false; set method=lora")
    if method == "lora" and in_4bit:
        raise ValueError("method lora keeps the base in 16 bit, but model.load_in_4bit is true; set method=qlora")
    if method in WHOLE_MATRICES and in_4bit:
        raise ValueError(
            f"method {method} trains matrices of the base, which cannot be trained in 4 bit; set model.load_in_4bit=false"
        )
    if method == "adapter" and in_4bit:
        raise ValueError("method adapter needs a 16-bit base; set model.load_in_4bit=false")
    if method == "rslora" and not profile.lora.use_rslora:
        raise ValueError("method rslora and lora.use_rslora=false contradict each other; set method=lora")
    if method == "prefix" and profile.training.gradient_checkpointing:
        raise ValueError(
            "method prefix puts keys and values into the cache, which gradient checkpointing does without; "
            "set training.gradient_checkpointing=false"
        )
    if method and not in_4bit and profile.model.name.endswith("-bnb-4bit"):
        raise ValueError(
            f"method {method} needs a 16-bit base, but {profile.model.name} is quantised already; give its 16-bit original "
            "as model.name"
        )
