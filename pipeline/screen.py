"""What can only be judged over all sources together: duplicates, class balance, and which rows belong on one side.

In: the pools of a recipe. Out: for each pool which of its rows are kept, the key that decides their side of the
train/validation split, and the rows that fell out, each with its reason. The result does not depend on shares or seed, so
a mix at another share finds it done.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import duplicates
from pipeline.duplicates import find_duplicates
from pipeline.errors import UserError
from pipeline.files import atomic_path, file_sha256, fingerprint, read_json, write_json
from pipeline.pools import Pool, near_duplicates
from pipeline.prepare import EXAMPLES, json_line
from pipeline.settings import Recipe
from pipeline.sources import read_rows


@dataclass
class Screened:
    """What a pool contributes. Arrays have one entry for each entry of ``pool.rows``."""

    keep: np.ndarray  # bool
    key: np.ndarray  # uint64; rows with equal keys fall on one side of the split
    steps: dict[str, dict[str, Any]]  # step → {"rejected": {reason: rows}, "examples": [...]}
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

    The first of several equal or similar rows stays, in the order of the recipe's sources and of their rows. Rows of a
    source whose step is off are never rejected by it.
    """
    judged_here = {"exact_duplicates", "near_duplicates", "class_balance"}
    steps = [recipe.cleaning(source).model_dump(include=judged_here) for source in recipe.sources]
    key = fingerprint(
        {
            "pools": [pool.key for pool in pools],
            "steps": steps,
            "group": recipe.group_near_duplicates,
            "code": [file_sha256(Path(path)) for path in (__file__, str(duplicates.__file__))],
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
        result.append(Screened(keep, keys, record["steps"][number], folder / f"{number}.rejected.jsonl"))
    return result


def _judge(recipe: Recipe, pools: Sequence[Pool], folder: Path) -> None:
    originals = [np.flatnonzero((pool.rows["examples"] > 0) & ~pool.rows["augmented"]) for pool in pools]
    keys = [pool.rows["key"].copy() for pool in pools]
    fallen: list[list[_Fallen]] = [[] for _ in pools]
    _duplicates(recipe, pools, originals, keys, fallen)
    for number, (source, pool) in enumerate(zip(recipe.sources, pools, strict=True)):
        balance = recipe.cleaning(source).class_balance
        if balance:
            gone = {f.entry for f in fallen[number]}
            entries = np.array([e for e in originals[number] if e not in gone], np.int64)
            fallen[number] += _unbalanced(pool, entries, balance.max_ratio)

    steps = []
    for number, (pool, rows) in enumerate(zip(pools, fallen, strict=True)):
        rows.sort(key=lambda f: f.entry)
        keep = pool.rows["examples"] > 0
        # An augmented copy goes with its original and lies on the same side.
        numbers = pool.rows["row"]
        keep &= ~np.isin(numbers, numbers[[f.entry for f in rows]])
        steps.append(_write_fallen(recipe, pool, rows, folder / f"{number}.rejected.jsonl"))
        copies = np.flatnonzero(pool.rows["augmented"])
        if len(copies):
            mine = originals[number]
            own = dict(zip(numbers[mine].tolist(), keys[number][mine].tolist(), strict=True))
            keys[number][copies] = [own.get(row, 0) for row in numbers[copies].tolist()]
        for name, array in (("keep", keep), ("key", keys[number])):
            with atomic_path(folder / f"{number}.{name}.npy") as path, path.open("wb") as file:
                np.save(file, array)
    write_json(folder / "screen.json", {"steps": steps})


def _duplicates(
    recipe: Recipe,
    pools: Sequence[Pool],
    originals: list[np.ndarray],
    keys: list[np.ndarray],
    fallen: list[list[_Fallen]],
) -> None:
    """Find duplicates over all pools; adds to ``fallen``, and gives alike rows one key in ``keys``."""
    settings = near_duplicates(recipe)
    cleaning = [recipe.cleaning(source) for source in recipe.sources]
    if settings is None and not any(c.exact_duplicates for c in cleaning):
        return
    exact = np.concatenate([pool.exact_keys() for pool in pools])
    signatures = [shard / "signatures" for pool in pools for shard in pool.shards] if settings else []
    if len(exact) != sum(map(len, originals)) or (settings and not any(path.stat().st_size for path in signatures)):
        raise UserError(
            f"recipe {recipe.name} compares rows with one another, but its pools were built without what that needs. Build them "
            "with build_pools(recipe, …), or switch off exact_duplicates, near_duplicates and group_near_duplicates."
        )
    found = find_duplicates(exact, signatures, settings)
    ends = np.cumsum([len(entries) for entries in originals])
    flat_keys = np.concatenate([key[entries] for key, entries in zip(keys, originals, strict=True)])
    flat_keys = flat_keys[_first_of_component(found.group, flat_keys)]
    for number, entries in enumerate(originals):
        begin = int(ends[number]) - len(entries)
        keys[number][entries] = flat_keys[begin : int(ends[number])]
        here = slice(begin, int(ends[number]))
        on = np.where(
            found.exact[here], cleaning[number].exact_duplicates, cleaning[number].near_duplicates is not None
        )
        hits = np.flatnonzero((found.of[here] >= 0) & on)
        earlier = found.of[here][hits]
        owners = np.searchsorted(ends, earlier, side="right")
        names: dict[int, tuple[str, int]] = {}
        for owner in np.unique(owners):
            mine = np.flatnonzero(owners == owner)
            entries_there = originals[owner][earlier[mine] - (int(ends[owner]) - len(originals[owner]))]
            names.update(zip(mine.tolist(), pools[owner].places(entries_there), strict=True))
        for place, hit in enumerate(hits):
            where = "{}:{}".format(*names[place])
            if owners[place] != number:
                where += f" of source {recipe.sources[owners[place]].name!r}"
            if found.exact[here][hit]:
                fallen[number].append(
                    _Fallen(int(entries[hit]), "exact_duplicates", "duplicate", f"the same as {where}")
                )
            else:
                detail = f"{found.similarity[here][hit]:.2f} similar to {where}"
                fallen[number].append(_Fallen(int(entries[hit]), "near_duplicates", "near_duplicate", detail))


def _first_of_component(group: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """For each row the first row that it hangs together with: by being alike (``group``) or by an equal key, step by step."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number = len(keys)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    rows = np.arange(number)
    edges = (np.ones(2 * number, bool), (np.concatenate([rows, rows]), np.concatenate([group, first[inverse]])))
    _, label = connected_components(coo_array(edges, shape=(number, number)), directed=False)
    _, first_of_label = np.unique(label, return_index=True)
    return np.asarray(first_of_label[label])


def _unbalanced(pool: Pool, entries: np.ndarray, max_ratio: float) -> list[_Fallen]:
    """The rows by which classes exceed ``max_ratio`` times the smallest one; which ones, a hash of the row decides."""
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
