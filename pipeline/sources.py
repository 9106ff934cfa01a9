"""Rows from where they live: generated, local files, Hugging Face, ModelScope.

In: a ``SourceSettings``. Out: an iterator of ``SourceRow``: the row with the file and line it came from, or why that
line is no row. A hub is asked for only after a connection test of two seconds, so that offline fails at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import corpora
from pipeline.errors import UserError, nearest
from pipeline.files import file_sha256, fingerprint
from pipeline.hubs import require_hub
from pipeline.settings import ROOT, SourceSettings, locate

SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass
class SourceRow:
    """One row, or what stood in its place. ``line`` counts from 1: line of a JSONL file, row of any other source."""

    file: str
    line: int
    data: dict[str, Any] | None
    error: str = ""


# --- reading ------------------------------------------------------------------------------------------------------------


def _local_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in SUFFIXES and f.is_file())
        if not files:
            raise UserError(f"{path} holds no {', '.join(SUFFIXES)} file.")
        return files
    if not path.exists():
        raise UserError(f"{path} does not exist; put the data there, or change the source's path in the recipe.")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} has an unknown ending; readable are {', '.join(SUFFIXES)}.")
    return [path]


def _object(value: Any, file: str, line: int) -> SourceRow:
    if isinstance(value, dict):
        return SourceRow(file, line, value)
    return SourceRow(file, line, None, f"not an object but {type(value).__name__}")


def _read_jsonl(path: Path, name: str) -> Iterator[SourceRow]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                value = json.loads(raw.decode("utf-8-sig"))
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                yield SourceRow(name, number, None, f"broken JSON: {error}")
                continue
            yield _object(value, name, number)


def _read_file(path: Path, name: str) -> Iterator[SourceRow]:
    if path.suffix == ".jsonl":
        yield from _read_jsonl(path, name)
    elif path.suffix == ".json":
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path} is not valid JSON: {error}. One object a line? Then name it .jsonl.") from error
        if not isinstance(values, list):
            raise UserError(f"{path} should hold a list of rows, it holds {type(values).__name__}.")
        for number, value in enumerate(values, 1):
            yield _object(value, name, number)
    else:
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{path} is not a readable Parquet file: {error}.") from error
        number = 0
        for batch in table.iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield SourceRow(name, number, value)


def require_source(source: SourceSettings) -> None:
    """Check that a source can be read at all: its files are there, its hub can be reached.

    Raises:
        UserError: it cannot; within five seconds.
    """
    if source.source == "local":
        _local_files(locate(source.path))
    elif source.source != "generated":
        require_hub(
            source.source,
            f"source {source.name!r} ({source.path})",
            "download it on another machine, put the files here, and give their folder as path with source: local.",
        )


def _read_hub(source: SourceSettings) -> Iterator[SourceRow]:
    require_source(source)
    if source.source == "huggingface":
        from datasets import load_dataset

        rows = load_dataset(source.path, split=source.split, revision=source.revision)
    else:
        from modelscope.msdatasets import MsDataset

        loaded = MsDataset.load(source.path, split=source.split, version=source.revision or "master")
        rows = loaded.to_hf_dataset() if hasattr(loaded, "to_hf_dataset") else loaded
    for number, row in enumerate(rows, 1):
        yield SourceRow(source.path, number, dict(row))


def read_rows(source: SourceSettings) -> Iterator[SourceRow]:
    """All rows of a source in order, at most ``source.rows``.

    Raises:
        UserError: unknown generator, missing or unreadable file, hub out of reach.
    """
    if source.source == "generated":
        if source.path not in corpora.GENERATORS:
            known = ", ".join(corpora.GENERATORS)
            hint = nearest(source.path, corpora.GENERATORS)
            raise UserError(f"source {source.name!r}: unknown generator {source.path!r}.{hint} Known: {known}.")
        if source.rows is None:
            raise UserError(f"source {source.name!r}: a generated source needs rows: how many to generate.")
        for number, row in enumerate(corpora.GENERATORS[source.path](source.rows, source.seed), 1):
            yield SourceRow(source.path, number, row)
        return
    found: Iterator[SourceRow]
    if source.source == "local":
        path = locate(source.path)
        root = path if path.is_dir() else path.parent
        found = (r for f in _local_files(path) for r in _read_file(f, str(f.relative_to(root))))
    else:
        found = _read_hub(source)
    for count, item in enumerate(found):
        if source.rows is not None and count >= source.rows:
            return
        yield item


def content_key(source: SourceSettings) -> str:
    """A hash of what the source will yield, by content where that is known without reading rows (files, generators)."""
    identity: dict[str, Any] = {"source": source.source, "rows": source.rows, "split": source.split}
    if source.source == "generated":
        identity |= {"generator": source.path, "seed": source.seed, "code": file_sha256(Path(str(corpora.__file__)))}
    elif source.source == "local":
        identity |= {"files": [file_sha256(f) for f in _local_files(locate(source.path))]}
    else:
        identity |= {"path": source.path, "revision": source.revision}
    return fingerprint(identity)


def cache_dir() -> Path:
    """Where tokenised pools are kept: $PIPELINE_CACHE, else outputs/cache in the project. Safe to delete."""
    return Path(os.environ.get("PIPELINE_CACHE") or ROOT / "outputs" / "cache")
