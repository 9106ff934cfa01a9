"""The cache with room ahead gives what transformers' own gives, whatever rows leave it and join it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.model.attention import written_out_attention
from pipeline.model.growing_cache import AHEAD, cut, growing_cache, joined

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50, "head_dim": 8}


def model_of(kind: str = "qwen3", **more):
    config = AutoConfig.for_model(kind, **SIZES, num_attention_heads=4, num_key_value_heads=2, **more)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def model():
    return model_of()


def states(rows, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, tokens, 8, generator=generator), torch.randn(rows, 2, tokens, 8, generator=generator)


def filled(model, rows, tokens, seed=0):
    cache = growing_cache(model)
    for layer in range(2):
        cache.update(*states(rows, tokens, seed + layer), layer)
    return cache


@pytest.mark.parametrize("tokens", [5, AHEAD + 3, 2 * AHEAD + 40])
def test_replies_of_any_length_are_the_same(model, tokens):
    ids = torch.arange(2 * 9).reshape(2, 9) % 50
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    call = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": 49}
    with written_out_attention(model):
        plain = model.generate(input_ids=ids, attention_mask=mask, **call)
        cache = growing_cache(model)
        grown = model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **call)
    assert grown.tolist() == plain.tolist()
    assert cache.get_seq_length() == plain.shape[1] - 1
    places = cache.layers[0].keys.shape[2]
    assert cache.get_seq_length() <= places <= cache.get_seq_length() + AHEAD


@given(st.lists(st.integers(1, AHEAD), min_size=1, max_size=5), st.integers(1, 70))
@settings(max_examples=30, deadline=None)
def test_what_goes_in_is_there_and_the_rest_is_zero(model, more, prompt):
    with written_out_attention(model):
        cache, expected = growing_cache(model), []
    for step, tokens in enumerate([prompt, *more]):
        keys, values = states(3, tokens, step)
        expected.append((keys, values))
        sizes = cache.get_mask_sizes(tokens, 0)
        seen, _ = cache.update(keys, values, 0)
        assert sizes == (seen.shape[2], 0)  # the mask is as wide as what is seen
    layer, whole = cache.layers[0], torch.cat([keys for keys, _ in expected], 2)
    assert torch.equal(layer.keys[:, :, : layer.filled], whole) and layer.filled == whole.shape[2]
    assert torch.equal(layer.values[:, :, : layer.filled], torch.cat([values for _, values in expected], 2))
    assert not layer.keys[:, :, layer.filled :].any() and not layer.values[:, :, layer.filled :].any()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_rows_leave_and_join(model, own, other, more):
    with written_out_attention(model):
        cache, added = filled(model, 3, own), filled(model, 2, other, seed=9)
    before = [layer.keys.clone() for layer in cache.layers], [layer.values.clone() for layer in added.layers]
    first = min(own - 1, 4)
    cut(cache, torch.tensor([2, 0]), first)
    assert cache.get_seq_length() == own - first
    places = max(own - first, other) + more
    assert joined(cache, added, places) is cache and cache.get_seq_length() == places
    for number, layer in enumerate(cache.layers):
        keys, values = layer.keys, layer.values
        assert keys.shape == values.shape == (4, 2, places + AHEAD, 8)
        assert torch.equal(keys[:2, :, places - own + first : places], before[0][number][[2, 0], :, first:own])
        assert torch.equal(values[2:, :, places - other : places], before[1][number][:, :, :other])
        assert not keys[:2, :, : places - own + first].any() and not keys[:, :, places:].any()


def test_where_it_does_not_suit():
    for kind, more in (
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("mistral", {"sliding_window": 16}),
    ):
        model = model_of(kind, **more)
        with written_out_attention(model):
            assert growing_cache(model) is None
    model = model_of("mistral", sliding_window=None)
    assert growing_cache(model) is None  # attention is not written out
    with written_out_attention(model):
        assert growing_cache(model) is not None
    model = model_of("gemma2")
    with written_out_attention(model):
        assert growing_cache(model) is None
