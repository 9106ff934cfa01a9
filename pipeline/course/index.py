"""A page about an executed course: ``index.html`` beside ``course.json``, a line a notebook.

In: the output directory of a course, and what is known of each notebook. Out: one file without scripts that loads nothing: title,
links to the executed notebook and its page, the first picture of its outputs, seconds, and how it ended.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipeline.core.console import duration
from pipeline.core.files import read_json, write_text
from pipeline.core.place import PACKAGE
from pipeline.core.templates import environment
from pipeline.course.translation import source_text

TEMPLATES = PACKAGE / "course" / "kit"
PICTURES = ("image/png", "image/jpeg")
# Status of an entry → the word on the page; those that are neither passed nor failed are not done.
WORDS = {"done": "passed", "done before": "passed", "failed": "failed"}


class Picture(NamedTuple):
    """A picture of a notebook's outputs: kind (``image/png``), content (base64), words for who cannot see it."""

    kind: str
    data: str
    alt: str


def title_of(notebook: Path) -> str:
    """The first heading of a notebook; the name of the file where it has none, or where the file is gone."""
    cells = read_json(notebook)["cells"] if notebook.exists() else []
    for cell in cells:
        if cell["cell_type"] == "markdown" and (match := re.search(r"^# (.+)$", source_text(cell), re.MULTILINE)):
            return match[1].strip()
    return notebook.stem


def pictures_of(cell: Mapping[str, Any]) -> list[Picture]:
    """The pictures among the outputs of a cell; ``alt`` is empty where the notebook gives none."""
    found = []
    for output in cell.get("outputs", []):
        for kind in PICTURES:
            if kind in output.get("data", {}):
                data, about = output["data"][kind], output.get("metadata", {}).get(kind, {})
                text = data if isinstance(data, str) else "".join(data)
                found.append(Picture(kind, "".join(text.split()), str(about.get("alt", ""))))
                break
    return found


def first_picture(notebook: Path, title: str) -> Picture | None:
    """The first picture of an executed notebook; None where it has none."""
    for cell in read_json(notebook)["cells"]:
        for picture in pictures_of(cell):
            return picture._replace(alt=picture.alt or f"First picture of {title}")
    return None


def _line(name: str, entry: Mapping[str, Any], source: Path, folder: Path) -> dict[str, Any]:
    place = PurePosixPath("notebooks") / f"{name}.ipynb"
    page = place.with_suffix(".html")
    executed = folder / place
    there = entry["status"] in WORDS and executed.exists()
    title = title_of(source)
    return {
        "title": title,
        "status": WORDS.get(entry["status"], entry["status"]),
        "seconds": duration(entry["seconds"]) if entry["status"] in WORDS else "",
        "error": (entry.get("error", "").strip().splitlines() or [""])[-1],
        "notebook": str(place) if there else None,
        "page": str(page) if there and (folder / page).exists() else None,
        "picture": first_picture(executed, title) if there else None,
    }


def write_index(folder: Path, entries: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Path]) -> Path:
    """Write ``index.html`` as a whole.

    Args:
        folder: the course's output directory.
        entries: name of a notebook (``zh/`` before it for one in Chinese) → ``status``, ``seconds`` and, where it failed,
            ``error``.
        sources: the same names → the notebooks that are executed, for their titles.

    Returns:
        The path of the page.
    """
    lines = [_line(name, entries[name], sources[name], folder) for name in sorted(entries)]
    count = {word: sum(line["status"] == word for line in lines) for word in ("passed", "failed")}
    text = environment(TEMPLATES, escape=True).get_template("index.html.j2").render(lines=lines, count=count)
    write_text(folder / "index.html", text)
    return folder / "index.html"
