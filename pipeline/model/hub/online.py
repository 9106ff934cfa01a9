"""A model's folder from Hugging Face or ModelScope: what is there, what it weighs, and the download.

Both hubs' own libraries do the work; they resume, and compare checksums of what they store by content. What is taken are
weights in safetensors, config, tokenizer and template; a model that has its weights in pickle files alone is refused.
"""

from __future__ import annotations

import fnmatch
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import FULL, file_sha256
from pipeline.core.hubs import HUBS, hub_url, require_hub

WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
UNWANTED = ("onnx/*", "openvino/*", "runs/*", "original/*", "training_args*", "*/*")  # the model itself lies at the top
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Remote:
    """What a hub says of a model. ``sha256`` holds the files whose checksum it tells."""

    name: str
    hub: str
    commit: str
    licence: str
    sizes: dict[str, int]  # bytes of the files that are wanted
    sha256: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(self.sizes.values())


def wanted(name: str) -> bool:
    """Whether a file of a hub's model is downloaded."""
    return any(fnmatch.fnmatch(name, w) for w in WANTED) and not any(fnmatch.fnmatch(name, u) for u in UNWANTED)


def require_weights(files: list[str], what: str) -> None:
    """Refuse a model without safetensors, and say which kind it has in their place.

    Raises:
        UserError: pickle files alone, GGUF alone, or no weights at all.
    """
    if any(fnmatch.fnmatch(name, "*.safetensors") for name in files):
        return
    if any(fnmatch.fnmatch(name, p) for name in files for p in PICKLES):
        raise UserError(
            f"{what} has its weights in pickle files alone, and reading those runs whatever code is in them; they are "
            "refused. Take a revision or a conversion with safetensors (on Hugging Face, the bot SFconvertbot makes one)."
        )
    if any(name.endswith(".gguf") for name in files):
        raise UserError(
            f"{what} has GGUF files alone, which are for inference; take the model that they were made from."
        )
    raise UserError(f"{what} has no weights (no *.safetensors).")


def look(name: str, hub: str, revision: str | None = None) -> Remote:
    """Ask a hub about a model; nothing is downloaded.

    Raises:
        UserError: no such name, no way to the hub, gated, no such revision, or no weights that are safe to read.
    """
    what = f"model {name!r} ({HUBS[hub]})"
    if not _NAME.fullmatch(name) or ".." in name:
        raise UserError(f"{name!r} is no name of a hub's model; it should look like owner/model.")
    require_hub(
        hub,
        f"model {name!r}",
        "fetch it on another machine and copy its folder here; or take one from the package index (models list says which).",
    )
    try:
        found = (_huggingface if hub == "huggingface" else _modelscope)(name, revision)
    except _library_errors(hub) as error:
        raise _problem(what, revision, error) from error
    commit, licence, files = found
    require_weights([file for file, _, _ in files], what)
    kept = [entry for entry in files if wanted(entry[0])]
    sums = {file: checksum for file, _, checksum in kept if checksum}
    return Remote(name, hub, commit, licence, {file: size for file, size, _ in kept}, sums)


Listing = tuple[str, str, list[tuple[str, int, str | None]]]  # commit, licence, (file, bytes, SHA-256)


def _huggingface(name: str, revision: str | None) -> Listing:
    from huggingface_hub import HfApi

    info = HfApi(endpoint=hub_url("huggingface")).model_info(name, revision=revision, files_metadata=True, timeout=10)
    card: Any = info.card_data or {}
    licence = str(card.get("license") or "not stated")
    files = [(s.rfilename, int(s.size or 0), s.lfs.sha256 if s.lfs else None) for s in info.siblings or []]
    return info.sha or "", licence, files


def _modelscope(name: str, revision: str | None) -> Listing:
    from modelscope.hub.api import HubApi

    api = HubApi()
    about = api.get_model(name, revision=revision or "master")
    licence = str(about.get("License") or about.get("license") or "not stated")
    entries = api.get_model_files(name, revision=revision or "master", recursive=True)
    files = [(e["Path"], int(e.get("Size") or 0), e.get("Sha256") or None) for e in entries if e.get("Type") != "tree"]
    return revision or "master", licence, files


def download(remote: Remote, folder: Path) -> None:
    """Download the wanted files into ``folder``; what is there already stays. Checksums and sizes are compared.

    Raises:
        UserError: the hub, the disk, or a file that is not what the hub says.
    """
    what = f"model {remote.name!r} ({HUBS[remote.hub]})"
    try:
        if remote.hub == "huggingface":
            from huggingface_hub import snapshot_download

            snapshot_download(
                remote.name,
                revision=remote.commit,
                local_dir=folder,
                allow_patterns=list(remote.sizes),
                endpoint=hub_url("huggingface"),
            )
        else:
            from modelscope import snapshot_download as from_modelscope

            from_modelscope(
                remote.name, revision=remote.commit, local_dir=str(folder), allow_patterns=list(remote.sizes)
            )
    except _library_errors(remote.hub) as error:
        raise _problem(what, remote.commit, error) from error
    for file, size in remote.sizes.items():
        path = folder / file
        found = path.stat().st_size if path.is_file() else 0
        wrong = found != size or (file in remote.sha256 and file_sha256(path) != remote.sha256[file])
        if wrong:
            path.unlink(missing_ok=True)
            raise UserError(
                f"{what}: {file} came over damaged ({found:,} of {size:,} bytes, or another checksum). It was removed; run "
                "the same command again."
            )


def _library_errors(hub: str) -> tuple[type[Exception], ...]:
    import httpx

    plain = (OSError, ValueError, RuntimeError, LookupError, httpx.HTTPError)
    if hub == "huggingface":
        return plain
    from modelscope_hub.errors import HubError

    return (*plain, HubError)


def _problem(what: str, revision: str | None, error: BaseException) -> UserError:
    names = {type(e).__name__ for e in (error, error.__cause__, error.__context__) if e is not None}
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, OSError) and error.errno in FULL:
        return UserError(
            f"{what}: the disk is full. Free some space, or choose another --output-dir, and run it again."
        )
    if "GatedRepoError" in names:
        return UserError(f"{what} is gated: accept its terms on its page, then log in (hf auth login), and try again.")
    if "RevisionNotFoundError" in names:
        return UserError(f"{what} has no revision {revision!r}.")
    if names & {"RepositoryNotFoundError", "NotExistError"}:
        return UserError(f"{what} does not exist there, or is private. Check the name; log in if it is yours.")
    return UserError(f"{what} cannot be fetched: {type(error).__name__}: {text}. What is there stays; run it again.")


def tidy(folder: Path) -> None:
    """Take away what the hubs' libraries note beside the files."""
    import shutil

    for name in (".cache", "._____temp", ".msc", ".mv", ".mdl"):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()
