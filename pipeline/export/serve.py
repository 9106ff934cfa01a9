"""Start a server that exists on what was exported: ``transformers serve``, vLLM, or llama.cpp's; no server of our own.

In: a run. Out: an OpenAI-compatible address, until the process is told to stop. Only this machine can reach it unless another
host is asked for, and then only with a key. docs/serving.md says what each engine calls the switch between the modes.
"""

from __future__ import annotations

import http.client
import importlib.util
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.export.export import Options, context_of, export, exported
from pipeline.export.processes import READY_SECONDS, end, last_words
from pipeline.export.requirements import require_packages
from pipeline.export.source import Source, base_location, open_source
from pipeline.model.engines.vllm import NOT_FOR_IT, RANKS, SERVED, command_of

ENGINES = ("transformers", "vllm", "llama.cpp")
KEY = "SERVE_API_KEY"  # the environment variable with the key
_SERVING = {"fastapi": "transformers[serving]", "uvicorn": "transformers[serving]"}


@dataclass(frozen=True)
class Serving:
    """What a server is started with. ``context``: tokens of prompt and reply; ``parallel``: requests at a time."""

    engine: str
    host: str = "127.0.0.1"
    port: int = 8000
    gguf: str = "q8_0"
    context: int | None = None
    parallel: int = 4
    threads: int | None = None  # that compute, in llama.cpp; None: as llama_server chooses
    vllm: str | None = None  # its executable, in an environment of its own; None: the one of the run's profile
    also: tuple[tuple[str, Path], ...] = ()  # name and run of further adapters on the same base


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_installed(engine: str) -> None:
    """Raise ``UserError`` with the exact command where an engine is not installed; for vLLM ``vllm_program`` does."""
    if engine not in ENGINES:
        raise UserError(f"There is no engine {engine!r}; engines: {', '.join(ENGINES)}.")
    if engine == "llama.cpp":
        require_packages("llama.cpp's server", "xllamacpp")
        return
    lacking = sorted({package for module, package in _SERVING.items() if importlib.util.find_spec(module) is None})
    if engine == "transformers" and lacking:
        raise UserError(f"{engine} is not installed: {sys.executable} -m pip install '{lacking[0]}'")


def vllm_program(serving: Serving, source: Source) -> list[str]:
    """The beginning of vLLM's command line: the program that was given, else the one of the run's profile.

    Raises:
        UserError: it is not there, with how to install it.
    """
    settings = source.profile.evaluation.vllm
    given = {} if serving.vllm is None else {"executable": serving.vllm}
    return command_of(settings.model_copy(update=given), "--vllm" if given else "evaluation.vllm.executable")


def require_place(serving: Serving) -> None:
    """Raise ``UserError`` where the port is taken, or the host is open to others without a key."""
    if not is_loopback(serving.host):
        if serving.engine == "transformers":
            raise UserError(
                f"transformers serve knows no keys, so it may not listen on {serving.host}; take --engine vllm or llama.cpp, or "
                "leave --host out."
            )
        if not os.environ.get(KEY, "").strip():
            raise UserError(
                f"--host {serving.host} is reached by others: set the environment variable {KEY} to the key that they need."
            )
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((serving.host, serving.port))
        except OSError as error:
            raise UserError(
                f"{serving.host}:{serving.port} cannot be used ({error.strerror}); choose another --port or --host."
            ) from error


def adapters_of(serving: Serving, source: Source) -> dict[str, Source]:
    """Name → run of every adapter that is to be put on the base; none where one run alone is served.

    Raises:
        UserError: the engine has no adapters by name; a name stands there twice; an unfinished run; an adapter of another
            base, or of a method that vLLM does not know.
    """
    if not serving.also:
        return {}
    if serving.engine != "vllm":
        raise UserError(
            f"{serving.engine} knows no adapters by the model's name; take --engine vllm, or start a server for each run "
            "on a port of its own."
        )
    found = {"tuned": source}
    for name, run in serving.also:
        if name in found or name == "base":
            raise UserError(f"--also {name}=…: that name is taken; base and tuned are the base and the run itself.")
        found[name] = open_source(run)
    for name, other in found.items():
        if other.method not in SERVED:
            raise UserError(
                f"{other.folder}: vLLM puts LoRA adapters on a base, and cannot serve method {other.method}."
            )
        if other.record["base"] != source.record["base"]:
            raise UserError(
                f"--also {name}={other.folder}: that adapter belongs to another base than {source.folder}'s."
            )
    return found


def _with_adapters(adapters: Mapping[str, Source]) -> list[str]:
    """vLLM's arguments: the base, and the adapters on it by name."""
    source = adapters["tuned"]
    needed = max(adapter.profile.lora.rank for adapter in adapters.values())
    rank = next((rank for rank in RANKS if rank >= needed), RANKS[-1])
    words = [base_location(source.profile.model), "--served-model-name", "base"]
    if source.profile.model.revision:
        words += ["--revision", source.profile.model.revision]
    template = source.adapter / "chat_template.jinja"
    words += ["--chat-template", str(template.resolve())] if template.exists() else []
    # One place more than there are adapters: vLLM 0.32 on a processor gives a request to the base the index -1, which is the last
    # place (vllm/lora/ops/torch_ops/lora_ops.py). An empty one adds nothing; otherwise the last adapter would answer.
    places = str(len(adapters) + 1)
    words += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", places, "--lora-modules"]
    return [*words, *(f"{name}={adapter.adapter.resolve()}" for name, adapter in adapters.items())]


def command(serving: Serving, source: Source, name: str, weights: Path | None) -> list[str]:
    """The engine's own command line; a key goes by the environment, where no list of processes shows it.

    Args:
        weights: exported ones; None: the base with adapters on it (``serving.also``).
    """
    host, port = ["--host", serving.host], ["--port", str(serving.port)]
    context = str(serving.context or context_of(source))
    if serving.engine == "llama.cpp":
        module = [sys.executable, "-m", "pipeline.export.llama_server", str(weights), "--name", name]
        key = ["--key-env", KEY] if os.environ.get(KEY, "").strip() else []
        threads = [] if serving.threads is None else ["--threads", str(serving.threads)]
        return [*module, *host, *port, "--context", context, "--parallel", str(serving.parallel), *threads, *key]
    if serving.engine == "vllm":
        module = vllm_program(serving, source)
        if weights is None:
            module += _with_adapters(adapters_of(serving, source))
        else:
            module += [str(weights), "--served-model-name", name]
        limits = ["--max-model-len", context, "--max-num-seqs", str(serving.parallel)]
        return [*module, *host, *port, *limits, "--reasoning-parser", "qwen3"]
    run = "from transformers.cli.transformers import main; main()"
    return [sys.executable, "-c", run, "serve", str(weights), *host, *port]


def weights_of(source: Source, serving: Serving, folder: Path) -> Path:
    """The exported weights that the engine loads; exported now, unchecked, where they are not there yet."""
    target = "gguf" if serving.engine == "llama.cpp" else "merged"
    found = exported(source, folder).get(target)
    wanted = (
        None if found is None else found if target == "merged" else next(found.glob(f"*-{serving.gguf}.gguf"), None)
    )
    if wanted is None:
        say(f"{target} was not exported yet; doing that first, without its check (export --to {target} makes it)")
        export(source.folder, [target], folder, Options(prompts=0, gguf_types=(serving.gguf,)))
        path = folder / target
        return path if target == "merged" else next(path.glob(f"*-{serving.gguf}.gguf"))
    return wanted


def serve(run: Path, serving: Serving, folder: Path, ready: Callable[[str, str], object]) -> int:
    """Start the engine, wait until it is ready, and stop it when this process is told to (SIGINT, SIGTERM).

    Args:
        folder: of the run's exports. ready: called with the address and the model's name once it answers.

    Returns:
        0 when it was told to stop.

    Raises:
        UserError: not installed, port in use, no key, an unfinished run; the engine ended by itself, with its last words.
    """
    require_installed(serving.engine)
    require_place(serving)
    source = open_source(run)
    if serving.engine == "vllm":
        vllm_program(serving, source)
    weights = None if adapters_of(serving, source) else weights_of(source, serving, folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = str(weights) if serving.engine == "transformers" else "tuned"  # transformers serve knows folders only
    log = folder / f"serve-{serving.engine}.txt"
    environment = dict(os.environ)
    if serving.engine == "vllm":
        environment = {name: value for name, value in environment.items() if name not in NOT_FOR_IT}
        if environment.get(KEY, "").strip():
            environment["VLLM_API_KEY"] = environment[KEY]
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    with log.open("wb") as words:
        process = subprocess.Popen(
            command(serving, source, name, weights),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which ends the engine in order
            text=True,
        )
    try:
        if wait_ready(serving, process, stop, log):
            ready(f"http://{serving.host}:{serving.port}/v1", name)
        while not stop.wait(0.2):
            if process.poll() is not None:
                raise UserError(f"{serving.engine} ended by itself: {last_words(log)} (all of it: {log})")
        return 0
    finally:
        end(process)
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_ready(serving: Serving, process: subprocess.Popen[str], stop: threading.Event, log: Path) -> bool:
    """Wait until the engine says that it is ready; False: this process was told to stop meanwhile.

    Raises:
        UserError: it ended, or took too long.
    """
    deadline = time.monotonic() + READY_SECONDS
    while not stop.wait(0.2):
        if process.poll() is not None:
            raise UserError(f"{serving.engine} does not start: {last_words(log)} (all of it: {log})")
        connection = http.client.HTTPConnection(serving.host, serving.port, timeout=2)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return True
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        if time.monotonic() > deadline:
            raise UserError(
                f"{serving.engine} is not ready after {READY_SECONDS:.0f} s: {last_words(log)} (log: {log})"
            )
    return False
