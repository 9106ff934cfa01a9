"""Attention on a CPU: written out as matrix products where rows are short."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


SHORT = 512  # tokens; up to here attention written out is the faster one on a CPU, and its scores take little memory
GROUPED = "grouped_matmul"
PLAIN = frozenset({"llama", "mistral", "qwen2", "qwen3"})  # families that add nothing to the scores: no cap, no sink


@contextlib.contextmanager
def written_out_attention(model: PreTrainedModel) -> Iterator[None]:
    """On a CPU, attention as plain matrix products instead of torch's fused kernel, and afterwards as it was.

    With short rows the fused kernel is the slower one there, above all backwards. (Measured with the embedded profile, one
    core: 60 steps in 6.8 s against 8.3 s; decoding takes half the time.) In the families of ``PLAIN`` it is ``grouped``, in
    others transformers' own "eager".
    """
    written_out = model.device.type == "cpu" and getattr(model.config, "_attn_implementation", None) == "sdpa"
    if written_out:
        model.set_attn_implementation(_grouped() if model.config.model_type in PLAIN else "eager")
    try:
        yield
    finally:
        if written_out:
            model.set_attn_implementation("sdpa")


def grouped(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of several query heads to one key-value head, without a copy of keys and values for each of them.

    Without them SmolLM2-135M decodes 1.14 times as fast as with "eager" (benchmarks/README.md). The result is the same but for
    rounding. The arguments are those of transformers' ``AttentionInterface``.

    Args:
        query: (batch, heads, tokens, size). key, value: (batch, key-value heads, places, size).
        attention_mask: (batch, 1, tokens, places), added to the scores; None: everything is seen.

    Returns:
        (batch, tokens, heads, size), and None in the place of the weights.
    """
    import torch

    batch, heads, tokens, size = query.shape
    groups, places = key.shape[1], key.shape[2]
    rows = query.reshape(batch, groups, -1, size)
    scores = (rows @ key.transpose(2, 3) * scaling).view(batch, heads, tokens, places)
    if attention_mask is not None:
        scores = scores + attention_mask[..., :places]
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, module.training)
    seen = weights.view(batch, groups, -1, places) @ value
    return seen.view(batch, heads, tokens, size).transpose(1, 2).contiguous(), None


def _grouped() -> str:
    """Make ``grouped`` known to transformers, with the mask of "eager"; returns its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(GROUPED, grouped)
    AttentionMaskInterface.register(GROUPED, eager_mask)
    return GROUPED
