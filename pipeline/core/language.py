"""What the project says, in the reader's language: English, or Chinese by a gettext catalogue.

The code holds English sentences, many of them f-strings; they are translated where they leave the program (``console.say``, the
printed result and errors of a command, the hints of an exercise), never in what is written to a file. So the catalogue
(``locale/zh_CN/LC_MESSAGES/pipeline.po``) has a message for a sentence as it stands in the code, with ``{0}``, ``{1}`` … for the
values of an f-string in their order; the translation may use them in another. What stands for a value is translated in turn, so a
sentence may hold another one; but not within a name: ``evaluation.sampling.{0}`` stays what has to be typed. What the catalogue
lacks stays English.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.core.place import PACKAGE

LANGUAGES = ("en", "zh")
VARIABLE = "PIPELINE_LANG"
CATALOGUES = {"zh": PACKAGE / "locale" / "zh_CN" / "LC_MESSAGES" / "pipeline.po"}
_HOLE = re.compile(r"\{(\d+)\}")
_IN_A_NAME = re.compile(r"(?<=[\w.=/-])\{(\d+)\}|\{(\d+)\}(?=[\w.=/-])", re.ASCII)


def language(environment: Mapping[str, str] | None = None) -> str:
    """``en`` or ``zh``: ``PIPELINE_LANG`` (as ``--lang`` sets it), else the folder of the Chinese notebooks, else the locale.

    Args:
        environment: instead of the process's own; the first of LANGUAGE, LC_ALL, LC_MESSAGES and LANG that is set counts.
            What is no Chinese (``zh``, ``zh_CN.UTF-8``, …) is English.
    """
    found = os.environ if environment is None else environment
    names = [VARIABLE, "LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"]
    with contextlib.suppress(OSError):  # the working folder may be gone
        if not found.get(VARIABLE) and Path.cwd().parts[-2:] == ("notebooks", "zh"):
            return "zh"
    value = next((found[name] for name in names if found.get(name)), "")
    return "zh" if value.lower().startswith("zh") else "en"


def choose(name: str) -> None:
    """Speak this language from now on, also in the processes that this one starts."""
    os.environ[VARIABLE] = name


def translate(text: str) -> str:
    """``text`` in the reader's language: as a whole, else line by line; what the catalogue does not know stays as it is."""
    chosen = language()
    return text if chosen == "en" else _translate(text, chosen)


def _translate(text: str, chosen: str) -> str:
    if not re.search("[A-Za-z]", text):
        return text
    exact, templates = _catalogue(chosen)
    if text in exact:
        return exact[text]
    for parts, target in templates:
        # Most sentences are ruled out by a word that they lack, without a regular expression.
        if all(part in text for part in parts) and (match := _pattern(parts).fullmatch(text)):
            names = {int(first or second) for first, second in _IN_A_NAME.findall(target)}
            values = enumerate(match.groups())
            return target.format(
                *(value if i in names or value == text else _translate(value, chosen) for i, value in values)
            )
    if "\n" in text:
        return "\n".join(_translate(line, chosen) for line in text.split("\n"))
    return text


@functools.cache
def _pattern(parts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("(.*?)".join(map(re.escape, parts)), re.DOTALL)


_Templates = list[tuple[tuple[str, ...], str]]


@functools.cache
def _catalogue(chosen: str) -> tuple[dict[str, str], _Templates]:
    """Whole sentences, and those with values: what stands between the values, and the translation; the most literal ones first."""
    from babel.messages.pofile import read_po

    exact: dict[str, str] = {}
    templates: _Templates = []
    with CATALOGUES[chosen].open("rb") as file:
        for message in read_po(file, ignore_obsolete=True, abort_invalid=True):
            source, target = str(message.id), str(message.string)
            if not source or not target:
                continue
            if _HOLE.search(source):
                templates.append((tuple(map(_plain, _HOLE.split(source)[::2])), target))
            else:
                exact[_plain(source)] = _plain(target)
    templates.sort(key=lambda entry: -sum(map(len, entry[0])))
    return exact, templates


def _plain(text: str) -> str:
    return text.replace("{{", "{").replace("}}", "}")
