"""The tiny models, made once for all modules here."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tiny_llama.Tiny:
    """Nothing in it is to be changed."""
    return tiny_llama.make(tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny Gemma 3, from ``tiny_gemma``. Nothing in it is to be changed."""
    pytest.importorskip("sentencepiece", reason="SentencePiece is not installed (requirements-cpu.txt)")
    import tiny_gemma

    return tiny_gemma.make(tmp_path_factory.mktemp("tiny_gemma"))
