from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import unsloth  # noqa: F401  (before transformers)
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainerCallback

from pipeline.errors import UserError
from pipeline.trainer import LOWEST, WINDOW, LengthGroupedSampler, exponential

LENGTHS = st.lists(st.integers(1, 300), max_size=700)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 16), st.integers(0, 5))
def test_every_example_comes_once_an_epoch(lengths: list[int], batch: int, seed: int) -> None:
    sampler = LengthGroupedSampler(lengths, batch, seed)
    assert sorted(sampler) == list(range(len(lengths))) and len(sampler) == len(lengths)
    assert list(sampler) == list(sampler)
    if len(lengths) >= batch:
        assert max(lengths) == max(lengths[i] for i in list(sampler)[:batch])  # what needs most memory comes first


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    lengths = [i % 50 for i in range(400)]
    sampler = LengthGroupedSampler(lengths, 8, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first != list(LengthGroupedSampler(lengths, 8, seed=2))
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_little_padding_and_the_mix_in_every_few_steps() -> None:
    """Half short chat, half long reasoning: padding as with sorted windows, but no long stretch of one kind."""
    lengths = [30 + i % 20 if i % 2 else 110 + i % 30 for i in range(8000)]
    batch = 8
    order = list(LengthGroupedSampler(lengths, batch, seed=0))
    batches = [[lengths[i] for i in order[b : b + batch]] for b in range(0, len(order), batch)]
    padded = sum(max(b) * len(b) for b in batches)
    assert padded < 1.05 * sum(lengths)
    long = [sum(length > 80 for length in b) / len(b) for b in batches]
    shares = [sum(long[i : i + 40]) / 40 for i in range(0, len(long) - 40)]
    assert min(shares) > 0.15 and max(shares) < 0.85  # sorted windows give 0 and 1
    runs = [sum(1 for _ in group) for group in _runs([share > 0.5 for share in long])]
    assert max(runs) < WINDOW / 2


def _runs(values: list[bool]) -> list[list[bool]]:
    result: list[list[bool]] = []
    for value in values:
        if not result or result[-1][0] != value:
            result.append([])
        result[-1].append(value)
    return result


def test_exponential_schedule() -> None:
    factor = exponential(10, 110)
    assert [factor(0), factor(5), factor(10)] == [0.0, 0.5, 1.0]
    assert factor(60) == pytest.approx(math.sqrt(LOWEST)) and factor(110) == pytest.approx(LOWEST)
    ratios = [factor(step + 1) / factor(step) for step in range(10, 109)]
    assert max(ratios) == pytest.approx(min(ratios))


@pytest.fixture(scope="module")
def mix_and_profile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from pipeline.run import build_profile_mix
    from pipeline.settings import load_profile

    changes = ["training.max_steps=8", "training.save_steps=2", "training.eval_steps=100", "mix.total=200"]
    profile = load_profile("embedded", changes)
    return build_profile_mix(profile), profile


def trainer_of(mix_and_profile: tuple[Any, Any], folder: Path) -> Any:
    from pipeline.train import add_adapter, load_model, make_trainer

    mix, profile = mix_and_profile
    model, tokenizer = load_model(profile.model, profile.seed)
    model = add_adapter(model, profile.lora, profile.training, profile.seed)
    return make_trainer(model, tokenizer, profile, mix, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_loss_stops_at_its_step_and_leaves_the_checkpoint_before(
    value: float, mix_and_profile: tuple[Any, Any], tmp_path: Path
) -> None:
    trainer = trainer_of(mix_and_profile, tmp_path)

    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:  # before the fifth step, behind the checkpoint at the fourth
                with torch.no_grad():
                    next(p for n, p in trainer.model.named_parameters() if "lora_B" in n).fill_(value)

    trainer.add_callback(Poison())
    with pytest.raises(
        UserError, match=r"The loss became \S+ at step 5 \(learning rate .*The batch has 8 rows"
    ) as caught:
        trainer.train()
    assert "<|im_start|>" in str(caught.value) and "now 0.003" in str(caught.value)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_no_checkpoint_of_bad_weights_is_written(mix_and_profile: tuple[Any, Any], tmp_path: Path) -> None:
    trainer = trainer_of(mix_and_profile, tmp_path)

    class Poison(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:  # the loss of this step was fine
                with torch.no_grad():
                    next(p for n, p in trainer.model.named_parameters() if "lora_B" in n)[0] = float("nan")

    trainer.add_callback(Poison())
    with pytest.raises(UserError, match="Weights became NaN or infinite at step 4"):
        trainer.train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_the_exponential_schedule_reaches_the_optimiser(mix_and_profile: tuple[Any, Any], tmp_path: Path) -> None:
    mix, profile = mix_and_profile
    changed = profile.model_copy(deep=True)
    changed.training.lr_scheduler_type, changed.training.logging_steps = "exponential", 1
    trainer = trainer_of((mix, changed), tmp_path)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    warm_up = trainer.args.get_warmup_steps(8)
    assert rates == pytest.approx([0.003 * exponential(warm_up, 8)(step) for step in range(8)])
