"""The benchmarks of training: their tables and rules from made numbers, and one tiny run of each."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.training.estimate import memory, published_sizes

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "models" / "embedded"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    return _load(request.param)


def case(**changes: Any) -> dict[str, Any]:
    made = {"model": "m", "method": "lora", "batch": 2, "length": 16, "gradient_checkpointing": False}
    made |= {"trainable": "float32", "estimated": 110 * 2**20, "measured": 100 * 2**20, "ratio": 1.1, "held": None}
    return made | {"libraries": 600 * 2**20} | changes


@pytest.mark.parametrize("benchmark", ["estimate"], indirect=True)
def test_the_table_of_the_estimate_names_the_worst(benchmark: ModuleType) -> None:
    text = benchmark.table({"cases": [case(), case(method="full", ratio=0.8, held=2**28)]})
    assert "| m | lora | 2 × 16 | no | float32 | 110 MiB | 100 MiB | 1.10 |  |" in text
    assert "| 0.80 | 256 MiB |" in text
    assert "Furthest off: 0.80 (m, full)" in text and "600 to 600 MiB" in text


@pytest.mark.parametrize("benchmark", ["estimate"], indirect=True)
def test_the_estimate_of_a_case_is_that_of_its_settings(benchmark: ModuleType) -> None:
    (one,) = benchmark.make_cases("embedded", EMBEDDED, [("qlora", 4, 32, True, 4)], rank=8, steps=2, threads=1)
    profile = benchmark.case_profile(one, EMBEDDED)
    assert profile.model.load_in_4bit and profile.training.gradient_checkpointing and profile.lora.rank == 8
    parts = benchmark.estimated(one, cuda=False)
    more = benchmark.estimated(one | {"batch": 8}, cuda=False)
    assert parts["total"] == sum(v for k, v in parts.items() if k != "total") < more["total"]
    full = benchmark.estimated(one | {"method": "full", "trainable_bytes": 2}, cuda=False)
    assert full["weights"] < benchmark.estimated(one | {"method": "full"}, cuda=False)["weights"]


@pytest.mark.parametrize("benchmark", ["estimate"], indirect=True)
def test_every_large_case_stays_below_ten_gigabytes(benchmark: ModuleType, tmp_path: Path) -> None:
    from dataclasses import replace

    from pipeline.training.estimate import profile_job

    for one in benchmark.make_cases("large", EMBEDDED, benchmark.LARGE_CASES, rank=32, steps=2, threads=1):
        job = profile_job(benchmark.case_profile(one, EMBEDDED), "cpu", one["method"])
        total = memory(published_sizes()["0.6B"], replace(job, trainable_bytes=one["trainable_bytes"]))["total"]
        assert total < 9e9, one


@pytest.mark.parametrize("benchmark", ["length_grouping"], indirect=True)
def test_joined_rows_have_the_length_and_masks_of_their_parts(benchmark: ModuleType) -> None:
    rows = [
        {"input_ids": [n] * (5 + n), "labels": [-100] * 3 + [n] * (2 + n), "mode": ("non_thinking", "thinking")[n % 2]}
        for n in range(10)
    ]
    one = benchmark.joined(rows, 50, random.Random(0))
    assert len(one["input_ids"]) == len(one["labels"]) == 50
    assert all(label in (-100, token) for token, label in zip(one["input_ids"], one["labels"], strict=True))
    made = benchmark.long_rows(rows, 6, seed=1)
    lengths = [len(row["input_ids"]) for row in made]
    assert all(20 <= n <= 200 for n in lengths[::2]) and all(500 <= n <= 2000 for n in lengths[1::2])
    assert all(token % 2 == 0 for token in made[0]["input_ids"]) and all(t % 2 for t in made[1]["input_ids"])
    assert made == benchmark.long_rows(rows, 6, seed=1)


@pytest.mark.parametrize("benchmark", ["length_grouping"], indirect=True)
def test_a_sides_summary_and_table(benchmark: ModuleType) -> None:
    common = {"steps": 4, "tokens": 100, "loss_tokens": 60, "held_out_loss": 0.5, "last_loss": 0.4}
    turns = [{"seconds": s, "places": 125, "last_loss_deviation": 0.1} | common for s in (1.0, 2.0, 4.0)]
    side = benchmark.summary(turns)
    assert side["loss_tokens_per_second"] == 30 and side["padding"] == pytest.approx(0.2)
    made = {"rows": 9, "lengths": {"shortest": 1, "longest": 8}, "ratio": 1.5, "ratio_rounds": [1.4, 1.6]}
    text = benchmark.table({"cases": {"long": made | {"sides": {"grouped": side, "random": side}}}})
    assert "| long | grouped | 20.0% | 2.0 | 30 | 0.5000 | 0.4000 (0.1000) |" in text
    assert "1.50 times as many" in text and "1.40 to 1.60" in text


@pytest.mark.parametrize("benchmark", ["unsloth_cpu"], indirect=True)
def test_the_table_of_both_sides(benchmark: ModuleType) -> None:
    sides = {
        side: {
            "tokens_per_second": rate,
            "tokens_per_second_rounds": [rate],
            "memory_bytes": 2**30,
            "libraries_bytes": 2**29,
            "first_loss": 12.0,
            "last_loss": 11.0,
        }
        for side, rate in zip(benchmark.SIDES, (60.0, 50.0), strict=True)
    }
    job = {"rank": 16, "dtype": "bfloat16", "batch": 2, "length": 128, "steps": 4, "threads": 2}
    made = {"sides": sides, "job": job, "speed_ratio": 1.2, "memory_ratio": 1.0, "stock_trl": "AttributeError: …"}
    text = benchmark.table(made)
    assert "| unsloth | 60.0 | 60.0 | 1,024 MiB | 512 MiB | 12.000, 11.000 |" in text
    assert "1.20 of the tokens a second, 1.00 of the memory" in text and "AttributeError" in text


@pytest.mark.parametrize("name", ["estimate", "unsloth_cpu"])
def test_half_of_the_model_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        _load(name).main(["--config", "c.json"])
    assert stopped.value.code == 2 and "--tokenizer" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.nightly
def test_tiny_runs(warm_python: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Each benchmark once, on the embedded model, as small as it goes."""
    outputs = {name: tmp_path / f"{name}.json" for name in ("estimate", "length_grouping", "unsloth_cpu")}
    commands = {
        "estimate": ["--models", "embedded", "--methods", "full", "--steps", "2", "--threads", "1"],
        "length_grouping": "--cases recipe --total 120 --rounds 1 --set model.cpu_threads=1".split(),
        "unsloth_cpu": [
            *["--config", str(EMBEDDED / "config.json"), "--tokenizer", str(EMBEDDED)],
            *"--rounds 1 --steps 2 --length 32 --batch 2 --threads 1".split(),
        ],
    }
    for name, options in commands.items():
        script = str(ROOT / "benchmarks" / f"{name}.py")
        # The memory of a fork is shared, so not its own.
        python = sys.executable if name == "estimate" else warm_python
        command = [python, script, *options, "--output", str(outputs[name])]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert outputs[name].exists(), done.stderr[-3000:]
        result = json.loads(outputs[name].read_text(encoding="utf-8"))
        assert done.stdout.rstrip("\n").endswith(_load(name).table(result)), done.stdout[-2000:]
        if name == "estimate":
            (one,) = result["cases"]
            assert one["trainable"] == "float32" and one["ratio"] == pytest.approx(1, abs=result["tolerance"])
        elif name == "length_grouping":
            sides = result["cases"]["recipe"]["sides"]
            assert sides["grouped"]["loss_tokens"] == sides["random"]["loss_tokens"]
            assert sides["grouped"]["padding"] < sides["random"]["padding"]
        else:
            losses = [result["sides"][side]["first_loss"] for side in result["sides"]]
            assert losses[0] == pytest.approx(losses[1], rel=0.01)  # the same work
