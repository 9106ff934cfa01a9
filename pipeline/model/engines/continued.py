"""A thinking budget through a server: the reply is asked for in two parts, with the end of the thought between them.

Chat completions cannot go on from the middle of a reply in a way that servers agree on, so both parts are asked for by
``/v1/completions``, with the prompt in our own tokens; vLLM, SGLang and llama.cpp have that. ``transformers serve`` and the plain
OpenAI protocol do not, and are refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.model.engines.protocol import request_fields
from pipeline.model.thinking_budget import Budget
from pipeline.settings import UNCONTINUED, Sampling

if TYPE_CHECKING:
    from pipeline.model.engines.server import ServerEngine


def require_continuing(engine: ServerEngine, budget: Budget, sampling: Sampling) -> None:
    """Raises: UserError: such a server cannot go on from a given beginning; or there is no room for an answer."""
    if engine.server.kind in UNCONTINUED:
        raise UserError(
            f"A thinking budget needs a server that goes on from a given beginning (/v1/completions): vllm, sglang or llamacpp. "
            f"evaluation.server.kind is {engine.server.kind}; set evaluation.thinking_budget=null, or serve it with one of those."
        )
    budget.require_room(sampling.max_new_tokens)


def ask_within(
    engine: ServerEngine, prompt: list[int], sampling: Sampling, seed: int, budget: Budget
) -> tuple[str, int, int, bool]:
    """One reply that thinks no longer than the budget.

    Returns:
        Its text, tokens of the prompt, tokens written (what closes the thought among them), whether the limit cut it.

    Raises:
        UserError: as ``ServerEngine.explained``.
    """
    fields = request_fields(engine.server, "thinking", sampling)
    extra = {key: value for key, value in fields["extra_body"].items() if key not in engine.server.thinking}
    fields |= {"extra_body": extra, "seed": seed}
    opened = budget.opened_by(prompt)
    due = budget.due(opened)
    text, written, cut = "", 0, True
    if due:  # else the prompt has opened the thought, and it is closed at once
        text, written, cut = _complete(engine, prompt, fields | {"max_tokens": due})
    if not cut:
        return opened + text, len(prompt), written, False
    so_far = [*prompt, *engine.tokens(text)] if text else list(prompt)
    if budget.is_thinking(opened, text):
        text, written, so_far = text + budget.text, written + len(budget.closing), [*so_far, *budget.closing]
    rest, more, cut = _complete(engine, so_far, fields | {"max_tokens": sampling.max_new_tokens - written})
    return opened + text + rest, len(prompt), written + more, cut


def _complete(engine: ServerEngine, prompt: list[int], fields: dict[str, Any]) -> tuple[str, int, bool]:
    """Text, its tokens, whether the limit cut it."""
    import openai

    try:
        raw = engine.client.completions.with_raw_response.create(model=engine.model, prompt=prompt, **fields)
    except openai.OpenAIError as error:
        raise engine.explained(error) from None  # what the client holds of the request has the key in it
    try:
        answer = json.loads(raw.http_response.text)
        choice = answer["choices"][0]
        text, cut = choice["text"], choice.get("finish_reason") == "length"
    except (ValueError, LookupError, TypeError, AttributeError):
        text = None
    if not isinstance(text, str):
        raise UserError(f"{engine.where} has no /v1/completions, which a thinking budget needs.")
    if not cut:
        for end in engine.ends:
            text = text.removesuffix(end)
    written = (answer.get("usage") or {}).get("completion_tokens")
    return text, written if isinstance(written, int) else len(engine.tokens(text)), cut
