"""The engine of a server that speaks the OpenAI protocol: vLLM, SGLang, llama.cpp, ``transformers serve``, or a hosted one.

In: conversations. Out: the same ``Reply`` rows as from this process. Requests are open a bounded number at a time, each with a
seed of its own; one that fails is sent again after a pause (the ``openai`` client does that), and what keeps failing ends with
words that say what to do. The key comes from an environment variable; it is never written, and never quoted from an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.core.errors import UserError
from pipeline.core.modes import Mode
from pipeline.core.redact import masked_text
from pipeline.model.decode import Reply
from pipeline.model.engines.base import Arrived, Messages, PromptIds
from pipeline.model.engines.check import check_server
from pipeline.model.engines.continued import ask_within, require_continuing
from pipeline.model.engines.local import require_prompts
from pipeline.model.engines.protocol import reply_text, request_fields
from pipeline.model.thinking_budget import Budget
from pipeline.model.thinking_style import thinking_style
from pipeline.settings import Sampling, ServerSettings

if TYPE_CHECKING:
    import openai
    from transformers import PreTrainedTokenizerBase

CONNECT_SECONDS = 10.0
_GO_ON = "What has been answered is stored; run again with --resume to ask only for the rest."


class ServerEngine:
    """Asks a server; open it with ``server_engine``.

    Args:
        model: what the server calls the model.
        key: of the server; "" for none.
    """

    one_by_one = True

    def __init__(
        self, server: ServerSettings, model: str, tokenizer: PreTrainedTokenizerBase, prompt_ids: PromptIds, key: str
    ):
        import openai

        assert server.url is not None
        self.server, self.model, self.tokenizer, self.prompt_ids = server, model, tokenizer, prompt_ids
        self.window, self._key = server.concurrency, key
        self.identity = {"engine": "server", "kind": server.kind, "model": model}
        self.positions: int | None = None  # that the server has room for, where it says so
        self._style = thinking_style(tokenizer)
        self.ends = tuple(str(tokenizer.decode([i])) for i in [tokenizer.eos_token_id] if i is not None)
        host = urlsplit(server.url).hostname or ""
        timeout = openai.Timeout(server.timeout_s, connect=CONNECT_SECONDS)
        # A proxy in the environment is not for this machine.
        http = openai.DefaultHttpxClient(trust_env=host not in ("localhost", "127.0.0.1", "::1"), timeout=timeout)
        self.client: openai.OpenAI = openai.OpenAI(
            base_url=server.url,
            api_key=key or "none",  # a local server asks for none, the client for some
            max_retries=server.retries,
            timeout=timeout,
            http_client=http,
        )

    # --- the interface

    def require_room(self, conversations: Sequence[Messages], mode: Mode, sampling: Sampling) -> None:
        require_prompts(self.prompt_ids, conversations, mode, sampling, None, self.positions)

    def replies(
        self,
        conversations: Sequence[Messages],
        mode: Mode,
        sampling: Sampling,
        seed: int,
        arrived: Arrived | None = None,
        thinking_budget: int | None = None,
    ) -> list[Reply]:
        budget = None
        if thinking_budget is not None and mode == "thinking":
            budget = Budget(self.tokenizer, thinking_budget)
            require_continuing(self, budget, sampling)
        fields = request_fields(self.server, mode, sampling)
        seen: dict[str, int] = {}
        jobs = []
        for place, messages in enumerate(conversations):
            key = json.dumps([list(map(dict, messages)), mode], sort_keys=True, ensure_ascii=False)
            jobs.append((place, messages, _seed_of(seed, key, seen.get(key, 0))))
            seen[key] = seen.get(key, 0) + 1

        def ask(job: tuple[int, Messages, int]) -> Reply:
            place, messages, own_seed = job
            if budget is None:
                reply = self._ask(messages, mode, fields, own_seed)
            else:
                reply = self._reply(*ask_within(self, self.prompt_ids(messages, mode), sampling, own_seed, budget))
            if arrived is not None:
                arrived(place, reply)
            return reply

        if len(jobs) == 1:
            return [ask(jobs[0])]
        with ThreadPoolExecutor(self.window) as pool:
            try:
                return list(pool.map(ask, jobs))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    # --- a request

    def _ask(self, messages: Messages, mode: Mode, fields: Mapping[str, Any], seed: int) -> Reply:
        answer = self.complete(messages, seed=seed, **fields)
        choice = answer["choices"][0]
        cut = choice.get("finish_reason") == "length"
        style = self._style
        opened = style.opening if mode == "thinking" and style.opens_in_prompt else ""
        text = reply_text(choice["message"], cut, self.ends, style.tags, opened)
        ids = self.tokens(text)
        usage = answer.get("usage") or {}
        written = usage.get("completion_tokens")
        if mode == "thinking" and isinstance(written, int) and written > 2 * len(ids) + 64:
            raise UserError(
                f"{self.where} says that it wrote {written} tokens, but sends a reply of {len(ids)}: it keeps the reasoning to "
                "itself. Have it send the reasoning (reasoning_content, or in the text), or evaluate with another engine."
            )
        prompt = usage.get("prompt_tokens") or len(self.prompt_ids(messages, mode))
        return self._reply(text, prompt, written if isinstance(written, int) else len(ids), cut)

    def _reply(self, text: str, prompt_tokens: int, written: int, cut: bool) -> Reply:
        """``written``: tokens that the server says it wrote; the other counts are of the text as our tokenizer cuts it."""
        tags, ids = self._style.tags, self.tokens(text)
        before, tag, _ = text.partition(tags.close)
        is_open = text.lstrip().startswith(tags.open)
        reasoning = len(self.tokens(before + tag)) if tag else len(ids) if is_open else 0
        return Reply(
            text=text,
            token_ids=ids,
            prompt_tokens=prompt_tokens,
            output_tokens=written,
            reasoning_tokens=reasoning,
            answer_tokens=max(0, len(ids) - reasoning),
            truncated=cut,
            tags=tags,
        )

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def complete(self, messages: Messages, **fields: Any) -> dict[str, Any]:
        """One chat completion, as plain data with at least one choice that has a message.

        Raises:
            UserError: no answer after all tries, or one that is none; see ``explained``.
        """
        import openai

        try:
            sent: Any = [dict(message) for message in messages]
            raw = self.client.chat.completions.with_raw_response.create(model=self.model, messages=sent, **fields)
        except openai.OpenAIError as error:
            raise self.explained(error) from None  # what the client holds of the request has the key in it
        try:
            answer = json.loads(raw.http_response.text)
            message = answer["choices"][0]["message"]
        except (ValueError, LookupError, TypeError):
            message = None
        if not isinstance(message, dict):
            raise UserError(
                f"{self.where} does not answer as an OpenAI-compatible server does. Is evaluation.server.url right?"
            )
        return dict(answer)

    @property
    def where(self) -> str:
        """The server and the model, to begin a message with."""
        parts = urlsplit(self.server.url or "")
        return f"The server {parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}, model {self.model!r},"

    def explained(self, error: openai.OpenAIError) -> UserError:
        """What a failed request means and what to do about it."""
        import openai

        tries = f"after {self.server.retries + 1} tries" if self.server.retries else "at the first try"
        if isinstance(error, openai.APITimeoutError):
            return UserError(
                f"{self.where} gave no answer within {self.server.timeout_s:g} s, {tries}. It may hang, or be too busy: lower "
                f"evaluation.server.concurrency, or raise evaluation.server.timeout_s. {_GO_ON}"
            )
        if not isinstance(error, openai.APIStatusError):
            return UserError(
                f"{self.where} cannot be reached ({type(error).__name__}, {tries}). Start it, or mend evaluation.server.url. "
                f"{_GO_ON}"
            )
        status, said = error.status_code, self._said(error)
        variable = self.server.api_key_env
        if status == 401:
            had = "refuses the key in" if self._key else "asks for a key; put it into"
            return UserError(f"{self.where} {had} the environment variable {variable} (evaluation.server.api_key_env).")
        if status == 403:
            return UserError(f"{self.where} says that the key in the environment variable {variable} may not use it.")
        known = self.models()
        if status in (400, 404, 422) and known is not None and self.model not in known:
            return UserError(self.no_model(known))
        if status == 404:
            return UserError(
                f"{self.where} answers 404{said}. Does evaluation.server.url end in /v1, and is the model's name right?"
            )
        if status in (400, 413, 422):
            return UserError(
                f"{self.where} refuses a request ({status}{said}). Is evaluation.server.kind={self.server.kind} what it is, and "
                "has it room for prompt and reply (max_new_tokens)?"
            )
        return UserError(f"{self.where} answers {status}, {tries}{said}. Look at its log. {_GO_ON}")

    def _said(self, error: openai.APIStatusError) -> str:
        text = " ".join(error.response.text.split())[:200]
        if self._key:
            text = text.replace(self._key, "***")
        return f": {masked_text(text, environment=True)}" if text else ""

    def models(self) -> list[str] | None:
        """Names of the models that the server says it has; None: it does not say."""
        import openai

        try:
            return [model.id for model in self.client.with_options(max_retries=0).models.list().data]
        except (openai.OpenAIError, AttributeError, TypeError):
            return None

    def no_model(self, known: Sequence[str]) -> str:
        """Words for a model that the server does not have."""
        have = ", ".join(sorted(known)[:10]) or "none"
        return (
            f"{self.where} has no such model; it has: {have}. Serve it under that name (an adapter with vLLM: --enable-lora "
            f"--lora-modules {self.model}=RUN/adapter), or set evaluation.server.base_model and .tuned_model. {_GO_ON}"
        )


def _seed_of(seed: int, key: str, occurrence: int) -> int:
    """A request's own seed; the n-th copy of a conversation has the n-th."""
    digest = hashlib.sha256(f"{seed}:{occurrence}:{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1  # 31 bits: what every server takes


def key_of(server: ServerSettings) -> str:
    """The key from the environment; "" where there is none.

    Raises:
        UserError: what the variable holds can be no key.
    """
    key = os.environ.get(server.api_key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"What the environment variable {server.api_key_env} holds is no key (evaluation.server.api_key_env)."
        )
    return key


@contextmanager
def server_engine(
    server: ServerSettings,
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: PromptIds,
    key: str | None = None,
) -> Iterator[ServerEngine]:
    """The engine of a server, once it is known to have the model and to build our prompts.

    Args:
        key: None: from the environment.

    Raises:
        UserError: as ``ServerEngine.explained`` and ``check_server``.
    """
    engine = ServerEngine(server, model, tokenizer, prompt_ids, key_of(server) if key is None else key)
    try:
        check_server(engine)
        yield engine
    finally:
        engine.client.close()
