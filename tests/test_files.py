from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import atomic_path, fingerprint, read_json, read_jsonl, write_json, write_jsonl, write_text


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
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "file" / "below.txt", "y")


def test_fingerprint_ignores_key_order_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
