"""The Chinese notebooks: the same code, prose for the present English text, and Chinese as it is set in print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.course import execute, translation
from pipeline.course.execute import course_notebooks
from pipeline.course.translation import compare, compare_all, deeper, digest, names, synchronise, take, todo

NOTEBOOKS = translation.NOTEBOOKS
HAN = "[\u4e00-\u9fff]"


def style_problems(text: str) -> list[str]:
    """Where Chinese prose has half-width punctuation, or no space between Chinese and Latin letters or digits."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"(?m)^( {4,}|%|=== ).*$", "", text)
    text = re.sub(r"`[^`\n]+`", "`", text)  # what stands in a code span is no prose
    text = re.sub(r"\]\([^)\n]*\)", "]", text)  # nor is a link's address
    text = re.sub(r"<[^<>\n]*>", "", text).replace("*", "")
    found = [match[0] for match in re.finditer(f"{HAN}[,;:!?()]|[,;:!?(]{HAN}|{HAN}\\.(?![A-Za-z0-9])", text)]
    return found + [match[0] for match in re.finditer(f"{HAN}[A-Za-z0-9`]|[A-Za-z0-9`%]{HAN}", text)]


@pytest.mark.parametrize("name", names(NOTEBOOKS))
def test_a_chinese_notebook_corresponds(name: str) -> None:
    found = compare(name, NOTEBOOKS, NOTEBOOKS / "zh")
    assert not found, "\n".join(map(str, found)) + "\npython -m pipeline.course.translation todo prints what to write"


def test_no_chinese_notebook_is_left_over() -> None:
    assert set(names(NOTEBOOKS / "zh")) <= set(names(NOTEBOOKS))


@pytest.mark.parametrize("path", sorted((NOTEBOOKS / "zh").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_chinese_is_set_as_in_print(path: Path) -> None:
    book = json.loads(path.read_text(encoding="utf-8"))
    prose = [cell for cell in book["cells"] if cell["cell_type"] == "markdown"]
    found = {cell["id"]: bad for cell in prose if (bad := style_problems("".join(cell["source"])))}
    assert not found
    assert all(re.search(HAN, "".join(cell["source"])) for cell in prose)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in book["cells"])


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("你好，`chat` 与 GPU 都在 3 个地方（见下文）。", 0),
        ("你好,世界", 1),
        ("用GPU", 1),
        ("见`chat`", 1),
        ("(见下文)", 2),
        ("```\n用GPU,快\n```", 0),
        ("[名称](a,b/中,c)", 0),
    ],
)
def test_the_style_check_itself(text: str, problems: int) -> None:
    assert len(style_problems(text)) == problems


ROOT = NOTEBOOKS.parent


RESULTS = re.compile(r"<!-- results:.*?<!-- end -->", re.DOTALL)
PAGES = sorted(path.name.removesuffix(".zh.md") for path in (ROOT / "docs").glob("*.zh.md"))


@pytest.mark.parametrize("name", ["README.zh-CN.md", "docs/glossary.md", *(f"docs/{name}.zh.md" for name in PAGES)])
def test_chinese_pages_are_set_as_in_print(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not style_problems(RESULTS.sub("", text))


# These two are shorter in Chinese, written for readers there; all others say what the English page says.
@pytest.mark.parametrize("name", [name for name in PAGES if name not in ("choosing", "complaints")])
def test_a_chinese_page_says_what_the_english_one_says(name: str) -> None:
    """The same headings, table rows, code, names in code and numbers: who changes one page has to change the other."""
    english, chinese = ((ROOT / "docs" / f"{name}{end}").read_text(encoding="utf-8") for end in (".md", ".zh.md"))
    assert RESULTS.findall(chinese) == RESULTS.findall(english)
    english, chinese = RESULTS.sub("", english), RESULTS.sub("", chinese)
    for pattern in (r"(?m)^#+ ", r"(?m)^\| ", "(?m)^```", r"\]\("):
        assert len(re.findall(pattern, chinese)) == len(re.findall(pattern, english)), pattern
    for pattern in (r"`([^`\n]+)`", r"(?m)^    (.+)$", r"\d+(?:[.,]\d+)*"):
        assert not set(re.findall(pattern, english)) - set(re.findall(pattern, chinese)), pattern


def test_the_chinese_readme_leaves_nothing_out() -> None:
    """As many sections and table rows as the English one, and every document and first word of a command that it names."""
    english, chinese = (
        (ROOT / name)
        .read_text(encoding="utf-8")
        .replace("README.zh-CN.md", "")
        .replace("README.md", "")
        .replace(".zh.md", ".md")
        for name in ("README.md", "README.zh-CN.md")
    )
    for pattern in (r"(?m)^## ", r"(?m)^\| ", "```"):
        assert len(re.findall(pattern, chinese)) == len(re.findall(pattern, english)), pattern
    for pattern in (
        r"\]\(([^)]+)\)",
        r"(?m)^\| (`[a-z]+)",
        r"`([a-z_./]+\.(?:py|json|yaml|jsonl|txt))`",
        r"`(--[a-z-]+)",
    ):
        assert set(re.findall(pattern, english)) <= set(re.findall(pattern, chinese)), pattern


# --- the tool -----------------------------------------------------------------------------------------------------------


def cell(name: str, kind: str, text: str, **metadata: Any) -> dict[str, Any]:
    extra = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"id": name, "cell_type": kind, "metadata": metadata, "source": text.splitlines(keepends=True), **extra}


def put(folder: Path, *cells: dict[str, Any], name: str = "01_x") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    book = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / f"{name}.ipynb").write_text(json.dumps(book), encoding="utf-8")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with a notebook that corresponds."""
    english, chinese = tmp_path / "en", tmp_path / "en" / "zh"
    code = 'output_dir = "../outputs"  # where'
    put(english, cell("a", "markdown", "Hello"), cell("b", "code", code, tags=["parameters"]))
    put(
        chinese,
        cell("a", "markdown", "你好", english=digest("Hello")),
        cell("b", "code", 'output_dir = "../../outputs"  # where', tags=["parameters"]),
    )
    return english, chinese


def change(folder: Path, name: str, **new: Any) -> None:
    path = folder / "01_x.ipynb"
    book = json.loads(path.read_text(encoding="utf-8"))
    for found in book["cells"]:
        if found["id"] == name:
            found |= new
    path.write_text(json.dumps(book), encoding="utf-8")


def test_notebooks_that_correspond(pair: tuple[Path, Path]) -> None:
    assert compare("01_x", *pair) == [] and compare_all(*pair) == []


@pytest.mark.parametrize(
    ("side", "name", "new", "words"),
    [
        (0, "a", {"source": ["Hello, all"]}, "another English text"),
        (0, "b", {"source": ["x = 1"]}, "code"),
        (1, "b", {"source": ['output_dir = "../../outputs"']}, "code"),  # a comment is part of it
        (1, "b", {"metadata": {}}, "tags"),
        (1, "a", {"metadata": {}}, "not written yet"),
        (1, "a", {"cell_type": "code"}, "is code"),
        (1, "a", {"id": "c"}, "no counterpart"),
    ],
)
def test_a_change_on_one_side_names_the_cell(
    pair: tuple[Path, Path], side: int, name: str, new: dict[str, Any], words: str
) -> None:
    change(pair[side], name, **new)
    found = compare("01_x", *pair)
    assert found[0].cell == name and words in found[0].what and "01_x" in str(found[0])


def test_order_and_whole_notebooks(pair: tuple[Path, Path]) -> None:
    english, chinese = pair
    book = json.loads((chinese / "01_x.ipynb").read_text())
    put(chinese, *reversed(book["cells"]))
    assert "order" in compare("01_x", *pair)[0].what
    put(chinese, name="02_y")
    put(english, cell("a", "markdown", "x"), name="03_z")
    assert {(p.notebook, p.what) for p in compare_all(*pair)} >= {
        ("02_y", "there is no English notebook"),
        ("03_z", "there is no Chinese notebook"),
    }


def test_sync_todo_take(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    english, chinese = pair
    put(
        english,
        cell("a", "markdown", "Hello"),
        cell("b", "code", 'path = "../x"'),
        cell("c", "markdown", "New\n\n- one"),
    )
    where = ["--english", str(english), "--chinese", str(chinese)]
    assert translation.main(["sync", *where]) == 1
    assert "01_x, cell c: is not written yet" in capsys.readouterr().out
    cells = json.loads((chinese / "01_x.ipynb").read_text())["cells"]
    assert [c["id"] for c in cells] == ["a", "b", "c"]
    assert cells[0]["source"] == ["你好"] and cells[1]["source"] == ['path = "../../x"']
    text = "".join(todo("01_x", *pair))
    written_for = digest("New\n\n- one")
    assert text == f"=== 01_x c {written_for}\n% New\n%\n% - one\n\n"
    filled = chinese / "todo.txt"
    filled.write_text(text + "新的\n\n- 一\n", encoding="utf-8")
    assert translation.main(["take", str(filled), *where]) == 0
    assert translation.main(["check", *where]) == 0
    change(english, "c", source=["Newer"])
    assert "新的\n\n- 一\n" in "".join(todo("01_x", *pair))  # what is there is shown
    synchronise("01_x", *pair)
    assert "another English text" in compare("01_x", *pair)[0].what  # it is not taken for written


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("=== 09_no a\n你好\n", "no notebook 09_no"),
        ("=== 01_x b\n你好\n", "no prose cell b"),
        ("你好\n", "todo.txt:1: text before"),
        ("=== 01_x\n你好\n", "todo.txt:3: '=== 01_x' is no head line"),
    ],
)
def test_a_text_that_does_not_fit_writes_nothing(pair: tuple[Path, Path], text: str, words: str) -> None:
    before = (pair[1] / "01_x.ipynb").read_text()
    path = pair[1] / "todo.txt"
    path.write_text("=== 01_x a\n早上好\n" + text if text.startswith("===") else text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        take(path, *pair)
    assert words in str(error.value)
    assert (pair[1] / "01_x.ipynb").read_text() == before


def test_only_paths_go_one_folder_up() -> None:
    assert deeper("a = '../b'; c = \"../../d\"; e = 'x../f'") == "a = '../../b'; c = \"../../../d\"; e = 'x../f'"


# --- executing them -----------------------------------------------------------------------------------------------------


def test_the_notebooks_of_a_language() -> None:
    assert {path.parent.name for path in course_notebooks(language="zh")} == {"zh"}
    with pytest.raises(UserError, match="language 'fr'"):
        course_notebooks(language="fr")


def test_another_language_has_its_own_pages_and_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, str, Any]] = []

    def run(notebook: Path, executed: Path, parameters: dict[str, Any]) -> dict[str, Any]:
        ran.append((notebook.parent.name, str(executed.relative_to(tmp_path)), parameters["output_dir"]))
        return {"name": notebook.stem, "status": "done", "seconds": 1.0}

    monkeypatch.setattr(execute, "_execute", run)
    for language in ("en", "zh", "zh"):
        assert execute.execute_course("embedded", tmp_path, only=["01"], language=language)["ok"]
    main = str(tmp_path / "main")
    assert ran == [
        ("notebooks", "notebooks/01_chat_format.ipynb", main),
        ("zh", "notebooks/zh/01_chat_format.ipynb", main),
    ]
