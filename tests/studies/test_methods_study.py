"""The comparison of methods: what it shows, what it refuses, and a small one for real."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.settings import METHODS
from pipeline.studies.arms import load_arms, plan_arms
from pipeline.studies.methods import ARMS, draw_methods, methods_table, run_methods

ROOT = Path(__file__).resolve().parents[2]


def rate(value: float) -> dict[str, Any]:
    return {"value": value, "ci95": [max(0.0, value - 0.05), min(1.0, value + 0.05)]}


def modes(value: float) -> dict[str, Any]:
    own = {"embedded_skill": rate(value) | {"n": 60, "p": None, "mode_fidelity": rate(1.0)}}
    return {mode: {"benchmarks": own, "mode_fidelity": rate(0.98)} for mode in ("thinking", "non_thinking")}


def result() -> dict[str, Any]:
    costs = {
        "method": "lora", "why": "", "learning_rate": 0.0045, "steps": 4, "precision": "16 bit",
        "trainable_parameters": 409_600, "total_parameters": 1_721_984, "tokens_per_second": 5000.0,
        "training_seconds": 61.2, "peak_memory_bytes": 2.0 * 2**30, "memory_above_base_bytes": 140.0 * 2**20,
        "disk_bytes": 1_645_616,
        "latency": {"base_ms": 2.0, "tuned_ms": 3.0, "added_ms": 1.0, "ci95": [0.9, 1.1], "rounds": 10},
    }  # fmt: skip
    points = [{"value": name, "modes": modes(value), "balance": rate(0.5)} for name, value in (("lora", 0.8),)]
    sweep = {
        "axis": "methods", "question": "What?", "seeds": [1], "base": modes(0.0), "points": points, "learnt": [],
        "known": [], "pareto": ["lora"], "recommended": ["lora"], "rule": "R.", "failed": [],
    }  # fmt: skip
    return {"how": "How it was measured.", "methods": [{"name": "lora", **costs}], "sweep": sweep}


def test_tables_and_picture(tmp_path: Path) -> None:
    text = methods_table(result(), "cost")
    row = text.splitlines()[2]
    for shown in (
        "| lora | 16 bit | 0.0045 | 409,600 | 23.79% | 140 | 2,048 | 5,000 | 61 | 1,607 |",
        "+1.00 [+0.90, +1.10]",
    ):
        assert shown in row
    assert "+50%" in row and text.endswith("How it was measured.")
    assert len({line.count("|") for line in text.splitlines()[:3]}) == 1
    assert "0.800 [0.750, 0.850]" in methods_table(result(), "quality") and methods_table(result()).startswith(text)
    unmeasured = result()
    unmeasured["methods"][0]["memory_above_base_bytes"] = None
    assert "not measured" in methods_table(unmeasured)
    draw_methods(result(), tmp_path / "methods.png")
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_an_arm_for_every_method_with_its_reason(tmp_path: Path) -> None:
    arms = load_arms(ARMS)
    cells = plan_arms("embedded", [], arms, 1, tmp_path)
    assert sorted(cell.profile.chosen_method for cell in cells) == sorted(METHODS)
    assert all(cell.value == cell.profile.chosen_method for cell in cells)
    assert all(arm.why for arm in arms.arms.values())


def test_an_unknown_method_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="has no 'dorra'.*'dora'"):
        run_methods("embedded", tmp_path, ["dorra"])
    assert main(["methods", "--methods", "lora,x", "--output-dir", str(tmp_path / "m")]) == 2
    assert "--methods" in capsys.readouterr().err and not (tmp_path / "m").exists()


@pytest.mark.nightly
@pytest.mark.slow
def test_two_methods_and_one_that_fails(
    pipeline_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    tiny = ["training.max_steps=4", "training.eval_steps=4", "evaluation.limit=4", "mix.total=120"]
    (tmp_path / "arms.yaml").write_text(
        "question: Which?\narms:\n  prompt: {set: [method=prompt]}\n  adapter: {set: [method=adapter]}\n"
        "  full: {set: [method=full, training.learning_rate=1e30]}\n",
        encoding="utf-8",
    )
    arguments = ["--arms", str(tmp_path / "arms.yaml"), "--output-dir", str(tmp_path / "m"), "--json"]
    done = pipeline_command("methods", *arguments, sets=tiny, code=1)
    found = json.loads(done.stdout)
    assert [m["name"] for m in found["methods"]] == ["prompt", "adapter"]
    (failed,) = found["sweep"]["failed"]
    assert failed["value"] == "full" and "learning_rate" in failed["reason"]
    for entry in found["methods"]:
        assert entry["latency"]["base_ms"] > 0 and entry["latency"]["rounds"] == 10
        assert entry["disk_bytes"] > 4 * entry["trainable_parameters"] and entry["training_seconds"] > 0
    assert (tmp_path / "m" / "methods.png").exists()
