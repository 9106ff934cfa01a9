"""Whatever a file holds, reading it gives rows, rejected rows or a UserError: no traceback, no hang, nothing left out."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ugly import CASES, GOOD, big_list, gzip_bomb, jsonl, long_element, long_line, zstd

from pipeline.core.errors import UserError
from pipeline.data.rows import files as row_files
from pipeline.data.sources import SourceRow, content_key, read_rows, require_source
from pipeline.settings import SourceSettings

ROOT = Path(__file__).resolve().parents[2]


def source(path: Path | str, **changes: object) -> SourceSettings:
    return SourceSettings.model_validate(
        {"name": "s", "kind": "chat", "source": "local", "path": str(path), "share": 1} | changes
    )


def read(path: Path, **arguments: Any) -> list[SourceRow]:
    rows = list(read_rows(source(path), **arguments))
    for row in rows:
        if row.data is None:
            assert row.reason and row.error and len(row.error) <= 200
        else:
            assert isinstance(row.data, dict) and not row.reason and not row.error
    return rows


def file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# --- the corpus of ugly files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "data", "good", "reasons"), CASES, ids=[c[0] for c in CASES])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_every_ugly_file_is_accounted_for(
    tmp_path: Path, name: str, data: bytes, good: int, reasons: list[str], packed: str
) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[packed]
    rows = read(file(tmp_path, name + packed, pack(data)))
    assert [r.reason for r in rows if r.data is None] == reasons
    assert sum(r.data is not None for r in rows) == good
    assert {r.file for r in rows} == {name + packed}
    for skip in range(len(rows) + 1):
        rest = list(read_rows(source(tmp_path), skip=skip)) if skip < len(rows) else []
        assert repr(rest) == repr(rows[skip:])


def test_broken_line_far_into_a_file_is_named(tmp_path: Path) -> None:
    lines = [GOOD] * 60_000
    lines[48_212] = GOOD[:-3]
    rows = read(file(tmp_path, "a.jsonl", jsonl(*lines)))
    bad = [r for r in rows if r.data is None]
    assert len(rows) == 60_000 and [(r.line, r.reason) for r in bad] == [(48_213, "broken_json")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": 1,}', "at character 9"),
        (b'{"a": "caf\xe9"}', "byte 0xe9 at position 11 is not UTF-8.*iconv"),
        (b'{"a": "\0"}', "byte 8 is NUL"),
        (b'{"a": "\\udc00"}', r"\\udc00"),
        (b"[", "should end in .json"),
        (b'[{"a": 1}]', "not an object but list.*should end in .json"),
        (b'{"a":' * 2000, "100 levels"),
        (b'{"a": ' + b"1" * 5000 + b"}", "5000 digits"),
    ],
)
def test_a_rejected_line_says_what_is_wrong(tmp_path: Path, line: bytes, words: str) -> None:
    import re

    assert re.search(words, read(file(tmp_path, "a.jsonl", line))[0].error)


@pytest.mark.parametrize("limit", [400, 16_384])  # mypy sets the latter in the process that it runs in
@pytest.mark.parametrize(
    "line", [b'{"a":' * 2000, b'{"a":' * 2000 + b"1" + b"}" * 2000, b'{"a":' * 101 + b'"[[' + b"\n"]
)
def test_too_deep_is_said_whatever_the_stack_may_hold(tmp_path: Path, limit: int, line: bytes) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(limit)
    try:
        (row,) = read(file(tmp_path, "a.jsonl", line))
    finally:
        sys.setrecursionlimit(before)
    assert (row.reason, row.error) == ("broken_json", "nested more than 100 levels deep")


@pytest.mark.parametrize(
    "line", [b'{"a": "' + b"[" * 200 + b'\\"{", "n": 12345678901234567890}', b'{"a": "' + b"[" * 200 + b"}"]
)
def test_brackets_in_a_text_are_no_levels(tmp_path: Path, line: bytes) -> None:
    (row,) = read(file(tmp_path, "a.jsonl", line))
    assert row.error is None or "levels" not in row.error


def test_numbers_stay_what_they_are(tmp_path: Path) -> None:
    text = (
        '{"a": 9223372036854775807, "b": -9223372036854775809, "c": 123456789012345678901234567890, "d": 1.0,'
        ' "e": 0.1, "f": -0.0, "g": 1e5, "h": NaN, "i": "12345678901234567890", "j": 1e400}'
    )
    for name, data in {"a.jsonl": text, "a.json": f"[{text}]"}.items():
        row = read(file(tmp_path, name, data.encode()))[0].data
        assert row is not None and repr(row) == repr(json.loads(text))
        assert isinstance(row["c"], int) and isinstance(row["d"], float) and math.isnan(row["h"])


# --- files that cannot be read at all -----------------------------------------------------------------------------------


def link(path: Path, target: Path | str) -> Path:
    path.symlink_to(target)
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_bytes(GOOD)
    return path


def parquet(path: Path, *parts: bytes | int) -> Path:
    pyarrow.parquet.write_table(
        pyarrow.table({"a": list(range(10_000)), "b": ["x" * 50] * 10_000}), path, row_group_size=1000
    )
    data = path.read_bytes()
    path.write_bytes(data[:3000] + b"\xff" * 3000 + data[6000:] if parts else data[: len(data) // 2])
    return path


NOT_READABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda d: d / "absent.jsonl", "does not exist; put the data there"),
    "below a file": (lambda d: file(d, "a.jsonl", GOOD) / "b.jsonl", "does not exist"),
    "unknown ending": (lambda d: file(d, "x.txt", b"a"), r"unknown ending.*\.jsonl"),
    "packed parquet": (lambda d: file(d, "x.parquet.gz", b"a"), "unknown ending"),
    "NUL in the path": (lambda d: d / "a\0b.jsonl", "a.x00b.jsonl"),
    "path too long": (lambda d: d / ("x" * 5000), "cannot be looked up|cannot be read"),
    "empty file": (lambda d: file(d, "a.jsonl", b""), r"a\.jsonl is empty \(0 bytes\)"),
    "empty file in a folder": (lambda d: file(folder(d / "f", "b.jsonl"), "a.csv", b"").parent, r"a\.csv is empty"),
    "empty folder": (lambda d: folder(d / "f"), "no file that can be read: it is empty"),
    "nothing readable": (lambda d: folder(d / "f", "x.txt", "y.md", ".hidden.jsonl"), "it holds x.txt, y.md"),
    "only blanks": (lambda d: file(d, "a.jsonl", b"\n \n\n"), "holds no rows"),
    "header only": (lambda d: file(d, "a.csv", b"a,b\n"), "holds no rows"),
    "no header": (lambda d: file(d, "a.csv", b"\n\n"), "holds no rows"),
    "empty list": (lambda d: file(d, "a.json", b" [ ] "), "holds no rows"),
    "blank json": (lambda d: file(d, "a.json", b" \n"), "not valid JSON: it is blank"),
    "empty gz": (lambda d: file(d, "a.jsonl.gz", gzip.compress(b"")), "holds no rows"),
    "pipe": (lambda d: pipe(d / "a.jsonl"), "not a regular file"),
    "pipe in a folder": (lambda d: pipe(folder(d / "f", "b.jsonl") / "a.jsonl").parent, "not a regular file"),
    "device": (lambda d: link(d / "a.jsonl", "/dev/zero"), "not a regular file"),
    "link to itself": (lambda d: link(d / "a.jsonl", "a.jsonl"), "leads back to itself"),
    "link to itself in a folder": (
        lambda d: link(folder(d / "f", "b.jsonl") / "a", "a").parent,
        "leads back to itself",
    ),
    "folder in a circle": (lambda d: link(folder(d / "f", "b.jsonl") / "up", d / "f").parent, "leads again to"),
    "broken link": (lambda d: link(d / "a.jsonl", "gone"), "link to gone, which does not exist"),
    "broken link in a folder": (lambda d: link(folder(d / "f", "b.jsonl") / "a", "gone").parent, "link to gone"),
    "UTF-16": (lambda d: file(d, "a.jsonl", '{"a": 1}'.encode("utf-16")), "UTF-16.*iconv -f UTF-16"),
    "UTF-32": (lambda d: file(d, "a.csv", "a,b\n".encode("utf-32")), "UTF-16 or UTF-32"),
    "json text": (lambda d: file(d, "a.json", b"hello"), "not valid JSON: it begins with b'hello'"),
    "json zeros": (lambda d: file(d, "a.json", bytes(1000)), "not valid JSON"),
    "json cut": (lambda d: file(d, "a.json", b"[" + GOOD + b"," + GOOD[:9]), "ends in the middle of row 2"),
    "json quote": (lambda d: file(d, "a.json", b'[{"a": "x}, {"a": 1}]'), "ends in the middle of row 1"),
    "json bomb": (lambda d: file(d, "a.json", b"[" * 100_000), "ends in the middle of row 1"),
    "json object bomb": (lambda d: file(d, "a.json", b'{"a":' * 100_000), "ends in the middle"),
    "json goes on": (lambda d: file(d, "a.json", b"[" + GOOD + b"]}, {}]"), "goes on after the end .* after row 1"),
    "one object": (lambda d: file(d, "a.json", GOOD), r"single object \(keys: instruction, output\). Expected"),
    "empty object": (lambda d: file(d, "a.json", b"{}"), "should hold a list.*keys: none"),
    "one conversation": (lambda d: file(d, "a.json", b'{"conversations": [{"from": "human"}]}'), "keys: conversations"),
    "two lists": (lambda d: file(d, "a.json", b'{"train": [{}], "test": [{}]}'), "keys: train, test"),
    "not parquet": (lambda d: file(d, "a.parquet", b"no"), "not a readable Parquet"),
    "parquet cut": (lambda d: parquet(d / "a.parquet"), "not a readable Parquet"),
    "parquet damaged": (lambda d: parquet(d / "a.parquet", 1), "not a readable Parquet"),
    "csv names twice": (lambda d: file(d, "a.csv", b"a,a\n1,2\n"), "column 'a' twice"),
    "csv header latin-1": (lambda d: file(d, "a.csv", b"caf\xe9,b\n1,2\n"), "a.csv:1: byte 0xe9"),
    "csv header NUL": (lambda d: file(d, "a.csv", b"a\0,b\n1,2\n"), "NUL"),
    "csv header quote": (lambda d: file(d, "a.csv", b'"a,b\n1,2\n'), "header cannot be read"),
    "not gz": (lambda d: file(d, "a.jsonl.gz", GOOD), "cut short or damaged: after line 0"),
    "not zst": (lambda d: file(d, "a.jsonl.zst", GOOD), "cut short or damaged: after line 0"),
}


@pytest.mark.parametrize("case", NOT_READABLE)
def test_an_unreadable_source_says_why(tmp_path: Path, case: str) -> None:
    make, words = NOT_READABLE[case]
    path = make(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        read(path)
    assert len(str(caught.value)) < 6000 and "\n" not in str(caught.value)


@pytest.mark.parametrize("case", ["missing", "pipe", "device", "link to itself", "folder in a circle", "empty file"])
@pytest.mark.parametrize("call", [require_source, content_key])
def test_preflight_and_key_never_open_what_cannot_be_read(tmp_path: Path, case: str, call: Callable[..., Any]) -> None:
    make, words = NOT_READABLE[case]
    with pytest.raises(UserError, match=words):
        call(source(make(tmp_path)))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("cut", [1, 9, 1000])
def test_a_packed_file_cut_short(tmp_path: Path, name: str, ending: str, cut: int) -> None:
    words = [os.urandom(30).hex() for _ in range(10_000)]
    if name == "a.csv":
        data = b"text\n" + "\n".join(words).encode()
    else:
        lines = [json.dumps({"text": word}) for word in words]
        data = ("[" + ",".join(lines) + "]" if name == "a.json" else "\n".join(lines)).encode()
    packed = gzip.compress(data) if ending == ".gz" else zstd(data)
    path = file(tmp_path, name + ending, packed[:-cut])
    rows = []
    with pytest.raises(UserError, match=rf"{name}{ending} is cut short .* line \d+.*Download") as caught:
        for row in read_rows(source(path)):
            rows.append(row)
    assert len(rows) > 1000 and all(row.data is not None for row in rows)
    assert f"after line {rows[-1].line} it" in str(caught.value)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(folder(tmp_path / "f"), "a.jsonl", GOOD)
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs the tests may be allowed everything
    with pytest.raises(UserError, match="permission denied"):
        read(path)

    def refuse(_: Any) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError, match="folder .* cannot be read: Permission denied"):
        read(path.parent)


# --- the way out of the root --------------------------------------------------------------------------------------------


def test_root_holds_every_local_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, outside = folder(tmp_path / "root", "in.jsonl"), folder(tmp_path / "outside", "out.jsonl")
    folder(tmp_path / "rootless", "a.jsonl")  # begins like the root, lies beside it
    monkeypatch.chdir(tmp_path)
    assert len(read(root, root=str(root))) == len(read(Path("root/in.jsonl"), root="root")) == 1
    link(root / "alias.jsonl", root / "in.jsonl")  # a link that stays inside
    assert len(read(root, root="root")) == 2
    link(tmp_path / "door", root)
    assert len(read(tmp_path / "door", root="root")) == len(read(root, root="door")) == 2
    for way in ("root/../outside/out.jsonl", str(outside), "rootless", ".", "/"):
        for call in (read_rows, require_source, content_key):
            with pytest.raises(UserError, match=f"outside the recipe's root {root}"):
                list(call(source(way), root="root"))  # type: ignore[call-overload]
    for name, target in {
        "x": outside,
        "y.jsonl": outside / "out.jsonl",
        "z.jsonl": Path("../outside/out.jsonl"),
    }.items():
        way_out = link(root / name, target)
        for path in (root, way_out):
            with pytest.raises(UserError, match=f"{name} leads to .*outside/?.*, outside the recipe's root"):
                require_source(source(path), root="root")
        way_out.unlink()


def test_root_must_be_a_folder(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", GOOD)
    with pytest.raises(UserError, match="root .* is not a folder"):
        require_source(source(path), root=str(path))
    with pytest.raises(UserError, match="does not exist"):
        require_source(source(path), root=str(tmp_path / "gone"))


# --- bounded memory and time --------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pipeline.settings import SourceSettings
from pipeline.data.sources import read_rows

def peak():  # not ru_maxrss: a child begins with what its parent had
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

source = SourceSettings(name="s", kind="chat", source="local", path=sys.argv[1], share=1)
list(read_rows(source.model_copy(update={"path": sys.argv[2]})))
before = peak()
count = 0
for row in read_rows(source):
    count += 1
    if row.data is None:
        print(row.line, row.reason, row.error)
print(count, (peak() - before) // 1024)
"""


def measured(path: Path, small: Path) -> tuple[str, int, int]:
    """What was rejected, number of rows, and growth of the peak memory in MiB over that of reading ``small``."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak memory of a process is read from /proc, which this system has not")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, path, small], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *rejected, last = done.stdout.strip().splitlines()
    count, growth = map(int, last.split())
    return "\n".join(rejected), count, growth


def test_200_megabytes_in_a_line_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    long_line(path, 200 * 2**20)
    rejected, count, growth = measured(path, file(tmp_path, "small.jsonl", GOOD))
    assert rejected == "2 row_too_large the row has 209,715,201 bytes; the limit is 16,777,216"
    assert count == 3 and growth < 80


def test_a_long_line_inside_a_bomb_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl.gz"
    gzip_bomb(path, 200 * 2**20)
    assert path.stat().st_size < 2**20
    rejected, count, growth = measured(path, file(tmp_path, "small.jsonl.gz", gzip.compress(GOOD)))
    assert rejected.startswith("1 row_too_large") and count == 2 and growth < 80


def test_a_long_element_of_a_json_list_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "long.json.gz"
    long_element(path, 200 * 2**20)
    rejected, count, growth = measured(path, file(tmp_path, "small.json.gz", gzip.compress(b"[" + GOOD + b"]")))
    assert rejected.startswith("1 row_too_large the row has 209,715,2") and count == 2 and growth < 80


def test_a_big_json_list_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    big_list(path, 50_000)
    assert path.stat().st_size > 5 * 10**7
    _, count, growth = measured(path, file(tmp_path, "small.json", b"[" + GOOD + b"]"))
    assert count == 50_000 and growth < 20


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_row_above_the_limit_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(row_files, "BLOCK", 64)
    texts = ["x", "y" * 5000, "z"]
    lines = [json.dumps({"text": text}).encode() for text in texts]
    data = {
        "a.jsonl": jsonl(*lines),
        "a.json": b"[" + b", ".join(lines) + b"]",
        "a.csv": b'text\nx\n"' + b"y\n" * 2500 + b'"\nz\n',
    }[name]
    rows = read(file(tmp_path, name, data))
    assert [(r.data, r.reason) for r in rows] == [({"text": "x"}, ""), (None, "row_too_large"), ({"text": "z"}, "")]
    assert "5,0" in rows[1].error
    assert repr(list(read_rows(source(tmp_path), skip=2))) == repr(rows[2:])


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", GOOD + b"\n" + b"x" * 9000, r"a.jsonl(\.gz)?:2 is a single line of more than"),
        ("a.csv", b"a,b\n" + b"x" * 9000, r"a.csv(\.gz)?:2 is a single line"),
        ("b.csv", b'a,b\n1,"' + b"x\n" * 4500, r"b.csv(\.gz)?:2: a quote that opens here is never closed"),
        ("c.csv", b'a,b\n1,"' + b"x\n" * 900, r"c.csv(\.gz)?:2: a quote that opens here is never closed"),
        ("d.csv", b"x" * 2000, "the header has 2,000 bytes"),
        ("a.json", b'[{"a": "' + b"x" * 9000, "row 1 has more than .* bytes"),
        ("c.json", b"[" * 900, "row 1 has more than 1.. brackets"),
        ("d.json", b"[[" + b"[]," * 300, "row 1 has more than 1.. brackets"),
        ("b.json", b" " * 9000, "begins with .* blanks"),
        ("b.jsonl", b"\n" * 200, "101 lines are blank"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_without_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, words: str, packed: bool
) -> None:
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(row_files, "MAX_LINE_BYTES", 4000)
    monkeypatch.setattr(row_files, "MAX_BLANK_LINES", 100)
    monkeypatch.setattr(row_files, "MAX_BRACKETS", 100)
    monkeypatch.setattr(row_files, "BLOCK", 64)
    with pytest.raises(UserError, match=words):
        read(file(tmp_path, name + ".gz" * packed, gzip.compress(data) if packed else data))


# --- anything at all ----------------------------------------------------------------------------------------------------

quick = settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ['"', "\\", "[{", "},]", "a\nb", "\\u"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
json_rows = st.lists(st.dictionaries(texts, values, max_size=4), min_size=1, max_size=6)


@quick
@given(rows=json_rows, indent=st.sampled_from([None, 1]), ascii_only=st.booleans(), block=st.integers(8, 80))
def test_json_in_every_dress_gives_the_rows_back(
    tmp_path: Path, rows: list[dict[str, Any]], indent: int | None, ascii_only: bool, block: int
) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    whole = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
    forms = {
        "a.jsonl": "\n".join(lines),
        "a.json": whole,
        "b.json": f'{{"version": "1]", "tags": ["x"], "data": {whole}, "more": {{"a": [1]}}}}',
        "c.json": f" [ {' , '.join(lines)} , ] ",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_files, "BLOCK", block)
        for name, text in forms.items():
            found = read(file(tmp_path, name, text.encode()))
            assert [r.data for r in found] == rows, name


@quick
@given(
    rows=st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=6),
    block=st.integers(8, 80),
    delimiter=st.sampled_from([("a.csv", ","), ("a.tsv", "\t"), ("b.csv", ";")]),
)
def test_csv_gives_the_cells_back(
    tmp_path: Path, rows: list[tuple[str, ...]], block: int, delimiter: tuple[str, str]
) -> None:
    rows = [tuple("x" + cell.replace("\0", "").replace("\r", "") for cell in row) for row in rows]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter[1]).writerows([("a", "b", "c"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_files, "BLOCK", block)
        found = read(file(tmp_path, delimiter[0], buffer.getvalue().encode()))
    assert [tuple(r.data.values()) for r in found if r.data is not None] == rows
    line = 2
    for row, cells in zip(found, rows, strict=True):
        assert row.line == line
        line += 1 + sum(cell.count("\n") for cell in cells)


STARTS = [
    b"",
    b"[",
    b'{"data": [',
    b"a,b\n",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"PAR1",
    gzip.compress(GOOD),
    zstd(GOOD),
    GOOD,
    b"[" + GOOD + b", ",
    b'a,b\n"x',
]
NAMES = [f + c for f in (".jsonl", ".json", ".csv", ".tsv") for c in ("", ".gz", ".zst")] + [".parquet"]
pieces = st.one_of(
    st.binary(max_size=60), st.sampled_from([*STARTS, b'"', b"\\", b"]", b"}", b",", b"\n", b"\r", b"{", b"\0"])
)


@settings(parent=quick, max_examples=examples(100))
@given(
    name=st.sampled_from(NAMES), start=st.sampled_from(STARTS), data=st.lists(pieces, max_size=8), pack=st.booleans()
)
def test_any_bytes_are_rows_rejected_rows_or_an_error(
    tmp_path: Path, name: str, start: bytes, data: list[bytes], pack: bool
) -> None:
    content = start + b"".join(data)
    if pack and not name.endswith("parquet"):
        content = {"gz": gzip.compress, "st": zstd}.get(name[-2:], bytes)(content)
    path = file(tmp_path, "x" + name, content)
    try:
        rows = read(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    for row in rows:
        json.dumps(row.data, ensure_ascii=False).encode()  # whatever comes out can be written
    assert [r.line for r in rows] == sorted({r.line for r in rows})
    if name == ".jsonl":
        plain = content.removeprefix(b"\xef\xbb\xbf")
        assert len(rows) == sum(bool(line.strip()) for line in plain.split(b"\n"))
    for skip in {1, len(rows) // 2, len(rows)}:
        assert repr(list(read_rows(source(path), skip=skip))) == repr(rows[skip:])


@quick
@given(rows=json_rows, at=st.floats(0, 1), cut=st.integers(0, 5), put=st.binary(max_size=5))
def test_damage_never_takes_other_lines_with_it(
    tmp_path: Path, rows: list[dict[str, Any]], at: float, cut: int, put: bytes
) -> None:
    """One damaged spot in a JSONL file spoils at most the lines that it touches."""
    data = jsonl(*(json.dumps(row).encode() for row in rows))
    place = int(at * len(data))
    damaged = data[:place] + put + data[place + cut :]
    try:
        found = Counter(repr(r.data) for r in read(file(tmp_path, "a.jsonl", damaged)))
    except UserError:
        assert not damaged.strip() or damaged[:2] in (b"\xff\xfe", b"\xfe\xff")
        return
    lost = Counter(repr(json.loads(json.dumps(row))) for row in rows) - found
    assert sum(lost.values()) <= 1 + data[place : place + cut].count(b"\n")


def test_csv_cells_stay_text(tmp_path: Path) -> None:
    cells = ['{"name": "x"}', '[{"role": "user"}]', "[[1]]", "42", "", " x "]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list("abcdef"), cells])
    (row,) = read(tmp_path / "a.csv")
    assert row.data == dict(zip("abcdef", cells, strict=True))


@pytest.mark.parametrize("nested", [False, True])
def test_a_large_parquet_row_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool) -> None:
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", 10_000)
    texts = ["x", "y" * 20_000, *("z" * 2000 for _ in range(40))]  # together too large, but not one by one
    rows = [{"a": [{"role": "user", "content": text}] if nested else text} for text in texts]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert [r.line for r in found] == list(range(1, 43))
    assert [(r.line, r.reason) for r in found if r.reason] == [(2, "row_too_large")]
    assert [r.data for r in found if r.data is not None] == [rows[0], *rows[2:]]
