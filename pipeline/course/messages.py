"""The sentences that stand in the code, as a catalogue names them, and which hints and messages have no Chinese yet.

For authors: ``python -m pipeline.course.messages`` prints the missing ones in the form of a catalogue, to be filled in and added
to ``pipeline/locale/zh_CN/LC_MESSAGES/pipeline.po``.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.core.language import CATALOGUES
from pipeline.core.place import PACKAGE

EXERCISES = PACKAGE / "course" / "exercises"
HOLE = re.compile(r"\{\d+\}")
LETTERS = 4  # beside its values, of a sentence that can be known by them


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _parts(node: ast.expr) -> list[str | None]:
    """The texts of a text, of an f-string or of a sum of both, with None for each value between them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [_escaped(node.value)]
    if isinstance(node, ast.JoinedStr):
        return [part for value in node.values for part in _parts(value)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _parts(node.left) + _parts(node.right)
    return [None]


def sentence(node: ast.expr) -> str | None:
    """The message of a text, an f-string or a sum of such, with ``{0}``, ``{1}`` … for its values; of all else, None."""
    parts = _parts(node)
    if not isinstance(node, ast.JoinedStr) and all(part is None for part in parts):
        return None
    numbers = itertools.count()
    return "".join(f"{{{next(numbers)}}}" if part is None else part for part in parts)


def sentences(folder: Path = PACKAGE) -> set[str]:
    """Every text and f-string of the Python files in a folder, its parts included, and what is written as a catalogue has it."""
    found = set()
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.expr) and (text := sentence(node)) is not None:
                found.add(text)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and HOLE.search(node.value):
                found.add(node.value)  # the words of another library, with holes
    return found


def hints(folder: Path = EXERCISES) -> dict[str, str]:
    """{hint: the file it stands in} of the exercises: what their assertions say to a wrong answer, in the order of the files."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("nb*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Assert) and node.msg is not None and (text := sentence(node.msg)) is not None:
                found.setdefault(text, path.name)
    return found


def said(folder: Path = PACKAGE) -> dict[str, str]:
    """{sentence: its file, relative to ``folder``} of what ``UserError`` and ``say`` are called with.

    Without those that hold next to nothing but values (``{0}: {1}``): they have nothing to know them by, and their values are
    translated all the same.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("UserError", "say"):
                for text in filter(None, map(sentence, node.args)):
                    if len(re.sub(r"\W", "", HOLE.sub("", text))) >= LETTERS:
                        found.setdefault(text, path.relative_to(folder).as_posix())
    return found


@functools.cache
def catalogue() -> dict[str, str]:
    """{message: translation} of the Chinese catalogue."""
    from babel.messages.pofile import read_po

    with CATALOGUES["zh"].open("rb") as file:
        return {str(m.id): str(m.string) for m in read_po(file, ignore_obsolete=True, abort_invalid=True) if m.id}


def missing(wanted: Mapping[str, str] | None = None) -> Iterator[str]:
    """An entry of a catalogue for each sentence without a translation, of {sentence: file}; of the hints, without any given."""
    from babel.messages.pofile import escape

    known = catalogue()
    for text, file in (hints() if wanted is None else wanted).items():
        if not known.get(text):
            yield f'#: {file}\nmsgid "{escape(text)[1:-1]}"\nmsgstr ""\n\n'


if __name__ == "__main__":
    sys.stdout.writelines(missing(hints() | said()))
