"""Local files of rows: found, opened, and read line by line; what cannot be a row is told apart from what cannot be read.

In: a path. Out: ``DataFile``s with their kind, and their lines at bounded memory, whatever the compression.
"""

from __future__ import annotations

import bz2
import codecs
import errno
import gzip
import io
import itertools
import lzma
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.settings import locate

MAX_ROW_BYTES = 16 * 2**20  # a longer row is rejected without being loaded
MAX_LINE_BYTES = (
    2**30
)  # a single line as long as this is no data (a decompression bomb, a disk image): the file is given up
MAX_BLANK_LINES = 10_000_000  # in one file; likewise
MAX_BRACKETS = 3_000_000  # in one row of a JSON file; likewise
MAX_DEPTH = 100  # levels of nesting; deeper JSON breaks whatever walks it later
BLOCK = 256 * 2**10  # bytes read at once
PARQUET_BATCH = 512  # rows

FORMATS = (".jsonl", ".jsonlines", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
BINARY = (".parquet", ".arrow")  # compressed inside, if at all
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz", ".zip": "zip"}
READABLE = ".jsonl, .jsonlines, .ndjson, .json, .csv, .tsv (each also as .gz, .zst, .bz2, .xz or in a .zip), .parquet and .arrow"
# An object whose only list has one of these names is one row, not a file of rows.
COLUMNS_WITH_LISTS = {"conversations", "conversation", "messages", "history", "tools", "chosen", "rejected"}


@dataclass
class SourceRow:
    """One row, or what stood in its place.

    ``line`` counts from 1: the line of a JSONL or CSV file where the row begins, the number of the row anywhere else.
    ``data`` is None where there is no row; then ``reason`` is a word to count by and ``error`` says what was seen.
    """

    file: str  # relative to the source's folder; the dataset's or generator's name where there are no files
    line: int
    data: dict[str, Any] | None
    error: str = ""  # at most 200 characters
    reason: str = ""


class BadRow(Exception):
    """What is wrong with one row: a reason to count by, and what was seen."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass
class DataFile:
    path: Path
    name: str  # for SourceRow.file
    kind: str  # one of FORMATS
    compression: str  # a value of COMPRESSIONS or ""
    member: str = ""  # of a zip archive: the file in it

    def __post_init__(self) -> None:
        # A name in Latin-1, as old archives have them, could be written neither to JSON nor to Parquet.
        self.name = self.name.encode("utf-8", "backslashreplace").decode()


@dataclass
class Place:
    """Where reading has got to: rows still to be left out, and the last line (or row) that came through whole."""

    skip: int
    line: int = 0

    def skipped(self, line: int) -> bool:
        self.line = line
        if not self.skip:
            return False
        self.skip -= 1
        return True


def rejected_row(file: DataFile, line: int, bad: BadRow) -> SourceRow:
    text = " ".join(bad.detail.split())
    return SourceRow(file.name, line, None, text if len(text) <= 200 else text[:199] + "…", bad.reason)


# --- finding files ------------------------------------------------------------------------------------------------------


def format_of(name: str) -> tuple[str, str] | None:
    """Format and compression by a file's ending; None where it is none of ours."""
    lower = name.lower()
    ending = next((e for e in COMPRESSIONS if lower.endswith(e)), "")
    kind = next((f for f in FORMATS if lower.removesuffix(ending).endswith(f)), None)
    if kind is None or (ending and kind in BINARY):
        return None
    return kind, COMPRESSIONS.get(ending, "")


def _stat(path: Path) -> os.stat_result:
    """The status of what a path leads to; every way of leading nowhere is a UserError."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise UserError(
                f"{path} is a link to {os.readlink(path)}, which does not exist. Mend or remove it."
            ) from error
        raise UserError(
            f"{path} does not exist; put the data there, or change the source's path in the recipe."
        ) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a link that leads back to itself. Remove it.") from error
        raise UserError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    except ValueError as error:  # a NUL in the path
        raise UserError(f"{str(path)!r} is not a path: {error}.") from error


def located(text: str) -> Path:
    try:
        return locate(text)
    except (OSError, ValueError, RuntimeError) as error:  # too long, no permission on the way, NUL, unknown ~user
        raise UserError(f"{text[:200]!r} cannot be looked up: {error}.") from error


def _real_root(root: str | None) -> Path | None:
    """The folder that no local path may lead out of, links resolved."""
    if root is None:
        return None
    path = located(root)
    if not stat.S_ISDIR(_stat(path).st_mode):
        raise UserError(f"root {path} is not a folder; root names the folder that local paths must stay in.")
    return Path(os.path.realpath(path))


def require_inside(text: str, root: str | None) -> None:
    """Check that a path of a recipe, whatever it is for, stays below the recipe's root.

    Raises:
        UserError: it leads out of it.
    """
    _require_inside(located(text), _real_root(root))


def _require_inside(path: Path, root: Path | None) -> None:
    real = Path(os.path.realpath(path))
    if root is not None and not real.is_relative_to(root):
        raise UserError(
            f"{path} leads to {real}, outside the recipe's root {root}. Move the data below the root, or change root."
        )


def _members(path: Path, name: str) -> list[DataFile]:
    """The files in a zip archive that can be read, sorted by name.

    Raises:
        UserError: it is no archive, asks for a password, or holds nothing that can be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if not e.is_dir() and not _hidden(e.filename)]
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is no zip archive, or is cut short ({error}). Download it again.") from error
    files = []
    for entry in sorted(entries, key=lambda e: e.filename):
        found = format_of(entry.filename)
        if found is None or found[1] or found[0] in BINARY:
            continue
        if entry.flag_bits & 1:
            raise UserError(f"{path}: {entry.filename} asks for a password. Unpack the archive, and give the folder.")
        files.append(DataFile(path, f"{name}/{entry.filename}", found[0], "zip", entry.filename))
    if not files:
        seen = ", ".join(e.filename for e in entries[:5]) or "nothing"
        raise UserError(
            f"{path} holds no file that can be read from within an archive: {seen}. Unpack it, and give the folder."
        )
    return files


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _files(path: Path, name: str, status: os.stat_result) -> list[DataFile]:
    """The file, or those in it if it is a zip archive."""
    if not path.name.lower().endswith(".zip"):
        return [_one_file(path, name, status)]
    _require_whole(path, status)
    return _members(path, name)


def _require_whole(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file but a pipe, socket or device. Write the data to a file first.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read: permission denied. Change its permissions (chmod u+r).")
    if not status.st_size:
        raise UserError(f"{path} is empty (0 bytes). Download it again, or remove it.")


def _one_file(path: Path, name: str, status: os.stat_result) -> DataFile:
    """Check a single file before anything opens it: a pipe or a device would make reading hang."""
    if not stat.S_ISREG(status.st_mode):
        _require_whole(path, status)
    found = format_of(path.name)
    if found is None:
        raise UserError(f"{path} has an unknown ending; readable are {READABLE}.")
    _require_whole(path, status)
    return DataFile(path, name, *found)


def _folder(top: Path, root: Path | None) -> list[DataFile]:
    files: list[DataFile] = []
    others: list[str] = []
    reached: dict[tuple[int, int], Path] = {}  # real folders, so that a link in a circle ends
    todo = [top]
    while todo:
        folder = todo.pop()
        status = _stat(folder)
        before = reached.setdefault((status.st_dev, status.st_ino), folder)
        if before is not folder:
            raise UserError(
                f"{folder} is a link that leads again to {before}, so its rows would come twice. Remove it."
            )
        try:
            names = os.listdir(folder)
        except OSError as error:
            raise UserError(f"The folder {folder} cannot be read: {error.strerror}. Check its permissions.") from error
        for name in names:
            if name.startswith("."):
                continue
            path = folder / name
            status = _stat(path)
            if stat.S_ISDIR(status.st_mode):
                _require_inside(path, root)
                todo.append(path)
            elif format_of(name) or name.lower().endswith(".zip"):
                _require_inside(path, root)
                files += _files(path, path.relative_to(top).as_posix(), status)
            else:
                others.append(name)
    if not files:
        seen = f"it holds {', '.join(sorted(others)[:5])}{' …' if len(others) > 5 else ''}" if others else "it is empty"
        raise UserError(f"{top} holds no file that can be read: {seen}. Readable are {READABLE}.")
    return sorted(files, key=lambda f: f.name)


def local_files(text: str, root: str | None) -> list[DataFile]:
    """The files of a local source, sorted by relative name. Hidden files and unknown endings in a folder are left out.

    Raises:
        UserError: nothing there, nothing readable, a pipe or device, an empty file, a broken or circular link,
            no permission, or a way out of ``root``.
    """
    base = _real_root(root)
    path = located(text)
    status = _stat(path)
    _require_inside(path, base)
    if stat.S_ISDIR(status.st_mode):
        return _folder(path, base)
    return _files(path, path.name, status)


# --- opening and lines --------------------------------------------------------------------------------------------------


_UNPACK: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}


@contextmanager
def open_file(file: DataFile) -> Iterator[io.BufferedReader]:
    """The decompressed bytes of a text file, without byte-order mark.

    Raises:
        UserError: it is UTF-16 or UTF-32.
    """
    with ExitStack() as stack:
        if file.compression == "zstd":
            # pyarrow notices a stream that was cut short; zstandard's reader takes it for the end of the file.
            import pyarrow

            source = stack.enter_context(pyarrow.OSFile(str(file.path)))
            raw: Any = stack.enter_context(pyarrow.CompressedInputStream(source, "zstd"))
        elif file.compression == "zip":
            raw = stack.enter_context(stack.enter_context(zipfile.ZipFile(file.path)).open(file.member))
        else:
            raw = stack.enter_context(file.path.open("rb", buffering=0))
            if unpack := _UNPACK.get(file.compression):
                raw = stack.enter_context(unpack(raw))
        stream = stack.enter_context(io.BufferedReader(raw, BLOCK))
        head = stream.peek(4)[:4]
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
            raise UserError(
                f"{file.path} is UTF-16 or UTF-32, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 {file.name} > new_file"
            )
        if head.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        yield stream


def lines_of(stream: io.BufferedReader, file: DataFile) -> Iterator[tuple[int, bytes, int, int]]:
    """(number, bytes, length in bytes, quotes that were dropped) of each line.

    Of a line longer than MAX_ROW_BYTES only the beginning is kept, the rest is read and dropped.

    Raises:
        UserError: a line without end, or blank lines without end.
    """
    blank = 0
    for number in itertools.count(1):
        raw = stream.readline(MAX_ROW_BYTES + 1)
        size, quotes = len(raw), 0
        if size > MAX_ROW_BYTES:
            part = raw
            while not part.endswith(b"\n") and (part := stream.readline(BLOCK)):
                size += len(part)
                quotes += part.count(b'"')
                if size > MAX_LINE_BYTES:
                    raise UserError(
                        f"{file.path}:{number} is a single line of more than {MAX_LINE_BYTES / 2**30:g} GiB. This is "
                        "no file of rows, or it is damaged; look at its beginning, and download it again."
                    )
        elif size < 3 and not raw.strip():
            if not raw:
                return
            blank += 1
            if blank > MAX_BLANK_LINES:
                raise UserError(
                    f"{file.path}:{number}: {blank:,} lines are blank. The file is damaged; download it again."
                )
        yield number, raw, size, quotes


def too_large(size: int) -> BadRow:
    return BadRow("row_too_large", f"the row has {size:,} bytes; the limit is {MAX_ROW_BYTES:,}")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
