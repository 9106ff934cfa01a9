"""Rows from tables: CSV, TSV, Parquet and Arrow. Streamed: no more than a batch of rows is in memory.

A cell of a CSV file is text, always: only its column says whether JSON in it is an answer or a list of turns, and which
column is which is known where rows become conversations.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from pipeline.core.errors import UserError
from pipeline.data.rows import files as row_files
from pipeline.data.rows.files import (
    BadRow,
    DataFile,
    Place,
    SourceRow,
    first_line,
    lines_of,
    open_file,
    rejected_row,
    too_large,
)
from pipeline.data.rows.json_files import not_utf8, nul

# --- CSV and TSV --------------------------------------------------------------------------------------------------------


class _Record:
    """Hands lines to csv.reader and remembers those of the present record."""

    def __init__(self, lines: Iterator[tuple[int, bytes, int, int]]):
        self.lines = lines
        self.ended = False
        self.clear()

    def clear(self) -> None:
        self.raw: list[tuple[int, bytes]] = []
        self.size = self.quotes = 0
        self.bad: BadRow | None = None  # the first thing wrong with the bytes

    def __iter__(self) -> _Record:
        return self

    def __next__(self) -> str:
        try:
            number, raw, size, quotes = next(self.lines)
        except StopIteration:
            self.ended = True
            raise
        self.raw.append((number, raw))
        self.size += size
        self.quotes += quotes
        if self.size > row_files.MAX_ROW_BYTES:
            raise too_large(self.size)
        if b"\0" in raw:
            self.bad = self.bad or nul(raw)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self.bad = self.bad or not_utf8(error)
            return raw.decode("latin-1")  # never seen by anyone; keeps quotes and commas where they are

    @property
    def line(self) -> int:
        return self.raw[0][0]


def _finish_large(record: _Record, file: DataFile) -> BadRow:
    """Read on to the end of a record that is too large: to the line that closes its quotes."""
    line, quotes, size = record.line, record.quotes, record.size
    quotes += sum(raw.count(b'"') for _, raw in record.raw)
    record.clear()
    while quotes % 2:
        number, raw, length, dropped = next(record.lines, (0, b"", 0, 0))
        quotes += raw.count(b'"') + dropped
        size += length
        if not number or size > row_files.MAX_LINE_BYTES:
            raise UserError(
                f"{file.path}:{line}: a quote that opens here is never closed, so the {size:,} bytes after it cannot be told "
                "apart. Close it, or download the file again."
            )
    return too_large(size)


def _header(file: DataFile, line: bytes) -> tuple[list[str], str]:
    """Names of the columns, and the delimiter: a tab in .tsv, else a comma, or what a file without comma uses instead."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file.path}:1: {not_utf8(error).detail}") from error
    delimiter = "\t" if file.kind == ".tsv" else next((d for d in ",;\t" if d in text), ",")
    try:
        names = [name.strip() for name in next(csv.reader([text], delimiter=delimiter, strict=True))]
    except csv.Error as error:
        raise UserError(
            f"{file.path}:1: the header cannot be read ({error}); it must be one line of column names."
        ) from error
    names = [name or f"column_{number}" for number, name in enumerate(names, 1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if "\0" in text or twice is not None:
        what = f"names the column {twice!r} twice" if twice is not None else "holds a NUL byte"
        raise UserError(f"{file.path}:1: the header {what}. The first line must name each column once.")
    return names, delimiter


def read_csv(file: DataFile, place: Place) -> Iterator[SourceRow]:
    # csv refuses fields above 128 KiB unless told otherwise, for the whole process; here the record's size is bounded.
    csv.field_size_limit(max(csv.field_size_limit(), row_files.MAX_ROW_BYTES))
    with open_file(file) as stream:
        lines = lines_of(stream, file)
        header: list[str] = []
        for _, raw, size, _ in lines:
            if size > row_files.MAX_ROW_BYTES:
                raise UserError(f"{file.path}:1: the header has {size:,} bytes. The first line must name the columns.")
            if raw.strip():
                header, delimiter = _header(file, raw)
                break
        if not header:
            return
        record = _Record(lines)
        reader = csv.reader(record, delimiter=delimiter, strict=True)
        while True:
            record.clear()
            bad: BadRow | None = None
            cells: list[str] = []
            line = 0
            try:
                cells = next(reader)
            except StopIteration:
                return
            except BadRow:
                line = record.line
                bad = _finish_large(record, file)
            except csv.Error as error:
                if record.ended:
                    yield from _unclosed(file, record, place)
                    return
                bad = record.bad or BadRow("broken_csv", f"{error}, in lines {record.line} to {record.raw[-1][0]}")
            if bad is None and (not cells or (len(record.raw) == 1 and record.raw[0][1].isspace())):
                continue
            line = line or record.line
            if place.skipped(line):
                continue
            bad = bad or record.bad
            if bad is None and len(cells) != len(header):
                bad = BadRow("ragged_row", f"{len(cells)} fields, the header has {len(header)}")
            if bad is not None:
                yield rejected_row(file, line, bad)
            else:
                yield SourceRow(file.name, line, dict(zip(header, cells, strict=True)))


def _unclosed(file: DataFile, record: _Record, place: Place) -> Iterator[SourceRow]:
    """A quote that is never closed swallows the rest of the file: every line of it is counted, none is taken for a row."""
    for number, raw in record.raw:
        if not raw.isspace() and not place.skipped(number):
            detail = f"in the field whose quote opens in line {record.line} and is never closed"
            yield rejected_row(file, number, BadRow("unclosed_quote", detail))


# --- Parquet ------------------------------------------------------------------------------------------------------------


def read_parquet(file: DataFile, place: Place) -> Iterator[SourceRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file.path, buffer_size=row_files.BLOCK, pre_buffer=False) as table:
            names = table.schema_arrow.names
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise UserError(f"{file.path} names the column {twice!r} twice. Rename one of them.")
            number = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if place.skip >= rows:
                    place.skip -= rows
                    number += rows
                    continue
                for batch in table.iter_batches(row_files.PARQUET_BATCH, row_groups=[group]):
                    left_out = min(place.skip, batch.num_rows)
                    place.skip -= left_out
                    number += left_out
                    yield from _rows_of(file, place, batch.slice(left_out), number)
                    number += batch.num_rows - left_out
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{file.path} is not a readable Parquet file (after row {place.line}): {first_line(error)}. Download it again."
        ) from error


def read_arrow(file: DataFile, place: Place) -> Iterator[SourceRow]:
    """Arrow's own format, as ``datasets`` writes it (a stream) or as Feather (a file)."""
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(file.path)) as source:
            number = 0
            for batch in _record_batches(source):
                left_out = min(place.skip, batch.num_rows)
                place.skip -= left_out
                number += left_out
                for start in range(left_out, batch.num_rows, row_files.PARQUET_BATCH):
                    part = batch.slice(start, row_files.PARQUET_BATCH)
                    yield from _rows_of(file, place, part, number)
                    number += part.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{file.path} is not a readable Arrow file (after row {place.line}): {first_line(error)}. Download it again."
        ) from error


def _rows_of(file: DataFile, place: Place, batch: Any, before: int) -> Iterator[SourceRow]:
    """The rows of a batch, numbered behind the ``before`` that came earlier in the file."""
    for number, row in enumerate(_python_rows(batch), before + 1):
        place.line = number
        yield rejected_row(file, number, row) if isinstance(row, BadRow) else SourceRow(file.name, number, row)


def _record_batches(source: Any) -> Iterator[Any]:
    import pyarrow
    import pyarrow.ipc

    if source.read(6) == b"ARROW1":
        source.seek(0)
        reader = pyarrow.ipc.open_file(source)
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        source.seek(0)
        yield from pyarrow.ipc.open_stream(source)


def _python_rows(batch: Any) -> list[dict[str, Any] | BadRow]:
    """Rows of a record batch; where one is too large or has a value without Python counterpart, the others come out."""
    if batch.nbytes > row_files.MAX_ROW_BYTES:
        if batch.num_rows == 1:
            return [too_large(batch.nbytes)]
        half = batch.num_rows // 2
        return _python_rows(batch.slice(0, half)) + _python_rows(batch.slice(half))
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is no UTF-8, a date out of range
        if batch.num_rows == 1:
            reason = "not_utf8" if isinstance(error, UnicodeDecodeError) else "unreadable_value"
            return [BadRow(reason, first_line(error))]
        return [row for number in range(batch.num_rows) for row in _python_rows(batch.slice(number, 1))]
