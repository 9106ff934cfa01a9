"""``chat``: lines in, replies out; the switches do what they say, the reasoning is dimmed, and no mistake ends it."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.export.chat import DIM, PLAIN, Chat, Dimmer
from pipeline.model.thinking_budget import SENTENCE

ROOT = Path(__file__).resolve().parents[2]
PIECES = st.sampled_from(["<think>", "</think>", "<", "<thi", "nk>", "</", "a", "\n", "<|im_end|>", "think>"])


@given(st.lists(PIECES, max_size=12), st.data())
def test_dimming_does_not_depend_on_how_text_arrives(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    whole, cut = Dimmer(True), Dimmer(True)
    wanted = whole.feed(text) + whole.end()
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = "".join(cut.feed(piece) for piece in pieces) + cut.end()
    assert found == wanted
    assert found.replace(DIM, "").replace(PLAIN, "") == text  # nothing lost, nothing added
    assert found.count(DIM) == found.count(PLAIN)  # the terminal is left as it was


def test_the_reasoning_is_what_is_dimmed() -> None:
    dimmer = Dimmer(True)
    assert dimmer.feed("<think>\nr\n</think>\n\n42") == f"{DIM}<think>\nr\n</think>{PLAIN}\n\n42"
    assert Dimmer(False).feed("<think>r</think>") == "<think>r</think>"


@pytest.mark.slow
def test_a_conversation(tiny_run: Path, warm_python: str) -> None:
    lines = [
        "What is 17 + 25?",
        "/no_think",
        "/again",
        "/base",
        "/again",
        "/nothink",
        "/system Be brief.",
        "/budget 4",
        "/think",
        "/again",
        "/budget x",
        "/help",
        "/quit",
        "x",
    ]
    command = [warm_python, "-m", "pipeline", "chat", str(tiny_run), "--seed", "1"]
    text = "\n".join(lines) + "\n"
    done = subprocess.run(command, input=text, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = done.stdout.split("] > ")
    assert [part.rsplit("[", 1)[-1] for part in parts[:-1]] == [
        "tuned, thinking",
        "tuned, thinking",
        "tuned, non-thinking",
        "tuned, non-thinking",
        "base, non-thinking",
        "base, non-thinking",
        "base, non-thinking",
        "base, non-thinking",
        "base, non-thinking",
        "base, thinking",
        "base, thinking",
        "base, thinking",
        "base, thinking",
    ]
    assert parts[1].startswith("<think>") and "</think>" in parts[1]
    for part in (parts[3], parts[5]):
        assert "think>" not in part and part.strip()
    assert "there is no command /nothink. Did you mean '/no_think'?" in parts[6]
    assert SENTENCE.strip() in parts[10] and parts[10].count("</think>") == 1
    assert "takes a number of tokens" in parts[11] and "/system" in parts[12] and DIM not in done.stdout


@pytest.mark.slow
def test_base_and_tuned_are_two_models_and_a_long_text_is_refused(tiny_run: Path) -> None:
    import torch

    from pipeline.export.source import open_source

    output = io.StringIO()
    chat = Chat(open_source(tiny_run), output)
    ids = torch.tensor([chat.talker.format.prompt_ids([{"role": "user", "content": "What is 17 + 25?"}], "thinking")])

    def logits(which: str) -> Any:
        with chat.talker.models.model(which) as model, torch.inference_mode():
            return model(input_ids=ids).logits

    tuned, base = logits("tuned"), logits("base")
    assert not torch.equal(tuned, base) and torch.equal(tuned, logits("tuned"))
    assert chat.take("17 + 25 " * 2000)
    assert "more than the model has room for with a reply; /clear" in output.getvalue()
    assert chat.messages == []  # what did not fit is not asked again with the next line
    assert chat.take("") and chat.take("/clear") and not chat.take("/quit")
    chat.run(io.StringIO("/think\n"))  # ends with its input
