from __future__ import annotations

import inspect
import linecache
import math
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import unsloth  # noqa: F401  (before transformers)
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from pipeline.core.errors import UserError
from pipeline.training.measure import TokenCounter
from pipeline.training.trainer import (
    LOWEST,
    WINDOW,
    LengthGroupedSampler,
    disk_full,
    exponential,
    memory_advice,
    out_of_memory,
)

LENGTHS = st.lists(st.integers(1, 300), max_size=700)


@settings(max_examples=examples(30))
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
    from pipeline.data.describe import build_profile_mix
    from pipeline.settings import load_profile

    changes = [
        "recipe=data_recipes/embedded.yaml",
        "training.max_steps=8",
        "training.save_steps=2",
        "training.eval_steps=100",
        "mix.total=200",
    ]
    profile = load_profile("embedded", changes)
    return build_profile_mix(profile), profile


def trainer_of(mix_and_profile: tuple[Any, Any], folder: Path) -> Any:
    from pipeline.model.load import load_model
    from pipeline.training.train import add_adapter, make_sft_trainer

    mix, profile = mix_and_profile
    model, tokenizer = load_model(profile.model, profile.seed)
    model = add_adapter(model, profile.lora, profile.training, profile.seed)
    return make_sft_trainer(model, tokenizer, profile, mix, folder)


@pytest.mark.slow
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
    with pytest.raises(UserError, match=r"loss became \S+ at step 5 \(.*batch has 8 rows") as caught:
        trainer.train()
    assert "<|im_start|>" in str(caught.value) and "now 0.001" in str(caught.value)
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


@pytest.mark.slow
def test_the_exponential_schedule_reaches_the_optimiser(mix_and_profile: tuple[Any, Any], tmp_path: Path) -> None:
    mix, profile = mix_and_profile
    changed = profile.model_copy(deep=True)
    changed.training.lr_scheduler_type, changed.training.logging_steps = "exponential", 1
    trainer = trainer_of((mix, changed), tmp_path)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    warm_up = trainer.args.get_warmup_steps(8)
    assert rates == pytest.approx([0.001 * exponential(warm_up, 8)(step) for step in range(8)])


def test_a_gradient_that_is_not_finite_stops_at_its_step(mix_and_profile: tuple[Any, Any], tmp_path: Path) -> None:
    """The loss of that step is fine; without the check, the next one would be the first to be bad."""
    trainer = trainer_of(mix_and_profile, tmp_path)
    parameter = next(p for n, p in trainer.model.named_parameters() if "lora_B" in n)
    before: list[torch.Tensor] = []

    def poison(gradient: torch.Tensor) -> torch.Tensor | None:
        if trainer.state.global_step != 4:
            return None
        before.append(parameter.detach().clone())
        return gradient * float("inf")

    parameter.register_hook(poison)
    with pytest.raises(UserError, match=r"gradient became \S+ at step 5 .*batch has 8 rows"):
        trainer.train()
    assert torch.equal(parameter, before[0])  # the step was not taken
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.slow
def test_what_was_seen_on_a_gpu_is_looked_at_together(mix_and_profile: tuple[Any, Any], tmp_path: Path) -> None:
    """A device that computes on its own is asked only where a step is logged or saved; the step is named all the same."""
    mix, profile = mix_and_profile
    changed = profile.model_copy(deep=True)
    changed.training.logging_steps, changed.training.save_steps, changed.training.gradient_accumulation_steps = 4, 8, 2
    changed.training.per_device_train_batch_size = 1
    trainer = trainer_of((mix, changed), tmp_path)
    trainer._watch.at_once = False
    asked: list[int] = []
    look = trainer._watch.look

    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                with torch.no_grad():
                    next(p for n, p in trainer.model.named_parameters() if "lora_B" in n).fill_(float("nan"))

    def noted() -> Any:
        asked.append(trainer.state.global_step)
        return look()

    trainer._watch.look = noted
    trainer.add_callback(Poison())
    with pytest.raises(UserError, match=r"The loss became nan at step 6 .*The batch has 1 rows"):
        trainer.train()
    assert asked == [4, 8] and not list(tmp_path.glob("checkpoint-*"))


class Fetched(TorchDispatchMode):
    """Counts the numbers that this package has a device give, outside of a look: each is a wait, on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            frame = inspect.currentframe()
            while frame and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
                frame = frame.f_back
            where = frame.f_code.co_qualname if frame else ""
            # The sampler's numbers lie on the CPU on every machine; validation and saving are no steps of training.
            other = any(name in where for name in ("Sampler", "prediction_step", "_save_checkpoint"))
            ours = frame and "/pipeline/" in frame.f_code.co_filename and not other
            if frame and (ours or "isinf(tr_loss" in _source(frame)):
                self.places.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return func(*args, **(kwargs or {}))


def _source(frame: FrameType) -> str:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno)


def test_no_number_is_fetched_between_two_looks(mix_and_profile: tuple[Any, Any], tmp_path: Path) -> None:
    mix, profile = mix_and_profile
    changed = profile.model_copy(deep=True)
    changed.training.logging_steps, changed.training.save_steps = 3, 100
    changed.training.per_device_train_batch_size = 1
    trainer = trainer_of((mix, changed), tmp_path)
    trainer._watch.at_once = False
    trainer.args.max_steps = 2
    counter = TokenCounter(trainer.model)
    with Fetched() as fetched:
        trainer.train()
    counter.close()
    assert fetched.places == []
    assert counter.tokens > counter.loss_tokens > 0


def test_a_weight_that_takes_no_part_stops_the_training(mix_and_profile: tuple[Any, Any], tmp_path: Path) -> None:
    trainer = trainer_of(mix_and_profile, tmp_path)
    trainer.model.register_parameter("idle", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(UserError, match=r"1 of \d+ trained weights took no part .* \(idle"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_an_infinite_norm_is_normal_while_a_scaler_settles(mix_and_profile: tuple[Any, Any], tmp_path: Path) -> None:
    """Cards without bfloat16 train in float16, with scaled gradients; the scaler skips the first steps."""
    mix, profile = mix_and_profile
    changed = profile.model_copy(deep=True)
    changed.training.per_device_train_batch_size, changed.training.max_steps, changed.training.save_steps = 1, 4, 100
    trainer = trainer_of((mix, changed), tmp_path)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)
    parameter = next(p for n, p in trainer.model.named_parameters() if "lora_B" in n)
    parameter.register_hook(lambda gradient: gradient * float("inf") if trainer.state.global_step < 2 else None)
    norms: list[float] = []
    norm_of = trainer._get_grad_norm

    def noted(*args: Any, **kwargs: Any) -> Any:
        norms.append(float(norm_of(*args, **kwargs)))
        for p in trainer.model.parameters():  # what a scaler does with a step that it skips
            if p.grad is not None and not math.isfinite(norms[-1]):
                p.grad = torch.zeros_like(p)
        return norms[-1]

    trainer._get_grad_norm = noted
    trainer.train()
    assert [math.isfinite(norm) for norm in norms] == [False] * 2 + [True] * 2


def test_a_validation_loss_that_is_not_finite_stops(mix_and_profile: tuple[Any, Any], tmp_path: Path) -> None:
    mix, profile = mix_and_profile
    changed = profile.model_copy(deep=True)
    changed.training.eval_steps = 4
    trainer = trainer_of((mix, changed), tmp_path)

    def poison(model: Any, args: Any, kwargs: Any) -> None:
        if not model.training:
            with torch.no_grad():
                next(p for n, p in model.named_parameters() if "lora_B" in n).fill_(float("nan"))

    trainer.model.register_forward_pre_hook(poison, with_kwargs=True)
    with pytest.raises(UserError, match=r"validation loss became nan at step 4 .* \d+ rows"):
        trainer.train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]  # the one at 4 would have come after it


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_that_does_not_fit_says_what_to_lower(
    training: bool, mix_and_profile: tuple[Any, Any], tmp_path: Path
) -> None:
    mix, profile = mix_and_profile
    changed = profile.model_copy(deep=True)
    changed.training.eval_steps, changed.training.per_device_eval_batch_size = 4, 8
    trainer = trainer_of((mix, changed), tmp_path)

    def hungry(model: Any, args: Any, kwargs: Any) -> None:
        if trainer.state.global_step == 4 and model.training == training:
            torch.empty(2**55)  # torch's own allocator refuses it

    trainer.model.register_forward_pre_hook(hungry, with_kwargs=True)
    with pytest.raises(UserError) as caught:
        trainer.train()
    text = str(caught.value)
    assert ("a batch of training at step 5: 8 rows" if training else "a batch of validation at step 4: 8 rows") in text
    assert "1. training.per_device_train_batch_size=4 with training.gradient_accumulation_steps=2" in text
    assert "2. training.gradient_checkpointing=true; 3. model.max_seq_length=128" in text
    assert (tmp_path / "checkpoint-2").exists() and (tmp_path / "checkpoint-4").exists() == training


def test_advice_follows_the_settings() -> None:
    assert memory_advice(1, 16, True, None) == []
    assert memory_advice(1, 16, True, 2048) == ["model.max_seq_length=1024 (longer rows are dropped and counted)"]
    (first, second) = memory_advice(3, 2, False, None)
    # The rows of a step stay at least what they were.
    assert first == "training.per_device_train_batch_size=1 with training.gradient_accumulation_steps=6"
    assert second == "training.gradient_checkpointing=true"


def test_which_errors_mean_memory_and_which_a_full_disk() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert out_of_memory(caught.value) and out_of_memory(MemoryError())
    assert out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not out_of_memory(RuntimeError("shape '[3]' is invalid")) and not out_of_memory(ValueError("out of memory"))
    assert disk_full(OSError(28, "No space left on device")) and not disk_full(OSError(13, "Permission denied"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_a_disk_that_fills_up_keeps_the_checkpoint_before(
    file: str, mix_and_profile: tuple[Any, Any], tmp_path: Path
) -> None:
    trainer = trainer_of(mix_and_profile, tmp_path)
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / file).symlink_to("/dev/full")  # whatever is written there meets a full disk
    with pytest.raises(UserError, match=r"disk is full .*checkpoint at step 4 could not"):
        trainer.train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
