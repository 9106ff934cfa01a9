"""A Python environment for each framework, made by uv once and kept under the cache.

In: a framework. Out: an interpreter that has it. The environment's name holds a hash of its list of packages, so a new list makes
a new one; one that a stopped installation left half done has no mark and is made again.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import file_sha256, make_folder
from pipeline.core.place import cache_dir
from pipeline.handover.frameworks import Framework

LOCKS = Path(__file__).with_name("locks")
INSTALL_SECONDS = 1800
DONE = "installed"


def interpreter(framework: Framework) -> Path:
    """A Python that has the framework; installed first where it is not there yet.

    Raises:
        UserError: uv is missing, or the framework cannot be installed, with the installer's last words.
    """
    if framework.version is None:
        if importlib.util.find_spec(framework.package) is None:
            raise UserError(f"{framework.package} is not installed in this environment; run make setup.")
        return Path(sys.executable)
    lock = LOCKS / f"{framework.name}.txt"
    folder = cache_dir() / "frameworks" / f"{framework.name}-{file_sha256(lock)[:12]}"
    python = folder / "bin" / "python"
    if (folder / DONE).exists():
        return python
    make_folder(folder.parent, "PIPELINE_CACHE")
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / DONE).exists():
            _install(framework, lock, folder)
    return python


def uv() -> str:
    """The uv beside this interpreter, or on the path.

    Raises:
        UserError: there is none.
    """
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise UserError(f"uv is not installed; it makes the environments: {sys.executable} -m pip install uv")
    return found


def _install(framework: Framework, lock: Path, folder: Path) -> None:
    say(f"installing {framework.name} {framework.version} into {folder} (once; about 2 GB)")
    shutil.rmtree(folder, ignore_errors=True)
    _call(framework, [uv(), "venv", "--quiet", "--python", sys.executable, str(folder)])
    words = [uv(), "pip", "install", "--quiet", "--no-deps", "--python", str(folder / "bin" / "python")]
    if links := os.environ.get("PIP_FIND_LINKS"):  # where a wheel of torch without CUDA may lie
        words += ["--find-links", links]
    else:
        words += ["--torch-backend", "cpu"]
    try:
        _call(framework, [*words, "-r", str(lock)])
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    for pattern in framework.unloadable:
        for path in folder.glob(f"lib/python*/site-packages/{pattern}"):
            path.unlink()
    (folder / DONE).touch()


def _call(framework: Framework, words: list[str]) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{framework.name} could not be installed: no end after {INSTALL_SECONDS // 60} minutes. Run the same command again; "
            "what was downloaded is kept."
        ) from error
    if done.returncode:
        said = " ".join(done.stderr.split())[-600:]
        raise UserError(
            f"{framework.name} {framework.version} could not be installed: {said or 'uv gave no reason'}. With an environment of "
            f"your own: --environment {framework.name}=PATH/bin/python"
        )
