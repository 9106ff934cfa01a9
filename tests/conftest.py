"""What several test modules share: the two tokenizers, and where the real data files lie.

transformers is imported inside the fixtures, so that modules that need neither (or need unsloth first) pay nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

    from pipeline.data.chat_format import ChatFormat

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may reach a hub

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT / "../shared/data"
EMBEDDED_MODEL = ROOT / "models/embedded"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first: of several workers, none begins the longest file when the others are done."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


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
def pipeline_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``python -m pipeline ARGUMENTS`` in a process of its own, which has to end with ``code``."""

    def call(*arguments: str, sets: Sequence[str] = (), code: int = 0) -> subprocess.CompletedProcess[str]:
        words = [part for text in sets for part in ("--set", text)]
        result = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert result.returncode == code, result.stderr[-3000:]
        return result

    return call


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
