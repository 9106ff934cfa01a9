"""A Python that has its imports behind it: what the tests start costs a fork instead of twenty seconds of importing.

Importing Unsloth, TRL and EvalScope takes longer than most of what the tests do with them. So one *server*
imports them once, and forks for every program that is started through its *interpreter*, a small script that takes the
arguments of ``python`` (``-m MODULE``, ``-c CODE`` or a script) and stands for the program that it starts: the program has
its streams, folder, environment and signals, and dies with it; the script ends with the program's exit code or signal.
Programs find the interpreter as ``sys.executable`` too, so what they start (cells of a sweep, kernels of notebooks) is forked
as well.

A program that needs a process of its own gets one: other options of the interpreter, and variables that matter while
libraries are imported, start the real Python. Without ``os.pidfd_open`` (Linux has it) everything does.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read while libraries are imported; a program that sets one of them otherwise is not forked.
AT_IMPORT = ("PYTHON", "OMP_", "UNSLOTH_", "HF_HUB", "HF_HOME", "HF_ENDPOINT", "CUDA_")
BUT = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHON_EXEC")
ALSO = (
    "evalscope.run",
    "evalscope.api.benchmark",
    "plotly.express",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
)
CLIENT = """#!{python} -IS
import json, os, signal, socket, struct, sys
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
text = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [struct.pack("i", len(text))], [0, 1, 2])
server.sendall(text)
answer = server.recv(4)
code = struct.unpack("i", answer)[0] if answer else 255
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextlib.contextmanager
def serving(folder: Path, root: Path, environment: dict[str, str]) -> Iterator[Path]:
    """The path of an interpreter in ``folder``; the server behind it, which needs a while to begin, ends with the block."""
    interpreter = folder / "python"
    client = CLIENT.format(python=sys.executable, path=str(folder / "socket"))
    interpreter.write_text(client, encoding="utf-8")
    interpreter.chmod(0o755)
    # A pipe, as most programs find it. What the server says is what went wrong; its end is that of its input.
    with open(folder / "errors", "wb") as errors:
        server = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            cwd=root,
            env=environment | {"PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        yield interpreter
    finally:
        server.communicate()


def wait(interpreter: Path, seconds: int = 600) -> None:
    """Until the server is there.

    Raises:
        RuntimeError: it failed, for the reason in the text, or took too long.
    """
    deadline = time.monotonic() + seconds
    while not (interpreter.parent / "socket").exists():
        text = (interpreter.parent / "errors").read_text(errors="replace")
        if "Traceback" in text or time.monotonic() > deadline:
            raise RuntimeError(f"the warm process did not start: {text}")
        time.sleep(0.1)


# --- the server ---------------------------------------------------------------------------------------------------------


def serve(folder: Path) -> list[str] | None:
    """Fork for every program that is asked for; returns its arguments in the fork, and None when the tests are over."""
    before = dict(os.environ)
    _import()
    gc.collect()
    gc.freeze()  # a collection in a fork would write to every object, and so copy all of them
    _forkable()
    by_imports = {name: value for name, value in os.environ.items() if before.get(name) != value}
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "new"))
    listener.listen()
    (folder / "new").rename(folder / "socket")
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    running: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor of the process and by that of its client
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                for pid, _client in running.values():
                    _kill(pid, signal.SIGKILL)
                return None
            if key.fileobj is listener:
                client = listener.accept()[0]
                request = _request(client)
                pid = os.fork()
                if not pid:
                    selector.close()
                    for other in (listener, client, *(one for _, one in running.values())):
                        other.close()
                    return _become(request, before, by_imports, str(folder / "python"))
                for descriptor in request[3]:
                    os.close(descriptor)
                process = os.pidfd_open(pid)
                running[process] = running[client.fileno()] = (pid, client)
                selector.register(process, selectors.EVENT_READ)
                selector.register(client, selectors.EVENT_READ)
                continue
            descriptor = key.fd
            if descriptor not in running:
                continue
            pid, client = running[descriptor]
            if descriptor == client.fileno():
                if number := client.recv(1):  # a signal that was meant for the program
                    _kill(pid, number[0])
                else:  # the client was killed, and the program is with it
                    selector.unregister(client)
                    _kill(pid, signal.SIGKILL)
                continue
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            selector.unregister(descriptor)
            if client in {entry.fileobj for entry in selector.get_map().values()}:
                selector.unregister(client)
                client.sendall(struct.pack("i", status))
            del running[descriptor], running[client.fileno()]
            client.close()
            os.close(descriptor)


def _import() -> None:
    """Unsloth before all, as it demands, then what the programs import: every module of the package, and some libraries."""
    import pipeline
    from pipeline.core.versions import import_unsloth

    import_unsloth()
    for name in (*ALSO, *(module.name for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."))):
        if not name.endswith("__main__"):
            importlib.import_module(name)


def _forkable() -> None:
    """What a fork would break must not have begun: of threads there is this one (and jemalloc's, which is made for forks)."""
    tasks = {path.name: (path / "comm").read_text().strip() for path in Path("/proc/self/task").iterdir()}
    others = [name for task, name in tasks.items() if task != str(os.getpid()) and name != "jemalloc_bg_thd"]
    if others:
        raise RuntimeError(f"importing has started threads: {others}")


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _request(client: socket.socket) -> tuple[list[str], str, dict[str, str], list[int]]:
    head, descriptors, _, _ = socket.recv_fds(client, 4, 3)
    size, text = struct.unpack("i", head)[0], b""
    while len(text) < size:
        text += client.recv(size - len(text))
    arguments, folder, environment = json.loads(text)
    return arguments, folder, environment, descriptors


def _become(request: Any, before: dict[str, str], by_imports: dict[str, str], interpreter: str) -> list[str]:
    """Make of the fork what a new process would be; a program that may not be forked becomes one."""
    arguments, folder, environment, descriptors = request
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.setsid()
    os.chdir(folder)
    ours = before | by_imports
    other = [
        name
        for name in environment.keys() | before.keys()
        if name.startswith(AT_IMPORT)
        and name not in BUT
        and environment.get(name) not in (before.get(name), ours.get(name))
    ]
    unbuffered = arguments[:1] == ["-u"]
    program = arguments[unbuffered:]
    known = program and (program[0] in ("-m", "-c") or not program[0].startswith("-"))
    if other or not known:
        os.execve(sys.executable, [sys.executable, *arguments], environment)
    os.environ.clear()
    os.environ.update(environment | {name: value for name, value in by_imports.items() if name not in environment})
    sys.executable = interpreter
    if unbuffered:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    sys.path[:0] = [
        part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part and part not in sys.path
    ]
    import random

    import numpy as np

    random.seed()
    np.random.seed()
    return program


def run(arguments: list[str]) -> None:
    """What ``python ARGUMENTS`` runs, as ``__main__``."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that a shell put into the background ignore it
    kind = arguments.pop(0)
    if kind == "-m":
        sys.argv, sys.path[0] = arguments, os.getcwd()
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[0] = ["-c", *arguments[1:]], ""
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = [kind, *arguments], str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


def finish(arguments: list[str]) -> None:
    """Run it and end as Python does, except that a big heap, shared with the server, is not taken down piece by piece."""
    try:
        run(arguments)
        code: Any = 0
    except SystemExit as stop:
        code = stop.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    program = serve(Path(sys.argv[1]))
    if program is not None:
        finish(program)
