"""Slides from executed notebooks: of each its question, its pictures with what one sees, and its answer.

In: the output directory of a course. Out: ``slides.html``, which needs no network and no script (Space goes to the next slide,
printing gives a page a slide), and ``slides.ipynb``, the same as a notebook whose cells are slides, for ``jupyter nbconvert --to
slides``; what that makes loads reveal.js from the network, or from a folder. The notebooks themselves are left as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_text
from pipeline.core.templates import environment
from pipeline.course.execute import ENGLISH, course_notebooks
from pipeline.course.index import TEMPLATES, pictures_of, title_of
from pipeline.course.translation import source_text

SHORT_PATH = ["00", "01", "03", "04", "05"]  # of the half day in docs/teaching.md
SEEN = re.compile(r"^- \*\*(?:What you see|看到了什么)\*\*.*(?:\n  .*)*", re.MULTILINE)
ANSWER = re.compile(r"## (?:The answer|答案)\n")
LINK = re.compile(r"!?\[([^\]\n]*)\]\((?!attachment:)[^)\s]+\)")  # the slides lie elsewhere: its words stay


def _slide(name: str, text: str, attachments: dict[str, dict[str, str]] | None = None) -> dict[str, Any]:
    cell = {
        "cell_type": "markdown",
        "id": name,
        "metadata": {"slideshow": {"slide_type": "slide"}},
        "source": LINK.sub(r"\1", text).strip(),
    }
    return cell | ({"attachments": attachments} if attachments else {})


def slides_of(notebook: Path) -> Iterator[dict[str, Any]]:
    """The slides of one executed notebook, in order: cells in Markdown, each a slide, with its pictures attached."""
    name, title = notebook.stem, title_of(notebook)
    cells = read_json(notebook)["cells"]
    heading, begun = title, False
    for place, cell in enumerate(cells):
        if cell["cell_type"] == "markdown":
            text = source_text(cell)
            if not begun and text.startswith("# "):
                begun = True
                yield _slide(f"{name}-question", "\n\n".join(text.split("\n\n")[:2]))
            elif ANSWER.match(text):
                yield _slide(f"{name}-answer", f"## {title}\n\n" + ANSWER.sub("", text.partition("\n### ")[0], count=1))
            if headings := re.findall(r"^#{2,3} (.+)$", text, re.MULTILINE):
                heading = headings[-1]
        elif found := pictures_of(cell):
            attached = {f"{i}.{p.kind.partition('/')[2]}": {p.kind: p.data} for i, p in enumerate(found)}
            words = [re.sub(r"[\[\]]", "", picture.alt) or heading for picture in found]
            shown = "\n\n".join(f"![{alt}](attachment:{file})" for alt, file in zip(words, attached, strict=True))
            below = source_text(cells[place + 1]) if place + 1 < len(cells) else ""
            seen = SEEN.search(below)
            yield _slide(f"{name}-{place}", f"## {heading}\n\n{shown}\n\n{seen[0] if seen else ''}", attached)


def _html(slide: dict[str, Any]) -> str:
    """A slide's Markdown as HTML, pictures included; HTML that stands in it is shown as text."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    renderer = IPythonRenderer(escape=True, attachments=slide.get("attachments", {}), exclude_anchor_links=True)
    return str(MarkdownWithMath(renderer=renderer).render(slide["source"]))


def make_slides(
    course: Path, folder: Path, only: Sequence[str] | None = None, language: str = ENGLISH
) -> dict[str, Any]:
    """Write ``slides.html`` and ``slides.ipynb``; nothing is executed.

    Args:
        course: the output directory of a course.
        folder: where the two files go.
        only: notebooks, as ``course_notebooks`` takes them; None: the short path.
        language: of the notebooks, ``en`` or ``zh``.

    Returns:
        ``{"slides": how many, "notebooks": [names], "files": [paths]}``.

    Raises:
        UserError: a notebook has not been executed yet, or its name is unknown.
    """
    executed = course / "notebooks" if language == ENGLISH else course / "notebooks" / language
    books = [executed / notebook.name for notebook in course_notebooks(list(only or SHORT_PATH), language)]
    missing = [book.stem for book in books if not book.is_file()]
    if missing:
        raise UserError(
            f"{executed} has no executed {', '.join(missing)}. Run the course first (the same command without --slides), or "
            "choose others with --only."
        )
    cells = [slide for book in books for slide in slides_of(book)]
    notebook = {"cells": cells, "metadata": {"title": "Slides"}, "nbformat": 4, "nbformat_minor": 5}
    page = environment(TEMPLATES, escape=True).get_template("slides.html.j2")
    write_text(folder / "slides.ipynb", json.dumps(notebook, ensure_ascii=False, indent=1) + "\n")
    write_text(folder / "slides.html", page.render(slides=[_html(cell) for cell in cells], language=language))
    files = [str(folder / name) for name in ("slides.html", "slides.ipynb")]
    return {"slides": len(cells), "notebooks": [book.stem for book in books], "files": files}
