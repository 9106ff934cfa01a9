"""The parts of a row: text, reasoning, tool calls, schemas of tools.

In: a value of a row, or the messages made from it. Out: the checked part, or ``Rejected`` with the reason.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pipeline.data.formats import TOOLS, Rejected, Row, column, is_missing

# --- text ---------------------------------------------------------------------------------------------------------------


_INDENTED_LINE = re.compile(r"\n(?:  |\t)[ \t]*\S")


def trim_answer(text: str) -> str:
    """An answer without the blank lines and spaces around it. The indentation of its first line stays: it may be code.

    Of fewer than four spaces it stays only where a later line is indented too: much prose begins with a space or two.
    """
    text = text.rstrip()
    body = text.lstrip()
    indent = text[: len(text) - len(body)].rpartition("\n")[2]
    is_code = len(indent) >= 4 or "\t" in indent or (len(indent) >= 2 and _INDENTED_LINE.search(body))
    return indent + body if is_code and not indent.strip(" \t") else body


def split_reasoning(text: str) -> tuple[str, str]:
    """Split ``<think>reasoning</think>answer`` into (reasoning, answer); reasoning is ``""`` where no tag is.

    A chain whose opening tag was cut off with the prompt (``reasoning</think>answer``) is accepted, as some datasets
    store it so.

    Raises:
        Rejected: ``unclosed_think`` (a ``<think>`` without ``</think>``), ``nested_think`` (a ``<think>`` within the
            reasoning), ``several_think_blocks``, ``empty_reasoning`` (a lone ``</think>`` with nothing before it).
    """
    if "think>" not in text:
        return "", trim_answer(text)
    opened, closed = text.count("<think>"), text.count("</think>")
    if not opened and not closed:
        return "", trim_answer(text)
    reasoning, _, answer = text.partition("</think>")
    if closed and reasoning.count("<think>") > 1:
        raise Rejected("nested_think", text[:80])
    if opened > closed:
        raise Rejected("unclosed_think", text[:80])
    if closed > 1 or (opened and not text.lstrip().startswith("<think>")):
        raise Rejected("several_think_blocks", text[:80])
    if not opened and not reasoning.strip():
        raise Rejected("empty_reasoning", f"</think> with nothing before it: {text[:80]!r}")
    beside = answer.partition("\n")[0].strip()  # on the tag's line spaces are no indentation
    return reasoning.replace("<think>", "", 1).strip(), answer.strip() if beside else trim_answer(answer)


def as_text(value: Any, where: str) -> str:
    """The value, if it is text. Numbers are not made into text: they may be ids or labels."""
    if not isinstance(value, str):
        raise Rejected("not_text", f"{where} is {kind_of(value)}, not text")
    return value


def kind_of(value: Any) -> str:
    """The type of a value, in a word for a ``detail``."""
    return "NaN" if isinstance(value, float) and value != value else type(value).__name__


def content_of(value: Any, where: str) -> str:
    """Text, or OpenAI's list of ``{"type": "text", "text": …}`` parts, put together as Qwen's templates do."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise Rejected("not_text", f"{where} is {kind_of(value)}, not text")
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(_said(part), str):
            kind = part.get("type") if isinstance(part, dict) else None
            seen = f"a part of type {kind[:20]!r}" if isinstance(kind, str) else f"a list with a {kind_of(part)}"
            raise Rejected("not_text", f"{where} holds {seen} (part {index}), not text")
    return "".join(map(_said, value))


def _said(part: dict[str, Any]) -> Any:
    """What a part of type text says; some tools that export conversations call it ``value``."""
    return part.get("text", part.get("value"))


# C0 control characters but tab, newline and carriage return: none of them is text, most are left from a broken export.
_CONTROL = bytes(c for c in range(32) if c not in b"\t\n\r")
_CONTROL_CHARACTER = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")

# A name in double braces that nobody filled in. Not LaTeX (x^{{2}}, \frac{{a}}{{b}}), not ${{ … }}, not JSX (x={{y}}).
_PLACEHOLDER = re.compile(r"(?<![\\^_{}$=])\{\{[ \t]*([^\W\d_]\w+(?:[ -]\w+){0,3}|[^\W\d_a-zA-Z])[ \t]*\}\}(?!\})")
_LATEX_COMMAND = re.compile(r"\\[A-Za-z]+$")
# The bounds keep the search linear in hostile text.
_CODE_OR_MATHS = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`|\$\$.{0,2000}?\$\$|\\\(.{0,2000}?\\\)|\\\[.{0,2000}?\\\]"
    r"|\$[^$\n]{0,300}[\\^][^$\n]{0,300}\$",
    re.DOTALL,
)
# Signs of a template language somewhere in the text, and of code or markup on the same line.
_TEMPLATE_LANGUAGE = re.compile(r"\{%|\{\{[#/>^&!~-]|\{\{[^{}\n]{0,100}[|.(\[\"'?:][^{}\n]{0,100}\}\}")
_CODE_LINE = re.compile(
    r"</?[A-Za-z][^<>]*>|[;{]\s*$|=\s*[\"'{]|[(\[]\s*[\"']|[A-Za-z_]\(\s*\{\{|^(?: {4}|\t)|\$\{\{|\bf[\"']"
    r"|^\s*[\"'][\w.-]+[\"']\s*:|^\s*(?://|#include|import |from |def |return |const |let |var |echo |run:|uses:)"
)
_ABOUT_TEMPLATES = re.compile(
    r"\b(?:place-?holders?|templat\w*|jinja2?|mustache|handlebars|vue(?:\.?js)?|ansible|helm|interpolat\w+|"
    r"(?:double|curly)[ -](?:curly )?bra(?:ce|cket)s?)\b|占位符|模板|插值",
    re.IGNORECASE,
)


def unfilled_placeholder(text: str) -> str | None:
    """The first ``{{name}}`` in prose that a writer forgot to fill in; None if there is none.

    Code (fenced, inline, or a line that looks like code), mathematics, and texts in a template language do not count.
    """
    if "{{" not in text:
        return None
    prose = _CODE_OR_MATHS.sub(" ", text)
    if _TEMPLATE_LANGUAGE.search(prose):
        return None
    for line in prose.split("\n"):
        found = _PLACEHOLDER.search(line)
        if found and not _CODE_LINE.search(line) and not _LATEX_COMMAND.search(line[: found.start()]):
            return found[0]
    return None


def check_text(messages: list[dict[str, Any]], structured: list[str]) -> None:
    """Raise for text that is not Unicode, has control characters, or was never filled in."""
    texts = [m[key] for m in messages for key in ("content", "reasoning_content") if key in m]
    whole = "\n".join(texts + structured)
    try:
        encoded = whole.encode()
    except UnicodeEncodeError as error:
        raise Rejected("not_unicode", f"half a surrogate pair: {whole[error.start : error.start + 1]!r}") from error
    if len(encoded.translate(None, _CONTROL)) != len(encoded):
        for text in (*texts, *structured):
            if found := _CONTROL_CHARACTER.search(text):
                around = text[max(0, found.start() - 20) : found.start() + 20]
                raise Rejected("control_characters", f"U+{ord(found[0]):04X} in {around!r}")
    if "{{" not in whole or _ABOUT_TEMPLATES.search(whole):
        return
    for index, message in enumerate(messages):
        if message["role"] != "tool":
            for key in ("content", "reasoning_content"):
                if placeholder := unfilled_placeholder(message.get(key, "")):
                    where = f"message {index} ({message['role']})"
                    raise Rejected("unfilled_placeholder", f"{placeholder} in {where}: {message[key][:80]!r}")


# --- tools --------------------------------------------------------------------------------------------------------------

_MAX_DEPTH = 64  # of a schema or of arguments; real ones have fewer than 20, and Python's JSON writer recurses


def load_json(text: str, reason: str, where: str) -> Any:
    """Parse JSON, or raise ``Rejected`` with that reason."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # bad JSON, a number of thousands of digits, thousands of brackets
        raise Rejected(reason, f"{where}: {error}") from error


_PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*'")
_PYTHON_TURNS = re.compile(r"\s*\[?\s*\{\s*'(?:role|content|from|value)'\s*:")


def _not_json(where: str, seen: str) -> Rejected:
    return Rejected("not_json", f"{where} {seen}; write such columns with json.dumps, or the file as JSONL or Parquet")


def list_of(value: Any, where: str) -> Any:
    """The value; a list that stands there as JSON text (tables hold nothing but text) is parsed, blank text is None.

    Raises:
        Rejected: ``not_json``, for other text. Python's own spelling of a list, with single quotes, is not read:
            what NumPy and pandas make of a list cannot be read back for certain.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    if _PYTHON_LIST.match(value):
        raise _not_json(where, "is a list as Python prints it, not JSON")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise _not_json(where, f"is text but no JSON list ({str(error)[:60]})") from error
    if not isinstance(parsed, list):
        raise _not_json(where, f"is text but no JSON list: {value[:30]!r}")
    return parsed


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def turns_in_text(value: Any, where: str) -> Any:
    """A turn or a list of turns that stands there as JSON text, parsed; anything else as it is.

    Raises:
        Rejected: ``not_json``, for turns as Python prints them.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    if _PYTHON_TURNS.match(value):
        raise _not_json(where, "holds turns as Python prints them, not JSON")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    turns = parsed if isinstance(parsed, list) else [parsed]
    return parsed if turns and all(map(_is_turn, turns)) else value


def strings_in(value: Any, reason: str, where: str) -> list[str]:
    """All strings in JSON data. Raises if it is not JSON (NaN, bytes, a date) or is nested without end; never recurses."""
    strings: list[str] = []
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, str):
            strings.append(item)
        elif depth > _MAX_DEPTH:
            raise Rejected(reason, f"{where} is nested more than {_MAX_DEPTH} deep")
        elif isinstance(item, dict) and all(isinstance(key, str) for key in item):
            strings += item
            stack += [(inner, depth + 1) for inner in item.values()]
        elif isinstance(item, list):
            stack += [(inner, depth + 1) for inner in item]
        elif not (item is None or isinstance(item, int) or (isinstance(item, float) and math.isfinite(item))):
            raise Rejected(reason, f"{where} holds {kind_of(item)}, which is not JSON")
        elif isinstance(item, int) and item.bit_length() > 1024:
            raise Rejected(reason, f"{where} holds a number of {item.bit_length()} bits")
    return strings


def tool_calls_of(calls: Any, where: str) -> list[dict[str, Any]]:
    """OpenAI's ``tool_calls``, or bare ``{"name", "arguments"}``.

    Arguments become an object, which is what Qwen3's template is to print: text is parsed, none becomes ``{}``.
    """
    if not isinstance(calls, list) or not calls:
        raise Rejected("bad_tool_call", f"{where}: {type(calls).__name__} where a list of calls should be")
    result = []
    for call in calls:
        function = (call.get("function") or call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
            raise Rejected("bad_tool_call", f"{where}: no 'name'")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = load_json(arguments, "bad_tool_call", f"{where}, arguments") if arguments.strip() else None
        arguments = {} if is_missing(arguments) else arguments
        if not isinstance(arguments, dict):
            raise Rejected("bad_tool_call", f"{where}: arguments is {type(arguments).__name__}, not an object")
        made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        result.append({"id": call["id"], **made} if isinstance(call.get("id"), str) else made)
    return result


def tools_of(row: Row) -> list[dict[str, Any]]:
    """The schemas in the row's ``tools`` column (a list, or JSON text), in OpenAI's wrapping, as Qwen3 saw them."""
    name = column(row, TOOLS)
    value = row[name] if name else None
    if is_missing(value) or value == "" or value == []:
        return []
    if isinstance(value, str):
        value = load_json(value, "bad_tools", "tools") if value.strip() else []
    if not isinstance(value, list):
        raise Rejected("bad_tools", f"tools is {type(value).__name__}, not a list of objects")
    result = []
    for index, tool in enumerate(value):
        wrapped = isinstance(tool, dict) and isinstance(tool.get("function"), dict)
        schema = tool["function"] if wrapped else tool
        if not isinstance(schema, dict) or not isinstance(schema.get("name"), str) or not schema["name"].strip():
            raise Rejected("bad_tools", f"tools[{index}] is no object with a 'name'")
        result.append(tool if wrapped else {"type": "function", "function": tool})
    return result


_CALL_TAG = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESPONSE_TAG = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)


def read_tags(messages: list[dict[str, Any]], with_tools: bool) -> list[dict[str, Any]]:
    """Calls and responses that stand in the text in tags, as Hermes writes them, become data.

    As text their tags would be spelt out in letters, and a model would learn to write those. Only where the row has
    tools, or a tool answers: elsewhere somebody may just be writing about tags.
    """
    result: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        text, role = message["content"], message["role"]
        answered = index + 1 < len(messages) and messages[index + 1]["role"] == "tool"
        called = role == "assistant" and text.endswith("</tool_call>") and "tool_calls" not in message
        if called and (with_tools or answered):
            where = f"message {index}"
            said = text.partition("<tool_call>")[0].rstrip()
            if _CALL_TAG.sub("", text).rstrip() != said:
                raise Rejected("bad_tool_call", f"{where}: text between or after its <tool_call> tags")
            loaded = [load_json(call, "bad_tool_call", where) for call in _CALL_TAG.findall(text)]
            message = message | {"content": said, "tool_calls": tool_calls_of(loaded, where)}
        tagged = role == "tool" and text.startswith("<tool_response>") and text.rstrip().endswith("</tool_response>")
        if tagged and not _RESPONSE_TAG.sub("", text).strip():
            result += [{"role": "tool", "content": part} for part in _RESPONSE_TAG.findall(text)]
        else:
            result.append(message)
    return result
