from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.evaluation.diagnose import diagnose, diverged, oscillating, out_of_memory, over_fitting, too_slow
from pipeline.settings import load_profile

PROFILE = load_profile("embedded")
STEPS = np.arange(25, 1401, 25)


def entries(values: Any, steps: Any = STEPS) -> list[dict[str, float]]:
    return [{"step": int(s), "loss": float(v)} for s, v in zip(steps, values, strict=True)]


def calm(noise: float = 0.1, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """A run as it should be: it falls, flattens, and single batches vary a little."""
    random = np.random.default_rng(seed)
    course = 0.2 + 1.8 * np.exp(-STEPS / 200)
    return scale * course * (1 + noise * random.standard_normal(len(STEPS)))


@settings(max_examples=examples(30))
@given(st.integers(0, 10_000), st.floats(0, 0.12), st.floats(1e-4, 1e3))
def test_a_calm_run_of_any_scale_is_healthy(seed: int, noise: float, scale: float) -> None:
    run = entries(calm(noise, seed, scale))
    assert oscillating(run, PROFILE) is None
    assert diverged(run, PROFILE) is None


@settings(max_examples=examples(20))
@given(st.integers(0, 10_000), st.floats(0.7, 1.5), st.floats(1e-3, 1e2))
def test_swings_as_large_as_the_loss_are_found_at_any_scale(seed: int, size: float, scale: float) -> None:
    swing = size * np.where(np.arange(len(STEPS)) % 2, 1, -0.6)
    found = oscillating(entries(calm(0.02, seed, scale) * (1 + swing)), PROFILE)
    assert found and found.numbers["part"] > 0.35 and "training.learning_rate=0.0005" in found.change
    assert "off its trend" in found.evidence


def test_one_outlier_is_no_oscillation() -> None:
    losses = calm(0.05)
    losses[40] *= 20
    assert oscillating(entries(losses), PROFILE) is None and diverged(entries(losses), PROFILE) is None


def test_divergence() -> None:
    losses = calm(0.05)
    losses[30:] = np.linspace(0.3, 3, len(losses) - 30)
    found = diverged(entries(losses), PROFILE)
    assert found and "training.learning_rate=0.000333333" in found.change and 400 < found.numbers["step"] < 900


def test_over_fitting() -> None:
    validation = entries([0.8, 0.5, 0.45, 0.6, 0.9], [100, 300, 500, 900, 1400])
    found = over_fitting({"loss": entries(calm()), "eval_loss": validation}, PROFILE)
    assert found and found.numbers["step"] == 500 and found.numbers["rise"] == pytest.approx(1.0)
    assert found.change[0] == "training.max_steps=500" and "36% of the run" in found.evidence
    falling = entries([0.8, 0.5, 0.45, 0.44, 0.44], [100, 300, 500, 900, 1400])
    assert over_fitting({"loss": entries(calm()), "eval_loss": falling}, PROFILE) is None
    rising = entries(np.linspace(0.2, 2, len(STEPS)))  # both rise: that is no over-fitting
    assert over_fitting({"loss": rising, "eval_loss": validation}, PROFILE) is None


def test_too_slow() -> None:
    still = too_slow(entries(2 - STEPS / 1400), PROFILE)
    assert still and "still fell" in still.evidence and "training.max_steps=2800" in still.change
    stuck = too_slow(entries(2 - 0.05 * STEPS / 1400), PROFILE)
    assert stuck and "training.learning_rate=0.005" in stuck.change
    assert too_slow(entries(calm()), PROFILE) is None


def test_memory() -> None:
    found = out_of_memory({"peak_memory_bytes": 95}, PROFILE, available=100)
    assert found and found.change[:2] == [
        "training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=2",
    ]  # fmt: skip
    assert out_of_memory({"peak_memory_bytes": 80}, PROFILE, available=100) is None


# --- a whole run directory ----------------------------------------------------------------------------------------------


def cell(scores: dict[str, float], fidelity: float, truncated: float = 0.0, n: int = 200) -> dict[str, Any]:
    from pipeline.core.statistics import wilson

    benchmarks = {k: {"score": v, "n": n, "ci95": wilson(v * n, n)} for k, v in scores.items()}
    return {"cell": {"benchmarks": benchmarks, "mode_fidelity": fidelity, "truncated": truncated}}


def directory(folder: Path, loss: Any = None, tuned: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text("{}", encoding="utf-8")
    (folder / "profile.yaml").write_text(yaml.safe_dump(PROFILE.model_dump()), encoding="utf-8")
    record = {"loss": entries(calm()) if loss is None else loss, "peak_memory_bytes": 2**20}
    record["eval_loss"] = entries([0.9, 0.5, 0.4, 0.4], [350, 700, 1050, 1400])
    (folder / "training.json").write_text(json.dumps(record), encoding="utf-8")
    for which in ("base", "tuned") if tuned else ():
        for mode in ("thinking", "non_thinking"):
            path = folder / "evaluation" / which / mode
            path.mkdir(parents=True)
            good = cell({"chat": 0.99}, 0.995)
            (path / "cell.json").write_text(json.dumps(tuned.get(mode, good) if which == "tuned" else good))
    return folder


def test_a_healthy_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = directory(tmp_path / "run", tuned={"thinking": cell({"chat": 0.985}, 0.99)})
    assert diagnose(folder) == {"findings": [], "not_judged": []}
    assert main(["diagnose", str(folder)]) == 0 and "healthy" in capsys.readouterr().out


def test_lost_modes_forgetting_and_cut_replies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = {"thinking": cell({"chat": 0.99}, 0.4), "non_thinking": cell({"chat": 0.6}, 0.8, truncated=0.2)}
    folder = directory(tmp_path / "run", tuned=tuned)
    found = {f["name"]: f for f in diagnose(folder)["findings"]}
    assert list(found) == ["lost thinking", "does not stop thinking", "replies are cut", "forgetting"]
    assert "0.995 to 0.400 (n = 200)" in found["lost thinking"]["evidence"]
    assert found["replies are cut"]["change"] == ["evaluation.sampling.non_thinking.max_new_tokens=128"]
    assert all(f["rule"] and f["evidence"] and f["numbers"] for f in found.values())
    for finding in found.values():  # what is advised can be given to --set
        load_profile("embedded", finding["change"])
    assert main(["diagnose", str(folder), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 4


def test_what_cannot_be_judged_is_said(tmp_path: Path) -> None:
    folder = directory(tmp_path / "run", loss=entries([1.0, 0.5], [1, 2]))
    result = diagnose(folder)
    assert result["findings"] == [] and len(result["not_judged"]) == 2
    assert (
        "2 values were logged, 12 are needed" in result["not_judged"][0] and "not evaluated" in result["not_judged"][1]
    )


def test_bad_directories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run directory"):
        diagnose(tmp_path)
    folder = directory(tmp_path / "run")
    (folder / "training.json").write_text('{"loss": []}', encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        diagnose(folder)
    (folder / "training.json").unlink()
    with pytest.raises(UserError, match="no finished training"):
        diagnose(folder)
