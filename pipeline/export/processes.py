"""A server in a process of its own, waited for until it is ready and ended with the block."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import UserError

READY_SECONDS = 600.0
STOP_SECONDS = 20.0


@contextmanager
def llama_server(file: Path, log: Path, arguments: Sequence[str]) -> Iterator[str]:
    """llama.cpp's server on a GGUF file; yields its address.

    Args:
        log: a file for what it says. arguments: of ``pipeline.export.llama_server``.

    Raises:
        UserError: it does not start, with its last words.
    """
    command = [sys.executable, "-m", "pipeline.export.llama_server", str(file), "--follow", *arguments]
    with log.open("ab") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdin is not None and process.stdout is not None
    late = threading.Timer(READY_SECONDS, process.kill)
    late.start()
    try:
        line = process.stdout.readline()
        late.cancel()
        if not line.strip():
            raise UserError(f"llama.cpp does not load {file.name}: {last_words(log)} (all of it: {log})")
        yield str(json.loads(line)["address"])
    finally:
        late.cancel()
        process.stdin.close()
        end(process)
        process.stdout.close()


def end(process: subprocess.Popen[str]) -> None:
    """Ask a process to end, and see to it."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_words(log: Path) -> str:
    """The last line of a log that says something, cut."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "no word of why")
