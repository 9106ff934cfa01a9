"""A cache of keys and values with room ahead, for decoding on a CPU; rows can leave it and join it.

transformers' own cache is copied whole for every token. A cache of the final size, cut to what is filled, would not do: torch's
product of matrices in bfloat16 copies what it is given in such a cut. So here the room ahead is small, attention sees it, and it
is masked like padding.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pipeline.model.attention import GROUPED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

AHEAD = 64  # places


def growing_cache(model: PreTrainedModel) -> Cache | None:
    """An empty one, inside ``written_out_attention``; None where it does not suit: linear attention, a window that slides."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    whole = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    if not whole or getattr(model.config, "_attn_implementation", None) != GROUPED:
        return None
    from transformers.cache_utils import Cache

    return Cache(layer_class_to_replicate=_layer_class())


def cut(kept: Any, rows: torch.Tensor, first: int) -> Any:
    """These rows of it, without the first places."""
    for layer in kept.layers:
        layer.keys, layer.values = layer.keys[rows, :, first:], layer.values[rows, :, first:]
        layer.filled -= first
    return kept


def joined(own: Any, other: Any, places: int) -> Any:
    """The rows of both, one below the other, so that both end at ``places``, with zeros before and behind."""
    for layer, added in zip(own.layers, other.layers, strict=True):
        parts = ((layer.keys, layer.filled), (added.keys, added.filled))
        layer.keys = _below(parts, places)
        parts = ((layer.values, layer.filled), (added.values, added.filled))
        layer.values = _below(parts, places)
        layer.filled = places
        added.keys = added.values = None
    return own


def _below(parts: tuple[tuple[torch.Tensor, int], ...], places: int) -> torch.Tensor:
    first = parts[0][0]
    rows = sum(len(states) for states, _ in parts)
    whole, done = first.new_zeros(rows, first.shape[1], places + AHEAD, first.shape[3]), 0
    for states, filled in parts:
        whole[done : done + len(states), :, places - filled : places] = states[:, :, :filled]
        done += len(states)
    return whole


def _with_room(states: torch.Tensor) -> torch.Tensor:
    return _below(((states, states.shape[2]),), states.shape[2])


@cache
def _layer_class() -> Any:
    """Made when it is wanted: its base is a class of transformers, which takes seconds to import."""
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """One layer's keys and values, (rows, key-value heads, places, size) each; the first ``filled`` places count."""

        def __init__(self) -> None:
            super().__init__()
            self.filled = 0

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            """Take in new tokens; give keys and values of all places, the unfilled ones with them, as zeros."""
            first, self.filled = self.filled, self.filled + key_states.shape[2]
            if first == 0:
                self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
                self.keys, self.values = _with_room(key_states), _with_room(value_states)
                return key_states, value_states  # a prompt sees no more than itself
            if self.filled > self.keys.shape[2]:
                self.keys, self.values = _with_room(self.keys[:, :, :first]), _with_room(self.values[:, :, :first])
            self.keys[:, :, first : self.filled] = key_states
            self.values[:, :, first : self.filled] = value_states
            return self.keys, self.values

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            """Places that attention will see, and 0; asked before ``update``."""
            wanted = self.filled + query_length
            if self.filled == 0 or wanted > self.keys.shape[2]:
                return wanted if self.filled == 0 else self.filled + AHEAD, 0
            return self.keys.shape[2], 0

        def get_seq_length(self) -> int:
            """Filled places."""
            return self.filled

    return GrowingLayer
