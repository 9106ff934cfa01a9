"""Messages in the reader's language: which one, what is translated, and a catalogue that keeps up with the code."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main as cli
from pipeline.core.console import duration, say
from pipeline.core.errors import nearest
from pipeline.core.language import VARIABLE, language, translate
from pipeline.course import messages
from pipeline.course.exercises import check

HOLE = re.compile(r"\{(\d+)\}")


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "zh")


# --- which language -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "en_GB.UTF-8"}, "en"),
        ({"LANGUAGE": "zh:en", "LC_ALL": "en_GB.UTF-8"}, "zh"),
        ({VARIABLE: "en", "LANG": "zh_CN.UTF-8"}, "en"),
        ({VARIABLE: "zh"}, "zh"),
    ],
)
def test_the_language(environment: dict[str, str], expected: str) -> None:
    assert language(environment) == expected


def test_the_folder_of_the_chinese_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "notebooks" / "zh"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert language({"LANG": "en_GB.UTF-8"}) == "zh"
    assert language({VARIABLE: "en"}) == "en"


# --- what is said -------------------------------------------------------------------------------------------------------


def test_english_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "en")
    assert translate("evaluate base") == "evaluate base"


def test_values_and_sentences_within_a_sentence(chinese: None) -> None:
    assert translate("[2/5] evaluate base") == "[2/5] 评测基座模型"
    assert translate(duration(400)) == "6.7 分钟"
    sentence = f"There is no profile 'embeded'.{nearest('embeded', ['embedded'])} Known: embedded, qwen3-8b."
    assert translate(sentence) == "没有 profile 'embeded'。您要的是不是 'embedded'？现有：embedded, qwen3-8b。"
    assert translate("nothing that the catalogue has") == "nothing that the catalogue has"
    assert translate("report: a/{0}/report.html") == "报告：a/{0}/report.html"  # a brace in a value is no hole


def test_line_by_line(chinese: None) -> None:
    text = "All 8 rates agree with the reference (x).\n| chat | 1.0 |\nreport: r.html"
    assert translate(text) == "全部 8 个数值与参考结果一致（x）。\n| chat | 1.0 |\n报告：r.html"


def test_progress(chinese: None, capsys: pytest.CaptureFixture[str]) -> None:
    say("[4/5] train")
    assert capsys.readouterr().err == "[4/5] 训练\n"


def test_an_exercise(chinese: None) -> None:
    assert check("06.3", 0.88) == "06.3：正确"
    assert check("06.3", ...) == "06.3：尚未作答"
    with pytest.raises(AssertionError, match=r"^'x' 不是占比|^答案应当是一个数。$"):
        check("06.3", "x")
    with pytest.raises(AssertionError, match="这里提示的一部分被训练了。它说 True。"):
        check("01.3", lambda prompt, ids, labels, end: ids[-1:] == [end] and labels[-1:] == [end])


def test_an_error_of_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(VARIABLE, "en")
    assert cli.main(["--lang", "zh", "run", "--profile", "embeded", "--output-dir", "x"]) == 2
    assert capsys.readouterr().err.startswith("错误：没有 profile 'embeded'。您要的是不是 'embedded'？现有：")
    monkeypatch.setenv(VARIABLE, "en")
    assert cli.main(["run", "--profile", "embeded", "--output-dir", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: There is no profile 'embeded'.")


@pytest.mark.slow
def test_the_table_of_a_run(tiny_run: Path, pipeline_command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = pipeline_command("report", "--output-dir", str(tiny_run), environment={VARIABLE: "zh"})
    shown = done.stdout
    head, line, *rows = (row for row in shown.splitlines() if row.startswith("|"))
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["基准", "模式", "n", "基座", "微调后", "变化"]
    from rich.cells import cell_len

    assert len({cell_len(row) for row in (head, line, *rows)}) == 1  # it stands straight
    assert "模式保真度" in shown and "报告：" in shown
    assert "思考" not in (tiny_run / "model_card.md").read_text(encoding="utf-8")  # files are English in every language


# --- the catalogue ------------------------------------------------------------------------------------------------------


def test_every_message_still_stands_in_the_code() -> None:
    gone = set(messages.catalogue()) - messages.sentences()
    assert not gone, "these sentences were changed or taken out; change them in the catalogue too"


def test_every_hint_of_an_exercise_is_translated() -> None:
    missing = "".join(messages.missing())
    assert not missing, "add these to pipeline/locale/zh_CN/LC_MESSAGES/pipeline.po:\n" + missing


@pytest.mark.parametrize("message", sorted(messages.catalogue()))
def test_a_translation_is_sound(message: str) -> None:
    from tests.course.test_chinese import style_problems

    translation = messages.catalogue()[message]
    assert set(HOLE.findall(translation)) == set(HOLE.findall(message))
    literal = HOLE.sub("", message).strip()
    if HOLE.search(message):
        assert len(re.sub(r"\W", "", literal)) >= 4 or literal[0] == "[", "it would take other sentences for itself"
    assert not style_problems(HOLE.sub("值", translation))


@given(st.lists(st.text(alphabet="ab {}01\n", min_size=1, max_size=8), min_size=5, max_size=5))
def test_any_value_comes_through(values: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "zh")
        said = translate("input_ids {}, labels {}, prompt {}: {} It says {}.".format(*values))
    for value in values:
        assert value in said


def test_messages_are_found_as_the_catalogue_names_them(tmp_path: Path) -> None:
    code = (
        'def f(a):\n    assert a, f"{a!r} of {{x}} is {a:.2f}."\n    assert not a, "No " "more."\n    assert a, a.x\n'
    )
    (tmp_path / "nb99.py").write_text(code, encoding="utf-8")
    found = messages.hints(tmp_path)
    assert found == {"{0} of {{x}} is {1}.": "nb99.py", "No more.": "nb99.py"}
    assert set(found) <= messages.sentences(tmp_path)
