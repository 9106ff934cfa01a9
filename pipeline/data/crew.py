"""Who turns rows into chunks: this process with a thread beside it, or several processes, the same for all sources.

A process that starts imports the libraries and gets the tokenizer and the index of the benchmarks, which takes seconds; so they
are started once, when the first rows come, and know all sources.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import current_process, get_context
from types import TracebackType
from typing import Any

from pipeline.core.errors import UserError
from pipeline.data.prepare import CHUNK, Chunk, Preparation
from pipeline.data.sources import SourceRow

UNGUARDED = (
    "data.workers starts processes, and each of them reads the script that started it from its first line. Put what the "
    'script does behind `if __name__ == "__main__":`, or set data.workers=1.'
)
TOKENISING = 2  # threads, where this process prepares the rows itself
_preparations: Sequence[Preparation] = ()  # in a worker process: those of all sources


def _start_worker(preparations: Sequence[Preparation]) -> None:
    global _preparations
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that reads
    _preparations = preparations


def _prepare_in_worker(number: int, rows: list[SourceRow], first: int) -> Chunk:
    return _preparations[number](rows, first)


class Crew:
    """``workers`` processes that prepare rows of these sources; nothing is started for one. Use it in a ``with`` statement."""

    def __init__(self, preparations: Sequence[Preparation], workers: int = 1):
        self.preparations, self.workers = list(preparations), workers
        self._executor: ProcessPoolExecutor | ThreadPoolExecutor | None = None

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=error is not None)

    def _started(self) -> ProcessPoolExecutor | ThreadPoolExecutor:
        if self._executor is None:
            if self.workers > 1:
                if getattr(current_process(), "_inheriting", False):
                    # The pool would wait for ever, and the process that started this one with it.
                    raise UserError(UNGUARDED)
                spawn = get_context("spawn")
                self._executor = ProcessPoolExecutor(self.workers, spawn, _start_worker, (self.preparations,))
            else:
                # The tokenizer works outside Python's lock while the next rows are rendered. Two threads, since Unsloth
                # forbids it (TOKENIZERS_PARALLELISM) to use several cores by itself.
                self._executor = ThreadPoolExecutor(TOKENISING)
        return self._executor

    def chunks(self, number: int, rows: Iterator[SourceRow], first: int) -> Iterator[Chunk]:
        """Chunks of source ``number`` in the order of their rows, a bounded number of them under way at a time.

        Args:
            first: number of the first row in the source, from 0.

        Raises:
            UserError: a worker process was killed; or this is one that a script without a main guard has started.
        """
        preparation = self.preparations[number]
        waiting: deque[tuple[Any, Future[Any]]] = deque()  # the rendered rows that wait for their tokens, if any

        def next_chunk() -> Chunk:
            draft, future = waiting.popleft()
            try:
                result = future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    f"source {preparation.source.name!r}: a worker process was killed, most likely because memory ran out. Run "
                    f"again with fewer (data.workers, now {self.workers}); the build goes on behind its last whole shard. If "
                    "it said a UserError of its own above, that is the reason."
                ) from error
            return result if draft is None else preparation.chunk(draft, result)

        while batch := list(islice(rows, CHUNK)):
            executor = self._started()
            if self.workers > 1:
                waiting.append((None, executor.submit(_prepare_in_worker, number, batch, first)))
            else:
                draft = preparation.draft(batch, first)
                waiting.append((draft, executor.submit(preparation.form.encode_answers, draft.answers)))
            first += len(batch)
            if len(waiting) > (2 * self.workers if self.workers > 1 else TOKENISING):
                yield next_chunk()
        while waiting:
            yield next_chunk()
