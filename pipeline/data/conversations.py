"""Rows of public datasets become conversations.

In: one row (a dict) in a usual format, named or detected (``pipeline.data.formats``). Out: a ``Conversation``: OpenAI-style
messages, the mode of its last answer, optional tools, and the name of its source. A row that cannot become one raises
``Rejected`` with a reason that is counted and written out; what a row loses on the way is said in its ``notes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pipeline.core.errors import UserError, nearest
from pipeline.core.modes import Mode
from pipeline.data import formats
from pipeline.data.formats import Rejected, Row, column, is_missing
from pipeline.data.rows.parts import (
    as_text,
    check_text,
    content_of,
    kind_of,
    list_of,
    load_json,
    read_tags,
    split_reasoning,
    strings_in,
    tool_calls_of,
    tools_of,
    trim_answer,
    turns_in_text,
)

Message = dict[str, Any]


@dataclass
class Conversation:
    """Messages ``{"role", "content"[, "reasoning_content"][, "tool_calls"][, "weight"]}`` in the order they were said.

    ``weight`` stands on answers only, and only as 0: that answer is history and carries no loss. The last answer has none.
    ``mode`` is the mode of the last answer: ``thinking`` if it comes with reasoning, else ``non_thinking``.
    ``notes`` say what of the row will not be trained on, each with a snake_case word to count by in front:
    ``reasoning_dropped``, ``reasoning_ignored``, ``weight_zero``, ``same_answers``. ``format`` and ``because`` say
    how the row was read.
    """

    messages: list[Message]
    mode: Mode
    source: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    format: str = field(default="", compare=False)
    because: str = field(default="", compare=False)


@dataclass
class Preference:
    """Two answers to one prompt, for preference tuning. Both are assistant messages, and they differ."""

    prompt: list[Message]
    chosen: Message
    rejected: Message
    tools: list[dict[str, Any]] = field(default_factory=list)
    source: str = ""


# --- turns --------------------------------------------------------------------------------------------------------------

_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def _assistant(text: str, given: str = "") -> Message:
    """An answer whose reasoning is ``given``, or stands in ``<think>…</think>`` in its text.

    With given reasoning, tags in the answer are text, unless the reasoning is there once more.
    """
    if not given:
        reasoning, answer = split_reasoning(text)
        message: Message = {"role": "assistant", "content": answer}
        if reasoning:
            message["reasoning_content"] = reasoning
        return message
    reasoning = given.strip().removeprefix("<think>").removesuffix("</think>").strip()
    if "<think>" in reasoning or "</think>" in reasoning:
        raise Rejected("nested_think", reasoning[:80])
    answer = trim_answer(text)
    if answer.lstrip().startswith("<think>") and "</think>" in answer:
        again, answer = split_reasoning(text)
        if again and again != reasoning:
            raise Rejected("several_think_blocks", f"other reasoning in the text than beside it: {again[:80]!r}")
    message = {"role": "assistant", "content": answer}
    if reasoning:
        message["reasoning_content"] = reasoning
    return message


def _turn(turn: Any, where: str) -> Message:
    """One message; a ``function_call`` turn has the role ``call``, which only ``_turns`` sees."""
    if not isinstance(turn, dict):
        raise Rejected("not_a_turn", f"{where} is {kind_of(turn)}, not a turn")
    who = turn.get("role")
    if who is None:
        who = turn.get("from")
    if who is None and "role" not in turn and "from" not in turn:
        raise Rejected("not_a_turn", f"{where} has no 'role' or 'from'; it has {formats.columns_of(turn)}")
    role = (_ROLES.get(who) or _ROLES.get(who.strip().lower())) if isinstance(who, str) else None
    if role is None:
        seen = repr(who[:40]) if isinstance(who, str) else kind_of(who)
        raise Rejected("unknown_role", f"{where} is from {seen}")
    key = "value" if "value" in turn and turn.get("content") is None else "content"
    value = turn.get(key)
    if role == "call":
        return _call(value, f"{where}.{key}") | _weight(turn, where)
    if role != "assistant":
        return {"role": role, "content": content_of(value, f"{where}.{key}")}
    text = "" if value is None and key == "content" else content_of(value, f"{where}.{key}")
    name = column(turn, _REASONING_KEYS)
    given = "" if name is None or is_missing(turn[name]) else as_text(turn[name], f"{where}.{name}")
    message = _assistant(text, given.strip()) | _weight(turn, where)
    calls = turn.get("tool_calls")
    if is_missing(calls) and not is_missing(turn.get("function_call")):
        calls = [turn["function_call"]]  # OpenAI's older way to write one call
    if not is_missing(calls) and calls != []:
        message["tool_calls"] = tool_calls_of(calls, where)
    return message


def _weight(turn: Mapping[str, Any], where: str) -> Message:
    """OpenAI's ``weight`` of an answer: 1, as if it were not there, or 0 for an answer that carries no loss."""
    weight = turn.get("weight")
    if is_missing(weight) or weight == 1:
        return {}
    if weight != 0:
        raise Rejected("bad_weight", f"{where}.weight is {weight!r}, neither 0 nor 1")
    return {"weight": 0}


def _call(value: Any, where: str) -> Message:
    """LLaMA-Factory's ``function_call`` turn: a call or a list of parallel ones, as JSON text or as data."""
    reasoning = ""
    if isinstance(value, str):
        reasoning, body = split_reasoning(value)
        value = load_json(body, "bad_tool_call", where)
    calls = tool_calls_of(value if isinstance(value, list) else [value], where)
    message: Message = {"role": "call", "content": "", "tool_calls": calls}
    return message | {"reasoning_content": reasoning} if reasoning else message


def _turns(value: Any, name: str) -> list[Message]:
    """A list of turns, in either spelling. System turns without text are left out: there is nothing in them."""
    value = list_of(value, name)
    if not isinstance(value, list) or not value:
        raise Rejected("empty_conversation", f"{name} is {'an empty list' if value == [] else kind_of(value)}")
    messages: list[Message] = []
    before = ""
    for index, turn in enumerate(value):
        message = _turn(turn, f"{name}[{index}]")
        role = message["role"]
        if role == "call":
            message["role"] = "assistant"
            parallel = before == "call" and messages[-1].get("weight") == message.get("weight")
            if parallel and "reasoning_content" not in message:  # parallel calls, a turn each
                messages[-1]["tool_calls"] += message["tool_calls"]
                continue
        before = role
        if role != "system" or message["content"].strip():
            messages.append(message)
    return messages


def _system(row: Row) -> list[Message]:
    """The row's system column, as a message of its own."""
    name = column(row, formats.SYSTEM)
    if name is None or is_missing(row[name]):
        return []
    text = as_text(row[name], name)
    return [{"role": "system", "content": text}] if text.strip() else []


def _up_to_last_weighted(messages: list[Message]) -> tuple[list[Message], list[str]]:
    """The messages without those after the last answer that carries loss, and a note where an answer has weight 0."""
    weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
    if all(weights):
        return messages, []
    if not any(weights):
        raise Rejected("no_weighted_answer", f"all {len(weights)} answers have weight 0")
    if messages[-1].get("weight") == 0:
        last = max(i for i, m in enumerate(messages) if m["role"] == "assistant" and "weight" not in m)
        messages = messages[: last + 1]
    return messages, [f"weight_zero: {weights.count(0)} of {len(weights)} answers"]


def _unread_reasoning(row: Row, conversation: Conversation, hint: str) -> Conversation:
    """Say so where a reasoning column is not read."""
    named = [name for name in formats.REASONING if not is_missing(row.get(name)) and row[name] not in ("", [])]
    if named:
        conversation.notes.append(f"reasoning_ignored: column {named[0]!r}; {hint}")
    return conversation


_BESIDE_TURNS = "it does not say to which answer it belongs; put it into the turn, as reasoning_content"
_MAY_FOLLOW = {
    "system": {"the start"},
    "user": {"the start", "system", "assistant"},
    "assistant": {"user", "tool"},
    "tool": {"call", "tool"},
}


def _finish(messages: list[Message], row: Row) -> Conversation:
    """Put the system column in front, check order and text, and derive the mode from the last answer."""
    if system := _system(row):
        messages = messages if messages[:1] == system else system + messages  # some rows say it in both places
    tools = tools_of(row)
    if tools or any(message["role"] == "tool" for message in messages):
        messages = read_tags(messages, bool(tools))
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise Rejected("no_assistant_turn", f"nobody answers: {', '.join(roles[:8])}")
    messages, notes = _up_to_last_weighted(messages)
    roles = roles[: len(messages)]
    previous = "the start"
    structured: list[str] = []
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "system" and "system" in roles[:index]:
            raise Rejected("several_systems", f"message {index} is another system message")
        if previous not in _MAY_FOLLOW[role]:
            raise Rejected("roles_out_of_order", f"message {index}: {role} after {previous}")
        calls = message.get("tool_calls")
        if calls:
            structured += strings_in(calls, "bad_tool_call", f"message {index}")
        elif not message["content"].strip() and role != "tool":
            thought = " but reasoning" if "reasoning_content" in message else ""
            reason = "empty_answer" if role == "assistant" else "empty_prompt"
            raise Rejected(reason, f"message {index} ({role}) has no text{thought}")
        previous = "call" if calls else role
    if roles[-1] != "assistant":
        raise Rejected("does_not_end_on_assistant", f"the last message is from {roles[-1]}")
    if tools:
        structured += strings_in(tools, "bad_tools", "tools")
    check_text(messages, structured)
    mode: Mode = "thinking" if "reasoning_content" in messages[-1] else "non_thinking"
    if mode == "non_thinking" and (lost := sum("reasoning_content" in message for message in messages)):
        notes.append(f"reasoning_dropped: of {lost} earlier answers, as the last answer has none")
    return Conversation(messages, mode, tools=tools, notes=notes)


# --- formats ------------------------------------------------------------------------------------------------------------


def _column(row: Row, names: Sequence[str]) -> str:
    name = column(row, names)
    if name is None:
        raise Rejected("missing_column", f"no {' or '.join(map(repr, names))}; the row has {formats.columns_of(row)}")
    return name


def _history(row: Row) -> list[Message]:
    pairs = list_of(row.get("history"), "history")
    if is_missing(pairs):
        return []
    if not isinstance(pairs, list | tuple):
        raise Rejected("bad_history", f"history is {kind_of(pairs)}, not a list of pairs")
    messages: list[Message] = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Rejected("bad_history", f"history[{index}] is not a pair of question and answer")
        messages.append({"role": "user", "content": as_text(pair[0], f"history[{index}][0]")})
        messages.append(_assistant(as_text(pair[1], f"history[{index}][1]")))
    return messages


def _question(row: Row, name: str) -> list[Message]:
    """The prompt in that column, text or a list of messages; what it is about (``input``, ``context``) goes below it."""
    prompt = turns_in_text(row[name], name)
    if isinstance(prompt, list):
        return _turns(prompt, name)
    lines = [as_text(row[name], name)]
    for extra in formats.EXTRAS:
        if extra != name and not is_missing(row.get(extra)) and as_text(row[extra], extra).strip():
            lines.append(row[extra])
    question = "\n".join(lines)
    if not question.strip():
        raise Rejected("empty_prompt", f"{name} has no text")
    return [{"role": "user", "content": question}]


def _pair(row: Row, prompts: Sequence[str], answers: Sequence[str]) -> Conversation:
    prompt, answer = _column(row, prompts), _column(row, answers)
    messages = _history(row) + _question(row, prompt)
    said = row[answer]
    if isinstance(
        turns_in_text(row[prompt], prompt), list
    ):  # else an answer that looks like turns is what was asked for
        said = turns_in_text(said, answer)
    if isinstance(said, list):
        messages += _turns(said, answer)
    else:
        messages.append(_assistant(as_text(said, answer)))
    return _unread_reasoning(row, _finish(messages, row), "format: reasoning would read it")


def from_alpaca(row: Row) -> Conversation:
    """Alpaca: ``instruction``, ``output``, optional ``input``, ``system`` and ``history`` (pairs)."""
    return _pair(row, ("instruction",), ("output",))


def from_prompt_completion(row: Row) -> Conversation:
    """A prompt and an answer under any of their usual names, as text or as lists of messages (TRL)."""
    return _pair(row, formats.PROMPTS, formats.ANSWERS)


def from_reasoning(row: Row) -> Conversation:
    """A prompt, an answer, and the reasoning in a column of its own."""
    prompt, reasoning, answer = (_column(row, names) for names in formats.LAYOUTS["reasoning"].required)
    given = "" if is_missing(row[reasoning]) else as_text(row[reasoning], reasoning).strip()
    message = _assistant(as_text(row[answer], answer), given)
    if "reasoning_content" not in message:
        raise Rejected(
            "empty_reasoning", f"{reasoning} has no text; format: prompt_completion would read the row without"
        )
    return _finish([*_history(row), *_question(row, prompt), message], row)


def from_openmathreasoning(row: Row) -> Conversation:
    """OpenMathReasoning: ``problem`` and ``generated_solution`` with its reasoning in ``<think>…</think>``."""
    problem = as_text(row[_column(row, ("problem",))], "problem").strip()
    answer = _assistant(as_text(row[_column(row, ("generated_solution",))], "generated_solution"))
    if problem and "reasoning_content" not in answer:
        raise Rejected("empty_reasoning", "generated_solution has no reasoning in <think>…</think>")
    return _finish([{"role": "user", "content": problem}, answer], {})


def from_sharegpt(row: Row) -> Conversation:
    """ShareGPT, FineTome's layout: turns of ``{"from", "value"}``; tool calls as LLaMA-Factory keeps them."""
    name = _column(row, formats.TURNS)
    return _unread_reasoning(row, _finish(_turns(row[name], name), row), _BESIDE_TURNS)


def from_messages(row: Row) -> Conversation:
    """OpenAI ``messages``, with optional ``reasoning_content`` and ``tool_calls``, and a ``tools`` column."""
    turns = _turns(row[_column(row, ("messages",))], "messages")
    return _unread_reasoning(row, _finish(turns, row), _BESIDE_TURNS)


def _side(row: Row, side: str) -> Conversation:
    """The conversation that ends in the answer of that column: a text, a turn, or a list of messages (TRL)."""
    answer = row[_column(row, (side,))]
    parsed = {name: turns_in_text(row[name], name) for name in ("chosen", "rejected") if not is_missing(row.get(name))}
    if not any(isinstance(value, str) for value in parsed.values()):  # a single one is an answer that looks like turns
        answer = parsed.get(side, answer)
    name = column(row, (*formats.TURNS, "prompt", "messages", *formats.PROMPTS))
    prompt: list[Message] = []
    if name in (*formats.TURNS, "messages"):
        prompt = _turns(row[name], name)
    elif name is not None:
        prompt = _question(row, name)
    if not isinstance(answer, list):
        if not prompt:
            _column(row, (*formats.TURNS, "messages", "prompt"))
        turn = _turn(answer, side) if isinstance(answer, dict) else _assistant(as_text(answer, side))
        return _finish([*prompt, turn | {"role": "assistant"} if turn["role"] == "call" else turn], row)
    messages = _turns(answer, side)
    if messages and messages[0]["role"] in ("assistant", "tool"):
        return _finish(prompt + messages, row)
    # The whole conversation, prompt included. A prompt that stands beside it must be one that is answered here.
    asked, said = ({m["content"].strip() for m in part if m["role"] == "user"} for part in (prompt, messages))
    if not asked <= said:
        raise Rejected("prompts_differ", f"{side} does not answer what stands in {name!r}")
    return _finish(messages, row)


def from_preference(row: Row) -> Conversation:
    """The chosen answer of a preference row as a conversation; see ``preference_pair``."""
    conversation = _unread_reasoning(row, _side(row, "chosen"), "answers of two sides; it does not say of which")
    if row["chosen"] == row.get("rejected"):
        conversation.notes.append(
            "same_answers: the rejected answer is the chosen one; of no use for preference tuning"
        )
    return conversation


def preference_pair(row: Row) -> Preference:
    """A prompt (``conversations``, ``messages``, ``prompt``…) with a ``chosen`` and a ``rejected`` answer.

    Each answer is a text, a turn, or a list of messages, with or without the prompt (TRL's conversational formats).

    Raises:
        Rejected: either side is no whole conversation (the detail says which), ``prompts_differ``, ``same_answers``.
    """
    made = []
    for side in ("chosen", "rejected"):
        try:
            made.append(_side(row, side))
        except Rejected as error:
            raise Rejected(error.reason, f"{side}: {error.detail}") from error
    (*prompt, chosen), (*other, rejected) = made[0].messages, made[1].messages
    if prompt != other:
        raise Rejected("prompts_differ", "chosen and rejected do not answer the same messages")
    if chosen == rejected:
        raise Rejected("same_answers", f"chosen and rejected are the same: {chosen['content'][:80]!r}")
    return Preference(prompt, chosen, rejected, made[0].tools)


FORMATS: dict[str, Callable[[Row], Conversation]] = {
    "alpaca": from_alpaca,
    "sharegpt": from_sharegpt,
    "messages": from_messages,
    "openmathreasoning": from_openmathreasoning,
    "prompt_completion": from_prompt_completion,
    "reasoning": from_reasoning,
    "preference": from_preference,
}


def converter(name: str, columns: Mapping[str, str] = MappingProxyType({})) -> Callable[[Row], Conversation]:
    """The converter of a format, or with ``auto`` one that detects the format of each row.

    Args:
        columns: the format's name of a column → the rows' name of it. Renaming comes before detection.

    Raises:
        UserError: there is no such format (with the nearest known name), or it reads no such column.
    """
    if name != "auto" and name not in FORMATS:
        known = ["auto", *FORMATS]
        raise UserError(f"Unknown format {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    formats.check_columns(name, columns)

    def convert(row: Row) -> Conversation:
        if columns:
            row = formats.rename(row, columns)
        found, decisive = formats.match(row) if name == "auto" else (name, ())
        conversation = FORMATS[found](row)
        conversation.format = found
        conversation.because = formats.explain(row, found, decisive) if decisive else "the recipe says so"
        return conversation

    return convert
