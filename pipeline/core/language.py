"""What the project says, in the reader's language: English, or Chinese by a gettext catalogue.

The code holds English sentences, many of them f-strings; they are translated where they leave the program (``console.say``, the
printed result and errors of a command, the hints of an exercise), never in what is written to a file. So the catalogue
(``locale/zh_CN/LC_MESSAGES/pipeline.po``) has a message for a sentence as it stands in the code, with ``{0}``, ``{1}`` … for the
values of an f-string in their order; the translation may use them in another. What stands for a value is translated in turn, so a
sentence may hold another one; but not within a name: ``evaluation.sampling.{0}`` stays what has to be typed. What the catalogue
lacks stays English, with its lines, and its parts at ``: `` and ``; ``, looked for one by one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.core.catalogue import read_catalogue
from pipeline.core.place import PACKAGE

LANGUAGES = ("en", "zh")
VARIABLE = "PIPELINE_LANG"
CATALOGUES = {"zh": PACKAGE / "locale" / "zh_CN" / "LC_MESSAGES" / "pipeline.po"}
SURE = 12  # letters beside its values, by which a sentence is known wherever it stands
PARTED = (("; ", "；"), (": ", "："))  # what parts the sentences that the code puts together from others
_HOLE = re.compile(r"\{(\d+)\}")
_SPACES = re.compile("(?<=[\u4e00-\u9fff]) \0(?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff]\0) (?=[\u4e00-\u9fff])")
_IN_A_NAME = re.compile(r"(?<=[\w.=/`'-])\{(\d+)\}|\{(\d+)\}(?=[\w.=/`'-])", re.ASCII)


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


def translate(text: str, ours: bool = False) -> str:
    """``text`` in the reader's language: as a whole, else line by line and part by part; the unknown stays as it is.

    Args:
        ours: it is a sentence of this project for certain, so one that has few words beside its values is known too.
    """
    chosen = language()
    return text if chosen == "en" else _translate(text, chosen, ours)


def _translate(text: str, chosen: str, within: bool = False) -> str:
    """``within``: ``text`` is a value in a sentence of ours; else it may be of another: a row, a reply, a library's words."""
    if not re.search("[A-Za-z]", text):
        return text
    exact, templates = _catalogue(chosen)
    if text in exact:
        return exact[text]
    for template in templates:
        values = template.values(text)
        if values is not None and (within or template.is_sure(values)):
            said = [
                value if number in template.names or value == text else _translate(value, chosen, True)
                for number, value in enumerate(values)
            ]
            return template.filled(said, [new != value for new, value in zip(said, values, strict=True)])
    if "\n" in text:
        return "\n".join(_part(line, chosen, within) for line in text.split("\n"))
    for english, chinese in PARTED:
        first, found, rest = text.partition(english)
        said = [_part(part, chosen, within) for part in (first, rest)] if found else []
        if said and said != [first, rest]:
            return chinese.join(said)
    return text


def _part(text: str, chosen: str, within: bool) -> str:
    """A line, or what stands at a colon; a single word there may be anything."""
    return _translate(text, chosen, within) if " " in text else text


@dataclasses.dataclass(frozen=True)
class _Template:
    """A sentence with values: what stands around them, its translation, and the numbers of the values that stay as they are."""

    parts: tuple[str, ...]
    target: str
    names: frozenset[int]

    def values(self, text: str) -> tuple[str, ...] | None:
        """Those of ``text``; None where it is another sentence."""
        # Most are ruled out by a word that the text lacks, without a regular expression.
        if not text.startswith(self.parts[0]) or not text.endswith(self.parts[-1]):
            return None
        match = self._pattern.fullmatch(text) if all(part in text for part in self.parts) else None
        return match and match.groups()

    @property
    def letters(self) -> int:
        return sum(map(str.isalpha, "".join(self.parts)))

    def is_sure(self, values: Sequence[str]) -> bool:
        """Nobody else says it: it has words enough, or begins with them, or its first value is a number, or a name with one."""
        return bool(self.parts[0] or self.letters >= SURE or re.fullmatch(r"\S*\d\S*", values[0]))

    def order(self) -> tuple[int, int]:
        """What begins with words of its own comes before what begins with a value, which might take them for it."""
        announces = self.parts[0] and self.parts[-2].endswith(": ") and not self.parts[-1]  # error: {0}
        group = 0 if self.parts[0] and self.letters >= SURE else 1 if announces else 2
        return group, -sum(map(len, self.parts))

    def filled(self, values: Sequence[str], translated: Sequence[bool]) -> str:
        """The translation with values. Chinese stands beside Chinese without the space that a name or a number has."""
        marked = (f"\0{value}\0" if new else value for value, new in zip(values, translated, strict=True))
        text = _SPACES.sub("", self.target.format(*marked))
        return text.replace("\0", "")

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        # Several lines are one sentence only if they begin with its words. Behind a full stop comes a sentence, or nothing.
        holes = [
            r"(|\s.*?)" if part.endswith(".") and number not in self.names else "(.*?)"
            for number, part in enumerate(self.parts[:-1])
        ]
        pattern = "".join(re.escape(part) + hole for part, hole in zip(self.parts, [*holes, ""], strict=True))
        return re.compile(pattern, re.DOTALL if self.parts[0] or "\n" in "".join(self.parts) else 0)


@functools.cache
def _catalogue(chosen: str) -> tuple[dict[str, str], list[_Template]]:
    """Whole sentences, and those with values in the order in which they are tried: the most literal ones first."""
    exact: dict[str, str] = {}
    templates: list[_Template] = []
    for source, target in read_catalogue(CATALOGUES[chosen]):
        if not target:
            continue
        if _HOLE.search(source):
            names = frozenset(int(first or second) for first, second in _IN_A_NAME.findall(target))
            templates.append(_Template(tuple(map(_plain, _HOLE.split(source)[::2])), target, names))
        else:
            exact[_plain(source)] = _plain(target)
    templates.sort(key=_Template.order)
    return exact, templates


def _plain(text: str) -> str:
    return text.replace("{{", "{").replace("}}", "}")
