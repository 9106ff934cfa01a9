"""Rows that are being decoded together: what is written so far, what of it counts, and the cache of keys and values.

In: prompts as token ids. Out: the inputs of ``model.generate``, again after each of its calls. Rows are padded on the left, so
all end in the same column; those that have ended leave (``keep``), and where the cache allows it others join (``join``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.model.growing_cache import cut, joined

if TYPE_CHECKING:
    import torch


@dataclass
class Rows:
    """The rows, n of them, and their tokens so far, ``length`` with the padding.

    Args:
        names: which prompt each row answers.
        ids: (n, length). seen: (n, length), the attention mask. own: (n, length), 1 where a token of prompt or reply stands.
        starts: (n,), the column in which the reply begins.
        draws: (n, longest reply), random numbers in [0, 1); None: greedy.
        cache: of all columns but the last one; before the first call None, or an empty one, or that of virtual tokens.
        embeddings: of the prompts, where virtual tokens stand among them; for the first call.
    """

    names: list[int]
    ids: torch.Tensor
    seen: torch.Tensor
    own: torch.Tensor
    starts: torch.Tensor
    draws: torch.Tensor | None
    cache: Any = None
    embeddings: torch.Tensor | None = None

    def inputs(self) -> dict[str, Any]:
        """What ``generate`` takes. The cache is handed over: from now on only the call has it."""
        inputs: dict[str, Any] = {"input_ids": self.ids, "attention_mask": self.seen}
        if self.cache is not None:
            inputs["past_key_values"], self.cache = self.cache, None
        if self.embeddings is not None:
            inputs["inputs_embeds"], self.embeddings = self.embeddings, None
        return inputs

    def written(self) -> int:
        """Tokens of the row that has written most."""
        return int(self.ids.shape[1] - self.starts.min())

    def take(self, sequences: torch.Tensor, cache: Any) -> None:
        """What a call returned: (n, length then), and the cache."""
        import torch

        new = self.seen.new_ones(len(sequences), sequences.shape[1] - self.ids.shape[1])
        self.ids, self.cache = sequences, cache
        self.seen, self.own = torch.cat([self.seen, new], 1), torch.cat([self.own, new], 1)

    def keep(self, places: Sequence[int], narrow: bool) -> None:
        """Go on with these rows of them; ``narrow``: and without columns that are padding in all of them."""
        import torch

        self.names = [self.names[place] for place in places]
        if not places:
            return
        rows = torch.tensor(list(places), device=self.ids.device)
        first = int(self.seen[rows].argmax(1).min()) if narrow else 0
        self.ids, self.seen, self.own = (part[rows, first:] for part in (self.ids, self.seen, self.own))
        self.starts = self.starts[rows] - first
        self.draws = None if self.draws is None else self.draws[rows]
        self.cache = cut(self.cache, rows, first) if narrow else _selected(self.cache, rows)

    def join(self, others: Rows, pad: int) -> None:
        """Take in other rows that have been called once at least; both with a growing cache."""
        import torch

        length = max(self.ids.shape[1], others.ids.shape[1])
        both = (self, others)
        missing = [length - rows.ids.shape[1] for rows in both]

        def padded(parts: list[torch.Tensor], value: int) -> torch.Tensor:
            pairs = zip(parts, missing, strict=True)
            return torch.cat([torch.nn.functional.pad(part, (count, 0), value=value) for part, count in pairs])

        self.cache = joined(self.cache, others.cache, length - 1)
        self.ids = padded([rows.ids for rows in both], pad)
        self.seen, self.own = padded([rows.seen for rows in both], 0), padded([rows.own for rows in both], 0)
        self.starts = torch.cat([rows.starts + count for rows, count in zip(both, missing, strict=True)])
        self.names = self.names + others.names
        if self.draws is not None and others.draws is not None:
            self.draws = torch.cat([self.draws, others.draws])


def padded_prompts(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, (batch, width) each, padded on the left."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def _selected(cache: Any, keep: torch.Tensor) -> Any:
    """The rows of a cache that go on. Decoding on a GPU, Unsloth hands out (keys, values) of each layer."""
    from transformers import DynamicCache

    if not isinstance(cache, (list, tuple)):
        cache.batch_select_indices(keep)
        return cache
    selected = DynamicCache()
    for place, (keys, values) in enumerate(cache):
        selected.update(keys.index_select(0, keep), values.index_select(0, keep), place)
    return selected
