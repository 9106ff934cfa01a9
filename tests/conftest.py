"""What several test modules share: tokenizers, real data files, a warm Python, and a tiny trained run.

transformers is imported inside the fixtures, so that modules that need neither (or need unsloth first) pay nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import hypothesis
import pytest
import warm
from examples import PROFILE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

    from pipeline.data.chat_format import ChatFormat

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may reach a hub
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # there is a worker a core, and matrices this small gain nothing by threads
ENVIRONMENT = dict(os.environ)  # before libraries that are imported here add to it
WARM = "TESTS_WARM_PYTHON"  # the interpreter of the server that all workers share
FORKS = hasattr(os, "pidfd_open")
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(PROFILE)

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT / "../shared/data"
EMBEDDED_MODEL = ROOT / "models/embedded"


def pytest_configure(config: pytest.Config) -> None:
    """One warm server for all workers, which begins while they collect; a run without workers starts it when it is needed."""
    if FORKS and WARM not in os.environ and getattr(config.option, "numprocesses", None):
        stack = contextlib.ExitStack()
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="warm"))
        os.environ[WARM] = str(stack.enter_context(warm.serving(Path(folder), ROOT, ENVIRONMENT)))
        config.add_cleanup(stack.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first, dealt to both halves of the list, with which two workers begin."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    files = sorted(dict.fromkeys(item.path for item in items), key=lambda path: -slow[path])
    place = {path: number for number, path in enumerate(files[::2] + files[1::2])}
    items.sort(key=lambda item: place[item.path])


def _load(path: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="session")
def embedded_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the embedded model, as it is shipped."""
    return _load(EMBEDDED_MODEL)


@pytest.fixture(scope="session")
def qwen3_tokenizer() -> PreTrainedTokenizerBase:
    """The published Qwen3 tokenizer; skips where it is not at hand."""
    path = SHARED_DATA / "qwen3_tokenizer"
    if not (path / "tokenizer_config.json").is_file():
        pytest.skip(f"the real Qwen3 tokenizer is not at {path}")
    return _load(path)


@pytest.fixture(scope="session", params=["embedded", "qwen3"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Both tokenizers in turn."""
    return request.getfixturevalue(f"{request.param}_tokenizer")


@pytest.fixture(scope="session")
def chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """A ``ChatFormat`` on each of the two tokenizers."""
    from pipeline.data.chat_format import ChatFormat

    return ChatFormat(tokenizer)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public files; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data files at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The variables that the tests were started with, for programs: without what libraries have added since."""
    return dict(ENVIRONMENT)


@pytest.fixture(scope="session")
def warm_python() -> Iterator[str]:
    """An interpreter whose programs are forked from one that has imported everything (see warm.py); else the real one."""
    if not FORKS:
        yield sys.executable
        return
    with contextlib.ExitStack() as stack:
        interpreter = Path(os.environ.get(WARM, ""))
        if WARM not in os.environ:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="warm"))  # a short path: it names a socket
            interpreter = stack.enter_context(warm.serving(Path(folder), ROOT, ENVIRONMENT))
        warm.wait(interpreter)
        yield str(interpreter)


@pytest.fixture(scope="session")
def pipeline_command(warm_python: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``python -m pipeline ARGUMENTS`` in a process of its own, which has to end with ``code``.

    ``fresh``: by the real Python, which imports everything anew.
    """

    def call(
        *arguments: str,
        sets: Sequence[str] = (),
        code: int = 0,
        environment: Mapping[str, str] = {},
        fresh: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        words = [part for text in sets for part in ("--set", text)]
        result = subprocess.run(
            [sys.executable if fresh else warm_python, "-m", "pipeline", *arguments, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
            env={**ENVIRONMENT, **environment},
        )
        assert result.returncode == code, result.stderr[-3000:]
        return result

    return call


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """``once(name, make)``: a folder that ``make`` fills, once for all workers. Who changes something there takes a copy."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path, done = root / "once" / name, root / "once" / f"{name}.done"
        path.parent.mkdir(exist_ok=True)
        with filelock.FileLock(path.parent / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                make(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def tiny_run(once: Callable[..., Path], pipeline_command: Callable[..., subprocess.CompletedProcess[str]]) -> Path:
    """A whole run of the embedded profile with ``tiny.SETTINGS``, by the real Python; not to be changed.

    Its temporary files go into ``tmp`` beside the folder, and what it printed into ``console.txt``.
    """
    from tiny import SETTINGS

    def make(path: Path) -> None:
        temporary = path.with_name("tmp")
        temporary.mkdir(exist_ok=True)
        own = {"TMPDIR": str(temporary)}
        done = pipeline_command("run", "--output-dir", str(path), sets=SETTINGS, fresh=True, environment=own)
        path.with_name("console.txt").write_text(done.stdout + done.stderr)

    return once("run", make)


@pytest.fixture(scope="session")
def tiny_qwen3(embedded_tokenizer: PreTrainedTokenizerBase) -> Callable[..., Qwen3ForCausalLM]:
    """An untrained model of two layers with the embedded tokenizer's vocabulary, in float32: (seed, other settings)."""

    def make(seed: int, **changes: Any) -> Qwen3ForCausalLM:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(seed)
        shape: dict[str, Any] = {
            "vocab_size": 1024,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "eos_token_id": embedded_tokenizer.eos_token_id,
            "bos_token_id": None,
        }
        return Qwen3ForCausalLM(Qwen3Config(**(shape | changes))).float()

    return make
