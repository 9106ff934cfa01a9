"""How the next token is drawn: temperature, top-k, top-p and min-p, by random numbers that a prompt has of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.settings import Sampling

if TYPE_CHECKING:
    import torch


class Draw:
    """A logits processor that leaves exactly one token possible: the one drawn for each row.

    Temperature, top-k, top-p and min-p act in transformers' order and with its rules; the repetition penalty
    (Keskar et al. 2019, CTRL) counts the row's own prompt and reply, never its padding.
    """

    def __init__(self, sampling: Sampling, uniforms: torch.Tensor | None, own: torch.Tensor, starts: torch.Tensor):
        self.sampling = sampling
        self.uniforms = uniforms  # (batch, max_new_tokens), float32 in [0, 1); None: greedy
        self.mask = own.bool()  # (batch, length at the start of the call): where a token of prompt or reply stands
        self.starts = starts  # (batch,): the column in which the reply begins

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """(batch, length so far), (batch, vocabulary) → scores of the same shape."""
        import torch

        values = self._penalised(input_ids, scores.float())
        if self.uniforms is None:
            return values
        vocabulary = values.shape[-1]
        top_k = min(self.sampling.top_k or vocabulary, vocabulary)
        top, tokens = torch.topk(values, top_k, dim=-1)  # sorted, largest first
        weights = torch.softmax(top / self.sampling.temperature, dim=-1)
        if self.sampling.top_p < 1:  # the fewest tokens whose probabilities reach top_p; always the first
            before = weights.cumsum(dim=-1) - weights
            weights = weights.masked_fill(before >= self.sampling.top_p, 0.0)
        if self.sampling.min_p > 0:
            weights = weights.masked_fill(weights < self.sampling.min_p * weights[:, :1], 0.0)
        cumulative = weights.cumsum(dim=-1)
        step = input_ids.shape[1] - self.starts  # of a reply that has ended, it may be one too many
        step = step.clamp(max=self.uniforms.shape[1] - 1)
        threshold = self.uniforms.gather(1, step[:, None]) * cumulative[:, -1:]
        index = (cumulative <= threshold).sum(dim=-1, keepdim=True)
        index = index.clamp(max=(weights > 0).sum(dim=-1, keepdim=True) - 1)  # rounding must not leave the kept set
        return torch.full_like(values, float("-inf")).scatter(1, tokens.gather(1, index), 0.0)

    def _penalised(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        penalty = self.sampling.repetition_penalty
        if penalty == 1:
            return scores
        import torch

        width = self.mask.shape[1]
        seen = input_ids.clone()
        # Padding stands on the left; put a token there that the row has anyway.
        seen[:, :width] = torch.where(self.mask, input_ids[:, :width], input_ids[:, width - 1 : width])
        found = scores.gather(1, seen)
        return scores.scatter(1, seen, torch.where(found < 0, found * penalty, found / penalty))


def stream(seed: int, prompt: Sequence[int], occurrence: int, length: int) -> Any:
    """``length`` uniform numbers of a prompt's own; the n-th occurrence of one prompt has the n-th stream."""
    import numpy

    text = f"{seed}:{occurrence}:{','.join(map(str, prompt))}"
    entropy = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    return numpy.random.default_rng(entropy).random(length, dtype=numpy.float32)
