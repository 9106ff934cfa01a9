"""Tools of a row: their schemas, calls of them in any usual spelling, and what they answered.

In: a value of a row, or the messages made from it. Out: calls ``{"type": "function", "function": {"name", "arguments"}}`` and
schemas as OpenAI writes them, or ``Rejected`` with the reason. Nothing is guessed: a key that is not known, an unfinished call or
markup of another maker rejects the row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from pipeline.data.formats import TOOLS, Rejected, Row, column, is_missing
from pipeline.data.rows.blocks import CACHE
from pipeline.data.rows.parts import columns_of_lists, content_of, kind_of, load_json
from pipeline.data.rows.reasoning import literal_spans

# --- schemas ------------------------------------------------------------------------------------------------------------


def tools_of(row: Row) -> list[dict[str, Any]]:
    """The schemas in the row's ``tools`` column (a list, or JSON text), in OpenAI's wrapping, as Qwen3 saw them."""
    name = column(row, TOOLS)
    value = row[name] if name else None
    if is_missing(value) or value == "" or value == []:
        return []
    if isinstance(value, str):
        value = load_json(value, "bad_tools", "tools") if value.strip() else []
    value = columns_of_lists(value, ("name", "function"), "bad_tools", "tools")
    if not isinstance(value, list):
        raise Rejected("bad_tools", f"tools is {type(value).__name__}, not a list of objects")
    result = []
    for index, tool in enumerate(value):
        where = f"tools[{index}]"
        if isinstance(tool, str):
            tool = load_json(tool, "bad_tools", where)
        if isinstance(tool, dict) and isinstance(tool.get("function"), str):
            tool = tool | {"function": load_json(tool["function"], "bad_tools", where)}
        wrapped = isinstance(tool, dict) and isinstance(tool.get("function"), dict)
        schema = tool["function"] if wrapped else tool
        if not isinstance(schema, dict) or not isinstance(schema.get("name"), str) or not schema["name"].strip():
            raise Rejected("bad_tools", f"{where} is no object with a 'name'")
        schema = _with_parameters(schema, where)
        result.append(tool | {"function": schema} if wrapped else {"type": "function", "function": schema})
    return result


def _with_parameters(schema: dict[str, Any], where: str) -> dict[str, Any]:
    """A schema with its ``parameters`` under OpenAI's name; Anthropic's and MCP's files call them otherwise."""
    theirs = next((key for key in ("input_schema", "inputSchema") if not is_missing(schema.get(key))), None)
    if theirs is None:
        return schema
    if not is_missing(schema.get("parameters")):
        raise Rejected("bad_tools", f"{where} has both 'parameters' and {theirs!r}")
    kept = {key: value for key, value in schema.items() if key not in ("type", CACHE)}
    return {("parameters" if key == theirs else key): value for key, value in kept.items()}


def _properties(tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Tool → its properties; None where the schema does not list them."""
    found = {}
    for tool in tools:
        parameters = tool["function"].get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        found[tool["function"]["name"]] = properties if isinstance(properties, dict) else None
    return found


# --- calls --------------------------------------------------------------------------------------------------------------

_ARGUMENTS = ("arguments", "parameters", "args", "input", "kwargs", "params", "tool_input")
_AROUND = {"id", "type", "function", "index", "call_id", "tool_call_id"}
_KINDS = {None, "function", "tool_use", "tool_call", "function_call"}


def tool_calls_of(calls: Any, where: str) -> list[dict[str, Any]]:
    """OpenAI's ``tool_calls``, or bare ``{"name", "arguments"}``; as data or as JSON text.

    Arguments become an object, which is what Qwen3's template is to print: text is parsed, none becomes ``{}``.
    """
    if isinstance(calls, str):
        calls = load_json(calls, "bad_tool_call", where)
    calls = columns_of_lists(calls, ("name", "function"), "bad_tool_call", where)
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list) or not calls:
        raise Rejected("bad_tool_call", f"{where}: {type(calls).__name__} where a list of calls should be")
    return [_call(call, where) for call in calls]


def _call(call: Any, where: str) -> dict[str, Any]:
    if isinstance(call, str):
        call = load_json(call, "bad_tool_call", where)
    if isinstance(call, dict) and isinstance(call.get("function"), str):
        call = call | {"function": load_json(call["function"], "bad_tool_call", where)}
    function = (call.get("function") or call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise Rejected("bad_tool_call", f"{where}: no 'name'")
    if function is not call:
        _require_known(call, _AROUND, where)
    _require_known(function, {"name", *_ARGUMENTS} | (_AROUND if function is call else set()), where)
    if not isinstance(call.get("type"), str | None) or call.get("type") not in _KINDS:
        raise Rejected("bad_tool_call", f"{where}: a call of type {str(call['type'])[:30]!r}")
    arguments = _arguments(function, where)
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    named = next((call[key] for key in ("id", "call_id", "tool_call_id") if isinstance(call.get(key), str)), None)
    return made if named is None else {"id": named, **made}


def _require_known(call: dict[str, Any], known: set[str], where: str) -> None:
    for key, value in call.items():
        if key not in known and not is_missing(value):
            known_names = ", ".join(_ARGUMENTS[:5])
            raise Rejected("bad_tool_call", f"{where}: a call with the key {key!r}; arguments stand in {known_names}")


def _arguments(function: dict[str, Any], where: str) -> dict[str, Any]:
    given = [key for key in _ARGUMENTS if not is_missing(function.get(key))]
    values = []
    for key in given:
        value = function[key]
        if isinstance(value, str):
            value = load_json(value, "bad_tool_call", f"{where}, {key}") if value.strip() else {}
            if isinstance(value, str):  # encoded twice
                value = load_json(value, "bad_tool_call", f"{where}, {key}") if value.strip() else {}
        value = {} if is_missing(value) else value
        if not isinstance(value, dict):
            raise Rejected("bad_tool_call", f"{where}: {key} is {type(value).__name__}, not an object")
        values.append(value)
    filled = [value for value in values if value]
    if any(value != filled[0] for value in filled):
        raise Rejected("bad_tool_call", f"{where}: {' and '.join(given)} differ")
    return filled[0] if filled else {}


# --- results ------------------------------------------------------------------------------------------------------------


def result_of(value: Any, where: str) -> str:
    """What a tool answered, as text: objects, lists, numbers and null become JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
        return content_of(value, where)
    if isinstance(value, float) and value != value:
        value = None
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Rejected("bad_tool_result", f"{where} is {kind_of(value)}, which is not JSON") from error


def match_results(messages: list[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """Results in the order of their calls, by id where they have one; says where one is missing or too many.

    The template prints no ids: order is all that ties a result to its call.

    Raises:
        Rejected: ``unmatched_result``, for an id that no call has.
    """
    result: list[dict[str, Any]] = []
    index = 0
    while index < len(messages):
        message = messages[index]
        result.append(message)
        index += 1
        calls = message.get("tool_calls")
        if not calls:
            continue
        stop = index
        while stop < len(messages) and messages[stop]["role"] == "tool":
            stop += 1
        answers = messages[index:stop]
        places = {call["id"]: place for place, call in enumerate(calls) if "id" in call}
        named = [answer.get("tool_call_id") for answer in answers]
        if answers and places and all(isinstance(name, str) for name in named):
            for name in named:
                if name not in places:
                    known = ", ".join(map(repr, places))[:80]
                    raise Rejected(
                        "unmatched_result", f"message {index}: result of {str(name)[:30]!r}; called was {known}"
                    )
            answers = sorted(answers, key=lambda answer: places[answer["tool_call_id"]])
        if stop < len(messages) and len(answers) != len(calls):
            word = "missing_result" if len(answers) < len(calls) else "extra_result"
            notes.append(f"{word}: {len(answers)} results of {len(calls)} calls in message {index - 1}")
        result += [{key: value for key, value in answer.items() if key != "tool_call_id"} for answer in answers]
        index = stop
    return result


# --- calls and results that stand in the text ---------------------------------------------------------------------------

_CALL_TAG = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESPONSE_TAG = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)
# Calls as other makers mark them, and Qwen's own where it is not finished.
_MARKUP = re.compile(
    r"</?tool_calls?>|</?function_?calls?>|<function=|<\|?/?tool_?call|<\|python_tag\|>|\[/?TOOL_CALLS\]|<\|action_start\|>|<｜tool"
    r"|<\|tool|<tool_use>|<(?:antml:)?invoke\b|<\|plugin\|>|<\|recipient\|>|✿FUNCTION✿|<start_function_call>"
    r"|^Action:[^\n]*\n+[ \t]*Action Input:",
    re.IGNORECASE | re.MULTILINE,
)


def call_markup(text: str) -> str:
    """The first mark of a tool call in a text that is neither in code nor quoted; "" if there is none."""
    found = list(_MARKUP.finditer(text))
    if not found:
        return ""
    spans = literal_spans(text)
    return next((m[0] for m in found if not any(start <= m.start() < end for start, end in spans)), "")


_JSON_FENCE = re.compile(r"```(?:json|tool_call|tool_code)?\s*\n(.*)\n\s*```", re.DOTALL)


def _bare_calls(text: str, names: set[str], where: str) -> list[dict[str, Any]]:
    """The calls in a text that is nothing but JSON of calls of tools that the row declares; else none.

    Raises:
        Rejected: ``bad_tool_call``, for calls of other tools, or in a code fence: it may be an answer, or a call.
    """
    fenced = _JSON_FENCE.fullmatch(text.strip())
    body = fenced[1].strip() if fenced else text.strip()
    if not names or body[:1] not in ("{", "[") or '"name"' not in body:
        return []
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return []
    calls = value if isinstance(value, list) else [value]
    plain = {"name", *_ARGUMENTS, "id", "type"}
    if not calls or not all(isinstance(c, dict) and set(c) <= plain and set(c) & set(_ARGUMENTS) for c in calls):
        return []
    if fenced or not all(call.get("name") in names for call in calls):
        raise Rejected("bad_tool_call", f"{where} looks like a call and is none that is read: {text[:80]!r}")
    return calls


def read_tags(
    messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], notes: list[str]
) -> list[dict[str, Any]]:
    """Calls and responses that stand in the text in tags, as Hermes writes them, become data.

    As text their tags would be spelt out in letters, and a model would learn to write those. Only where the row has
    tools (in a column, or in ``<tools>`` of the system message), or a tool answers: elsewhere somebody may just be writing about
    tags. There a call that is not finished, or marked as another maker marks it, rejects the row.
    """
    properties = _properties(tools)
    with_tools = bool(tools) or any(m["role"] == "system" and "<tools>" in m["content"] for m in messages)
    result: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        text, role = message["content"], message["role"]
        where = f"message {index}"
        answered = index + 1 < len(messages) and messages[index + 1]["role"] == "tool"
        if role == "assistant" and (with_tools or answered):
            if "tool_calls" not in message:
                message = _with_calls(message, set(properties), where)
            for part in ("content", "reasoning_content"):
                mark = call_markup(message.get(part, ""))
                if mark and part == "content":
                    raise Rejected(
                        "bad_tool_call", f"{where}: {mark!r} in the text is no whole call that is read: {text[:80]!r}"
                    )
                if mark:
                    notes.append(f"call_in_reasoning: {mark!r} in {where}")
            message = _checked_calls(message, properties, notes, where)
        tagged = role == "tool" and text.startswith("<tool_response>") and text.rstrip().endswith("</tool_response>")
        if tagged and not _RESPONSE_TAG.sub("", text).strip():
            responses = _RESPONSE_TAG.findall(text)
            result += (
                [message | {"content": part} for part in responses]
                if len(responses) == 1
                else [{"role": "tool", "content": part} for part in responses]
            )
        else:
            result.append(message)
    return result


def _with_calls(message: dict[str, Any], names: set[str], where: str) -> dict[str, Any]:
    text = message["content"]
    if text.endswith("</tool_call>"):
        said = text.partition("<tool_call>")[0].rstrip()
        if _CALL_TAG.sub("", text).rstrip() != said:
            raise Rejected("bad_tool_call", f"{where}: text between or after its <tool_call> tags")
        loaded = [load_json(call, "bad_tool_call", where) for call in _CALL_TAG.findall(text)]
        return message | {"content": said, "tool_calls": tool_calls_of(loaded, where)}
    if calls := _bare_calls(text, names, where):
        return message | {"content": "", "tool_calls": tool_calls_of(calls, where)}
    return message


def _checked_calls(message: dict[str, Any], properties: dict[str, Any], notes: list[str], where: str) -> dict[str, Any]:
    """Notes calls of tools that were not declared. Takes out what Arrow adds where rows share a schema: nulls for the
    arguments of other tools."""
    calls = message.get("tool_calls")
    if not calls or not properties:
        return message
    made = []
    for call in calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if name not in properties:
            notes.append(f"undeclared_tool: {name[:40]!r} in {where}")
        known = properties.get(name)
        if known is not None and any(value is None and key not in known for key, value in arguments.items()):
            arguments = {key: value for key, value in arguments.items() if value is not None or key in known}
            notes.append(f"null_arguments: of other tools, taken out of {where}")
            call = call | {"function": {"name": name, "arguments": arguments}}
        made.append(call)
    return message | {"tool_calls": made}
