"""The estimate of memory and time: counts by hand, transformers' own models, and what must only ever grow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.settings import load_profile, read_yaml
from pipeline.training.estimate import (
    CARD_SHARE,
    COUNTED_METHODS,
    EXPERT,
    OPTIMIZERS,
    PUBLISHED,
    Job,
    Sizes,
    _layer,
    _nf4,
    estimate,
    fits,
    flops_per_token,
    memory,
    planned_steps,
    profile_job,
    profile_sizes,
    published_sizes,
    sizes_from_config,
    training_time,
)
from pipeline.training.estimate_replies import (
    PROMPT_TOKENS,
    cache_bytes_of,
    estimate_replies,
    replies_memory,
    replies_text,
    step_seconds,
)

ROOT = Path(__file__).resolve().parents[2]
SIZES = published_sizes()
SMALL = Sizes(
    hidden_size=64, layers=2, heads=2, kv_heads=1, head_dim=32, intermediate_size=128, vocab_size=1000, tied=True
)
# by hand: q 64×64, k and v 64×32 each, o 64×64, gate, up and down 64×128 each
LINEAR = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)
NORMS = 2 * (2 * 64 + 2 * 32) + 64
LORA_IN_OUT = 2 * (128 + 96 + 96 + 128 + 192 + 192 + 192)
CPU = Job(method="lora", batch=2, length=16, rank=4, device="cpu")


@pytest.fixture(params=list(published_sizes()))
def published(request: pytest.FixtureRequest) -> tuple[str, Sizes]:
    return request.param, published_sizes()[request.param]


def test_parameters_by_hand() -> None:
    assert (SMALL.linear, SMALL.norms, SMALL.embedding) == (LINEAR, NORMS, 64_000)
    assert SMALL.parameters == LINEAR + NORMS + 64_000
    assert replace(SMALL, tied=False).parameters == LINEAR + NORMS + 128_000
    assert SMALL.adapter(4, ("q_proj", "nonsense")) == 2 * 4 * 128
    assert SMALL.adapter(4, CPU.modules) == 4 * LORA_IN_OUT


def test_parameters_are_those_of_the_model_itself(published: tuple[str, Sizes]) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    _, size = published
    mixture = {
        "num_experts": size.experts,
        "num_experts_per_tok": size.experts_per_token,
        "moe_intermediate_size": size.intermediate_size,
    }
    kind, make = (Qwen3MoeConfig, Qwen3MoeForCausalLM) if size.experts else (Qwen3Config, Qwen3ForCausalLM)
    config = kind(
        **(mixture if size.experts else {}),
        hidden_size=size.hidden_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        intermediate_size=size.intermediate_size,
        vocab_size=size.vocab_size,
        tie_word_embeddings=size.tied,
    )
    with torch.device("meta"):
        model = make(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == size.parameters
    assert sizes_from_config(config.to_dict()) == size


def test_parameters_are_those_of_the_model_card(published: tuple[str, Sizes]) -> None:
    name, size = published
    everything, other = read_yaml(PUBLISHED)[name]["card"]
    assert size.parameters / 1e9 == pytest.approx(everything, abs=0.051)
    passed = (
        size.active + 2 * size.embedding if size.experts else size.linear
    )  # of a mixture the card counts what is active
    assert (passed + size.norms) / 1e9 == pytest.approx(other, abs=0.06)


def test_a_mixture_of_experts_by_hand() -> None:
    mixture = replace(SMALL, experts=4, experts_per_token=2)
    router = mixture.layers * mixture.hidden_size * 4
    mlp = mixture.layers * sum(a * b for name, (a, b) in SMALL.matrices.items() if name in EXPERT)
    assert mixture.linear == SMALL.linear + 3 * mlp
    assert mixture.parameters == SMALL.parameters + 3 * mlp + router
    assert mixture.active == SMALL.linear + mlp + router
    # An adapter on the attention is the same; one on the experts stands in each of them, and a token passes two.
    assert mixture.adapter(4, ("q_proj",)) == SMALL.adapter(4, ("q_proj",))
    assert mixture.adapter(4, ("up_proj",)) == 4 * SMALL.adapter(4, ("up_proj",))
    assert mixture.adapter(4, ("up_proj",), active=True) == 2 * SMALL.adapter(4, ("up_proj",))
    # Sparse in time, not in memory.
    job = replace(CPU, modules=("q_proj",))
    assert memory(mixture, job)["weights"] == memory(SMALL, job)["weights"] + 2 * (3 * mlp + router)
    assert flops_per_token(mixture, job) == flops_per_token(SMALL, job) + 2 * 2 * (mlp + router)


def test_the_smallest_is_as_its_own_config_says(shared_data: Path) -> None:
    path = shared_data / "qwen3_tokenizer" / "qwen3_0.6b_config.json"
    if not path.is_file():
        pytest.skip(f"the published config is not at {path}")
    assert sizes_from_config(json.loads(path.read_text(encoding="utf-8"))) == published_sizes()["0.6B"]


def test_weights_by_hand() -> None:
    rest = 64_000 + NORMS
    assert memory(SMALL, CPU)["weights"] == 2 * (LINEAR + rest)
    assert memory(SMALL, replace(CPU, bf16=False))["weights"] == 4 * (LINEAR + rest)
    assert memory(SMALL, replace(CPU, method="full", bf16=False))["weights"] == 4 * (LINEAR + rest)
    assert memory(SMALL, replace(CPU, method="full"))["weights"] == (4 + 2) * (
        LINEAR + rest
    )  # and the copies of autocast
    # NF4: half a byte, a byte for 64, four bytes for 64 × 256, and 273 float32 of tables and offset for each of 14 matrices
    nf4 = LINEAR / 2 + LINEAR / 64 + 4 * LINEAR / (64 * 256) + 14 * 273 * 4
    assert memory(SMALL, replace(CPU, method="qlora"))["weights"] == pytest.approx(nf4 + 2 * rest, abs=1)


def test_what_bitsandbytes_stores_is_what_is_counted() -> None:
    """A matrix of one layer of the 0.6B, quantised by the library on the CPU."""
    import torch
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(1024, 3072, dtype=torch.bfloat16)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    tensors = [packed, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert sum(t.numel() * t.element_size() for t in tensors) == _nf4(weight.numel())


def test_adapter_gradients_and_optimizer_by_hand() -> None:
    parts = memory(SMALL, CPU)
    trained = 4 * LORA_IN_OUT
    assert (parts["adapter"], parts["gradients"], parts["optimizer"]) == (4 * trained, 4 * trained, 8 * trained)
    eight_bit = replace(CPU, device="cuda", optim="adamw_8bit")
    assert memory(SMALL, eight_bit)["optimizer"] == pytest.approx(trained * 2 * (1 + 4 / 256), abs=1)
    # a CPU has no kernels for it: Unsloth takes AdamW there
    assert memory(SMALL, replace(eight_bit, device="cpu"))["optimizer"] == 8 * trained
    assert memory(SMALL, replace(CPU, optim="sgd"))["optimizer"] == 0
    assert memory(SMALL, replace(CPU, device="cuda", optim="no such one"))["optimizer"] == 8 * trained


def test_full_keeps_sixteen_bytes_a_parameter_or_eight() -> None:
    job = Job(method="full", batch=1, length=1, device="cpu")
    for size, moved in ((4, 16), (2, 8)):
        parts = memory(SMALL, replace(job, trainable_bytes=size, bf16=size == 2))
        assert sum(parts[p] for p in ("weights", "gradients", "optimizer")) <= moved * SMALL.parameters
        assert parts["adapter"] == 0 and parts["total"] >= (moved - size) * SMALL.parameters


def test_activations_of_a_layer_by_hand() -> None:
    """bfloat16, two padded rows of 16 tokens, LoRA of rank 4 on all seven modules: docs/memory.md, line by line."""
    norms = 4 * (2 * 64 + 64 + 32) + 4 * (2 + 2 + 1)
    attention = 4 * 2 * 64 + 4 * 2 + 2 * 16
    mlp = 3 * 2 * 128
    adapters = 2 * (5 * 64 + 64 + 128) + 7 * 2 * 4
    final = 4 * 64
    assert memory(SMALL, CPU)["activations"] == 32 * (2 * (norms + attention + mlp + adapters) + final)


@pytest.mark.parametrize(("method", "autocast"), [("full", False), ("full", True), ("lora", False), ("lora", True)])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_activations_are_what_autograd_saves(method: str, autocast: bool, padded: bool, attention: str) -> None:
    """Each tensor that the layers of a small model save for the backward pass, against the count (transformers, CPU).

    The bfloat16 copies of weights that autocast makes are counted with the weights.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = Sizes(64, 4, 4, 2, 32, 128, 300, True)
    config = Qwen3Config(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        intermediate_size=128, vocab_size=300, tie_word_embeddings=True, attn_implementation=attention,
    )  # fmt: skip
    dtype = torch.bfloat16 if autocast and method != "full" else torch.float32
    model: Any = Qwen3ForCausalLM(config).to(dtype)
    if method != "full":
        modules = list(CPU.modules)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM"))
    batch = 2 if padded else 1
    mask = torch.ones(batch, 80, dtype=torch.long)
    mask[1:, -1] = 0
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    matrices = {tuple(p.shape[::turn]) for p in model.parameters() if p.dim() == 2 for turn in (1, -1)}
    saved: dict[int, int] = {}
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)  # so that no address is given out twice
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and not (autocast and tuple(tensor.shape) in matrices):
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    backbone = model.base_model.model.model if method != "full" else model.model
    backbone.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        backbone(input_ids=torch.zeros(batch, 80, dtype=torch.long), attention_mask=mask, use_cache=False)
    job = Job(
        method=method, batch=batch, length=80, rank=4, device="cpu", bf16=autocast, fused_attention=attention == "sdpa"
    )  # type: ignore[arg-type]
    final = (2 if method == "full" else 1) * 4 * 64
    counted = job.tokens * (4 * _layer(sizes, job) + final)
    assert sum(saved.values()) == pytest.approx(counted, rel=0.04)


def jobs(**fixed: Any) -> st.SearchStrategy[Job]:
    options = {
        "method": st.sampled_from(COUNTED_METHODS),
        "batch": st.integers(1, 64),
        "length": st.integers(1, 8192),
        "rank": st.integers(1, 128),
        "gradient_checkpointing": st.booleans(),
        "accumulation": st.integers(1, 4),
        "optim": st.sampled_from(sorted(OPTIMIZERS)),
        "device": st.sampled_from(["cpu", "cuda"]),
        "bf16": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.1]),
    }
    return st.builds(Job, **(options | fixed))


@settings(max_examples=examples(30))
@given(jobs(), st.integers(1, 50), st.sampled_from(list(SIZES)))
def test_more_never_takes_less(job: Job, more: int, name: str) -> None:
    size = SIZES[name]
    total = memory(size, job)["total"]
    for bigger in ({"batch": job.batch + more}, {"length": job.length + more}, {"rank": job.rank + more}):
        assert memory(size, replace(job, **bigger))["total"] >= total, bigger
    assert memory(size, replace(job, gradient_checkpointing=True))["total"] <= memory(
        size, replace(job, gradient_checkpointing=False)
    )["total"] + 2 * 4 * job.tokens * (size.hidden_size * size.layers)


@settings(max_examples=examples(30))
@given(jobs(method=st.just("lora"), bf16=st.just(True)))
def test_methods_and_sizes_stand_in_order(job: Job) -> None:
    sizes = list(SIZES.values())
    for size in sizes:
        qlora, lora = (memory(size, replace(job, method=m))["weights"] for m in ("qlora", "lora"))
        full = memory(size, replace(job, method="full"))["weights"]
        assert qlora < lora < full
    totals = [memory(size, job)["total"] for size in sizes if not size.experts]  # a mixture trains few of its weights
    assert totals == sorted(totals)


@settings(max_examples=examples(30))
@given(jobs())
def test_parts_add_up_and_none_is_negative(job: Job) -> None:
    parts = memory(SMALL, job)
    assert parts["total"] == sum(v for k, v in parts.items() if k != "total") and min(parts.values()) >= 0


def test_a_card_is_not_filled_to_the_brim() -> None:
    assert fits(int(CARD_SHARE * 24 * 2**30), 24) and not fits(24 * 2**30 - 1, 24)


def test_operations_by_hand() -> None:
    matrices, attention = LINEAR + 64_000, 2 * 16 * 64 * 2
    full = Job(method="full", batch=1, length=16, rank=4)
    assert flops_per_token(SMALL, full) == 6 * matrices + 3 * attention
    lora = replace(full, method="lora")
    assert flops_per_token(SMALL, lora) == 4 * matrices + 3 * attention + 6 * 4 * LORA_IN_OUT
    again = flops_per_token(SMALL, replace(full, gradient_checkpointing=True)) - flops_per_token(SMALL, full)
    assert again == 2 * LINEAR + attention


def test_six_operations_a_weight_and_token_for_a_large_model() -> None:
    size = published_sizes()["8B"]
    found = flops_per_token(size, Job(method="full", batch=1, length=1))
    assert found == pytest.approx(6 * (size.parameters - size.embedding), rel=0.01)


def test_time_says_what_it_rests_on() -> None:
    measured = load_profile("embedded")
    sizes, job = profile_sizes(measured), profile_job(measured, "cuda")
    found = training_time(measured, sizes, job, 36_000, tflops=1.0)
    assert found["basis"] == "measured" and found["seconds"] == pytest.approx(10.0) and "AMD EPYC" in found["source"]
    bare = measured.model_copy(update={"estimate": None})
    counted = training_time(bare, sizes, job, 10**9, tflops=2.0)
    assert counted["basis"] == "flops"
    assert counted["seconds"] == pytest.approx(flops_per_token(sizes, job) * 1e9 / 2e12)
    unknown = training_time(bare, sizes, job, 10**9, tflops=None)
    assert unknown["seconds"] is None and "--tflops" in unknown["source"]


def test_planned_steps() -> None:
    profile = load_profile("embedded", ["training.max_steps=-1", "training.gradient_accumulation_steps=2"])
    assert [planned_steps(profile, n) for n in (1, 16, 17)] == [1, 1, 2]
    assert planned_steps(load_profile("embedded", ["training.max_steps=9"]), 10**6) == 9


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen3-0.6B", "0.6B"),
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "8B"),
        ("Qwen/Qwen3-14B-Base", "14B"),
        ("Qwen/Qwen3-30B-A3B", "30B-A3B"),
    ],
)
def test_sizes_of_a_hub_model_by_its_name(name: str, size: str) -> None:
    profile = load_profile("qwen3-8b", [f"model.name={name}"])
    assert profile_sizes(profile) == published_sizes()[size]


@pytest.mark.parametrize("name", ["Qwen/Qwen3-30B", "Qwen/Qwen3-235B-A22B", "meta/Llama-8B", "Qwen/Qwen3-8.5B"])
def test_a_hub_model_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="are not known before it is loaded"):
        profile_sizes(load_profile("qwen3-8b", [f"model.name={name}"]))


@pytest.mark.parametrize("content", ["{", "{}", '{"hidden_size": "many"}', None])
def test_a_config_that_does_not_serve_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="config.json"):
        profile_sizes(load_profile("embedded", [f"model.name={tmp_path}"]))


# --- evaluation ---------------------------------------------------------------------------------------------------------


def test_bytes_of_the_cache_are_those_of_the_model(published: tuple[str, Sizes]) -> None:
    from pipeline.model.room import cache_bytes

    _, size = published
    config = {"num_hidden_layers": size.layers, "num_attention_heads": size.heads, "head_dim": 128}
    assert cache_bytes_of(size) == cache_bytes(config | {"num_key_value_heads": size.kv_heads}, 2)
    assert cache_bytes_of(published_sizes()["8B"]) == 2 * 36 * 8 * 128 * 2  # 144 KiB


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-8b"])
def test_the_evaluation_of_a_real_profile_fits_its_card(name: str) -> None:
    profile = load_profile(name)
    result = estimate_replies(profile, profile_sizes(profile))
    assert result["card_gib"] == 24 and result["memory_bytes"] <= 20 * 2**30
    for mode, part in result["modes"].items():
        parts, most = part["memory_bytes"], getattr(profile.evaluation.sampling, mode).max_new_tokens
        assert part["rows"] >= 4 and parts["total"] == sum(n for key, n in parts.items() if key != "total")
        assert parts["cache"] == part["rows"] * (PROMPT_TOKENS + most) * cache_bytes_of(profile_sizes(profile))
    assert result["seconds"] == sum(part["seconds"] for part in result["modes"].values())
    fewer = load_profile(name, ["evaluation.limit=20"])
    assert estimate_replies(fewer, profile_sizes(fewer))["seconds"] < result["seconds"]
    without = load_profile(name, ["evaluation.limit=null"])
    found = estimate_replies(without, profile_sizes(without))
    assert found["seconds"] is None and "all items" in found["warnings"][-1]


def test_rows_fill_what_memory_there_is() -> None:
    profile = load_profile("qwen3-8b", ["evaluation.batch_size=64"])
    sizes = profile_sizes(profile)
    rows, parts = replies_memory(profile, sizes, 4096, 24)
    more, _ = replies_memory(profile, sizes, 2048, 24)
    larger, _ = replies_memory(profile, sizes, 4096, 80)
    assert 1 < rows < more < larger <= 64
    assert parts["cache"] + cache_bytes_of(sizes) * (PROMPT_TOKENS + 4096) > 0.6 * (
        24 * 2**30 - parts["weights"] - parts["adapter"] - parts["cuda"]
    )
    tiny = replies_memory(profile, sizes, 10**6, 24)
    assert tiny[0] == 1 and tiny[1]["total"] > 24 * 2**30  # a card for which one reply is too much is not hidden
    assert step_seconds(profile, sizes, 10**10) > step_seconds(profile, sizes, 10**9)
    result = estimate_replies(load_profile("qwen3-8b", ["evaluation.sampling.thinking.max_new_tokens=1000000"]), sizes)
    assert "may not fit" in result["warnings"][0] and "may not fit" in replies_text(result)
    served = load_profile("qwen3-8b", ["evaluation.engine=vllm"])
    assert replies_text(estimate_replies(served, sizes)).startswith("evaluation: the replies come from vllm")


def test_the_command_prints_every_size_and_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--profile", "qwen3-8b", "--tflops", "100", "--tokens", "5000000"]) == 0
    text = capsys.readouterr().out
    for name in published_sizes():
        for method in COUNTED_METHODS:
            assert f"| Qwen3-{name} | {method} | " in text
    assert "not measured" in text and "100 TFLOP/s as given" in text and "5,000,000 tokens" in text
    assert main(["estimate", "--profile", "qwen3-8b", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    profile = load_profile("qwen3-8b")
    assert result == estimate(profile) | {"evaluation": estimate_replies(profile, profile_sizes(profile))}
    assert len(result["table"]) == 3 * len(SIZES) and result["method"] == "qlora" and result["time"]["seconds"] is None
    assert result["parameters"] == published_sizes()["8B"].parameters


def test_the_command_follows_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    totals = []
    for batch in (1, 8):
        assert main(["estimate", "--json", "--set", f"training.per_device_train_batch_size={batch}"]) == 0
        totals.append(json.loads(capsys.readouterr().out)["memory_bytes"]["cpu"]["total"])
    assert totals[0] < totals[1]
    assert main(["estimate", "--set", "model.load_in_4bit=false"]) == 0
    assert "(lora)" in capsys.readouterr().out


@pytest.mark.parametrize("rate", ["0", "-3", "fast", "inf", "nan"])
def test_a_rate_that_is_none_is_refused(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", f"--tflops={rate}"])
    assert stopped.value.code == 2 and "needs a number above 0" in capsys.readouterr().err
