"""Settings of the servers that answer in the place of this process: one that is there, and vLLM that is started for a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from pipeline.settings.section import NOTHING, Section

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

    def told(self, kwargs: Mapping[str, Any]) -> ServerSettings:
        """The same, with these keywords for the chat template in each request (``model.chat_template_kwargs``).

        What the settings say themselves stays.
        """
        if not kwargs:
            return self
        key, changed = "chat_template_kwargs", {}
        for mode in ("thinking", "non_thinking"):
            fields: dict[str, Any] = getattr(self, mode)
            changed[mode] = fields | {key: {**kwargs, **fields.get(key, {})}}
        return self.model_copy(update=changed)

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
