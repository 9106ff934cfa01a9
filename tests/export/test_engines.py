"""llama.cpp's server as an engine: all tokens of a reply, also those that end within a character."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pipeline.export import requirements
from pipeline.export.engines import LlamaCpp, Transformers, aligned, token_log_probs
from pipeline.export.gguf import write_gguf
from pipeline.export.processes import llama_server
from pipeline.settings import Sampling

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ["请把“桌子”翻译成英语。", "What is 17 + 25?", "Hi, I am Ana.", "“冷”的反义词是什么？"]


def test_a_token_that_the_server_leaves_out_has_no_probability() -> None:
    known = [{"id": 5, "logprob": -1.0}, {"id": 7, "logprob": -2.0}]
    assert aligned([5, 6, 7], known) == [-1.0, None, -2.0]
    assert aligned([6, 5], known) == [None, -1.0] and aligned([6], []) == [None]


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in requirements.PACKAGES),
    reason="llama.cpp is not installed (requirements-export.txt)",
)
def test_llama_cpp_replies_as_transformers(embedded_tokenizer: Any, tmp_path: Path) -> None:
    """The shipped model in f16 and in 32 bit writes the same; characters of several tokens are among it."""
    import torch
    from transformers import AutoModelForCausalLM

    base = ROOT / "models" / "embedded"
    file = write_gguf(base, tmp_path, "base", tmp_path / "log", ("f16",))["f16"]
    sampling = Sampling.model_validate({"temperature": 0, "top_p": 1, "top_k": 0, "max_new_tokens": 48})
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    here = Transformers(model, embedded_tokenizer, 8, 1)
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    with llama_server(
        file, tmp_path / "log", ["--raw", "--context", "256", "--parallel", "2", "--threads", "1"]
    ) as address:
        there = LlamaCpp(address, embedded_tokenizer, 2)
        assert there.ends() == [embedded_tokenizer.eos_token_id]
        for mode in ("thinking", "non_thinking"):
            assert [there.prompt(m, mode) for m in conversations] == [here.prompt(m, mode) for m in conversations]
            pairs = list(
                zip(
                    here.answers(conversations, mode, sampling),
                    there.answers(conversations, mode, sampling),
                    strict=True,
                )
            )
            assert [b.reply for _, b in pairs] == [a.reply for a, _ in pairs]
            for a, b in pairs:
                assert all(
                    q is None or q == pytest.approx(p, abs=0.01) for p, q in zip(a.log_probs, b.log_probs, strict=True)
                )
            assert any(q is None for _, b in pairs for q in b.log_probs)  # such a token was among them


def test_log_probs_do_not_depend_on_the_company(tiny_qwen3: Any) -> None:
    model = tiny_qwen3(1).eval()
    prompts, replies = [[5, 6, 7], [8], [9, 10]], [[11], [12, 13, 14, 15], [16, 17]]
    together = token_log_probs(model, prompts, replies, 3)
    alone = [token_log_probs(model, [p], [r], 1)[0] for p, r in zip(prompts, replies, strict=True)]
    assert [len(row) for row in together] == [1, 4, 2]
    for row, other in zip(together, alone, strict=True):
        assert row == pytest.approx(other, abs=1e-5)
