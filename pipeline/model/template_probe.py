"""What ``ThinkingStyle`` says of a chat template, found by rendering small conversations with it and looking at the text.

Every question that is asked of the template has a word that occurs nowhere else (``_QUESTION``, ``_REASONING`` …), so that
its place in the text can be found. A template that cannot be used is refused with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.modes import THINK, Mode, Tags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

_QUESTION, _SECOND, _REASONING, _ANSWER = "Question7Q", "Second7S", "Reasoning7R", "Answer7A"
_RESULT, _TOOL, _ARGUMENT, _DATE, _ODD = "Result7T", "tool7n", "Value7V", "Date7D", "odd7e"

_USER: Message = {"role": "user", "content": _QUESTION}
_NEXT: Message = {"role": "user", "content": _SECOND}
_BARE: Message = {"role": "assistant", "content": _ANSWER}
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "id": "call12345", "function": {"name": _TOOL, "arguments": {"city": _ARGUMENT}}}
    ],
}
_TOOL_RESULT: Message = {"role": "tool", "name": _TOOL, "tool_call_id": "call12345", "content": _RESULT}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "A tool.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "A city."}},
                "required": ["city"],
            },
        },
    }
]
_KEYS = ("reasoning_content", "reasoning", "thinking")  # where templates look for reasoning, ours first
_SWITCHES: tuple[tuple[str, Any, Any], ...] = (
    ("enable_thinking", True, False),
    ("thinking", True, False),
    ("reasoning_effort", "high", "none"),
)
_HISTORY = (
    ("preserve_thinking", True),
    ("preserve_thinking", False),
    ("truncate_history_thinking", False),
    ("clear_thinking", False),
    ("clear_thinking", True),
)
_EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")
_EFFORT_FLAGS = (("low", "low_effort"), ("medium", "medium_effort"), ("high", "high_effort"))
_TAG_AT_END = re.compile(r"(?:<[^<>\s]+>|\[[A-Z_]+\])\s*$")
_WORKS = (
    "What works: a template that switches by enable_thinking (Qwen3 to Qwen3.8, Nemotron-3, GLM-4.5, Gemma-4), one whose prompt "
    "always opens the thought (Thinking-2507), or one that knows no reasoning at all (Instruct-2507). "
    "docs/templates.md lists them."
)


class _Template:
    """Renders, and says None where the template refuses."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.why = ""  # the template's own words when it refused last
        tokens = sorted((str(token) for token in tokenizer.get_added_vocab()), key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    def __call__(
        self, messages: Sequence[Message], prompt: bool = False, tools: bool = False, **kwargs: Any
    ) -> str | None:
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=_TOOLS if tools else None,
                add_generation_prompt=prompt,
                tokenize=False,
                **kwargs,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            self.why = str(error) or type(error).__name__
            return None
        return str(text)

    def first_token(self, text: str) -> str:
        """The added token with which the text begins, white space aside; "" if there is none."""
        found = self._token.match(text.lstrip())
        return found[0] if found else ""

    def last_token(self, text: str) -> str:
        """The added token with which the text ends, white space aside."""
        text = text.rstrip()
        return next((found[0] for found in self._token.finditer(text) if found.end() == len(text)), "")


def probe(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of the ``ThinkingStyle`` of a tokenizer's chat template.

    Raises:
        UserError: see ``thinking_style``.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("The tokenizer has no chat template; use a chat model, or set one with get_chat_template().")
    render = _Template(tokenizer)
    default = render([_USER], prompt=True)
    if default is None:
        raise UserError(f"The chat template cannot show a single question: {render.why}.")
    switch = _find_switch(render)
    found: dict[str, Any] = (
        _one_mode(render, default) if switch is None else {"modes": ("thinking", "non_thinking"), "switch": switch}
    )
    if switch is not None:
        found |= _two_modes(render, switch)
    modes, kwargs = found["modes"], found.get("switch", {})
    key = found.get("reasoning_key", "reasoning_content")
    found |= _ends(render, modes, kwargs, key)
    found["untrainable"] = _untrainable(render, found)
    if set(found["untrainable"]) == set(modes):
        raise UserError(f"The chat template breaks parity: {found['untrainable'][modes[0]]} {_WORKS}")
    if "thinking" in modes:
        found |= _history(render, kwargs.get("thinking", {}), key) | _efforts(render, kwargs.get("thinking", {}))
    dated = render([_USER], prompt=True, strftime_now=lambda form: _DATE)
    return {**found, "dated": dated is not None and _DATE in dated}


# --- which modes there are ----------------------------------------------------------------------------------------------


def _find_switch(render: _Template) -> dict[Mode, dict[str, Any]] | None:
    for name, on, off in _SWITCHES:
        thinking, direct = (render([_USER], prompt=True, **{name: value}) for value in (on, off))
        if thinking is None or direct is None or thinking == direct:
            continue
        more: dict[str, Any] = {name: _ODD}
        odd = render([_USER], prompt=True, **more) if isinstance(on, str) else None
        if odd is not None and _ODD in odd:
            continue  # the word is only repeated to the model, whatever it is; none of them is known to turn thinking off
        return {"thinking": {name: on}, "non_thinking": {name: off}}
    return None


def _with_reasoning(render: _Template, **kwargs: Any) -> tuple[str, str] | None:
    """(key, text) of a conversation whose last answer has reasoning; None where the template never shows any."""
    for key in _KEYS:
        text = render([_USER, _BARE | {key: _REASONING}], **kwargs)
        if text is not None and _REASONING in text:
            return key, text
    return None


def _one_mode(render: _Template, prompt: str) -> dict[str, Any]:
    """A template without a switch: its one mode, where that is certain."""
    shown = _with_reasoning(render)
    if shown is None:
        bare = render([_USER, _BARE])
        if bare is not None and bare.startswith(prompt):
            return {"modes": ("non_thinking",)}
        opened = _TAG_AT_END.search(prompt)
        reason = (
            f"every prompt ends {prompt[-30:]!r}, and an answer is never shown behind it"
            if opened
            else f"an answer does not go on from its prompt, which ends {prompt[-30:]!r}"
        )
        raise UserError(f"The tokenizer's chat template does not switch thinking, and {reason}. {_WORKS}")
    key, text = shown
    between = text[len(prompt) : text.index(_REASONING)] if text.startswith(prompt) else None
    if between == "":
        return {"modes": ("thinking",), "reasoning_key": key, **_tags(text, prompt, "")}
    if between is None:
        reason = f"an answer with reasoning does not go on from its prompt, which ends {prompt[-30:]!r}"
    else:
        efforts = _efforts(render, {})["efforts"]
        words = f" (reasoning_effort: {', '.join(efforts)}; none of them turns it off)" if efforts else ""
        reason = f"yet it shows reasoning: whether the model thinks is left to the model{words}; there are no two modes to keep"
    raise UserError(f"The tokenizer's chat template does not switch thinking, and {reason}. {_WORKS}")


def _tags(text: str, prompt: str, between: str) -> dict[str, Any]:
    """Opening and closing of the reasoning. ``between``: what stands between the prompt and the reasoning."""
    opening = between
    if not between.strip():
        found = _TAG_AT_END.search(prompt)
        if found is None:
            raise UserError(
                f"The chat template shows reasoning behind {prompt[-30:]!r} without an opening tag. {_WORKS}"
            )
        opening = found[0]
    closing = text[text.index(_REASONING) + len(_REASONING) : text.index(_ANSWER)]
    if not closing.strip():
        raise UserError(f"The chat template shows no closing tag between reasoning and answer. {_WORKS}")
    tags = Tags(opening.strip(), closing.strip())
    return {"opening": opening, "closing": closing, "tags": tags, "opens_in_prompt": not between.strip()}


def _two_modes(render: _Template, switch: dict[Mode, dict[str, Any]]) -> dict[str, Any]:
    """Tags, opening, closing and direct block of a template with a switch."""
    thinking, direct = (render([_USER], prompt=True, **switch[mode]) or "" for mode in switch)
    shown = _with_reasoning(render, **switch["thinking"])
    if shown is None:
        raise UserError(
            "The chat template leaves out the reasoning of a last answer, so that no thinking answer can be trained or told from "
            "others. A newer revision of the model's template may show it, as Gemma-4's does since July 2026. " + _WORKS
        )
    key, text = shown
    if not text.startswith(thinking):
        return {"reasoning_key": key, "tags": THINK}  # _untrainable says why
    found = _tags(text, thinking, text[len(thinking) : text.index(_REASONING)])
    header = _header(render, switch, key, found["opening"])
    if header is not None and direct.startswith(header):
        block = found["direct_block"] = direct[len(header) :]
        found["soft_switch"] = direct == thinking + block and found["tags"].open in block
    return found | {"reasoning_key": key}


def _header(render: _Template, switch: dict[Mode, dict[str, Any]], key: str, opening: str) -> str | None:
    """The non-thinking text up to the assistant's header, from an answer with reasoning behind it."""
    text = render([_USER, _BARE | {key: _REASONING}], **switch["non_thinking"])
    if text is None or _REASONING not in text:
        return None
    before = text[: text.index(_REASONING)]
    return before.removesuffix(opening) if before.endswith(opening) else None


# --- what ends a turn ---------------------------------------------------------------------------------------------------


def _ends(render: _Template, modes: tuple[Mode, ...], kwargs: dict[Mode, dict[str, Any]], key: str) -> dict[str, Any]:
    mode = modes[-1]
    answer = _BARE if mode == "non_thinking" else _BARE | {key: _REASONING}
    text = render([_USER, answer], **kwargs.get(mode, {}))
    if text is None or _ANSWER not in text:
        raise UserError(f"The chat template cannot show an answer: {render.why or 'it is left out'}.")
    tail = text[text.rindex(_ANSWER) + len(_ANSWER) :]
    end, implicit = render.last_token(tail), not tail.strip()
    if implicit:
        longer = render([_USER, answer, _NEXT], prompt=True, **kwargs.get(mode, {})) or ""
        end = render.first_token(longer[longer.rfind(_ANSWER) + len(_ANSWER) :])
    if not end:
        raise UserError(
            f"The chat template breaks parity: an answer ends {tail[-40:]!r}, which is no token of the tokenizer; a model "
            "could not be taught to stop. Use the tokenizer that belongs to the template."
        )
    special = {str(render.tokenizer.eos_token), str(getattr(render.tokenizer, "eot_token", None))}
    if not implicit and end not in special:
        raise UserError(
            f"The chat template breaks parity: it ends an answer with {end!r}, but the tokenizer's end token is "
            f"{render.tokenizer.eos_token!r}, so that a trained model would not stop where it is served. Use the chat model's "
            f"tokenizer, or set tokenizer.eos_token = {end!r} and the same in the model's generation config."
        )
    calls = _end_of_calls(render, kwargs.get(mode, {}), implicit)
    return {"end": end, "end_of_calls": calls, "end_is_next_turn": implicit}


def _end_of_calls(render: _Template, kwargs: dict[str, Any], implicit: bool) -> str | None:
    text = render([_USER, _CALL], tools=True, **kwargs)
    answered = render([_USER, _CALL, _TOOL_RESULT], prompt=True, tools=True, **kwargs)
    if text is None or answered is None or _RESULT not in answered:
        return None
    if any(word not in text[text.index(_QUESTION) :] for word in (_TOOL, _ARGUMENT)):
        return None  # dropped without a word
    if implicit:
        text = text.rstrip()
        return (render.first_token(answered[len(text) :]) or None) if answered.startswith(text) else None
    return render.last_token(text) or None


# --- whether examples can be made ---------------------------------------------------------------------------------------


def _untrainable(render: _Template, found: dict[str, Any]) -> dict[Mode, str]:
    """The modes in which a shown answer does not go on from the prompt, with the reason."""
    reasons: dict[Mode, str] = {}
    for mode, history in _each(found["modes"]):
        if mode in reasons:
            continue
        kwargs = found.get("switch", {}).get(mode, {})
        thinks = mode == "thinking"
        answer = _BARE | ({found.get("reasoning_key", "reasoning_content"): _REASONING} if thinks else {})
        prompt, text = render([*history, _USER], prompt=True, **kwargs), render([*history, _USER, answer], **kwargs)
        name = mode.replace("_", "-")
        if prompt is None or text is None:
            reasons[mode] = f"in {name} mode the template refuses a conversation: {render.why}."
        elif not text.startswith(prompt):
            reasons[mode] = (
                f"in {name} mode a rendered answer does not continue the generation prompt, which ends {prompt[-60:]!r}; "
                f"the answer ends {text[-60:]!r}."
            )
        elif _ANSWER not in text[len(prompt) :]:
            reasons[mode] = f"in {name} mode the answer is left out."
    return reasons


def _each(modes: tuple[Mode, ...]) -> Iterator[tuple[Mode, list[Message]]]:
    earlier = [{"role": "user", "content": "Earlier?"}, {"role": "assistant", "content": "Yes."}]
    for mode in modes:
        yield mode, []
        yield mode, earlier


# --- what later turns see, and how much is thought ----------------------------------------------------------------------


def _history(render: _Template, kwargs: dict[str, Any], key: str) -> dict[str, Any]:
    def kept(**more: Any) -> bool:
        text = render([_USER, _BARE | {key: _REASONING}, _NEXT], prompt=True, **(kwargs | more))
        return text is not None and _REASONING in text

    by_default = kept()
    calls = render([_USER, _CALL | {key: _REASONING}, _TOOL_RESULT], prompt=True, tools=True, **kwargs)
    switch = next(({name: value} for name, value in _HISTORY if kept(**{name: value}) != by_default), {})
    return {
        "keeps_reasoning": by_default,
        "keeps_reasoning_between_calls": calls is not None and _REASONING in calls,
        "history_switch": switch,
    }


def _efforts(render: _Template, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The efforts that change the thinking prompt, with the one that is meant where none is given."""
    default = render([_USER], prompt=True, **kwargs)
    texts = {}
    if "reasoning_effort" not in kwargs:
        for value in _EFFORTS:
            text = render([_USER], prompt=True, **kwargs, reasoning_effort=value)
            if text is not None:
                texts[value] = text
    if len(set(texts.values())) > 1:
        usual = next((value for value, text in texts.items() if text == default), None)
        return {"efforts": {value: {"reasoning_effort": value} for value in texts}, "default_effort": usual}
    flags = {
        effort: {name: True}
        for effort, name in _EFFORT_FLAGS
        if render([_USER], prompt=True, **kwargs, **{name: True}) not in (None, default)
    }
    return {"efforts": flags, "default_effort": None}
