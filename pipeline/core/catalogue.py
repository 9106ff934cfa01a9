"""Read a gettext catalogue (``.po``) with the standard library alone, so that ``--help`` in Chinese answers at once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_ENTRY = re.compile(r'^msgid ((?:"(?:[^"\\\n]|\\.)*"\s*)+)^msgstr ((?:"(?:[^"\\\n]|\\.)*"\s*)+)', re.MULTILINE)
_PIECE = re.compile(r'"(?:[^"\\\n]|\\.)*"')


def read_catalogue(path: Path) -> Iterator[tuple[str, str]]:
    """Each (message, translation) in the order of the file, without the header and without obsolete entries (``#~``).

    A catalogue of the project has neither contexts nor plurals.
    """
    for entry in _ENTRY.finditer(path.read_text(encoding="utf-8")):
        source, target = ("".join(ast.literal_eval(piece) for piece in _PIECE.findall(part)) for part in entry.groups())
        if source:
            yield source, target
