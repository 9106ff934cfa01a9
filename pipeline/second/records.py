"""The form of ``preference.json`` and ``grpo.json``."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict

from pipeline.training.records import StageTrainingRecord


class Estimated(TypedDict):
    """A value with its 95 % interval."""

    value: float
    ci95: list[float]  # [low, high]


class Wins(TypedDict):
    """How often the preferred answer of held-out pairs wins; see ``preference.win_rates``."""

    n: int
    before: Estimated
    after: Estimated
    p: float
    per_token_before: Estimated
    per_token_after: Estimated
    reward_accuracy: Estimated
    margin: Estimated


class _Result(TypedDict):
    start: str
    model: str
    profile: str
    seed: int
    versions: dict[str, str]
    started: str
    finished: str
    training: StageTrainingRecord
    evaluation: dict[str, dict[str, dict[str, Any]]]  # before, after → mode → cell


class PreferenceResult(_Result):
    """``preference.json`` of one training."""

    method: str
    beta: float
    learning_rate: float
    loss_on: NotRequired[str]
    pairs: dict[str, Any]
    win_rates: dict[str, Wins]  # all, each mode, each kind of defect


class PreferenceArm(PreferenceResult):
    """One of several settings on the same start."""

    name: str
    why: str
    set: list[str]


class PreferenceArms(TypedDict):
    """``preference.json`` of several settings."""

    question: str
    arms: list[PreferenceArm]


class Ends(TypedDict):
    """Mean of a reward over the first and the last logged steps."""

    steps: int
    first: Estimated
    last: Estimated


class GRPOResult(_Result):
    """``grpo.json``."""

    settings: dict[str, Any]
    questions: dict[str, Any]
    rewards: dict[str, Ends]
