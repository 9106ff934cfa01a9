"""The engine of this process: a loaded model, decoded with transformers, on a CPU by several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.core.modes import Mode
from pipeline.model.batch import virtual_tokens
from pipeline.model.decode import Reply
from pipeline.model.decoders import Decoders, decoders
from pipeline.model.engines.base import Arrived, Messages, PromptIds
from pipeline.model.room import positions_of, require_length
from pipeline.settings import EvaluationSettings, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AHEAD = 8  # batches whose prompts are collected before decoding: sorted together, they take each other's places


class LocalEngine:
    """Decodes here; open it with ``local_engine``."""

    one_by_one = False
    identity: dict[str, Any] = {}  # noqa: RUF012  (never changed)

    def __init__(self, decoding: Decoders, prompt_ids: PromptIds, batch_size: int):
        self.decoding, self.prompt_ids, self.batch_size = decoding, prompt_ids, batch_size
        self.window = AHEAD * batch_size

    def require_room(self, conversations: Sequence[Messages], mode: Mode, sampling: Sampling) -> None:
        model = self.decoding.model
        positions = positions_of(model.config.to_dict())
        if positions is not None:
            positions -= virtual_tokens(model)
        longest = getattr(model, "max_seq_length", None)
        require_prompts(self.prompt_ids, conversations, mode, sampling, longest, positions)

    def replies(
        self,
        conversations: Sequence[Messages],
        mode: Mode,
        sampling: Sampling,
        seed: int,
        arrived: Arrived | None = None,
        thinking_budget: int | None = None,
    ) -> list[Reply]:
        prompts = [self.prompt_ids(messages, mode) for messages in conversations]
        budget = thinking_budget if mode == "thinking" else None
        return self.decoding.generate(prompts, sampling, self.batch_size, seed, arrived, budget)


def require_prompts(
    prompt_ids: PromptIds,
    conversations: Sequence[Messages],
    mode: Mode,
    sampling: Sampling,
    longest_prompt: int | None,
    positions: int | None,
) -> None:
    """Raises: UserError: the longest prompt, or it and the longest reply, is more than there is room for."""
    lengths = [len(prompt_ids(messages, mode)) for messages in conversations]
    if lengths:
        what = f"The longest prompt of the evaluation ({mode})"
        require_length(max(lengths), sampling.max_new_tokens, longest_prompt, positions, what)


@contextmanager
def local_engine(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_ids: PromptIds, settings: EvaluationSettings
) -> Iterator[LocalEngine]:
    """The engine of a loaded model; its processes end with the block."""
    with decoders(model, tokenizer, settings.workers) as decoding:
        yield LocalEngine(decoding, prompt_ids, settings.batch_size)
