"""A profile: all settings of a run."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.settings.data import DataSettings, MixSettings
from pipeline.settings.evaluation import EvaluationSettings, SweepSettings
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
from pipeline.settings.section import Section
from pipeline.settings.training import EstimateSettings, TrainingSettings


class Profile(Section):
    """All settings of a run. One YAML file a size stands in pipeline/profiles/."""

    name: str
    seed: int = 3407
    recipe: str
    model: ModelSettings
    method: Method | None = None  # null: LoRA on a base as model.load_in_4bit says. A method decides that itself
    lora: LoraSettings = LoraSettings()  # type: ignore[call-arg]
    adapter: AdapterSettings = AdapterSettings()  # type: ignore[call-arg]
    prefix: PrefixSettings = PrefixSettings()  # type: ignore[call-arg]
    prompt: PromptSettings = PromptSettings()  # type: ignore[call-arg]
    ia3: Ia3Settings = Ia3Settings()
    mix: MixSettings = MixSettings()  # type: ignore[call-arg]
    data: DataSettings = DataSettings()  # type: ignore[call-arg]
    training: TrainingSettings = TrainingSettings()  # type: ignore[call-arg]
    evaluation: EvaluationSettings
    sweep: SweepSettings = SweepSettings()
    estimate: EstimateSettings | None = None
    preference: PreferenceSettings = Field(default_factory=lambda: PreferenceSettings())  # type: ignore[call-arg]
    grpo: GRPOSettings = Field(default_factory=lambda: GRPOSettings())  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _check(self) -> Profile:
        if self.length_limit > self.model.max_seq_length:
            raise ValueError(
                f"data.max_length ({self.length_limit}) is above model.max_seq_length ({self.model.max_seq_length})"
            )
        _check_method(self)
        return self

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
