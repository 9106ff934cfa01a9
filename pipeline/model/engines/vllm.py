"""The engine that starts ``vllm serve`` for an evaluation, asks it as any server, and stops it.

vLLM pins its own torch, so it lives in an environment of its own: ``evaluation.vllm.executable`` is the path to it, or ``uvx``,
which makes one. It listens on this machine alone, with a key that is made up for the occasion.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.model.engines import guard
from pipeline.model.engines.base import PromptIds
from pipeline.model.engines.server import ServerEngine, server_engine
from pipeline.settings import Profile, VllmSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE, TUNED = "base", "tuned"  # what the server calls them
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes (vllm/config/lora.py)
SERVED = ("lora", "qlora", "rslora")  # methods whose adapter vLLM can put on a base
_TAIL = 15  # lines of its log in a message
_CAUSE = re.compile(r"\b[A-Z]\w*(?:Error|Exception): .*")
# Of this environment, they would lead vLLM's own Python astray.
NOT_FOR_IT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP")


def require_served(profile: Profile) -> None:
    """Raises: UserError: vLLM cannot answer for the method of this profile, or is not there."""
    method = profile.chosen_method
    if method not in (*SERVED, "full"):
        raise UserError(
            f"evaluation.engine=vllm: vLLM puts LoRA adapters on a base, and cannot serve method {method}; "
            "set evaluation.engine=transformers."
        )
    command_of(profile.evaluation.vllm)


def command_of(settings: VllmSettings, named: str = "evaluation.vllm.executable") -> list[str]:
    """The beginning of the command line.

    Args:
        named: what a user sets the executable by, for the message.

    Raises:
        UserError: the executable is not there.
    """
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which(str(Path(settings.executable).expanduser()), path=beside)
    if found is None:
        raise UserError(
            f"{named}: {settings.executable!r} is not there, or no program. Make an environment for it "
            "(python -m venv DIR && DIR/bin/pip install vllm; without a GPU see docs/serving.md) and give DIR/bin/vllm; "
            "or give uvx, which makes one by itself."
        )
    if Path(found).stem == "uvx":
        package = f"vllm=={settings.version}" if settings.version else "vllm"
        return [found, "--from", package, "vllm", "serve"]
    return [found, "serve"]


def serve_arguments(profile: Profile, location: str, adapter: Path | None, positions: int | None) -> list[str]:
    """What ``vllm serve`` is told: the model, our prompts' room, the adapter, and the precision that training had.

    Args:
        location: the base's folder or hub name.
        adapter: a run's ``adapter``, on the base; of method ``full``, the model itself.
        positions: of the model, where they are known.
    """
    settings, sampling = profile.evaluation.vllm, profile.evaluation.sampling
    whole = adapter is not None and profile.chosen_method == "full"
    longest = profile.model.max_seq_length + max(sampling.thinking.max_new_tokens, sampling.non_thinking.max_new_tokens)
    arguments = [
        str(adapter) if whole else location,
        *("--served-model-name", TUNED if whole else BASE),
        *("--max-model-len", str(min(longest, positions) if positions else longest)),
        *("--seed", str(profile.evaluation.seed)),
        *("--dtype", settings.dtype),
    ]
    if profile.model.revision and not whole:
        arguments += ["--revision", profile.model.revision]
    if profile.model.load_in_4bit and settings.quantization == "auto":
        arguments += ["--quantization", "bitsandbytes"]
    if adapter is not None and not whole:
        rank = next((rank for rank in RANKS if rank >= profile.lora.rank), RANKS[-1])
        arguments += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{TUNED}={adapter}"]
    return [*arguments, *settings.arguments]


@contextmanager
def vllm_engine(
    profile: Profile,
    location: str,
    adapter: Path | None,
    positions: int | None,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: PromptIds,
    log: Path,
) -> Iterator[ServerEngine]:
    """The engine of a server that lives as long as the block.

    Args:
        adapter: of the tuned model; None: the base answers.
        log: the file that gets what vLLM prints.

    Raises:
        UserError: it does not start or is not ready in time, with the end of its log; as ``server_engine``.
    """
    require_served(profile)
    port, key = _free_port(), secrets.token_urlsafe(24)
    command = [*command_of(profile.evaluation.vllm), *serve_arguments(profile, location, adapter, positions)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    name = BASE if adapter is None else TUNED
    url = f"http://127.0.0.1:{port}"
    told = profile.evaluation.server.told(profile.model.chat_template_kwargs)
    server = told.model_copy(update={"url": f"{url}/v1", "kind": "vllm"})
    with _running(command, key, log) as process:
        say(f"starting vLLM for the {name} model; its log is {log}")
        _wait_until_ready(process, f"{url}/health", profile.evaluation.vllm.startup_s, log)
        try:
            with server_engine(server, name, tokenizer, prompt_ids, key) as engine:
                engine.identity = {"engine": "vllm", "quantization": profile.evaluation.vllm.quantization}
                yield engine
        except UserError as error:
            with suppress(subprocess.TimeoutExpired):
                process.wait(2)  # the guard takes a moment to see that it has ended
            if process.returncode is None:
                raise
            raise UserError(
                f"vLLM ended while it was asked (exit status {process.returncode}). {_end_of(log)}\nWhat has been answered is "
                "stored; run again with --resume to ask only for the rest."
            ) from error


@contextmanager
def _running(command: list[str], key: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {name: value for name, value in os.environ.items() if name not in NOT_FOR_IT}
    environment["VLLM_API_KEY"] = key  # not on the command line, where every user of the machine could read it
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, str(guard.__file__), *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us
        )
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the guard ends the whole group
            try:
                process.wait(guard.PATIENCE_SECONDS + 10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, seconds: float, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"vLLM ended before it was ready (exit status {process.returncode}). {_end_of(log)}")
        try:
            with opener.open(url, timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.5)
    raise UserError(
        f"vLLM was not ready within {seconds:g} s (evaluation.vllm.startup_s); the first start downloads and compiles. "
        f"{_end_of(log)}"
    )


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines:
        return f"Its log {log} is empty."
    end = "\n".join(lines[-_TAIL:])
    # What it says on its way out may be longer than the tail; "EngineDeadError" only says that there was a reason.
    causes = [found.group() for line in lines if (found := _CAUSE.search(line)) and "EngineDead" not in line]
    if not causes or causes[-1] in end:
        return f"The end of its log {log}:\n{end}"
    return f"It said: {causes[-1]}\nThe end of its log {log}:\n{end}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
