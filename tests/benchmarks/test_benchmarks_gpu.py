from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.cli.main import parser
from pipeline.studies.arms import plan_axis
from pipeline.training.embedded import BuildSettings, build_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def two_sizes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_sizes", ROOT / "benchmarks" / "gpu" / "two_sizes.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_the_count_is_that_of_a_model_that_was_really_built(two_sizes: ModuleType) -> None:
    built = json.loads((ROOT / "models" / "embedded" / "build.json").read_text(encoding="utf-8"))
    assert two_sizes.count_parameters(BuildSettings(**built["settings"])) == built["parameters"]


@pytest.mark.parametrize(("size", "least", "most"), [("10m", 9e6, 11e6), ("100m", 90e6, 110e6)])
def test_sizes_are_what_their_names_say(two_sizes: ModuleType, size: str, least: float, most: float) -> None:
    settings = build_settings(two_sizes.overrides(two_sizes.SIZES[size]["build"])[1::2])
    assert least <= two_sizes.count_parameters(settings) <= most


def test_every_command_is_one_that_the_pipeline_takes(two_sizes: ModuleType, tmp_path: Path) -> None:
    for size in two_sizes.SIZES:
        found = two_sizes.commands(size, tmp_path, seeds=3, workers=4)
        assert list(found) == ["build", "check", "ratio", "empty_think"]
        parsed: dict[str, Any] = {stage: parser().parse_args(command[3:]) for stage, command in found.items()}
        base = tmp_path / size / "build"
        assert (
            parsed["build"].output_dir == base and build_settings(parsed["build"].set).layers > BuildSettings().layers
        )
        for stage, count in (("ratio", 6), ("empty_think", 3)):
            args = parsed[stage]
            values = [value for group in args.values for value in group]
            _, cells = plan_axis(args.profile, args.set, args.axis, values, args.seeds, args.output_dir, args.cells)
            assert len(cells) == count * 3 and {cell.profile.model.name for cell in cells} == {str(base)}


def test_dry_run_prints_and_does_nothing(
    two_sizes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert two_sizes.main(["--output-dir", str(tmp_path / "out"), "--sizes", "10m", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("10m: 9,") and lines[0].endswith(" parameters") and len(lines) == 5
    assert not (tmp_path / "out").exists()


def test_without_a_device_it_says_so(
    two_sizes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert two_sizes.main(["--output-dir", str(tmp_path / "out")]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_stages_resume_and_a_base_that_fails_its_check_ends_its_size(
    two_sizes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    bad = {"check": 1}
    names = ("build", "check", "ratio", "empty_think")
    real = two_sizes.commands

    def small(size: str, folder: Path, seeds: int, workers: int) -> dict[str, list[str]]:
        assert list(real(size, folder, seeds, workers)) == list(names)
        return {s: [sys.executable, "-c", f"raise SystemExit({bad.get(s, 0)})", s] for s in names}

    def noted(command: list[str], **options: Any) -> Any:
        calls.append(command[-1])
        return subprocess_run(command, **options)

    subprocess_run = two_sizes.subprocess.run
    monkeypatch.setattr(two_sizes, "commands", small)
    monkeypatch.setattr(two_sizes.subprocess, "run", noted)
    report = two_sizes.run(["10m"], tmp_path, 1, 1)
    assert calls == ["build", "check"] and report["sizes"]["10m"]["check"]["code"] == 1
    bad.clear()
    report = two_sizes.run(["10m"], tmp_path, 1, 1)
    assert calls[2:] == ["check", "ratio", "empty_think"]
    assert json.loads((tmp_path / "two_sizes.json").read_text(encoding="utf-8")) == report
    assert {stage["code"] for stage in report["sizes"]["10m"].values()} == {0}
