"""A short training in another framework, beside ours: how far apart two curves are, and the framework itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.core.errors import UserError
from pipeline.handover.environments import interpreter
from pipeline.handover.frameworks import framework

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "handover_training.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("handover_training", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_largest_difference_counts(benchmark: ModuleType) -> None:
    ours = [2.0] * benchmark.STEPS
    other = [*ours[:-2], 1.9, 2.02]
    assert benchmark.distance(other, ours) == pytest.approx(0.05)
    assert benchmark.distance(ours, ours) == 0


def test_a_curve_of_another_length_is_refused(benchmark: ModuleType) -> None:
    with pytest.raises(SystemExit, match="12 and 11 losses"):
        benchmark.distance([1.0] * 12, [1.0] * 11)


@pytest.mark.nightly
@pytest.mark.parametrize("target", ["llama-factory", "ms-swift"])
def test_the_framework_trains_as_we_do(target: str, benchmark: ModuleType, tmp_path: Path) -> None:
    """Installs the framework (2 GB), and trains all weights for twelve steps, here and there."""
    try:
        interpreter(framework(target))
    except UserError as error:
        pytest.skip(str(error))
    written = tmp_path / "result.json"
    asked = ["--targets", target, "--cases", "full:4", "--output-dir", str(tmp_path / "work"), "--output", str(written)]
    assert benchmark.main(asked) == 0
    (case,) = json.loads(written.read_text())["cases"]
    assert case["frameworks"][target]["difference"] < 1e-3
    assert case["ours"][-1] < case["ours"][0] / 2  # and it is a training
