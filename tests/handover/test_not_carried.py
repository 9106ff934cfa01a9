"""What another framework is not told, as far as it depends on one setting alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.handover.configs import axolotl, commands, llama_factory, ms_swift, trl
from pipeline.handover.plan import HandoverPlan, plan_handover
from pipeline.handover.write import not_carried
from pipeline.settings import load_profile


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("model.chat_template_kwargs={reasoning_effort: low}", "reasoning_effort"),
        ("training.early_stopping_patience=2", "Early stopping"),
        ("lora.plus_lr_ratio=16", "LoRA+"),
    ],
)
def test_it_is_said_where_it_is_set(setting: str, word: str) -> None:
    def found(*sets: str) -> list[str]:
        return [text for text in not_carried("ms-swift", training(*sets)) if word in text]

    assert found() == [] and len(found(setting)) == 1


def training(*sets: str, gpus: int = 1) -> HandoverPlan:
    return plan_handover(load_profile("qwen3-0.6b", list(sets)), rows=100, gpus=gpus)


def test_axolotl_takes_a_mean_of_means() -> None:
    """Where there is more than one micro-batch a step: measured in docs/audit.md."""
    one = ["training.per_device_train_batch_size=8", "training.gradient_accumulation_steps=1"]
    four = ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=4"]

    def said(target: str, made: HandoverPlan) -> bool:
        return any("micro-batch" in text for text in not_carried(target, made))

    assert said("axolotl", training(*four)) and said("axolotl", training(*one, gpus=4))
    assert not said("axolotl", training(*one)) and not said("ms-swift", training(*four))


def test_axolotl_makes_two_of_one_warm_up_step() -> None:
    one, two = training("training.warmup_steps=1"), training("training.warmup_steps=2")
    assert any("warm-up" in text for text in not_carried("axolotl", one))
    assert not any("warm-up" in text for text in [*not_carried("axolotl", two), *not_carried("trl", one)])


def test_a_model_of_modelscope() -> None:
    """Two read from there when told so; of the other two it is said that they do not."""
    there = training("model.source=modelscope", "model.name=Qwen/Qwen3-0.6B")
    here = training()
    for target in ("trl", "axolotl"):
        assert any("ModelScope" in text for text in not_carried(target, there))
        assert not any("ModelScope" in text for text in not_carried(target, here))
    assert ms_swift(there)["use_hf"] is False and ms_swift(here)["use_hf"] is True
    assert commands("llama-factory", there)["one GPU"].startswith("USE_MODELSCOPE_HUB=1 llamafactory-cli")
    assert commands("llama-factory", here)["one GPU"].startswith("llamafactory-cli")


@pytest.mark.parametrize(
    ("write", "key"),
    [
        (trl, "model_revision"),
        (llama_factory, "model_revision"),
        (ms_swift, "model_revision"),
        (axolotl, "revision_of_model"),
    ],
)
def test_the_revision_goes_along(write: Callable[[HandoverPlan], dict[str, Any]], key: str) -> None:
    assert write(training("model.revision=abc123"))[key] == "abc123" and key not in write(training())


@pytest.mark.parametrize(
    ("write", "key"),
    [(trl, "model_name_or_path"), (llama_factory, "model_name_or_path"), (ms_swift, "model"), (axolotl, "base_model")],
)
def test_a_local_base_is_found_from_another_folder(write: Callable[[HandoverPlan], dict[str, Any]], key: str) -> None:
    made = plan_handover(load_profile("embedded", ["recipe=data_recipes/embedded.yaml"]), rows=100, gpus=1)
    assert Path(write(made)[key]).is_absolute() and (Path(write(made)[key]) / "config.json").exists()
    assert write(training())[key] == load_profile("qwen3-0.6b").model.name  # a hub's name stays
