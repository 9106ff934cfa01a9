"""``--help`` and wrong calls in Chinese: every text has its translation, and a page holds no English sentence."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.cli import main as cli
from pipeline.cli.help import ARGPARSE_SAYS, asked_language, texts, width, wrapped
from pipeline.cli.main import parser
from pipeline.core import console
from pipeline.core.catalogue import read_catalogue
from pipeline.core.language import CATALOGUES, VARIABLE
from pipeline.course import messages

ROOT = Path(__file__).resolve().parents[2]
HAN = "[\u4e00-\u9fff]"


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "zh")
    monkeypatch.setenv("COLUMNS", "80")


def parsers(found: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield found
    for action in found._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


COMMANDS = [found.prog for found in parsers(parser())]


def test_every_help_text_is_translated() -> None:
    wanted = {text: command for command, text in texts(parser())} | dict.fromkeys(ARGPARSE_SAYS, "argparse")
    lacking = "".join(messages.missing(wanted))
    assert len(wanted) > 150 and not lacking, "add these to pipeline/locale/zh_CN/LC_MESSAGES/pipeline.po:\n" + lacking


@pytest.mark.parametrize("command", COMMANDS)
def test_no_english_sentence_is_left_on_a_page(command: str, chinese: None) -> None:
    page = next(found for found in parsers(parser()) if found.prog == command).format_help()
    assert page.startswith("用法：") and "选项：" in page and "-h, --help" in page
    told = re.sub(r"python -m pipeline[a-z. -]*", "", page.partition("\n\n")[2])
    assert re.findall(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}", told) == []
    assert all(re.search(HAN, text) for text in told.split("\n") if text.endswith("。"))
    assert max(map(width, told.splitlines())) <= 80


def test_english_pages_are_those_of_argparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "en")
    for found in parsers(parser()):
        page = found.format_help()
        found.formatter_class = argparse.HelpFormatter
        assert found.format_help() == page


@pytest.mark.parametrize(
    "arguments", [["--lang", "zh", "run", "--help"], ["--lang=zh", "--help"], ["--help", "--lang", "zh"]]
)
def test_help_in_chinese_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, pipeline.cli.main as m\n"
        "try: m.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit(sorted({'torch', 'unsloth', 'transformers', 'numpy', 'pydantic', 'babel'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, VARIABLE: "en", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert "微调" in done.stdout and "usage" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "参数 COMMAND：不能选 'fly'"),
        (["run"], "缺少必需的参数：--output-dir"),
        (["doctor", "--jsn"], "不认识的参数：--jsn"),
        (["data", "inspect", "--rows", "0"], "参数 --rows：需要从 1 起的整数；给出的是 '0'"),
        (["data", "inspect", "--rows"], "参数 --rows：需要一个值"),
        (["estimate", "--tflops", "-1"], "参数 --tflops：需要大于 0 的数；给出的是 '-1'"),
        (["run", "--output-dir", " "], "参数 --output-dir：是空的；请给一个值，或去掉这个选项"),
        (["run", "--chat-share", "much"], "参数 --chat-share：不是合法的 float 值：'much'"),
    ],
)
def test_a_wrong_call(arguments: list[str], said: str, chinese: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert f"错误：{said}" in capsys.readouterr().err


def test_the_words_are_those_of_this_python() -> None:
    source = Path(argparse.__file__).read_text(encoding="utf-8")
    for word in ARGPARSE_SAYS:
        pattern = re.sub(r"\\\{\d\\\}", r"%(\\(\\w+\\))?[sr]", re.escape(word))
        assert re.search(f"[\"']{pattern}[\"']", source), word


@pytest.mark.parametrize(
    ("arguments", "language"),
    [
        ([], None),
        (["--lang", "zh", "run"], "zh"),
        (["--lang=en", "run"], "en"),
        (["--help", "--la", "zh"], "zh"),
        (["--lang"], None),
        (["--lang", "fr", "run"], None),
        (["course", "--lang", "zh"], None),  # that one is of the notebooks
    ],
)
def test_the_language_of_a_command_line(arguments: list[str], language: str | None) -> None:
    assert asked_language(arguments) == language


@given(st.text(alphabet="ab `中文，。（）“”", max_size=60), st.integers(12, 40))
@example("``````。中 ）", 12)
def test_lines_are_broken_between_signs(text: str, columns: int) -> None:
    lines = wrapped(text, columns)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    for line in lines:
        assert line == line.strip() and line
        assert width(line) <= columns or not re.search(r"[ab] [ab]|[中文][中文]", line)
    assert all(line[0] not in "，。）" for line in lines[1:] if not re.search(r"[，。（）“”]{2}", text))


def test_the_reader_finds_what_babel_finds(tmp_path: Path) -> None:
    assert dict(read_catalogue(CATALOGUES["zh"])) == messages.catalogue()
    path = tmp_path / "x.po"
    path.write_text(
        'msgid ""\nmsgstr ""\n"Language: zh\\n"\n\n#: a.py\nmsgid ""\n"a \\"b\\"\\n"\n"c"\nmsgstr "甲"\n"乙"\n\n'
        '#~ msgid "old"\n#~ msgstr "旧"\n\nmsgid "d"\nmsgstr ""\n',
        encoding="utf-8",
    )
    assert list(read_catalogue(path)) == [('a "b"\nc', "甲乙"), ("d", "")]


def test_jupyter_that_is_only_imported_is_no_notebook() -> None:
    import ipykernel.kernelapp  # noqa: F401  as papermill does in the process that runs the course

    assert not console.in_notebook()


def test_a_bar_speaks_the_language(
    chinese: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    for what, words in (
        ("train", "训练"),
        ("embedded_chat (non-thinking)", "embedded_chat（非思考）"),
        ("rehearse x", "复习 x"),
    ):
        with console.Bar(what, 1400) as bar:
            bar.update(350)
        assert re.fullmatch(rf"{re.escape(words)}：350/1,400，剩余 \d+ 秒\n", capsys.readouterr().err)
    console.expect({"evaluate": 3600 * 3})
    try:
        with console.Bar("train", 1400) as bar:
            bar.update(1400)
    finally:
        console.expect({})
    assert capsys.readouterr().err == "训练：1,400/1,400，剩余 0 秒；全程剩余 3.0 小时\n"
