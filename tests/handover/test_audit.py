"""The audit by the real packages: TRL and Unsloth as they are here, the others by night, each in an environment of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from pipeline.cli.main import main
from pipeline.cli.schemas import schema_of
from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.handover import environments
from pipeline.handover.audit import (
    Asked,
    audit,
    json_text,
    last_words,
    parse_names,
    require_qwen3,
    shown_name,
    version_note,
)
from pipeline.handover.environments import interpreter
from pipeline.handover.frameworks import FRAMEWORKS, framework
from pipeline.handover.records import Audit, SettingAudit
from pipeline.handover.words import audit_page, audit_text, only_newline
from pipeline.model.load import load_data_tokenizer
from pipeline.settings import load_profile


@pytest.fixture(scope="module")
def trl() -> Audit:
    """TRL, in a process of its own by the real Python, without Unsloth's changes."""
    profile = load_profile("embedded", ["model.max_seq_length=1024"])
    return audit(profile, Asked({"trl": ["messages", "prompt_completion"]}, cases=True))


def kinds(setting: SettingAudit, source: str) -> set[str]:
    return {finding.kind for row in setting.rows if row.source == source for finding in row.findings}


@pytest.mark.slow
def test_trl(trl: Audit) -> None:
    messages, pairs = trl.settings
    assert not messages.error and not pairs.error
    assert messages.versions["trl"] and not messages.version_note
    assert messages.equal_rows == 0 and messages.framework_loss_tokens > messages.loss_tokens
    assert {"loss_on_prompt", "empty_block_in_loss"} <= kinds(messages, "non-thinking, one turn")
    assert "history_in_loss" in kinds(messages, "thinking, several turns")
    # Prompt and completion with the keywords of the mode: ours, but for a line break after the end.
    assert pairs.equal_loss_tokens == pairs.loss_tokens and all(only_newline(row) for row in pairs.rows)


@pytest.mark.slow
def test_the_page_shows_text_as_text(trl: Audit) -> None:
    page = audit_page(trl)
    assert "&lt;think&gt;" in page and "<think>" not in page and 'class="loss differs"' in page
    assert "http" not in page.replace("http-equiv", "")  # works offline
    plain, coloured = audit_text(trl, colour=False), audit_text(trl, colour=True)
    assert "\x1b" not in plain and "[[" in plain and "\x1b[1;32m" in coloured
    assert "loss_on_prompt: 8 rows" in plain


@pytest.mark.slow
def test_it_agrees_with_its_schema(trl: Audit) -> None:
    document = json.loads(json_text(trl))
    Draft202012Validator(schema_of("audit")).validate(document)
    assert Audit.model_validate(document) == trl


@pytest.mark.slow
def test_unsloth_by_command(
    warm_python: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["data", "audit", "--framework", "unsloth", "--rows", "2", "--environment", f"unsloth={warm_python}"]
    words += ["--recipe", "data_recipes/embedded.yaml"]
    assert main([*words, "--output-dir", str(tmp_path), "--json"]) == 0
    found = Audit.model_validate(json.loads(capsys.readouterr().out))
    notebook, responses, tokens = found.settings
    assert found.recipe == "embedded" and len(notebook.rows) == 4
    assert notebook.versions["unsloth"] and not notebook.version_note
    assert {"loss_on_prompt", "empty_block_in_loss"} <= kinds(notebook, "chat")
    assert "empty_block_in_loss" in kinds(responses, "chat") and "loss_on_prompt" not in kinds(responses, "chat")
    assert responses.equal_loss_tokens == responses.loss_tokens
    assert tokens.equal_rows == len(tokens.rows) >= len(notebook.rows) and not tokens.error
    assert json.loads((tmp_path / "audit.json").read_text()) == found.model_dump()
    assert (tmp_path / "audit.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_unsloth_trains_on_tokens_as_they_are(warm_python: str) -> None:
    """What docs/audit.md says makes it right: every case, both modes, several turns, tools."""
    profile = load_profile("embedded", ["model.max_seq_length=1024"])
    asked = Asked({"unsloth": ["tokens"]}, cases=True, pythons={"unsloth": Path(warm_python)})
    (tokens,) = audit(profile, asked).settings
    assert tokens.form == "tokens" and not tokens.error
    assert tokens.equal_rows == len(tokens.rows) == 13
    assert tokens.equal_loss_tokens == tokens.loss_tokens == tokens.framework_loss_tokens


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name, one in FRAMEWORKS.items() if one.version is not None])
def test_a_framework_of_its_own_environment(name: str) -> None:
    try:
        interpreter(framework(name))
    except UserError as error:
        pytest.skip(str(error))
    profile = load_profile("embedded", ["model.max_seq_length=1024"])
    found = audit(profile, Asked({name: []}, cases=True))
    assert all(not setting.error and not setting.version_note for setting in found.settings), found.settings
    first, last = found.settings[0], found.settings[-1]
    assert first.equal_rows < len(first.rows)
    assert last.equal_loss_tokens >= first.equal_loss_tokens


# --- bad input ----------------------------------------------------------------------------------------------------------


def test_names() -> None:
    assert parse_names(["trl:messages", "trl:assistant_only"]) == {"trl": ["messages", "assistant_only"]}
    assert list(parse_names(["all"])) == list(FRAMEWORKS)
    with pytest.raises(UserError, match="no framework 'axolotel'. Did you mean 'axolotl'"):
        framework("axolotel")
    with pytest.raises(UserError, match="trl has no setting 'message'. Did you mean 'messages'"):
        framework("trl").setting("message")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--framework", "trl", "--environment", "trl"], "--environment takes NAME=PYTHON"),
        (["--framework", "trl", "--environment", "trx=/bin/sh"], "no framework 'trx'"),
        (["--framework", "trl", "--cases", "--recipe", "x.yaml"], "contradict"),
        (["--framework", "trl", "--recipe", "no.yaml"], "no.yaml"),
    ],
)
def test_bad_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "audit", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("python", "said"),
    [("/bin/false", "is no Python"), ("/no/such/python", "cannot be run"), (sys.executable, "swift")],
)
def test_one_that_fails_is_an_entry(python: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Not Python, not there, or without the package: said, with exit code 1."""
    words = ["data", "audit", "--framework", "ms-swift:template", "--cases", "--set", "model.max_seq_length=1024"]
    assert main([*words, "--environment", f"ms-swift={python}", "--json"]) == 1
    (setting,) = json.loads(capsys.readouterr().out)["settings"]
    assert said in setting["error"] and setting["rows"] == []


def test_one_that_cannot_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ms-swift.txt").write_text("ms-swift==0.0.0.dev999\n")
    monkeypatch.setattr(environments, "LOCKS", tmp_path)
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(UserError, match="ms-swift .* could not be .*--environment ms-swift="):
        interpreter(framework("ms-swift"))
    assert not [path for path in (tmp_path / "cache" / "frameworks").iterdir() if path.is_dir()]  # nothing half made


def test_another_version_is_said() -> None:
    one = framework("ms-swift")
    assert version_note(one, {"ms-swift": "4.6.0"}) == ""
    assert version_note(one, {"ms-swift": "4.3.0"}) == "ms-swift 4.3.0 ran; the settings were checked with 4.6.0"


def test_a_record_names_the_model_without_the_machine_s_path(tmp_path: Path) -> None:
    model = load_profile("embedded").model
    (tmp_path / "tuned").mkdir()
    assert shown_name(model.model_copy(update={"name": str(tmp_path / "tuned")})) == "tuned"
    assert shown_name(model.model_copy(update={"name": "Qwen/Qwen3-0.6B"})) == "Qwen/Qwen3-0.6B"


def test_the_line_that_names_the_error_is_said(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("starting\nTraceback:\n  x\nValueError: no such template\nbye\n")
    assert last_words(log) == "ValueError: no such template"
    log.write_text("")
    assert last_words(log) == "no word of why"


def test_another_kind_of_template_is_refused() -> None:
    form = ChatFormat(load_data_tokenizer(load_profile("embedded").model))
    require_qwen3(form)
    form.style = replace(form.style, soft_switch=False)  # as Qwen3.5's, whose thinking prompt opens the thought
    with pytest.raises(UserError, match="settings for models with Qwen3's chat template"):
        require_qwen3(form)
