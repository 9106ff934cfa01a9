"""Answers that are several things: sets, lists, ordered pairs, intervals."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.data.answers.quantities import quantity

_MOST = 12  # members; more are left to math-verify
_MEMBER_OF = re.compile(r"^\$?\s*[A-Za-z]\s*(?:\\in\b|∈|=)\s*(?=\\?[{(\[])")
_SEPARATOR = re.compile(r"[,，、;；]|\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|和|或")
_NAME = re.compile(r"^[A-Za-z](?:_\{?\d\}?)?\s*=\s*")


@dataclass(frozen=True)
class Members:
    """What stands between the brackets, and which those are: ``{}``, ``()``, ``[)`` …, "" for a list without any."""

    brackets: str
    items: tuple[str, ...]


def members(answer: str) -> Members | None:
    """The members of a set, list, pair or interval; ``None`` for anything else, also for a union of intervals."""
    text = answer.strip()
    if len(text) > 1 and text[0] == "$" == text[-1]:
        text = text.strip("$")
    for mark in ("\\left", "\\right", "\\(", "\\)", "\\,", "\\!", "\\;", "\\ ", "~"):
        text = text.replace(mark, "")
    text = _MEMBER_OF.sub("", text.replace("{,}", "").strip(" .。"))
    if text in ("\\emptyset", "\\varnothing", "∅", "\\{\\}", "{}", "空集"):
        return Members("{}", ())
    text = text.replace("\\{", "⦃").replace("\\}", "⦄").replace("\\lbrace", "⦃").replace("\\rbrace", "⦄")
    opening, closing = text[:1], text[-1:]
    if opening == "{" and closing == "}":
        opening, closing, text = "⦃", "⦄", f"⦃{text[1:-1]}⦄"
    brackets = ""
    if opening and opening in "⦃([（" and closing and closing in "⦄)]）" and _closes(text) == len(text) - 1:
        brackets = (opening + closing).replace("⦃", "{").replace("⦄", "}").replace("（", "(").replace("）", ")")
        text = text[1:-1]
    parts = _split(text)
    if parts is None or not 1 <= len(parts) <= _MOST or (not brackets and len(parts) == 1 and "\\pm" not in text):
        return None
    if brackets in ("()", "[]") and len(parts) == 1:  # (B), (5)
        return None
    items: list[str] = []
    for part in parts:
        item = _NAME.sub("", part.strip().strip("$").strip())
        if not item:
            return None
        if item.startswith(("\\pm", "±")):
            value = item.removeprefix("\\pm").removeprefix("±").strip()
            items += [value, f"-{value}"]
        else:
            items.append(item)
    return Members(brackets, tuple(items))


def _closes(text: str) -> int:
    """Where the bracket that a text begins with is closed, of whatever kind (intervals mix them); -1 if nowhere."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "⦃([（{") - (character in "⦄)]）}")
        if depth == 0:
            return place
    return -1


def _split(text: str) -> list[str] | None:
    """The parts between separators that stand in no bracket; a number with thousands is one part."""
    if quantity(text) is not None:
        return [text]
    parts, start, depth = [], 0, 0
    marks = {match.start(): match.end() for match in _SEPARATOR.finditer(text)}
    for place, character in enumerate(text):
        depth += (character in "⦃([（{") - (character in "⦄)]）}")
        if depth < 0:
            return None
        if depth == 0 and place in marks and place >= start:
            if text[start:place].strip():
                parts.append(text[start:place])
            start = marks[place]
    parts.append(text[start:])
    return parts if depth == 0 else None


def same_members(a: Members, b: Members, same: Callable[[str, str], bool | None]) -> bool | None:
    """Whether two collections are the same: in any order for sets and bare lists, in order inside ``()`` and ``[]``.

    A bare list may stand for a set or for a pair; a pair is no set, and [0, 1) is not [0, 1].
    """
    if a.brackets and b.brackets and a.brackets != b.brackets:
        return False
    if len(a.items) != len(b.items):
        return False
    if (a.brackets or b.brackets) in ("", "{}"):
        left = list(b.items)
        for item in a.items:
            verdicts = [same(item, other) for other in left]
            if True not in verdicts:
                return None if None in verdicts else False
            del left[verdicts.index(True)]
        return True
    verdicts = [same(one, other) for one, other in zip(a.items, b.items, strict=True)]
    return False if False in verdicts else None if None in verdicts else True
