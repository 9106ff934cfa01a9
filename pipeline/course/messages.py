"""The sentences that stand in the code, as a catalogue names them, and which hints of exercises have no Chinese yet.

For authors: ``python -m pipeline.course.messages`` prints the missing hints in the form of a catalogue, to be filled in and added
to ``pipeline/locale/zh_CN/LC_MESSAGES/pipeline.po``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.language import CATALOGUES
from pipeline.core.place import PACKAGE

EXERCISES = PACKAGE / "course" / "exercises"


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def sentence(node: ast.expr) -> str | None:
    """The message of a text or an f-string, with ``{0}``, ``{1}`` … for its values; None for any other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _escaped(node.value)
    if not isinstance(node, ast.JoinedStr):
        return None
    parts, count = [], 0
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts.append(_escaped(str(value.value)))
        else:
            parts.append(f"{{{count}}}")
            count += 1
    return "".join(parts)


def sentences(folder: Path = PACKAGE) -> set[str]:
    """Every text and f-string of the Python files in a folder, its parts included."""
    nodes = (node for path in sorted(folder.rglob("*.py")) for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    return {text for node in nodes if isinstance(node, ast.expr) and (text := sentence(node)) is not None}


def hints(folder: Path = EXERCISES) -> dict[str, str]:
    """{hint: the file it stands in} of the exercises: what their assertions say to a wrong answer, in the order of the files."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("nb*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Assert) and node.msg is not None and (text := sentence(node.msg)) is not None:
                found.setdefault(text, path.name)
    return found


def catalogue() -> dict[str, str]:
    """{message: translation} of the Chinese catalogue."""
    from babel.messages.pofile import read_po

    with CATALOGUES["zh"].open("rb") as file:
        return {str(m.id): str(m.string) for m in read_po(file, ignore_obsolete=True, abort_invalid=True) if m.id}


def missing() -> Iterator[str]:
    """An entry of a catalogue for each hint without a translation."""
    from babel.messages.pofile import escape

    known = catalogue()
    for text, file in hints().items():
        if not known.get(text):
            yield f'#: {file}\nmsgid "{escape(text)[1:-1]}"\nmsgstr ""\n\n'


if __name__ == "__main__":
    sys.stdout.writelines(missing())
