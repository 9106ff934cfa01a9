"""What a request to a server holds, and what its answer says: the OpenAI protocol, and where servers go beyond it.

In: sampling, mode, and the kind of server. Out: the fields of a chat completion; and, of an answer, one text with think tags,
whichever way the server hands reasoning out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.modes import THINK, Mode, Tags
from pipeline.settings import Sampling, ServerSettings


def request_fields(server: ServerSettings, mode: Mode, sampling: Sampling) -> dict[str, Any]:
    """Fields of a chat completion beside model, messages and seed; those that OpenAI does not have are in ``extra_body``.

    Raises:
        UserError: the server has no field for something that this sampling asks for.
    """
    s = sampling
    fields: dict[str, Any] = {"temperature": s.temperature, "top_p": s.top_p, "max_tokens": s.max_new_tokens}
    extra: dict[str, Any] = dict(getattr(server, mode))
    if server.kind in ("vllm", "sglang"):
        extra |= {"top_k": s.top_k or -1, "min_p": s.min_p, "repetition_penalty": s.repetition_penalty}
        extra["skip_special_tokens"] = False  # think tags are special tokens in some tokenizers
    elif server.kind == "llamacpp":
        extra |= {"top_k": s.top_k, "min_p": s.min_p, "repeat_penalty": s.repetition_penalty}
    elif server.kind == "transformers":
        # Its chat completions know these by a generation config in JSON, which stands in the place of the model's own.
        config = {"do_sample": s.temperature > 0, "top_k": s.top_k, "repetition_penalty": s.repetition_penalty}
        extra["generation_config"] = json.dumps(config | ({"min_p": s.min_p} if s.min_p else {}))
    else:
        beyond = {"top_k": s.top_k, "min_p": s.min_p, "repetition_penalty": s.repetition_penalty - 1}
        asked = [name for name, value in beyond.items() if value and s.temperature > 0]
        if asked:
            raise UserError(
                f"evaluation.sampling.{mode} sets {', '.join(asked)}, which the OpenAI protocol does not have. Say with "
                "evaluation.server.kind what the server is (vllm, sglang, llamacpp, transformers), or take them out of "
                f"the sampling: top_k=0, min_p=0, repetition_penalty=1."
            )
    return fields | {"extra_body": extra}


def reply_text(
    message: Mapping[str, Any], cut: bool, ends: tuple[str, ...], tags: Tags = THINK, opened: str = ""
) -> str:
    """The reply as the model wrote it, as far as the server lets it be known.

    A server with a reasoning parser hands reasoning and answer out apart, without tags; they are put together again. Whether
    such a block was closed can only be told by whether an answer follows.

    Args:
        message: ``content``, and ``reasoning_content`` or ``reasoning`` where the server has one.
        cut: the reply stopped at the token limit.
        ends: texts of the end tokens, which some servers leave at the end.
        tags: those around the model's reasoning.
        opened: what the prompt ended with of them (``ThinkingStyle.opened``): the text goes on behind it.
    """
    content = message.get("content") or ""
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    for end in ends:
        if not cut:
            content = content.removesuffix(end)
    if not reasoning:
        return str(content) if not opened or content.lstrip().startswith(tags.open) else f"{opened}{content}"
    block = f"{tags.open}\n{str(reasoning).strip(chr(10))}"
    return f"{block}\n{tags.close}\n\n{str(content).lstrip(chr(10))}" if content.strip() else block
