"""The page of an executed course: a line a notebook with picture, time and result; what is in a notebook stays text."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest

from pipeline.course import execute
from pipeline.course.execute import execute_course
from pipeline.course.index import first_picture, title_of, write_index

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())

    def all(self, tag: str, attribute: str) -> list[str | None]:
        return [found[attribute] for name, found in self.tags if name == tag and attribute in found]


def put(path: Path, *cells: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata=KERNEL), path)


def drawn(alt: str | None = None) -> Any:
    about = {} if alt is None else {"image/png": {"alt": alt}}
    output = nbformat.v4.new_output("display_data", data={"image/png": PICTURE, "text/plain": "x"}, metadata=about)
    return nbformat.v4.new_code_cell("1", outputs=[output])


def test_title_and_picture(tmp_path: Path) -> None:
    text = nbformat.v4.new_markdown_cell("# 01 · Two <modes>\n\nwords")
    put(tmp_path / "01_x.ipynb", text, nbformat.v4.new_code_cell("1"), drawn(), drawn("a later one"))
    put(tmp_path / "02_x.ipynb", drawn("bars of 0.5"))
    assert title_of(tmp_path / "01_x.ipynb") == "01 · Two <modes>"
    assert title_of(tmp_path / "02_x.ipynb") == "02_x" and title_of(tmp_path / "03_gone.ipynb") == "03_gone"
    first = first_picture(tmp_path / "01_x.ipynb", "the title")
    assert first == ("image/png", PICTURE, "First picture of the title")
    second = first_picture(tmp_path / "02_x.ipynb", "")
    assert second is not None and second.alt == "bars of 0.5"


def test_a_line_a_notebook_and_all_of_it_is_text(tmp_path: Path) -> None:
    books, out = tmp_path / "books", tmp_path / "out"
    put(books / "01_x.ipynb", nbformat.v4.new_markdown_cell("# <script>alert(1)</script>"))
    put(out / "notebooks" / "01_x.ipynb", drawn('"><script>alert(2)</script>'))
    (out / "notebooks" / "01_x.html").write_text("page", encoding="utf-8")
    put(out / "notebooks" / "zh" / "02_y.ipynb", nbformat.v4.new_code_cell("1"))
    entries = {
        "01_x": {"status": "done", "seconds": 12.3},
        "zh/02_y": {"status": "failed", "seconds": 1.0, "error": "02_y failed in code cell 1:\n    x\nKeyError: '<b>'"},
        "03_z": {"status": "not run", "seconds": 0.0},
    }
    sources = {name: books / f"{name}.ipynb" for name in entries}
    page = Page(write_index(out, entries, sources))
    text = " ".join(filter(None, page.words))
    assert page.all("a", "href") == ["notebooks/01_x.html", "notebooks/01_x.ipynb", "notebooks/zh/02_y.ipynb"]
    assert page.all("img", "src") == [f"data:image/png;base64,{PICTURE}"]
    assert page.all("img", "alt") == ['"><script>alert(2)</script>']
    assert "script" not in {tag for tag, _ in page.tags} and "<script>alert(1)</script>" in text
    assert "1 of 3 notebooks passed, 1 failed." in text and "12 seconds" in text and "✓ passed" in text
    assert "KeyError: '<b>'" in text and "failed in code cell" not in text and "not run" in text
    assert all((out / str(link)).is_file() for link in page.all("a", "href"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number in ("00", "01", "02"):
        put(tmp_path / "notebooks" / f"{number}_x.ipynb", nbformat.v4.new_markdown_cell(f"# {number} · Lesson"))
    monkeypatch.setattr(execute, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path


def test_the_page_is_written_after_each_notebook(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def run(notebook: Path, executed: Path, parameters: dict) -> dict:
        seen.append(" ".join(filter(None, Page(folder / "out" / "index.html").words)))
        put(executed, drawn())
        if notebook.stem == "01_x":
            return {"name": "01_x", "status": "failed", "seconds": 2.0, "error": "cell\nZeroDivisionError: division"}
        return {"name": notebook.stem, "status": "done", "seconds": 1.0}

    monkeypatch.setattr(execute, "_execute", run)
    assert not execute_course("embedded", folder / "out", workers=1)["ok"]
    assert ["0 of 3 notebooks passed, 0 failed." in seen[0], "1 of 3 notebooks passed, 0 failed." in seen[1]] == [
        True
    ] * 2
    page = Page(folder / "out" / "index.html")
    text = " ".join(filter(None, page.words))
    assert "1 of 3 notebooks passed, 1 failed." in text and "ZeroDivisionError: division" in text and "not run" in text
    assert page.all("img", "alt") == ["First picture of 00 · Lesson", "First picture of 01 · Lesson"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["course.json", "index.html", "notebooks"]


def test_what_an_earlier_call_finished_stays_on_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = lambda notebook, executed, parameters: {"name": notebook.stem, "status": "done", "seconds": 61.0}  # noqa: E731
    monkeypatch.setattr(execute, "_execute", done)
    for only in ("00", "02"):
        assert execute_course("embedded", folder / "out", only=[only])["ok"]
    text = " ".join(filter(None, Page(folder / "out" / "index.html").words))
    assert "2 of 2 notebooks passed" in text and "00 · Lesson" in text and text.count("61 seconds") == 2


@pytest.mark.slow
def test_a_real_failure_is_on_the_page(folder: Path) -> None:
    tagged = nbformat.v4.new_code_cell("output_dir = ''", metadata={"tags": ["parameters"]})
    for number, code in (("00", "1 + 1"), ("01", "1 / 0")):
        head = nbformat.v4.new_markdown_cell(f"# {number} · Lesson")
        put(folder / "notebooks" / f"{number}_x.ipynb", head, tagged, nbformat.v4.new_code_cell(code))
    assert not execute_course("embedded", folder / "out", only=["00", "01"], workers=1)["ok"]
    page = Page(folder / "out" / "index.html")
    text = " ".join(filter(None, page.words))
    assert "ZeroDivisionError: division by zero" in text and "1 of 2 notebooks passed, 1 failed." in text
    assert all((folder / "out" / str(link)).is_file() for link in page.all("a", "href"))
    assert len(page.all("a", "href")) == 4
