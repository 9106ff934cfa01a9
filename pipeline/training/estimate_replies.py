"""What replies in this process would take on a GPU, before anything is loaded: rows at a time, memory, hours.

Replies are asked for twice: by the evaluation, and by the recipe's sources that are the base itself.

In: a profile and the sizes of its model. Out: for each mode how many replies are decoded at a time, the bytes at the worst
moment, and the time that it takes at most. By count and not measured; each assumption is a constant here, with its source.
"""

from __future__ import annotations

from typing import Any

from pipeline.core.console import duration
from pipeline.core.modes import MODES
from pipeline.data.rehearsal.rehearse import replies_wanted
from pipeline.model.room import CACHE_SHARE, rows_that_fit
from pipeline.settings import Profile, Recipe, load_recipe
from pipeline.training.estimate import BFLOAT16, CARD_SHARE, CARDS, FLOAT32, Sizes, profile_job, weights_bytes

PROMPT_TOKENS = 1024  # of a prompt with few-shot examples: GSM8K's four take about 600
CONTEXT_BYTES = 2**29  # of CUDA itself, and what the card's display holds back
# Copies of the logits of a step, each in float32: as they come, as they are drawn from, their order, and the drawn token.
LOGIT_COPIES = 4
# A step of decoding runs each layer's kernels one by one, about 30 of them at some 30 µs a launch from Python, and reads the
# weights and the cache once. The bandwidth is an RTX 4090's, 1,008 GB/s, at the 80 % that kernels reach.
SECONDS_A_LAYER, BYTES_A_SECOND = 1.0e-3, 0.8 * 1.008e12
LONG = 2 * 3600  # seconds of evaluation that are worth a word


def cache_bytes_of(sizes: Sizes) -> int:
    """Bytes of a token's keys and values, all layers, in 16 bit."""
    return 2 * sizes.layers * sizes.kv * BFLOAT16


def replies_memory(profile: Profile, sizes: Sizes, new_tokens: int, card_gib: int) -> tuple[int, dict[str, int]]:
    """Rows that are decoded at a time on a card, and bytes by part at the worst moment: every reply is at its limit."""
    job = profile_job(profile, "cuda")
    weights = weights_bytes(sizes, job)
    adapter = 0 if job.method == "full" else sizes.adapter(job.rank, job.modules) * FLOAT32
    free = card_gib * 2**30 - CONTEXT_BYTES - weights - adapter
    token = cache_bytes_of(sizes)
    most = profile.evaluation.batch_size
    room = max(0, int(CACHE_SHARE["cuda"] * free / token))
    rows = rows_that_fit([PROMPT_TOKENS] * most, new_tokens, room, most)
    cache = rows * (PROMPT_TOKENS + new_tokens) * token
    # In a batch with padding the keys and values of a layer are repeated for every query head (Unsloth's qwen3.py).
    repeated = cache / sizes.layers * sizes.heads / sizes.kv_heads if rows > 1 else 0
    logits = LOGIT_COPIES * rows * sizes.vocab_size * FLOAT32
    parts = {
        "weights": weights,
        "adapter": adapter,
        "cache": cache,
        "working": repeated + logits,
        "cuda": CONTEXT_BYTES,
    }
    counted = {name: round(value) for name, value in parts.items()}
    return rows, counted | {"total": sum(counted.values())}


def step_seconds(profile: Profile, sizes: Sizes, cache: int) -> float:
    """Seconds of one step of decoding: the kernels of each layer, and every byte that is read."""
    job = profile_job(profile, "cuda")
    read = sizes.parameters * BFLOAT16 if job.method != "qlora" else weights_bytes(sizes, job)
    if job.method == "qlora":  # for more than one row, bitsandbytes unpacks a matrix and multiplies with the result
        read += 2 * sizes.linear * BFLOAT16
    return sizes.layers * SECONDS_A_LAYER + (read + cache) / BYTES_A_SECOND


def rehearsal_seconds(profile: Profile, sizes: Sizes, recipe: Recipe, card_gib: int) -> tuple[int | None, float | None]:
    """Replies that the recipe's sources ``source: base`` ask for, and seconds at most; None where a set is read in whole."""
    replies, seconds = 0, 0.0
    for source in recipe.sources:
        if source.source != "base" or not source.share:
            continue
        count = replies_wanted(source)
        if count is None:
            return None, None
        new_tokens = source.max_new_tokens or getattr(profile.evaluation.sampling, str(source.mode)).max_new_tokens
        rows, parts = replies_memory(profile, sizes, new_tokens, card_gib)
        replies += count
        seconds += -(-count // rows) * new_tokens * step_seconds(profile, sizes, parts["cache"] // 2)
    return replies, seconds


def estimate_replies(profile: Profile, sizes: Sizes) -> dict[str, Any]:
    """The evaluation of base and tuned model in both modes, and what the recipe asks of the base.

    Returns:
        ``engine``; ``card_gib``: the smallest usual card that it is counted for; ``modes``: {mode: ``rows``,
        ``memory_bytes`` by part, ``seconds``}; ``memory_bytes``, ``seconds``: of all (seconds null without ``evaluation.limit``);
        ``rehearsal``: ``replies`` and ``seconds`` of the recipe's questions to the base; ``warnings``: what
        to change where it is too much.
    """
    settings = profile.evaluation
    card = next(
        (gib for gib in CARDS if weights_bytes(sizes, profile_job(profile, "cuda")) < gib * 2**30 / 2), CARDS[-1]
    )
    items = None if settings.limit is None else 2 * len(settings.benchmarks) * settings.limit
    modes: dict[str, dict[str, Any]] = {}
    for mode in MODES:
        new_tokens = getattr(settings.sampling, mode).max_new_tokens
        rows, parts = replies_memory(profile, sizes, new_tokens, card)
        seconds = None
        if items is not None:
            batches = -(-items // rows)
            seconds = batches * new_tokens * step_seconds(profile, sizes, parts["cache"] // 2)  # it grows from nothing
        modes[mode] = {"rows": rows, "memory_bytes": parts, "seconds": seconds}
    peak = max(part["memory_bytes"]["total"] for part in modes.values())
    seconds = sum(part["seconds"] for part in modes.values()) if items is not None else None
    asked, asking = rehearsal_seconds(profile, sizes, load_recipe(profile.recipe, profile.mix), card)
    warnings = []
    if settings.engine == "transformers" and (asking is None or asking > LONG):
        how_long = "as many as the set holds" if asking is None else f"it may take {duration(asking)}"
        warnings.append(
            f"the base answers questions first, {how_long}: fewer questions.rows or a smaller max_new_tokens in the recipe, "
            "mix.without=[NAME], or let a server answer (evaluation.engine=vllm)"
        )
    if settings.engine == "transformers":
        if peak > CARD_SHARE * card * 2**30:
            warnings.append(
                f"the evaluation may not fit a card of {card} GB: lower evaluation.batch_size or max_new_tokens"
            )
        if seconds is None or seconds > LONG:
            taken = "all items of the benchmarks are asked" if seconds is None else f"it may take {duration(seconds)}"
            warnings.append(
                f"{taken}: lower evaluation.limit or evaluation.sampling.….max_new_tokens, or let a server answer, which keeps "
                "its batches full (evaluation.engine=vllm, docs/evaluation.md)"
            )
    return {
        "engine": settings.engine,
        "card_gib": card,
        "modes": modes,
        "memory_bytes": peak,
        "seconds": seconds,
        "rehearsal": {"replies": asked, "seconds": asking},
        "warnings": warnings,
    }


def replies_text(result: dict[str, Any], measured: bool = False) -> str:
    """The estimate in a few lines.

    Args:
        measured: the time of the whole run is known by a measured rate, and is said elsewhere.
    """
    if result["engine"] != "transformers":
        return f"evaluation: the replies come from {result['engine']}; its memory and time are not counted here"
    each = "; ".join(
        f"{mode.replace('_', '-')} {part['rows']} replies at a time, {part['memory_bytes']['total'] / 2**30:.1f} GiB"
        for mode, part in result["modes"].items()
    )
    lines = [f"memory of evaluation on a GPU of {result['card_gib']} GB (count, not measured): {each}"]
    if result["seconds"] is not None and not measured:
        lines.append(
            f"time of evaluation: at most {duration(result['seconds'])} on a card like an RTX 4090 (count, not measured), where "
            "each batch has a reply that reaches its limit"
        )
    asked = result["rehearsal"]
    if asked["seconds"] and not measured:
        lines.append(
            f"time of asking the base first, {asked['replies']:,} replies: at most {duration(asked['seconds'])}"
        )
    return "\n".join([*lines, *(f"  note: {warning}" for warning in ([] if measured else result["warnings"]))])
