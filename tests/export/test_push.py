"""``--push``: says what it would send, sends it only when told to, and lets no token out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.export import push


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "README.md").write_text("card")
    (tmp_path / "merged" / "model.safetensors").write_bytes(b"0" * 2**20)
    return tmp_path / "merged"


def test_plan_names_repositories_and_files(folder: Path) -> None:
    (entry,) = push.plan_push({"merged": folder}, "huggingface", "me/model")
    assert entry["repository"] == "me/model" and entry["files"] == {"README.md": 4, "model.safetensors": 2**20}
    two = push.plan_push({"merged": folder, "int8_dynamic": folder}, "modelscope", "me/model")
    assert [entry["repository"] for entry in two] == ["me/model-merged", "me/model-int8-dynamic"]
    text = push.plan_text([entry], sent=False)
    assert "would send 2 files, 1.0 MiB, to Hugging Face, me/model (private)" in text and "nothing was sent" in text
    assert "nothing was sent" not in push.plan_text([entry], sent=True)


@pytest.mark.parametrize("name", ["model", "me/", "/model", "me/model/x", "me/mo del", "../model"])
def test_a_name_that_is_none_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="--repo needs OWNER/NAME"):
        push.plan_push({"merged": folder}, "huggingface", name)


def test_a_folder_without_a_card_is_not_sent(folder: Path) -> None:
    (folder / "README.md").unlink()
    with pytest.raises(UserError, match="has no model card"):
        push.plan_push({"merged": folder}, "huggingface", "me/model")


def test_no_token_and_no_network_are_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = push.plan_push({"merged": folder}, "huggingface", "me/model")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="Set the environment variable HF_TOKEN"):
        push.push(entries)
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_test")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(UserError, match="cannot be reached") as error:
        push.push(entries)
    assert "hf_secret" not in str(error.value)


def test_what_a_hub_says_is_shown_without_the_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_secret_of_the_test"
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(push, "require_hub", lambda *_: None)
    (folder / "README.md").write_text(f"made with {token}")
    sent: list[Any] = []

    def refuse(*arguments: str) -> None:
        sent.append(arguments)
        raise OSError(f"403 for https://me:{token}@hub/x?token={token}")

    monkeypatch.setattr(push, "_send", refuse)
    with pytest.raises(UserError, match="Hugging Face does not take me/model: 403") as error:
        push.push(push.plan_push({"merged": folder}, "huggingface", "me/model"))
    assert token not in str(error.value) and error.value.__cause__ is None
    assert sent == [("huggingface", "me/model", str(folder), token)]
    assert (folder / "README.md").read_text() == "made with ***"
