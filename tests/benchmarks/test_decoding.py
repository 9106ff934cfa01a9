"""The benchmark of decoding: its table from made turns."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def load() -> Any:
    spec = importlib.util.spec_from_file_location("decoding_benchmark", ROOT / "benchmarks" / "decoding.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def turn(seconds: float, memory: int | None = 500_000_000) -> dict[str, Any]:
    return {"seconds": seconds, "tokens": 1000, "dtype": "bfloat16", "memory_bytes": memory}


def test_rates_are_medians_beside_the_pipelines() -> None:
    sides = {"pipeline": [turn(5), turn(4), turn(1)], "llama.cpp q8_0": [turn(2, None), turn(2, None)]}
    assert load().table({"sides": sides}).splitlines()[2:] == [
        "| pipeline | bfloat16 | 250 | 1.00 | 500 MB |",
        "| llama.cpp q8_0 | bfloat16 | 500 | 2.00 | – |",
    ]
