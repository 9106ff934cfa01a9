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
from pipeline.data.formats import Rejected, Row, column, is_empty, is_missing
from pipeline.data.rows.media import require_good, require_text
from pipeline.data.rows.parts import as_text, check_text, kind_of, list_of, strings_in, turns_in_text
from pipeline.data.rows.tools import match_results, read_tags, tool_calls_of, tools_of
from pipeline.data.rows.turns import ROLE_NAMES, Message, Reading, assistant, reasoning_text, turn, turns

NO_REASONING = "no reasoning in the row"


@dataclass
class Conversation:
    """Messages ``{"role", "content"[, "reasoning_content"][, "tool_calls"][, "weight"]}`` in the order they were said.

    ``weight`` stands on answers only, and only as 0: that answer is history and carries no loss. The last answer has none.
    ``mode`` is the mode of the last answer: ``thinking`` if it comes with reasoning, else ``non_thinking``. With ``each`` every
    answer has the mode that it shows itself; without, all have ``mode``.
    ``notes`` say what of the row will not be trained on, or was read otherwise than it stands there, each with a snake_case
    word to count by in front (docs/data.md lists them). ``format`` and ``because`` say how the row was read, ``why`` where
    its reasoning was found, or that none was, ``unread`` which columns hold something that is not used.
    """

    messages: list[Message]
    mode: Mode
    source: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    format: str = field(default="", compare=False)
    because: str = field(default="", compare=False)
    each: bool = field(default=False, compare=False)
    why: str = field(default="", compare=False)
    unread: tuple[str, ...] = field(default=(), compare=False)


@dataclass
class Preference:
    """Two answers to one prompt, for preference tuning. Both are assistant messages, and they differ."""

    prompt: list[Message]
    chosen: Message
    rejected: Message
    tools: list[dict[str, Any]] = field(default_factory=list)
    source: str = ""


# --- whole conversations ------------------------------------------------------------------------------------------------


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
    named = [n for n in formats.REASONING if n in row and not is_empty(row[n]) and formats.flag_of(row[n]) is None]
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


def _without_last_question(messages: list[Message], notes: list[str]) -> list[Message]:
    """The messages without what the user says last, which nobody answers."""
    stop = len(messages)
    while stop and messages[stop - 1]["role"] == "user":
        stop -= 1
    if stop < len(messages) and any(message["role"] == "assistant" for message in messages[:stop]):
        notes.append(
            f"last_question_dropped: {len(messages) - stop} turns of the user at the end, which nobody answers"
        )
        return messages[:stop]
    return messages


def _finish(messages: list[Message], row: Row, reading: Reading) -> Conversation:
    """Put the system column in front, check order and text, and derive the mode from the last answer."""
    if system := _system(row):
        messages = messages if messages[:1] == system else system + messages  # some rows say it in both places
    tools = tools_of(row)
    if tools or any(message["role"] == "tool" for message in messages):
        messages = match_results(read_tags(messages, tools, reading.notes), reading.notes)
    elif any(message["role"] == "system" and "<tools>" in message["content"] for message in messages):
        messages = read_tags(messages, tools, reading.notes)
    require_text(row, messages)
    messages = _without_last_question(messages, reading.notes)
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
    if broken := sum("\ufffd" in m["content"] or "\ufffd" in m.get("reasoning_content", "") for m in messages):
        notes.append(f"replacement_characters: U+FFFD, the mark of a broken conversion, in {broken} messages")
    mode: Mode = "thinking" if "reasoning_content" in messages[-1] else "non_thinking"
    return Conversation(messages, mode, tools=tools, notes=reading.notes + notes, each=True)


# --- formats ------------------------------------------------------------------------------------------------------------


def _column(row: Row, names: Sequence[str]) -> str:
    name = column(row, names)
    if name is None:
        wanted = " or ".join([*map(repr, names[:8]), *(["…"] if len(names) > 8 else [])])
        raise Rejected(
            "missing_column", f"no {wanted}; the row has {formats.columns_of(row)}", limit=formats.LONG_DETAIL
        )
    return name


def _history(row: Row, reading: Reading) -> list[Message]:
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
        messages.append(assistant(as_text(pair[1], f"history[{index}][1]"), reading))
    return messages


def _question(row: Row, name: str, reading: Reading) -> list[Message]:
    """The prompt in that column, text or a list of messages; what it is about (``input``, ``context``) goes below it."""
    prompt = turns_in_text(row[name], name)
    if isinstance(prompt, list | dict):
        return turns(prompt, name, reading)
    lines = [as_text(row[name], name)]
    for extra in formats.EXTRAS:
        if extra != name and not is_missing(row.get(extra)):
            text = as_text(row[extra], extra)
            if text.strip() and text.strip().lower() not in formats.NO_INPUT:
                lines.append(text)
    question = "\n".join(line for line in lines if line.strip())
    if not question:
        raise Rejected("empty_prompt", f"{name} has no text")
    return [{"role": "user", "content": question}]


def _pair(row: Row, reading: Reading, prompts: Sequence[str], answers: Sequence[str]) -> Conversation:
    prompt, answer = _column(row, prompts), _column(row, answers)
    require_good(row, row[answer])
    messages = _history(row, reading) + _question(row, prompt, reading)
    said = row[answer]
    if isinstance(turns_in_text(row[prompt], prompt), list):  # else an answer like turns is what was asked for
        said = turns_in_text(said, answer)
    if isinstance(said, list):
        messages += turns(said, answer, reading)
    elif isinstance(said, dict):
        messages.append(turn(said, answer, reading))
    else:
        messages.append(assistant(as_text(said, answer), reading))
    return _unread_reasoning(row, _finish(messages, row, reading), "format: reasoning would read it")


def from_alpaca(row: Row, reading: Reading | None = None) -> Conversation:
    """Alpaca: ``instruction``, ``output``, optional ``input``, ``system`` and ``history`` (pairs)."""
    reading = reading or Reading()
    return _pair(row, reading, ("instruction",), ("output",))


def from_prompt_completion(row: Row, reading: Reading | None = None) -> Conversation:
    """A prompt and an answer under any of their usual names, as text or as lists of messages (TRL)."""
    reading = reading or Reading()
    return _pair(row, reading, formats.PROMPTS, formats.ANSWERS)


def from_reasoning(row: Row, reading: Reading | None = None) -> Conversation:
    """A prompt, an answer, and the reasoning in a column of its own."""
    reading = reading or Reading()
    prompt = _column(row, formats.PROMPTS)
    reasoning = formats.reasoning_column(row) or _column(row, formats.REASONING)
    answer = _column(row, formats.answer_columns(reasoning))
    require_good(row, row[answer])
    given = "" if is_missing(row[reasoning]) else reasoning_text(row[reasoning], reasoning)
    message = assistant(as_text(row[answer], answer), reading, given, f"column {reasoning!r}")
    if "reasoning_content" not in message:
        raise Rejected(
            "empty_reasoning", f"{reasoning} has no text; format: prompt_completion would read the row without"
        )
    return _finish([*_history(row, reading), *_question(row, prompt, reading), message], row, reading)


def from_openmathreasoning(row: Row, reading: Reading | None = None) -> Conversation:
    """OpenMathReasoning: ``problem`` and ``generated_solution`` with its reasoning in ``<think>…</think>``."""
    reading = reading or Reading()
    problem = as_text(row[_column(row, ("problem",))], "problem").strip()
    answer = assistant(as_text(row[_column(row, ("generated_solution",))], "generated_solution"), reading)
    if problem and "reasoning_content" not in answer:
        raise Rejected("empty_reasoning", "generated_solution has no reasoning in <think>…</think>")
    return _finish([{"role": "user", "content": problem}, answer], {}, reading)


def from_tool_calls(row: Row, reading: Reading | None = None) -> Conversation:
    """A question, the calls that answer it, and the tools (``query``, ``answers``, ``tools``), as xLAM's files have them."""
    reading = reading or Reading()
    query, answers = (row[_column(row, (name,))] for name in ("query", "answers"))
    _column(row, ("tools",))
    calls = list_of(answers, "answers") if isinstance(answers, str) and answers.lstrip()[:1] == "[" else answers
    if is_empty(calls):
        raise Rejected("empty_answer", "answers holds no call")
    messages: list[Message] = [{"role": "user", "content": as_text(query, "query")}]
    messages.append({"role": "assistant", "content": "", "tool_calls": tool_calls_of(calls, "answers")})
    return _finish(messages, row, reading)


def _conversation(row: Row, name: str, reading: Reading) -> Conversation:
    messages = turns(row[name], name, reading)
    answers = [message for message in messages if message["role"] == "assistant"]
    require_good(row, answers[-1]["content"] if answers else "")
    beside = formats.reasoning_column(row)
    if beside and not is_empty(row[beside]) and len(answers) == 1 and "reasoning_content" not in answers[0]:
        # With one answer there is no doubt to which the column belongs.
        given = reasoning_text(row[beside], beside)
        answers[0].update(assistant(answers[0]["content"], reading, given, f"column {beside!r}"))
        return _finish(messages, row, reading)
    return _unread_reasoning(row, _finish(messages, row, reading), _BESIDE_TURNS)


def from_sharegpt(row: Row, reading: Reading | None = None) -> Conversation:
    """ShareGPT, FineTome's layout: turns of ``{"from", "value"}``; tool calls as LLaMA-Factory keeps them."""
    reading = reading or Reading()
    return _conversation(row, _column(row, formats.TURNS), reading)


def from_messages(row: Row, reading: Reading | None = None) -> Conversation:
    """OpenAI ``messages``, with optional ``reasoning_content`` and ``tool_calls``, and a ``tools`` column."""
    reading = reading or Reading()
    return _conversation(row, _column(row, ("messages",)), reading)


def _side(row: Row, side: str, reading: Reading) -> Conversation:
    """The conversation that ends in the answer of that column: a text, a turn, or a list of messages (TRL)."""
    answer = row[_column(row, (side,))]
    parsed = {name: turns_in_text(row[name], name) for name in ("chosen", "rejected") if not is_missing(row.get(name))}
    if not any(isinstance(value, str) for value in parsed.values()):  # a single one is an answer that looks like turns
        answer = parsed.get(side, answer)
    name = column(row, (*formats.TURNS, "prompt", "messages", *formats.PROMPTS))
    prompt: list[Message] = []
    if name in (*formats.TURNS, "messages"):
        prompt = turns(row[name], name, reading)
    elif name is not None:
        prompt = _question(row, name, reading)
    if not isinstance(answer, list):
        if not prompt:
            _column(row, (*formats.TURNS, "messages", "prompt"))
        said = turn(answer, side, reading) if isinstance(answer, dict) else assistant(as_text(answer, side), reading)
        return _finish([*prompt, said | {"role": "assistant"} if said["role"] == "call" else said], row, reading)
    messages = turns(answer, side, reading)
    if messages and messages[0]["role"] in ("assistant", "tool"):
        return _finish(prompt + messages, row, reading)
    # The whole conversation, prompt included. A prompt that stands beside it must be one that is answered here.
    asked, said_too = ({m["content"].strip() for m in part if m["role"] == "user"} for part in (prompt, messages))
    if not asked <= said_too:
        raise Rejected("prompts_differ", f"{side} does not answer what stands in {name!r}")
    return _finish(messages, row, reading)


def from_preference(row: Row, reading: Reading | None = None) -> Conversation:
    """The chosen answer of a preference row as a conversation; see ``preference_pair``."""
    reading = reading or Reading()
    conversation = _unread_reasoning(
        row, _side(row, "chosen", reading), "answers of two sides; it does not say of which"
    )
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
            made.append(_side(row, side, Reading()))
        except Rejected as error:
            raise Rejected(error.reason, f"{side}: {error.detail}") from error
    (*prompt, chosen), (*other, rejected) = made[0].messages, made[1].messages
    if prompt != other:
        raise Rejected("prompts_differ", "chosen and rejected do not answer the same messages")
    if chosen == rejected:
        raise Rejected("same_answers", f"chosen and rejected are the same: {chosen['content'][:80]!r}")
    return Preference(prompt, chosen, rejected, made[0].tools)


FORMATS: dict[str, Callable[[Row, Reading], Conversation]] = {
    "alpaca": from_alpaca,
    "sharegpt": from_sharegpt,
    "messages": from_messages,
    "openmathreasoning": from_openmathreasoning,
    "prompt_completion": from_prompt_completion,
    "reasoning": from_reasoning,
    "tool_calls": from_tool_calls,
    "preference": from_preference,
}


def _require_flags(row: Row, reading: Reading, conversation: Conversation, repair: bool) -> None:
    """What the row says of its mode, in a column or field of its own, must be so.

    Raises:
        Rejected: ``mode_disagrees``. With ``repair`` the reasoning of a row that says it has none is taken out; what is not
            there cannot be put in.
    """
    answers = [m for m in conversation.messages if m["role"] == "assistant"]
    thought = [m for m in answers if "reasoning_content" in m]
    for name, on in [*formats.flags_of(row), *reading.flags]:
        if on and not thought:
            raise Rejected("mode_disagrees", f"{name} says that the row has reasoning, and there is none in it")
        if not on and thought and not repair:
            raise Rejected("mode_disagrees", f"{name} says that the row has no reasoning, and it has some")
        if not on and thought:
            for message in thought:
                del message["reasoning_content"]
            thought, conversation.mode = [], "non_thinking"
            conversation.notes.append(f"mode_repaired: reasoning taken out, as {name} says that there is none")
        reading.because(f"{name} says so")


def unread_columns(row: Row, name: str) -> tuple[str, ...]:
    """The columns of a row that hold something and that its format does not read: of several with one meaning all but one."""
    used = formats.columns_used(row, name)
    return tuple(str(column) for column, value in row.items() if column not in used and not is_empty(value))


def check_roles(roles: Mapping[str, str]) -> dict[str, str]:
    """A recipe's ``roles``, in lower case.

    Raises:
        UserError: one is mapped to a role that there is not.
    """
    for name, role in roles.items():
        if role not in ROLE_NAMES:
            raise UserError(
                f"roles: {name} cannot be {role!r}.{nearest(role, ROLE_NAMES)} Known roles: {', '.join(ROLE_NAMES)}. "
                "Write it as {role in your file: known role}."
            )
    return {name.strip().lower(): role for name, role in roles.items()}


def converter(
    name: str,
    columns: Mapping[str, str] = MappingProxyType({}),
    roles: Mapping[str, str] = MappingProxyType({}),
    repair: bool = False,
) -> Callable[[Row], Conversation]:
    """The converter of a format, or with ``auto`` one that detects the format of each row.

    Args:
        columns: the format's name of a column → the rows' name of it. Renaming comes before detection.
        roles: the rows' name of a role → user, assistant, system, tool, call or reasoning.
        repair: take reasoning out of a row that says it has none, instead of rejecting the row.

    Raises:
        UserError: there is no such format (with the nearest known name), or it reads no such column, or a role is unknown.
    """
    if name != "auto" and name not in FORMATS:
        known = ["auto", *FORMATS]
        raise UserError(f"Unknown format {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    formats.check_columns(name, columns)
    own_roles = check_roles(roles)

    def convert(row: Row) -> Conversation:
        if columns:
            row = formats.rename(row, columns)
        if respelt := formats.respelt_columns(tuple(map(str, row))):
            row = {respelt.get(key, key): value for key, value in row.items()}
        found, decisive = formats.match(row) if name == "auto" else (name, ())
        reading = Reading(own_roles)
        conversation = FORMATS[found](row, reading)
        if found != "preference":
            _require_flags(row, reading, conversation, repair)
        conversation.unread = unread_columns(row, found)
        conversation.format = found
        conversation.because = formats.explain(row, found, decisive) if decisive else "the recipe says so"
        conversation.why = ", ".join(reading.why) or NO_REASONING
        return conversation

    return convert
