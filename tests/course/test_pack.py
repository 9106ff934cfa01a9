"""``bundle``: one file that installs without network; whole or not at all, and clear about what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.course import bundle
from pipeline.course.bundle import Wanted, chosen_wheels, fetch, pack, wanted

LIST = "# a comment\nthing==1.0\nother==2.0 ; sys_platform == 'nowhere'\nTwo_Words==3\n"


def wheel(folder: Path, name: str, tag: str = "py3-none-any") -> Path:
    """A wheel that pip can install: ``name`` is ``thing-1.0``."""
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / f"{name}-{tag}.whl", f"{name}.dist-info"
    package, version = name.split("-")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{package}.py", "VALUE = 7\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", f"{package}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A list of packages and a folder with a wheel of each; of the project only the small folders are packed."""
    monkeypatch.setattr(bundle, "FOLDERS", ("data_recipes", "ablations"))
    names = tmp_path / "list.txt"
    names.write_text(LIST, encoding="utf-8")
    wheel(tmp_path / "wheels", "thing-1.0")
    wheel(tmp_path / "wheels", "two_words-3")
    return names, tmp_path / "wheels"


def unpacked(file: Path, folder: Path) -> Path:
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    return folder / bundle.TOP


def install(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "install.py", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_only_exact_versions_for_this_machine(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(LIST, encoding="utf-8")
    assert wanted(tmp_path / "list.txt") == [
        Wanted("thing==1.0", "thing", "1.0"),
        Wanted("Two_Words==3", "two-words", "3"),
    ]
    whole = {package.name: package.version for package in wanted(bundle.ROOT / "requirements-cpu.txt")}
    assert len(whole) > 200 and "torch" in whole and "mlx" not in whole


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("thing\n", "list.txt:1: 'thing' has no exact version"),
        ("\nthing>=1\n", "list.txt:2: "),
        ("thing==1.*\n", "has no exact version"),
        ("-r other.txt\n", "a complete list"),
    ],
)
def test_a_list_that_is_not_complete_is_refused(tmp_path: Path, text: str, hint: str) -> None:
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        wanted(tmp_path / "list.txt")
    assert hint in str(caught.value)


def test_the_wheel_that_fits_best_is_taken(tmp_path: Path) -> None:
    own = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    platform = "linux_x86_64" if sys.platform == "linux" else "any"
    wheel(tmp_path, "thing-1.0")
    wheel(tmp_path, "thing-1.0", "cp27-cp27m-win32")
    wheel(tmp_path, "thing-2.0")
    best = wheel(tmp_path, "thing-1.0", f"{own}-none-any")
    wheel(tmp_path, "torch-2.13.0+cpu")
    (tmp_path / "no wheel.whl").write_text("x")
    packages = [
        Wanted("thing==1.0", "thing", "1.0"),
        Wanted("torch==2.13.0", "torch", "2.13.0"),
        Wanted("x==1", "x", "1"),
    ]
    chosen, missing = chosen_wheels(packages, tmp_path)
    assert [path.name for path in chosen] == [best.name, "torch-2.13.0+cpu-py3-none-any.whl"], platform
    assert missing == packages[2:]


def test_a_bundle_checks_itself_and_says_for_which_machine_it_is(tmp_path: Path, parts: tuple[Path, Path]) -> None:
    names, wheels = parts
    made = pack(tmp_path / "out" / "course.tar", names, wheels)
    assert made["wheels"] == 2 and made["bytes"] == (tmp_path / "out" / "course.tar").stat().st_size
    folder = unpacked(tmp_path / "out" / "course.tar", tmp_path)
    inside = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"install.py", "README.txt", "wheels/thing-1.0-py3-none-any.whl", "project/README.zh-CN.md"} <= inside
    assert "project/data_recipes/embedded.yaml" in inside and not any("__pycache__" in name for name in inside)
    assert len(inside) == made["files"] + 1  # SHA256SUMS cannot hold its own digest
    assert "@" not in (folder / "README.txt").read_text(encoding="utf-8")
    assert (folder / "requirements.txt").read_text(encoding="utf-8") == "thing==1.0\nTwo_Words==3\n"
    assert install(folder, "--check").returncode == 0
    (folder / "project" / "LICENSE").write_text("no", encoding="utf-8")
    (folder / "wheels" / "thing-1.0-py3-none-any.whl").unlink()
    done = install(folder)
    assert (
        done.returncode == 2
        and "LICENSE has changed" in done.stderr
        and "thing-1.0-py3-none-any.whl is missing" in done.stderr
    )
    record = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    (folder / "bundle.json").write_text(json.dumps(record | {"python": "2.7"}), encoding="utf-8")
    done = install(folder)
    assert (
        done.returncode == 2 and "it was packed for 2.7" in done.stderr and not (folder / "project" / ".venv").exists()
    )


def test_what_was_prepared_lies_where_the_notebooks_look(tmp_path: Path, parts: tuple[Path, Path]) -> None:
    names, wheels = parts
    course = tmp_path / "course"
    for name in ("main/report.json", "notebooks/00_environment.html", "scratch/big.bin", "search/x.db"):
        (course / name).parent.mkdir(parents=True, exist_ok=True)
        (course / name).write_text("{}", encoding="utf-8")
    assert pack(tmp_path / "c.tar", names, wheels, course)["prepared"] == 2
    outputs = unpacked(tmp_path / "c.tar", tmp_path) / "project" / "outputs" / "course"
    found = sorted(path.relative_to(outputs).as_posix() for path in outputs.rglob("*") if path.is_file())
    assert found == ["main/report.json", "notebooks/00_environment.html"]
    with pytest.raises(UserError, match="neither a finished run"):
        pack(tmp_path / "d.tar", names, wheels, wheels)


def test_nothing_half_is_left(tmp_path: Path, parts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    names, wheels = parts
    out = tmp_path / "out"
    out.mkdir()

    def breaks(self: object, path: Path, place: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bundle._Packer, "add", breaks)
        with pytest.raises(KeyboardInterrupt):
            pack(out / "course.tar", names, wheels)
    assert not list(out.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="1? MiB free|has 0 MiB free"):
            pack(out / "course.tar", names, wheels)
    assert not list(out.iterdir())


def test_refusals(tmp_path: Path, parts: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    names, wheels = parts
    (tmp_path / "there.tar").write_text("mine", encoding="utf-8")
    (wheels / "thing-1.0-py3-none-any.whl").rename(wheels / "thing-1.1-py3-none-any.whl")
    for output, folder, hint in (
        ("there.tar", wheels, "exists already"),
        ("course.zip", wheels, "ends in .tar"),
        ("course.tar", tmp_path / "none", "there is no folder"),
        ("course.tar", wheels, "has no wheel for thing==1.0 that this Python can install"),
        ("list.txt/course.tar", wheels, "is no folder"),
    ):
        arguments = ["--output", str(tmp_path / output), "--requirements", str(names), "--wheels", str(folder)]
        assert main(["bundle", *arguments]) == 2
        assert hint in capsys.readouterr().err, output
    assert (tmp_path / "there.tar").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "course.tar").exists()


def test_what_is_there_is_not_downloaded_again(
    tmp_path: Path, parts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names, wheels = parts
    asked: list[list[str]] = []

    def pip(folder: Path, packages: Sequence[Wanted], *more: str) -> subprocess.CompletedProcess[str]:
        asked.append([package.line for package in packages])
        return subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution\n")

    monkeypatch.setattr(bundle, "_pip", pip)
    fetch(wanted(names), wheels)
    assert not asked
    (wheels / "two_words-3-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match="Two_Words==3: ERROR: .* is kept"):
        fetch(wanted(names), wheels)
    assert asked == [["Two_Words==3"]]


@pytest.mark.slow
@pytest.mark.nightly
def test_a_whole_bundle_installs_without_network(tmp_path: Path) -> None:
    """All packages from the index or its cache (skipped where it cannot be had), then no index, and no way to one."""
    try:
        pack(tmp_path / "course.tar")
    except UserError as error:
        pytest.skip(f"the packages cannot be downloaded: {error}")
    folder = unpacked(tmp_path / "course.tar", tmp_path)
    (tmp_path / "course.tar").unlink()
    nowhere = "http://127.0.0.1:9"
    env = {**os.environ, "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "http_proxy": nowhere, "https_proxy": nowhere}
    env |= {"PIPELINE_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    for command in (
        [sys.executable, "install.py"],  # ends with the doctor
        [".venv/bin/python", "-m", "pipeline", "run", "--profile", "embedded", "--output-dir", "runs/x", "--dry-run"],
    ):
        where = folder if command[1] == "install.py" else folder / "project"
        done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
