"""An evaluation engine (a server, vLLM) answers a rehearsal in the place of a model in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from pipeline.core.errors import UserError
from pipeline.core.modes import Mode
from pipeline.data.rehearsal.questions import Question
from pipeline.model.decode import Reply
from pipeline.model.engines.base import Arrived, Engine
from pipeline.settings import Sampling

BATCHES = 4  # rounds of requests that one call makes


@dataclass
class EngineAnswers:
    """Answers by an engine that is opened for the first question, so that stored replies need none.

    ``open_engine`` opens the engine of the *base*; ``close`` ends it.
    """

    open_engine: Callable[[], AbstractContextManager[Engine]]
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)
    _engine: Engine | None = field(default=None, repr=False)

    def _opened(self) -> Engine:
        if self._engine is None:
            self._engine = self._stack.enter_context(self.open_engine())
        return self._engine

    @property
    def at_once(self) -> int:
        return BATCHES * self._opened().window

    def __call__(
        self,
        questions: Sequence[Question],
        mode: Mode,
        sampling: Sampling,
        seed: int,
        arrived: Arrived | None = None,
    ) -> list[Reply]:
        """Raises: UserError: a question with tools, or what keeps the engine from answering."""
        for question in questions:
            if question.tools:
                raise UserError(
                    f"{question.file}:{question.line} has tools, and evaluation engines take none. Ask such questions with "
                    "evaluation.engine=transformers; replies that are stored already are kept."
                )
        conversations = [question.messages for question in questions]
        engine = self._opened()
        engine.require_room(conversations, mode, sampling)
        return engine.replies(conversations, mode, sampling, seed, arrived)

    def close(self) -> None:
        """End the engine, if it was opened."""
        self._stack.close()
        self._engine = None
