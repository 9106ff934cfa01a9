"""Ugly files, made on demand: what goes wrong with data that comes from elsewhere. Nothing big is committed.

``CASES``: name of a file, its bytes, how many good rows it has, and the reasons of its bad ones in order.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow

GOOD = b'{"instruction": "Say hi", "output": "hi"}'
BOM = b"\xef\xbb\xbf"
BOMB = b"[" * 30_000


def jsonl(*lines: bytes, end: bytes = b"\n") -> bytes:
    return b"".join(line + end for line in lines)


CASES: list[tuple[str, bytes, int, list[str]]] = [
    ("mark.jsonl", BOM + jsonl(GOOD, GOOD), 2, []),
    ("two_marks.jsonl", BOM + jsonl(GOOD) + BOM + jsonl(GOOD), 2, []),
    ("crlf.jsonl", jsonl(GOOD, b"", GOOD, end=b"\r\n"), 2, []),
    ("no_newline_at_end.jsonl", GOOD + b"\n" + GOOD, 2, []),
    ("cut_short.jsonl", GOOD + b"\n" + GOOD[:20], 1, ["broken_json"]),
    ("blank_lines.ndjson", b"\n \n" + jsonl(GOOD, b"\t", GOOD), 2, []),
    ("latin1.jsonl", jsonl(GOOD, '{"a": "café"}'.encode("latin-1"), GOOD), 2, ["not_utf8"]),
    ("chinese.jsonl", jsonl('{"a": "中文"}'.encode("gb18030"), GOOD), 1, ["not_utf8"]),
    ("raw_nul.jsonl", jsonl(GOOD, b'{"a": "x\0y"}', b"\0\0\0", GOOD), 2, ["nul_byte"] * 2),
    ("escaped_nul.jsonl", jsonl(b'{"a": "x\\u0000y"}'), 1, []),
    ("utf16_without_mark.jsonl", '{"a": 1}'.encode("utf-16-le"), 0, ["nul_byte"]),
    ("half_character.jsonl", jsonl(b'{"a": "\\ud83d"}', b'{"a": "\\ud83d\\ude00"}'), 1, ["lone_surrogate"]),
    ("not_objects.jsonl", jsonl(b"[1]", b"1", b'"x"', b"null", GOOD), 1, ["not_an_object"] * 4),
    ("bomb.jsonl", jsonl(BOMB, BOMB + b"]" * len(BOMB), b'{"a":' * 50_000, GOOD), 1, ["broken_json"] * 3),
    ("nested.jsonl", jsonl(b'{"a":' * 101 + b"1" + b"}" * 101, b'{"a":' * 100 + b"1" + b"}" * 100), 1, ["broken_json"]),
    ("million_digits.jsonl", jsonl(b'{"a": ' + b"9" * 1_000_000 + b"}", GOOD), 1, ["broken_json"]),
    ("not_a_number.jsonl", jsonl(b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}'), 3, []),
    ("single_quotes.jsonl", jsonl(b"{'a': 1}", GOOD), 1, ["broken_json"]),
    ("two_in_a_line.jsonl", jsonl(GOOD + GOOD, GOOD), 1, ["broken_json"]),
    ("list.json", b"[" + GOOD + b",\n" + GOOD + b"]", 2, []),
    ("mark.json", BOM + b"  [" + GOOD + b"]\n\n", 1, []),
    ("empty_list_inside.json", b'{"version": 1, "tags": [], "data": [' + GOOD + b"]}", 1, []),
    ("blanks_before.json", b' \n {"data": [' + GOOD + b"]}", 1, []),
    ("bad_row_inside.json", b"[" + GOOD + b', {"a": nope}, 3, ' + GOOD + b"]", 2, ["broken_json", "not_an_object"]),
    ("latin1.json", b"[" + GOOD + b', {"a": "caf\xe9"}]', 1, ["not_utf8"]),
    ("bomb.json", b"[" + BOMB + b"]" * len(BOMB) + b"," + GOOD + b"]", 1, ["broken_json"]),
    ("lines_under_another_name.json", jsonl(GOOD, GOOD, b"{"), 2, ["broken_json"]),
    ("brackets_in_text.json", rb'[{"a": "]}\"[{,\\"}, {"a]": {"b": ["]", "}"]}}]', 2, []),
    ("quoted.csv", b'a,b\r\n"one\ntwo","say ""hi"""\r\n3,4\r\n', 2, []),
    ("mark.csv", BOM + b"a,b\n1,2\n", 1, []),
    ("ragged.csv", b"a,b\n1\n1,2\n1,2,3\n", 1, ["ragged_row"] * 2),
    ("latin1.csv", b"a,b\ncaf\xe9,2\n1,2\n", 1, ["not_utf8"]),
    ("nul.csv", b"a,b\n1\0,2\n1,2\n", 1, ["nul_byte"]),
    ("text_after_quote.csv", b'a,b\n"x"y,2\n1,2\n', 1, ["broken_csv"]),
    ("never_closed.csv", b'a,b\n1,2\n3,"x\n5,6\n7,8\n', 1, ["unclosed_quote"] * 3),
    ("long_field.csv", b'a,b\n1,"' + b"x" * 200_000 + b'"\n', 1, []),
    ("blank_lines.csv", b"\na,b\n\n1,2\n  \r\n3,4\n\n", 2, []),
    ("semicolons.csv", b"a;b\n1;2\n", 1, []),
    ("tabs.tsv", b"a\tb\n1, 2\t3\n", 1, []),
]


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def long_line(path: Path, size: int) -> None:
    """A JSONL file with a line of ``size`` bytes between two good ones; on most disks it takes no room."""
    with path.open("wb") as file:
        file.write(GOOD + b'\n{"a": "')
        file.seek(size - 7, 1)
        file.write(b"\n" + GOOD + b"\n")


def gzip_bomb(path: Path, size: int) -> None:
    """``size`` zeros (a multiple of 4 MiB) in one line, then a good row; compressed to a thousandth."""
    block = 4 * 2**20
    with path.open("wb") as file:
        file.write(gzip.compress(bytes(block)) * (size // block))
        file.write(gzip.compress(b"\n" + GOOD + b"\n"))


def long_element(path: Path, size: int) -> None:
    """A packed JSON list of a row with ``size`` bytes of text (a multiple of 4 MiB) and a good row."""
    block = 4 * 2**20
    with path.open("wb") as file:
        file.write(gzip.compress(b'[{"a": "') + gzip.compress(b"x" * block) * (size // block))
        file.write(gzip.compress(b'"}, ' + GOOD + b"]"))


def big_list(path: Path, rows: int) -> None:
    """A JSON list of ``rows`` rows of a kilobyte, in one line."""
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for number in range(rows):
            file.write(("," if number else "") + json.dumps({"n": number, "text": "x" * 1000}))
        file.write("]")
