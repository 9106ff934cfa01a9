"""Rows of public datasets become conversations.

In: one row (a dict) of a known layout. Out: a ``Conversation``: OpenAI-style messages, the mode of its last answer,
optional tools, and the name of its source. A row that cannot become one raises ``Rejected`` with a reason that is
counted and written out; nothing is skipped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import UserError, nearest

Mode = Literal["thinking", "non_thinking"]
MODES: tuple[Mode, Mode] = ("thinking", "non_thinking")
Message = dict[str, Any]


class Rejected(Exception):
    """A row that is left out. ``reason`` is a short snake_case word to count by, ``detail`` says what was seen."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass
class Conversation:
    """Messages ``{"role", "content"[, "reasoning_content"][, "tool_calls"]}`` in the order they were said.

    ``mode`` is the mode of the last answer: ``thinking`` if it comes with reasoning, else ``non_thinking``.
    """

    messages: list[Message]
    mode: Mode
    source: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)


def split_reasoning(text: str) -> tuple[str, str]:
    """Split ``<think>reasoning</think>answer`` into (reasoning, answer); reasoning is ``""`` where no tag is.

    A chain whose opening tag was cut off with the prompt (``reasoning</think>answer``) is accepted, as some datasets
    store it so.

    Raises:
        Rejected: ``unclosed_think`` (a ``<think>`` without ``</think>``), ``several_think_blocks``.
    """
    opened, closed = text.count("<think>"), text.count("</think>")
    if not opened and not closed:
        return "", text.strip()
    if opened > closed:
        raise Rejected("unclosed_think", text[:80])
    if closed > 1 or (opened and not text.lstrip().startswith("<think>")):
        raise Rejected("several_think_blocks", text[:80])
    reasoning, _, answer = text.partition("</think>")
    return reasoning.replace("<think>", "", 1).strip(), answer.strip()


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Rejected("not_text", f"{where} is {type(value).__name__}, not text")
    return value


def _field(row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise Rejected("missing_column", f"no {name!r}; the row has {', '.join(map(repr, row)) or 'nothing'}")
    return row[name]


def _assistant(text: str, mode_from_text: bool = True) -> Message:
    reasoning, answer = split_reasoning(text) if mode_from_text else ("", text.strip())
    message: Message = {"role": "assistant", "content": answer}
    if reasoning:
        message["reasoning_content"] = reasoning
    return message


def _finish(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> Conversation:
    """Check the order of roles and derive the mode from the last answer."""
    if not any(m["role"] == "assistant" for m in messages):
        raise Rejected("no_assistant_turn")
    previous = "start"
    allowed = {
        "system": {"start"},
        "user": {"start", "system", "assistant"},
        "assistant": {"user", "tool"},
        "tool": {"call", "tool"},
    }
    for index, message in enumerate(messages):
        role = message["role"]
        if not isinstance(role, str) or role not in allowed:
            raise Rejected("unknown_role", f"message {index} has role {role!r}")
        if previous not in allowed[role]:
            raise Rejected("roles_out_of_order", f"message {index}: {role} after {previous}")
        previous = "call" if message.get("tool_calls") else role
    if messages[-1]["role"] != "assistant":
        raise Rejected("does_not_end_on_assistant", f"the last message is from {messages[-1]['role']}")
    last = messages[-1]
    if not last["content"].strip() and not last.get("tool_calls"):
        raise Rejected("empty_answer")
    return Conversation(messages, "thinking" if last.get("reasoning_content") else "non_thinking", tools=tools or [])


# --- converters ---------------------------------------------------------------------------------------------------------


def from_alpaca(row: dict[str, Any]) -> Conversation:
    """Alpaca: ``instruction``, ``output``, optional ``input``, ``system`` and ``history`` (pairs)."""
    instruction = _text(_field(row, "instruction"), "instruction")
    extra = _text(row.get("input") or "", "input")
    messages: list[Message] = []
    if row.get("system"):
        messages.append({"role": "system", "content": _text(row["system"], "system")})
    history = row.get("history") or []
    if not isinstance(history, list | tuple):
        raise Rejected("bad_history", f"history is {type(history).__name__}, not a list of pairs")
    for index, pair in enumerate(history):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Rejected("bad_history", f"history[{index}] is not a pair of question and answer")
        messages.append({"role": "user", "content": _text(pair[0], f"history[{index}][0]")})
        messages.append(_assistant(_text(pair[1], f"history[{index}][1]")))
    question = f"{instruction}\n{extra}" if extra.strip() else instruction
    if not question.strip():
        raise Rejected("empty_prompt")
    messages += [{"role": "user", "content": question}, _assistant(_text(_field(row, "output"), "output"))]
    return _finish(messages)


_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "call",
    "observation": "tool",
    "tool": "tool",
}


def _tool_call(text: str, where: str) -> dict[str, Any]:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:  # bad JSON, a number of thousands of digits, thousands of brackets
        raise Rejected("bad_tool_call", f"{where}: {error}") from error
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise Rejected("bad_tool_call", f"{where}: no 'name'")
    return {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """OpenAI's ``tool_calls``, or bare ``{"name", "arguments"}``. The template needs arguments: none becomes ``{}``."""
    if not isinstance(calls, list):
        raise Rejected("bad_tool_call", f"{where}: tool_calls is {type(calls).__name__}, not a list")
    result = []
    for call in calls:
        function = (call.get("function") or call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Rejected("bad_tool_call", f"{where}: no 'name'")
        arguments = function.get("arguments")
        wrapped = {"type": "function"} if function is call else call
        result.append({**wrapped, "function": {**function, "arguments": {} if arguments is None else arguments}})
    return result


def _tools(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError) as error:
            raise Rejected("bad_tools", str(error)) from error
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Rejected("bad_tools", "'tools' is not a list of objects")
    # Qwen3's template prints each tool as it stands; the models saw OpenAI's wrapping.
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]


def from_sharegpt(row: dict[str, Any]) -> Conversation:
    """ShareGPT, FineTome's layout: ``conversations`` of ``{"from", "value"}``; tool calls as LLaMA-Factory keeps them."""
    turns = _field(row, "conversations")
    if not isinstance(turns, list) or not turns:
        raise Rejected("empty_conversation")
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise Rejected("not_a_turn", f"{where} is {type(turn).__name__}")
        role = _SHAREGPT_ROLES.get(str(turn.get("from")))
        if role is None:
            raise Rejected("unknown_role", f"{where} is from {turn.get('from')!r}")
        value = _text(turn.get("value"), f"{where}.value")
        if role == "assistant":
            messages.append(_assistant(value))
        elif role == "call":
            messages.append({"role": "assistant", "content": "", "tool_calls": [_tool_call(value, where)]})
        else:
            messages.append({"role": role, "content": value})
    return _finish(messages, _tools(row.get("tools") or []))


def from_openmathreasoning(row: dict[str, Any]) -> Conversation:
    """OpenMathReasoning: ``problem`` and ``generated_solution`` with its reasoning in ``<think>…</think>``."""
    problem = _text(_field(row, "problem"), "problem").strip()
    if not problem:
        raise Rejected("empty_prompt")
    answer = _assistant(_text(_field(row, "generated_solution"), "generated_solution"))
    if not answer.get("reasoning_content"):
        raise Rejected("empty_reasoning", "generated_solution has no reasoning in <think>…</think>")
    return _finish([{"role": "user", "content": problem}, answer])


def from_messages(row: dict[str, Any]) -> Conversation:
    """OpenAI ``messages``, with optional ``reasoning_content`` and ``tool_calls``, and a ``tools`` column."""
    turns = _field(row, "messages")
    if not isinstance(turns, list) or not turns:
        raise Rejected("empty_conversation")
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or "role" not in turn:
            raise Rejected("not_a_turn", f"messages[{index}]")
        content = _text(turn.get("content") or "", f"messages[{index}].content")
        if turn["role"] != "assistant":
            messages.append({"role": turn["role"], "content": content})
            continue
        given = _text(turn.get("reasoning_content") or "", f"messages[{index}].reasoning_content").strip()
        message = _assistant(content, mode_from_text=not given)
        if given:
            message["reasoning_content"] = given
        if turn.get("tool_calls"):
            message["tool_calls"] = _tool_calls(turn["tool_calls"], f"messages[{index}]")
        messages.append(message)
    return _finish(messages, _tools(row.get("tools") or []))


CONVERTERS: dict[str, Callable[[dict[str, Any]], Conversation]] = {
    "alpaca": from_alpaca,
    "sharegpt": from_sharegpt,
    "openmathreasoning": from_openmathreasoning,
    "messages": from_messages,
}


def converter(name: str) -> Callable[[dict[str, Any]], Conversation]:
    """The converter of that name.

    Raises:
        UserError: there is none (with the nearest known name).
    """
    if name not in CONVERTERS:
        raise UserError(f"Unknown converter {name!r}.{nearest(name, CONVERTERS)} Known: {', '.join(CONVERTERS)}.")
    return CONVERTERS[name]
