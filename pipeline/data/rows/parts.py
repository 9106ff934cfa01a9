"""The parts of a row: text, and lists that stand there as JSON text or as tables keep them.

In: a value of a row, or the messages made from it. Out: the checked part, or ``Rejected`` with the reason.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from pipeline.data.formats import Rejected, is_missing

# --- text ---------------------------------------------------------------------------------------------------------------


def as_text(value: Any, where: str) -> str:
    """The value, if it is text. Numbers are not made into text: they may be ids or labels."""
    if not isinstance(value, str):
        raise Rejected("not_text", f"{where} is {kind_of(value)}, not text")
    return value


def kind_of(value: Any) -> str:
    """The type of a value, in a word for a ``detail``."""
    return "NaN" if isinstance(value, float) and value != value else type(value).__name__


# Parts of a message that are no text, and what each needs.
_MEDIA = ("image", "video", "audio", "file", "document")


def content_of(value: Any, where: str) -> str:
    """Text, or OpenAI's list of ``{"type": "text", "text": …}`` parts, put together as Qwen's templates do.

    Raises:
        Rejected: ``needs_media`` for an image, video, sound or file; ``not_text`` for anything else.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise Rejected("not_text", f"{where} is {kind_of(value)}, not text")
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(_said(part), str):
            kind = part.get("type") if isinstance(part, dict) else None
            seen = f"a part of type {kind[:20]!r}" if isinstance(kind, str) else f"a list with a {kind_of(part)}"
            media = isinstance(kind, str) and any(medium in kind for medium in _MEDIA)
            raise Rejected("needs_media" if media else "not_text", f"{where} holds {seen} (part {index}), not text")
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


def columns_of_lists(value: Any, keys: Iterable[str], reason: str, where: str) -> Any:
    """A list of objects that a table keeps as an object of lists, ``{"role": [...], "content": [...]}``, put together again.

    That is how ``datasets`` writes a list of objects to Parquet. Anything else comes back as it is.

    Raises:
        Rejected: the lists differ in length.
    """
    if not isinstance(value, dict) or not any(isinstance(value.get(key), list) for key in keys):
        return value
    lists = {key: inner for key, inner in value.items() if not is_missing(inner)}
    if not all(isinstance(inner, list) for inner in lists.values()):
        return value
    lengths = {key: len(inner) for key, inner in lists.items()}
    if len(set(lengths.values())) > 1:
        raise Rejected(reason, f"{where} is an object of lists of different lengths: {lengths}")
    return [dict(zip(lists, together, strict=True)) for together in zip(*lists.values(), strict=True)]
