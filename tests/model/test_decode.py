"""Decoding: batches, seeds, counts, and the form of replies. The model is tiny and untrained; its tokenizer is ours."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.model import batch, decode, room
from pipeline.model.attention import written_out_attention
from pipeline.model.batch import rows_join
from pipeline.model.decode import Request, answered, end_tokens, generate
from pipeline.model.draw import Draw
from pipeline.model.form import is_unclosed, judge, split_reply
from pipeline.model.room import cache_bytes, positions_of, rows_that_fit
from pipeline.model.rows import _selected
from pipeline.settings import Sampling

ROOT = Path(__file__).resolve().parents[2]
GREEDY = Sampling(temperature=0, top_p=1, top_k=0, max_new_tokens=24)
SAMPLED = Sampling(temperature=0.9, top_p=0.95, top_k=20, max_new_tokens=24)


@pytest.fixture(scope="module")
def tokenizer(embedded_tokenizer):
    return embedded_tokenizer


@pytest.fixture(scope="module")
def model(tokenizer, tiny_qwen3):
    pad = tokenizer.pad_token_id
    model = tiny_qwen3(1, max_position_embeddings=128, initializer_range=0.2, pad_token_id=pad)
    model.generation_config.update(do_sample=True, temperature=0.6, top_k=20, top_p=0.95)  # as Qwen3 ships it
    return model


@pytest.fixture(scope="module")
def prompts():
    r = random.Random(0)
    return [[r.randrange(1000) for _ in range(r.randrange(3, 30))] for _ in range(9)]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_reply_does_not_depend_on_its_batch(model, tokenizer, prompts, sampling):
    together = generate(model, tokenizer, prompts, sampling, 9, seed=5)
    assert generate(model, tokenizer, prompts, sampling, 1, seed=5) == together
    assert generate(model, tokenizer, prompts, sampling, 4, seed=5) == together
    assert generate(model, tokenizer, prompts[::-1], sampling, 9, seed=5) == together[::-1]


def test_the_output_layer_gets_memory_of_its_own(model, tokenizer, prompts):
    """A cut of all positions made torch copy the frozen weights of the output layer once for every row."""
    given, found = [], []
    cut = model.lm_head.register_forward_pre_hook(
        lambda _, inputs: found.append(inputs[0].is_contiguous()), prepend=True
    )
    own = model.lm_head.register_forward_hook(lambda _, inputs, __: given.append(inputs[0].is_contiguous()))
    try:
        generate(model, tokenizer, prompts, GREEDY, 9, seed=5)
    finally:
        cut.remove()
        own.remove()
    assert not found[0] and all(given)  # of 9 prompts, the first pass sees all positions
    assert not model.lm_head._forward_pre_hooks


def test_replies_follow_the_seed(model, tokenizer, prompts):
    first = generate(model, tokenizer, prompts, SAMPLED, 4, seed=5)
    assert generate(model, tokenizer, prompts, SAMPLED, 4, seed=5) == first
    other = generate(model, tokenizer, prompts, SAMPLED, 4, seed=6)
    assert sum(a.text != b.text for a, b in zip(first, other, strict=True)) >= 7


def test_copies_of_a_prompt_get_replies_of_their_own(model, tokenizer, prompts):
    replies = generate(model, tokenizer, [prompts[0]] * 4, SAMPLED, 4, seed=5)
    assert len({reply.text for reply in replies}) == 4
    assert replies[0] == generate(model, tokenizer, [prompts[0]], SAMPLED, 1, seed=5)[0]


def test_greedy_is_greedy(model, tokenizer, prompts):
    import torch

    reply = generate(model, tokenizer, [prompts[0]], GREEDY, 1, seed=0)[0]
    ids = torch.tensor([prompts[0] + reply.token_ids])
    with torch.no_grad():
        best = model(ids).logits[0, len(prompts[0]) - 1 : -1].argmax(-1).tolist()
    assert best == reply.token_ids


def test_counts_and_truncation(model, tokenizer, prompts, monkeypatch):
    # A token that this model says early in some replies, made an end token, ends those and no others.
    free = generate(model, tokenizer, prompts, GREEDY, 9, seed=0)
    end = free[0].token_ids[6]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [int(end), tokenizer.eos_token_id])
    ended = generate(model, tokenizer, prompts, GREEDY, 9, seed=0)
    assert not ended[0].truncated
    assert any(reply.truncated for reply in ended)
    for prompt, before, after in zip(prompts, free, ended, strict=True):
        assert after.prompt_tokens == len(prompt)
        assert after.output_tokens == len(after.token_ids)
        assert after.token_ids == before.token_ids[: after.output_tokens]
        assert after.truncated == (end not in after.token_ids)
        assert after.output_tokens == 24 or not after.truncated
        assert end not in after.token_ids[:-1]
        content = after.token_ids if after.truncated else after.token_ids[:-1]
        assert after.text == tokenizer.decode(content)
        assert after.reasoning_tokens + after.answer_tokens == len(content)


def test_think_tags_stay_in_the_text(model, tokenizer):
    from pipeline.model.decode import _reply
    from pipeline.model.thinking_style import thinking_style

    style, prompt = thinking_style(tokenizer), tokenizer("What is 2 + 2?")["input_ids"]
    text = "<think>\nDigits.\n</think>\n\nThe answer is 4."
    ids = tokenizer(text)["input_ids"]
    close = tokenizer.convert_tokens_to_ids("</think>")
    ends = end_tokens(model, tokenizer)
    reply = _reply(tokenizer, prompt, [*ids, tokenizer.eos_token_id], ends, style)
    assert reply.text == text
    assert not reply.truncated
    assert reply.output_tokens == len(ids) + 1
    assert reply.reasoning_tokens == ids.index(close) + 1
    assert reply.answer_tokens == len(ids) - reply.reasoning_tokens
    cut = _reply(tokenizer, prompt, ids[: ids.index(close)], ends, style)
    assert (cut.truncated, cut.reasoning_tokens, cut.answer_tokens) == (True, ids.index(close), 0)


def test_every_prompt_arrives_once(model, tokenizer, prompts):
    seen = []
    generate(model, tokenizer, prompts, GREEDY, 4, seed=0, arrived=lambda place, reply: seen.append(place))
    assert sorted(seen) == list(range(9))
    assert generate(model, tokenizer, [], GREEDY, 4, seed=0) == []


def test_each_of_several_processes_takes_one_thread(model, tokenizer, prompts, monkeypatch):
    import torch

    monkeypatch.setattr(decode, "_ONE_THREAD_BELOW", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for parts in (1, 2):
            seen: set[int] = set()
            request = Request(prompts[:2], GREEDY, 2, seed=0, parts=parts)
            answered(model, tokenizer, request, lambda place, reply, seen=seen: seen.add(torch.get_num_threads()))
            assert seen == {2 // parts}
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_model_and_the_random_states_are_left_as_they_were(model, tokenizer, prompts):
    import numpy
    import torch

    model.train()
    attention = model.config._attn_implementation
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    generate(model, tokenizer, prompts[:2], SAMPLED, 2, seed=0)
    assert (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert model.training and model.config._attn_implementation == attention
    ids = torch.tensor([prompts[0]])
    model(input_ids=ids, labels=ids).loss.backward()  # nothing made in inference mode is left in the graph
    model.zero_grad()
    model.eval()


def test_prompt_and_reply_have_limits_of_their_own(model, tokenizer, monkeypatch):
    with pytest.raises(UserError, match=r"Prompt 1 has 105 .*max_new_tokens=24 .* of 128"):
        generate(model, tokenizer, [[5], [5] * 105], GREEDY, 2, seed=0)
    with pytest.raises(UserError, match="Prompt 0 is empty"):
        generate(model, tokenizer, [[]], GREEDY, 2, seed=0)
    monkeypatch.setattr(model, "max_seq_length", 20, raising=False)
    with pytest.raises(UserError, match=r"Prompt 1 has 21 tokens, more than model.max_seq_length=20"):
        generate(model, tokenizer, [[5] * 20, [5] * 21], GREEDY, 2, seed=0)
    assert generate(model, tokenizer, [[5] * 20], GREEDY, 2, seed=0)[0].output_tokens == 24  # a reply goes beyond


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ending(model, tokenizer, prompts):
    """The model with more ends of a reply, so that replies end at all times; and 16 prompts."""
    kept = model.generation_config.eos_token_id
    ids = [i for reply in generate(model, tokenizer, prompts[:2], SAMPLED, 2, seed=1) for i in reply.token_ids]
    model.generation_config.eos_token_id = [*sorted(set(ids))[::2], tokenizer.eos_token_id]
    yield prompts + [prompt[::-1] for prompt in prompts[:7]]
    model.generation_config.eos_token_id = kept


def calls_of(monkeypatch, model):
    """Rows of each call of ``model.generate``."""
    rows, real = [], model.generate

    def count(**inputs):
        rows.append(len(inputs["input_ids"]))
        return real(**inputs)

    monkeypatch.setattr(model, "generate", count)
    return rows


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_rows_that_have_ended_leave_the_batch_and_change_nothing(model, tokenizer, ending, sampling, monkeypatch):
    long = sampling.model_copy(update={"max_new_tokens": 90, "repetition_penalty": 1.1})
    alone = [generate(model, tokenizer, [prompt], long, 1, seed=5)[0] for prompt in ending]
    assert len({reply.output_tokens for reply in alone}) > 4 and any(not reply.truncated for reply in alone)
    rows, early = calls_of(monkeypatch, model), []
    together = generate(
        model, tokenizer, ending, long, 16, seed=5, arrived=lambda place, reply: early.append((place, reply))
    )
    assert together == alone
    assert rows[0] == 16 and len(rows) > 1 and all(b <= a / 2 for a, b in itertools.pairwise(rows))
    assert sorted(place for place, _ in early) == list(range(16)) and all(together[p] == r for p, r in early)
    lengths = [reply.output_tokens for _, reply in early]
    assert lengths[0] < lengths[-1]  # handed over when it ended, not with the last


@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=80).map(sorted),
    new=st.integers(1, 9000),
    room=st.none() | st.integers(0, 10**6),
    at_most=st.integers(1, 64),
)
def test_rows_that_fit(lengths, new, room, at_most):
    count = rows_that_fit(lengths, new, room, at_most)
    assert 1 <= count <= min(at_most, len(lengths))
    if room is None:
        assert count == min(at_most, len(lengths))
        return
    assert count == 1 or count * (lengths[count - 1] + new) <= room
    if count < min(at_most, len(lengths)):  # one more would not fit
        assert (count + 1) * (lengths[count] + new) > room


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("size", [1, 4, 7])
def test_prompts_that_wait_take_the_place_of_replies_that_have_ended(
    model, tokenizer, ending, sampling, size, monkeypatch
):
    long = sampling.model_copy(update={"max_new_tokens": 90, "repetition_penalty": 1.1})
    alone = [generate(model, tokenizer, [prompt], long, 1, seed=5)[0] for prompt in ending]
    rows, early = calls_of(monkeypatch, model), []
    together = generate(model, tokenizer, ending, long, size, 5, lambda place, reply: early.append((place, reply)))
    assert together == alone
    assert sorted(place for place, _ in early) == list(range(16)) and all(together[p] == r for p, r in early)
    assert max(rows) == size and (size == 1 or rows.count(size) > 2)  # filled up again


def test_rows_do_not_join_where_a_window_slides_or_tokens_are_virtual(model, tokenizer, ending, monkeypatch):
    long = SAMPLED.model_copy(update={"max_new_tokens": 90, "repetition_penalty": 1.1})
    joined = generate(model, tokenizer, ending, long, 4, seed=5)
    assert not rows_join(model)  # attention that is not written out
    with written_out_attention(model), monkeypatch.context() as patch:
        assert rows_join(model)
        patch.setattr(model.config, "layer_types", ["full_attention", "sliding_attention"])
        assert not rows_join(model)
    monkeypatch.setattr(batch, "growing_cache", lambda model: None)
    rows = calls_of(monkeypatch, model)
    assert generate(model, tokenizer, ending, long, 4, seed=5) == joined
    assert rows.count(4) == 4 and max(rows) == 4  # four batches of four


def test_rows_of_a_cache_as_unsloth_hands_it_out_on_a_gpu():
    import torch

    layers = [(torch.randn(4, 1, 5, 8), torch.randn(4, 1, 5, 8)) for _ in range(2)]
    cache = _selected(layers, torch.tensor([1, 3]))
    assert cache.get_seq_length() == 5
    for (keys, values), layer in zip(layers, cache.layers, strict=True):
        assert torch.equal(layer.keys, keys[[1, 3]]) and torch.equal(layer.values, values[[1, 3]])


def test_sizes_of_a_family_with_other_names():
    """GPT-2 has n_head, n_embd, n_layer and n_positions."""
    from transformers import GPT2Config

    config = GPT2Config(n_head=2, n_embd=32, n_layer=3, n_positions=77).to_dict()
    assert "num_attention_heads" not in config
    assert cache_bytes(config, 2) == 2 * 3 * 2 * 16 * 2
    assert positions_of(config) == 77


def test_batches_are_as_large_as_memory_allows(model, tokenizer, prompts, monkeypatch):
    together = generate(model, tokenizer, prompts, SAMPLED, 9, seed=5)
    config = model.config.to_dict()
    assert cache_bytes(config, 4) == 2 * 2 * 1 * 32 * 4  # two layers, one head of keys and values
    assert cache_bytes({**config, "layer_types": ["linear_attention", "full_attention"]}, 4) == 2 * 1 * 32 * 4
    rows = calls_of(monkeypatch, model)
    longest = max(map(len, prompts)) + SAMPLED.max_new_tokens
    monkeypatch.setattr(
        room, "free_bytes", lambda device: 3 * longest * cache_bytes(config, 4) / room.CACHE_SHARE["cpu"]
    )
    assert generate(model, tokenizer, prompts, SAMPLED, 9, seed=5) == together
    assert max(rows) == 3
    rows.clear()
    assert answered(model, tokenizer, Request(prompts, SAMPLED, 9, seed=5, parts=3)) == together
    assert max(rows) <= 2
    monkeypatch.setattr(room, "free_bytes", lambda device: 0)
    rows.clear()
    assert generate(model, tokenizer, prompts, SAMPLED, 9, seed=5) == together
    assert rows == [1] * 9


# --- drawing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "min_p"),
    [(0.6, 0.95, 20, 0), (0.7, 0.8, 20, 0), (1.3, 1, 0, 0), (1, 0.5, 0, 0), (1, 1, 0, 0.2), (0.8, 0.9, 7, 0.05)],
)
def test_the_distribution_is_that_of_transformers(temperature, top_p, top_k, min_p):
    import torch
    from transformers import generation as g

    torch.manual_seed(0)
    scores = 3 * torch.randn(1, 50)
    expected = scores / temperature
    if top_k:
        expected = g.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = g.TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = g.MinPLogitsWarper(min_p)(None, expected)
    n = 20_000  # evenly spaced "random" numbers draw every token in proportion, within a count of one
    uniforms = ((torch.arange(n) + 0.5) / n)[:, None]
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, max_new_tokens=1)
    prompt = torch.ones(n, 1, dtype=torch.long)
    drawn = Draw(sampling, uniforms, prompt, torch.ones(n, dtype=torch.long))(prompt, scores.repeat(n, 1))
    assert torch.isfinite(drawn).sum(-1).eq(1).all()
    counts = torch.bincount(drawn.argmax(-1), minlength=50) / n
    assert torch.allclose(counts, expected.softmax(-1)[0], atol=3 / n)


def test_the_repetition_penalty_is_that_of_transformers_and_blind_to_padding():
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    torch.manual_seed(0)
    scores = torch.randn(1, 10)
    ids = torch.tensor([[3, 3, 4, 7]])
    sampling = Sampling(temperature=0, top_p=1, top_k=0, repetition_penalty=1.5, max_new_tokens=1)
    expected = RepetitionPenaltyLogitsProcessor(1.5)(ids, scores)
    assert torch.equal(Draw(sampling, None, torch.ones(1, 3), torch.tensor([3]))(ids, scores), expected)
    padded = torch.tensor([[0, 0, 3, 3, 4, 7]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    assert torch.equal(Draw(sampling, None, mask, torch.tensor([5]))(padded, scores), expected)


# --- form -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\na\n</think>\n\nb", ("a", "b", True, True)),
        ("b", ("", "b", False, False)),
        ("<think>\na", ("a", "", True, False)),
        ("a</think>b", ("a", "b", False, True)),
        ("<think>\n\n</think>\n\nb", ("", "b", True, True)),
        ("  \n", ("", "", False, False)),
        ("<think>a</think>b<think>c</think>d", ("a", "b<think>c</think>d", True, True)),
    ],
)
def test_split_reply(text, parts):
    assert split_reply(text) == parts


@pytest.mark.parametrize(
    ("text", "truncated", "thinking", "non_thinking"),
    [  # what is true of the reply in each mode: o(pened), c(losed), l(eaked), f(aithful)
        ("<think>\na\n</think>\n\nb", False, "ocf", "ocl"),
        ("<think>\na\n</think>\n\nb", True, "oc", "ocl"),
        ("<think>\na", True, "o", "ol"),
        ("<think>\na", False, "o", "ol"),
        ("<think>\n\n</think>\n\nb", False, "oc", "ocl"),
        ("<think>\na\n</think>\n\n", False, "oc", "ocl"),
        ("<think>a</think>b<think>c</think>d", False, "ocl", "ocl"),
        ("<think>a<think>b</think>c", False, "ocl", "ocl"),
        ("<think>a</think>b</think>c", False, "ocl", "ocl"),
        ("<think>a</think>b <think>", False, "ocl", "ocl"),
        ("b", False, "", "f"),
        ("b", True, "", ""),
        ("", False, "", ""),
        (" \n", False, "", ""),
        ("a</think>b", False, "cl", "cl"),
        ("b <think>", False, "l", "l"),
        ("b <think>c</think>", False, "cl", "cl"),
    ],
)
def test_judge(text, truncated, thinking, non_thinking):
    letters = {"opened": "o", "closed": "c", "leaked": "l", "faithful": "f"}
    for mode, expected in (("thinking", thinking), ("non_thinking", non_thinking)):
        found = judge(text, truncated, mode)
        assert "".join(letter for key, letter in letters.items() if found[key]) == expected, mode


def test_is_unclosed():
    assert is_unclosed("<think>a") and is_unclosed("<think>a</think>b<think>")
    assert not is_unclosed("<think>a</think>b") and not is_unclosed("b") and not is_unclosed("a</think>b")


def test_importing_is_cheap():
    code = "import sys, pipeline.evaluation.evaluate; print({'torch', 'transformers', 'evalscope'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


def test_a_batch_that_does_not_fit_is_halved(model, tokenizer, prompts, monkeypatch, capsys):
    together = generate(model, tokenizer, prompts, SAMPLED, 9, seed=5)
    sizes, real = [], decode.decode_batch

    def fits_two(model, tokenizer, batch, *rest):
        sizes.append(batch.at_once)
        if batch.at_once > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return real(model, tokenizer, batch, *rest)

    monkeypatch.setattr(decode, "decode_batch", fits_two)
    counted: list[int] = []
    assert generate(model, tokenizer, prompts, SAMPLED, 9, 5, lambda place, reply: counted.append(place)) == together
    assert sizes == [9, 4, 2] and sorted(counted) == list(range(len(prompts)))
    assert "going on with 2" in capsys.readouterr().err


def test_one_reply_that_does_not_fit_ends_with_advice(model, tokenizer, prompts, monkeypatch):
    def never(*_):
        raise MemoryError

    monkeypatch.setattr(decode, "decode_batch", never)
    with pytest.raises(UserError, match="max_new_tokens"):
        generate(model, tokenizer, prompts[:1], GREEDY, 1, seed=0)

    def broken(*_):
        raise RuntimeError("shape '[3]' is invalid")

    monkeypatch.setattr(decode, "decode_batch", broken)
    with pytest.raises(RuntimeError, match="shape"):
        generate(model, tokenizer, prompts, GREEDY, 9, seed=0)
