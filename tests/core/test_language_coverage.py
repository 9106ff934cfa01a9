"""Every error and line of progress has its Chinese sentence, and each is recognised as itself."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.language import VARIABLE, _translate, translate
from pipeline.core.place import PACKAGE
from pipeline.course import messages


@functools.cache
def wanted() -> dict[str, str]:
    """{sentence: its wing}"""
    return {text: file.partition("/")[0] for text, file in messages.said().items()}


COMPLETE = "cli core course data evaluation export handover hybrid model run second settings studies training".split()
# How many sentences are translated, hints of exercises and parts of sentences included. It may only rise.
TRANSLATED = 1500


@pytest.mark.parametrize("name", COMPLETE)
def test_what_a_wing_says_is_translated(name: str) -> None:
    said = {text: wing for text, wing in wanted().items() if wing == name}
    missing = "".join(messages.missing(said))
    assert said and not missing, "add these to pipeline/locale/zh_CN/LC_MESSAGES/pipeline.po:\n" + missing


def test_no_wing_is_forgotten() -> None:
    assert set(wanted().values()) == set(COMPLETE)


def test_the_count_only_rises() -> None:
    assert sum(map(bool, messages.catalogue().values())) >= TRANSLATED


def values(sentence: str) -> list[str]:
    """One for each hole, as the code fills it: none of them is a word, and what comes behind a full stop begins with a space."""
    behind = set(re.findall(r"\.\{(\d+)\}", sentence))
    return [f" ‹{number}›" if str(number) in behind else f"‹{number}›" for number in range(20)]


def test_each_sentence_is_taken_for_itself() -> None:
    """No other entry of the catalogue matches first, and each value comes out at its place."""
    known = {source: target for source, target in messages.catalogue().items() if target}
    said = {source: _translate(source.format(*values(source)), "zh", within=True) for source in known}
    right = {source: target.format(*values(source)) for source, target in known.items()}
    assert {source: text for source, text in said.items() if text != right[source]} == {}


# --- how it is done -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "chinese"),
    [
        # A value within a name stays; the same word elsewhere does not.
        ("--also base=…: that name is taken; base and tuned are the base and the run itself.", "--also base=…："),
        ("evaluation.sampling.thinking.max_new_tokens=9 cannot fit: m has 8 positions for prompt and reply together. Lower it "
         "to at most 7, less what your prompts take (up to model.max_seq_length=6 tokens).", "evaluation.sampling.thinking.max"),
        ("`train` works in one process, and 2 were started; start it without torchrun. Several processes are for train and run.",
         "`train` 只用一个进程，却启动了 2 个"),
        # Chinese words stand beside one another; a name keeps its space.
        ("the stored evaluation of the base model is of other weights than those here; it is done again", "已保存的基座模型的"),
        ("the stored evaluation of the x model is of other weights than those here; it is done again", "已保存的 x 模型的"),
        ("note: 你 好", "注意：你 好"),
        # A full stop within a value does not end the sentence.
        ("recipe a: unknown key 'training.foo'. Did you mean 'x'?", "配方 a：未知的键 'training.foo'。您要的是不是 'x'？"),
        # Lines of a table, a list or a log are no part of one sentence.
        ("note: one\ntwo\nreport: x.html", "注意：one\ntwo\n报告：x.html"),
        ("mode: a\n3 seconds\nb: 1 parameters, 2 trained", "mode: a\n3 秒\nb: 1 parameters, 2 trained"),
        ("a/b: not answered yet; 3 seconds; unknown words", "a/b：尚未作答；3 秒；unknown words"),
        # What announces another sentence is no value of it.
        ("error: a.txt: 'no' is not a word. Quote words that YAML reads as something else (no, on).", "错误：a.txt：'no' 不是词"),
        ("error: The disk is full. Free some space and run the same command again.", "错误：磁盘已满。请腾出"),
        # What others write stays: a row, a reply, a table.
        ("He became king", "He became king"),
        ("I have five minutes\nbase\nQuestion: base", "I have five minutes\nbase\nQuestion: base"),
        ("| base: thinking |", "| base: thinking |"),
        ("6.7 minutes", "6.7 分钟"),
    ],
)  # fmt: skip
def test_values_lines_and_parts(monkeypatch: pytest.MonkeyPatch, said: str, chinese: str) -> None:
    monkeypatch.setenv(VARIABLE, "zh")
    assert translate(said).startswith(chinese)


def test_what_is_said_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    code = """
        say("done already")
        raise UserError(f"{x}: {y}")
        raise errors.UserError("It is not " f"{x}. " + HINT)
        say(text)
        print("not said")
    """
    (tmp_path / "a" / "b.py").write_text("\n".join(line.strip() for line in code.splitlines()), encoding="utf-8")
    assert messages.said(tmp_path) == {"done already": "a/b.py", "It is not {0}. {1}": "a/b.py"}


def test_nothing_is_read_before_something_is_said() -> None:
    """English, and ``--help`` in any language, start without the catalogue."""
    code = "import sys; from pipeline.cli import main; main.parser(); sys.exit('babel' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, VARIABLE: "zh"}, cwd=PACKAGE.parent)
    assert done.returncode == 0
