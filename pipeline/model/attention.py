"""Attention on a CPU: written out as matrix products where rows are short."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


SHORT = 512  # tokens; up to here attention written out is the faster one on a CPU, and its scores take little memory


@contextlib.contextmanager
def written_out_attention(model: PreTrainedModel) -> Iterator[None]:
    """On a CPU, attention as plain matrix products ("eager") instead of torch's fused kernel, and afterwards as it was.

    With short rows the fused kernel is the slower one there, above all backwards. (Measured with the embedded profile, one
    core: 60 steps in 6.8 s against 8.3 s; decoding takes half the time.)
    """
    written_out = model.device.type == "cpu" and getattr(model.config, "_attn_implementation", None) == "sdpa"
    if written_out:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if written_out:
            model.set_attn_implementation("sdpa")
