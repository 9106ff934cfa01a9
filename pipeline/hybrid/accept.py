"""Whether a new hybrid is taken: the form of both modes, and what the base could do before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.report.words import interval_text
from pipeline.settings import HybridSettings


def failures(settings: HybridSettings, hybrid: Mapping[str, Any], base: Mapping[str, Any] | None) -> list[str]:
    """What misses its bound, in words; empty when the hybrid is accepted.

    Args:
        hybrid: {mode: cell} of the new model. base: the non-thinking cell of the model that it was made of; None: there is
            none, because that model has no non-thinking mode, and only the form is judged.
    """
    found = [
        f"{mode.replace('_', '-')}: mode fidelity is {cell['mode_fidelity']:.3f}, at least {settings.fidelity:g} is needed"
        + _why(cell)
        for mode, cell in hybrid.items()
        if cell["mode_fidelity"] < settings.fidelity
    ]
    if base is not None and settings.keep is not None:
        before, now = (cell["benchmarks"][settings.keep] for cell in (base, hybrid["non_thinking"]))
        if now["score"] < before["score"] - settings.within:
            found.append(
                f"{settings.keep}, non-thinking: {now['score']:.3f} and {before['score']:.3f} before (n={now['n']}); at most "
                f"{settings.within:g} less is wanted"
            )
    return found


def _why(cell: Mapping[str, Any]) -> str:
    """What most of the unfaithful replies have in common."""
    parts = [
        f"{cell[name]:.1%} {word}" for name, word in (("truncated", "cut by the limit"), ("leaked", "with stray tags"))
    ]
    return f" ({', '.join(parts)}, {cell['opened']:.1%} open the block, {cell['closed']:.1%} close it)"


def hybrid_text(record: Mapping[str, Any]) -> str:
    """The verdict with its numbers, in lines."""
    lines = []
    for mode, cell in record["evaluation"]["hybrid"].items():
        scores = ", ".join(f"{name} {b['score']:.3f} (n={b['n']})" for name, b in cell["benchmarks"].items())
        lines.append(f"{mode}: mode fidelity {cell['mode_fidelity']:.3f}; {scores}; cut {cell['truncated']:.3f}")
    for mode, cell in record["evaluation"]["base"].items():
        scores = ", ".join(f"{name} {b['score']:.3f} (n={b['n']})" for name, b in cell["benchmarks"].items())
        lines.append(
            f"before, {mode}: {scores}; mode fidelity {cell['mode_fidelity']:.3f}; cut {cell['truncated']:.3f}"
        )
    verdict = "accepted" if record["accepted"] else "not accepted: " + "; ".join(record["failures"])
    return "\n".join([*lines, verdict])


def hybrid_table(record: Mapping[str, Any]) -> str:
    """The numbers behind the verdict as Markdown, and the verdict."""
    cells = record["evaluation"]
    columns = list(cells["hybrid"]["thinking"]["benchmarks"])
    lines = [
        f"| model | mode | {' | '.join(columns)} | mode fidelity | cut |",
        f"|---|---|{'--:|' * (len(columns) + 2)}",
    ]
    for model in ("base", "hybrid"):
        for mode, cell in cells[model].items():
            scores = [cell["benchmarks"].get(name) for name in columns]
            shown = [f"{s['score']:.3f} {interval_text(s['ci95'], 3)}" if s else "" for s in scores]
            form = f"{cell['mode_fidelity']:.3f} {interval_text(cell['mode_fidelity_ci95'], 3)}"
            lines.append(
                f"| {model} | {mode.replace('_', '-')} | {' | '.join(shown)} | {form} | {cell['truncated']:.3f} |"
            )
    n = next(iter(cells["hybrid"]["thinking"]["benchmarks"].values()))["n"]
    made = record["training"]
    lines += [
        "",
        f"{n} items of each benchmark. Training ({record['method']}): {made['steps']} steps, {made['training_seconds'] / 60:.0f} "
        f"minutes, {made['tokens_per_second']:.0f} tokens/s. "
        + ("**Accepted.**" if record["accepted"] else "**Not accepted**: " + "; ".join(record["failures"]) + "."),
    ]
    return "\n".join(lines)
