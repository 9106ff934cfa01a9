"""Several processes, one run: the first one writes, the others wait for it, and an error of one ends all with its message.

In: what ``torchrun`` (or ``accelerate launch``) sets in the environment of each process. Out: rank and number of processes,
and the two ways in which the run's stages work together: ``first`` and ``together``.

The processes talk through the key-value store that the launcher keeps, not through a collective operation: waiting for an
evaluation of an hour runs into no timeout, and an error reaches processes that wait for something else.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


POLL_SECONDS = 0.05
HEARD_SECONDS = 5.0  # how long a failing process waits for the others to take its message
T = TypeVar("T")
_steps = itertools.count()


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name) or str(otherwise)
    if not text.isdecimal():
        raise UserError(f"The environment has {name}={text!r}, which is no number; start the processes with torchrun.")
    return int(text)


def size() -> int:
    """How many processes train together; 1 without a launcher."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """This process's number, from 0."""
    return _number("RANK", 0) if size() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def label() -> str:
    """For a message: which process says it; empty where there is one."""
    count = os.environ.get("WORLD_SIZE") or "1"
    return "" if count == "1" else f" (process {os.environ.get('RANK')} of {count})"


@functools.cache
def _store() -> Any:
    """The launcher's key-value store; keys of a restarted launch do not meet those of the one before.

    Raises:
        UserError: the processes were not started by torchrun or accelerate.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise UserError(
            f"The environment says that there are {size()} processes (WORLD_SIZE), but no launcher that this project knows "
            "started them. Use torchrun or accelerate launch, or unset WORLD_SIZE for one process."
        )
    from torch.distributed import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=60), wait_for_workers=False)
    return PrefixStore(f"pipeline/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _failure() -> str | None:
    """The message of a process that has failed, with its number."""
    store = _store()
    return store.get("failed").decode() if store.check(["failed"]) else None


def first(what: str, function: Callable[[], T], others: Callable[[], T]) -> T:
    """Run ``function`` in the first process; when it is done, run ``others`` in the other ones. Call it in all of them.

    Args:
        what: the step in words; all processes take the same steps in the same order.

    Raises:
        UserError: in the others: a process has failed (see ``together``).
    """
    if size() == 1:
        return function()
    key = f"{next(_steps)}: {what}"
    if is_first():
        result = function()
        _store().set(key, "done")
        return result
    while not _store().check([key]):
        reason = _failure()
        if reason is not None:
            raise UserError(reason)
        time.sleep(POLL_SECONDS)
    return others()


@contextmanager
def together() -> Iterator[None]:
    """Around all of the work: what one process fails with becomes the error of every one.

    Raises:
        UserError: another process has failed, with its message, or is gone without one.
    """
    if size() == 1:
        yield
        return
    reason = "it ended early; its own message says why"
    done = False
    try:
        yield
        done = True
    except UserError as error:
        reason = str(error)
        raise
    except RuntimeError as error:
        told = _failure_soon()
        if told is not None:
            raise UserError(told) from error
        if "onnection" not in str(error):  # gloo: "Connection closed by peer", "Connection reset by peer"
            raise
        reason = (
            "Another process is gone without a message: it was killed, or its memory did not suffice. Look at its output "
            "above, and run the same command again with --resume."
        )
        raise UserError(reason) from error
    finally:
        if not done:
            _tell(reason)


def _failure_soon() -> str | None:
    """``_failure``, after a moment: the connection breaks before the message of who broke it is written."""
    deadline = time.monotonic() + 1.0
    while (reason := _failure()) is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return reason


def _tell(reason: str) -> None:
    """Leave the message for the others, unless there is one, and wait until they have taken it, but not for long."""
    import torch.distributed as dist

    store = _store()
    if store.add("failures", 1) == 1:
        store.set("failed", f"process {rank()}: {reason}")
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()  # who waits inside of a collective operation notices it by this
    deadline = time.monotonic() + HEARD_SECONDS
    while store.add("failures", 0) < size() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def require_one(command: str) -> None:
    """Refuse several processes where the work is not made for them.

    Raises:
        UserError: there is more than one.
    """
    if size() > 1:
        raise UserError(
            f"`{command}` works in one process, and {size()} were started; start it without torchrun. "
            "Several processes are for train and run."
        )


def require_same_size(checkpoint: Path) -> None:
    """A run goes on with as many processes as it had: another number makes another global batch.

    The number is read from the random states that every process writes into a checkpoint.

    Raises:
        UserError: the checkpoint is of another number of processes.
    """
    states = len(list(checkpoint.glob("rng_state_*.pth"))) or 1
    if states != size():
        raise UserError(
            f"{checkpoint} was written by {states} process(es) and {size()} would go on with it, which is another global "
            f"batch. Start {states}, or choose another --output-dir."
        )


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether each process holds only a part of the weights (FSDP2)."""
    if size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
