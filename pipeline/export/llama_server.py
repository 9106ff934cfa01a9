"""llama.cpp's own HTTP server in a process: ``python -m pipeline.export.llama_server FILE``.

The server is llama.cpp's (OpenAI's protocol, streaming, a queue over its slots), in xllamacpp's build. When it is ready a line
of JSON on standard output says where it listens; it ends with SIGTERM, SIGINT, or the end of its standard input (``--follow``).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

SMALL = 64 * 2**20  # bytes of weights, below which one thread computes


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    found = argparse.ArgumentParser(prog="python -m pipeline.export.llama_server")
    found.add_argument("file", help="a GGUF file")
    found.add_argument("--host", default="127.0.0.1")
    found.add_argument("--port", type=int, default=0, help="0: any that is free")
    found.add_argument("--name", help="what the model is called")
    found.add_argument("--context", type=int, required=True, help="tokens of prompt and reply, for each request")
    found.add_argument("--parallel", type=int, default=4, help="requests at a time")
    found.add_argument("--threads", type=int, help="that compute (default: one for a small file, else every core)")
    found.add_argument("--max-tokens", type=int, default=-1, help="of a reply whose request names no limit")
    found.add_argument("--key-env", help="environment variable with the key that requests have to show")
    found.add_argument("--raw", action="store_true", help="leave the reasoning in the text")
    found.add_argument("--follow", action="store_true", help="end with standard input")
    return found


def threads_for(size: int) -> int:
    """Threads for a file of so many bytes.

    llama.cpp's threads meet at every operation and wait for each other by spinning. With a small model an operation takes
    microseconds, so a second thread gains nothing, and where another program has its core, every step waits for it: a token of
    the embedded model then takes 20 times as long (docs/serving.md).
    """
    return (
        1 if size < SMALL else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def settings(args: argparse.Namespace) -> Any:
    """llama.cpp's parameters."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.file
    params.model_alias = {args.name or "model"}
    params.hostnames, params.port = [args.host], args.port
    params.n_parallel, params.n_ctx = args.parallel, args.context * args.parallel
    threads = args.threads or threads_for(Path(args.file).stat().st_size)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_predict = args.max_tokens
    params.use_jinja, params.warmup, params.ui, params.fit_params = True, False, False, False
    params.ctx_shift = False  # a prompt beyond the context is an error, not a prompt without its beginning
    formats = xllamacpp.common_reasoning_format
    params.reasoning_format = (
        formats.COMMON_REASONING_FORMAT_NONE if args.raw else formats.COMMON_REASONING_FORMAT_DEEPSEEK
    )
    if args.key_env:
        params.api_keys = [os.environ[args.key_env]]
    return params


def main() -> int:
    """Serve until told to stop."""
    import xllamacpp

    args = parser().parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = xllamacpp.Server(settings(args))
    print(json.dumps({"address": server.listening_address}), flush=True)
    if args.follow:
        threading.Thread(target=_until_closed, args=(stop,), daemon=True).start()
    stop.wait()
    del server
    return 0


def _until_closed(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
