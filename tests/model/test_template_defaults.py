"""What a chat template is told beside the mode, on the templates that TRL ships."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.model.load import load_data_tokenizer, load_tokenizer
from pipeline.model.template_defaults import read_by, with_defaults
from pipeline.model.thinking_style import thinking_style
from pipeline.settings import ModelSettings
from pipeline.settings.servers import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
ASK = [{"role": "user", "content": "How much is 2 + 3?"}]
TALK = [
    *ASK,
    {"role": "assistant", "reasoning_content": "Two and three.", "content": "5"},
    {"role": "user", "content": "And 4?"},
]


@pytest.fixture
def templates() -> Path:
    trl = pytest.importorskip("trl")
    return Path(trl.__file__).parent / "chat_templates"


@pytest.fixture
def told(templates: Path, embedded_tokenizer: Any) -> Any:
    def make(name: str, **kwargs: Any) -> Any:
        tokenizer = copy.deepcopy(embedded_tokenizer)
        tokenizer.chat_template = (templates / f"{name}.jinja").read_text(encoding="utf-8")
        return with_defaults(tokenizer, kwargs)

    return make


def prompt(tokenizer: Any, messages: list[dict[str, str]], **kwargs: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **kwargs))


@pytest.mark.parametrize(("name", "key", "value"), [
    ("qwen3_8", "reasoning_effort", "low"),
    ("qwen3_8", "preserve_thinking", False),
    ("qwen3_6", "preserve_thinking", True),
    ("nemotron_3_super", "low_effort", True),
    ("nemotron_3_nano", "truncate_history_thinking", False),
])  # fmt: skip
@pytest.mark.parametrize("messages", [ASK, TALK])
def test_it_is_the_keyword_at_every_place(told: Any, name: str, key: str, value: Any, messages: Any) -> None:
    plain, with_it = told(name), told(name, **{key: value})
    for thinking in (True, False):
        expected = prompt(plain, messages, enable_thinking=thinking, **{key: value})
        assert prompt(with_it, messages, enable_thinking=thinking) == expected
    if messages is TALK or "effort" in key:
        assert prompt(with_it, messages, enable_thinking=True) != prompt(plain, messages, enable_thinking=True)


def test_a_caller_is_still_heard(told: Any) -> None:
    plain, low = told("qwen3_8"), told("qwen3_8", reasoning_effort="low")
    assert prompt(low, ASK, reasoning_effort="medium") == prompt(plain, ASK, reasoning_effort="medium")


def test_the_style_and_the_rows_follow(told: Any) -> None:
    kept, dropped = told("qwen3_8"), told("qwen3_8", preserve_thinking=False)
    assert thinking_style(kept).keeps_reasoning and not thinking_style(dropped).keeps_reasoning
    assert thinking_style(told("qwen3_8", reasoning_effort="low")).default_effort == "low"
    assert "Two and three." in prompt(kept, TALK) and "Two and three." not in prompt(dropped, TALK)


def test_rows_are_what_the_evaluation_will_ask(told: Any) -> None:
    """The parity rule: prompt and answer of a row begin with the prompt of the evaluation."""
    tokenizer = told("qwen3_8", reasoning_effort="low")
    form, plain = ChatFormat(tokenizer), ChatFormat(told("qwen3_8"))
    expected = form.encode([prompt(tokenizer, ASK, enable_thinking=True)])[0]
    assert form.prompt_ids(ASK, "thinking") == expected != plain.prompt_ids(ASK, "thinking")
    assert form.key != plain.key  # rows that were tokenised the other way are not taken for these
    in_a_worker = copy.deepcopy(form)
    assert in_a_worker.prompt_ids(ASK, "thinking") == expected


def test_once_is_enough_and_it_is_saved(told: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    low = told("qwen3_8", reasoning_effort="low")
    again = with_defaults(copy.deepcopy(low), {"reasoning_effort": "low"})
    assert again.chat_template == low.chat_template
    low.save_pretrained(tmp_path)
    assert prompt(AutoTokenizer.from_pretrained(tmp_path), ASK) == prompt(low, ASK)


def test_what_the_template_does_not_read(told: Any) -> None:
    with pytest.raises(UserError, match=r"no 'resoning_effort'.*preserve_.*reasoning_effort"):
        told("qwen3_8", resoning_effort="low")
    with pytest.raises(UserError, match="reads no 'reasoning_effort'"):
        told("qwen3", reasoning_effort="low")


def test_the_switch_itself(embedded_tokenizer: Any) -> None:
    """Some templates switch by another keyword than enable_thinking."""
    tokenizer = copy.deepcopy(embedded_tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("enable_thinking", "thinking")
    with pytest.raises(UserError, match="'thinking' switches the mode"):
        with_defaults(tokenizer, {"thinking": True})


def test_no_template() -> None:
    class Bare:
        chat_template = None

    with pytest.raises(UserError, match="none or several"):
        with_defaults(Bare(), {"a": 1})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot be read"):
        read_by("{% if %}")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"enable_thinking": True}, "'enable_thinking' switches the mode"), ({"a b": 1}, "reads no 'a b'")],
)
def test_names_that_are_none(told: Any, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        told("qwen3_8", **kwargs)


def test_values_that_are_none() -> None:
    with pytest.raises(ValidationError, match="chat_template_kwargs"):
        ModelSettings(name="m", max_seq_length=8, chat_template_kwargs={"a": [1]})


@pytest.mark.parametrize("value", ['"quoted"', "%} {{ 7 * 7 }} {%", "back\\slash", "思考"])
def test_any_text_is_text(embedded_tokenizer: Any, value: str) -> None:
    tokenizer = copy.deepcopy(embedded_tokenizer)
    tokenizer.chat_template = "{{ effort }}" + tokenizer.chat_template
    assert prompt(with_defaults(tokenizer, {"effort": value}), ASK).startswith(value)


def test_without_it_nothing_is_recorded() -> None:
    """So what was made before it existed is known again by its settings."""
    assert "chat_template_kwargs" not in ModelSettings(name="m", max_seq_length=8).model_dump()
    assert ModelSettings(name="m", max_seq_length=8, chat_template_kwargs={"a": 1}).model_dump()["chat_template_kwargs"]


def test_both_loaders(templates: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(ROOT / "models" / "embedded", tmp_path / "m"))
    (folder / "chat_template.jinja").write_text((templates / "qwen3_8.jinja").read_text(encoding="utf-8"))
    settings = ModelSettings(name=str(folder), max_seq_length=64, chat_template_kwargs={"reasoning_effort": "low"})
    fast, whole = load_data_tokenizer(settings), load_tokenizer(settings)
    assert type(fast) is not type(whole) and prompt(fast, ASK) == prompt(whole, ASK)
    assert prompt(fast, ASK) != prompt(load_tokenizer(settings.model_copy(update={"chat_template_kwargs": {}})), ASK)


def test_servers_are_told_too() -> None:
    server = ServerSettings(thinking={"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "high"}})
    told = server.told({"reasoning_effort": "low", "preserve_thinking": True})
    assert told.thinking["chat_template_kwargs"] == {
        "enable_thinking": True, "reasoning_effort": "high", "preserve_thinking": True,
    }  # fmt: skip
    assert told.non_thinking["chat_template_kwargs"] == {
        "enable_thinking": False, "reasoning_effort": "low", "preserve_thinking": True,
    }  # fmt: skip
    assert server.told({}) is server
