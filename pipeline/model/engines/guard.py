"""Run a command in a process group of its own for as long as standard input stays open; then end the whole group.

    python guard.py COMMAND ...

Whoever starts it holds the other end of the pipe. If that process dies, even by a kill that it cannot answer, the pipe closes,
and no server is left behind with a GPU in its hands. Where the guard itself is killed (Ray does that to the children of a worker
whose task is cancelled), Linux asks the command to end. Standard library alone: it must start wherever Python does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PATIENCE_SECONDS = 30.0  # between asking the group to end and ending it


def main(command: list[str]) -> int:
    """Exit status of the command; 127 where it cannot be started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process at the other end, which closes the pipe
    linked = _ends_with(os.getpid()) if sys.platform == "linux" else None
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=linked)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error}", file=sys.stderr)
        return 127
    signal.signal(signal.SIGTERM, lambda *_: _end(child))
    threading.Thread(target=_wait_for_close, args=(child,), daemon=True).start()
    status = child.wait()
    _kill(child, signal.SIGKILL)  # what the command has left behind
    return status


def _ends_with(guard: int) -> Callable[[], None]:
    """What the command's process does before it begins: it will get SIGTERM when the guard is gone (prctl, PR_SET_PDEATHSIG)."""
    library = ctypes.CDLL(None)

    def link() -> None:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != guard:  # gone already
            os._exit(128 + signal.SIGTERM)

    return link


def _wait_for_close(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    _kill(child, signal.SIGTERM)
    timer = threading.Timer(PATIENCE_SECONDS, _kill, (child, signal.SIGKILL))
    timer.daemon = True
    timer.start()


def _kill(child: subprocess.Popen[bytes], how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone
        os.killpg(child.pid, how)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
