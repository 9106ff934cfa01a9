"""The turns of a conversation: roles in their usual spellings, and the answer with its reasoning and calls.

In: a list of turns as a row holds it. Out: messages. What is lost or converted on the way is written into the ``Reading``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pipeline.data import formats
from pipeline.data.formats import Rejected, is_missing
from pipeline.data.rows import reasoning as think
from pipeline.data.rows.blocks import unblocked
from pipeline.data.rows.parts import as_text, columns_of_lists, content_of, kind_of, list_of, load_json
from pipeline.data.rows.tools import result_of, tool_calls_of

Message = dict[str, Any]

# Role as it is written → ours. ``call`` and ``reasoning`` are turns of their own in some files; none is left in a message.
ROLES = {
    **dict.fromkeys(("user", "human", "customer", "client", "prompter", "usr", "用户"), "user"),
    **dict.fromkeys(
        (
            "assistant",
            "gpt",
            "chatgpt",
            "bing",
            "bard",
            "model",
            "bot",
            "chatbot",
            "ai",
            "agent",
            "claude",
            "gemini",
            "llm",
        ),
        "assistant",
    ),
    **dict.fromkeys(("ai_assistant", "ai assistant", "assistant_response", "助手"), "assistant"),
    **dict.fromkeys(("system", "developer", "sys"), "system"),
    **dict.fromkeys(
        ("tool", "observation", "function", "function_response", "tool_response", "tool_result", "function_result"),
        "tool",
    ),
    **dict.fromkeys(("ipython", "environment", "tool_output", "function_output"), "tool"),
    **dict.fromkeys(("function_call", "tool_call", "function-call", "tool_calls"), "call"),
    **dict.fromkeys(("reasoning", "thinking", "thought", "think"), "reasoning"),
}
ROLE_NAMES = ("user", "assistant", "system", "tool", "call", "reasoning")  # what a recipe may map roles to
_FIELDS = frozenset(formats.REASONING_FIELDS)
_NO_CALLS = ("", "[]", "null")
_TURN_KEYS = ("role", "from", "content", "value", "weight", "tool_calls", "function_call", "tool_call_id")


@dataclass
class Reading:
    """What is known while one row is read.

    ``roles``: the recipe's own names of roles, in lower case. ``notes`` and ``why`` are filled on the way: what is lost or
    converted, and where reasoning (or its absence) was found.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    flags: list[tuple[str, bool]] = field(default_factory=list)  # column or field, whether the row has reasoning

    def because(self, why: str) -> None:
        """Remember where reasoning was found; each place once."""
        if why not in self.why:
            self.why.append(why)


# --- answers ------------------------------------------------------------------------------------------------------------


def _same(one: str, other: str) -> bool:
    return one.split() == other.split()


def assistant(text: str, reading: Reading, given: str = "", source: str = "") -> Message:
    """An answer whose reasoning is ``given``, or stands in ``<think>…</think>`` in its text.

    With given reasoning, tags in the answer are text, unless it begins with a block: then the reasoning is there once more.

    Args:
        source: the column or field that the given reasoning comes from.
    """
    given = think.without_tags(given) if given else ""
    if not given:
        found = think.split(text)
        message: Message = {"role": "assistant", "content": found.answer}
        if found.note:
            reading.notes.append(found.note)
        if found.reasoning:
            message["reasoning_content"] = found.reasoning
        if found.how:
            reading.because(f"{found.how} in the text" if found.reasoning else "an empty think block")
        return message
    reading.because(source)
    answer = think.trim_answer(text)
    if again := think.leading_tag(answer):
        if again.closes:
            answer = think.trim_answer(answer.lstrip()[again.end - again.start :])
            reading.notes.append("opening_tag_missing: a closing tag before the answer, its reasoning beside it")
        else:
            found = think.split(text)
            if found.reasoning and not _same(found.reasoning, given):
                raise Rejected(
                    "several_think_blocks", f"other reasoning in the text than beside it: {found.reasoning[:80]!r}"
                )
            answer = found.answer
    elif think.naked_tag(answer):
        tags = think.naked_tags(answer)[0]
        if len(tags) == 1 and tags[0].closes and _same(answer[: tags[0].start], given):
            answer = think.split(answer).answer
    return {"role": "assistant", "content": answer, "reasoning_content": given}


def _parts(value: Any, where: str) -> tuple[Any, str]:
    """(the content without its parts of reasoning, that reasoning): Anthropic's and Mistral's ``thinking`` parts."""
    if not isinstance(value, list) or not any(_is_thought(part) for part in value):
        return value, ""
    thoughts = [_thought(part, where) for part in value if _is_thought(part)]
    return [part for part in value if not _is_thought(part)], "\n\n".join(filter(None, thoughts))


def _is_thought(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in (
        "thinking",
        "reasoning",
        "reasoning.text",
        "reasoning.summary",
    )


def _thought(part: dict[str, Any], where: str) -> str:
    value = next(
        (part[key] for key in ("thinking", "text", "summary", "content") if not is_missing(part.get(key))), None
    )
    if value is None:
        raise Rejected("not_text", f"{where} holds a part of reasoning without text; it has {formats.columns_of(part)}")
    return content_of(value, where)


def reasoning_text(value: Any, where: str) -> str:
    """Reasoning beside an answer: text, a list with one text, or a list of parts (``reasoning_details``).

    Raises:
        Rejected: ``not_text``; a list of several texts may be steps or attempts, so it is not guessed.
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], str):
            return value[0].strip()
        if value and all(isinstance(part, dict) for part in value):
            return "\n\n".join(_thought(part, where) for part in value).strip()
        if value:
            raise Rejected("not_text", f"{where} is a list of {len(value)}; one text of reasoning is expected")
        return ""
    return as_text(value, where).strip()


def _beside(turn: Mapping[str, Any], reading: Reading, where: str) -> tuple[str, str]:
    """(reasoning of a turn in a field of its own, the field's name). A field that holds a flag is remembered as one."""
    name = formats.reasoning_column(turn, formats.REASONING_FIELDS)
    if name is None and _FIELDS.isdisjoint(turn):
        return "", ""
    for key in formats.REASONING_FIELDS:
        if (flag := formats.flag_of(turn.get(key))) is not None:
            reading.flags.append((f"{where}.{key}", flag))
    if name is None or is_missing(turn[name]):
        return "", ""
    return reasoning_text(turn[name], f"{where}.{name}"), f"field {name!r}"


# --- one turn -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _respelt(names: tuple[str, ...]) -> Mapping[str, str]:
    return formats.respelt(names, (*_TURN_KEYS, *formats.REASONING_FIELDS))


def turn(value: Any, where: str, reading: Reading) -> Message:
    """One message. Those of calls and of reasoning have the role ``call`` and ``reasoning``, which only ``turns`` sees."""
    if not isinstance(value, dict):
        raise Rejected("not_a_turn", f"{where} is {kind_of(value)}, not a turn")
    if renamed := _respelt(tuple(map(str, value))):
        value = {renamed.get(key, key): inner for key, inner in value.items()}
    who = value.get("role")
    if who is None:
        who = value.get("from")
    if who is None and "role" not in value and "from" not in value:
        raise Rejected("not_a_turn", f"{where} has no 'role' or 'from'; it has {formats.columns_of(value)}", limit=1000)
    role = _role(who, reading)
    if role is None:
        seen = repr(who[:40]) if isinstance(who, str) else kind_of(who)
        hint = (
            f"; if it is a usual one, map it in the recipe: roles: {{{who[:40]}: assistant}}"
            if isinstance(who, str)
            else ""
        )
        raise Rejected("unknown_role", f"{where} is from {seen}{hint}")
    key = "value" if "value" in value and formats.is_empty(value.get("content")) else "content"
    said = value.get(key)
    if role == "call":
        return _call(said, f"{where}.{key}", reading) | _weight(value, where)
    if role == "tool":
        if key not in value:
            raise Rejected("not_text", f"{where} has no 'content'; it has {formats.columns_of(value)}")
        named = value.get("tool_call_id")
        result: Message = {"role": role, "content": result_of(said, f"{where}.{key}")}
        return result | {"tool_call_id": named} if isinstance(named, str) else result
    if role == "reasoning":
        return {"role": role, "content": reasoning_text(said, f"{where}.{key}")}
    calls = value.get("tool_calls")
    if is_missing(calls) and not is_missing(value.get("function_call")):
        calls = [value["function_call"]]  # OpenAI's older way to write one call
    called = not is_missing(calls) and calls != [] and not (isinstance(calls, str) and calls.strip() in _NO_CALLS)
    if role != "assistant":
        if called:
            raise Rejected("bad_tool_call", f"{where}: a call by {role}; only an assistant calls tools")
        return {"role": role, "content": content_of(said, f"{where}.{key}")}
    said, inner = _parts(said, f"{where}.{key}")
    text = "" if said is None and key == "content" else content_of(said, f"{where}.{key}")
    given, source = _beside(value, reading, where)
    if inner and given and not _same(inner, given):
        raise Rejected(
            "several_think_blocks", f"{where}: other reasoning in its parts than beside them: {inner[:80]!r}"
        )
    message = assistant(text, reading, given or inner, source or "a part of the content") | _weight(value, where)
    if called:
        message["tool_calls"] = tool_calls_of(calls, where)
    return message


def _role(who: Any, reading: Reading) -> str | None:
    if not isinstance(who, str):
        return None
    word = who.strip().lower()
    return reading.roles.get(word) or ROLES.get(word)


def _weight(value: Mapping[str, Any], where: str) -> Message:
    """OpenAI's ``weight`` of an answer: 1, as if it were not there, or 0 for an answer that carries no loss."""
    weight = value.get("weight")
    if is_missing(weight) or weight == 1:
        return {}
    if weight != 0:
        raise Rejected("bad_weight", f"{where}.weight is {weight!r}, neither 0 nor 1")
    return {"weight": 0}


def _call(value: Any, where: str, reading: Reading) -> Message:
    """LLaMA-Factory's ``function_call`` turn: a call or a list of parallel ones, as JSON text or as data."""
    reasoning = ""
    if isinstance(value, str):
        message = assistant(value, reading)
        reasoning, body = message.get("reasoning_content", ""), message["content"]
        value = load_json(body, "bad_tool_call", where)
    calls = tool_calls_of(value if isinstance(value, list) else [value], where)
    made: Message = {"role": "call", "content": "", "tool_calls": calls}
    return made | {"reasoning_content": reasoning} if reasoning else made


# --- all of them --------------------------------------------------------------------------------------------------------


def turns(value: Any, name: str, reading: Reading) -> list[Message]:
    """A list of turns, in either spelling. System turns without text are left out: there is nothing in them."""
    value = columns_of_lists(list_of(value, name), ("role", "from", "content", "value"), "ragged_turns", name)
    if not isinstance(value, list) or not value:
        raise Rejected("empty_conversation", f"{name} is {'an empty list' if value == [] else kind_of(value)}")
    messages: list[Message] = []
    before, thought = "", ""
    for where, entry in unblocked(value, name):
        message = turn(entry, where, reading)
        role = message["role"]
        if role == "reasoning":
            thought = "\n\n".join(filter(None, (thought, message["content"])))
            continue
        if thought:
            _put_in(thought, message, where, reading)
            thought = ""
        if role == "call":
            message["role"] = "assistant"
            parallel = before == "call" and messages[-1].get("weight") == message.get("weight")
            if parallel and "reasoning_content" not in message:  # parallel calls, a turn each
                messages[-1]["tool_calls"] += message["tool_calls"]
                continue
        before = role
        if role != "system" or message["content"].strip():
            messages.append(message)
    if thought:
        raise Rejected("empty_answer", f"{name} ends on reasoning, without an answer")
    return messages


def _put_in(thought: str, message: Message, where: str, reading: Reading) -> None:
    """Reasoning that is a turn of its own goes into the answer that follows it."""
    if message["role"] not in ("assistant", "call"):
        raise Rejected("roles_out_of_order", f"{where}: {message['role']} after a turn of reasoning")
    thought = think.without_tags(thought)
    if not _same(message.setdefault("reasoning_content", thought), thought):
        raise Rejected("several_think_blocks", f"{where}: other reasoning than in the turn before it: {thought[:80]!r}")
    reading.because("a turn of reasoning")
