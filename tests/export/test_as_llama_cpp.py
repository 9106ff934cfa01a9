"""A folder that was made of a GGUF file is compared with llama.cpp's reading of that file."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import tiny_llama

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.export.as_llama_cpp import same_model
from pipeline.model.hub import any_gguf, pieces

pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (requirements-export.txt)")
tiny_gemma = pytest.importorskip("tiny_gemma", reason="SentencePiece is not installed (requirements-cpu.txt)")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> tiny_gemma.TinyGemma:
    return tiny_gemma.make(tmp_path_factory.mktemp("tiny_gemma"))


def test_by_the_command(
    gemma: tiny_gemma.TinyGemma, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["models", "fetch", "mine", "--from", str(gemma.file), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == "outputs/models/mine" and found["new"] and found["from"] == "gguf"
    assert found["as_llama_cpp"]["same_top"] == 1 and found["as_llama_cpp"]["difference"] < 0.005
    assert found["as_llama_cpp"]["tokens"] > 400
    assert main(command[:-1]) == 0
    said = capsys.readouterr().out
    assert "(was there already)" in said and "tokens of the sample texts are the same" in said


def test_faults_are_found(gemma: tiny_gemma.TinyGemma, tmp_path: Path) -> None:
    right = tmp_path / "right"
    any_gguf.convert_file(gemma.file, right)
    assert same_model(gemma.file, right)["difference"] < 0.005

    scaled = Path(shutil.copytree(right, tmp_path / "scaled"))
    config = json.loads((scaled / "config.json").read_text())
    (scaled / "config.json").write_text(json.dumps(config | {"query_pre_attn_scalar": 16}))
    with pytest.raises(UserError, match="is not the model in it: its probabilities .* nats from those of llama.cpp"):
        same_model(gemma.file, scaled)

    swapped = Path(shutil.copytree(right, tmp_path / "swapped"))
    tokenizer = json.loads((swapped / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["s"], vocabulary["n"] = (
        vocabulary["n"],
        vocabulary["s"],
    )  # the text comes back from these tokens all the same
    (swapped / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="The tokenizer made of tiny.gguf is not the one in it: of .* for llama.cpp"):
        same_model(gemma.file, swapped)


@pytest.mark.parametrize("cut", sorted({pieces.GPT2, *pieces.DIGITS_ALONE, *pieces.SPLITS}))
def test_each_way_to_cut_text_is_llama_cpps(tmp_path: Path, cut: str) -> None:
    tiny = tiny_llama.make(tmp_path)
    tokenizer, model = tiny.tokenizer, tiny.model
    file = tiny_llama.write_gguf(tmp_path / "x.gguf", model, tokenizer, pre=cut, bos=tokenizer.bos_token_id)
    any_gguf.convert_file(file, tmp_path / "out")
    assert same_model(file, tmp_path / "out")["same_top"] == 1


def test_without_llama_cpp_nothing_is_begun(
    gemma: tiny_gemma.TinyGemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else find(name))
    command = ["models", "fetch", "mine", "--from", str(gemma.file), "--output-dir", str(tmp_path / "out")]
    assert main(command) == 2
    assert "with llama.cpp needs packages that are not installed (xllamacpp)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
