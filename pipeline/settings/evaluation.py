"""Settings of an evaluation and of a sweep."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from pipeline.settings.section import NOTHING, Affects, Section


class Sampling(Section):
    """Decoding parameters of one mode. temperature 0 means greedy."""

    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    top_k: int = Field(ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(gt=0)


class SamplingTable(Section):
    """The one table of sampling by mode. Values: Qwen3's model card (thinking 0.6/0.95/20, non-thinking 0.7/0.8/20)."""

    thinking: Sampling
    non_thinking: Sampling


class EvaluationSettings(Section):
    """Which benchmarks, how many items, how sampled."""

    benchmarks: list[str] = Field(min_length=1)
    limit: int | None = Field(None, gt=0)  # items a benchmark; null: all
    batch_size: Annotated[int, NOTHING] = Field(64, gt=0)  # prompts decoded at a time; each has its own random stream
    workers: Annotated[int, NOTHING] = Field(
        1, gt=0
    )  # processes that decode, on a CPU; the replies do not depend on it
    seed: int = 42
    # Items a benchmark on whose base replies the distance KL(base ‖ tuned) is measured; 0: it is not.
    kl_items: Annotated[int, NOTHING] = Field(50, ge=0)
    sampling: Annotated[SamplingTable, Affects("evaluation", "grpo")]  # of GRPO, the longest reply
    # EvalScope's dataset_args by benchmark, e.g. {gsm8k: {local_path: DIR, subset_list: [default]}}
    dataset_args: dict[str, dict[str, Any]] = {}


class SweepSettings(Section):
    """How the cells of a sweep differ from a full run of the profile, so that many of them can be paid for."""

    overrides: list[str] = []  # as --set takes them; what the command line sets counts more
