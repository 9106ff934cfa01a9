"""A rehearsal whose base is answered for by a server: rows as from this process, and nothing asked twice when it dies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_server import FakeServer, serving

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, read_jsonl, write_jsonl
from pipeline.data.chat_format import ChatFormat
from pipeline.data.rehearsal.rehearse import rehearsed
from pipeline.evaluation.engine import other_answers
from pipeline.settings import Recipe, load_profile, parse

ANSWERS = {"thinking": "<think>\nEasy.\n</think>\n\nSeven.", "non_thinking": "Seven."}


@pytest.fixture
def fake(embedded_tokenizer: Any) -> Iterator[FakeServer]:
    chat = ChatFormat(embedded_tokenizer)
    made = FakeServer(chat.prompt_ids, lambda messages, mode: {"role": "assistant", "content": ANSWERS[mode]})
    with serving(made):
        yield made


def recipe(tmp_path: Path, rows: list[dict[str, Any]], mode: str = "thinking") -> Recipe:
    write_jsonl(tmp_path / "questions.jsonl", rows)
    questions = {"source": "local", "path": str(tmp_path / "questions.jsonl")}
    own = {"name": "own", "source": "base", "mode": mode, "questions": questions, "share": 1.0}
    return parse(Recipe, {"name": "test", "group_near_duplicates": False, "sources": [own]}, "test")


def asked(fake: FakeServer) -> list[str]:
    return [body["messages"][-1]["content"] for body in fake.asked if "plus one" in body["messages"][-1]["content"]]


def rehearse(fake: FakeServer, wanted: Recipe, tokenizer: Any, tmp_path: Path) -> tuple[Recipe, dict[str, Any]]:
    server = ["evaluation.engine=server", f"evaluation.server.url={fake.url}", "evaluation.server.base_model=base"]
    server += ["evaluation.server.concurrency=2", "evaluation.server.retries=0", "evaluation.server.timeout_s=20"]
    profile = load_profile("embedded", [*server, "model.max_seq_length=1024"])  # room for tools

    def never() -> Any:
        raise AssertionError("a model was loaded here")

    with other_answers(profile, tmp_path / "log") as other:
        return rehearsed(profile, wanted, tokenizer, never, tmp_path / "cache", other)


QUESTIONS = [{"prompt": f"What is {number} plus one?"} for number in range(40)]


@pytest.mark.parametrize("mode", ANSWERS)
def test_a_server_answers_for_the_base(fake: FakeServer, embedded_tokenizer: Any, tmp_path: Path, mode: str) -> None:
    ready, records = rehearse(fake, recipe(tmp_path, QUESTIONS, mode), embedded_tokenizer, tmp_path)
    assert records["own"]["kept"] == 40 and records["own"]["fidelity"] == 1.0
    assert sorted(asked(fake)) == sorted(row["prompt"] for row in QUESTIONS)
    answer = read_jsonl(Path(ready.sources[0].rows_at))[0]["messages"][-1]  # type: ignore[arg-type]
    assert answer["content"] == "Seven." and answer.get("reasoning_content") == (
        "Easy." if mode == "thinking" else None
    )


def test_data_build_asks_the_server_too(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
    recipe(tmp_path, QUESTIONS)
    questions = {"source": "local", "path": str(tmp_path / "questions.jsonl")}
    own = {"name": "own", "source": "base", "mode": "thinking", "questions": questions, "share": 0.5}
    chat = {"name": "chat", "kind": "chat", "source": "generated", "path": "finetome_like", "rows": 60, "share": 0.5}
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({"name": "r", "group_near_duplicates": False, "sources": [own, chat]}), encoding="utf-8"
    )
    words = ["data", "build", "--recipe", str(tmp_path / "r.yaml"), "--set", "evaluation.engine=server"]
    words += ["--set", f"evaluation.server.url={fake.url}", "--set", "evaluation.server.base_model=base"]
    assert main([*words, "--dry-run", "--json", "--output-dir", str(tmp_path / "mix")]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert [source["name"] for source in counted["sources"]] == ["chat"] and not asked(fake)
    assert any("asked first" in text for text in counted["warnings"])
    assert main([*words, "--output-dir", str(tmp_path / "mix")]) == 0
    manifest = read_json(tmp_path / "mix" / "manifest.json")
    assert {source["name"]: source["kept"] for source in manifest["sources"]} == {"own": 40, "chat": 60}
    assert len(asked(fake)) == 40


def test_what_is_stored_needs_no_server(fake: FakeServer, embedded_tokenizer: Any, tmp_path: Path) -> None:
    wanted = recipe(tmp_path, QUESTIONS)
    _, first = rehearse(fake, wanted, embedded_tokenizer, tmp_path)
    fake.models = []  # it would be refused now
    assert rehearse(fake, wanted, embedded_tokenizer, tmp_path)[1] == first


def test_a_server_that_dies_in_the_middle(fake: FakeServer, embedded_tokenizer: Any, tmp_path: Path) -> None:
    wanted = recipe(tmp_path, QUESTIONS)
    fake.before = lambda body: (500, "gone") if len(asked(fake)) > 20 else None
    with pytest.raises(UserError, match="500"):
        rehearse(fake, wanted, embedded_tokenizer, tmp_path)
    stored = [row for file in tmp_path.rglob("replies.jsonl") for row in read_jsonl(file)]
    assert 8 <= len(stored) <= 20
    fake.before, fake.asked = lambda body: None, []
    assert rehearse(fake, wanted, embedded_tokenizer, tmp_path)[1]["own"]["kept"] == 40
    assert len(asked(fake)) == 40 - len(stored)


def test_questions_with_tools_are_asked_here(fake: FakeServer, embedded_tokenizer: Any, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object"}}}
    row = {"messages": [{"role": "user", "content": "Add."}], "tools": [tool]}
    with pytest.raises(UserError, match="questions.jsonl:1 has tools"):
        rehearse(fake, recipe(tmp_path, [row]), embedded_tokenizer, tmp_path)
    assert not list(tmp_path.rglob("replies.jsonl"))
