"""Settings of an evaluation and of a sweep."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from pipeline.core.modes import Mode
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


EngineName = Literal["transformers", "server", "vllm"]
# Whose extensions of the OpenAI protocol a server speaks: what it calls the parts of sampling that OpenAI does not have
ServerKind = Literal["vllm", "sglang", "llamacpp", "transformers", "openai"]

# Those that have no /v1/completions with a prompt in tokens, so that a reply cannot be gone on with
UNCONTINUED: tuple[ServerKind, ...] = ("transformers", "openai")


class ServerSettings(Section):
    """A server that answers by the OpenAI protocol. ``url`` is needed for the engine ``server``; ``vllm`` makes its own."""

    url: Annotated[str | None, NOTHING] = None  # e.g. http://127.0.0.1:8000/v1
    kind: ServerKind = "vllm"
    base_model: str | None = None  # what the server calls the base
    tuned_model: str | None = None  # and the base with the run's adapter
    api_key_env: Annotated[str, NOTHING] = "OPENAI_API_KEY"  # the environment variable that holds the key
    concurrency: Annotated[int, NOTHING] = Field(32, gt=0, le=1024)  # requests open at a time
    timeout_s: Annotated[float, NOTHING] = Field(600, gt=0)  # of one reply
    retries: Annotated[int, NOTHING] = Field(5, ge=0, le=20)  # of a request that failed, with growing pauses
    # What a request holds besides, to ask for a mode. vLLM, SGLang, llama.cpp and `transformers serve` know chat_template_kwargs;
    # elsewhere it is enable_thinking, reasoning: {enabled: …}, thinking: {type: …}, …
    thinking: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}
    non_thinking: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
    check_prompts: bool = True  # see that the server builds the prompts that training used; once a run

    @model_validator(mode="after")
    def _check(self) -> ServerSettings:
        parts = urlsplit(self.url or "http://127.0.0.1/v1")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("evaluation.server.url is no address; give one such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "evaluation.server.url holds a login or a query; a key is read from the environment variable that "
                "evaluation.server.api_key_env names, and nowhere else"
            )
        if self.thinking == self.non_thinking:
            raise ValueError("evaluation.server.thinking and .non_thinking are the same; what tells the modes apart?")
        return self


class VllmSettings(Section):
    """How ``vllm serve`` is started: from an environment of its own, on this machine alone."""

    # a path to vllm's executable (ENVIRONMENT/bin/vllm), its name on the PATH, or uvx, which installs what `version` names
    executable: Annotated[str, NOTHING] = "vllm"
    version: str | None = None  # with uvx: of the package; null: the newest
    # auto: bitsandbytes where model.load_in_4bit, so that the weights that answer are those that were trained on
    quantization: Literal["auto", "none"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    startup_s: Annotated[float, NOTHING] = Field(900, gt=0)  # until it is ready: it loads, compiles, and records graphs
    arguments: list[str] = []  # more of `vllm serve`, e.g. [--gpu-memory-utilization, "0.8"]


class EvaluationSettings(Section):
    """Which benchmarks, how many items, how sampled."""

    benchmarks: list[str] = Field(min_length=1)
    limit: int | None = Field(None, gt=0)  # items a benchmark; null: all
    engine: EngineName = (
        "transformers"  # what makes the replies: this process, a server, or vLLM that is started for it
    )
    server: ServerSettings = ServerSettings()  # type: ignore[call-arg]
    vllm: VllmSettings = VllmSettings()  # type: ignore[call-arg]
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
