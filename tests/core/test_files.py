from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.core.files import (
    atomic_path,
    fingerprint,
    is_taken,
    known_sha256,
    make_folder,
    read_json,
    read_jsonl,
    require_folder,
    write_json,
    write_jsonl,
    write_text,
)


def test_a_failure_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half a fi", encoding="utf-8")
        raise RuntimeError
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [{"text": "中文 😀\n", "n": 1}, {"text": "\u2028", "n": None}]
    assert write_jsonl(tmp_path / "r.jsonl", rows) == 2
    assert read_jsonl(tmp_path / "r.jsonl") == rows


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "n.json", {"loss": float("nan")})
    assert not (tmp_path / "n.json").exists()


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json does not exist"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "b.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"b\.json is not valid JSON"):
        read_json(tmp_path / "b.json")
    (tmp_path / "b.jsonl").write_text("{}\n{\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"b\.jsonl:2"):
        read_jsonl(tmp_path / "b.jsonl")


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for path in (tmp_path / "file" / "below.txt", tmp_path / "file" / "lower" / "below.txt"):
        with pytest.raises(UserError, match=r"cannot be written: \S+file is in the way and is no folder"):
            write_text(path, "y")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "x"


def test_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UserError, match="a folder is in the way"):
        write_text(tmp_path / "a.txt", "y")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_the_caller_cannot_read_is_not_taken_for_a_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "copy") as temporary:
        temporary.write_bytes((tmp_path / "absent").read_bytes())
    assert not list(tmp_path.iterdir())


def test_make_folder_makes_parents_and_leaves_what_is_there(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "kept").touch()
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "kept").exists()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EACCES, "not permitted"),
        (errno.EROFS, "only be read"),
        (errno.ENOENT, "no such place"),
        (errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)),
    ],
)
def test_a_folder_that_cannot_be_made_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=rf"{words}.*[Cc]hoose another PIPELINE_CACHE") as caught:
        make_folder(tmp_path / "new", "PIPELINE_CACHE")
    assert str(tmp_path / "new") in str(caught.value)


def test_require_folder_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    require_folder(tmp_path)
    require_folder(tmp_path / "new" / "below")
    for path in ("file", "file/below", "dangling/below"):
        with pytest.raises(UserError, match="in the way"):
            require_folder(tmp_path / path)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # a folder that may be read
    require_folder(tmp_path)
    with pytest.raises(UserError, match="not permitted"):
        require_folder(tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file"]


def test_fingerprint_ignores_key_order_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []
    original = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: reads.append(path) or original(path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    assert known_sha256(path) == known_sha256(path) == original(path) and len(reads) == 1
    path.write_bytes(b"other")
    assert known_sha256(path) == original(path) and len(reads) == 2


def test_a_path_is_free_while_there_is_nothing_at_it(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert not is_taken(folder)
    folder.mkdir()
    assert not is_taken(folder)
    (folder / ".hidden").touch()
    assert is_taken(folder) and is_taken(folder / ".hidden")
