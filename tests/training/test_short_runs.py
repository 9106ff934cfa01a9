"""A training of fewer steps than lie between two entries of the log still has a loss to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.second.stage import training_arguments
from pipeline.settings import load_profile
from pipeline.training.train import sft_config


@pytest.mark.parametrize(("steps", "expected"), [(3, 3), (25, 25), (400, 25), (-1, 25)])
def test_the_main_training(tmp_path: Path, steps: int, expected: int) -> None:
    profile = load_profile("embedded", [f"training.max_steps={steps}", "training.logging_steps=25"])
    assert sft_config(profile, tmp_path, has_validation=True).logging_steps == expected


@pytest.mark.parametrize("stage", ["preference", "grpo"])
@pytest.mark.parametrize("profile", ["embedded", "qwen3-0.6b"])
def test_second_stages(tmp_path: Path, stage: str, profile: str) -> None:
    settings = load_profile(profile, [f"{stage}.max_steps=2", f"{stage}.logging_steps=5"])
    assert training_arguments(settings, getattr(settings, stage), tmp_path, False)["logging_steps"] == 2
