"""What can only be judged over all sources together: duplicates, class balance, and which rows belong on one side.

In: the pools of a recipe. Out: for each pool which of its rows are kept, the key that decides their side of the
train/validation split, and the rows that fell out, each with its reason. The result depends on neither seed nor
shares, but for which sources have none, so a mix at another share finds it done.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, fingerprint, read_json, write_json
from pipeline.data.arrays import first_equal
from pipeline.data.cleaning import duplicates
from pipeline.data.cleaning.duplicates import find_duplicates
from pipeline.data.pools import Pool, code_key, compares_rows, near_duplicates
from pipeline.data.prepare import EXAMPLES, json_line
from pipeline.data.sources import read_rows
from pipeline.settings import Recipe

_LIBRARIES = ("numpy", "scipy", "rensa")  # those by which rows are compared and grouped


@dataclass
class Screened:
    """What a pool contributes. Arrays have one entry for each entry of ``pool.rows``."""

    keep: np.ndarray  # bool
    key: np.ndarray  # uint64; rows with equal keys fall on one side of the split
    steps: dict[str, dict[str, Any]]  # step → {"rejected": {reason: rows}, "examples": [...]}
    copies_left_out: int  # augmented copies that turned out to be another row
    rejected_path: Path

    def iter_rejected(self) -> Iterator[dict[str, Any]]:
        """Rows that fell out here: source, file, line, step, reason, detail, row."""
        with self.rejected_path.open("rb") as file:
            yield from map(json.loads, file)


@dataclass
class _Fallen:
    """A row that falls out: its entry in ``pool.rows``, and why."""

    entry: int
    step: str
    reason: str
    detail: str


def screen(recipe: Recipe, pools: Sequence[Pool], cache: Path | None = None) -> list[Screened]:
    """Judge the pools' rows together. With ``cache``, a judgement made before is taken from there.

    The first of several equal or similar rows stays, in the order of the recipe's sources (those without a share last) and
    of their rows. Rows of a source whose step is off are never rejected by it.
    """
    judged_here = {"exact_duplicates", "near_duplicates", "class_balance"}
    steps = [recipe.cleaning(source).model_dump(include=judged_here) for source in recipe.sources]
    key = fingerprint(
        {
            "pools": [pool.key for pool in pools],
            "steps": steps,
            "group": recipe.group_near_duplicates,
            "unused": [source.share == 0 for source in recipe.sources],
            "code": code_key((Path(__file__), Path(str(duplicates.__file__))), _LIBRARIES),
        }
    )
    folder = cache / "screens" / key if cache is not None else Path(tempfile.mkdtemp(prefix="screen-"))
    if cache is None:
        weakref.finalize(pools[0], shutil.rmtree, folder, ignore_errors=True)
    if not (folder / "screen.json").exists():
        _judge(recipe, pools, folder)
    record = read_json(folder / "screen.json")
    result = []
    for number in range(len(pools)):
        keep, keys = (np.load(folder / f"{number}.{name}.npy") for name in ("keep", "key"))
        left_out = folder / f"{number}.rejected.jsonl"
        result.append(Screened(keep, keys, record["steps"][number], record["copies_left_out"][number], left_out))
    return result


@dataclass
class _All:
    """The rows of all pools that have examples: all originals, then all augmented copies; arrays with one entry a row."""

    pools: Sequence[Pool]
    parts: list[tuple[int, np.ndarray]]  # pool number and entries in ``pool.rows``, one after the other
    originals: int  # so many come first

    @classmethod
    def of(cls, pools: Sequence[Pool], order: Sequence[int]) -> _All:
        parts = []
        for copies in (False, True):
            for number in order:
                rows = pools[number].rows
                entries = np.flatnonzero((rows["examples"] > 0) & (rows["augmented"] == copies))
                parts.append((number, entries.astype(np.int32)))
        return cls(pools, parts, sum(len(entries) for _, entries in parts[: len(order)]))

    @cached_property
    def owner(self) -> np.ndarray:
        """Number of each row's pool."""
        numbers = np.array([number for number, _ in self.parts], np.int32)
        return np.repeat(numbers, [len(entries) for _, entries in self.parts])

    @cached_property
    def entry(self) -> np.ndarray:
        """Each row's place in ``pool.rows``."""
        return np.concatenate([entries for _, entries in self.parts])

    def column(self, name: str) -> np.ndarray:
        """A column of ``pool.rows``."""
        return np.concatenate([self.pools[number].rows[name][entries] for number, entries in self.parts])


def _judge(recipe: Recipe, pools: Sequence[Pool], folder: Path) -> None:
    # Sources without a share come last: nothing in the mix is a duplicate of what is not in it.
    order = sorted(range(len(pools)), key=lambda number: recipe.sources[number].share == 0)
    rows = _All.of(pools, order)
    fallen: list[list[_Fallen]] = [[] for _ in pools]
    dropped = np.zeros(len(rows.entry), bool)  # augmented copies that are another row too
    keys = rows.column("key")
    if len(keys) and compares_rows(recipe):
        alike = _compared(recipe, pools, order, rows)
        keys = keys[_hanging_together(recipe, rows, keys, alike)]
        dropped = _repeated_copies(recipe, rows, alike)
        fallen = _duplicates(recipe, pools, rows, alike)
    for number, (source, pool) in enumerate(zip(recipe.sources, pools, strict=True)):
        balance = recipe.cleaning(source).class_balance
        if balance:  # after the duplicates: a class is as large as what is left of it
            gone = [f.entry for f in fallen[number]]
            own = rows.entry[: rows.originals][rows.owner[: rows.originals] == number]
            fallen[number] += _unbalanced(pool, own[~np.isin(own, gone)], balance.max_ratio)

    steps, copies = [], []
    for number, pool in enumerate(pools):
        here = rows.owner == number
        out = sorted(fallen[number], key=lambda f: f.entry)
        numbers = pool.rows["row"]
        keep = pool.rows["examples"] > 0
        keep[rows.entry[here & dropped]] = False
        keep &= ~np.isin(numbers, numbers[[f.entry for f in out]])  # a copy goes with its original
        own_keys = pool.rows["key"].copy()
        own_keys[rows.entry[here]] = keys[here]
        steps.append(_write_fallen(recipe, pool, out, folder / f"{number}.rejected.jsonl"))
        copies.append(int((here & dropped).sum()))
        for name, array in (("keep", keep), ("key", own_keys)):
            with atomic_path(folder / f"{number}.{name}.npy") as path, path.open("wb") as file:
                np.save(file, array)
    write_json(folder / "screen.json", {"steps": steps, "copies_left_out": copies})


@dataclass
class _Alike:
    """What each row of ``_All`` repeats; numbers of rows, arrays with one entry a row."""

    first: np.ndarray  # the first row with the same content, itself if there is none
    near: np.ndarray  # the earlier row that it nearly repeats, -1 if there is none
    similarity: np.ndarray  # to that one
    group: np.ndarray  # the smallest row of all that hang together as duplicates
    same_row: np.ndarray  # the first that comes from the same row of a source: the original, for its augmented copies


def _compared(recipe: Recipe, pools: Sequence[Pool], order: Sequence[int], rows: _All) -> _Alike:
    """Compare all rows with one another, by what the pools hold for that.

    Raises:
        UserError: the pools were built without it.
    """
    settings = near_duplicates(recipe)
    both = [(pools[number], copies) for copies in (False, True) for number in order]
    exact = np.concatenate([part for pool, copies in both for part in pool.exact_keys(copies)])
    signatures = [path for pool, copies in both for path in pool.signatures(copies)] if settings else []
    if len(exact) != len(rows.entry) or (settings and not any(path.stat().st_size for path in signatures)):
        raise UserError(
            f"recipe {recipe.name} compares rows with one another, but its pools were built without what that needs. Build them "
            "with build_pools(recipe, …), or switch off exact_duplicates, near_duplicates and group_near_duplicates."
        )
    found = find_duplicates(exact, signatures, settings)
    first = first_equal(exact.view("V16").ravel())  # 16 bytes as one value
    # A row's number alone is that of many sources; with its owner in the upper bits it is one value a row of a source.
    same_row = first_equal(rows.owner.astype(np.int64) << 48 | rows.column("row"))
    return _Alike(first, found.of, found.similarity, found.group.astype(np.int32), same_row)


def _hanging_together(recipe: Recipe, rows: _All, keys: np.ndarray, alike: _Alike) -> np.ndarray:
    """For each row the first one of all that must fall on its side of the split.

    Were they parted, the model would be validated on what it was trained on: duplicates, rows with one beginning (equal
    ``keys``), augmented copies and their original, and, where wanted, several answers to one question.
    """
    links = [alike.group, first_equal(keys), alike.same_row]
    if recipe.group_near_duplicates:
        links.append(first_equal(rows.column("question")))
    return _first_of_component(links)


def _by_row(rows: _All, values: Sequence[bool]) -> np.ndarray:
    """Of each row the value of its source; ``values`` has one a source."""
    return np.array(values)[rows.owner]


def _repeated_copies(recipe: Recipe, rows: _All, alike: _Alike) -> np.ndarray:
    """Whether a row is an augmented copy that repeats some other row.

    Copies come last, so what they repeat is an original or an earlier copy: then the copy is the one too many. Nothing counts
    as repeated that is in a source without a share, or comes from the same row.
    """
    unused = _by_row(rows, [source.share == 0 for source in recipe.sources])
    near_on = _by_row(rows, [recipe.cleaning(source).near_duplicates is not None for source in recipe.sources])
    dropped = np.zeros(len(rows.entry), bool)
    for earlier, on in ((alike.first, True), (alike.near, near_on)):
        repeats = (earlier >= 0) & (earlier != np.arange(len(earlier))) & on
        repeats &= (alike.same_row != alike.same_row[earlier]) & ~unused[earlier]
        dropped[rows.originals :] |= repeats[rows.originals :]
    return dropped


def _duplicates(recipe: Recipe, pools: Sequence[Pool], rows: _All, alike: _Alike) -> list[list[_Fallen]]:
    """The originals that repeat an earlier row, by pool, each with the place of that row."""
    cleaning = [recipe.cleaning(source) for source in recipe.sources]
    exact_on = _by_row(rows, [c.exact_duplicates for c in cleaning])
    near_on = _by_row(rows, [c.near_duplicates is not None for c in cleaning])
    same = (alike.first != np.arange(len(alike.first))) & exact_on
    near = (alike.near >= 0) & near_on & ~same  # an exact one is called so, even where both steps would take it
    hits = np.flatnonzero((same | near)[: rows.originals])
    earlier = np.where(same[hits], alike.first[hits], alike.near[hits])
    fallen: list[list[_Fallen]] = [[] for _ in pools]
    for hit, at, (file, line) in zip(hits.tolist(), earlier.tolist(), _places(pools, rows, earlier), strict=True):
        number, owner = int(rows.owner[hit]), int(rows.owner[at])
        where = f"{file}:{line}" + ("" if owner == number else f" of source {recipe.sources[owner].name!r}")
        if same[hit]:
            why = ("exact_duplicates", "duplicate", f"the same as {where}")
        else:
            why = ("near_duplicates", "near_duplicate", f"{alike.similarity[hit]:.2f} similar to {where}")
        fallen[number].append(_Fallen(int(rows.entry[hit]), *why))
    return fallen


def _places(pools: Sequence[Pool], rows: _All, numbers: np.ndarray) -> list[tuple[str, int]]:
    """File and line of rows given by their numbers in ``rows``."""
    result: list[tuple[str, int]] = [("", 0)] * len(numbers)
    for owner in np.unique(rows.owner[numbers]):
        mine = np.flatnonzero(rows.owner[numbers] == owner)
        for at, place in zip(mine, pools[owner].places(rows.entry[numbers[mine]]), strict=True):
            result[at] = place
    return result


def _first_of_component(links: Sequence[np.ndarray]) -> np.ndarray:
    """For each row the first row that it hangs together with, step by step: int32 [n].

    Args:
        links: int32 [n] each; every one ties row i to row ``link[i]``.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number = len(links[0])
    ends = (np.tile(np.arange(number, dtype=np.int32), len(links)), np.concatenate(links))
    _, label = connected_components(
        coo_array((np.ones(len(ends[0]), bool), ends), shape=(number, number)), directed=False
    )
    return first_equal(label)


def _unbalanced(pool: Pool, entries: np.ndarray, max_ratio: float) -> list[_Fallen]:
    """The rows by which classes exceed ``max_ratio`` times the smallest one; which ones, a hash of the row decides."""
    if not len(entries):
        return []
    labels = pool.labels()[entries]
    classes, counts = np.unique(labels.astype(str), return_counts=True)
    most = int(counts.min() * max_ratio)
    result = []
    for name, count in zip(classes, counts, strict=True):
        if count > most:
            own = entries[labels == name]
            last = own[np.lexsort((own, pool.rows["key"][own]))[most:]]
            detail = f"label {str(name)!r} has {count} rows, {most} are kept"
            result += [_Fallen(int(entry), "class_balance", "surplus_of_class", detail) for entry in last]
    return result


def _write_fallen(recipe: Recipe, pool: Pool, fallen: list[_Fallen], path: Path) -> dict[str, dict[str, Any]]:
    """Write the fallen rows with their content, which is read again from the source; returns the account by step."""
    numbers = pool.rows["row"]
    wanted = iter(zip(fallen, pool.places(np.array([f.entry for f in fallen], np.int64)), strict=True))
    steps: dict[str, dict[str, Any]] = {}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        source_rows = enumerate(read_rows(pool.source, recipe.root)) if fallen else iter(())
        position = -1
        for why, (name, line) in wanted:
            number = int(numbers[why.entry])
            skipped = islice(source_rows, number - position - 1, number - position)
            position, row = next(skipped)
            step = steps.setdefault(why.step, {"rejected": Counter(), "examples": []})
            step["rejected"][why.reason] += 1
            if len(step["examples"]) < EXAMPLES:
                step["examples"].append(f"{name}:{line} {why.reason}: {why.detail}")
            record = {"source": pool.source.name, "file": name, "line": line, "step": why.step}
            file.write(json_line({**record, "reason": why.reason, "detail": why.detail, "row": row.data}))
    return {name: {**step, "rejected": dict(step["rejected"])} for name, step in steps.items()}
