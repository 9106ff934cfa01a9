"""Weights packed for decoding: the same numbers (bfloat16: to the last bit), and the model as it was afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.model import packed
from pipeline.model.packed import packed_weights

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 90, "head_dim": 16}
OPERATORS = hasattr(torch.ops.mkldnn, "_linear_pointwise")
SUPPORTED = OPERATORS and torch.ops.mkldnn._is_mkldnn_bf16_supported()
supported = pytest.mark.skipif(
    not SUPPORTED, reason="oneDNN has no bfloat16 on this processor; nothing of it is packed"
)
float32 = pytest.mark.skipif(not OPERATORS, reason="this build of torch has no operators to pack weights with")


def model_of(dtype: torch.dtype = torch.bfloat16) -> Any:
    config = AutoConfig.for_model("qwen3", **SIZES, num_attention_heads=4, num_key_value_heads=2)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().to(dtype)


def with_lora(model: Any, **more: Any) -> Any:
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **more)).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # as it is trained
    return tuned


def logits(model: Any, rows: int = 3, tokens: int = 7) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(rows * tokens).reshape(rows, tokens) % 90).logits


def changed(model: Any) -> int:
    return sum("forward" in vars(module) for module in model.modules())


@supported
@pytest.mark.parametrize("rows", [1, 3, 60])  # 420 rows of a product: more than packed weights are used for
def test_numbers_are_the_same_to_the_last_bit(rows: int) -> None:
    for model in (model_of(), with_lora(model_of())):
        plain = logits(model, rows)
        with packed_weights(model):
            assert changed(model) >= 15
            assert torch.equal(logits(model, rows), plain)
        assert changed(model) == 0 and torch.equal(logits(model, rows), plain)


@supported
def test_the_plain_weights_come_back_after_an_error_and_give_gradients_meanwhile() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="in between"), packed_weights(model):
        model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
        assert model.model.layers[0].mlp.up_proj.weight.grad is not None
        raise ValueError("in between")
    assert changed(model) == 0


@supported
def test_other_adapters_than_plain_lora_are_left_to_peft() -> None:
    for more in ({"use_dora": True}, {"lora_bias": True}):
        model = with_lora(model_of(), **more)
        plain = logits(model)
        with packed_weights(model):
            assert not any("forward" in vars(module) for module in model.modules() if hasattr(module, "lora_A"))
            assert torch.equal(logits(model), plain)


@supported
def test_an_adapter_that_is_switched_meanwhile_is_the_one_that_counts() -> None:
    model = with_lora(model_of())
    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    own = logits(model)
    with model.disable_adapter():
        none = logits(model)
    model.set_adapter("other")
    other = logits(model)
    model.set_adapter("default")
    assert len({tuple(found.flatten().tolist()) for found in (own, none, other)}) == 3
    with packed_weights(model):
        with model.disable_adapter():
            assert torch.equal(logits(model), none)
        assert torch.equal(logits(model), own)
        model.set_adapter("other")
        assert torch.equal(logits(model), other)
        model.set_adapter("default")
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.scaling["default"] *= 0.5
        assert not torch.equal(logits(model), own)
    with model.disable_adapter(), packed_weights(model):
        assert torch.equal(logits(model), none)


@pytest.fixture
def all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_LARGE", 0)  # the models here are small


@float32
@pytest.mark.usefixtures("all_sizes")
@pytest.mark.parametrize("rows", [1, 3, 60])
def test_numbers_in_float32_differ_by_rounding_alone(rows: int) -> None:
    for model in (model_of(torch.float32), with_lora(model_of(torch.float32))):
        exact = logits(model.double(), rows)
        model.float()
        plain = logits(model, rows)
        rounding = float((plain - exact).abs().max())
        with packed_weights(model):
            assert changed(model) >= 15
            assert float((logits(model, rows) - exact).abs().max()) <= 3 * rounding
        assert changed(model) == 0 and torch.equal(logits(model, rows), plain)


@float32
@pytest.mark.usefixtures("all_sizes")
def test_a_bias_and_other_inputs_in_float32_are_as_without() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(20, 30)
    x, plain = torch.randn(2, 3, 20), packed._packed(layer)
    assert plain is not None
    assert torch.allclose(plain(x), layer(x), rtol=0, atol=1e-5)
    plain(x).sum().backward()  # gradients go through the plain weights
    assert layer.weight.grad is not None and layer.bias.grad is not None
    with pytest.raises(RuntimeError, match="dtype"):
        plain(x.double())


@float32
def test_of_float32_only_large_matrices_are_packed() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(512, 511), torch.nn.Linear(511, 1026))
    assert [packed._packed(layer) is not None for layer in model] == [False, True]
    model.half()
    assert [packed._packed(layer) for layer in model] == [None, None]


def test_nothing_is_packed_where_it_does_not_suit(monkeypatch: pytest.MonkeyPatch) -> None:
    small, half = model_of(torch.float32), model_of(torch.float16)
    with packed_weights(small), packed_weights(half):
        assert changed(small) == changed(half) == 0
    model = model_of()
    monkeypatch.setattr(packed, "free_bytes", lambda device: 1000)
    with packed_weights(model):
        assert changed(model) == 0
    monkeypatch.setattr(packed, "free_bytes", lambda device: None)
    if SUPPORTED:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with packed_weights(model):
        assert changed(model) == 0
