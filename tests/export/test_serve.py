"""``serve``: a real server on a tiny run, both modes through the openai client, and what keeps one from starting."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.export import requirements, serve
from pipeline.export.serve import KEY, Serving

ROOT = Path(__file__).resolve().parents[2]
QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]
needs_llama_cpp = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in requirements.PACKAGES),
    reason="llama.cpp is not installed (requirements-export.txt)",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(
    tiny_run: Path, tmp_path_factory: pytest.TempPathFactory, warm_python: str, environment: dict[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The address of llama.cpp's server on the tiny run, behind a key; it has to stop by SIGTERM with 0."""
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    arguments = ["--port", str(port), "--export-dir", str(folder), "--context", "512", "--parallel", "2"]
    process = subprocess.Popen(
        [warm_python, "-m", "pipeline", "serve", str(tiny_run), *arguments],
        cwd=ROOT,
        env=environment | {KEY: "a-key-for-the-test"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        assert f"http://127.0.0.1:{port}/v1, model tuned" in line, process.stderr.read()
        yield f"http://127.0.0.1:{port}/v1", json.loads(process.stdout.readline().split(" -d ")[1].strip()[1:-1])
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stdout.close()
        process.stderr.close()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0  # nothing of it is left


def client(address: str, key: str = "a-key-for-the-test") -> Any:
    import openai

    return openai.OpenAI(base_url=address, api_key=key, max_retries=0)


@pytest.mark.slow
@needs_llama_cpp
def test_both_modes_by_request(served: tuple[str, dict[str, Any]]) -> None:
    address, body = served
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    chat = client(address).chat.completions
    options: dict[str, Any] = {"model": "tuned", "messages": QUESTION, "temperature": 0, "max_tokens": 120}
    for thinking in (True, False):
        extra = {"chat_template_kwargs": {"enable_thinking": thinking}}
        message = chat.create(**options, extra_body=extra).choices[0].message.model_dump()
        assert bool(message.get("reasoning_content")) == thinking, message
        assert message["content"] and "think>" not in message["content"]
        streamed = {"reasoning_content": "", "content": ""}
        for chunk in chat.create(**options, extra_body=extra, stream=True):
            delta = chunk.choices[0].delta.model_dump() if chunk.choices else {}
            for key in streamed:
                streamed[key] += delta.get(key) or ""
        assert streamed == {key: message.get(key) or "" for key in streamed}


@pytest.mark.slow
@needs_llama_cpp
def test_what_a_client_does_wrong_gets_an_error(served: tuple[str, dict[str, Any]]) -> None:
    import openai

    with pytest.raises(openai.AuthenticationError):
        client(served[0], "another").chat.completions.create(model="tuned", messages=QUESTION)  # type: ignore[arg-type]
    long: Any = [{"role": "user", "content": "17 + 25 " * 1000}]
    with pytest.raises(openai.BadRequestError, match="exceed"):
        client(served[0]).chat.completions.create(model="tuned", messages=long)
    client(served[0]).chat.completions.create(model="tuned", messages=QUESTION, max_tokens=2)  # type: ignore[arg-type]


@pytest.mark.slow
@needs_llama_cpp
def test_a_thinking_budget_in_two_requests(
    served: tuple[str, dict[str, Any]], tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real server: the reply is that without a budget up to where it is spent, then the end of the thought."""
    from pipeline.data.chat_format import ChatFormat
    from pipeline.export.source import open_source
    from pipeline.model.engines.server import server_engine
    from pipeline.model.thinking_budget import Budget
    from pipeline.settings import Sampling, ServerSettings

    tokenizer = open_source(tiny_run).tokenizer()
    settings = ServerSettings(url=served[0], kind="llamacpp", base_model="tuned")  # type: ignore[call-arg]
    greedy = Sampling(temperature=0, top_p=1, top_k=0, max_new_tokens=150)
    with server_engine(settings, "tuned", tokenizer, ChatFormat(tokenizer).prompt_ids, "a-key-for-the-test") as engine:
        (free,) = engine.replies([QUESTION], "thinking", greedy, 1)
        (limited,) = engine.replies([QUESTION], "thinking", greedy, 1, thinking_budget=6)
        (direct,) = engine.replies([QUESTION], "non_thinking", greedy, 1, thinking_budget=6)
    budget = Budget(tokenizer, 6)
    before, closing, answer = limited.text.partition(budget.text)
    assert closing and answer.strip() and free.text.startswith(before)
    assert len(tokenizer(before)["input_ids"]) == budget.due("")
    assert budget.text not in free.text and "think>" not in direct.text


def test_a_port_in_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be used .*choose another --port"):
            serve.require_place(Serving("llama.cpp", port=port))
    serve.require_place(Serving("llama.cpp", port=port))


def test_another_host_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    open_host = Serving("llama.cpp", host="0.0.0.0", port=free_port())
    with pytest.raises(UserError, match=f"set the environment variable {KEY}"):
        serve.require_place(open_host)
    monkeypatch.setenv(KEY, "a-key-for-the-test")
    serve.require_place(open_host)
    with pytest.raises(UserError, match="transformers serve knows no keys"):
        serve.require_place(Serving("transformers", host="0.0.0.0", port=free_port()))


@pytest.mark.parametrize(
    ("host", "own"), [("127.0.0.1", True), ("127.0.0.9", True), ("::1", True), ("localhost", True), ("10.0.0.1", False)]
)
def test_loopback(host: str, own: bool) -> None:
    assert serve.is_loopback(host) is own


@pytest.mark.parametrize(("engine", "package"), [("transformers", "'transformers[serving]'"), ("llama.cpp", "-r ")])
def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, engine: str, package: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        serve.require_installed(engine)
    assert f"-m pip install {package}" in str(error.value)


def test_a_small_model_is_computed_by_one_thread() -> None:
    from pipeline.export.llama_server import SMALL, threads_for

    assert threads_for(4 * 2**20) == threads_for(SMALL - 1) == 1
    assert threads_for(SMALL) >= 1


@pytest.fixture
def vllm(tmp_path: Path) -> str:
    """A program that stands for vLLM's; nothing here starts it."""
    path = tmp_path / "environment" / "bin" / "vllm"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_vllm_is_a_program_of_another_environment(tiny_run: Path, vllm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.export.source import open_source

    source = open_source(tiny_run)
    assert serve.command(Serving("vllm", vllm=vllm), source, "tuned", Path("m"))[:2] == [vllm, "serve"]
    with pytest.raises(UserError, match="--vllm: '/no/vllm' is not there.*DIR/bin/pip install vllm"):
        serve.serve(tiny_run, Serving("vllm", port=free_port(), vllm="/no/vllm"), tiny_run / "export", print)
    monkeypatch.setenv("PATH", str(Path(vllm).parent))
    assert serve.vllm_program(Serving("vllm"), source) == [vllm, "serve"]
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="evaluation.vllm.executable: 'vllm' is not there"):
        serve.vllm_program(Serving("vllm"), source)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--vllm", "/x/vllm"], "--vllm is the program of --engine vllm; given: --engine llama.cpp"),
        (["--engine", "vllm", "--threads", "2"], "--threads is of llama.cpp; vllm has settings of its own"),
        (["--engine", "vllm", "--also", "maths"], "--also needs NAME=RUN; given: maths"),
    ],
)
def test_options_of_another_engine(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli.main import main

    assert main(["serve", "RUN", *options]) == 2
    assert said in capsys.readouterr().err


def test_several_adapters_on_one_base(tiny_run: Path, tmp_path: Path, vllm: str) -> None:
    from pipeline.export.source import open_source

    other = shutil.copytree(tiny_run, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints", "evaluation"))
    source = open_source(tiny_run)
    serving = Serving("vllm", context=64, vllm=vllm, also=(("maths", other),))
    assert list(serve.adapters_of(serving, source)) == ["tuned", "maths"]
    words = serve.command(serving, source, "tuned", None)
    place = words.index("--lora-modules")
    assert words[place + 1 : place + 3] == [f"tuned={tiny_run.resolve()}/adapter", f"maths={other.resolve()}/adapter"]
    assert words[words.index("--served-model-name") + 1] == "base" and words[words.index("--max-lora-rank") + 1] == "32"
    assert (
        words[words.index("--max-loras") + 1] == "3"
    )  # one more: else the base's requests get the last adapter on a processor
    assert words[words.index("serve") + 1].endswith("models/embedded")
    assert Path(words[words.index("--chat-template") + 1]).is_file()
    for engine in ("llama.cpp", "transformers"):
        with pytest.raises(UserError, match=f"{engine} knows no adapters by the model's name"):
            serve.adapters_of(Serving(engine, also=(("maths", other),)), source)
    for name in ("tuned", "base"):
        with pytest.raises(UserError, match="that name is taken"):
            serve.adapters_of(Serving("vllm", also=((name, other),)), source)
    with pytest.raises(UserError, match="no run directory"):
        serve.adapters_of(Serving("vllm", also=(("maths", tmp_path),)), source)
    record = json.loads((other / "adapter" / "method.json").read_text())
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"base": {"a": 1}}, "another base"),
        ({"method": "dora"}, "cannot serve method dora"),
    )
    for change, words_of_it in changes:
        (other / "adapter" / "method.json").write_text(json.dumps(record | change))
        with pytest.raises(UserError, match=words_of_it):
            serve.adapters_of(serving, source)


def test_a_key_is_on_no_command_line(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path, vllm: str
) -> None:
    from pipeline.export.source import open_source

    monkeypatch.setenv(KEY, "a-key-for-the-test")
    source = open_source(tiny_run)
    for engine in serve.ENGINES:
        words = serve.command(Serving(engine, context=64, vllm=vllm), source, "tuned", tmp_path)
        assert not [word for word in words if "a-key-for-the-test" in word]
        assert str(tmp_path) in words and "8000" in words and "--threads" not in words
    words = serve.command(Serving("llama.cpp", context=64, threads=2), source, "tuned", tmp_path)
    assert words[words.index("--threads") + 1] == "2"
    assert "qwen3" in serve.command(Serving("vllm", vllm=vllm), source, "tuned", tmp_path)
