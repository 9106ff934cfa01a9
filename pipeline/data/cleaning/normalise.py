"""Step ``normalise``: Unicode and white space as one expects them, code and mathematics untouched."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from pipeline.data.cleaning import personal_data
from pipeline.data.cleaning.protected import protected_spans
from pipeline.data.cleaning.step import EXAMPLE_LENGTH, Result
from pipeline.data.conversations import Conversation, Message, Rejected

# Overrides of the writing direction can make code read otherwise than it runs ("trojan source"): removed everywhere.
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Zero-width space, word joiner, byte-order mark, soft hyphen, controls. The joiners U+200C and U+200D stay: Persian, Indic
# scripts and emoji need them.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff\xad]")
_LINE_ENDS = re.compile("[\x0b\x0c\x85\u2028\u2029]")
# NFC as a whole would turn CJK compatibility ideographs and the Ångström and Ohm signs into other characters.
_COMBINED = re.compile(
    "[A-Za-z\u00c0-\u024f\u0386\u0388-\u03ff\u0400-\u052f\u1e00-\u1eff][\u0300-\u033f\u0342\u0345-\u036f]+"
)
# UTF-8 read as Windows-1252 or Latin-1: a lead byte's letter (× is none), then a continuation byte's sign.
_MOJIBAKE = re.compile("[\u00c2-\u00d6\u00d8-\u00f4][\u0080-\u00bf\u0152-\u0192\u02c6\u02dc\u2013-\u2122]")
_ABOUT_ENCODING = re.compile(r"(?i)utf-?8|latin-?1|iso-?8859|cp-?125|windows-125|mojibake|encod|unicode|乱码|编码")
_SOMETHING_TO_DO = re.compile(
    f"{_INVISIBLE.pattern}|{_LINE_ENDS.pattern}|[\u00a0\u0300-\u036f]|(?:\n[ \t]*){{3}}\n|\\A\\s*\n|\n\\s*\\Z"
    f"|{_MOJIBAKE.pattern}"
)
# The same of a text that is ASCII, as most are: its classes are small, so that it is several times as fast.
_ASCII_TO_DO = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\n(?:[ \t]*\n){3}|\\A\\s*\n|\n\\s*\\Z")
_SPACES_TO_DO = re.compile(r"[ \t]$|  ", re.MULTILINE)
_PROMPT = re.compile(r"[ \t]*(?:>>>|\.\.\.|[$%>] |In \[\d*\]:)")  # of an interpreter or a shell: code follows
_CODE_LIKE = re.compile(r"[|{}<>=\\;\t#]|\([\"']|[\"']\)|//|--")  # tables, code without a fence
_COLUMN = re.compile(r"\S {3,}\S|[^\s.!?:;,。！？] {2}\S")  # two spaces after a sentence are no column
_RUN = re.compile(r"(?<=\S) {2,}(?=\S)")
_INDENTED = re.compile(r"(?: {4}|\t)[ \t]*\S")


def normalise(text: str, spaces: bool = False) -> str:
    """Unicode and line ends as one expects them, code and mathematics untouched. Doing it twice changes nothing more.

    Everywhere: line ends become LF, overrides of the writing direction go. Outside code and mathematics: invisible and
    control characters go, a no-break space becomes a space, a letter and its combining marks become one character,
    more than two blank lines become two, and text that was decoded wrongly (``cafÃ©``) is repaired by ftfy, unless the text
    speaks of encodings. NFKC is not used: it would turn ½, ², ℝ, ① and the Chinese ，。！ into something else.

    With ``spaces`` also: several spaces between words become one (not in tables, columns, indented lines, behind a prompt or
    in what looks like code), and spaces at line ends go, but for the two that break a line in Markdown.
    """
    before = None
    while text != before:  # again, because what was hidden may now be seen; each round leaves less to do, so it ends
        before = text
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if not text.isascii():
            text = _DIRECTION.sub("", text)
        to_do = _ASCII_TO_DO if text.isascii() else _SOMETHING_TO_DO
        if to_do.search(text) or (spaces and _SPACES_TO_DO.search(text)):
            text = _normalise_once(text, spaces)
    return text


def _normalise_once(text: str, spaces: bool) -> str:
    # Each span of code becomes one private character, so that lines can be looked at as a whole.
    holder = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
    repairs = _MOJIBAKE.search(text) is not None and not _ABOUT_ENCODING.search(text)
    spans = protected_spans(text)
    parts, position = [], 0
    for start, end in [*spans, (len(text), len(text))]:
        piece = _LINE_ENDS.sub("\n", text[position:start])
        parts.append(_repaired(piece) if repairs else piece)
        position = end
    lines = [_line(line) for line in holder.join(parts).split("\n")]
    lines = _blank_lines(_evened(lines) if spaces else lines)
    pieces = "\n".join(lines).split(holder)
    kept = [text[start:end] for start, end in spans] + [""]
    return "".join(piece + code for piece, code in zip(pieces, kept, strict=True))


def _repaired(piece: str) -> str:
    import ftfy

    return ftfy.fix_encoding(piece)


def _with_neighbours(lines: list[str]) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is part of something in columns: it and a line beside it hold wide gaps."""
    gaps = [_COLUMN.search(line) is not None for line in lines]
    for index, line in enumerate(lines):
        beside = (index > 0 and gaps[index - 1]) or (index + 1 < len(lines) and gaps[index + 1])
        yield line, gaps[index] and beside


def _line(line: str) -> str:
    if _INDENTED.match(line):  # indented code
        return line
    line = _INVISIBLE.sub("", line).replace("\u00a0", " ")
    return _COMBINED.sub(lambda match: unicodedata.normalize("NFC", match[0]), line)


def _evened(lines: list[str]) -> list[str]:
    """Lines with one space between words and none at their ends, but for Markdown's hard break."""
    result = []
    for index, (line, in_columns) in enumerate(_with_neighbours(lines)):
        if _INDENTED.match(line) or _PROMPT.match(line):
            result.append(line)
            continue
        text = line.rstrip(" \t")
        goes_on = text and index + 1 < len(lines) and lines[index + 1].strip()
        ending = "  " if goes_on and line.endswith("  ") else ""
        result.append((text if in_columns or _CODE_LIKE.search(text) else _RUN.sub(" ", text)) + ending)
    return result


def _blank_lines(lines: list[str]) -> list[str]:
    """At most two blank lines in a row (as they are between indented ones), none at the start and the end."""
    kept: list[str] = []
    blank = 0
    for line in lines:
        if not line.strip(" \t"):
            blank += 1
            continue
        if kept:
            inside_code = bool(_INDENTED.match(kept[-1]) and _INDENTED.match(line))
            kept += [""] * (blank if inside_code else min(blank, 2))
        kept.append(line)
        blank = 0
    return kept


def _visible(text: str) -> str:
    """Spaces and invisible characters written out, so that an example shows them."""
    return "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Mn") or c == "\u00a0" else c
        for c in text.replace("\n", "\\n").replace("\t", "\\t")
    )


def _difference(before: str, after: str) -> str:
    """An excerpt around the first difference. Personal data is masked, in case a later step would mask it."""
    start = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    low, high = max(0, start - 400), start + 400
    around = personal_data.find(after[low:high]) or personal_data.find(before[low:high])
    if around:
        return "(an excerpt with personal data in it, not shown)"
    low, high = max(0, start - 12), start + 22
    return f"{_visible(before[low:high])} → {_visible(after[low:high])}"[:EXAMPLE_LENGTH]


def step_normalise(conversation: Conversation, row: dict[str, Any], setting: bool | Literal["spaces"]) -> Result:
    messages: list[Message] = []
    example = ""
    for message in conversation.messages:
        changed: Message = {}
        if message["role"] != "tool":  # what a tool said, and what it was asked, stays as it was
            for key in ("content", "reasoning_content"):
                text = message.get(key)
                if text and (clean := normalise(text, setting == "spaces")) != text:
                    changed[key] = clean
                    example = example or _difference(text, clean)
                    if not clean.strip():
                        reason = {"assistant": "empty_answer", "user": "empty_prompt"}.get(
                            message["role"], "empty_system"
                        )
                        reason = "empty_reasoning" if key == "reasoning_content" else reason
                        if not message.get("tool_calls"):
                            raise Rejected(reason, f"only invisible characters: {_visible(text[:20])}")
        messages.append({**message, **changed} if changed else message)
    return (replace(conversation, messages=messages), example) if example else None
