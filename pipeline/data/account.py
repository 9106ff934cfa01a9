"""Where every row of a source went, and what its reader should know: what the manifest of a mix says of a source.

In: a pool, and what was judged of its rows when all sources were looked at together. Out: plain data for ``manifest.json``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.core.modes import MODES
from pipeline.core.redact import masked_text
from pipeline.data.conversations import NO_REASONING
from pipeline.data.formats import EXPECTED, nearest_columns
from pipeline.data.pools import Pool
from pipeline.data.screen import Screened
from pipeline.settings import UNITS, Recipe, SourceSettings


def mode_of(pool: Pool) -> str:
    """The mode of all examples of a pool, or ``mixed``."""
    modes = np.unique(pool.index["mode"])
    return MODES[modes[0]] if len(modes) == 1 else "mixed"


def account(pool: Pool, screened: Screened) -> dict[str, Any]:
    """Where every row of a source went: read = kept + rejected, by reason and by step, with examples of each step.

    ``over_limit``: what the length limit costs, as a part of the rows that came so far and of their loss-bearing tokens.
    """
    rejected = {step: Counter(reasons) for step, reasons in pool.tally.rejected.items()}
    for step, entry in screened.steps.items():
        rejected.setdefault(step, Counter()).update(entry["rejected"])
    by_reason: Counter[str] = Counter()
    for reasons in rejected.values():
        by_reason.update(reasons)
    steps = {
        step: {
            "rejected": dict(sorted(rejected.get(step, {}).items())),
            "changed": pool.tally.changed.get(step, 0),
            "examples": [*pool.tally.examples.get(step, []), *screened.steps.get(step, {}).get("examples", [])],
        }
        for step in sorted({*rejected, *pool.tally.changed})
    }
    notes = pool.tally.notes + Counter(augmented_copy_left_out=screened.copies_left_out)
    # A row over the limit has an entry without examples; a row that was rejected before has none at all.
    original = ~pool.rows["augmented"]
    over = original & (pool.rows["examples"] == 0)
    loss = pool.rows["loss_tokens"]
    return {
        "read": pool.read,
        "kept": pool.read - by_reason.total(),
        "over_limit": {
            "rows": float(over.sum() / max(original.sum(), 1)),
            "loss_tokens": float(loss[over].sum() / max(loss[original].sum(), 1)),
        },
        "rejected": dict(sorted(by_reason.items())),
        "steps": steps,
        "formats": {
            name: {"rows": rows, "because": pool.tally.because[name]}
            for name, rows in sorted(pool.tally.formats.items())
        },
        "modes": _by_mode(pool.tally.modes),
        "unread": dict(sorted(pool.tally.unread.items())),
        "notes": dict(sorted(notes.items())),
        "augmented": dict(sorted(pool.tally.augmented.items())),
    }


def _by_mode(modes: Counter[str]) -> dict[str, dict[str, int]]:
    """Mode (or ``both``, of a conversation with answers of each) → where its reasoning was found → rows."""
    result: dict[str, dict[str, int]] = {}
    for key, rows in sorted(modes.items()):
        mode, _, why = key.partition(": ")
        result.setdefault(mode, {})[why] = rows
    return result


def source_entry(
    source: SourceSettings,
    pool: Pool,
    judged: Screened,
    entries: np.ndarray,
    weights: dict[str, float],
    overall: dict[str, float],
) -> dict[str, Any]:
    """What the manifest says of a source: what was drawn from it, and where its other rows went.

    Args:
        entries: the chosen entries of ``pool.rows``. weights: what they add up to. overall: what all sources add up to.
    """
    return {
        "name": source.name,
        "kind": source.kind,
        "mode": mode_of(pool),
        "licence": masked_text(source.licence),
        "content": pool.content,
        "requested": source.share,
        "achieved": {unit: weights[unit] / overall[unit] if overall[unit] else 0.0 for unit in UNITS},
        "rows": len(entries),
        "rows_repeated": len(entries) - len(np.unique(entries)),
        "rows_augmented": int(pool.rows["augmented"][entries].sum()),
        "examples": int(pool.rows["examples"][entries].sum()),
        "tokens": int(weights["tokens"]),
        "loss_tokens": int(weights["loss_tokens"]),
        **account(pool, judged),
    }


def warnings_of_shares(recipe: Recipe, sources: Sequence[dict[str, Any]]) -> list[str]:
    """Rows that are repeated, and shares that the rows are too few or too long to meet."""
    result = []
    for entry in sources:
        achieved = entry["achieved"][recipe.unit]
        if entry["rows_repeated"]:
            result.append(
                f"source {entry['name']!r} is too small for its share: rows are repeated, {entry['rows_repeated']} times in all"
            )
        if abs(achieved - entry["requested"]) > 0.01:
            result.append(
                f"source {entry['name']!r} has share {achieved:.3f} of {recipe.unit}, {entry['requested']:.3f} was asked for: "
                "the mix is too small for a finer split"
            )
    return result


def warnings_of_rows(recipe: Recipe, sources: Sequence[dict[str, Any]]) -> list[str]:
    """Rows that came out otherwise than their source's kind or its cleaning lets expect."""
    result = []
    for source, entry in zip(recipe.sources, sources, strict=True):
        what, unread = f"source {source.name!r}", ", ".join(map(repr, entry["unread"]))
        lost = sum(n for why, n in entry["modes"].get("non_thinking", {}).items() if why == NO_REASONING)
        if source.kind == "reasoning" and lost:
            hint = f" Columns that are not read: {unread}; is one of them the reasoning?" if unread else ""
            result.append(
                f"{what} is of kind reasoning, but {lost:,} of {entry['kept']:,} rows have no reasoning and are learnt as "
                f"non-thinking ones.{hint} If a column holds it, name it (columns: {{reasoning: NAME}}); contradictions: reject "
                "leaves such rows out."
            )
        missing = entry["notes"].get("no_expected_answer", 0)
        near = nearest_columns(entry["unread"])
        if recipe.cleaning(source).check_answer and missing and (near or source.kind == "reasoning"):
            hint = f" Is it {near!r}? Then set columns: {{{EXPECTED}: {near}}}." if near else ""
            result.append(
                f"{what}: check_answer had nothing to compare with in {missing:,} rows: no {EXPECTED!r}.{hint}"
            )
    return result
