from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.hubs import require_hub
from pipeline.settings import SourceSettings
from pipeline.sources import content_key, read_rows


def source(path: Path | str, **changes: object) -> SourceSettings:
    values = {"name": "s", "kind": "chat", "source": "local", "path": str(path), "converter": "alpaca", "share": 1.0}
    return SourceSettings.model_validate(values | changes)


def test_jsonl_keeps_line_numbers_and_reports_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": \n[1]\n"\xff"\n{"a": 2}\n')
    rows = list(read_rows(source(path)))
    assert [(r.line, r.data) for r in rows] == [(1, {"a": 1}), (3, None), (4, None), (5, None), (6, {"a": 2})]
    assert "broken JSON" in rows[1].error and "list" in rows[2].error and "utf-8" in rows[3].error
    assert {r.file for r in rows} == {"rows.jsonl"}


def test_json_parquet_and_folder_give_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    data = [{"instruction": f"问题 {i}", "output": "x" * i} for i in range(5)]
    (tmp_path / "a.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(data), tmp_path / "b.parquet")
    assert [r.data for r in read_rows(source(tmp_path / "a.json"))] == data
    assert [r.data for r in read_rows(source(tmp_path / "b.parquet"))] == data
    assert [(r.file, r.line) for r in read_rows(source(tmp_path))] == [
        (name, i) for name in ("a.json", "b.parquet") for i in range(1, 6)
    ]


def test_rows_limits_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a":1}\n' * 10, encoding="utf-8")
    assert len(list(read_rows(source(tmp_path, rows=4)))) == 4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d / "absent.jsonl", "does not exist"),
        (lambda d: (d / "x.txt").write_text("a") and d / "x.txt", "unknown ending"),
        (lambda d: (d / "e").mkdir() or d / "e", "holds no .jsonl"),
        (lambda d: (d / "b.json").write_text("{") and d / "b.json", "not valid JSON"),
        (lambda d: (d / "o.json").write_text("{}") and d / "o.json", "should hold a list"),
        (lambda d: (d / "p.parquet").write_text("no") and d / "p.parquet", "not a readable Parquet"),
    ],
)
def test_unreadable_sources_say_why(tmp_path: Path, make: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        list(read_rows(source(make(tmp_path))))  # type: ignore[operator]


def test_unknown_generator_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'finetome_like'"):
        list(read_rows(source("finetome_lik", source="generated", rows=1)))


def test_hub_out_of_reach_fails_within_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")  # reserved for documentation: nobody answers
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached.*offline.*source: local"):
        list(read_rows(source("mlabonne/FineTome-100k", source="huggingface")))
    assert time.monotonic() - started < 5


def test_offline_switch_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="model 'x' would come from Hugging Face, but HF_HUB_OFFLINE is set. Do this"):
        require_hub("huggingface", "model 'x'", "Do this.")


def test_content_key_follows_content_not_path(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text('{"a":1}\n', encoding="utf-8")
    b.write_text('{"a":1}\n', encoding="utf-8")
    assert content_key(source(a)) == content_key(source(b))
    b.write_text('{"a":2}\n', encoding="utf-8")
    assert content_key(source(a)) != content_key(source(b))
