"""An evaluation whose replies come from a server: kept busy, stored one by one, gone on with, refused in time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, serving

from pipeline.core.errors import UserError
from pipeline.core.files import read_jsonl
from pipeline.core.modes import MODES
from pipeline.data import corpora
from pipeline.data.chat_format import ChatFormat
from pipeline.evaluation.engine import open_engine, require_engine
from pipeline.evaluation.evaluate import evaluate_engine
from pipeline.model.engines.local import AHEAD
from pipeline.model.engines.server import server_engine
from pipeline.run import Run
from pipeline.settings import Profile, load_profile

N = 24


def gold() -> Callable[[Any, str], dict[str, Any]]:
    """Answers that are right, in the form of the mode."""
    items = corpora.test_items("skill", N, 42)
    answers = {json.dumps(item["messages"], ensure_ascii=False): item["answer"] for item in items}

    def reply(messages: Any, mode: str) -> dict[str, Any]:
        answer = answers.get(json.dumps(messages, ensure_ascii=False), "?")
        return {"content": f"<think>\nI know it.\n</think>\n\n{answer}" if mode == "thinking" else answer}

    return reply


@pytest.fixture
def chat(embedded_tokenizer: Any) -> ChatFormat:
    return ChatFormat(embedded_tokenizer)


@pytest.fixture
def fake(chat: ChatFormat) -> Iterator[FakeServer]:
    with serving(FakeServer(chat.prompt_ids, gold())) as made:
        yield made


def served(fake: FakeServer, *sets: str) -> Profile:
    return load_profile(
        "embedded",
        [
            "evaluation.benchmarks=[embedded_skill]",
            f"evaluation.limit={N}",
            "evaluation.engine=server",
            f"evaluation.server.url={fake.url}",
            "evaluation.server.base_model=base",
            "evaluation.server.concurrency=4",
            "evaluation.server.retries=0",
            *sets,
        ],
    )


def evaluate(fake: FakeServer, chat: ChatFormat, folder: Path, *sets: str, **options: Any) -> dict[str, Any]:
    settings = served(fake, *sets).evaluation
    with server_engine(settings.server, "base", chat.tokenizer, chat.prompt_ids, "") as engine:
        return evaluate_engine(engine, "m", settings, folder, progress=False, **options)


def test_scores_are_those_of_the_replies(fake: FakeServer, chat: ChatFormat, tmp_path: Path) -> None:
    cells = evaluate(fake, chat, tmp_path)
    for mode in MODES:
        cell = cells[mode]
        assert cell["benchmarks"]["embedded_skill"]["score"] == cell["mode_fidelity"] == 1 and cell["n"] == N
        rows = read_jsonl(tmp_path / mode / "predictions.jsonl")
        assert [row["index"] for row in rows] == list(range(N))
    fake.asked.clear()
    assert evaluate(fake, chat, tmp_path) == cells and not fake.asked  # a finished cell is not asked again
    settings = served(fake).evaluation
    with server_engine(settings.server, "tuned", chat.tokenizer, chat.prompt_ids, "") as engine:
        evaluate_engine(engine, "m", settings, tmp_path, ["thinking"], progress=False)
    assert len(fake.asked) == N  # another model of the server is another one


def test_a_slow_reply_does_not_hold_the_others_up(fake: FakeServer, chat: ChatFormat, tmp_path: Path) -> None:
    others, slow = threading.Event(), corpora.test_items("skill", N, 42)[2]["messages"]
    ended: list[bool] = []

    def one_is_slow(body: dict[str, Any]) -> None:
        if body["messages"] == slow:
            ended.append(others.wait(60))  # in lockstep, it would wait in vain
        else:
            ended.append(True)
            if len(ended) == N - 1:
                others.set()

    fake.before = one_is_slow  # type: ignore[assignment]
    evaluate(fake, chat, tmp_path, modes=["thinking"])
    assert ended == [True] * N and fake.most_open <= 4
    stored = next(tmp_path.rglob("predictions/*/*.jsonl"))
    assert len(read_jsonl(stored)) == N


def test_a_server_that_fails_in_the_middle_is_gone_on_with(fake: FakeServer, chat: ChatFormat, tmp_path: Path) -> None:
    fake.before = lambda body: (500, "broken") if len(fake.asked) > 10 else None
    started = time.monotonic()
    with pytest.raises(UserError, match=r"answers 500, at the first try: broken.*--resume"):
        evaluate(fake, chat, tmp_path)
    assert time.monotonic() - started < 20
    stored = len(read_jsonl(next(tmp_path.rglob("predictions/*/*.jsonl"))))
    assert 7 <= stored <= 10
    fake.before, fake.asked = lambda body: None, []
    cells = evaluate(fake, chat, tmp_path)
    assert len(fake.asked) == 2 * N - stored
    assert all(cells[mode]["benchmarks"]["embedded_skill"]["score"] == 1 for mode in MODES)


def test_a_run_asks_the_server_and_says_what_is_missing(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("pipeline.run.load_model", never)
    run = Run.open(served(fake), tmp_path / "run")
    cells = run.evaluate("base")
    assert cells["thinking"]["mode_fidelity"] == 1
    with pytest.raises(UserError, match="holds no adapter; run train first"):
        run.evaluate("tuned")
    (tmp_path / "run" / "adapter").mkdir()
    (tmp_path / "run" / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="server.tuned_model is not set"):
        run.evaluate("tuned")


def test_a_server_is_looked_at_before_anything_is_built(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the mix was built")

    monkeypatch.setattr("pipeline.run.profile_mix", never)
    fake.models = ["something"]
    with pytest.raises(UserError, match="has no such model; it has: something"):
        Run.open(served(fake), tmp_path / "run").all()
    with pytest.raises(UserError, match="evaluation.vllm.executable: 'no-such-vllm' is not there"):
        require_engine(load_profile("embedded", ["evaluation.engine=vllm", "evaluation.vllm.executable=no-such-vllm"]))
    with pytest.raises(UserError, match="cannot serve method ia3"):
        require_engine(load_profile("embedded", ["evaluation.engine=vllm", "method=ia3"]))


def test_the_model_here_is_an_engine_too(tmp_path: Path, embedded_tokenizer: Any, tiny_qwen3: Any) -> None:
    profile = load_profile("embedded", ["evaluation.workers=1"])
    model = tiny_qwen3(0, max_position_embeddings=512)
    with open_engine(profile, "base", lambda: (model, embedded_tokenizer), None, tmp_path / "log") as engine:
        assert (
            not engine.one_by_one and engine.identity == {} and engine.window == AHEAD * profile.evaluation.batch_size
        )
        asked = [[{"role": "user", "content": "Hello"}]] * 2
        sampling, seen = profile.evaluation.sampling.non_thinking, []
        replies = engine.replies(asked, "non_thinking", sampling, 1, lambda place, reply: seen.append(place))
        assert len(replies) == 2 and sorted(seen) == [0, 1] and replies[0] != replies[1]
