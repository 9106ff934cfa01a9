"""What the check of an export writes: ``parity.json``, in types."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict  # of typing's own, pydantic wants Python 3.12

ParityVerdict = Literal["same", "close", "differs", "broken"]


class ModeNumbers(TypedDict):
    """One mode of one target. Rates are 0..1. The base and the reference have the first three alone."""

    prompts: int
    accuracy: float
    fidelity: float
    same_prompts: NotRequired[float]
    same_replies: NotRequired[float]
    accuracy_change: NotRequired[float]  # against the reference, as the next
    fidelity_change: NotRequired[float]
    # mean |Δ log p|, natural, over the tokens up to the one where two replies part; None: they share none
    log_prob_difference: NotRequired[float | None]


class Numbers(TypedDict):
    """Base or reference by themselves."""

    modes: dict[str, ModeNumbers]


class Compared(Numbers):
    """A target against the reference."""

    faults: list[str]
    verdict: ParityVerdict


class Parity(TypedDict):
    """``parity.json``."""

    prompts: int  # in each mode
    dtype: str  # that base, reference, adapter and merged weights were computed in
    base: Numbers
    reference: Numbers
    targets: dict[str, Compared]
    verdict: Literal["as measured", "broken"]
