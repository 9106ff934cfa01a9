"""Any GGUF file to a model folder: the same logits, SentencePiece's own tokens, and nothing that was not compared."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.core.errors import UserError
from pipeline.core.files import file_sha256
from pipeline.model.hub import any_gguf, fetch, pieces

TEXT = st.text(
    st.one_of(st.sampled_from("thesun rai,12345+=ab\n"), st.characters(exclude_categories=["Cs"])), max_size=40
)


@pytest.fixture(scope="module")
def converted(gemma: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    any_gguf.convert_file(gemma.file, folder)
    return folder


@functools.cache
def loaded(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_the_logits_are_those_of_the_model_that_the_file_was_made_of(gemma: Any, converted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    ids = torch.tensor([[2, 17, 200, 5, 5, 90, 41]])
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, gemma.model(ids).logits, atol=1e-4)
    assert AutoModelForCausalLM.from_pretrained(converted).dtype == torch.bfloat16  # as it is stored
    assert not hasattr(model.config, "quantization_config")


def test_the_special_tokens_are_the_files(converted: Path) -> None:
    tokenizer, model = loaded(converted), AutoModelForCausalLM.from_pretrained(converted)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<eos>", "<pad>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 1
    assert tokenizer("sun")["input_ids"][0] == 2  # the file says that a text begins with bos
    assert tokenizer.decode(tokenizer("<start_of_turn>user\nHi<end_of_turn>\n")["input_ids"][1:]) == (
        "<start_of_turn>user\nHi<end_of_turn>\n"
    )


@given(text=TEXT)
def test_the_tokens_are_sentencepieces_own(gemma: Any, converted: Path, text: str) -> None:
    rebuilt = loaded(converted)
    ids = rebuilt(text, add_special_tokens=False)["input_ids"]
    assert ids == gemma.original.encode(text)
    assert rebuilt.decode(ids) == text


@functools.cache
def with_a_blank_before(path: Path) -> tuple[Any, Any]:
    """The tokenizer of a file that says so, as Llama 2's does, and SentencePiece's."""
    import tiny_gemma

    original = tiny_gemma.sentencepiece_model(prefix=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    tiny_gemma.add_tokenizer(writer, original, prefix=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return pieces.tokenizer(pieces.opened(path)), original


@given(text=TEXT.filter(lambda text: "\n" not in text))
def test_a_blank_before_the_text(gemma: Any, tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    rebuilt, original = with_a_blank_before(gemma.file.with_name("prefix.gguf"))
    ids = rebuilt(text, add_special_tokens=False)["input_ids"]
    assert ids == original.encode(text)
    assert rebuilt.decode(ids) == text


# --- fetch NAME --from FILE.gguf ----------------------------------------------------------------------------------------


def agreed(file: Path, folder: Path) -> dict[str, Any]:
    assert (folder / "model.safetensors").is_file() and file.is_file()
    return {"tokens": 3}


def test_a_file_becomes_a_folder_once(gemma: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(shutil.copy(gemma.file, tmp_path / "mine.gguf"))
    folder, record, new = fetch.fetch("mine", tmp_path / "mine", str(file), verify=agreed)
    assert new and record["from"] == "gguf" and record["licence"] == "gemma" and record["title"] == "Tiny Gemma"
    assert record["gguf_sha256"] == file_sha256(file) and record["as_llama_cpp"] == {"tokens": 3}
    assert "mine: licence gemma; 0 MB from" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.gguf"]  # nothing else is left
    assert fetch.fetch("mine", folder, str(file), verify=agreed) == (folder, record, False)
    assert fetch.fetch("mine", folder) == (folder, record, False)
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(UserError, match="holds mine from gguf"):
        fetch.fetch("mine", folder, str(file), verify=agreed)


def test_a_file_without_an_ending_is_known_by_its_first_bytes(gemma: Any, tmp_path: Path) -> None:
    blob = Path(shutil.copy(gemma.file, tmp_path / "sha256-5fd3"))
    assert fetch.fetch("mine", tmp_path / "mine", str(blob), verify=agreed)[1]["from"] == "gguf"
    blob.write_bytes(b"GIF8")
    with pytest.raises(UserError, match="--from .*sha256-5fd3' is not known"):
        fetch.fetch("other", tmp_path / "other", str(blob), verify=agreed)


def test_what_is_not_the_same_model_is_not_kept(gemma: Any, tmp_path: Path) -> None:
    def other(file: Path, folder: Path) -> dict[str, Any]:
        raise UserError("not the same")

    with pytest.raises(UserError, match="not the same"):
        fetch.fetch("mine", tmp_path / "mine", str(gemma.file), verify=other)
    assert list(tmp_path.iterdir()) == []
    partial = tmp_path / ".mine.gguf.partial"
    partial.mkdir()
    (partial / "chat_template.jinja").write_text("of another file, whose conversion was stopped")
    folder, record, new = fetch.fetch("mine", tmp_path / "mine", str(gemma.file), verify=agreed)
    assert new and "chat_template.jinja" not in record["files"] and list(tmp_path.iterdir()) == [folder]
    with pytest.raises(ValueError, match="has to be compared"):
        fetch.fetch("mine", tmp_path / "again", str(gemma.file))


@pytest.mark.parametrize(
    ("name", "file", "revision", "words"),
    [
        ("mine", "none.gguf", None, "there is no such file"),
        ("some/one", "{file}", None, "needs a short name, without a slash"),
        ("mine", "{file}", "main", "--revision is for a hub; a file has one version"),
    ],
)
def test_what_cannot_be_asked(
    gemma: Any, tmp_path: Path, name: str, file: str, revision: str | None, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        fetch.fetch(name, tmp_path / "out", file.format(file=gemma.file), revision, agreed)
    assert not (tmp_path / "out").exists()


def test_half_a_file(gemma: Any, tmp_path: Path) -> None:
    data = gemma.file.read_bytes()
    for size in (0, 10, len(data) // 2):
        (tmp_path / "half.gguf").write_bytes(data[:size])
        with pytest.raises(UserError, match="is no whole GGUF file"):
            fetch.fetch("mine", tmp_path / "out", str(tmp_path / "half.gguf"), verify=agreed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "granite"}, "transformers cannot read .*granite is not supported"),
        ({"scaling": gguf.RopeScalingType.LINEAR}, r"scales its rotation for long texts \(linear\)"),
        ({"tables": ["rope_freqs.weight"]}, r"scales its rotation for long texts \(rope_freqs.weight\)"),
        ({"without": ("model.layers.1.mlp.up_proj.weight",)}, "lacks weights .*: model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_models_that_cannot_be_read(gemma: Any, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    import tiny_gemma

    file = tiny_gemma.write_gguf(tmp_path / "x.gguf", gemma.model, gemma.original, **changes)
    with pytest.raises(UserError, match=words):
        any_gguf.convert_file(file, tmp_path / "out")


def test_a_rotation_that_is_said_not_to_be_scaled(gemma: Any, tmp_path: Path) -> None:
    import tiny_gemma

    none = gguf.RopeScalingType.NONE
    any_gguf.convert_file(
        tiny_gemma.write_gguf(tmp_path / "x.gguf", gemma.model, gemma.original, scaling=none), tmp_path
    )
    assert (tmp_path / "model.safetensors").is_file()


def test_a_tokenizer_of_another_kind(tmp_path: Path) -> None:
    for model, pre, words in (
        ("bert", "default", "is of the kind 'bert'"),
        ("gpt2", "tekken", "cuts text in the way 'tekken'; what can be rebuilt here: .*llama-bpe, qwen2"),
    ):
        writer = gguf.GGUFWriter(tmp_path / f"{model}.gguf", "llama")
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(["a", "b", "ab"])
        writer.add_token_merges(["a b"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(UserError, match=words):
            pieces.tokenizer(pieces.opened(tmp_path / f"{model}.gguf"))
