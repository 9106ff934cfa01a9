"""What another framework is not told, as far as it depends on one setting alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

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
        plan: Any = SimpleNamespace(profile=load_profile("qwen3-0.6b", list(sets)), in_4bit=True, gpus=1)
        return [text for text in not_carried(plan) if word in text]

    assert found() == [] and len(found(setting)) == 1
