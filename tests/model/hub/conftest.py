"""The tiny llama model, made once for all modules here."""

from __future__ import annotations

import pytest
import tiny_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tiny_llama.Tiny:
    """Nothing in it is to be changed."""
    return tiny_llama.make(tmp_path_factory.mktemp("tiny_llama"))
