"""Decode on several cores of a CPU: a small model's operations are too short to share, but its prompts can be dealt out.

In: a loaded model. Out: ``Decoders.generate``, the same replies as ``decode.generate``, which do not depend on what stands in a
batch. The processes are forked, so they share the weights; where a system cannot fork, or on a GPU, this process decodes alone.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.model.decode import Reply, Request, answered
from pipeline.settings import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def _serve(connection: Connection, others: Sequence[Connection], model: Any, tokenizer: Any) -> None:
    """A forked process: answer lists of prompts until the other end closes, then end without the parent's clean-up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and closes its end
    for other in others:
        other.close()  # inherited; while it is open here, its end would never be seen
    with contextlib.suppress(EOFError, OSError):
        while True:
            asked = json.loads(connection.recv_bytes())
            sampling = Sampling.model_validate(asked.pop("sampling"))

            def tell(place: int, reply: Reply) -> None:
                connection.send_bytes(json.dumps({"place": place, "reply": asdict(reply)}).encode())

            try:
                answered(model, tokenizer, Request(sampling=sampling, **asked), tell)
                answer: dict[str, Any] = {"done": True}
            except UserError as error:
                answer = {"error": str(error)}
            connection.send_bytes(json.dumps(answer).encode())
    os._exit(0)


class Decoders:
    """This process and forked ones, that decode parts of the same list of prompts at the same time.

    Open it while no other thread is at work in this process; what the model changes afterwards, the others do not see.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, others: Sequence[Connection]):
        self.model, self.tokenizer, self.others = model, tokenizer, list(others)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        batch_size: int,
        seed: int,
        arrived: Callable[[int, Reply], object] | None = None,
        thinking_budget: int | None = None,
    ) -> list[Reply]:
        """As ``decode.generate``; a process that died is said, and its part is done here.

        Raises:
            UserError: as ``decode.generate``.
        """
        parts = deal(prompts, 1 + len(self.others))
        common: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "parts": len(parts)}
        common["thinking_budget"] = thinking_budget
        replies: dict[int, Reply] = {}
        errors: list[str] = []
        waiting: dict[Connection, list[int]] = {}
        mine = [parts[0]]

        def take(place: int, reply: Reply) -> None:
            if place not in replies:
                replies[place] = reply
                if arrived is not None:
                    arrived(place, reply)

        def hear(connection: Connection) -> None:
            """One message of another process."""
            part = waiting[connection]
            try:
                answer = json.loads(connection.recv_bytes())
            except (EOFError, OSError):
                del waiting[connection]
                mine.append(self._lost(connection, part))  # all of it, so that copies of a prompt keep their numbers
                return
            if "reply" in answer:
                take(part[answer["place"]], Reply(**answer["reply"]))
            else:
                del waiting[connection]
                errors.extend([answer["error"]] if "error" in answer else [])

        for connection, part in zip(list(self.others), parts[1:], strict=True):
            asked = {"prompts": [list(prompts[i]) for i in part], "sampling": sampling.model_dump(), **common}
            try:
                connection.send_bytes(json.dumps(asked).encode())
                waiting[connection] = part
            except OSError:
                mine.append(self._lost(connection, part))
        while mine or waiting:
            if not mine:
                for ready in wait(list(waiting)):
                    hear(cast("Connection", ready))
                continue
            part = mine.pop()

            def tell(place: int, reply: Reply, part: list[int] = part) -> None:
                take(part[place], reply)
                for ready in wait(list(waiting), 0):  # they wait where nobody takes what they have
                    hear(cast("Connection", ready))

            answered(self.model, self.tokenizer, Request([prompts[i] for i in part], sampling, **common), tell)
        if errors:
            raise UserError(errors[0])
        return [replies[i] for i in range(len(prompts))]

    def _lost(self, connection: Connection, part: list[int]) -> list[int]:
        say("a process that decoded has died (often for lack of memory); its prompts are done by the others")
        self.others.remove(connection)
        connection.close()
        return part


def deal(prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Places of prompts in ``count`` parts of like lengths.

    Equal prompts stay together: the n-th copy of a prompt has the n-th random stream.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(tuple(prompt), []).append(place)
    ordered = sorted(places, key=len)
    return [[place for prompt in ordered[first::count] for place in places[prompt]] for first in range(count)]


@contextlib.contextmanager
def decoders(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int) -> Iterator[Decoders]:
    """``count`` processes at most, this one among them; they end with the block."""
    if model.device.type != "cpu" or sys.platform != "linux":  # elsewhere a fork breaks the system's own libraries
        count = 1
    ends: list[Connection] = []
    processes = []
    try:
        for _ in range(count - 1):
            context = multiprocessing.get_context("fork")
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, [*ends, mine], model, tokenizer), daemon=True)
            process.start()
            theirs.close()
            ends.append(mine)
            processes.append(process)
        yield Decoders(model, tokenizer, ends)
    finally:
        for end in ends:
            end.close()
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
