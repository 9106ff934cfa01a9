"""Keep the Chinese notebooks in step with the English ones: the same code, and prose that was written for the present text.

In: ``notebooks/NN_….ipynb`` and ``notebooks/zh/NN_….ipynb``. Cells correspond by id. A code cell is the English one, letter by
letter with its comments, but for ``"../``, which is ``"../../`` one folder deeper. A Chinese prose cell keeps in its metadata
(``english``) a short hash of the English text that it was written for, so a later change on either side shows.

For authors, ``python -m pipeline.course.translation``:

- ``check`` names every cell that does not correspond, and ends with 1 if there is one;
- ``sync`` copies code over, adds new cells, drops those that are gone, and lists the prose to be written anew;
- ``todo`` prints that prose as a text to fill in: English lines begin with ``%``, Chinese goes below them;
- ``take FILE`` puts such a text into the notebooks.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_text
from pipeline.core.place import ROOT

NOTEBOOKS = ROOT / "notebooks"
HEAD = re.compile(r"^=== (?P<notebook>\S+) (?P<cell>\S+)(?: (?P<english>[0-9a-f]{12}))?$")


@dataclass(frozen=True)
class Problem:
    """A cell that does not correspond to its counterpart."""

    notebook: str
    cell: str
    what: str

    def __str__(self) -> str:
        return f"{self.notebook}, cell {self.cell}: {self.what}"


def source_text(cell: dict[str, Any]) -> str:
    """The source of a cell, which a notebook's file may hold as a list of lines."""
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def source_lines(text: str) -> list[str]:
    """The source of a cell as a notebook's file keeps it."""
    return text.splitlines(keepends=True)


def digest(text: str) -> str:
    """Twelve hexadecimal digits that stand for an English text."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]


def deeper(code: str) -> str:
    """Code as it stands one folder deeper: a path that begins with ``../`` goes one further up."""
    return re.sub(r"""(["'])\.\./""", r"\1../../", code)


def names(english: Path) -> list[str]:
    """The course's notebooks (stems) in order."""
    return sorted(path.stem for path in english.glob("[0-9][0-9]*_*.ipynb"))


def _cells(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = read_json(path)["cells"] if path.exists() else []
    return cells


def _compared(name: str, source: dict[str, Any], cell: dict[str, Any]) -> Problem | None:
    if source["cell_type"] != cell["cell_type"]:
        return Problem(name, source["id"], f"is {cell['cell_type']}, the English one is {source['cell_type']}")
    if source["cell_type"] == "code":
        if source_text(cell) != deeper(source_text(source)):
            return Problem(name, source["id"], "its code is not that of the English cell")
        same = cell["metadata"] == source["metadata"]
        return None if same else Problem(name, source["id"], "its metadata (tags) are not those of the English cell")
    written_for = cell["metadata"].get("english")
    if not written_for:
        return Problem(name, source["id"], "is not written yet")
    if written_for != digest(source_text(source)):
        return Problem(name, source["id"], "was written for another English text")
    return None


def compare(name: str, english: Path, chinese: Path) -> list[Problem]:
    """What does not correspond in one notebook, in the order of the English cells.

    Args:
        name: stem of the notebook, in both folders.
    """
    sources = _cells(english / f"{name}.ipynb")
    cells = {cell["id"]: cell for cell in _cells(chinese / f"{name}.ipynb")}
    if not cells:
        return [Problem(name, "(all)", "there is no Chinese notebook")]
    found = []
    for source in sources:
        if source["id"] not in cells:
            found.append(Problem(name, source["id"], "has no counterpart"))
        elif problem := _compared(name, source, cells[source["id"]]):
            found.append(problem)
    known = {source["id"] for source in sources}
    found += [Problem(name, cell, "has no English counterpart") for cell in cells if cell not in known]
    order = [source["id"] for source in sources if source["id"] in cells]
    if not found and order != list(cells):
        found.append(Problem(name, "(all)", "its cells are in another order"))
    return found


def compare_all(english: Path, chinese: Path) -> list[Problem]:
    """What does not correspond in any notebook, and Chinese notebooks that have no English one."""
    known = names(english)
    found = [problem for name in known for problem in compare(name, english, chinese)]
    return found + [Problem(n, "(all)", "there is no English notebook") for n in names(chinese) if n not in known]


def synchronise(name: str, english: Path, chinese: Path) -> None:
    """Write the Chinese notebook with the English code and cells; prose that is not written yet stands there in English."""
    book = read_json(english / f"{name}.ipynb")
    before = {cell["id"]: cell for cell in _cells(chinese / f"{name}.ipynb")}
    cells = []
    for source in book["cells"]:
        cell = copy.deepcopy(source)
        if cell["cell_type"] == "code":
            cell["source"] = source_lines(deeper(source_text(source)))
        else:
            old = before.get(cell["id"])
            written = old is not None and old["cell_type"] == "markdown" and old["metadata"].get("english")
            cell["source"] = old["source"] if old is not None and written else source["source"]
            cell["metadata"] = {**source["metadata"], "english": written or ""}
        cells.append(cell)
    _write(chinese / f"{name}.ipynb", book | {"cells": cells})


def _write(path: Path, book: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(book, ensure_ascii=False, indent=1) + "\n")


# --- a text to fill in --------------------------------------------------------------------------------------------------


def todo(name: str, english: Path, chinese: Path) -> Iterator[str]:
    """A block for each prose cell to write: a head line, the English behind ``%``, the Chinese that is there."""
    cells = {cell["id"]: cell for cell in _cells(chinese / f"{name}.ipynb")}
    for source in _cells(english / f"{name}.ipynb"):
        if source["cell_type"] != "markdown":
            continue
        cell = cells.get(source["id"])
        if cell is not None and _compared(name, source, cell) is None:
            continue
        yield f"=== {name} {source['id']} {digest(source_text(source))}\n"
        yield from (f"% {line}".rstrip() + "\n" for line in source_text(source).splitlines())
        if cell is not None and cell["cell_type"] == "markdown" and cell["metadata"].get("english"):
            yield source_text(cell) + "\n"
        yield "\n"


def _blocks(lines: list[str], path: Path) -> Iterator[tuple[int, re.Match[str], str]]:
    head: tuple[int, re.Match[str]] | None = None
    text: list[str] = []
    for number, line in enumerate([*lines, "==="], start=1):
        if not line.startswith("==="):
            if head is None and line.strip():
                raise UserError(f"{path}:{number}: text before the first line '=== NOTEBOOK CELL'.")
            if not line.startswith("%"):
                text.append(line)
            continue
        if head is not None:
            yield *head, "\n".join(text).strip()
        if number <= len(lines):
            match = HEAD.match(line)
            if match is None:
                raise UserError(f"{path}:{number}: {line!r} is no head line. It should be '=== NOTEBOOK CELL [HASH]'.")
            head, text = (number, match), []


def take(path: Path, english: Path, chinese: Path) -> int:
    """Put a filled-in text into the notebooks. Blocks without Chinese are left as they are.

    Returns:
        How many cells were written.

    Raises:
        UserError: the text has another form, or names a cell that there is not. Nothing is written then.
    """
    books: dict[str, dict[str, Any]] = {}
    count = 0
    for number, head, text in _blocks(path.read_text(encoding="utf-8").splitlines(), path):
        name, where = head["notebook"], f"{path}:{head['notebook']} (line {number})"
        if name not in names(english):
            raise UserError(f"{where}: there is no notebook {name}.")
        if not (chinese / f"{name}.ipynb").exists():
            raise UserError(f"{where}: there is no Chinese notebook yet. Run sync first.")
        books.setdefault(name, read_json(chinese / f"{name}.ipynb"))
        sources = {cell["id"]: cell for cell in _cells(english / f"{name}.ipynb") if cell["cell_type"] == "markdown"}
        own = [cell for cell in books[name]["cells"] if cell["id"] == head["cell"] and head["cell"] in sources]
        if not own:
            raise UserError(f"{where}: there is no prose cell {head['cell']}. Run sync, then todo again.")
        if text:
            own[0]["source"] = source_lines(text)
            own[0]["metadata"]["english"] = head["english"] or digest(source_text(sources[head["cell"]]))
            count += 1
    for name, book in books.items():
        _write(chinese / f"{name}.ipynb", book)
    return count


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and do it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.course.translation", description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["check", "sync", "todo", "take"])
    parser.add_argument("file", nargs="?", type=Path, help="with take: the filled-in text")
    parser.add_argument("--only", metavar="NN", help="notebooks whose names begin so, e.g. 01")
    parser.add_argument("--english", type=Path, default=NOTEBOOKS, metavar="DIR", help="the English notebooks")
    parser.add_argument("--chinese", type=Path, default=NOTEBOOKS / "zh", metavar="DIR", help="the Chinese notebooks")
    args = parser.parse_args(argv)
    chosen = [name for name in names(args.english) if name.startswith(args.only or "")]
    try:
        if args.action == "take":
            if args.file is None:
                parser.error("take needs a file")
            print(f"{take(args.file, args.english, args.chinese)} cells written")
            return 0
        if args.action == "todo":
            for name in chosen:
                sys.stdout.writelines(todo(name, args.english, args.chinese))
            return 0
        if args.action == "sync":
            for name in chosen:
                synchronise(name, args.english, args.chinese)
        problems = [problem for name in chosen for problem in compare(name, args.english, args.chinese)]
        if not args.only:
            problems = compare_all(args.english, args.chinese)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
