"""The wheel: what ``pip install`` gives works in another folder, without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline import __version__

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("pipeline", "ablations", "data_recipes", "models", "notebooks")


def test_every_package_is_named() -> None:
    named = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "pipeline").rglob("__init__.py")}
    assert {name for name in named if not name.startswith("pipeline.assets")} == found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as its wheel holds it; its dependencies come from the interpreter at work."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in KEPT:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, cwd=folder, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)]
    subprocess.run(install, check=True, cwd=folder, capture_output=True)
    shutil.rmtree(source)
    return folder / "site"


def call(installed: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed), "PIPELINE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_it_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import pipeline; print(pipeline.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed), where.stdout
    doctor = call(installed, tmp_path, "doctor", "--json", "--no-network")
    assert doctor.returncode == 0, doctor.stderr + doctor.stdout
    checks = {check["name"]: check["ok"] for check in json.loads(doctor.stdout)["checks"]}
    assert checks["versions"] and checks["embedded_model"]
    assert (installed / "pipeline" / "assets" / "notebooks" / "zh" / "01_chat_format.ipynb").is_file()
    chinese = call(installed, tmp_path, "--lang", "zh", "run", "--profile", "embeded", "--output-dir", "run")
    assert chinese.returncode == 2 and "您要的是不是 'embedded'" in chinese.stderr  # the catalogue came along
    plan = call(installed, tmp_path, "run", "--profile", "embedded", "--output-dir", "run", "--dry-run", "--json")
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["steps"] == 1400
    assert not (tmp_path / "run").exists()
    arms = call(installed, tmp_path, "sweep", "--arms", "presets", "--output-dir", "s", "--set", "training.max_steps=x")
    assert arms.returncode == 2 and "arm 'recommended'" in arms.stderr  # found among the assets, and read


@pytest.mark.slow
def test_the_command_is_the_module(installed: Path) -> None:
    script = installed / "bin" / "hybrid-course"
    done = subprocess.run(
        [sys.executable, str(script), "--version"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, __version__), done.stderr
    (metadata,) = installed.glob("*.dist-info/METADATA")
    assert f"\nVersion: {__version__}\n" in metadata.read_text(encoding="utf-8")
