"""Pools become a training set in which each source has the share that was asked for.

In: a ``Recipe``, the pools of its sources, a seed. Out: a ``Mix``: training and validation examples, the rows that were
left out with their reasons, and a manifest that accounts for every row and states the shares requested and achieved in
all three units (rows, tokens, loss-bearing tokens).

``share`` is a source's part of the *final mix*, counted in ``recipe.unit``. The same recipe, data and seed give the same
bytes on any number of processes. Examples are gathered from the pools in batches, so memory does not grow with the mix.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.redact import masked
from pipeline.data.account import source_entry, warnings_of_rows, warnings_of_shares
from pipeline.data.arrays import ranges, starts_of
from pipeline.data.chat_format import ChatFormat
from pipeline.data.pools import Pool, build_pools, example_table, require_usable
from pipeline.data.screen import Screened, screen
from pipeline.data.taken import warnings_of_steps
from pipeline.settings import UNITS, Recipe

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset


BATCH = 4096  # examples gathered at once


@dataclass
class Part:
    """One side of a mix: its examples as tables of input_ids, labels, mode and source, batch by batch."""

    rows: int
    batches: Callable[[], Iterable[pyarrow.Table]]

    @cached_property
    def dataset(self) -> Dataset:
        """All examples in memory."""
        import pyarrow as pa
        from datasets import Dataset

        return Dataset(pa.concat_tables(self.batches()))


@dataclass
class Mix:
    """What training takes. ``train`` and ``validation`` have the columns input_ids, labels, mode, source."""

    train_part: Part
    validation_part: Part
    rejected_rows: Callable[[], Iterable[dict[str, Any]]]
    manifest: dict[str, Any]

    @property
    def train(self) -> Dataset:
        """The training examples in their order."""
        return self.train_part.dataset

    @property
    def validation(self) -> Dataset:
        """The validation examples."""
        return self.validation_part.dataset

    @cached_property
    def rejected(self) -> list[dict[str, Any]]:
        """Every row that was left out: source, file, line, step, reason, detail, row."""
        return list(self.rejected_rows())


# --- pools → mix --------------------------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """Rows of a pool on one side of the split: entries of ``pool.rows``, and weights by unit."""

    entries: np.ndarray
    weights: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.entries)


def held_out(keys: np.ndarray, fraction: float) -> np.ndarray:
    """Whether rows with these keys (uint64) belong to the validation split: the key read as a number from 0 to 1."""
    return (keys >> np.uint64(32)).astype(np.float64) / 2**32 < fraction


def _rows_of(pool: Pool, screened: Screened, validation_fraction: float) -> tuple[_Rows, _Rows]:
    """Rows for training and for validation. The row's key decides, so rows that hang together never straddle."""
    held = held_out(screened.key, validation_fraction)
    result = []
    for side in (~held, held):
        entries = np.flatnonzero(screened.keep & side)
        weights = {"rows": np.ones(len(entries))}
        weights |= {unit: pool.rows[unit][entries].astype(float) for unit in ("tokens", "loss_tokens")}
        result.append(_Rows(entries, weights))
    return result[0], result[1]


@dataclass
class _Drawn:
    """What was drawn for one side of the split."""

    part: Part
    entries: list[np.ndarray]  # of each source: the chosen entries of ``pool.rows``, as often as they were chosen
    weights: list[dict[str, float]]  # of each source: what they add up to, by unit


def _take(rows: _Rows, unit: str, target: float, rng: np.random.Generator) -> np.ndarray:
    """Row numbers whose weights add up to the target as closely as a prefix of a random order can, repeating at need."""
    if target <= 0 or not len(rows):
        return np.zeros(0, np.int64)
    order = rng.permutation(len(rows))
    cumulative = np.cumsum(rows.weights[unit][order])
    rounds, rest = divmod(target, cumulative[-1])
    # A target of exactly all rows may come out as "no whole round and nearly everything", by rounding of the division.
    if rest > cumulative[-1] * (1 - 1e-9):
        rounds, rest = rounds + 1, 0.0
    count = int(np.searchsorted(cumulative, rest))
    if count < len(order):
        # ``count`` rows stay below the rest, one more reaches it: whichever comes closer.
        before = cumulative[count - 1] if count else 0.0
        count += bool(cumulative[count] - rest <= rest - before)
    return np.concatenate([np.tile(order, int(rounds)), order[:count]])


def _draw(
    recipe: Recipe, pools: Sequence[Pool], sides: Sequence[_Rows], total: float, seed: int, purpose: str
) -> _Drawn:
    """Draw from each source its share of ``total``, and put all examples into one random order.

    Every source has random numbers of its own, so that another one's share or size does not change which rows it gives.
    """
    numbers, examples, entries = [], [], []
    weights: list[dict[str, float]] = []
    for number, (source, pool, rows) in enumerate(zip(recipe.sources, pools, sides, strict=True)):
        rng = np.random.default_rng([seed, zlib.crc32(f"{purpose}:{source.name}".encode())])
        taken = _take(rows, recipe.unit, source.share * total, rng)
        weights.append({unit: float(rows.weights[unit][taken].sum()) for unit in UNITS})
        entries.append(rows.entries[taken])
        # A row may have several examples (one an answer), which lie one behind the other in the pool.
        counts = pool.rows["examples"][entries[-1]].astype(np.int64)
        examples.append(ranges(pool.rows["first"][entries[-1]], counts))
        numbers.append(np.full(len(examples[-1]), number))
    order = np.random.default_rng([seed, zlib.crc32(purpose.encode())]).permutation(sum(map(len, examples)))
    tables = partial(_tables, pools, np.concatenate(numbers)[order], np.concatenate(examples)[order])
    return _Drawn(Part(len(order), tables), entries, weights)


def _tables(pools: Sequence[Pool], numbers: np.ndarray, examples: np.ndarray) -> Iterator[pyarrow.Table]:
    """The chosen examples, at least one table."""
    for start in range(0, max(len(numbers), 1), BATCH):
        yield example_table(pools, numbers[start : start + BATCH], examples[start : start + BATCH])


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
            words = f"{source.name!r} has {have:,.0f} of {need:,.0f} {recipe.unit} ({need - have:,.0f} short)"
            if source.questions is not None and source.rows_at is not None:
                read = read_json(source.rows_at.with_name("rehearsal.json"))["questions"]["read"]
                words += (
                    f", and it would take about {math.ceil(read * need / max(have, 1)):,} questions instead of {read:,}"
                )
            short.append(words)
    if short and recipe.on_shortage == "error":
        largest = int(_available(recipe, sides))
        raise UserError(
            f"recipe {recipe.name}: source {'; '.join(short)} for a mix of {total:,.0f}. Lower total to {largest:,}, give the "
            "source more rows, or set on_shortage: repeat."
        )


def _digest(digest: Any, tables: Iterable[pyarrow.Table]) -> None:
    """Feed each row's length, ids and labels (little-endian int32) into the digest, whatever the batches are."""
    for table in tables:
        for chunk in table.combine_chunks().to_batches():
            offsets = np.asarray(chunk["input_ids"].offsets, np.int64)
            ids, labels = (np.asarray(chunk[n].values)[offsets[0] : offsets[-1]] for n in ("input_ids", "labels"))
            lengths = np.diff(offsets)
            starts = starts_of(2 * lengths + 1)  # of each row's frame: its length, its ids, its labels
            framed = np.empty(int((2 * lengths + 1).sum()), "<i4")
            framed[starts] = lengths
            to = ranges(starts + 1, lengths)
            framed[to] = ids
            framed[to + np.repeat(lengths, lengths)] = labels
            digest.update(framed.tobytes())


def dataset_fingerprint(*parts: Part | Dataset) -> str:
    """SHA-256 (hex) of token ids and labels in order: equal exactly when training would see the same."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"dataset")
        if isinstance(part, Part):
            _digest(digest, part.batches())
        else:
            _digest(digest, part.select_columns(["input_ids", "labels"]).with_format("arrow").iter(BATCH))
    return digest.hexdigest()


def build_mix(
    recipe: Recipe,
    pools: Sequence[Pool],
    seed: int,
    validation_fraction: float = 0.05,
    cache: Path | None = None,
) -> Mix:
    """Draw from each pool until every source has its share, and split off a validation set of the same shares.

    Args:
        pools: one for each source of the recipe, in its order.
        validation_fraction: part of each source's rows that is set aside for validation.
        cache: where the search for duplicates is kept; None: it is made anew.

    Raises:
        UserError: a source is too small for its share (says which, and by how much) and the recipe does not allow
            repeating; or the validation split is empty.
    """
    for source, pool in zip(recipe.sources, pools, strict=True):
        if source.share > 0:
            require_usable(pool)
    screened = screen(recipe, pools, cache)
    sides = [_rows_of(pool, s, validation_fraction) for pool, s in zip(pools, screened, strict=True)]
    train_rows, validation_rows = [s[0] for s in sides], [s[1] for s in sides]
    _require_training_rows(recipe, train_rows, validation_fraction)
    total = float(recipe.total or _available(recipe, train_rows))
    _check_supply(recipe, train_rows, total)
    train = _draw(recipe, pools, train_rows, total, seed, "train")

    held = 0.0
    if validation_fraction:
        _require_validation_rows(recipe, validation_rows)
        wanted = total * validation_fraction / (1 - validation_fraction)
        # Rather smaller than asked for than with repeated rows, or with other shares than training.
        held = min(wanted, _available(recipe, validation_rows))
    validation = _draw(recipe, pools, validation_rows, held, seed, "validation")

    overall: dict[str, float] = {unit: sum(weights[unit] for weights in train.weights) for unit in UNITS}
    sources = [
        source_entry(source, pool, judged, entries, weights, overall)
        for source, pool, judged, entries, weights in zip(
            recipe.sources, pools, screened, train.entries, train.weights, strict=True
        )
    ]
    manifest = {
        "recipe": masked(recipe.model_dump()),
        "seed": seed,
        "unit": recipe.unit,
        "total": {unit: int(overall[unit]) for unit in UNITS},
        "examples": {"train": train.part.rows, "validation": validation.part.rows},
        "fingerprint": dataset_fingerprint(train.part, validation.part),
        "sources": sources,
        "warnings": [
            *_warnings_of_split(recipe, screened, validation_fraction),
            *warnings_of_shares(recipe, sources),
            *warnings_of_rows(recipe, sources),
            *warnings_of_steps(sources),
        ],
    }
    return Mix(train.part, validation.part, partial(_rejected, pools, screened), manifest)


def _require_training_rows(recipe: Recipe, sides: Sequence[_Rows], validation_fraction: float) -> None:
    for source, rows in zip(recipe.sources, sides, strict=True):
        if source.share > 0 and not len(rows):
            why = "it is too small for a validation split" if validation_fraction else "they are duplicates of others"
            raise UserError(f"source {source.name!r} has no rows left for training: {why}.")


def _require_validation_rows(recipe: Recipe, sides: Sequence[_Rows]) -> None:
    empty = [s.name for s, rows in zip(recipe.sources, sides, strict=True) if s.share > 0 and not len(rows)]
    if empty:
        raise UserError(
            f"recipe {recipe.name}: no row of {', '.join(map(repr, empty))} falls into the validation split; give it more rows, "
            "set data.validation_fraction=0, or, where all rows are alike or ask one question, group_near_duplicates: false."
        )


def _warnings_of_split(recipe: Recipe, screened: Sequence[Screened], fraction: float) -> list[str]:
    """Groups of alike rows may be so large that the split cannot have the size that was asked for."""
    result = []
    for source, judged in zip(recipe.sources, screened, strict=True):
        keys = judged.key[judged.keep]
        if not len(keys) or not fraction:
            continue
        got = float(held_out(keys, fraction).mean())
        groups, counts = np.unique(keys, return_counts=True)
        # Were all groups of one row, the part would stray by chance alone; three standard deviations of that are no news.
        by_chance = 3 * (fraction * (1 - fraction) / len(keys)) ** 0.5
        if abs(got - fraction) > by_chance and len(groups) < len(keys):
            result.append(
                f"source {source.name!r}: {got:.3f} of its rows are set aside for validation instead of {fraction:.3f}, because "
                f"alike rows stay on one side; the largest group has {counts.max():,} (group_near_duplicates: false parts them)"
            )
    return result


def _rejected(pools: Sequence[Pool], screened: Sequence[Screened]) -> Iterator[dict[str, Any]]:
    for pool, judged in zip(pools, screened, strict=True):
        yield from pool.iter_rejected()
        yield from judged.iter_rejected()


def mix_from_recipe(
    recipe: Recipe,
    form: ChatFormat,
    *,
    max_seq_length: int,
    seed: int,
    validation_fraction: float = 0.05,
    workers: int = 1,
    cache: Path | None = None,
) -> Mix:
    """All of the data path in one call: pools of every source, of all turns and without too long rows, then the mix."""
    pools = build_pools(recipe, form, max_seq_length, workers=workers, cache=cache)
    return build_mix(recipe, pools, seed, validation_fraction, cache)
