"""Settings of an evaluation and of a sweep."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.core.modes import Mode
from pipeline.settings.section import NOTHING, Affects, Section
from pipeline.settings.servers import UNCONTINUED, ServerSettings, VllmSettings


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


EngineName = Literal["transformers", "server", "vllm"]


class EvaluationSettings(Section):
    """Which benchmarks, how many items, how sampled."""

    benchmarks: list[str] = Field(min_length=1)
    limit: int | None = Field(None, gt=0)  # items a benchmark; null: all
    engine: EngineName = (
        "transformers"  # what makes the replies: this process, a server, or vLLM that is started for it
    )
    server: ServerSettings = ServerSettings()
    vllm: VllmSettings = VllmSettings()
    # prompts decoded at a time, at most: less where memory is short. Each has its own random stream
    batch_size: Annotated[int, NOTHING] = Field(64, gt=0)
    workers: Annotated[int, NOTHING] = Field(
        1, gt=0
    )  # processes that decode, on a CPU; the replies do not depend on it
    seed: int = 42
    # tokens of reasoning after which the thought is closed with Qwen's sentence for it; null: never (docs/evaluation.md)
    thinking_budget: int | None = Field(None, ge=0)
    # Items a benchmark on whose base replies the distance KL(base ‖ tuned) is measured; 0: it is not.
    kl_items: Annotated[int, NOTHING] = Field(50, ge=0)
    sampling: Annotated[SamplingTable, Affects("evaluation", "grpo")]  # of GRPO, the longest reply
    # EvalScope's dataset_args by benchmark, e.g. {gsm8k: {local_path: DIR, subset_list: [default]}}
    dataset_args: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _check(self) -> EvaluationSettings:
        if self.engine == "server" and self.server.url is None:
            raise ValueError("evaluation.engine=server needs evaluation.server.url, such as http://127.0.0.1:8000/v1")
        if self.engine == "server" and self.server.base_model is None:
            raise ValueError(
                "evaluation.engine=server needs evaluation.server.base_model: what the server calls the base"
            )
        if self.thinking_budget is not None and self.engine == "server" and self.server.kind in UNCONTINUED:
            raise ValueError(
                f"evaluation.thinking_budget needs a server that goes on from a given beginning; kind {self.server.kind} does not"
            )
        if self.engine == "vllm" and self.server.url is not None:
            raise ValueError(
                "evaluation.engine=vllm starts its own server; leave evaluation.server.url out, or take engine=server"
            )
        return self


def budget_of(settings: EvaluationSettings, mode: Mode) -> int | None:
    """The thinking budget of a mode; None: there is none."""
    return settings.thinking_budget if mode == "thinking" else None


class SweepSettings(Section):
    """How the cells of a sweep differ from a full run of the profile, so that many of them can be paid for."""

    overrides: list[str] = []  # as --set takes them; what the command line sets counts more
