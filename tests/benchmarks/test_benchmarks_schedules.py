"""benchmarks/schedules.py: every arm trains on the same rows, and differences are paired by seed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.course import lab

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def schedules() -> ModuleType:
    spec = importlib.util.spec_from_file_location("schedules", ROOT / "benchmarks" / "schedules.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_asked_of_the_bench(schedules: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def teach(rows: list[Any], **setting: Any) -> dict[str, Any]:
        asked.append({"rows": len(rows), **setting})
        decayed = setting.get("weight_decay", 0.01)
        return {"loss": [9.0] * (schedules.STEPS - schedules.LAST) + [setting["seed"] + decayed] * schedules.LAST}

    monkeypatch.setattr(lab, "teach", teach)
    assert schedules.main(["--output", str(tmp_path / "s.json"), "--seeds", "2"]) == 0
    result = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert len(asked) == 2 * len(schedules.ARMS) and {one["rows"] for one in asked} == {400}
    lab._require({"rows": [], "ask": [], "steps": 0, "rank": 1, **_whole(asked[-1])})  # a setting that teach takes
    table = schedules.table(result)
    assert "| cosine | 1.510 |  |" in table and "| weight decay 0.1 | 1.600 | +0.090, +0.090 |" in table


def _whole(setting: dict[str, Any]) -> dict[str, Any]:
    """A job of the bench with the defaults of ``teach``."""
    return {"schedule": "cosine", "weight_decay": 0.01, "dropout": 0.0, "rate": setting["rate"]} | {
        key: setting[key] for key in ("schedule", "weight_decay", "dropout") if key in setting
    }
