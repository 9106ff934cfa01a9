"""A thinking budget through a server: two requests with the end of the thought between them, and servers that cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_server import Answer, FakeServer, serving

from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.model.engines.server import server_engine
from pipeline.model.thinking_budget import Budget
from pipeline.settings import EvaluationSettings, Sampling, ServerSettings, load_profile, parse

ASKED: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]
SAMPLING = Sampling(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=160)
WHOLE = "<think>\n17 + 25. 7 + 5 = 12, so the sum is 42.\n</think>\n\n42"


class Continuing(FakeServer):
    """Writes ``WHOLE``, or behind a closed thought "42"; has /v1/completions with prompts in tokens."""

    tokenizer: Any
    completions: list[dict[str, Any]]
    broken = False

    def answer(self, path: str, body: dict[str, Any] | None, key: str | None) -> Answer:
        if path != "/v1/completions" or body is None:
            return super().answer(path, body, key)
        self.completions.append(body)
        if self.broken:
            return 200, {"choices": [{"text": None}]}
        start = len(self.prompt_ids(ASKED, "thinking"))
        written = self.tokenizer.decode(body["prompt"][start:])
        rest = WHOLE[len(written) :] if WHOLE.startswith(written) else "42"
        ids = self.tokenizer(rest, add_special_tokens=False)["input_ids"]
        cut = len(ids) > body["max_tokens"]
        text = self.tokenizer.decode(ids[: body["max_tokens"]])
        return 200, {
            "choices": [{"text": text if cut else text + "<|im_end|>", "finish_reason": "length" if cut else "stop"}],
            "usage": {"completion_tokens": min(len(ids), body["max_tokens"])},
        }


@pytest.fixture
def fake(embedded_tokenizer: Any) -> Iterator[Continuing]:
    made = Continuing(
        ChatFormat(embedded_tokenizer).prompt_ids, lambda messages, mode: {"role": "assistant", "content": "42"}
    )
    made.tokenizer, made.completions = embedded_tokenizer, []
    with serving(made):
        yield made


def asked(fake: Continuing, budget: int | None, mode: Any = "thinking", kind: str = "vllm") -> Any:
    settings = ServerSettings.model_validate({"url": fake.url, "base_model": "base", "retries": 0, "kind": kind})
    prompt_ids = ChatFormat(fake.tokenizer).prompt_ids
    with server_engine(settings, "base", fake.tokenizer, prompt_ids, "") as engine:
        return engine.replies([ASKED], mode, SAMPLING, 1, thinking_budget=budget)[0]


def test_the_thought_is_closed_between_two_requests(fake: Continuing) -> None:
    reply, budget = asked(fake, 4), Budget(fake.tokenizer, 4)
    first, second = fake.completions
    begun = fake.tokenizer.decode(fake.tokenizer(WHOLE, add_special_tokens=False)["input_ids"][: budget.due("")])
    assert reply.text == begun + budget.text + "42" and not reply.truncated
    assert first["max_tokens"] == budget.due("") and first["prompt"] == fake.prompt_ids(ASKED, "thinking")
    assert second["prompt"][-len(budget.closing) :] == budget.closing
    assert second["max_tokens"] == 160 - budget.due("") - len(budget.closing)
    for body in (first, second):
        assert body["seed"] == first["seed"] and body["top_k"] == 20 and "chat_template_kwargs" not in body


def test_a_thought_that_ends_by_itself_is_left_alone(fake: Continuing) -> None:
    assert asked(fake, 100).text == WHOLE and len(fake.completions) == 1
    ids = fake.tokenizer(WHOLE, add_special_tokens=False)["input_ids"]
    closed = len(fake.tokenizer(WHOLE[: WHOLE.rindex("42")], add_special_tokens=False)["input_ids"])
    assert closed < len(ids)  # the budget ends within the answer: it is gone on with, nothing is put in
    opening = len(Budget(fake.tokenizer, 0).opening)
    assert asked(fake, closed - opening).text == WHOLE and len(fake.completions) == 3


def test_the_other_mode_and_no_budget_are_asked_as_ever(fake: Continuing) -> None:
    assert asked(fake, 4, "non_thinking").text == "42" and asked(fake, None).text == "42"
    assert fake.completions == []


def test_servers_that_cannot_go_on_are_refused(fake: Continuing) -> None:
    for kind in ("transformers", "openai"):
        with pytest.raises(UserError, match=f"evaluation.server.kind is {kind}"):
            asked(fake, 4, kind=kind) if kind == "transformers" else asked_plain(fake)
    with pytest.raises(UserError, match="leave no room for an answer"):
        asked(fake, 155)
    fake.broken = True
    with pytest.raises(UserError, match="has no /v1/completions"):
        asked(fake, 4)


def asked_plain(fake: Continuing) -> Any:
    """The plain protocol has no top-k."""
    settings = ServerSettings.model_validate({"url": fake.url, "base_model": "base", "retries": 0, "kind": "openai"})
    prompt_ids = ChatFormat(fake.tokenizer).prompt_ids
    with server_engine(settings, "base", fake.tokenizer, prompt_ids, "") as engine:
        return engine.replies([ASKED], "thinking", SAMPLING, 1, thinking_budget=4)


def test_the_settings_say_so_at_once() -> None:
    data = load_profile("embedded").evaluation.model_dump() | {"thinking_budget": 8}
    assert parse(EvaluationSettings, data, "here").thinking_budget == 8
    server = data["server"] | {"url": "http://127.0.0.1:1/v1", "base_model": "base", "kind": "transformers"}
    with pytest.raises(UserError, match="goes on from a given beginning; kind transformers does not"):
        parse(EvaluationSettings, data | {"engine": "server", "server": server}, "here")
    with pytest.raises(UserError, match="thinking_budget"):
        parse(EvaluationSettings, data | {"thinking_budget": -1}, "here")
