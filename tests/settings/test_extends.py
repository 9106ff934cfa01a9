"""A profile over another: what it says replaces, what it does not say stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.settings import load_profile
from pipeline.settings.section import PROFILES
from pipeline.studies.arms import Arm, load_arms, plan_arms, settings_for


def write(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return str(folder / f"{name}.yaml")


def test_every_shipped_profile_loads_under_its_own_name() -> None:
    for path in PROFILES.glob("*.yaml"):
        assert load_profile(path.stem).name == path.stem


def test_sections_are_merged_and_lists_replaced(tmp_path: Path) -> None:
    own = write(
        tmp_path, "mine", "extends: embedded\nname: mine\ntraining: {max_steps: 7}\nevaluation: {benchmarks: [gsm8k]}\n"
    )
    mine, parent = load_profile(own), load_profile("embedded")
    assert mine.training.max_steps == 7 and mine.evaluation.benchmarks == ["gsm8k"]
    mine.training.max_steps, mine.evaluation.benchmarks = parent.training.max_steps, parent.evaluation.benchmarks
    mine.name, mine.based_on = parent.name, []
    assert mine == parent


def test_over_several_and_with_overrides(tmp_path: Path) -> None:
    write(tmp_path, "a", "extends: embedded\nname: a\ntraining: {max_steps: 7, eval_steps: 3}\n")
    b = write(tmp_path, "b", "extends: a.yaml\nname: b\ntraining: {max_steps: 8}\n")
    profile = load_profile(b, ["training.eval_steps=5"])
    assert (profile.training.max_steps, profile.training.eval_steps) == (8, 5)
    assert profile.based_on == ["a", "embedded"] and profile.lineage == ["embedded", "a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: x.yaml\nname: x\n", r"cannot extend itself \(x.yaml → x.yaml\)"),
        ("extends: embeded\nname: x\n", "extends: There is no profile 'embeded'. Did you mean 'embedded'"),
        ("extends: embedded\n", "needs a name of its own"),
        ("extends: [embedded, other]\nname: x\n", "should name one profile"),
        ("extends: embedded\nname: x\ntrainign: {}\n", "unknown key 'trainign'"),
    ],
)
def test_what_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_profile(write(tmp_path, "x", text))


def test_round_trips_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a", "extends: b.yaml\nname: a\n")
    b = write(tmp_path, "b", "extends: a.yaml\nname: b\n")
    with pytest.raises(UserError, match=r"b.yaml → a.yaml → b.yaml"):
        load_profile(b)


def test_a_profile_that_was_written_out_loads_the_same(tmp_path: Path) -> None:
    import yaml

    whole = load_profile("qwen3-8b-full")
    assert load_profile(write(tmp_path, "whole", yaml.safe_dump(whole.model_dump()))) == whole


# --- rates of studies follow the size -----------------------------------------------------------------------------------


def test_an_arm_has_settings_by_profile(tmp_path: Path) -> None:
    arm = Arm.model_validate({"set": ["a=1"], "profiles": {"embedded": ["a=2"], "mine": ["a=3"]}})
    assert settings_for(arm, ["qwen3-8b"]) == ["a=1"]
    assert settings_for(arm, ["embedded", "mine"]) == ["a=1", "a=2", "a=3"]


@pytest.mark.parametrize("file", ["methods", "lora", "precision", "rank"])
def test_real_profiles_do_not_get_the_small_models_rates(tmp_path: Path, file: str) -> None:
    cells = plan_arms("qwen3-0.6b", [], load_arms(file), 1, tmp_path)
    for cell in cells:
        most = {"prompt": 3e-2, "ia3": 3e-3, "prefix": 1e-3}.get(str(cell.value), 2e-4)
        assert cell.profile.training.learning_rate <= most, cell.value
        assert cell.profile.training.lr_scheduler_type == "linear"  # the profile's own
