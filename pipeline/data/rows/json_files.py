"""Rows from JSONL and from JSON files that hold a list of rows. Streamed: no more than one row is in memory."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import orjson

from pipeline.core.errors import UserError
from pipeline.data.rows import files as row_files
from pipeline.data.rows.files import BadRow, DataFile, Place, SourceRow, lines_of, open_file, rejected_row, too_large

# --- JSON ---------------------------------------------------------------------------------------------------------------

_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_QUOTED = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_ANY_BRACKET = re.compile(r"[][{}]")
_LONG_NUMBER = b"0" * 19  # 2**63 has 19 digits


def not_utf8(error: UnicodeDecodeError) -> BadRow:
    return BadRow(
        "not_utf8",
        f"byte 0x{error.object[error.start]:02x} at position {error.start + 1} is not UTF-8. Convert the file: "
        "iconv -f LATIN1 -t UTF-8 (Chinese: -f GB18030)",
    )


def nul(raw: bytes) -> BadRow:
    return BadRow(
        "nul_byte", f"byte {raw.index(0) + 1} is NUL: the file is damaged, or UTF-16 (then: iconv -f UTF-16 -t UTF-8)"
    )


def _brackets(raw: bytes) -> bool:
    """Whether there are brackets enough for too many levels."""
    return raw.count(b"[") + raw.count(b"{") > row_files.MAX_DEPTH


def _too_deep() -> BadRow:
    return BadRow("broken_json", f"nested more than {row_files.MAX_DEPTH} levels deep")


def _depth(value: Any) -> int:
    """Levels of lists and objects in ``value``; counts no further than row_files.MAX_DEPTH + 1."""
    level, depth = [value], 0
    while level and depth <= row_files.MAX_DEPTH:
        containers = [v for v in level if isinstance(v, dict | list)]
        depth += bool(containers)
        level = [item for c in containers for item in (c.values() if isinstance(c, dict) else c)]
    return depth


def _text_depth(text: str) -> int:
    """The same of a text that may be broken, and of any depth: the parser says how deep only by the stack of its caller."""
    steps = (1 if bracket in "[{" else -1 for bracket in _ANY_BRACKET.findall(_QUOTED.sub("", text)))
    return max(accumulate(steps), default=0)


def _parse_slowly(raw: bytes) -> Any:
    """The standard library's parser: exact integers of any size, NaN, and messages that say what is wrong."""
    if b"\0" in raw:
        raise nul(raw)
    try:
        text = raw.decode("utf-8-sig")  # files that were put together may carry the mark in the middle
    except UnicodeDecodeError as error:
        raise not_utf8(error) from error
    if _brackets(raw) and _text_depth(text) > row_files.MAX_DEPTH:
        raise _too_deep()
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 15) : error.pos + 15]
        hint = "; a file that is one JSON list should end in .json" if text.lstrip()[:1] == "[" else ""
        raise BadRow("broken_json", f"{error.msg} at character {error.pos + 1}, near {near!r}{hint}") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise BadRow("broken_json", f"{str(error).partition(';')[0]}") from error
    if "\\ud" in text.lower() and _depth(value) <= row_files.MAX_DEPTH:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BadRow(
                "lone_surrogate", f"half of a surrogate pair (\\u{ord(error.object[error.start]):04x}): no character"
            ) from error
    return value


def parse(raw: bytes) -> Any:
    """One JSON value.

    Raises:
        BadRow: broken_json, not_utf8, nul_byte or lone_surrogate.
    """
    if _LONG_NUMBER in raw.translate(_DIGITS_TO_ZERO):  # orjson would turn an integer above 64 bits into a float
        value = _parse_slowly(raw)
    else:
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            value = _parse_slowly(raw)
    if _brackets(raw) and _depth(value) > row_files.MAX_DEPTH:
        raise _too_deep()
    return value


def _json_row(file: DataFile, line: int, raw: bytes, size: int) -> SourceRow:
    try:
        if size > row_files.MAX_ROW_BYTES:
            raise too_large(size)
        value = parse(raw)
        if not isinstance(value, dict):
            hint = "; a file that is one JSON list should end in .json" if file.kind != ".json" else ""
            raise BadRow(
                "not_an_object", f"not an object but {type(value).__name__}: {raw[:40].decode(errors='replace')}{hint}"
            )
    except BadRow as bad:
        return rejected_row(file, line, bad)
    return SourceRow(file.name, line, value)


def rows_of_jsonl(file: DataFile, place: Place) -> Iterator[SourceRow]:
    with open_file(file) as stream:
        for number, raw, size, _ in lines_of(stream, file):
            if not raw.isspace() and not place.skipped(number):
                yield _json_row(file, number, raw, size)


# What may be passed over in one step: at the top level (between commas), deeper (between brackets, whole strings too),
# and inside a string. Each matches at once or not at all, so the time is linear.
_TOP = re.compile(rb'[^"\[\]{},]*')
_DEEP = re.compile(rb'(?:[^"\[\]{}]+|"[^"\\]*(?:\\.[^"\\]*)*")*', re.DOTALL)
_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_BACKSLASH = ord("\\")


def _split(
    stream: io.BufferedReader, file: DataFile, keep: int, alone: bool = True
) -> Iterator[tuple[bytes, int, int]]:
    """Cut the JSON list (or object) at whose bracket the stream stands into its elements, without parsing them.

    An own cutter, because ijson's memory grows with the square of the nesting, and long integers stop it.

    Args:
        keep: of a longer element only so many bytes are kept. alone: nothing but blanks may follow the list.

    Yields:
        (bytes, length, offset from the list's bracket) of each element.

    Raises:
        UserError: the file ends before the list does, or goes on after it.
    """
    depth, in_string, escaped = 0, False, False
    parts: list[bytes] = []  # of the present element, from earlier blocks
    kept = size = brackets = 0  # bytes in parts; bytes and brackets seen of the element
    count = base = 0  # elements, offset of the block
    while block := stream.read(row_files.BLOCK):
        position = start = 0
        if depth == 0:
            depth = position = start = 1
        elif escaped:
            position, escaped = 1, False
        while position < len(block):
            if in_string:
                position = _STRING.match(block, position).end()  # type: ignore[union-attr]
                escaped = position == len(block) - 1 and block[position] == _BACKSLASH
                in_string = escaped or position == len(block)
                position += 1
                continue
            position = (_TOP if depth == 1 else _DEEP).match(block, position).end()  # type: ignore[union-attr]
            if position == len(block):
                break
            sign = block[position : position + 1]
            in_string = sign == b'"'
            depth += (sign in b"[{") - (sign in b"]}")
            brackets += 1
            if depth == 0 or (depth == 1 and sign == b","):
                parts.append(block[start : min(position, start + keep - kept)])
                size += position - start
                raw = b"".join(parts)
                if depth or raw.strip():  # before the closing bracket there may be nothing
                    count += 1
                    yield raw, size, base + position - size
                if depth == 0:
                    rest = block[position + 1 :]
                    while alone and rest and not rest.strip():
                        rest = stream.read(row_files.BLOCK)
                    if alone and rest:
                        raise UserError(
                            f"{file.path} goes on after the end of its list, after row {count}. Is there a bracket too many "
                            "in that row? A file of one object a line should end in .jsonl."
                        )
                    return
                parts, kept, size, brackets, start = [], 0, 0, 0, position + 1
            position += 1
        parts.append(block[start : start + keep - kept])
        kept += len(parts[-1])
        size += len(block) - start
        base += len(block)
        if keep == row_files.MAX_ROW_BYTES and (size > row_files.MAX_LINE_BYTES or brackets > row_files.MAX_BRACKETS):
            what = f"{size:,} bytes" if size > row_files.MAX_LINE_BYTES else f"{brackets:,} brackets"
            raise UserError(
                f"{file.path}: row {count + 1} has more than {what}. The file is damaged; download it again."
            )
    raise UserError(
        f"{file.path} ends in the middle of row {count + 1}: it was cut short, or a bracket or quote is missing there. "
        "Download it again, or mend that row."
    )


def _skip_blanks(stream: io.BufferedReader, file: DataFile) -> int:
    """Go to the first byte that is not blank; returns how many were."""
    count = 0
    while head := stream.peek(row_files.BLOCK):
        blanks = len(head) - len(head.lstrip())
        stream.read(blanks)
        count += blanks
        if blanks < len(head):
            break
        if count > row_files.MAX_LINE_BYTES:
            raise UserError(f"{file.path} begins with {count:,} blanks. The file is damaged; download it again.")
    return count


_MEMBER = re.compile(
    rb'\s*"((?:[^"\\]|\\.)*)"\s*:\s*(\[\s*(\{)?)?', re.DOTALL
)  # a key, whether a list, whether of objects


def _list_of_rows(file: DataFile, members: list[tuple[bytes, int, int]]) -> int:
    """Offset of the one list of rows among an object's values."""
    found = [(m, offset) for head, _, offset in members if (m := _MEMBER.match(head))]
    lists = [(m, offset) for m, offset in found if m[2]]
    lists = [(m, offset) for m, offset in lists if m[3]] or lists
    if len(lists) == 1 and lists[0][0][1].decode(errors="replace") not in row_files.COLUMNS_WITH_LISTS:
        match, offset = lists[0]
        return offset + match.start(2)
    keys = ", ".join(m[1].decode(errors="replace")[:30] for m, _ in found[:6]) or "none"
    raise UserError(
        f"{file.path} should hold a list of rows, it holds a single object (keys: {keys}). Expected is [{{…}}, {{…}}], or an "
        'object with exactly one such list, like {"data": [{…}, {…}]}. One object a line? Then name it .jsonl.'
    )


def rows_of_json(file: DataFile, place: Place) -> Iterator[SourceRow]:
    with open_file(file) as stream:
        blanks = _skip_blanks(stream, file)
        sign = stream.peek(1)[:1]
        if sign == b"[":
            yield from _elements(_split(stream, file, row_files.MAX_ROW_BYTES), file, place)
            return
        if sign != b"{":
            begins = f"begins with {stream.peek(20)[:20]!r}" if sign else "is blank"
            raise UserError(f"{file.path} is not valid JSON: it {begins}. Expected is a list of rows: [{{…}}, {{…}}].")
        first = stream.readline(row_files.MAX_ROW_BYTES)
        _skip_blanks(stream, file)
        more = stream.peek(1)[:1] == b"{"
    if more and _is_object(first):  # one object a line, though the name says .json: common on the hubs
        yield from rows_of_jsonl(file, place)
        return
    with open_file(file) as stream:
        stream.read(blanks)
        offset = _list_of_rows(file, list(_split(stream, file, keep=4096)))
    with open_file(file) as stream:
        before = blanks + offset
        while before:
            before -= len(stream.read(min(before, row_files.BLOCK)))
        yield from _elements(_split(stream, file, row_files.MAX_ROW_BYTES, alone=False), file, place)


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(parse(raw), dict)
    except BadRow:
        return False


def _elements(pieces: Iterator[tuple[bytes, int, int]], file: DataFile, place: Place) -> Iterator[SourceRow]:
    for number, (raw, size, _) in enumerate(pieces, 1):
        if not place.skipped(number):
            yield _json_row(file, number, raw, size)
