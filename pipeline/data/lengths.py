"""Numbers about data before anything is trained on it: how long rows are, what a limit costs, how two mixes differ.

In: pools, or the folders of two mixes. Out: plain data for ``--json`` and text for a terminal.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.modes import MODES
from pipeline.data.mix import Mix
from pipeline.data.pools import Pool
from pipeline.data.stored_mix import load_mix

LIMITS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # tokens; what training is usually set to
QUANTILES = (0.5, 0.9, 0.99, 1.0)
BARS = 40  # width of a histogram in a terminal


def lengths(pools: Sequence[Pool], limit: int) -> list[dict[str, Any]]:
    """Lengths by source and mode, in tokens; a row is as long as its longest example. Augmented copies are not counted.

    Returns:
        For each source and mode: rows, tokens, loss_tokens, quantiles, histogram (``edges``: upper ends, powers of two, and
        ``rows``), and ``limits``: what each limit would cost as a part of the source's rows and of its loss-bearing tokens,
        the limit in force among them.
    """
    result = []
    for pool in pools:
        rows = pool.rows
        whole = {"rows": (~rows["augmented"]).sum(), "loss_tokens": rows["loss_tokens"][~rows["augmented"]].sum()}
        for number, mode in enumerate(MODES):
            chosen = (rows["mode"] == number) & ~rows["augmented"]
            if not chosen.any():
                continue
            longest, loss = rows["longest"][chosen], rows["loss_tokens"][chosen]
            edges = 2 ** np.arange(int(np.log2(longest.min() + 1)), int(np.ceil(np.log2(longest.max() + 1))) + 1)
            counts = np.histogram(longest, np.concatenate([[0], edges + 1]))[0]
            costs = []
            for one in sorted({*LIMITS, limit}):
                over = longest > one
                costs.append(
                    {
                        "limit": one,
                        "rows": float(over.sum() / whole["rows"]),
                        "loss_tokens": float(loss[over].sum() / max(whole["loss_tokens"], 1)),
                    }
                )
            result.append(
                {
                    "source": pool.source.name,
                    "mode": mode,
                    "rows": int(chosen.sum()),
                    "tokens": int(rows["tokens"][chosen].sum()),
                    "loss_tokens": int(loss.sum()),
                    "quantiles": {str(q): int(np.quantile(longest, q, method="higher")) for q in QUANTILES},
                    "histogram": {"edges": edges.tolist(), "rows": counts.tolist()},
                    "limits": costs,
                }
            )
    return result


def lengths_text(entries: Sequence[dict[str, Any]], limit: int) -> str:
    """``lengths`` for a terminal."""
    lines = []
    for entry in entries:
        quantiles = ", ".join(f"{float(q):.0%} ≤ {n:,}" for q, n in entry["quantiles"].items())
        lines.append(f"{entry['source']}, {entry['mode']}: {entry['rows']:,} rows; tokens of a row: {quantiles}")
        most = max(entry["histogram"]["rows"])
        for edge, rows in zip(entry["histogram"]["edges"], entry["histogram"]["rows"], strict=True):
            lines.append(f"  ≤ {edge:>6,} {'█' * round(BARS * rows / most):<{BARS}} {rows:,}")
        longest = entry["quantiles"]["1.0"]
        useful = [c for c in entry["limits"] if c["limit"] == limit or c["limit"] < longest]
        for cost in useful:
            mark = "  ← the limit in force" if cost["limit"] == limit else ""
            lines.append(
                f"  a limit of {cost['limit']:>6,} costs {cost['rows']:.1%} of the source's rows, "
                f"{cost['loss_tokens']:.1%} of its loss-bearing tokens{mark}"
            )
    return "\n".join(lines)


# --- two mixes ----------------------------------------------------------------------------------------------------------


def _contents(mix: Mix) -> dict[str, Counter[bytes]]:
    """Source → how often each training example occurs, by a hash of its tokens and its mask."""
    result: dict[str, Counter[bytes]] = {}
    for table in mix.train_part.batches():
        for source, ids, labels in zip(*(table[n] for n in ("source", "input_ids", "labels")), strict=True):
            digest = hashlib.blake2b(np.asarray(ids.values, "<i4").tobytes(), digest_size=12)
            digest.update(np.asarray(labels.values, "<i4").tobytes())
            result.setdefault(source.as_py(), Counter())[digest.digest()] += 1
    return result


def _settings(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; sources by their name."""
    if isinstance(value, list) and value and all(isinstance(v, dict) and "name" in v for v in value):
        value = {v["name"]: v for v in value}
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, part in value.items() for k, v in _settings(part, f"{prefix}.{key}".lstrip(".")).items()}


def difference(a: Path, b: Path) -> dict[str, Any]:
    """What changed from the mix in folder ``a`` to the one in ``b``.

    Returns:
        same (equal fingerprints), settings {key: [a, b]}, total and shares likewise, and by source: training examples in both,
        only in one, and rejected rows by reason in each.

    Raises:
        UserError: a folder holds no whole mix.
    """
    mixes = [load_mix(folder) for folder in (a, b)]
    manifests = [mix.manifest for mix in mixes]
    settings = [_settings(m["recipe"]) | {"seed": m["seed"]} for m in manifests]
    keys = list(dict.fromkeys([*settings[0], *settings[1]]))
    contents = [_contents(mix) for mix in mixes]
    entries = [{s["name"]: s for s in m["sources"]} for m in manifests]
    sources = {}
    for name in dict.fromkeys([*entries[0], *entries[1]]):
        one, two = (content.get(name, Counter()) for content in contents)
        both = (one & two).total()
        of = [e.get(name, {}) for e in entries]
        sources[name] = {
            "examples": {"both": both, "only_a": one.total() - both, "only_b": two.total() - both},
            "share": [e.get("achieved", {}).get(m["unit"]) for e, m in zip(of, manifests, strict=True)],
            "kept": [e.get("kept", 0) for e in of],
            "rejected": {
                reason: [e.get("rejected", {}).get(reason, 0) for e in of]
                for reason in sorted({reason for e in of for reason in e.get("rejected", {})})
            },
        }
    return {
        "same": manifests[0]["fingerprint"] == manifests[1]["fingerprint"],
        "settings": {k: [s.get(k) for s in settings] for k in keys if settings[0].get(k) != settings[1].get(k)},
        "examples": [m["examples"]["train"] for m in manifests],
        "tokens": [m["total"]["tokens"] for m in manifests],
        "sources": sources,
    }


def difference_text(found: dict[str, Any]) -> str:
    """``difference`` for a terminal."""
    if found["same"]:
        return "the same examples in the same order" + (
            f"; settings differ: {', '.join(found['settings'])}" if found["settings"] else ""
        )
    lines = [f"  {key}: {a!r} → {b!r}" for key, (a, b) in found["settings"].items()]
    lines = ["settings:", *lines] if lines else ["settings: the same"]
    lines.append("training examples: {:,} → {:,}; tokens: {:,} → {:,}".format(*found["examples"], *found["tokens"]))
    for name, source in found["sources"].items():
        examples = source["examples"]
        share = " → ".join("none" if s is None else f"{s:.3f}" for s in source["share"])
        lines.append(
            f"{name}: share {share}; examples in both {examples['both']:,}, only in the first {examples['only_a']:,}, "
            f"only in the second {examples['only_b']:,}"
        )
        lines.append("  rows kept: {:,} → {:,}".format(*source["kept"]))
        for reason, (a, b) in source["rejected"].items():
            lines.append(f"  rejected as {reason}: {a:,} → {b:,}" + ("" if a != b else " (no change)"))
    return "\n".join(lines)
