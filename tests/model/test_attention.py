"""Attention written out by groups of heads is transformers' own, in value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.model.attention import GROUPED, PLAIN, written_out_attention

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 90, "head_dim": 8}


def model_of(kind: str, heads: int = 6, groups: int = 2, **more: Any) -> Any:
    config = AutoConfig.for_model(kind, **SIZES, num_attention_heads=heads, num_key_value_heads=groups, **more)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def ids_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(2 * 11).reshape(2, 11) % 90
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # padded on the left
    return ids, mask


@pytest.mark.parametrize("kind", sorted(PLAIN))
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_values_and_gradients_are_those_of_eager(kind: str, groups: int) -> None:
    ids, mask = ids_and_mask()
    found = []
    for grouped in (False, True):
        model = model_of(kind, groups=groups)
        if not grouped:
            model.set_attn_implementation("eager")
        with written_out_attention(model):
            assert (model.config._attn_implementation == GROUPED) == grouped
            output = model(input_ids=ids, attention_mask=mask, labels=ids)
            output.loss.backward()
        found.append((output.logits[1], output.logits[0, 4:], model.model.layers[0].self_attn.k_proj.weight.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_decoding_is_the_same() -> None:
    ids, mask = ids_and_mask()
    model = model_of("qwen3")
    model.set_attn_implementation("eager")
    wanted = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    model.set_attn_implementation("sdpa")
    with written_out_attention(model):
        found = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert found.tolist() == wanted.tolist() and model.config._attn_implementation == "sdpa"


def test_a_family_with_additions_to_the_scores_keeps_its_own() -> None:
    model = model_of("gemma2", attn_implementation="sdpa")
    with written_out_attention(model):
        assert model.config._attn_implementation == "eager"
