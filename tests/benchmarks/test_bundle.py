"""The wheels for a GPU machine: repacked ones must be whole wheels, and nothing may be left out in silence."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bundle() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bundle", ROOT / "benchmarks" / "gpu" / "bundle.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


FILES = {
    "thing/__init__.py": b"VALUE = 7\n",
    "thing/lib_cuda118.so": b"\0" * 5000,
    "thing/lib_cuda130.so": b"\1" * 50,
    "thing/name, with comma.txt": b"x",
    "thing-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: thing\nVersion: 1.0\nRequires-Dist: numpy\n"
    b'Requires-Dist: pywin32; sys_platform == "win32"\nRequires-Dist: extra-thing; extra == "all"\n',
    "thing-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "thing-1.0.dist-info/RECORD": b"stale,,\n",
}


def make_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def check_record(wheel: Path) -> list[str]:
    """Every file stands in RECORD with its digest and size, and nothing else does; returns the names."""
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
        assert sorted(row[0] for row in rows) == sorted(names) and len(set(names)) == len(names)
        for name, digest, size in rows:
            if name == record:
                assert (digest, size) == ("", "")
                continue
            data = archive.read(name)
            found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={found}", len(data))
    return names


def test_a_repacked_wheel_is_whole_and_installs(bundle: ModuleType, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, FILES)
    out = tmp_path / "out"
    out.mkdir()
    made = bundle.repack(wheel, out, "1cut", lambda name: "cuda118" in name)
    assert made.name == "thing-1.0-1cut-py3-none-any.whl"
    names = check_record(made)
    assert "thing/lib_cuda118.so" not in names and len(names) == len(FILES) - 1
    with zipfile.ZipFile(made) as archive:
        assert b"Build: 1cut" in archive.read("thing-1.0.dist-info/WHEEL")
    target = tmp_path / "target"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(made)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    assert (target / "thing" / "lib_cuda130.so").read_bytes() == FILES["thing/lib_cuda130.so"]
    code = f"import sys; sys.path.insert(0, {str(target)!r}); import thing; print(thing.VALUE)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "7\n"


def test_a_cut_that_cuts_nothing_is_an_error(bundle: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="none of the files that the cut leaves out"):
        bundle.repack(make_wheel(tmp_path, FILES), out, "1cut", lambda name: False)
    assert not list(out.iterdir())


def test_what_is_no_wheel_is_named(bundle: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"thing\.whl is no wheel's name"):
        bundle.repack(tmp_path / "thing.whl", tmp_path, "1cut", lambda name: True)


def test_requirements_are_those_of_the_target(bundle: ModuleType, tmp_path: Path) -> None:
    assert bundle.requires(make_wheel(tmp_path, FILES), "3.11") == ["numpy"]


def test_cuts_take_what_they_should(bundle: ModuleType) -> None:
    bitsandbytes, unsloth, pyarrow = (bundle.CUTS[name][1] for name in ("bitsandbytes", "unsloth", "pyarrow"))
    for name in ("cuda118", "cuda128", "rocm72", "xpu2026"):
        assert bitsandbytes(f"bitsandbytes/libbitsandbytes_{name}.so")
    for name in ("libbitsandbytes_cuda130.so", "libbitsandbytes_cuda132.so", "libbitsandbytes_cpu.so", "nn/modules.py"):
        assert not bitsandbytes(f"bitsandbytes/{name}")
    assert unsloth("studio/backend/main.py") and unsloth("unsloth-2026.10.9.dist-info/entry_points.txt")
    assert not unsloth("unsloth/models/llama.py") and not unsloth("unsloth-2026.10.9.dist-info/METADATA")
    assert pyarrow("pyarrow/libarrow_flight.so.2600") and pyarrow("pyarrow/include/arrow/api.h")
    for name in (
        "libarrow.so.2600",
        "libarrow_substrait.so.2600",
        "lib.cpython-311-x86_64-linux-gnu.so",
        "parquet/core.py",
    ):
        assert not pyarrow(f"pyarrow/{name}"), "the rest links to it"


@given(st.lists(st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,12}[A-Za-z0-9]", fullmatch=True), max_size=6))
def test_names_of_a_freeze(bundle: ModuleType, names: list[str]) -> None:
    text = "\n".join(["# a comment", "-e /some/where", *(f"{name}==1.0" for name in names), "other @ file:///x.whl"])
    assert bundle.freeze_names(text) == [*names, "other"]


def test_pins_are_those_of_the_requirements(bundle: ModuleType) -> None:
    pins = bundle.pins()
    assert pins["unsloth"] and pins["unsloth-zoo"] == pins["unsloth"] and "appnope" not in pins


def test_too_much_is_an_error_and_what_is_left_out_is_said(
    bundle: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(name: str, version: str | None, folder: Path, python: str) -> Path:
        return make_wheel(folder, FILES)

    monkeypatch.setattr(bundle, "fetch", fetch)
    arguments = ["--roots", "thing", "--present", "numpy"]
    assert bundle.main(["--output-dir", str(tmp_path / "a"), *arguments]) == 0
    result = json.loads((tmp_path / "a" / "bundle.json").read_text(encoding="utf-8"))
    assert result["fits"] and result["left_out"] == {"numpy": "present"}
    assert result["total"] == sum(path.stat().st_size for path in (tmp_path / "a").glob("*.whl"))
    assert bundle.main(["--output-dir", str(tmp_path / "b"), *arguments, "--limit-mib", "0.001"]) == 1
    assert "are more than 0.001" in capsys.readouterr().err
    assert bundle.main(["--output-dir", str(tmp_path / "a"), *arguments]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.nightly
def test_the_real_bitsandbytes_wheel(bundle: ModuleType, tmp_path: Path) -> None:
    """43 MB from the index; skipped where it cannot be had."""
    try:
        wheel = bundle.fetch("bitsandbytes", bundle.pins()["bitsandbytes"], tmp_path, "3.11")
    except UserError as error:
        pytest.skip(f"the wheel cannot be downloaded: {error}")
    out = tmp_path / "out"
    out.mkdir()
    made = bundle.repack(wheel, out, *bundle.CUTS["bitsandbytes"])
    names = check_record(made)
    libraries = sorted(name.rpartition("/")[2] for name in names if name.endswith(".so"))
    assert libraries[0] == "libbitsandbytes_cpu.so" and len(libraries) >= 2
    assert all(name.startswith("libbitsandbytes_cuda13") for name in libraries[1:])
    assert made.stat().st_size < 8 * 2**20 < wheel.stat().st_size
