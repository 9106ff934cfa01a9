"""``serve --engine vllm`` with a real vLLM: the base and two adapters in one batch, each reply by the model that was asked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.export.test_serve import ROOT, client, free_port

NAMES = ("base", "tuned", "other")
QUESTIONS = [f"What is {number} + {number + 3}?" for number in range(20, 28)]
SECONDS = 300

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        not os.environ.get("TEST_VLLM"),
        reason="TEST_VLLM names no vllm executable; it lives in an environment of its own",
    ),
]


@pytest.fixture(scope="module")
def address(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[str]:
    """A server of the base and of two copies of the tiny run, each with an adapter of its own."""
    from safetensors.torch import load_file, save_file

    folder, port = tmp_path_factory.mktemp("vllm"), free_port()
    runs = []
    for name, times in (("tuned", 10), ("other", -20)):  # trained for a few steps, it would answer as its base
        runs.append(
            shutil.copytree(tiny_run, folder / name, ignore=shutil.ignore_patterns("checkpoints", "evaluation"))
        )
        weights = runs[-1] / "adapter" / "adapter_model.safetensors"
        save_file({key: times * tensor for key, tensor in load_file(weights).items()}, weights)
    run, other = runs
    words = ["serve", str(run), "--engine", "vllm", "--vllm", os.environ["TEST_VLLM"], "--port", str(port)]
    words += ["--also", f"other={other}", "--context", "512"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=ROOT,
        env=environment | {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert f"http://127.0.0.1:{port}/v1" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        process.stdout.close()


def ask(server: Any, name: str, question: str) -> str:
    reply = server.chat.completions.create(
        model=name,
        messages=[{"role": "user", "content": question}],
        max_tokens=24,
        temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    return str(reply.choices[0].message.content)


def test_each_model_answers_for_itself(address: str) -> None:
    server = client(address)
    alone = {(name, question): ask(server, name, question) for name in NAMES for question in QUESTIONS}
    assert len({tuple(alone[name, question] for question in QUESTIONS) for name in NAMES}) == 3  # three models
    asked = [key for _ in range(4) for key in alone]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda key: ask(server, *key), asked))
    same = sum(reply == alone[key] for key, reply in zip(asked, together, strict=True))
    mixed_up = [
        (key, reply)
        for key, reply in zip(asked, together, strict=True)
        if reply != alone[key] and reply in {alone[name, key[1]] for name in NAMES}
    ]
    assert mixed_up == [] and same >= 0.9 * len(asked)  # a near tie may fall otherwise in a batch
