"""The GPU comparison, as far as it goes without a GPU: shapes, commands, bookkeeping, and one tiny measurement of each side."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu" / "qlora.py"
TINY = ["--device", "cpu", "--shapes", "tiny", "--packing", "off", "--rounds", "1", "--no-embedded"]


@pytest.fixture(scope="module")
def qlora() -> ModuleType:
    spec = importlib.util.spec_from_file_location("qlora", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize(("shape", "parameters"), [("0.6b", 596_049_920), ("8b", 8_190_735_360)])
def test_shapes_have_the_published_number_of_parameters(qlora: ModuleType, shape: str, parameters: int) -> None:
    assert qlora.count_parameters(shape) == parameters


def test_the_small_shape_is_the_published_config(qlora: ModuleType, shared_data: Path) -> None:
    published = json.loads((shared_data / "qwen3_tokenizer" / "qwen3_0.6b_config.json").read_text(encoding="utf-8"))
    ours = qlora.config_of("0.6b").to_dict()
    for key in (*qlora.SHAPES["0.6b"], "vocab_size", "head_dim", "max_position_embeddings", "rms_norm_eps"):
        assert ours[key] == published[key], key


def test_a_weight_is_packed_as_bitsandbytes_packs_it(qlora: ModuleType) -> None:
    import torch
    from bitsandbytes.functional import QuantState, dequantize_4bit

    name = "model.layers.0.mlp.up_proj.weight"
    parts = qlora.tensors_of(name, (256, 128), "cpu", torch.Generator().manual_seed(1))
    assert parts[name].dtype == torch.uint8 and parts[name].numel() == 256 * 128 // 2
    state = QuantState.from_dict(
        {k.removeprefix(f"{name}."): v for k, v in parts.items() if k != name}, torch.device("cpu")
    )
    weight = torch.empty(256, 128, dtype=torch.bfloat16).normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
    assert (dequantize_4bit(parts[name], state).float() - weight.float()).abs().mean() < 0.003  # 15 % of its spread
    embedding = qlora.tensors_of("model.embed_tokens.weight", (64, 32), "cpu", None)
    assert embedding["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_rows_are_the_same_for_both_sides(qlora: ModuleType) -> None:
    rows = qlora.make_rows(200, 2048, 1000)
    assert rows == qlora.make_rows(200, 2048, 1000)
    assert 64 <= min(map(len, rows)) < 300 and 1800 < max(map(len, rows)) <= 2048
    assert all(3 <= token < 1000 for row in rows for token in row)


def test_rounds_alternate(qlora: ModuleType) -> None:
    found = qlora.cases(["0.6b"], ["off", "on"], 2)
    assert [c["side"] for c in found] == ["unsloth", "transformers"] * 2 + ["transformers", "unsloth"] * 2
    assert len({c["name"] for c in found}) == 8


def test_dry_run_prints_everything_and_does_nothing(
    qlora: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qlora.main(["--output-dir", str(tmp_path / "out"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "0.6b: 596,049,920 parameters" in text and "8b: 8,190,735,360 parameters" in text
    assert text.count("--case") == 2 * 2 * 2 * 2 and text.count("--make") == 2 and "pipeline run" in text
    assert not (tmp_path / "out").exists()


def test_without_a_device_it_says_so(
    qlora: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert qlora.main(["--output-dir", str(tmp_path / "out")]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
    assert qlora.main(["--output-dir", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "--shapes tiny" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def result(speed: float, memory: int) -> dict[str, Any]:
    return {"tokens_per_second": speed, "peak_memory_bytes": memory}


def test_summary_takes_medians_and_needs_both_sides(qlora: ModuleType) -> None:
    def case(side: str, number: int, speed: float, memory: int, code: int = 0, packing: str = "off") -> dict[str, Any]:
        return {"shape": "8b", "packing": packing, "side": side, "code": code, "result": result(speed, memory)}

    rows = qlora.summarise(
        [
            *(case("unsloth", i, s, 6) for i, s in enumerate((100, 300, 200))),
            *(case("transformers", i, s, 12) for i, s in enumerate((90, 110))),
            case("transformers", 2, 10_000, 1, code=1),
            case("unsloth", 0, 5, 5, packing="on"),
        ]
    )
    assert rows[0]["speed"] == 2.0 and rows[0]["memory"] == 0.5 and rows[0]["transformers"]["rounds"] == 2
    assert rows[1]["packing"] == "on" and "speed" not in rows[1]
    assert "| 8b | off | unsloth | 3 | 200 | 0.00 GiB | 2.00 | 0.50 |" in qlora.table({"summary": rows})


def test_a_stopped_run_goes_on_and_the_budget_holds(
    qlora: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fails = {"tiny-packing_off-transformers-0"}

    def timed(command: list[str], log: Path, seconds: float | None) -> dict[str, Any]:
        calls.append(log.stem)
        if log.stem.startswith("make"):
            made = tmp_path / "models" / "tiny" / "config.json"
            made.parent.mkdir(parents=True)
            made.write_text("{}", encoding="utf-8")
        elif log.stem not in fails:
            path = tmp_path / "results" / f"{log.stem}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(result(10, 10)), encoding="utf-8")
        failed = log.stem in fails
        return {"code": int(failed), "seconds": 60.0} | ({"error": ["no memory"]} if failed else {})

    monkeypatch.setattr(qlora, "_timed", timed)
    arguments = ["--output-dir", str(tmp_path), *TINY]
    assert qlora.main([*arguments, "--minutes", "0.5"]) == 1 and calls == []
    assert qlora.main(arguments) == 1
    assert calls == ["make-tiny", "tiny-packing_off-unsloth-0", "tiny-packing_off-transformers-0"]
    fails.clear()
    assert qlora.main(arguments) == 0 and calls[3:] == ["tiny-packing_off-transformers-0"]
    record = json.loads((tmp_path / "qlora.json").read_text(encoding="utf-8"))
    assert record["missing"] == [] and record["summary"][0]["speed"] == 1.0
    assert qlora.main([*arguments, "--steps", "99"]) == 2, "another setting is another measurement"


@pytest.mark.slow
@pytest.mark.nightly
def test_both_sides_really_train_on_a_tiny_shape(tmp_path: Path) -> None:
    arguments = ["--steps", "2", "--warm-up", "1", "--length", "96", "--batch-size", "2", "--accumulation", "1"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--output-dir", str(tmp_path), *TINY, *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "qlora.json").read_text(encoding="utf-8"))
    sides = {case["side"]: case["result"] for case in record["cases"].values()}
    assert set(sides) == {"unsloth", "transformers"}
    assert sides["unsloth"]["tokens"] == sides["transformers"]["tokens"] > 0
    assert sides["unsloth"]["trainable_parameters"] == sides["transformers"]["trainable_parameters"]
    # Random labels: the loss starts at the logarithm of the vocabulary's size, on both sides.
    for side in sides.values():
        assert side["losses"][0] == pytest.approx(6.93, abs=0.3)
