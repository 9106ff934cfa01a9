"""Reading and writing files so that a kill at any moment leaves either the old file or the new one, never half of one.

In: plain data. Out: files on disk, or rows with the line they came from.
"""

from __future__ import annotations

import datetime
import errno
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
_REASONS = {
    errno.EACCES: "that is not permitted",
    errno.EPERM: "that is not permitted",
    errno.EROFS: "it lies on a disk that can only be read",
    errno.ENOENT: "there is no such place",
    errno.EISDIR: "a folder is in the way",
}
_IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST)


def _nearest_existing(path: Path) -> Path:
    """``path``, or the lowest of its parents that exists."""
    return next((p for p in (path, *path.parents) if os.path.lexists(p)), Path())


def _refused(error: OSError, path: Path, what: str) -> UserError:
    if error.errno in FULL:
        return UserError(
            f"The disk is full: {path} could not be written. Nothing was lost; free some space, "
            f"or choose another {what}, and run the same command again."
        )
    if error.errno in _IN_THE_WAY:
        reason = f"{_nearest_existing(path)} is in the way and is no folder"
    else:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"{path} cannot be written: {reason}. Choose another {what}.")


def make_folder(path: Path, what: str = "--output-dir") -> None:
    """Create a folder and its parents; one that is there already is left as it is.

    Args:
        what: the option or variable that the path came from, for the message.

    Raises:
        UserError: it cannot be created: full disk, not permitted, a file in the way, no such place.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(error, path, what) from error


def require_folder(path: Path, what: str = "--output-dir") -> None:
    """Say before long work that ``path`` is no folder to write to, as far as can be told without creating it.

    Raises:
        UserError: it, or a parent, is a file; or it may not be entered, or nothing may be created where it would lie.
    """
    nearest = _nearest_existing(path)
    needed = os.R_OK if nearest == path else os.W_OK
    if not nearest.is_dir():
        number = errno.ENOTDIR
    elif not os.access(nearest, needed | os.X_OK):
        number = errno.EACCES
    else:
        return
    raise _refused(OSError(number, os.strerror(number)), path, what)


def is_taken(path: Path) -> bool:
    """Whether a path cannot become a new folder: it is a file, or a folder that holds something."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is renamed to ``path``, on failure it is removed.

    Raises:
        UserError: the disk is full or the folder cannot be written. What stood at ``path`` before is untouched.
    """
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise _refused(error, path, "--output-dir") from error
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        # "no such file" is not among these: it would be about something that the caller reads
        if error.errno in (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, *_IN_THE_WAY):
            raise _refused(error, path, "--output-dir") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write one JSON object a line, atomically; returns the number of rows."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing or is not JSON (with the line).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error


def read_jsonl(path: Path) -> list[Any]:
    """Read a JSONL file that this project wrote; a broken line is an error with its number."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}:{number} is not valid JSON: {error}.") from error
    return rows


def fingerprint(data: Any) -> str:
    """SHA-256 (hex, 64 characters) of ``data`` as canonical JSON: content only, independent of paths and key order."""
    text = json.dumps(data, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=256)
def _sha256_of(path: Path, size: int, changed_ns: int) -> str:
    return file_sha256(path)


def known_sha256(path: Path) -> str:
    """``file_sha256`` of a file that is large and asked for often, read once for each size and time of change."""
    stat = path.stat()
    return _sha256_of(path.resolve(), stat.st_size, stat.st_mtime_ns)


def now() -> str:
    """The time as records have it: UTC, ISO 8601, in seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
