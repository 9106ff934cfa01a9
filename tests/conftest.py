"""What several test modules share: the two tokenizers, and where the real data files lie.

transformers is imported inside the fixtures, so that modules that need neither (or need unsloth first) pay nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.chat_format import ChatFormat

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may reach a hub

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT / "../shared/data"
EMBEDDED_MODEL = ROOT / "models/embedded"


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
    from pipeline.chat_format import ChatFormat

    return ChatFormat(tokenizer)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public files; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data files at {SHARED_DATA}")
    return SHARED_DATA
