"""The Modelfile: its template renders what the chat template renders, byte for byte, and says both modes' sampling."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conversations import conversations

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES
from pipeline.export import ollama
from pipeline.settings import load_profile

CONVERSATIONS = 200


def prompt(tokenizer: Any, messages: list[dict[str, Any]], tools: Any, **mode: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False, **mode))


def test_template_equals_chat_template(tokenizer: Any, tmp_path: Path) -> None:
    go_template = pytest.importorskip(
        "go_template", reason="Go's template engine is not installed (requirements-dev.txt)"
    )
    assert go_template
    from go_template_ollama import render

    kinds = set()
    for messages, tools in conversations(CONVERSATIONS, seed=1):
        kinds.add((messages[0]["role"], bool(tools), len(messages) > 2, messages[-1]["role"]))
        for mode, think in (("thinking", True), ("non_thinking", False)):
            wanted = prompt(tokenizer, messages, tools, enable_thinking=think)
            assert render(ollama.TEMPLATE, messages, tools, think, tmp_path) == wanted, (mode, messages, tools)
        # Without the field a client gets the thinking prompt, as from the chat template.
        assert render(ollama.TEMPLATE, messages, tools, None, tmp_path) == prompt(tokenizer, messages, tools)
    assert len(kinds) > 8  # all shapes were among them


def test_a_template_without_the_switch_is_seen(embedded_tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("go_template", reason="Go's template engine is not installed (requirements-dev.txt)")
    from go_template_ollama import render

    lost = tmp_path / "lost.gotmpl"
    lost.write_text(ollama.TEMPLATE.read_text().replace("and .IsThinkSet (not .Think)", "false"))
    messages = [{"role": "user", "content": "What is 17 + 25?"}]
    wanted = prompt(embedded_tokenizer, messages, None, enable_thinking=False)
    assert render(lost, messages, None, False, tmp_path) != wanted
    assert render(ollama.TEMPLATE, messages, None, False, tmp_path) == wanted


def test_ollama_finds_the_think_tags() -> None:
    """Ollama takes as tags the text around the last ``.Thinking`` of the range over messages, up to the next actions."""
    text = ollama.TEMPLATE.read_text(encoding="utf-8")
    (around,) = re.findall(r"\}\}([^{}]*)\{\{ \.Thinking \}\}([^{}]*)\{\{", text)
    assert [part.strip() for part in around] == ["<think>", "</think>"]
    assert text.rindex(".Thinking") == text.index("{{ .Thinking }}") + len("{{ ")


def test_modelfile_says_both_modes() -> None:
    sampling = load_profile("embedded").evaluation.sampling
    text = ollama.modelfile("x.gguf", sampling, 1024)
    settings = dict(re.findall(r"^PARAMETER (\w+) (.+)$", text, re.M))
    assert settings["temperature"] == "0.6" and settings["top_k"] == "20" and settings["num_predict"] == "160"
    assert settings["num_ctx"] == "1024"
    assert 'PARAMETER stop "<|im_end|>"' in text and text.startswith("FROM ./x.gguf\n")
    assert '"temperature": 0.7' in text and '"num_predict": 64' in text and "SYSTEM" not in text
    body = text.split('TEMPLATE """')[1].split('"""')[0]
    assert body == ollama.TEMPLATE.read_text(encoding="utf-8").rstrip()


def test_greedy_is_temperature_0() -> None:
    sampling = load_profile("embedded").evaluation.sampling.thinking.model_copy(update={"temperature": 0.0})
    assert ollama.parameters(sampling) == {"temperature": 0.0, "repeat_penalty": 1.0, "num_predict": 160}


def test_folder_holds_file_and_modelfile(tmp_path: Path) -> None:
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF")
    ollama.write_ollama(gguf, tmp_path / "ollama", load_profile("embedded").evaluation.sampling, 512)
    assert sorted(path.name for path in (tmp_path / "ollama").iterdir()) == ["Modelfile", "a.gguf"]
    gguf.unlink()
    assert (tmp_path / "ollama" / "a.gguf").read_bytes() == b"GGUF"


@pytest.mark.parametrize("change", ["switch", "system", "tools"])
def test_another_chat_template_is_refused(embedded_tokenizer: Any, tmp_path: Path, change: str) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "tokenizer"
    shutil.copytree(Path(embedded_tokenizer.name_or_path), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    own = AutoTokenizer.from_pretrained(folder)
    ollama.require_qwen3_template(own)
    old, new = {
        "switch": ("enable_thinking is false", "enable_thinking is none"),
        "system": ("{%- set ns = ", "{{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{%- set ns = "),
        "tools": ("# Tools", "# Functions"),
    }[change]
    assert old in own.chat_template
    own.chat_template = own.chat_template.replace(old, new)
    with pytest.raises(UserError, match="written for Qwen3's chat template"):
        ollama.require_qwen3_template(own)


def test_probes_have_all_roles() -> None:
    roles = {message["role"] for messages, _ in ollama.probes() for message in messages}
    assert roles == {"system", "user", "assistant", "tool"} and len(MODES) == 2
