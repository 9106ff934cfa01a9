"""A mix on disk: written as a whole, and checked when it is read back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, read_json, read_jsonl, write_json
from pipeline.data.mix import BATCH, Mix, Part, dataset_fingerprint
from pipeline.data.prepare import json_line

if TYPE_CHECKING:
    import pyarrow


def save_mix(mix: Mix, folder: Path) -> None:
    """Write train.parquet, validation.parquet, rejected.jsonl and, last, manifest.json: its presence says "complete"."""
    import pyarrow.parquet as parquet

    for name, part in (("train", mix.train_part), ("validation", mix.validation_part)):
        with atomic_path(folder / f"{name}.parquet") as temporary:
            tables = iter(part.batches())
            first = next(tables)
            with parquet.ParquetWriter(temporary, first.schema) as writer:
                writer.write_table(first)
                for table in tables:
                    writer.write_table(table)
    with atomic_path(folder / "rejected.jsonl") as temporary, temporary.open("wb") as file:
        file.writelines(map(json_line, mix.rejected_rows()))
    write_json(folder / "manifest.json", mix.manifest)


def _stored_tables(path: Path) -> Iterator[pyarrow.Table]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    file = parquet.ParquetFile(path)
    if not file.metadata.num_rows:  # a validation split of few rows may be empty; its columns are needed all the same
        yield file.read()
    for batch in file.iter_batches(BATCH):
        yield pa.Table.from_batches([batch])


def load_mix(folder: Path) -> Mix:
    """Read what ``save_mix`` wrote.

    Raises:
        UserError: there is no complete mix, a file of it is missing or damaged, or its data does not match its manifest.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    if not (folder / "manifest.json").exists():
        raise UserError(f"{folder} holds no finished mix; make one with: python -m pipeline data build.")
    manifest = read_json(folder / "manifest.json")
    try:
        train, validation = (
            Part(parquet.ParquetFile(path).metadata.num_rows, partial(_stored_tables, path))
            for path in (folder / "train.parquet", folder / "validation.parquet")
        )
        found = dataset_fingerprint(train, validation)
        with (folder / "rejected.jsonl").open("rb") as file:
            left_out = sum(1 for _ in file)
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise UserError(
            f"The mix in {folder} is damaged ({str(error).splitlines()[0][:150]}). Build it again."
        ) from error
    if not isinstance(manifest, dict) or found != manifest.get("fingerprint"):
        raise UserError(f"The data in {folder} does not match its manifest; it was changed. Build the mix again.")
    if left_out != sum(n for source in manifest["sources"] for n in source["rejected"].values()):
        raise UserError(
            f"{folder / 'rejected.jsonl'} does not match the manifest; it was changed. Build the mix again."
        )
    return Mix(train, validation, partial(read_jsonl, folder / "rejected.jsonl"), manifest)
