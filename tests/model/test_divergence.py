"""KL to the base, by switching the adapter off: against distributions that are computed one sequence at a time."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.model import divergence as module
from pipeline.model import parts
from pipeline.model.bottleneck import add_bottlenecks
from pipeline.model.divergence import adapter_off, divergence, has_switch, kl_of, require_own_logits
from pipeline.model.parts import has_own_logits

SHAPE = {"max_position_embeddings": 128, "initializer_range": 0.3}


def with_lora(base: Any, seed: int = 0) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    return get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))


@pytest.fixture
def tuned(tiny_qwen3: Any) -> Any:
    return with_lora(tiny_qwen3(1, **SHAPE))


@pytest.fixture(scope="module")
def sequences() -> list[tuple[list[int], int]]:
    r = random.Random(3)
    return [
        ([r.randrange(1000) for _ in range(length)], prompt) for length, prompt in ((9, 3), (20, 19), (5, 1), (12, 6))
    ]


def one_by_one(tuned: Any, sequences: Any) -> list[tuple[float, int]]:
    result = []
    for ids, prompt in sequences:
        with torch.no_grad():
            own = tuned(input_ids=torch.tensor([ids])).logits[0, prompt - 1 : -1]
            with tuned.disable_adapter():
                base = tuned(input_ids=torch.tensor([ids])).logits[0, prompt - 1 : -1]
        p, q = torch.softmax(base.double(), -1), torch.softmax(own.double(), -1)
        result.append((float((p * (p / q).log()).sum()), len(ids) - prompt))
    return result


@pytest.mark.parametrize(("batch", "chunk"), [(1, 512), (3, 512), (4, 2)])
def test_sums_are_those_of_one_sequence_at_a_time(
    tuned: Any, sequences: Any, batch: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POSITIONS", chunk)
    found, seen = divergence(tuned, sequences, batch, lambda n: None), one_by_one(tuned, sequences)
    assert [count for _, count in found] == [count for _, count in seen] == [6, 1, 4, 6]
    assert [total for total, _ in found] == pytest.approx([total for total, _ in seen], rel=1e-3)
    assert all(total > 0.01 for total, _ in found)


@pytest.mark.parametrize(("tokens", "batches"), [(8192, [3, 1]), (24, [2, 1, 1]), (1, [1, 1, 1, 1])])
def test_long_sequences_go_in_small_batches(
    tuned: Any, sequences: Any, tokens: int, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS", tokens)
    seen: list[int] = []
    found = divergence(tuned, sequences, 3, seen.append)
    assert seen == batches  # lengths 5 and 9, then 12, then 20
    assert [total for total, _ in found] == pytest.approx([t for t, _ in one_by_one(tuned, sequences)], rel=1e-3)


@pytest.mark.parametrize("rows", [1, 2])
def test_too_little_memory_halves_the_batch(
    tuned: Any, sequences: Any, rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where an allocator says no: more than ``rows`` sequences at a time do not fit."""
    wanted = one_by_one(tuned, sequences)

    def full(_: Any, given: Any, named: dict[str, Any]) -> None:
        if len(named["input_ids"] if "input_ids" in named else given[0]) > rows:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    body, _ = module.parts_of(tuned)
    body.register_forward_pre_hook(full, with_kwargs=True)
    seen: list[int] = []
    found = divergence(tuned, sequences, 4, seen.append)
    assert sum(seen) == 4 and max(seen) == rows
    assert [total for total, _ in found] == pytest.approx([total for total, _ in wanted], rel=1e-3)
    assert f"going on with {rows}" in capsys.readouterr().err


def test_too_little_memory_for_one_sequence_is_said(tuned: Any, sequences: Any) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    module.parts_of(tuned)[0].register_forward_pre_hook(full)
    with pytest.raises(UserError, match="a sequence of 5 tokens; set evaluation.kl_items=0"):
        divergence(tuned, sequences, 2)


def test_another_error_is_not_taken_for_memory(tuned: Any, sequences: Any) -> None:
    def wrong(*_: Any) -> None:
        raise RuntimeError("shapes do not fit")

    module.parts_of(tuned)[0].register_forward_pre_hook(wrong)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        divergence(tuned, sequences, 2)


def test_a_fresh_adapter_is_no_distance(tiny_qwen3: Any, sequences: Any) -> None:
    from peft import LoraConfig, get_peft_model

    fresh = get_peft_model(tiny_qwen3(1, **SHAPE), LoraConfig(r=4, target_modules=["q_proj"]))  # its matrix B is zero
    assert [total for total, _ in divergence(fresh, sequences, 2)] == [0.0] * 4


def test_bottlenecks_are_switched_off_and_on_again(tiny_qwen3: Any, sequences: Any) -> None:
    model = add_bottlenecks(tiny_qwen3(1, **SHAPE), 8, "gelu")
    ids = torch.tensor([sequences[0][0]])
    base = tiny_qwen3(1, **SHAPE)(input_ids=ids).logits
    for name, parameter in model.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(parameter)
    changed = model(input_ids=ids).logits
    assert has_switch(model) and not torch.allclose(changed, base)
    with adapter_off(model):
        assert torch.equal(model(input_ids=ids).logits, base)
    assert torch.equal(model(input_ids=ids).logits, changed)
    assert all(total > 0 for total, _ in divergence(model, sequences, 2))


def test_what_cannot_be_switched_off_is_refused(tiny_qwen3: Any, sequences: Any) -> None:
    from peft import PromptTuningConfig, get_peft_model

    whole = tiny_qwen3(1, **SHAPE)
    prompted = get_peft_model(tiny_qwen3(1, **SHAPE), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    for model in (whole, prompted):
        assert not has_switch(model)
        with pytest.raises(UserError, match="has none that can be"):
            divergence(model, sequences, 2)


numbers = st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3)


@given(numbers, numbers)
def test_kl_is_never_below_zero_and_zero_for_the_same(a: list[float], b: list[float]) -> None:
    x, y = torch.tensor([a]), torch.tensor([b])
    assert float(kl_of(x, x)) == 0 and float(kl_of(x, y)) >= 0
    assert float(kl_of(x, x + 5)) == pytest.approx(0, abs=1e-4)  # logits count up to a constant


# --- families -----------------------------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}


def model_of(kind: str, **options: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **options})).eval()


@pytest.mark.parametrize(
    ("kind", "options", "modules"),
    [
        ("gpt_neox", {}, ["query_key_value"]),  # its body is not called ``model``
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}, ["c_attn"]),
        ("gemma2", {"final_logit_softcapping": 0.05}, ["q_proj"]),
        ("granite", {"logits_scaling": 0.25}, ["q_proj"]),  # divides; with 8 the sums are as small as the rounding
        ("cohere", {"logit_scale": 4.0}, ["q_proj"]),
        ("hyperclovax", {"logits_scaling": 3.0}, ["q_proj"]),
    ],
)
def test_a_family_is_measured_by_its_own_logits(
    kind: str, options: dict[str, Any], modules: list[str], sequences: Any
) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=modules, init_lora_weights=False, lora_alpha=64)
    tuned = get_peft_model(model_of(kind, **options), lora)
    short = [([token % 300 for token in ids], prompt) for ids, prompt in sequences]
    require_own_logits(tuned)
    found, seen = divergence(tuned, short, 4), one_by_one(tuned, short)
    assert [total for total, _ in found] == pytest.approx([total for total, _ in seen], rel=1e-2, abs=1e-7)
    assert sum(total for total, _ in seen) > 1e-5


def test_a_family_that_does_something_else_is_not_measured(tuned: Any) -> None:
    own = tuned.get_base_model()
    forward = own.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        made = forward(*args, **kwargs)
        made.logits = made.logits * 2
        return made

    own.forward = changed
    with pytest.raises(UserError, match=r"family qwen3 change the logits.*evaluation.kl_items=0"):
        require_own_logits(tuned)
    own.forward = forward
    require_own_logits(tuned)


def test_a_forward_pass_that_gives_hidden_states_is_no_other_family(tuned: Any) -> None:
    own = tuned.get_base_model()
    forward = own.forward

    def hidden(*args: Any, **kwargs: Any) -> Any:
        made = forward(*args, **kwargs, output_hidden_states=True)
        made.logits = made.hidden_states[-1]
        return made

    own.forward = hidden
    assert tuned(input_ids=torch.tensor([[1, 2]])).logits.shape[-1] == own.config.hidden_size
    assert has_own_logits(tuned)


def test_mixed_precision_that_a_training_left_around_the_model_is_no_other_family(
    tuned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(parts, "NEAR", 0.002)  # so small a model rounds less
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        before = tuned(input_ids=ids).logits
        prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(tuned)
        after = prepared(input_ids=ids).logits
    assert (before - after).abs().max() > parts.NEAR * before.abs().max()
    assert has_own_logits(prepared)
