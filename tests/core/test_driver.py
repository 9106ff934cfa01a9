"""pipeline/core/driver.py: which build of torch a driver runs, and what is said where none does; nvidia-smi is a fake."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import doctor, driver

ROOT = Path(__file__).resolve().parents[2]
RTX_4090 = "NVIDIA GeForce RTX 4090, {}, 8.9"


def fake(folder: Path, output: str, code: int = 0) -> str:
    """A PATH with an ``nvidia-smi`` that says this."""
    folder.mkdir(exist_ok=True)
    (folder / "said").write_text(output, encoding="utf-8")
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat '{folder}/said'\nexit {code}\n", encoding="utf-8")
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("lines", "label"),
    [
        (RTX_4090.format("580.65.06"), ""),
        (RTX_4090.format("595.1"), ""),
        (RTX_4090.format("550.54.15"), "cu126"),
        (RTX_4090.format("525.60.13"), "cu126"),
        (RTX_4090.format("470.82.01"), None),
        ("Tesla T4, 535.104.05, 7.5", "cu126"),
        ("Tesla V100-SXM2-16GB, 580.65.06, 7.0", "cu126"),  # CUDA 13 no longer knows it
        ("NVIDIA GeForce RTX 5090, 570.86.16, 12.0", None),  # and the older build does not know this one yet
        ("NVIDIA GeForce RTX 5090, 580.65.06, 12.0", ""),
        ("NVIDIA GeForce RTX 5090, 580.65.06, 12.0\nTesla V100-SXM2-16GB, 580.65.06, 7.0", None),
        ("NVIDIA A100, 80GB, 550.54.15, [N/A]", "cu126"),
        ("No devices were found", ""),
    ],
)
def test_the_build_follows_driver_and_card(lines: str, label: str | None) -> None:
    build = driver.build_for(driver.parse(lines))
    assert build.label == label and bool(build.advice) == (label is None)


@settings(max_examples=examples(50))
@given(st.text())
def test_whatever_nvidia_smi_prints_is_read(text: str) -> None:
    assert driver.build_for(driver.parse(text)).label in ("", "cu126", None)


@pytest.mark.parametrize(
    ("output", "code", "printed", "error", "ends"),
    [
        (RTX_4090.format("550.54.15"), 0, "cu126\n", "", 0),
        (RTX_4090.format("580.65.06"), 0, "", "", 0),
        (RTX_4090.format("470.82.01"), 0, "", "update the NVIDIA driver to 580 or later (here: 470.82.01)", 1),
        ("Driver/library version mismatch", 18, "", "Driver/library version mismatch", 0),
    ],
)
def test_what_make_setup_asks(
    output: str, code: int, printed: str, error: str, ends: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Isolated, so that nothing but the standard library is there, as before the installation."""
    monkeypatch.setenv("PATH", fake(tmp_path / "bin", output, code))
    command = [sys.executable, "-S", "-m", "pipeline.core.driver"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (ends, printed), done.stderr
    assert error in done.stderr and "Traceback" not in done.stderr


def test_make_setup_takes_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake(tmp_path / "bin", RTX_4090.format("550.54.15")))
    options = ["--dry-run", "--always-make", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}"]
    done = subprocess.run(["make", *options, "setup"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "-m pipeline.core.driver" in done.stdout and '/$build"' in done.stdout.replace("$$", "$")


@pytest.mark.parametrize(
    ("lines", "code", "cuda", "detail", "advice"),
    [
        (
            RTX_4090.format("550.54.15"),
            0,
            "13.0",
            "built for CUDA 13.0",
            "takes the build cu126; or update the driver to 580",
        ),
        (RTX_4090.format("550.54.15"), 0, None, "a build for the CPU", "Remove .venv and run `make setup`"),
        (RTX_4090.format("470.82.01"), 0, "13.0", "driver 470.82.01", "update the NVIDIA driver"),
        (RTX_4090.format("580.65.06"), 0, "13.0", "though driver and build fit", "torch.cuda.init()"),
        ("", 0, "13.0", "shows no GPU", "--gpus all"),
        ("NVIDIA-SMI has failed", 9, "13.0", "nvidia-smi fails (NVIDIA-SMI has failed)", "Mend the driver first"),
    ],
)
def test_why_torch_uses_no_gpu(
    lines: str, code: int, cuda: str | None, detail: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", fake(tmp_path / "bin", lines, code))
    found = driver.why_not("2.13.0", cuda)
    assert detail in found[0] and advice in found[1]


def test_hidden_devices_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake(tmp_path / "bin", RTX_4090.format("580.65.06")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert driver.why_not("2.13.0", "13.0")[1] == "Unset CUDA_VISIBLE_DEVICES."


def test_what_triton_compiles_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"kind": "cuda", "name": "a card", "memory_bytes": 1}
    assert doctor._compiler({**gpu, "kind": "none"}) == []  # nobody needs it there
    (tmp_path / "gcc").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "gcc").chmod(0o755)
    (tmp_path / "Python.h").write_text("", encoding="utf-8")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path), "platinclude": str(tmp_path)})
    (check,) = doctor._compiler(gpu)
    assert check["ok"] and check["required"] and str(tmp_path / "gcc") in check["detail"]
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    (tmp_path / "Python.h").unlink()
    (check,) = doctor._compiler(gpu)
    assert not check["ok"] and "a C compiler" in check["detail"] and "Python.h" in check["detail"]
    assert "install gcc" in check["advice"] and "-dev" in check["advice"]
