"""Slides from executed notebooks: question, pictures, answer; offline, without scripts, and as nbconvert takes them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest

from pipeline.cli import main as cli
from pipeline.core.errors import UserError
from pipeline.course.execute import NOTEBOOKS
from pipeline.course.slides import SHORT_PATH, make_slides, slides_of

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A course's output directory: notebooks of the short path, in both languages, with one picture each in 03."""
    for language in ("", "zh"):
        place = tmp_path / "course" / "notebooks" / language
        place.mkdir(parents=True, exist_ok=True)
        for path in (NOTEBOOKS / language).glob("0[01345]_*.ipynb"):
            shutil.copy(path, place)
        book = json.loads((place / "03_mix.ipynb").read_text(encoding="utf-8"))
        (cell,) = [cell for cell in book["cells"] if cell["id"] == "slider"]
        about = {"image/png": {"alt": "chat is 50% [of rows]"}}
        cell["outputs"] = [{"output_type": "display_data", "data": {"image/png": PICTURE}, "metadata": about}]
        (place / "03_mix.ipynb").write_text(json.dumps(book), encoding="utf-8")
    return tmp_path / "course"


@pytest.mark.parametrize(
    ("language", "question", "seen"), [("en", "The question", "What you see"), ("zh", "问题", "看到了什么")]
)
def test_question_picture_answer(course: Path, tmp_path: Path, language: str, question: str, seen: str) -> None:
    made = make_slides(course, tmp_path / "deck", language=language)
    page = (tmp_path / "deck" / "slides.html").read_text(encoding="utf-8")
    slides = re.findall(r"<section.*?</section>", page, re.DOTALL)
    assert made["slides"] == len(slides) == 2 * len(SHORT_PATH) + 1
    assert [name[:2] for name in made["notebooks"]] == SHORT_PATH
    assert page.count(f"<strong>{question}</strong>") == len(SHORT_PATH)
    (picture,) = [slide for slide in slides if "<img" in slide]
    assert f'src="data:image/png;base64,{PICTURE}"' in picture and f"<strong>{seen}</strong>" in picture
    assert 'alt="chat is 50% of rows"' in picture and "<h2" in picture
    assert all("<h1" in slide or "<h2" in slide for slide in slides)
    assert "script" not in re.findall(r"<(\w+)", page) and not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert f'<html lang="{language}">' in page


def test_nbconvert_makes_the_same_slides(course: Path, tmp_path: Path) -> None:
    from nbconvert import SlidesExporter

    made = make_slides(course, tmp_path)
    nbformat.validate(nbformat.read(tmp_path / "slides.ipynb", as_version=4))
    page, _ = SlidesExporter(reveal_url_prefix="reveal").from_filename(str(tmp_path / "slides.ipynb"))
    assert len(re.findall(r"<section><section>", page)) == made["slides"]
    assert "unpkg.com/reveal.js" not in page and "reveal/dist/reveal" in page  # from the folder that is named


def test_what_is_in_a_notebook_is_text(tmp_path: Path) -> None:
    text = "# A\n\n**The question**: <script>alert(1)</script> [a](javascript:alert) and `<think>`?\n\nmore"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    folder = tmp_path / "course" / "notebooks"
    folder.mkdir(parents=True)
    (name,) = [path.name for path in NOTEBOOKS.glob("00_*.ipynb")]
    nbformat.write(notebook, folder / name)
    (slide,) = slides_of(folder / name)
    assert "more" not in slide["source"] and "javascript" not in slide["source"]
    make_slides(tmp_path / "course", tmp_path / "deck", ["00"])
    page = (tmp_path / "deck" / "slides.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "<code>&lt;think&gt;</code>" in page


def test_what_was_not_executed_is_named(course: Path, tmp_path: Path) -> None:
    (course / "notebooks" / "04_finetune.ipynb").unlink()
    with pytest.raises(UserError, match=r"no executed 04_finetune\. Run the course first"):
        make_slides(course, tmp_path / "deck")
    assert not (tmp_path / "deck").exists()
    with pytest.raises(UserError, match="No notebook begins with 99"):
        make_slides(course, tmp_path / "deck", ["99"])


def test_the_command(course: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words: list[Any] = ["course", "--slides", tmp_path / "deck", "--output-dir", course, "--only", "03", "--lang", "en"]
    assert cli.main([*map(str, words), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slides"] == 3
    assert not (course / "course.json").exists()  # nothing was executed
