"""Before the first reply: does the server have the model, and does it build the prompts that training used?

A server renders the chat template that lies beside its own copy of the model. With another template it would answer other prompts
than those that the model was trained on, and the scores would look like those of a bad model. So some conversations are tried in
both modes: where the server can hand out the tokens of a prompt, they are compared one by one, elsewhere their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES, Mode
from pipeline.model.engines.base import Messages

if TYPE_CHECKING:
    from pipeline.model.engines.server import ServerEngine

# What templates differ in: a system message, earlier turns and their reasoning, blanks at the ends, other scripts.
PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is 2 + 3?"}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "  天空是什么颜色？\n"}],
    [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Another one, please."},
    ],
)


def check_server(engine: ServerEngine) -> None:
    """Raises: UserError: the model is not there, the key is refused, or the prompts are others than ours."""
    require_model(engine)
    if engine.server.check_prompts:
        require_same_prompts(engine)


def require_model(engine: ServerEngine) -> None:
    """See that the server answers and, where its list can be trusted, has the model; note how long its context is."""
    import openai

    try:
        listed = engine.client.models.list().data
    except openai.NotFoundError:  # not all have a list
        return
    except openai.OpenAIError as error:
        raise engine.explained(error) from None
    # The others answer by any name (llama.cpp), load by name (transformers), or list a part of what they have.
    names = [model.id for model in listed or []]
    if engine.server.kind in ("vllm", "sglang") and engine.model not in names:
        raise UserError(engine.no_model(names))
    for model in listed or []:
        length = (model.model_extra or {}).get("max_model_len")
        if model.id == engine.model and isinstance(length, int):
            engine.positions = length


def require_same_prompts(engine: ServerEngine) -> None:
    """Raises: UserError: the server's prompts differ from ours, or nothing can be learnt about them."""
    ours = {mode: [engine.prompt_ids(probe, mode) for probe in PROBES] for mode in MODES}
    theirs: dict[Mode, list[list[int] | int]] = {mode: [_prompt_of(engine, p, mode) for p in PROBES] for mode in MODES}
    same = [_agree(mine, their) for mode in MODES for mine, their in zip(ours[mode], theirs[mode], strict=True)]
    if all(same):
        return
    if theirs["thinking"] == theirs["non_thinking"]:
        raise UserError(
            f"{engine.where} builds the same prompt in both modes: it does not know the switch between them. Set "
            "evaluation.server.thinking and .non_thinking to what it calls it, or serve a model with a chat template that has "
            "one."
        )
    for mode in MODES:
        for probe, mine, their in zip(PROBES, ours[mode], theirs[mode], strict=True):
            if not _agree(mine, their):
                raise UserError(
                    f"{engine.where} uses another chat template than the model was trained with: for {probe[-1]['content']!r} in "
                    f"{mode.replace('_', '-')} mode {_difference(engine, mine, their)}. Serve it with the chat_template that "
                    "lies beside the run's tokenizer (vLLM: --chat-template)."
                )


def _agree(ours: Sequence[int], theirs: list[int] | int) -> bool:
    return len(ours) == theirs if isinstance(theirs, int) else list(ours) == theirs


def _difference(engine: ServerEngine, ours: Sequence[int], theirs: list[int] | int) -> str:
    if isinstance(theirs, int):
        return f"its prompt has {theirs} tokens, ours {len(ours)}"
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))

    def shown(ids: Sequence[int]) -> str:
        return repr(str(engine.tokenizer.decode(list(ids[max(0, place - 3) : place + 8]))))

    return f"its prompt differs from token {place} on: {shown(theirs)}, ours {shown(ours)}"


def _prompt_of(engine: ServerEngine, probe: Messages, mode: Mode) -> list[int] | int:
    """The tokens of a prompt that the server builds, or how many they are.

    Raises:
        UserError: it tells neither.
    """
    tokens = _tokenized(engine, probe, mode)
    if tokens is not None:
        return tokens
    extra = getattr(engine.server, mode)
    answer = engine.complete(probe, max_tokens=1, extra_body=extra)
    count = (answer.get("usage") or {}).get("prompt_tokens")
    if not isinstance(count, int) or count < 1:
        raise UserError(
            f"{engine.where} has no /tokenize and does not say how many tokens a prompt has, so it cannot be seen whether its "
            "prompts are those of training. Set evaluation.server.check_prompts=false if you know that they are."
        )
    return count


def _tokenized(engine: ServerEngine, probe: Messages, mode: Mode) -> list[int] | None:
    """The tokens of a prompt by ``/tokenize``, which stands beside ``/v1``; None: there is none."""
    extra, messages = getattr(engine.server, mode), list(probe)
    if engine.server.kind == "vllm":
        body = {"model": engine.model, "messages": messages, "add_generation_prompt": True, **extra}
        return _ids(_post(engine, "tokenize", body))
    if engine.server.kind == "llamacpp":
        prompt = (_post(engine, "apply-template", {"messages": messages, **extra}) or {}).get("prompt")
        if isinstance(prompt, str):
            return _ids(_post(engine, "tokenize", {"content": prompt, "add_special": False, "parse_special": True}))
    return None


def _post(engine: ServerEngine, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    import openai

    root = (engine.server.url or "").rstrip("/").removesuffix("/v1")
    try:
        answer = engine.client.with_options(max_retries=0).post(f"{root}/{path}", cast_to=object, body=body)
    except (openai.OpenAIError, ValueError):  # no such path, or no JSON: then their number is looked at
        return None
    return answer if isinstance(answer, dict) else None


def _ids(answer: dict[str, Any] | None) -> list[int] | None:
    tokens = (answer or {}).get("tokens")
    return tokens if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) else None
