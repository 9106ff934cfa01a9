"""A run is held against the reference of its profile, and only where the settings are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.files import read_json, write_json
from pipeline.core.modes import MODES
from pipeline.evaluation.report import reference as module
from pipeline.evaluation.report.reference import FIDELITY, Reference, compare_with_reference, reference_of
from pipeline.settings import load_profile, load_recipe


def report(skill: float, low: float, high: float) -> dict[str, Any]:
    cell = {
        "benchmarks": {"skill": {"score": skill, "n": 200, "ci95": [low, high]}},
        "mode_fidelity": 1.0,
        "mode_fidelity_ci95": [0.99, 1.0],
    }
    return {"evaluation": {"tuned": {mode: cell for mode in MODES}}}


@pytest.fixture
def reference() -> Reference:
    profile = load_profile("embedded")
    recipe = load_recipe(profile.recipe, profile.mix)
    runs = [
        {"seed": s, "tuned": {mode: {"skill": rate, FIDELITY: 1.0} for mode in MODES}}
        for s, rate in ((1, 0.8), (2, 0.9))
    ]
    return Reference.model_validate(
        {"command": "c", "machine": "m", "profile": profile.model_dump(), "recipe": recipe.model_dump(), "runs": runs}
    )


def test_what_stands_apart_is_named(reference: Reference) -> None:
    assert compare_with_reference(report(0.76, 0.70, 0.81), reference)[0].startswith("All 4 rates agree")
    certain = report(0.76, 0.70, 0.81)
    for cell in certain["evaluation"]["tuned"].values():
        cell["mode_fidelity_ci95"] = [0.99, 1.0 - 1e-12]  # as Wilson's interval of 600 out of 600 comes out
    assert compare_with_reference(certain, reference)[0].startswith("All 4 rates agree")
    for skill, low, high in ((0.5, 0.43, 0.57), (0.97, 0.94, 0.99)):
        lines = compare_with_reference(report(skill, low, high), reference)
        assert lines[0].startswith("2 of 4 rates") and "0.800 to 0.900" in lines[1] and "thinking" in lines[1]


def write_run(folder: Path, *overrides: str) -> None:
    profile = load_profile("embedded", list(overrides))
    recipe = load_recipe(profile.recipe, profile.mix)
    folder.mkdir()
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile.model_dump()))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump()))


def test_only_the_same_settings_are_compared(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFERENCES", tmp_path)
    write_run(tmp_path / "seed", "seed=5", "evaluation.workers=1")
    assert reference_of(tmp_path / "seed") is None  # there is none yet
    stored = reference.model_dump()
    del stored["profile"]["evaluation"]["workers"]  # a setting that is newer than the reference
    write_json(tmp_path / "embedded.json", stored)
    assert reference_of(tmp_path / "seed") is not None
    same = ("model.cpu_threads=1", "evaluation.workers=3", "evaluation.batch_size=8", "data.workers=2", "grpo.beta=0.5")
    write_run(
        tmp_path / "same", "training.report_to=[tensorboard]", "training.save_total_limit=5", "estimate=null", *same
    )
    assert reference_of(tmp_path / "same") is not None
    for place, other in enumerate(
        ("training.max_steps=7", "model.dtype=bfloat16", "evaluation.limit=3", "mix.chat_share=0.4")
    ):
        write_run(tmp_path / f"other{place}", other)
        assert reference_of(tmp_path / f"other{place}") is None


def test_the_shipped_reference_is_of_the_default_settings(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    found = reference_of(tmp_path / "run")
    assert found is not None and len({run.seed for run in found.runs}) >= 3
    assert read_json(module.REFERENCES / "embedded.json")["command"].startswith("python -m pipeline run")
