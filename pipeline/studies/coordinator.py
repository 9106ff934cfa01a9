"""One coordinator a study: a record in its folder says who works on it, and is renewed while that goes on.

In: a storage. Out: a context in which nobody else starts on the same study. A coordinator that was killed leaves its record: on
the same machine it is seen to be dead at once, from another one after ``STALE_SECONDS`` without a sign of life.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from pipeline.core.errors import UserError
from pipeline.core.files import now
from pipeline.studies.storage import Storage

RECORD = "coordinator.json"
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
SETTLE_SECONDS = 0.2  # two that start in the same moment: the later record stands, and its writer is the coordinator


def _is_alive(record: dict[str, Any]) -> bool:
    if record["host"] != socket.gethostname():
        return time.time() - float(record["seen"]) < STALE_SECONDS
    try:
        return abs(psutil.Process(record["pid"]).create_time() - record["process_began"]) < 1
    except psutil.NoSuchProcess:
        return False


@contextmanager
def only_coordinator(storage: Storage) -> Iterator[None]:
    """Hold the study; see the module's docstring.

    Raises:
        UserError: another coordinator holds it, with its machine, process and time.
    """
    other = storage.read(RECORD)
    if other is not None and _is_alive(other):
        raise UserError(
            f"Another coordinator works on this study: process {other['pid']} on {other['host']}, since {other['since']} "
            f"({storage.path(RECORD)}). Wait for it, or end it; one that is gone is forgotten after {STALE_SECONDS:.0f} s."
        )
    own = {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_began": psutil.Process().create_time(),
        "since": now(),
    }
    storage.write(RECORD, own | {"seen": time.time()})
    time.sleep(SETTLE_SECONDS)
    if (storage.read(RECORD) or {}).get("id") != own["id"]:
        raise UserError(
            "Another coordinator has just started on this study. Wait for it, or choose another --output-dir."
        )
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(UserError):  # who needs the storage will say that it is gone
                storage.write(RECORD, own | {"seen": time.time()})

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(UserError):
            storage.remove(RECORD)
