"""Training that stays close to the base: to a token's loss is added a weight times KL(base ‖ tuned) at its place.

In: batches of token ids and labels. Out: the loss. The base is the model itself with its adapter off, so there is no second model
in memory; it costs one forward pass more, without gradients, of the rows that are held to it. Logits of both are made
``POSITIONS`` at a time and made again for the gradient, so memory does not grow with the length of a batch.

Import it after unsloth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from pipeline.data.chat_format import IGNORE_INDEX
from pipeline.model.divergence import POSITIONS, adapter_off, kl_of
from pipeline.model.parts import hidden_states, parts_of

FLAG = "counts"  # column of the training set: whether a row's tokens are held to the base


@dataclass
class WithFlags:
    """A collator that keeps the flag of each row: bool [rows]."""

    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        flags = [bool(row.get(FLAG, True)) for row in rows]
        batch = self.collate([{key: value for key, value in row.items() if key != FLAG} for row in rows])
        return {**batch, FLAG: torch.tensor(flags)}


def _sums(
    head: Any,
    off: Callable[[], Any],
    tuned: torch.Tensor,
    base: torch.Tensor,
    targets: torch.Tensor,
    held: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of cross-entropy over some positions, and of KL over those that are held.

    Args:
        tuned: hidden states (positions, hidden size). base: the same of the held positions alone, in their order.
        targets: token ids (positions). held: bool (positions).
    """
    logits = head(tuned).float()
    entropy = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    if not len(base):
        return entropy, logits.new_zeros(())
    with torch.no_grad(), off():
        other = head(base)
    return entropy, kl_of(other, logits[held]).sum()


def losses(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(sum of cross-entropy, sum of KL over the rows that are held, number of tokens that are held) of a batch.

    Args:
        inputs: ``input_ids``, ``labels``, (batch, length), padded on the right; ``counts``, (batch,); perhaps ``attention_mask``.
    """
    ids, labels = inputs["input_ids"], inputs["labels"]
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    chosen[:, :-1] = labels[:, 1:] != IGNORE_INDEX  # token t is predicted at position t - 1
    targets = labels[:, 1:][chosen[:, :-1]]
    rows = inputs[FLAG].to(ids.device)
    held = rows[:, None].expand_as(ids)[chosen]
    body, head = parts_of(model)
    tuned = hidden_states(body, ids, mask)[chosen]
    base = tuned[:0].detach()
    if bool(rows.any()):
        with torch.no_grad(), adapter_off(model):
            base = hidden_states(body, ids[rows], mask[rows])[chosen[rows]]
    entropy = divergence = tuned.new_zeros((), dtype=torch.float32)
    behind = [0, *held.cumsum(0).tolist()]  # held positions before each position
    for start in range(0, len(tuned), POSITIONS):
        part, end = slice(start, start + POSITIONS), min(start + POSITIONS, len(tuned))
        other = base[behind[start] : behind[end]]
        own = checkpoint(
            *(_sums, head, lambda: adapter_off(model), tuned[part], other, targets[part], held[part]),
            use_reentrant=False,
        )
        entropy, divergence = entropy + own[0], divergence + own[1]
    return entropy, divergence, int(held.sum())
