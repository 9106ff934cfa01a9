"""Where cells that run on other machines leave what they made: a folder that all of them see, or any URL that fsspec knows.

In: a path or URL (``/shared/sweep``, ``s3://bucket/sweep``, ``gs://…``). Out: folders that are there as a whole or not at all. In
a folder of a file system, a copy is renamed when it is complete; elsewhere a small record is written beside it after its last
file, and what has no record does not count.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.errors import UserError
from pipeline.core.files import FULL
from pipeline.core.redact import masked_text

PARTIAL = ".partial-"  # begins the name of a copy that is being made
TRIES, PAUSE_SECONDS = 3, 1.0
T = TypeVar("T")


class Storage:
    """A place for folders and JSON records, by keys such as ``cells/00-seed1/run``.

    Raises:
        UserError: no such kind of URL, or its package is missing; from the methods: it is full, gone, or not permitted.
    """

    def __init__(self, url: str) -> None:
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        try:
            self.system, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UserError(
                f"--store {_shown(url)}: {str(error).rstrip('.')}. Give a folder that all nodes see, or a URL that "
                "fsspec knows, such as s3://bucket/folder (pip install s3fs) or gs://bucket/folder (pip install gcsfs)."
            ) from error
        self.url, self.root = url, root.rstrip("/")
        self.is_folder = isinstance(self.system, LocalFileSystem)

    def path(self, key: str) -> str:
        """The key's place in the file system."""
        return f"{self.root}/{key}" if key else self.root

    # --- records

    def read(self, key: str) -> Any:
        """A JSON record, or None where there is none."""

        def read() -> Any:
            try:
                return json.loads(self.system.cat_file(self.path(key)))
            except FileNotFoundError:
                return None

        with self._said():
            return self._again(read)

    def write(self, key: str, data: Any) -> None:
        """Write a JSON record, whole or not at all."""
        text = json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False).encode() + b"\n"
        with self._said():
            self._again(lambda: self._write(key, text))

    def _write(self, key: str, content: bytes) -> None:
        path = self.path(key)
        if not self.is_folder:
            self.system.pipe_file(path, content)
            return
        partial = f"{path}{PARTIAL}{uuid.uuid4().hex[:8]}"
        try:
            self.system.makedirs(os.path.dirname(path), exist_ok=True)
            self.system.pipe_file(partial, content)
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)

    def remove(self, key: str) -> None:
        """Remove a record, where there is one."""
        with self._said():
            try:
                self.system.rm_file(self.path(key))
            except FileNotFoundError:
                return

    # --- folders

    def has(self, key: str, file: str = "") -> bool:
        """Whether the folder is there, complete; in a file system, with this file in it."""
        with self._said():
            return bool(self._again(lambda: self.system.exists(self._evidence(key, file))))

    def _evidence(self, key: str, file: str) -> str:
        return self.path(f"{key}/{file}" if file else key) if self.is_folder else f"{self.path(key)}.json"

    def put(self, source: Path, key: str) -> None:
        """Copy a folder here, over what stood there."""
        with self._said():
            self._again(lambda: self._put(source, key))

    def _put(self, source: Path, key: str) -> None:
        target = self.path(key)
        if self.is_folder:
            replace_folder(source, Path(target))
            return
        files = sorted(path for path in source.rglob("*") if path.is_file())
        names = [path.relative_to(source).as_posix() for path in files]
        if self.system.exists(f"{target}.json"):
            self.system.rm_file(f"{target}.json")
        for path, name in zip(files, names, strict=True):
            self.system.put_file(str(path), f"{target}/{name}")
        sizes = {name: path.stat().st_size for path, name in zip(files, names, strict=True)}
        self.system.pipe_file(f"{target}.json", json.dumps({"files": sizes}).encode())

    def get(self, key: str, target: Path) -> None:
        """Copy a folder from here, over what stands at ``target``; nothing where it is the same place."""
        with self._said():
            self._again(lambda: self._get(key, target))

    def _get(self, key: str, target: Path) -> None:
        if self.is_folder:
            if Path(self.path(key)).resolve() != target.resolve():
                replace_folder(Path(self.path(key)), target)
            return
        sizes = json.loads(self.system.cat_file(f"{self.path(key)}.json"))["files"]
        partial = target.with_name(f"{PARTIAL}{target.name}-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for name, size in sizes.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self.system.get_file(f"{self.path(key)}/{name}", str(path))
                if path.stat().st_size != size:
                    raise OSError(f"{key}/{name} has {path.stat().st_size} bytes instead of {size}")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    # --- failures

    def _again(self, work: Callable[[], T]) -> T:
        """Do it; where the storage fails for another reason than that it is full, some times again."""
        for left in reversed(range(TRIES)):
            try:
                return work()
            except OSError as error:
                if left == 0 or error.errno in FULL or isinstance(error, PermissionError | NotADirectoryError):
                    raise
                time.sleep(PAUSE_SECONDS)
        raise AssertionError("unreachable")

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                what = "is full. Free some space"
            else:
                reason = error.strerror or str(error) or type(error).__name__
                what = f"cannot be used ({reason}). See that it is there and may be written"
            raise UserError(
                f"The storage {_shown(self.url)} {what}, and run the same command again with --resume; cells that are "
                "done are not repeated."
            ) from error


def replace_folder(source: Path, target: Path) -> None:
    """Copy a folder within a file system; the copy appears when it is complete, in place of what stood there."""
    partial = target.with_name(f"{PARTIAL}{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, partial)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    except shutil.Error as error:  # copytree's own: a list of (from, to, reason)
        reason = str(error.args[0][0][-1])
        full = f"Errno {errno.ENOSPC}]" in reason
        raise OSError(errno.ENOSPC if full else errno.EIO, reason) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _shown(url: str) -> str:
    """The URL without the secrets that one may carry."""
    return masked_text(url)
