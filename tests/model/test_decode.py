"""Decoding: batches, seeds, counts, and the form of replies. The model is tiny and untrained; its tokenizer is ours."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.evaluation.form import is_unclosed, judge, split_reply
from pipeline.model import decode
from pipeline.model.decode import _Draw, end_tokens, generate
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


def test_progress_counts_every_prompt(model, tokenizer, prompts):
    seen = []
    generate(model, tokenizer, prompts, GREEDY, 4, seed=0, progress=seen.append)
    assert seen == [4, 4, 1]
    assert generate(model, tokenizer, [], GREEDY, 4, seed=0) == []


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


def test_a_prompt_beyond_the_context_is_refused(model, tokenizer):
    with pytest.raises(UserError, match=r"Prompt 1 has 105 tokens; with max_new_tokens=24 .* context of 128"):
        generate(model, tokenizer, [[5], [5] * 105], GREEDY, 2, seed=0)
    with pytest.raises(UserError, match="Prompt 0 is empty"):
        generate(model, tokenizer, [[]], GREEDY, 2, seed=0)


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
    drawn = _Draw(sampling, uniforms, prompt)(prompt, scores.repeat(n, 1))
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
    assert torch.equal(_Draw(sampling, None, torch.ones(1, 3))(ids, scores), expected)
    padded = torch.tensor([[0, 0, 3, 3, 4, 7]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    assert torch.equal(_Draw(sampling, None, mask)(padded, scores), expected)


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
    sizes, real = [], decode._generate_batch

    def fits_two(model, tokenizer, batch, *rest):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return real(model, tokenizer, batch, *rest)

    monkeypatch.setattr(decode, "_generate_batch", fits_two)
    counted: list[int] = []
    assert generate(model, tokenizer, prompts, SAMPLED, 9, seed=5, progress=counted.append) == together
    assert sizes[:4] == [9, 4, 2, 2] and sum(counted) == len(prompts)
    assert "going on with 2" in capsys.readouterr().err


def test_one_reply_that_does_not_fit_ends_with_advice(model, tokenizer, prompts, monkeypatch):
    def never(*_):
        raise MemoryError

    monkeypatch.setattr(decode, "_generate_batch", never)
    with pytest.raises(UserError, match="max_new_tokens"):
        generate(model, tokenizer, prompts[:1], GREEDY, 1, seed=0)

    def broken(*_):
        raise RuntimeError("shape '[3]' is invalid")

    monkeypatch.setattr(decode, "_generate_batch", broken)
    with pytest.raises(RuntimeError, match="shape"):
        generate(model, tokenizer, prompts, GREEDY, 9, seed=0)
