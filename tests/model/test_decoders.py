"""Decoding in several processes: the same replies as in one, also where a process dies."""

from __future__ import annotations

import os
import random
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.model import decode
from pipeline.model.decode import generate
from pipeline.model.decoders import deal, decoders
from pipeline.settings import Sampling

SAMPLED = Sampling(temperature=0.9, top_p=0.95, top_k=20, max_new_tokens=12)


@pytest.fixture(scope="module")
def model(embedded_tokenizer, tiny_qwen3):
    return tiny_qwen3(
        1, max_position_embeddings=128, initializer_range=0.2, pad_token_id=embedded_tokenizer.pad_token_id
    )


@pytest.fixture(scope="module")
def prompts():
    r = random.Random(0)
    some = [[r.randrange(1000) for _ in range(r.randrange(3, 30))] for _ in range(7)]
    return [*some, some[2], some[2]]  # equal prompts get replies of their own


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=20), st.integers(1, 4))
def test_every_prompt_is_dealt_once_and_equal_ones_together(prompts, count):
    parts = deal(prompts, count)
    assert len(parts) == count
    assert sorted(place for part in parts for place in part) == list(range(len(prompts)))
    for part in parts:
        for place in part:
            assert {i for i, p in enumerate(prompts) if p == prompts[place]} <= set(part)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_replies_are_those_of_one_process(model, embedded_tokenizer, prompts, count):
    alone = generate(model, embedded_tokenizer, prompts, SAMPLED, 4, seed=5)
    with decoders(model, embedded_tokenizer, count) as decoding:
        assert decoding.generate(prompts, SAMPLED, 4, seed=5) == alone
        assert decoding.generate(prompts[:1], SAMPLED, 4, seed=5) == alone[:1]
        assert decoding.generate([], SAMPLED, 4, seed=5) == []
        told: dict[int, object] = {}
        decoding.generate(prompts, SAMPLED, 4, 5, lambda place, reply: told.update({place: reply}))
        assert [told[place] for place in range(len(prompts))] == alone


def test_processes_start_after_several_threads_were_at_work(model, embedded_tokenizer, prompts, monkeypatch):
    """As after a training: a forked process must not wait for threads that it does not have."""
    import torch

    monkeypatch.setattr(decode, "_ONE_THREAD_BELOW", 0)
    alone = generate(model, embedded_tokenizer, prompts, SAMPLED, 4, seed=5)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            wide = torch.ones(2000, 300, dtype=dtype)
            (wide @ wide.T).exp().sum()
        with decoders(model, embedded_tokenizer, 2) as decoding:
            assert decoding.generate(prompts, SAMPLED, 4, seed=5) == alone
            assert len(decoding.others) == 1  # it has not been given up
    finally:
        torch.set_num_threads(threads)


def test_a_process_that_dies_is_replaced_by_this_one(model, embedded_tokenizer, prompts, capsys):
    import multiprocessing

    alone = generate(model, embedded_tokenizer, prompts, SAMPLED, 4, seed=5)
    with decoders(model, embedded_tokenizer, 2) as decoding:
        (child,) = multiprocessing.active_children()
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert decoding.generate(prompts, SAMPLED, 4, seed=5) == alone
        assert decoding.generate(prompts, SAMPLED, 4, seed=5) == alone
    assert "has died" in capsys.readouterr().err
    assert multiprocessing.active_children() == []


def test_an_error_of_another_process_is_one_of_this(model, embedded_tokenizer):
    with decoders(model, embedded_tokenizer, 2) as decoding, pytest.raises(UserError, match="context of 128"):
        decoding.generate([[1] * 3, [2] * 126], SAMPLED, 4, seed=5)
