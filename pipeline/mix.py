"""A recipe becomes a training set in which each source has the share that was asked for.

In: a ``Recipe``, a ``ChatFormat``, a seed. Out: a ``Mix``: training and validation examples, the rows that were left
out with their reasons, and a manifest that accounts for every row and states the shares requested and achieved in all
three units (rows, tokens, loss-bearing tokens).

``share`` is a source's part of the *final mix*, counted in ``recipe.unit``. The same recipe, data and seed give the same
bytes on any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import chat_format, conversations
from pipeline.chat_format import IGNORE_INDEX, ChatFormat, Turns
from pipeline.conversations import Rejected, converter
from pipeline.errors import UserError
from pipeline.files import atomic_path, file_sha256, fingerprint, read_json, read_jsonl, write_json, write_jsonl
from pipeline.settings import UNITS, Recipe, SourceSettings
from pipeline.sources import SourceRow, content_key, read_rows

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK = 512  # rows tokenised at once; no result depends on it


@dataclass
class Pool:
    """All usable examples of one source, with what was left out.

    ``examples`` has the columns input_ids, labels, mode, source, row (number of the row in the source, from 0) and key
    (hash of the row's first example, the same for rows that begin alike).
    """

    source: SourceSettings
    examples: Dataset
    rejected: list[dict[str, Any]]
    read: int


@dataclass
class Mix:
    """What training takes. Both datasets have the columns input_ids, labels, mode, source."""

    train: Dataset
    validation: Dataset
    rejected: list[dict[str, Any]]
    manifest: dict[str, Any]


# --- rows → pool --------------------------------------------------------------------------------------------------------

_worker_format: ChatFormat | None = None


def _start_worker(tokenizer: Any) -> None:
    global _worker_format
    _worker_format = ChatFormat(tokenizer)


def _tokenise_in_worker(job: tuple[list[SourceRow], SourceSettings, Turns, int]) -> list[Any]:
    assert _worker_format is not None
    return _tokenise(_worker_format, *job)


def _tokenise(
    form: ChatFormat, rows: list[SourceRow], source: SourceSettings, turns: Turns, limit: int
) -> list[tuple[list[tuple[list[int], int, str]], str, str]]:
    """For each row: its examples (ids, length of the prompt, mode), and reason and detail where it is rejected."""
    convert = converter(source.converter)
    results: list[tuple[list[tuple[list[int], int, str]], str, str]] = [([], "", "")] * len(rows)
    kept, places = [], []
    for place, row in enumerate(rows):
        if row.data is None:
            results[place] = ([], "broken_row", row.error)
            continue
        try:
            conversation = convert(row.data)
        except Rejected as rejected:
            results[place] = ([], rejected.reason, rejected.detail)
            continue
        conversation.source = source.name
        kept.append(conversation)
        places.append(place)
    for place, entry in zip(places, form.examples(kept, turns), strict=True):
        if isinstance(entry, Rejected):
            results[place] = ([], entry.reason, entry.detail)
            continue
        longest = max(len(e.input_ids) for e in entry)
        if longest > limit:
            results[place] = ([], "too_long", f"{longest} tokens, the limit is {limit}")
            continue
        results[place] = ([(e.input_ids, sum(x == IGNORE_INDEX for x in e.labels), e.mode) for e in entry], "", "")
    return results


def _pool_key(source: SourceSettings, form: ChatFormat, turns: Turns, limit: int) -> str:
    tokenizer = form.tokenizer
    return fingerprint(
        {
            "content": content_key(source),
            "name": source.name,
            "converter": source.converter,
            "vocabulary": fingerprint(tokenizer.get_vocab()),
            "template": tokenizer.chat_template,
            "turns": turns,
            "limit": limit,
            "code": [file_sha256(Path(str(m.__file__))) for m in (conversations, chat_format)]
            + [file_sha256(Path(__file__))],
        }
    )


def build_pool(
    source: SourceSettings,
    form: ChatFormat,
    max_seq_length: int,
    turns: Turns = "all",
    workers: int = 1,
    cache: Path | None = None,
) -> Pool:
    """Read, convert and tokenise one source. With ``cache``, a pool that was built before is read from there.

    Args:
        max_seq_length: in tokens; a row with a longer example is rejected as ``too_long``, never cut.
        workers: processes that tokenise; the pool does not depend on it.

    Raises:
        UserError: unknown converter, unreadable source, or no usable row in it.
    """
    from datasets import Dataset, Features, Sequence, Value

    converter(source.converter)
    stem = cache / _pool_key(source, form, turns, max_seq_length) if cache is not None else None
    if stem is not None and stem.with_suffix(".json").exists():
        record = read_json(stem.with_suffix(".json"))
        examples = Dataset.from_parquet(str(stem.with_suffix(".parquet")), cache_dir=str(stem.parent / "arrow"))
        return Pool(source, examples, record["rejected"], record["read"])

    rows = list(read_rows(source))
    if not rows:
        raise UserError(f"source {source.name!r} ({source.path}) is empty: it has no rows.")
    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (form.tokenizer,)) as executor:
            parts = list(executor.map(_tokenise_in_worker, [(c, source, turns, max_seq_length) for c in chunks]))
    else:
        parts = [_tokenise(form, c, source, turns, max_seq_length) for c in chunks]

    columns: dict[str, list[Any]] = {n: [] for n in ("input_ids", "labels", "mode", "source", "row", "key")}
    rejected: list[dict[str, Any]] = []
    for number, (row, (examples_of_row, reason, detail)) in enumerate(
        zip(rows, (result for part in parts for result in part), strict=True)
    ):
        if reason:
            rejected.append(
                {
                    "source": source.name,
                    "file": row.file,
                    "line": row.line,
                    "reason": reason,
                    "detail": detail,
                    "row": row.data,
                }
            )
            continue
        # Conversations that begin alike share their first example, so they must fall on one side of the split.
        key = hashlib.sha256(json.dumps(examples_of_row[0][0]).encode()).hexdigest()[:16]
        for ids, prompt, mode in examples_of_row:
            columns["input_ids"].append(ids)
            columns["labels"].append([IGNORE_INDEX] * prompt + ids[prompt:])
            columns["mode"].append(mode)
            columns["source"].append(source.name)
            columns["row"].append(number)
            columns["key"].append(key)
    if not columns["row"]:
        reasons = ", ".join(f"{n} × {r}" for r, n in Counter(r["reason"] for r in rejected).most_common(3))
        first = rejected[0]
        raise UserError(
            f"source {source.name!r} ({source.path}): none of its {len(rows)} rows can be used ({reasons}); the first is "
            f"{first['file']}:{first['line']} {first['detail']}. Is converter: {source.converter} the right one?"
        )
    features = Features(
        input_ids=Sequence(Value("int32")),
        labels=Sequence(Value("int32")),
        mode=Value("string"),
        source=Value("string"),
        row=Value("int64"),
        key=Value("string"),
    )
    pool = Pool(source, Dataset.from_dict(columns, features=features), rejected, len(rows))
    if stem is not None:
        with atomic_path(stem.with_suffix(".parquet")) as temporary:
            pool.examples.to_parquet(str(temporary))
        write_json(
            stem.with_suffix(".json"), {"read": pool.read, "rejected": json.loads(json.dumps(rejected, default=str))}
        )
    return pool


# --- pools → mix --------------------------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """Rows of a pool: example numbers, and weights by unit, each an array with one entry a row."""

    examples: list[list[int]]
    weights: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.examples)


def _rows_of(pool: Pool, validation_fraction: float) -> tuple[_Rows, _Rows]:
    """Rows for training and for validation. The row's key decides, so rows that begin alike never straddle."""
    tokens = [len(ids) for ids in pool.examples["input_ids"]]
    loss = [sum(label != IGNORE_INDEX for label in labels) for labels in pool.examples["labels"]]
    sides: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
    for example, (row, key) in enumerate(zip(pool.examples["row"], pool.examples["key"], strict=True)):
        held = int(key[:8], 16) / 16**8 < validation_fraction
        sides[held].setdefault(row, []).append(example)
    result = []
    for side in sides:
        groups = list(side.values())
        weights = {
            "rows": np.ones(len(groups)),
            "tokens": np.array([float(sum(tokens[e] for e in g)) for g in groups]),
            "loss_tokens": np.array([float(sum(loss[e] for e in g)) for g in groups]),
        }
        result.append(_Rows(groups, weights))
    return result[0], result[1]


def _take(rows: _Rows, unit: str, target: float, rng: np.random.Generator) -> list[int]:
    """Row numbers whose weights add up to the target as closely as a prefix of a random order can, repeating at need."""
    if target <= 0 or not len(rows):
        return []
    order = rng.permutation(len(rows))
    cumulative = np.cumsum(rows.weights[unit][order])
    rounds, rest = divmod(target, cumulative[-1])
    if rest > cumulative[-1] * (1 - 1e-9):
        rounds, rest = rounds + 1, 0.0
    count = int(np.searchsorted(cumulative, rest))
    if count < len(order):
        before = cumulative[count - 1] if count else 0.0
        count += bool(cumulative[count] - rest <= rest - before)
    return [int(i) for i in np.concatenate([np.tile(order, int(rounds)), order[:count]])]


def _select(
    recipe: Recipe, sides: Sequence[_Rows], total: float, seed: int, purpose: str
) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """(source number, example number) of all chosen examples in their final order, and the chosen rows of each source."""
    chosen: list[tuple[int, int]] = []
    taken = []
    for number, (source, rows) in enumerate(zip(recipe.sources, sides, strict=True)):
        rng = np.random.default_rng([seed, zlib.crc32(f"{purpose}:{source.name}".encode())])
        rows_taken = _take(rows, recipe.unit, source.share * total, rng)
        taken.append(rows_taken)
        chosen += [(number, example) for row in rows_taken for example in rows.examples[row]]
    order = np.random.default_rng([seed, zlib.crc32(purpose.encode())]).permutation(len(chosen))
    return [chosen[i] for i in order], taken


def _available(recipe: Recipe, sides: Sequence[_Rows]) -> float:
    """The largest total at which no source with a share is short."""
    return min(
        float(rows.weights[recipe.unit].sum()) / source.share
        for source, rows in zip(recipe.sources, sides, strict=True)
        if source.share > 0
    )


def _check_supply(recipe: Recipe, sides: Sequence[_Rows], total: float) -> None:
    short = []
    for source, rows in zip(recipe.sources, sides, strict=True):
        need, have = source.share * total, float(rows.weights[recipe.unit].sum())
        if need > have * (1 + 1e-9):
            short.append(f"{source.name!r} has {have:,.0f} of {need:,.0f} {recipe.unit} ({need - have:,.0f} short)")
    if short and recipe.on_shortage == "error":
        largest = int(_available(recipe, sides))
        raise UserError(
            f"recipe {recipe.name}: source {'; '.join(short)} for a mix of {total:,.0f}. Lower total to {largest:,}, give the "
            "source more rows, or set on_shortage: repeat."
        )


def _dataset(pools: Sequence[Pool], chosen: list[tuple[int, int]]) -> Dataset:
    from datasets import concatenate_datasets

    offsets = np.cumsum([0, *(len(pool.examples) for pool in pools)])
    together = concatenate_datasets([pool.examples.remove_columns(["row", "key"]) for pool in pools])
    return together.select([int(offsets[source]) + example for source, example in chosen]).flatten_indices()


def dataset_fingerprint(*parts: Dataset) -> str:
    """SHA-256 (hex) of token ids and labels in order: equal exactly when training would see the same."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"dataset")
        for row in part.select_columns(["input_ids", "labels"]):
            digest.update(np.array([len(row["input_ids"]), *row["input_ids"], *row["labels"]], dtype="<i4").tobytes())
    return digest.hexdigest()


def build_mix(recipe: Recipe, pools: Sequence[Pool], seed: int, validation_fraction: float = 0.05) -> Mix:
    """Draw from each pool until every source has its share, and split off a validation set of the same shares.

    Args:
        pools: one for each source of the recipe, in its order.
        validation_fraction: part of each source's rows that is set aside for validation.

    Raises:
        UserError: a source is too small for its share (says which, and by how much) and the recipe does not allow
            repeating; or the validation split is empty.
    """
    sides = [_rows_of(pool, validation_fraction) for pool in pools]
    train_sides, validation_sides = [s[0] for s in sides], [s[1] for s in sides]
    for source, rows in zip(recipe.sources, train_sides, strict=True):
        if source.share > 0 and not len(rows):
            raise UserError(
                f"source {source.name!r} has no rows left for training; it is too small for a validation split."
            )
    total = float(recipe.total or _available(recipe, train_sides))
    _check_supply(recipe, train_sides, total)
    chosen, taken = _select(recipe, train_sides, total, seed, "train")
    train = _dataset(pools, chosen)

    wanted = total * validation_fraction / (1 - validation_fraction)
    active = [len(rows) for source, rows in zip(recipe.sources, validation_sides, strict=True) if source.share > 0]
    if validation_fraction and not min(active):
        raise UserError(
            f"recipe {recipe.name}: a source has no row in the validation split; give it more rows or set "
            "data.validation_fraction=0."
        )
    held = min(wanted, _available(recipe, validation_sides)) if validation_fraction else 0.0
    validation_chosen, _ = _select(recipe, validation_sides, held, seed, "validation")
    validation = _dataset(pools, validation_chosen)

    sums = [{u: float(rows.weights[u][t].sum()) for u in UNITS} for rows, t in zip(train_sides, taken, strict=True)]
    overall = {u: sum(s[u] for s in sums) for u in UNITS}
    sources = []
    warnings = []
    for source, pool, rows, t, own in zip(recipe.sources, pools, train_sides, taken, sums, strict=True):
        achieved = {u: own[u] / overall[u] if overall[u] else 0.0 for u in UNITS}
        repeated = len(t) - len(set(t))
        if repeated:
            warnings.append(f"source {source.name!r} is too small for its share: {repeated} rows occur more than once")
        if abs(achieved[recipe.unit] - source.share) > 0.01:
            warnings.append(
                f"source {source.name!r} has share {achieved[recipe.unit]:.3f} of {recipe.unit}, "
                f"{source.share:.3f} was asked for: "
                "the mix is too small for a finer split"
            )
        modes = Counter(pool.examples["mode"])
        sources.append(
            {
                "name": source.name,
                "kind": source.kind,
                "mode": modes.most_common(1)[0][0] if len(modes) == 1 else "mixed",
                "licence": source.licence,
                "requested": source.share,
                "achieved": achieved,
                "rows": len(t),
                "rows_repeated": repeated,
                "examples": sum(len(rows.examples[r]) for r in t),
                "tokens": int(own["tokens"]),
                "loss_tokens": int(own["loss_tokens"]),
                "read": pool.read,
                "kept": pool.read - len(pool.rejected),
                "rejected": dict(sorted(Counter(r["reason"] for r in pool.rejected).items())),
            }
        )
    manifest = {
        "recipe": recipe.model_dump(),
        "seed": seed,
        "unit": recipe.unit,
        "total": {u: int(overall[u]) for u in UNITS},
        "examples": {"train": len(train), "validation": len(validation)},
        "fingerprint": dataset_fingerprint(train, validation),
        "sources": sources,
        "warnings": warnings,
    }
    return Mix(train, validation, [r for pool in pools for r in pool.rejected], manifest)


def mix_from_recipe(
    recipe: Recipe,
    form: ChatFormat,
    *,
    max_seq_length: int,
    seed: int,
    turns: Turns = "all",
    validation_fraction: float = 0.05,
    workers: int = 1,
    cache: Path | None = None,
) -> Mix:
    """All of this module in one call: pools of every source, then the mix."""
    for source in recipe.sources:
        converter(source.converter)  # before any reading
    pools = [build_pool(source, form, max_seq_length, turns, workers, cache) for source in recipe.sources]
    return build_mix(recipe, pools, seed, validation_fraction)


# --- on disk ------------------------------------------------------------------------------------------------------------


def save_mix(mix: Mix, folder: Path) -> None:
    """Write train.parquet, validation.parquet, rejected.jsonl and, last, manifest.json: its presence says "complete"."""
    for name, part in (("train", mix.train), ("validation", mix.validation)):
        with atomic_path(folder / f"{name}.parquet") as temporary:
            part.to_parquet(str(temporary))
    write_jsonl(folder / "rejected.jsonl", json.loads(json.dumps(mix.rejected, default=str)))
    write_json(folder / "manifest.json", mix.manifest)


def load_mix(folder: Path) -> Mix:
    """Read what ``save_mix`` wrote.

    Raises:
        UserError: there is no complete mix, or its data does not match its manifest.
    """
    from datasets import Dataset

    if not (folder / "manifest.json").exists():
        raise UserError(f"{folder} holds no finished mix; make one with: python -m pipeline data build.")
    manifest = read_json(folder / "manifest.json")
    train, validation = (
        Dataset.from_parquet(str(folder / f"{name}.parquet"), cache_dir=str(folder / ".arrow"))
        for name in ("train", "validation")
    )
    if dataset_fingerprint(train, validation) != manifest["fingerprint"]:
        raise UserError(f"The data in {folder} does not match its manifest; it was changed. Build the mix again.")
    return Mix(train, validation, read_jsonl(folder / "rejected.jsonl"), manifest)
