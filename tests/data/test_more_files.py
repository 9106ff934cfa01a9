"""Rows from compressed files, archives and Arrow: the same rows, whatever holds them; and what is wrong with such a file."""

from __future__ import annotations

import bz2
import json
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as parquet
import pytest

from pipeline.core.errors import UserError
from pipeline.data.conversations import converter
from pipeline.data.sources import read_rows
from pipeline.settings import SourceSettings

ROWS = [{"instruction": f"q{n}", "output": f"a{n} é"} for n in range(7)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read(path: Path) -> list[dict[str, str]]:
    source = SourceSettings(name="s", kind="chat", source="local", path=str(path), share=1)
    rows = list(read_rows(source))
    assert [row.line for row in rows] == list(range(1, len(rows) + 1))
    again = list(read_rows(source, skip=3))  # as a build that was killed goes on
    assert again == rows[3:]
    return [row.data for row in rows if row.data is not None]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonlines", LINES),
        ("rows.jsonl.bz2", bz2.compress(LINES)),
        ("rows.jsonl.xz", lzma.compress(LINES)),
        ("rows.json.xz", lzma.compress(json.dumps(ROWS).encode())),
        ("rows.csv.bz2", bz2.compress(b"instruction,output\n" + "".join(f"q{n},a{n} é\n" for n in range(7)).encode())),
    ],
)
def test_compressed_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    got = [
        row.data
        for row in read_rows(SourceSettings(name="s", kind="chat", source="local", path=str(tmp_path), share=1))
    ]
    assert got == ROWS


def test_an_archive_is_read_file_by_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/b.json", json.dumps(ROWS[4:]))
        archive.writestr("data/a.jsonl", LINES[: LINES.index(b'{"instruction": "q4"')])
        archive.writestr("README.md", "no rows")
        archive.writestr("__MACOSX/a.jsonl", "junk")
    source = SourceSettings(name="s", kind="chat", source="local", path=str(tmp_path / "rows.zip"), share=1)
    rows = list(read_rows(source))
    assert [row.data for row in rows] == ROWS
    assert {row.file for row in rows} == {"rows.zip/data/a.jsonl", "rows.zip/data/b.json"}
    folder = SourceSettings(name="s", kind="chat", source="local", path=str(tmp_path), share=1)
    assert [row.data for row in read_rows(folder)] == ROWS


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow(tmp_path: Path, kind: str) -> None:
    table = pa.Table.from_pylist(ROWS)
    opened = {"stream": ipc.new_stream, "file": ipc.new_file}[kind]
    with opened(str(tmp_path / "rows.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert read(tmp_path / "rows.arrow") == ROWS


def test_a_struct_of_lists_is_a_list_of_turns(tmp_path: Path) -> None:
    """How ``datasets`` wrote a sequence of turns to Parquet."""
    turns = {"role": ["user", "assistant"], "content": ["q", "<think>r</think>a"]}
    parquet.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "rows.parquet")
    (row,) = read_rows(
        SourceSettings(name="s", kind="chat", source="local", path=str(tmp_path / "rows.parquet"), share=1)
    )
    assert row.data is not None
    got = converter("auto")(row.data)
    assert [m["content"] for m in got.messages] == ["q", "a"]
    assert got.mode == "thinking"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.jsonl.bz2", bz2.compress(LINES * 50)[:-20], "cut short or damaged"),
        ("cut.jsonl.xz", lzma.compress(LINES * 50)[:-20], "cut short or damaged"),
        ("bad.jsonl.xz", b"no xz at all", "cut short or damaged"),
        ("bad.jsonl.bz2", b"no bz2 at all", "cut short or damaged"),
        ("bad.zip", b"no archive", "is no zip archive"),
        ("bad.arrow", b"no arrow file", "is not a readable Arrow file"),
        ("empty.zip", b"", "is empty"),
    ],
)
def test_damaged(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        list(read_rows(SourceSettings(name="s", kind="chat", source="local", path=str(tmp_path / name), share=1)))


def test_an_archive_without_rows_says_what_it_holds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("rows.parquet", b"PAR1")
    with pytest.raises(UserError, match=r"can be read from within an archive: rows.parquet"):
        list(read_rows(SourceSettings(name="s", kind="chat", source="local", path=str(tmp_path / "rows.zip"), share=1)))
