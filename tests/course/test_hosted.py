"""The first cell on Colab, Kaggle and ModelScope, run in an empty environment that looks like Colab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from pipeline.core.versions import pinned
from pipeline.course import hosted
from pipeline.course.hosted import cell_text, expected, is_hosted_cell, notebooks, page, service, with_cell
from pipeline.course.translation import source_text

ROOT = hosted.ROOT
SERVICE_TORCH = "2.9.1"


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_notebook_has_the_cell(path: Path) -> None:
    words = "python -m pipeline.course.hosted write"
    assert path.read_text(encoding="utf-8") == expected(path), words
    code = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert is_hosted_cell(code[1]) and len(source_text(code[1]).splitlines()) <= 10


def test_the_pages_have_the_links() -> None:
    for path in hosted.PAGES:
        assert path.read_text(encoding="utf-8") == page(path), "python -m pipeline.course.hosted write"
        assert page(path).count("colab.research.google.com") == len(notebooks())


def test_check_names_a_page_and_write_puts_it_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, table = [path.read_text(encoding="utf-8") for path in hosted.PAGES], hosted.links()
    pages = tuple(tmp_path / path.name for path in hosted.PAGES)
    for path, text in zip(pages, good, strict=True):
        path.write_text(text.replace("/blob/", "/old/"), encoding="utf-8")
    monkeypatch.setattr(hosted, "PAGES", pages)
    monkeypatch.setattr(hosted, "ROOT", tmp_path)
    monkeypatch.setattr(hosted, "notebooks", lambda: [])
    monkeypatch.setattr(hosted, "links", lambda: table)
    assert hosted.main(["check"]) == 1
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["hosted.md", "hosted.zh.md"]
    assert hosted.main(["write"]) == 0 and hosted.main(["check"]) == 0
    assert [path.read_text(encoding="utf-8") for path in pages] == good


def test_the_cell_is_put_once_and_replaced() -> None:
    parameters = {"cell_type": "code", "id": "b", "metadata": {"tags": ["parameters"]}, "source": "1"}
    first = {"cells": [{"cell_type": "markdown", "id": "a", "metadata": {}}, parameters]}
    once = with_cell(first, "00", "old")
    twice = with_cell(once, "00", "new")
    assert [cell["id"] for cell in twice["cells"]] == ["a", "b", "nb00-hosted"]
    assert source_text(twice["cells"][2]) == "new"


def test_on_another_machine_it_does_nothing_and_is_quick(tmp_path: Path) -> None:
    """Standard library alone, so the interpreter starts and ends within a moment."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-I", "-S", "-c", cell_text()], cwd=tmp_path, capture_output=True, env={})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"") and time.monotonic() - began < 5
    assert not any(tmp_path.iterdir())


def test_where_it_is() -> None:
    assert service({"COLAB_RELEASE_TAG": "x"}) == "Colab" and service({"KAGGLE_KERNEL_RUN_TYPE": "x"}) == "Kaggle"
    assert service({}) == ("ModelScope" if Path("/mnt/workspace").is_dir() else None)


# --- a machine that looks like Colab ----------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, version: str, needs: str = "") -> None:
    """A package that holds nothing but a module of its name."""
    safe = name.replace("-", "_")
    info = f"{safe}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{safe}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{safe}.py", f"version = {version!r}\n")
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        file.writestr(f"{info}/METADATA", metadata + (f"Requires-Dist: {needs}\n" if needs else ""))
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The interpreter of an empty environment with a torch and an old transformers; its variables. Its git finds a clone here."""
    base = tmp_path_factory.mktemp("colab")
    packages = base / "packages"
    packages.mkdir()
    for name, version in pinned().items():
        wheel(packages, name, version, "torch>=2.4" if name == "unsloth" else "")
    wheel(packages, "torch", SERVICE_TORCH)
    wheel(packages, "transformers", "4.0.0")
    wheel(packages, "matplotlib", "3.0.0")
    origin = base / "origin"
    origin.mkdir()
    files = subprocess.run(
        ["git", "ls-files", "-z", "pipeline", "notebooks"], cwd=ROOT, capture_output=True, check=True
    )
    names = {*files.stdout.decode().strip("\0").split("\0"), "pipeline/course/hosted.py"}
    for name in [*names, "pyproject.toml", "requirements.txt", "data_recipes/embedded.yaml"]:
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        (origin / name).write_bytes((ROOT / name).read_bytes())
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"], ["tag", hosted.TAG]):
        subprocess.run([*git, *command], cwd=origin, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", str(base / "env")], check=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(base),
        "COLAB_RELEASE_TAG": "release-colab-test",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(packages),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{origin}.insteadOf",
        "GIT_CONFIG_VALUE_0": hosted.address(),
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    python = base / "env" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", f"torch=={SERVICE_TORCH}", "transformers==4.0.0"]
    subprocess.run([*install, "matplotlib==3.0.0"], check=True, env=environment)
    return python, environment


SAYS = """
import importlib.metadata as m, json
print(json.dumps([os.getcwd(), {d.name: d.version for d in m.distributions()}]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the services are Linux")
def test_the_cell_on_a_machine_that_looks_like_colab(colab: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    python, environment = colab

    def run(text: str) -> subprocess.CompletedProcess[str]:
        code = [str(python), "-c", text + SAYS]
        return subprocess.run(code, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    first = run(cell_text())
    assert first.returncode == 0, first.stderr
    said, result = first.stdout.strip().splitlines()[:-1], json.loads(first.stdout.strip().splitlines()[-1])
    folder, installed = result
    clone = tmp_path / "course"
    assert Path(folder) == clone / "notebooks"
    assert installed["torch"] == SERVICE_TORCH, "torch must stay"
    assert installed["matplotlib"] == "3.0.0", "what is there and need not fit stays"
    wanted = {n: v for n, v in pinned().items() if n not in ("torch", "matplotlib", "numpy")}
    assert {name: installed.get(name) for name in wanted} == wanted
    assert f"torch {SERVICE_TORCH} stays" in said[0] and said[-1].endswith("ready")
    # The kernel was restarted: nothing is fetched or installed again. In Chinese, the folder is one deeper.
    again = run(cell_text().replace('"../', '"../../'))
    assert again.returncode == 0, again.stderr
    assert "installing" not in again.stdout
    assert Path(json.loads(again.stdout.strip().splitlines()[-1])[0]) == clone / "notebooks" / "zh"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the services are Linux")
def test_what_cannot_be_installed_is_said(colab: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    python, environment = colab
    missing = [str(python), "-m", "pip", "uninstall", "-qy", "bitsandbytes"]
    subprocess.run(missing, check=True, env=environment, capture_output=True)
    done = subprocess.run(
        [str(python), "-c", cell_text()],
        cwd=tmp_path, env=environment | {"PIP_FIND_LINKS": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "could not install" in done.stderr and "bitsandbytes" in done.stderr and "internet" in done.stderr
