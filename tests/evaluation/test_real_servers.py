"""Scores by a real server against those of this process, with the embedded model, base and adapter, in both modes."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.files import read_jsonl
from pipeline.core.modes import MODES
from pipeline.data.chat_format import ChatFormat
from pipeline.evaluation.evaluate import evaluate_engine
from pipeline.model.engines import guard
from pipeline.model.engines.local import local_engine
from pipeline.model.engines.server import server_engine
from pipeline.model.engines.vllm import vllm_engine
from pipeline.settings import load_profile

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "embedded"
N, FEW = 40, 15  # items a benchmark, sampled and greedy
SETS = [
    "evaluation.benchmarks=[embedded_chat, embedded_arithmetic]",
    f"evaluation.limit={N}",
    "model.load_in_4bit=false",
]
GREEDY = [f"evaluation.limit={FEW}", *(f"evaluation.sampling.{mode}.temperature=0" for mode in MODES)]

pytestmark = [pytest.mark.nightly]


@contextlib.contextmanager
def transformers_serve(log: Path) -> Iterator[str]:
    """The address of a server that loads a folder when it is first asked for it."""
    lacking = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"`transformers serve` needs {' and '.join(lacking)}, which are not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [sys.executable, str(guard.__file__), str(program), "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
        )
    assert process.stdin is not None
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(f"{url}/health", timeout=2),
            ):
                break
            time.sleep(0.5)
        yield f"{url}/v1"
    finally:
        process.stdin.close()
        process.wait(60)


def in_process(folder: Path, adapter: Path | None, sets: list[str]) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = load_profile("embedded", [*SETS, *sets]).evaluation
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    with local_engine(model, tokenizer, ChatFormat(tokenizer).prompt_ids, settings) as engine:
        return evaluate_engine(engine, "here", settings, folder, progress=False)


def merged(adapter: Path, folder: Path) -> Path:
    """The base with the adapter in its weights: `transformers serve` has no other way to serve an adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"), adapter)
    model.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return folder


def texts(folder: Path, mode: str) -> list[str]:
    return [row["reply"] for row in read_jsonl(folder / mode / "predictions.jsonl")]


def within(one: float, other: float, n: int) -> bool:
    """Whether two rates of n replies each could be of one model: their difference within 95 %, each mode and number apart."""
    pooled = (one + other) / 2
    return abs(one - other) <= 1.96 * math.sqrt(2 * max(pooled * (1 - pooled), 0.25 / n) / n)


@pytest.mark.parametrize("which", ["base", "tuned"])
def test_transformers_serve(
    which: str, tmp_path: Path, request: pytest.FixtureRequest, embedded_tokenizer: Any
) -> None:
    adapter = None if which == "base" else request.getfixturevalue("tiny_run") / "adapter"
    name = str(MODEL if adapter is None else merged(adapter, tmp_path / "merged"))
    with transformers_serve(tmp_path / "log") as url:
        for kind, sets, n in (("greedy", GREEDY, FEW), ("sampled", [], N)):
            words = [f"evaluation.server.url={url}", f"evaluation.server.base_model={name}"]
            words += ["evaluation.server.kind=transformers", "evaluation.engine=server"]
            profile = load_profile("embedded", [*SETS, *sets, *words])
            prompts = ChatFormat(embedded_tokenizer).prompt_ids
            with server_engine(profile.evaluation.server, name, embedded_tokenizer, prompts, "") as engine:
                there = evaluate_engine(engine, "there", profile.evaluation, tmp_path / kind / "there", progress=False)
            here = in_process(tmp_path / kind / "here", adapter, sets)
            for mode in MODES:
                if kind == "greedy":  # the same text, but where rounding decides between two tokens
                    mine, theirs = (texts(tmp_path / kind / side, mode) for side in ("here", "there"))
                    assert sum(a == b for a, b in zip(mine, theirs, strict=True)) >= 0.96 * 2 * n
                for key in ("mode_fidelity", "opened", "closed", "truncated"):
                    assert within(here[mode][key], there[mode][key], 2 * n), (kind, mode, key)
                for benchmark, score in here[mode]["benchmarks"].items():
                    other = there[mode]["benchmarks"][benchmark]["score"]
                    assert within(score["score"], other, n), (kind, mode, benchmark)
                length = here[mode]["mean_reasoning_tokens"]
                assert there[mode]["mean_reasoning_tokens"] == pytest.approx(length, rel=0.15, abs=1)


def test_vllm(tmp_path: Path, tiny_run: Path, embedded_tokenizer: Any) -> None:
    executable = os.environ.get("TEST_VLLM")
    if not executable:
        pytest.skip("TEST_VLLM names no vllm executable; it lives in an environment of its own")
    words = ["evaluation.engine=vllm", f"evaluation.vllm.executable={executable}", "evaluation.vllm.dtype=float32"]
    profile = load_profile("embedded", [*SETS, *words])
    prompts = ChatFormat(embedded_tokenizer).prompt_ids
    for which, adapter in (("base", None), ("tuned", tiny_run / "adapter")):
        with vllm_engine(
            profile, str(MODEL), adapter, 1024, embedded_tokenizer, prompts, tmp_path / "vllm.log"
        ) as engine:
            there = evaluate_engine(engine, "there", profile.evaluation, tmp_path / which / "there", progress=False)
        here = in_process(tmp_path / which / "here", adapter, [])
        for mode in MODES:
            assert within(here[mode]["mode_fidelity"], there[mode]["mode_fidelity"], 2 * N)
            for benchmark, score in here[mode]["benchmarks"].items():
                assert within(score["score"], there[mode]["benchmarks"][benchmark]["score"], N), (
                    which,
                    mode,
                    benchmark,
                )
