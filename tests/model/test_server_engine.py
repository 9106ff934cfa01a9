"""The engine of a server, against one that answers well and one that does everything wrong."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_server import FakeServer, serving
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES, Tags
from pipeline.data.chat_format import ChatFormat
from pipeline.model.engines.protocol import reply_text, request_fields
from pipeline.model.engines.server import ServerEngine, server_engine
from pipeline.model.form import judge, split_reply
from pipeline.settings import EvaluationSettings, Sampling, ServerSettings, parse

SAMPLING = Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, repetition_penalty=1.1, max_new_tokens=16)
ASKED = [[{"role": "user", "content": f"What is {i} + 1?"}] for i in range(6)]
ANSWERS = {"thinking": "<think>\nEasy.\n</think>\n\nSeven.", "non_thinking": "Seven."}
KEY = "sk-not-to-be-seen-0123456789"


@pytest.fixture
def chat(embedded_tokenizer: Any) -> ChatFormat:
    return ChatFormat(embedded_tokenizer)


@pytest.fixture
def fake(chat: ChatFormat) -> Iterator[FakeServer]:
    with serving(
        FakeServer(chat.prompt_ids, lambda messages, mode: {"role": "assistant", "content": ANSWERS[mode]})
    ) as made:
        yield made


def settings(fake: FakeServer, **changes: Any) -> ServerSettings:
    given = {"url": fake.url, "base_model": "base", "retries": 1, "timeout_s": 20, "concurrency": 4} | changes
    return ServerSettings(**given)


def opened(fake: FakeServer, chat: ChatFormat, model: str = "base", key: str | None = "", **changes: Any) -> Any:
    return server_engine(settings(fake, **changes), model, chat.tokenizer, chat.prompt_ids, key)


def refusal(fake: FakeServer, chat: ChatFormat, **options: Any) -> str:
    """What opening the server, or else asking it in both modes, is refused with."""
    with pytest.raises(UserError) as caught, opened(fake, chat, **options) as engine:
        for mode in MODES:
            engine.replies(ASKED[:2], mode, SAMPLING, 1)
    return str(caught.value)


# --- a server that does what it should ----------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [None, "reasoning", "reasoning_content"])
def test_replies_have_the_form_of_those_made_here(fake: FakeServer, chat: ChatFormat, apart: str | None) -> None:
    if apart:
        parted = {
            "thinking": {apart: "\nEasy.\n", "content": "\n\nSeven."},
            "non_thinking": {apart: None, "content": "Seven."},
        }
        fake.reply = lambda messages, mode: {"role": "assistant", **parted[mode]}
    with opened(fake, chat) as engine:
        for mode in MODES:
            replies = engine.replies(ASKED, mode, SAMPLING, 3)
            assert [reply.text for reply in replies] == [ANSWERS[mode]] * 6
            assert judge(replies[0].text, replies[0].truncated, mode)["faithful"]
            count = len(chat.tokenizer(ANSWERS[mode])["input_ids"])
            reply = replies[0]
            assert reply.reasoning_tokens + reply.answer_tokens == count and (reply.reasoning_tokens > 0) == (
                mode == "thinking"
            )
            assert (reply.prompt_tokens, reply.output_tokens) == (len(chat.prompt_ids(ASKED[0], mode)), 7)
        fake.usage, fake.finish = False, "length"
        (reply,) = engine.replies(ASKED[:1], "non_thinking", SAMPLING, 3)
        assert (
            reply.truncated
            and reply.output_tokens == count
            and reply.prompt_tokens == len(chat.prompt_ids(ASKED[0], mode))
        )


def test_every_request_says_mode_model_sampling_and_a_seed_of_its_own(fake: FakeServer, chat: ChatFormat) -> None:
    with opened(fake, chat, model="tuned") as engine:
        engine.replies([*ASKED, ASKED[0]], "non_thinking", SAMPLING, 3)
        first = {body["messages"][0]["content"]: body["seed"] for body in fake.asked}
        seeds = [body["seed"] for body in fake.asked]
        assert len(set(seeds)) == 7 and all(0 <= seed < 2**31 for seed in seeds)
        fake.asked.clear()
        engine.replies(ASKED[::-1], "non_thinking", SAMPLING, 3)
        again = {body["messages"][0]["content"]: body["seed"] for body in fake.asked}
        assert all(again[text] == first[text] or text == ASKED[0][0]["content"] for text in again)
        fake.asked.clear()
        engine.replies(ASKED, "non_thinking", SAMPLING, 4)
        assert not set(seeds) & {body["seed"] for body in fake.asked}
    body = fake.asked[0]
    assert body["model"] == "tuned" and body["chat_template_kwargs"] == {"enable_thinking": False}
    wanted = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1, "max_tokens": 16}
    assert {key: body[key] for key in wanted} == wanted and body["skip_special_tokens"] is False


def test_each_kind_of_server_gets_its_own_names() -> None:
    def fields(kind: str, **sampling: Any) -> dict[str, Any]:
        server = ServerSettings(kind=kind, thinking={"reasoning": {"enabled": True}})  # type: ignore[arg-type]
        return request_fields(server, "thinking", SAMPLING.model_copy(update=sampling))["extra_body"]

    assert all(
        fields(kind)["reasoning"] == {"enabled": True} for kind in ("vllm", "sglang", "llamacpp", "transformers")
    )
    assert fields("vllm", top_k=0)["top_k"] == -1 and fields("llamacpp", top_k=0)["top_k"] == 0
    assert fields("llamacpp")["repeat_penalty"] == 1.1
    assert fields("transformers")["generation_config"] == (
        '{"do_sample": true, "top_k": 20, "repetition_penalty": 1.1, "min_p": 0.1}'
    )
    with pytest.raises(UserError, match="top_k, min_p, repetition_penalty, .*OpenAI protocol"):
        fields("openai")
    assert fields("openai", temperature=0.0, top_k=0) == {"reasoning": {"enabled": True}}


def test_requests_are_open_a_bounded_number_at_a_time(fake: FakeServer, chat: ChatFormat) -> None:
    with opened(fake, chat) as engine:
        fake.delay = 0.15
        seen: list[int] = []
        engine.replies(ASKED * 3, "thinking", SAMPLING, 1, lambda place, reply: seen.append(place))
        assert sorted(seen) == list(range(18)) and fake.most_open == 4


def test_a_request_that_fails_is_sent_again(fake: FakeServer, chat: ChatFormat) -> None:
    failed: list[int] = []

    def once(body: dict[str, Any]) -> tuple[int, Any] | None:
        if body["seed"] in failed:
            return None
        failed.append(body["seed"])
        return (500, "oops") if len(failed) % 2 else (429, {"error": {"message": "busy"}})

    with opened(fake, chat) as engine:
        fake.before = once
        assert len(engine.replies(ASKED[:3], "thinking", SAMPLING, 1)) == 3
    assert len(failed) == 3 and len(fake.asked) == 6


def test_prompts_are_compared_by_number_where_there_is_no_tokenize(fake: FakeServer, chat: ChatFormat) -> None:
    fake.tokenize = False
    with opened(fake, chat, kind="sglang"):
        assert len(fake.asked) == 6 and all(body["max_tokens"] == 1 for body in fake.asked)


@given(reasoning=st.text("ab .\n", max_size=30), answer=st.text("ab .\n", max_size=30), cut=st.booleans())
def test_reasoning_that_comes_apart_is_put_back_as_it_was(reasoning: str, answer: str, cut: bool) -> None:
    whole = reply_text({"content": answer, "reasoning_content": reasoning}, cut, ("<|im_end|>",))
    got, said, opened, closed = split_reply(whole)
    if reasoning:
        assert opened and closed == bool(answer.strip())
        assert got == reasoning.strip() and said == answer.strip()
    else:
        assert whole == answer
    assert reply_text({"content": "yes<|im_end|>"}, False, ("<|im_end|>",)) == "yes"


def test_a_thought_that_the_prompt_opened_is_seen() -> None:
    """Templates from Qwen3.5 on; and those with other tags."""
    whole = reply_text({"content": "Six.\n</think>\n\n7"}, False, (), opened="<think>\n")
    assert whole == "<think>\nSix.\n</think>\n\n7" and judge(whole, False, "thinking")["faithful"]
    assert reply_text({"content": "<think>\nSix.\n</think>\n\n7"}, False, (), opened="<think>\n") == whole
    tags = Tags("<|channel>", "<channel|>")
    whole = reply_text({"content": "7", "reasoning": "Six."}, False, (), tags)
    assert whole == "<|channel>\nSix.\n<channel|>\n\n7" and judge(whole, False, "thinking", tags)["faithful"]


# --- a server that does not ---------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there(fake: FakeServer, chat: ChatFormat) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert "cannot be reached" in refusal(fake, chat, url=url)
    assert "Start it, or mend evaluation.server.url" in refusal(fake, chat, url="http://no.such.host.invalid/v1")


def test_a_server_that_answers_500(fake: FakeServer, chat: ChatFormat) -> None:
    with opened(fake, chat) as engine:
        fake.before = lambda body: (500, "Traceback: out of memory")
        with pytest.raises(UserError, match=r"500, after 2 tries: .*out of memory.*--resume"):
            engine.replies(ASKED, "thinking", SAMPLING, 1)


def test_a_server_that_hangs(fake: FakeServer, chat: ChatFormat) -> None:
    release = threading.Event()
    with opened(fake, chat, timeout_s=0.3) as engine:
        fake.before = lambda body: (release.wait(20), None)[1]
        started = time.monotonic()
        with pytest.raises(UserError, match=r"no answer within 0.3 s, after 2 .*server.timeout_s"):
            engine.replies(ASKED[:1], "thinking", SAMPLING, 1)
        assert time.monotonic() - started < 10
        release.set()


def test_a_server_without_the_model_or_that_loses_it(fake: FakeServer, chat: ChatFormat) -> None:
    assert "model 'other', has no such model; it has: base, tuned" in refusal(fake, chat, model="other")
    with opened(fake, chat, model="tuned") as engine:
        fake.models.remove("tuned")  # the adapter is unloaded
        with pytest.raises(UserError, match=r"'tuned', .* it has: base\. .*--lora-modules tuned="):
            engine.replies(ASKED, "thinking", SAMPLING, 1)


@pytest.mark.parametrize("tokenize", [True, False])
def test_a_server_with_another_template(fake: FakeServer, chat: ChatFormat, tokenize: bool) -> None:
    fake.tokenize = tokenize
    fake.prompt_ids = lambda messages, mode: chat.prompt_ids(
        [{"role": "system", "content": "Be kind."}, *messages], mode
    )
    words = refusal(fake, chat, kind="vllm")
    assert "uses another chat template than the model was trained with: for 'What is 2 + 3?' in thinking mode" in words
    assert ("its prompt differs from token" in words) == tokenize and ("its prompt has" in words) != tokenize
    with opened(fake, chat, check_prompts=False):
        pass  # who says that it is right is believed


def test_a_server_that_differs_in_one_token(fake: FakeServer, chat: ChatFormat) -> None:
    def one_more(messages: Any, mode: str) -> list[int]:
        ids = chat.prompt_ids(messages, mode)  # type: ignore[arg-type]
        return [*ids, 5] if mode == "non_thinking" else ids

    fake.prompt_ids = one_more
    assert "in non-thinking mode its prompt differs from token" in refusal(fake, chat)


def test_a_server_that_speaks_no_thinking(fake: FakeServer, chat: ChatFormat) -> None:
    fake.mode_of = lambda body: "non_thinking"  # type: ignore[method-assign]
    assert "builds the same prompt in both modes" in refusal(fake, chat)


def test_a_server_that_keeps_its_reasoning(fake: FakeServer, chat: ChatFormat) -> None:
    fake.reply = lambda messages, mode: {"role": "assistant", "content": "Seven."}
    real = fake.complete

    def long(body: dict[str, Any]) -> Any:
        status, answer = real(body)
        answer["usage"]["completion_tokens"] = 500
        return status, answer

    fake.complete = long  # type: ignore[method-assign]
    assert "keeps the reasoning to itself" in refusal(fake, chat)


def test_a_server_that_says_nothing_about_its_prompts(fake: FakeServer, chat: ChatFormat) -> None:
    fake.tokenize = fake.usage = False
    assert "evaluation.server.check_prompts=false" in refusal(fake, chat)


@pytest.mark.parametrize("body", ["<html>Welcome</html>", {"choices": []}, {"choices": [{}]}, [1], {"error": "x"}])
def test_something_else_that_answers(fake: FakeServer, chat: ChatFormat, body: Any) -> None:
    with opened(fake, chat) as engine:
        fake.before = lambda _: (200, body)
        with pytest.raises(UserError, match="does not answer as an OpenAI-compatible server does"):
            engine.replies(ASKED[:1], "thinking", SAMPLING, 1)


def test_a_request_that_is_refused_is_not_sent_again(fake: FakeServer, chat: ChatFormat) -> None:
    with opened(fake, chat) as engine:
        fake.asked.clear()
        fake.before = lambda body: (400, {"error": {"message": "maximum context length is 64"}})
        with pytest.raises(UserError, match="refuses .*context length is 64.*server.kind=vllm"):
            engine.replies(ASKED[:1], "thinking", SAMPLING, 1)
        assert len(fake.asked) == 1


def test_a_key_comes_from_the_environment_and_is_never_shown(
    fake: FakeServer, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.key = KEY
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "asks for a key; put it into the environment variable OPENAI_API_KEY" in refusal(fake, chat, key=None)
    monkeypatch.setenv("MY_KEY", KEY)
    with opened(fake, chat, key=None, api_key_env="MY_KEY") as engine:
        assert len(engine.replies(ASKED[:2], "thinking", SAMPLING, 1)) == 2
        fake.before = lambda body: (500, f"your key {KEY} broke it")
        with pytest.raises(UserError) as caught:
            engine.replies(ASKED[:1], "thinking", SAMPLING, 1)
        assert "your key *** broke it" in str(caught.value)
    monkeypatch.setenv("MY_KEY", KEY + "x")
    words = refusal(fake, chat, key=None, api_key_env="MY_KEY")
    assert "refuses the key in the environment variable MY_KEY" in words
    monkeypatch.setenv("MY_KEY", "two\nlines")
    assert "is no key" in refusal(fake, chat, key=None, api_key_env="MY_KEY")
    assert KEY not in caplog.text + words


@pytest.mark.parametrize(
    ("engine", "changes", "words"),
    [
        ("server", {}, "needs evaluation.server.url"),
        ("server", {"url": "http://h/v1"}, "needs evaluation.server.base_model"),
        ("server", {"url": "h:8000", "base_model": "b"}, "is no address"),
        ("server", {"url": "http://me:secret@h/v1", "base_model": "b"}, "holds a login"),
        (
            "server",
            {"url": "http://h/v1", "base_model": "b", "thinking": {"x": 1}, "non_thinking": {"x": 1}},
            "are the same",
        ),
        ("vllm", {"url": "http://h/v1"}, "starts its own server"),
        ("sever", {}, "engine"),
    ],
)
def test_settings_that_contradict_each_other(engine: str, changes: dict[str, Any], words: str) -> None:
    sampling = {"thinking": SAMPLING.model_dump(), "non_thinking": SAMPLING.model_dump()}
    data = {"benchmarks": ["gsm8k"], "sampling": sampling, "engine": engine, "server": changes}
    with pytest.raises(UserError, match=words) as caught:
        parse(EvaluationSettings, data, "profile")
    assert "secret" not in str(caught.value)


def test_an_engine_says_what_it_is(fake: FakeServer, chat: ChatFormat) -> None:
    engine = ServerEngine(settings(fake), "base", chat.tokenizer, chat.prompt_ids, "")
    assert engine.identity == {"engine": "server", "kind": "vllm", "model": "base"}
    engine.positions = 20
    with pytest.raises(UserError, match="longest prompt of the evaluation"):
        engine.require_room(ASKED, "thinking", SAMPLING)
