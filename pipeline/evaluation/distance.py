"""How far tuning took a model from its base, by kind of question and mode: mean KL(base ‖ tuned) a token of the base's replies.

In: the base's stored replies to the benchmarks' items, which no training row holds, and the tuned model. Out, for each mode and
benchmark: nats a token with a 95 % interval over items. On its own replies the base says what it would say; the tuned model is
asked how likely it finds that. Published work reports that forgetting goes with this number measured on the new task
(Shenfeld et al. 2025, arXiv 2509.04259).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.console import Bar
from pipeline.core.modes import Mode
from pipeline.core.statistics import interval95
from pipeline.data.chat_format import ChatFormat
from pipeline.model.divergence import divergence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Distance = dict[str, Any]  # {"kl", "ci95": [lo, hi], "n": items, "tokens"}
MOST_TOKENS = 2048  # of a prompt and reply; what stands behind is not looked at
REPEATS = 2000  # of the bootstrap


def sequences_of(
    form: ChatFormat, rows: Sequence[Mapping[str, Any]], mode: Mode
) -> list[tuple[str, tuple[list[int], int]]]:
    """(benchmark, (token ids, how many are the prompt's)) of stored replies; replies without a token are left out."""
    result = []
    for row in rows:
        prompt = form.prompt_ids(row["messages"], mode)
        # The stored reply begins with the tag that its prompt may have ended with (``ThinkingStyle.whole``).
        written = row["reply"].removeprefix(form.style.opened(form.prompt_text(row["messages"], mode)))
        reply = form.encode([written + ("" if row["truncated"] else form.style.end)])[0]
        ids = (prompt + reply)[:MOST_TOKENS]
        if len(ids) > len(prompt):
            result.append((row["benchmark"], (ids, len(prompt))))
    return result


def estimate(sums: Sequence[float], tokens: Sequence[int], seed: int = 0) -> Distance:
    """Mean a token, all tokens weighing alike, and its interval by a bootstrap over items."""
    total, count = np.asarray(sums, float), np.asarray(tokens, float)
    drawn = np.random.default_rng(seed).integers(0, len(total), (REPEATS, len(total)))
    draws = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    mean = float(total.sum() / count.sum())
    low, high = interval95(draws)
    return {"kl": mean, "ci95": [min(low, mean), max(high, mean)], "n": len(total), "tokens": int(count.sum())}


def measure_distance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    replies: Mapping[Mode, Sequence[Mapping[str, Any]]],
    items: int,
    batch_size: int,
    progress: bool = True,
) -> dict[str, dict[str, Distance]]:
    """Measure a tuned model against its base.

    Args:
        model: with the adapter on.
        replies: of the base, by mode: rows of ``predictions.jsonl``.
        items: of each benchmark, the first ones.

    Returns:
        {mode: {benchmark: distance}}.

    Raises:
        UserError: what was trained cannot be switched off (see ``pipeline.model.divergence.adapter_off``).
    """
    form = ChatFormat(tokenizer)
    places: list[tuple[Mode, str]] = []
    sequences = []
    for mode in replies:
        seen: dict[str, int] = {}
        few = []
        for row in replies[mode]:
            seen[row["benchmark"]] = seen.get(row["benchmark"], 0) + 1
            if seen[row["benchmark"]] <= items:
                few.append(row)
        for benchmark, sequence in sequences_of(form, few, mode):
            places.append((mode, benchmark))
            sequences.append(sequence)
    with Bar("distance to the base", len(sequences)) as bar:
        found = divergence(model, sequences, batch_size, bar.update if progress else None)
    result: dict[str, dict[str, Distance]] = {mode: {} for mode in replies}
    for mode, benchmark in dict.fromkeys(places):
        own = [value for place, value in zip(places, found, strict=True) if place == (mode, benchmark)]
        result[mode][benchmark] = estimate([total for total, _ in own], [count for _, count in own])
    return result
