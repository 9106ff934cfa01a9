"""How far a tuned model is from its base: KL(base ‖ tuned) a token, with the adapter on and off, in one copy of the weights.

In: a tuned model, sequences of tokens with their prompts. Out: nats a token that a reply holds. At each position the whole
distribution counts, not the drawn token alone, so few sequences are enough. Logits are held for ``POSITIONS`` positions at a
time: memory does not grow with the length of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.model.decode import inference_mode_of, virtual_tokens
from pipeline.model.memory import out_of_memory, release
from pipeline.model.parts import has_own_logits, hidden_states, parts_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TOKENS = 8192  # of a batch with its padding: the scores of attention grow with rows × length × length
POSITIONS = 512  # positions; in float32 and a vocabulary of 151,936, 310 MB a model


def has_switch(model: PreTrainedModel) -> bool:
    """Whether what was trained can be switched off, which leaves the base: any adapter that stands beside the base's matrices."""
    from pipeline.model.bottleneck import has_bottlenecks

    return has_bottlenecks(model) or (bool(getattr(model, "peft_config", None)) and not virtual_tokens(model))


def require_own_logits(model: PreTrainedModel) -> None:
    """Raises: UserError: the model's family does something to its logits that is not known here."""
    if not has_own_logits(model):
        raise UserError(
            f"The distance to the base cannot be measured: models of the family {model.config.model_type} change the logits "
            "of their output layer in a way that is not known here. Set evaluation.kl_items=0, and training.kl_to_base=0."
        )


@contextmanager
def adapter_off(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model is its base.

    Raises:
        UserError: what was trained cannot be switched off.
    """
    from pipeline.model.bottleneck import has_bottlenecks, switched_off

    if not has_switch(model):
        raise UserError(
            "The distance to the base is measured by switching the adapter off, and this method has none that can be: use a "
            "method of LoRA's kind, ia3 or adapter."
        )
    disabled: Any = switched_off(model) if has_bottlenecks(model) else model.disable_adapter()
    with disabled:
        yield


def kl_of(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    """KL(base ‖ tuned) in nats at each position, from logits (positions, vocabulary); never below 0."""
    import torch

    own, other = (torch.log_softmax(logits.float(), dim=-1) for logits in (base, tuned))
    return (own.exp() * (own - other)).sum(dim=-1).clamp(min=0)


def padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), (batch, longest), padded with 0 on the right."""
    import torch

    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(list(row))
        mask[number, : len(row)] = 1
    return ids.to(device), mask.to(device)


def divergence(
    model: PreTrainedModel,
    sequences: Sequence[tuple[Sequence[int], int]],
    batch_size: int,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[float, int]]:
    """KL(base ‖ tuned) over the reply of each sequence.

    Args:
        batch_size: sequences at a time, at most; fewer where they are long (``TOKENS``).
        model: tuned, with an adapter that can be switched off; its family is one of ``require_own_logits``.
        sequences: (token ids of prompt and reply, how many of them are the prompt's: at least 1).
        progress: called after each batch with the number of sequences that it held.

    Returns:
        (sum in nats, positions) for each sequence, in order.

    Raises:
        UserError: see ``adapter_off``; a single sequence does not fit into memory.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
    result: dict[int, tuple[float, int]] = {}
    while order:
        fit = [n for n, i in enumerate(order[:batch_size], 1) if n * len(sequences[i][0]) <= TOKENS]
        batch = order[: fit[-1] if fit else 1]
        try:
            sums = _batch_divergence(model, [sequences[i] for i in batch])
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise UserError(
                    f"Too little memory to measure the distance to the base on a sequence of {len(sequences[batch[0]][0]):,} "
                    "tokens; set evaluation.kl_items=0 to leave it out, or evaluation.sampling.MODE.max_new_tokens lower."
                ) from error
            batch_size = len(batch) // 2
            say(
                f"too little memory to compare {len(batch)} sequences with the base at a time; going on with {batch_size}"
            )
        else:
            result |= dict(zip(batch, sums, strict=True))
            order = order[len(batch) :]
            if progress is not None:
                progress(len(batch))
            continue
        release()  # here: while the error is handled, its traceback still holds what did not fit
    return [result[i] for i in range(len(sequences))]


def _batch_divergence(model: PreTrainedModel, batch: Sequence[tuple[Sequence[int], int]]) -> list[tuple[float, int]]:
    """``divergence`` of sequences that are computed together."""
    import torch

    body, head = parts_of(model)
    with inference_mode_of(model), torch.inference_mode():
        ids, mask = padded([sequence for sequence, _ in batch], model.device)
        # Token t is predicted at position t - 1.
        chosen = mask.bool()
        chosen[:, -1] = False
        for row, (sequence, prompt) in enumerate(batch):
            chosen[row, : prompt - 1] = False
            chosen[row, len(sequence) - 1 :] = False
        tuned = hidden_states(body, ids, mask)[chosen]
        with adapter_off(model):
            base = hidden_states(body, ids, mask)[chosen]
        values = []
        for part in range(0, len(tuned), POSITIONS):
            own = head(tuned[part : part + POSITIONS])
            with adapter_off(model):
                other = head(base[part : part + POSITIONS])
            values.append(kl_of(other, own))
        flat = torch.cat(values) if values else tuned.new_zeros(0)
        sums = torch.zeros(chosen.shape, device=flat.device).masked_scatter(chosen, flat.float()).sum(dim=1)
        return [(float(sums[row]), int(chosen[row].sum())) for row in range(len(batch))]
