"""A ``Modelfile``, with which ``ollama create`` makes a model of a GGUF file: its template, its end tokens, its sampling.

Ollama renders prompts with a template in Go's language, not with the chat template in the GGUF file, and without one of its own
it would have no thinking switch. ``templates/qwen3.gotmpl`` renders what Qwen3's chat template renders; the tests compare them.
Here it is made sure that the model's chat template is Qwen3's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES
from pipeline.core.place import ROOT
from pipeline.data.conversations import Message
from pipeline.export.folders import whole_folder
from pipeline.settings import Sampling, SamplingTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = Path(__file__).parent / "templates" / "qwen3.gotmpl"
QWEN3 = ROOT / "models" / "embedded" / "chat_template.jinja"  # Qwen3's, as published
STOPS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
NAMES = {"repetition_penalty": "repeat_penalty", "max_new_tokens": "num_predict"}
ORDER = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")


def probes() -> Iterator[tuple[list[Message], list[dict[str, Any]] | None]]:
    """Conversations, with their tools, on which two chat templates that are not the same part."""
    user, system = {"role": "user", "content": "Is 7 odd?"}, {"role": "system", "content": "Be brief."}
    answer = {"role": "assistant", "content": "Yes.", "reasoning_content": "7 = 2 · 3 + 1."}
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tools = [{"type": "function", "function": {"name": "odd", "description": "d", "parameters": parameters}}]
    call = {"id": "1", "type": "function", "function": {"name": "odd", "arguments": {"n": 7}}}
    calls = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "content": "true", "tool_call_id": "1"}
    for messages in ([user], [system, user], [user, answer, user], [system, user, answer, user]):
        yield messages, None
    with_tools: list[list[Message]] = [
        [user],
        [system, user],
        [user, calls, result],
        [user, calls, result, result, answer, user],
    ]
    for messages in with_tools:
        yield messages, tools


def require_qwen3_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``UserError`` where the chat template renders something else than Qwen3's."""
    qwen3 = QWEN3.read_text(encoding="utf-8")
    for messages, tools in probes():
        for mode in MODES:
            options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False, "tools": tools}
            options["enable_thinking"] = mode == "thinking"
            own = tokenizer.apply_chat_template(messages, **options)
            if own != tokenizer.apply_chat_template(messages, chat_template=qwen3, **options):
                raise UserError(
                    "The Modelfile's template is written for Qwen3's chat template, and this model's renders another prompt "
                    f"({mode.replace('_', '-')}, {len(messages)} messages{', with tools' if tools else ''}): {own[-80:]!r}. "
                    "Use --to gguf: llama.cpp takes the chat template that is in the file."
                )


def parameters(sampling: Sampling) -> dict[str, float]:
    """Decoding in Ollama's names, as its PARAMETER lines and a request's ``options`` have them.

    Greedy decoding is temperature 0 there too; what restricts sampling has no meaning then and is left out.
    """
    settings = sampling.model_dump()
    keys = ORDER if sampling.temperature else ("temperature", "repetition_penalty", "max_new_tokens")
    return {NAMES.get(key, key): settings[key] for key in keys}


def modelfile(gguf: str, sampling: SamplingTable, context: int) -> str:
    """The text of a Modelfile.

    Ollama has one set of parameters a model; it thinks unless a request says ``"think": false``, so they are those of the
    thinking mode, and those of the other mode stand in a comment, for the ``options`` of such a request.
    """
    other = ", ".join(f'"{key}": {value:g}' for key, value in parameters(sampling.non_thinking).items())
    lines = [
        f"FROM ./{gguf}",
        f'TEMPLATE """{TEMPLATE.read_text(encoding="utf-8").rstrip()}"""',
        *(f'PARAMETER stop "{stop}"' for stop in STOPS),
        f"PARAMETER num_ctx {context}",
        '# Thinking, which is what a request without "think" gets:',
        *(f"PARAMETER {key} {value:g}" for key, value in parameters(sampling.thinking).items()),
        '# Non-thinking: send "think": false, and with it',
        f'#   "options": {{{other}}}',
    ]
    return "\n".join(lines) + "\n"


def write_ollama(gguf: Path, folder: Path, sampling: SamplingTable, context: int) -> None:
    """A folder with the GGUF file and its Modelfile: ``ollama create NAME`` works inside it."""
    with whole_folder(folder) as temporary:
        try:
            os.link(gguf, temporary / gguf.name)  # no second copy where the file system has links
        except OSError:
            shutil.copyfile(gguf, temporary / gguf.name)
        (temporary / "Modelfile").write_text(modelfile(gguf.name, sampling, context), encoding="utf-8", newline="\n")
