"""Folders and files that are written as a whole or not at all, and room for them on the disk."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pipeline.core.errors import UserError
from pipeline.core.files import FULL, make_folder

MARGIN = 1.05  # of the estimated bytes: headers, tokenizer, what the file system takes


def require_room(folder: Path, needed: int, what: str) -> None:
    """Say before hours of work that the disk is too small.

    Args:
        needed: bytes that will be written. what: named in the message, e.g. "the merged model".

    Raises:
        UserError: with what is needed, what is free, and what to do.
    """
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(nearest).free
    if free < needed * MARGIN:
        raise UserError(
            f"No room for {what}: it needs about {needed * MARGIN / 2**20:,.0f} MiB, and {nearest} has "
            f"{free / 2**20:,.0f} MiB free. Free some space, or choose another --output-dir; nothing was written."
        )


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place at the end; on failure nothing of it stays.

    Raises:
        UserError: the disk is full.
    """
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # libraries in C++ and Rust have their own for a full disk
        if not _is_full(error):
            raise
        raise UserError(
            f"The disk is full: {path} could not be written, and nothing half-written was left. Free some space, or choose "
            "another --output-dir."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in FULL or os.strerror(errno.ENOSPC) in str(error)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
