"""Training held to the base: the loss against one computed whole, its gradient, which rows count; and two phases."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import unsloth  # noqa: F401  (before transformers)
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.mix import Mix
from pipeline.settings import load_profile
from pipeline.training import close
from pipeline.training.close import FLAG, WithFlags, losses
from pipeline.training.keeping import held_to_base, reasoning_rows
from pipeline.training.trainer import LengthGroupedSampler

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tuned(tiny_qwen3: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    base = tiny_qwen3(1, max_position_embeddings=64, initializer_range=0.3)
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))


@pytest.fixture
def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 1000, (3, 10), generator=generator)
    labels = ids.clone()
    labels[:, :4] = -100
    labels[1, 7:] = -100  # padding
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, FLAG: torch.tensor([True, False, True])}


def whole(tuned: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same sums from all logits at once."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    own = tuned(**inputs).logits[:, :-1]
    with torch.no_grad(), tuned.disable_adapter():
        base = tuned(**inputs).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    entropy = torch.nn.functional.cross_entropy(own.reshape(-1, own.shape[-1]), labels.reshape(-1), reduction="sum")
    p, q = torch.log_softmax(base, -1), torch.log_softmax(own, -1)
    each = (p.exp() * (p - q)).sum(-1)
    return entropy, each[(labels != -100) & batch[FLAG][:, None]].sum()


@pytest.mark.parametrize("chunk", [512, 3])
def test_loss_and_gradient_are_those_of_all_logits_at_once(
    tuned: Any, batch: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(close, "POSITIONS", chunk)
    gradients = []
    for compute in (lambda: losses(tuned, batch)[:2], lambda: whole(tuned, batch)):
        tuned.zero_grad()
        entropy, divergence = compute()
        (entropy + 0.5 * divergence).backward()
        parts = [p.grad.flatten() for p in tuned.parameters() if p.grad is not None]
        gradients.append((float(entropy.detach()), float(divergence.detach()), torch.cat(parts)))
    (e1, d1, g1), (e2, d2, g2) = gradients
    assert (e1, d1) == pytest.approx((e2, d2), rel=1e-4) and d1 > 0.01
    assert torch.allclose(g1, g2, rtol=1e-3, atol=1e-5) and float(g1.abs().max()) > 0
    assert losses(tuned, batch)[2] == 12  # six tokens of each of two rows; not those of the row that is free


def test_rows_that_are_free_are_not_held(tuned: Any, batch: dict[str, Any]) -> None:
    everything = losses(tuned, {**batch, FLAG: torch.tensor([True] * 3)})
    nothing = losses(tuned, {**batch, FLAG: torch.tensor([False] * 3)})
    assert (
        float(nothing[1].detach()) == 0
        and nothing[2] == 0
        and float(everything[1].detach()) > float(losses(tuned, batch)[1].detach()) > 0
    )
    assert float(nothing[0].detach()) == pytest.approx(float(everything[0].detach()))


def test_the_flag_of_a_row_stays_with_it() -> None:
    collate = WithFlags(lambda rows: {"ids": [row["ids"] for row in rows], "keys": [sorted(row) for row in rows]})
    got = collate([{"ids": 1, FLAG: False}, {"ids": 2, FLAG: True}, {"ids": 3}])
    assert got["ids"] == [1, 2, 3] and got[FLAG].tolist() == [False, True, True] and got["keys"] == [["ids"]] * 3


# --- which rows ---------------------------------------------------------------------------------------------------------


def mix_of(sources: list[tuple[str, str, str]], rows: list[str]) -> Any:
    from datasets import Dataset

    class Fixed(Mix):
        def __init__(self) -> None:
            self.manifest = {
                "recipe": {"sources": [dict(zip(("name", "source", "kind"), s, strict=True)) for s in sources]}
            }

        @property
        def train(self) -> Dataset:
            return Dataset.from_dict({"source": rows})

    return Fixed()


SOURCES = [("chat", "generated", "chat"), ("own", "base", "other"), ("math", "generated", "reasoning")]


def test_rows_of_the_base_are_told_by_their_source() -> None:
    profile = load_profile("embedded", ["training.kl_to_base=1", "training.kl_rows=rehearsal"])
    assert held_to_base(profile, mix_of(SOURCES, ["chat", "own", "math"])) == [False, True, False]
    with pytest.raises(UserError, match="no row of the mix was written by the base"):
        held_to_base(profile, mix_of(SOURCES, ["chat", "math"]))
    profile.training.kl_rows = "all"
    assert held_to_base(profile, mix_of(SOURCES, ["chat", "math"])) == [True, True]


def test_reasoning_comes_first_as_far_as_there_is_any() -> None:
    profile = load_profile("embedded", ["training.reasoning_first=0.25"])
    rows = ["chat", "math", "own", "math"] * 10
    first = reasoning_rows(profile, mix_of(SOURCES, rows))
    assert len(first) == 10 and {rows[i] for i in first} == {"math"}
    profile.training.reasoning_first = 0.6
    with pytest.raises(UserError, match=r"24 rows of kind reasoning, .* 20; .* at most 0.50"):
        reasoning_rows(profile, mix_of(SOURCES, rows))


@settings(max_examples=examples(30))
@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=200), st.integers(1, 8))
def test_the_first_epoch_begins_with_the_first_rows_and_leaves_none_out(
    rows: list[tuple[int, bool]], batch: int
) -> None:
    first = [i for i, (_, early) in enumerate(rows) if early]
    sampler = LengthGroupedSampler([length for length, _ in rows], batch, 1, first)
    order = list(sampler)
    assert sorted(order) == list(range(len(rows))) and set(order[: len(first)]) == set(first)
    sampler.set_epoch(1)
    plain = LengthGroupedSampler([length for length, _ in rows], batch, 1)
    plain.set_epoch(1)
    assert list(sampler) == list(plain)


# --- through the pipeline -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_held_moves_less(pipeline_command: Command, tmp_path: Path) -> None:
    """The same rows and steps, with and without the weight: nearer to the base, by what the trainer logs."""
    steps = [f"training.{name}=12" for name in ("max_steps", "eval_steps", "save_steps")]
    short = ["recipe=data_recipes/embedded.yaml", "mix.total=200", "training.logging_steps=4", *steps]
    curves = {}
    for weight in ("0.000001", "100"):
        folder = tmp_path / weight
        pipeline_command("train", "--output-dir", str(folder), sets=[*short, f"training.kl_to_base={weight}"])
        record = json.loads((folder / "training.json").read_text())
        assert record["tokens_per_second"] > record["loss_tokens_per_second"] > 0
        curves[weight] = record["loss"][-1]["kl"]
    assert 0 < curves["100"] < 0.6 * curves["0.000001"]


def test_methods_without_a_switch_are_refused(tmp_path: Path) -> None:
    from pipeline.training.loop import Session
    from pipeline.training.train import train

    profile = load_profile("embedded", ["method=prompt", "training.kl_to_base=1"])
    with pytest.raises(UserError, match="method prompt has none that can be"):
        model = type("Model", (), {"dtype": torch.float32})()
        train(model, None, profile, None, Session(tmp_path))  # type: ignore[arg-type]
