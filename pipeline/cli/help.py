"""``--help`` and the answer to a wrong call, in the reader's language.

The commands give their ``help=`` in English, as argparse wants it. It is translated only while a page is written, so that the
commands are put together without the catalogue. What argparse itself says stands in ``ARGPARSE_SAYS``, so that the catalogue
has it.

For authors: ``python -m pipeline.cli.untranslated`` prints what has no Chinese yet, in the form of a catalogue.
"""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from pipeline.core.language import LANGUAGES, translate

# Of Python 3.11 to 3.13, as far as a person can meet them here.
ARGPARSE_SAYS = (
    "usage: ",
    "options",
    "positional arguments",
    "show this help message and exit",
    "show program's version number and exit",
    "argument {0}: {1}",
    "the following arguments are required: {0}",
    "unrecognized arguments: {0}",
    "invalid choice: {0} (choose from {1})",
    "invalid {0} value: {1}",
    "ambiguous option: {0} could match {1}",
    "expected one argument",
    "expected at least one argument",
    "ignored explicit argument {0}",
)
_HAN = "\u2e80-\u9fff\uff00-\uffef\u3000-\u303f"
# What stays together on a line: a word, or one Chinese character, with the signs that may not end or begin one, also behind
# a space.
_PIECE = re.compile(rf"\s+|(?:[（“《]\s*)*(?:[^\s{_HAN}“”]+|[{_HAN}])(?:\s*[，。；：、）”》？！…])*|.")


def width(text: str) -> int:
    """Columns that a text takes on a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def wrapped(text: str, columns: int) -> list[str]:
    """Lines of at most ``columns``, broken at spaces and between Chinese characters; a longer word has a line of its own."""
    lines, line = [], ""
    for piece in _PIECE.findall(" ".join(text.split())):
        if line and width(line + piece.rstrip()) > columns:
            lines.append(line.rstrip())
            line = ""
        line += piece if line else piece.lstrip()
    return [*lines, line.rstrip()] if line.strip() else lines


class Formatter(argparse.HelpFormatter):
    """Translates each text as it is put on the page. English pages are argparse's own, sign for sign."""

    def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, translate("usage: ") if prefix is None else prefix)

    def start_section(self, heading: str | None) -> None:
        super().start_section(heading and translate(heading))

    def add_text(self, text: str | None) -> None:
        super().add_text(text and translate(text))

    def format_help(self) -> str:
        page = super().format_help()
        return re.sub(f"(?m)^([{_HAN}]+):$", r"\1：", page)  # argparse puts its own colon behind a heading

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help and translate(action.help)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(text, width) if _is_chinese(text) else super()._split_lines(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if not _is_chinese(text):
            return super()._fill_text(text, width, indent)
        return "\n".join(indent + line for line in wrapped(text, width - len(indent)))


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that speaks the reader's language; the parsers of its commands are of the same kind."""

    def __init__(self, **given: Any) -> None:
        super().__init__(formatter_class=Formatter, **given)

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong, and end with 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: {translate(f'error: {message}')}\n")


def asked_language(argv: Sequence[str]) -> str | None:
    """The language that a command line asks for in front of its command; None: none, or none that is known."""
    options = iter(argv)
    for text in options:
        name, _, value = text.partition("=")
        if len(name) > 2 and "--lang".startswith(name):  # argparse takes what is short for it too
            value = value or next(options, "")
            return value if value in LANGUAGES else None
        if not text.startswith("-"):
            return None
    return None


def texts(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """(command, text) for each description and each ``help=`` of a parser and of all commands below it."""
    for text in (parser.description, parser.epilog):
        if text:
            yield parser.prog, text
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from ((parser.prog, choice.help) for choice in action._choices_actions if choice.help)
            for command in action.choices.values():
                yield from texts(command)
        elif action.help:
            yield parser.prog, action.help


def _is_chinese(text: str) -> bool:
    return re.search(f"[{_HAN}]", text) is not None
