"""The one interface by which replies are asked for, wherever they are made.

Evaluation, the sampling study, and whatever else needs replies hand conversations to an ``Engine`` and get ``Reply`` rows back,
with think tags in the text and counts in tokens of our tokenizer, so that judge and report see the same form from all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.core.modes import Mode
from pipeline.model.decode import Reply
from pipeline.settings import Sampling

Messages = Sequence[Mapping[str, Any]]  # messages, as in ``pipeline.data.conversations``
PromptIds = Callable[[Any, Mode], list[int]]  # a conversation and its mode → the prompt, ``ChatFormat.prompt_ids``
Arrived = Callable[[int, Reply], object]  # the place of a conversation in the list, and its reply


class Engine(Protocol):
    """Answers conversations in a mode."""

    @property
    def window(self) -> int:
        """Conversations that it wants to have at hand at a time."""
        ...

    @property
    def one_by_one(self) -> bool:
        """Whether each conversation is a request of its own, answered when it is done; else a list is answered together."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its replies from those of other engines; empty for the model in this process."""
        ...

    def require_room(self, conversations: Sequence[Messages], mode: Mode, sampling: Sampling) -> None:
        """Raises: UserError: a prompt, or it and its longest reply, does not fit."""
        ...

    def replies(
        self,
        conversations: Sequence[Messages],
        mode: Mode,
        sampling: Sampling,
        seed: int,
        arrived: Arrived | None = None,
        thinking_budget: int | None = None,
    ) -> list[Reply]:
        """One reply a conversation, in order.

        Args:
            arrived: called with each reply as soon as it is there, from any thread.
            thinking_budget: in thinking mode, tokens of reasoning after which the thought is closed; None: it never is.

        Raises:
            UserError: what keeps it from answering, and what to do.
        """
        ...
