"""Starting, asking and stopping vLLM: a program in its place that is told the same and listens as it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES
from pipeline.data.chat_format import ChatFormat
from pipeline.model.engines import guard
from pipeline.model.engines.check import PROBES
from pipeline.model.engines.vllm import command_of, require_served, serve_arguments, vllm_engine
from pipeline.settings import Profile, load_profile

ROOT = Path(__file__).resolve().parents[2]
ASKED = [{"role": "user", "content": "Hello?"}]
# What stands in the place of `vllm`: answers with what its command line and environment say; the first argument is how it fails.
PROGRAM = """#!{python}
import json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

words, how, folder = sys.argv[1:], "{how}", "{folder}"
json.dump({{"words": words, "path": os.environ.get("PYTHONPATH")}}, open(folder + "/told.json", "w"))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # vLLM has a process for its engine, too
json.dump([os.getpid(), child.pid], open(folder + "/pids.json", "w"))
if how == "fails":
    print("ValueError: the model does not fit")
    sys.exit(3)
if how == "never ready":
    time.sleep(600)
if how == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
get = lambda name: words[words.index(name) + 1]
prompts = json.load(open(folder + "/prompts.json"))
names = [get("--served-model-name")] + ([get("--lora-modules").split("=")[0]] if "--lora-modules" in words else [])


class Handler(BaseHTTPRequestHandler):
    def answer(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        status, content = 200, {{}}
        if self.path == "/health":
            pass
        elif self.headers.get("Authorization") != "Bearer " + os.environ["VLLM_API_KEY"]:
            status = 401
        elif self.path == "/v1/models":
            content = {{"data": [{{"id": name, "max_model_len": int(get("--max-model-len"))}} for name in names]}}
        elif self.path == "/tokenize":
            mode = "thinking" if body["chat_template_kwargs"]["enable_thinking"] else "non_thinking"
            content = {{"tokens": prompts[json.dumps([body["messages"], mode])]}}
        elif how == "dies":
            print("RuntimeError: out of luck", *["leaked instance"] * 30, sep="\\n", flush=True)
            os._exit(5)
        else:
            content = {{"choices": [{{"finish_reason": "stop", "message": {{"content": "I am " + body["model"]}}}}]}}
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer


ThreadingHTTPServer((get("--host"), int(get("--port"))), Handler).serve_forever()
"""


@pytest.fixture
def chat(embedded_tokenizer: Any) -> ChatFormat:
    return ChatFormat(embedded_tokenizer)


def program(folder: Path, chat: ChatFormat, how: str = "") -> Path:
    prompts = {json.dumps([probe, mode]): chat.prompt_ids(probe, mode) for probe in PROBES for mode in MODES}  # type: ignore[arg-type]
    (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    path = folder / "vllm"
    path.write_text(PROGRAM.format(python=sys.executable, how=how, folder=folder), encoding="utf-8")
    path.chmod(0o755)
    return path


def profile_with(path: Path, *sets: str) -> Profile:
    return load_profile("embedded", ["evaluation.engine=vllm", f"evaluation.vllm.executable={path}", *sets])


def alive(folder: Path) -> list[int]:
    found = []
    for pid in json.loads((folder / "pids.json").read_text()):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        found += [pid] if state != "Z" else []
    return found


def wait_until_gone(folder: Path, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while alive(folder):
        assert time.monotonic() < deadline, "a process of the server was left behind"
        time.sleep(0.05)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here to see what is alive")


@needs_proc
def test_it_is_started_asked_and_stopped_with_all_its_processes(
    tmp_path: Path, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/this/environment")
    profile = profile_with(program(tmp_path, chat))
    sampling, log = profile.evaluation.sampling.thinking, tmp_path / "logs" / "vllm.log"
    for adapter, name in ((None, "base"), (tmp_path / "adapter", "tuned")):
        with vllm_engine(profile, "models/x", adapter, 1024, chat.tokenizer, chat.prompt_ids, log) as engine:
            assert len(alive(tmp_path)) == 2
            assert engine.replies([ASKED], "thinking", sampling, 1)[0].text == f"I am {name}"
            assert engine.positions == 256 + 160 and engine.identity["engine"] == "vllm"
        wait_until_gone(tmp_path)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["path"] is None and told["words"][:2] == ["serve", "models/x"]
    assert told["words"][told["words"].index("--host") + 1] == "127.0.0.1"
    assert log.exists() and not any("key" in word for word in told["words"])


@needs_proc
def test_it_is_stopped_when_the_evaluation_fails(tmp_path: Path, chat: ChatFormat) -> None:
    profile = profile_with(program(tmp_path, chat))
    with (
        pytest.raises(KeyboardInterrupt),
        vllm_engine(profile, "m", None, None, chat.tokenizer, chat.prompt_ids, tmp_path / "log"),
    ):
        raise KeyboardInterrupt
    wait_until_gone(tmp_path)


@needs_proc
@pytest.mark.parametrize(
    ("how", "seconds", "words"),
    [
        ("fails", 60, r"vLLM ended before it was ready \(exit status 3\).*\n(.*\n)*ValueError: the model does not fit"),
        ("never ready", 1.5, r"was not ready within 1.5 s \(evaluation.vllm.startup_s\)"),
    ],
)
def test_a_server_that_does_not_start(tmp_path: Path, chat: ChatFormat, how: str, seconds: float, words: str) -> None:
    profile = profile_with(program(tmp_path, chat, how), f"evaluation.vllm.startup_s={seconds}")
    with (
        pytest.raises(UserError, match=words),
        vllm_engine(profile, "m", None, None, chat.tokenizer, chat.prompt_ids, tmp_path / "log"),
    ):
        pass
    wait_until_gone(tmp_path)


@needs_proc
def test_a_server_that_ends_while_it_is_asked(tmp_path: Path, chat: ChatFormat) -> None:
    profile = profile_with(program(tmp_path, chat, "dies"), "evaluation.server.retries=0")
    sampling = profile.evaluation.sampling.thinking
    words = r"vLLM ended while it was asked \(exit status 5\). It said: RuntimeError: out of luck\n(.*\n)*.*--resume"
    with (
        pytest.raises(UserError, match=words),
        vllm_engine(profile, "m", None, 1024, chat.tokenizer, chat.prompt_ids, tmp_path / "log") as engine,
    ):
        engine.replies([ASKED], "thinking", sampling, 1)
    wait_until_gone(tmp_path)


@needs_proc
def test_a_stubborn_one_is_ended_after_a_while(tmp_path: Path, chat: ChatFormat) -> None:
    program(tmp_path, chat, "stubborn")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pipeline.model.engines import guard; "
    code += "guard.PATIENCE_SECONDS = 0.3; "
    code += "sys.exit(guard.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(tmp_path / "vllm"), "serve", "m", "--host", "127.0.0.1", "--port", "0"]
    command += ["--served-model-name", "base"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pids.json").exists() or not (tmp_path / "pids.json").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(15)
    wait_until_gone(tmp_path)


@needs_proc
def test_nothing_is_left_when_the_process_that_started_it_is_killed(tmp_path: Path, chat: ChatFormat) -> None:
    program(tmp_path, chat, "never ready")
    code = "import subprocess, sys, time; "
    code += "subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True); time.sleep(600)"
    words = [sys.executable, str(guard.__file__), str(tmp_path / "vllm"), "serve"]
    with subprocess.Popen([sys.executable, "-c", code, *words]) as process:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pids.json").exists() or not (tmp_path / "pids.json").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    wait_until_gone(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent is gone")
def test_nothing_is_left_when_the_guard_itself_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    command = [sys.executable, str(guard.__file__), sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not note.exists() or not note.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
        process.wait()
    while psutil.pid_exists(int(note.read_text())):
        assert time.monotonic() < deadline + 20
        time.sleep(0.05)


def test_what_it_is_told() -> None:
    profile = load_profile("qwen3-8b", ["evaluation.engine=vllm", "lora.rank=24", "model.revision=abc"])
    words = serve_arguments(profile, "Qwen/Qwen3-8B", Path("/run/adapter"), 8192)
    text = " ".join(words)
    assert text.startswith("Qwen/Qwen3-8B --served-model-name base --max-model-len 8192 ")
    assert "--quantization bitsandbytes" in text and "--revision abc" in text
    assert "--enable-lora --max-lora-rank 32 --lora-modules tuned=/run/adapter" in text
    assert "lora" not in " ".join(serve_arguments(profile, "m", None, None))
    plain = load_profile(
        "qwen3-8b", ["evaluation.vllm.quantization=none", "evaluation.vllm.arguments=[--enforce-eager]"]
    )
    words = serve_arguments(plain, "m", None, None)
    assert "bitsandbytes" not in words and words[-1] == "--enforce-eager"
    full = load_profile("embedded", ["method=full"])
    assert serve_arguments(full, "m", Path("/run/adapter"), None)[:3] == [
        "/run/adapter",
        "--served-model-name",
        "tuned",
    ]


def test_what_it_cannot_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="method prefix; set evaluation.engine=transformers"):
        require_served(load_profile("embedded", ["method=prefix", "evaluation.engine=vllm"]))
    with pytest.raises(UserError, match="is not there, or no program. Make an environment"):
        require_served(load_profile("embedded", [f"evaluation.vllm.executable={tmp_path / 'vllm'}"]))
    uvx = tmp_path / "uvx"
    uvx.write_text("#!/bin/sh\n")
    uvx.chmod(0o755)
    profile = load_profile("embedded", [f"evaluation.vllm.executable={uvx}", "evaluation.vllm.version=0.20.0"])
    assert command_of(profile.evaluation.vllm) == [str(uvx), "--from", "vllm==0.20.0", "vllm", "serve"]
