"""Checkpoints that can be trusted: a manifest with checksums, written last; the newest whole one is where a run goes on.

In: the folders ``checkpoint-N`` that transformers' Trainer writes. Out: ``manifest.json`` in each:

    step       of the optimiser
    files      {path: {"sha256", "bytes"}} of every other file in the folder
    identity   {"config": {dotted key: value}, "data": fingerprint of the mix, "versions": {name: version}}
    progress   what had been counted up to there: tokens, loss_tokens, seconds of training

A folder without a manifest was never finished. One whose files do not match it was damaged afterwards. Neither is resumed
from; both are said, and moved aside as ``damaged-checkpoint-N`` (the newest of them is kept for a look).

Nothing here unpickles. transformers reads ``optimizer.pt``, ``scheduler.pt`` and ``rng_state.pth`` with
``torch.load(weights_only=True)``, after the checksums have been compared.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import file_sha256, fingerprint, read_json, write_json
from pipeline.core.redact import masked
from pipeline.core.versions import UNSLOTH_STACK, same, version_of
from pipeline.settings.compare import affects, flat
from pipeline.settings.section import AffectedResult

if TYPE_CHECKING:
    from pipeline.settings import Profile


MANIFEST = "manifest.json"
STATE = "trainer_state.json"
PREFIX = "checkpoint-"
ASIDE = "damaged-"


# --- who wrote it -------------------------------------------------------------------------------------------------------


def identity(
    profile: Profile, data_fingerprint: str, stage: Literal["preference", "grpo"] | None = None
) -> dict[str, Any]:
    """What has to be the same for a training to go on exactly: its settings, its data, and the software.

    Secrets in the settings are masked (they are no part of what is trained). What changes the mix alone counts through its
    outcome, the data. Versions: Python without its last part, the libraries that train, the kind of device, the number of
    processes.

    Args:
        stage: whose own settings count too.
    """
    import torch

    config = flat(masked(profile.model_dump(mode="json")))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    versions = {
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{name: version_of(name) for name in UNSLOTH_STACK if name != "datasets"},
        "device": device,
        "processes": os.environ.get("WORLD_SIZE", "1"),
    }
    counts: tuple[AffectedResult, ...] = ("training", stage) if stage else ("training",)
    return {
        "config": {key: value for key, value in config.items() if affects(key, *counts)},
        "data": data_fingerprint,
        "versions": versions,
    }


def differences(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """What differs between two identities, each as "key was … and is …"; a build label of a version does not count.

    Nor does a setting that an earlier version stored, and of which it is known by now that it changes no training.
    """
    found = []
    for kind, prefix in (("config", ""), ("versions", "version of ")):
        before, now = stored.get(kind, {}), current[kind]
        for key in dict.fromkeys([*before, *now]):
            was, is_ = before.get(key), now.get(key)
            alike = was == is_ or (kind == "versions" and was is not None and same(is_, was))
            if kind == "config" and key not in now and not affects(key, "training"):
                continue
            if not alike:
                found.append(f"{prefix}{key} was {was!r} and is {is_!r}")
    if stored.get("data") != current["data"]:
        found.append(f"the data was {str(stored.get('data'))[:12]}… and is {str(current['data'])[:12]}… (fingerprint)")
    return found


def require_same(checkpoint: Path, current: dict[str, Any], force: bool = False) -> list[str]:
    """Refuse to go on from a checkpoint of other settings, data or versions.

    Returns:
        With ``force``: what differs, also said; empty where nothing does.

    Raises:
        UserError: something differs, and ``force`` is off; every difference is named.
    """
    found = differences(read_json(checkpoint / MANIFEST).get("identity", {}), current)
    if found and not force:
        raise UserError(
            f"{checkpoint} was written under other conditions: {'; '.join(found)}. Going on would give another result than "
            "one uninterrupted run. Put them back as they were, choose another --output-dir to start anew, or add --force "
            "to go on all the same; nothing was changed."
        )
    if found:
        say(f"going on from {checkpoint.name} although (--force): {'; '.join(found)}")
    return found


# --- is it whole --------------------------------------------------------------------------------------------------------


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(folder.name.removeprefix(ASIDE).removeprefix(PREFIX))


def _folders(parent: Path, prefix: str = PREFIX) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [p for p in parent.glob(f"{prefix}*") if p.is_dir() and p.name.removeprefix(prefix).isdigit()]
    return sorted(found, key=step_of)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def write_manifest(folder: Path, who: dict[str, Any], progress: dict[str, float] | None = None) -> None:
    """Finish a checkpoint: all of it reaches the disk first, then the manifest appears as a whole.

    Raises:
        UserError: the disk is full.
    """
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # the checkpoint before is about to be removed
        files[path.relative_to(folder).as_posix()] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    content = {"step": step_of(folder), "files": files, "identity": who, "progress": progress or {}}
    content["config_fingerprint"] = fingerprint(who["config"])
    write_json(folder / MANIFEST, content)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None: it is whole.

    With early stopping the best checkpoint belongs to it: the result comes from there.
    """
    if not (folder / MANIFEST).exists():
        return "it was not written to its end"
    try:
        manifest = read_json(folder / MANIFEST)
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is damaged"
    for name, (size, checksum) in files.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
            if file_sha256(path) != checksum:
                return f"{name} does not match its checksum"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    if STATE not in files:
        return f"it has no {STATE}"
    best = best_checkpoint(folder)
    if best is not None and best != folder:
        reason = damage(best)
        return f"the best one so far, {best.name}, is damaged ({reason})" if reason else None
    return None


def best_checkpoint(folder: Path) -> Path | None:
    """The sibling that a checkpoint's state names as the best so far (early stopping); None without."""
    best = read_json(folder / STATE).get("best_model_checkpoint")  # a path, of the time when it was written
    return folder.with_name(Path(best).name) if best else None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in the folder; nothing is changed."""
    return next((path for path in reversed(_folders(folder)) if damage(path) is None), None)


def resume_point(folder: Path) -> Path | None:
    """The newest whole checkpoint, after the broken ones were said and moved aside; None: start at step 0."""
    found = [(path, damage(path)) for path in _folders(folder)]
    point = next((path for path, reason in reversed(found) if reason is None), None)
    for path, reason in found:
        if reason:
            instead = f"going on from {point.name}" if point else "starting at step 0"
            say(f"{path.name} cannot be used: {reason}; {instead}")
            set_aside(path)
    return point


def set_aside(folder: Path) -> None:
    """Rename a broken checkpoint so that nothing takes it for one; of several, only the last one set aside stays."""
    for other in _folders(folder.parent, ASIDE + PREFIX):
        shutil.rmtree(other)
    folder.rename(folder.with_name(ASIDE + folder.name))


def finished(checkpoint: Path) -> bool:
    """Whether the training was over when it was written: its last step was done, or early stopping had said so."""
    state = read_json(checkpoint / STATE)
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    return bool(control.get("should_training_stop")) or state["global_step"] >= state["max_steps"]


def progress(checkpoint: Path | None) -> dict[str, float]:
    """What had been counted up to a checkpoint; empty at step 0."""
    return dict(read_json(checkpoint / MANIFEST)["progress"]) if checkpoint else {}


def rotate(folder: Path, keep: int, best: str | None = None) -> None:
    """Remove the oldest checkpoints until ``keep`` are left; the newest and the best (early stopping) always stay.

    Only whole ones count. One that was left unfinished by a kill is moved aside, whatever its number.
    """
    for path in _folders(folder):
        if not (path / MANIFEST).exists():
            set_aside(path)
    own = _folders(folder)
    protected = {path for path in own if path == own[-1] or (best and path.name == Path(best).name)}
    remaining = len(own)
    for path in own:
        if remaining <= max(keep, len(protected)):
            break
        if path not in protected:
            (path / MANIFEST).unlink()  # first: what a kill leaves of it is then an unfinished one, not a damaged one
            shutil.rmtree(path)
            remaining -= 1


def clear_aside(folder: Path) -> None:
    """Remove what was moved aside; a finished training has no use for it."""
    for path in _folders(folder, ASIDE + PREFIX):
        shutil.rmtree(path)
