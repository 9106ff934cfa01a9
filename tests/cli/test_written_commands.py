"""Each command that a page, a recipe, a profile, a notebook or the code names is one that the program knows."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path

import pytest

from pipeline.cli.main import parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["*.md", "docs/*.md", "data_recipes/*.yaml", "pipeline/profiles/*.yaml", "ablations/*.yaml", "launch/**/*"]
PAGES += ["notebooks/*.ipynb", "notebooks/zh/*.ipynb"]
NUMBERS = {"N": "1", "X": "1", "T": "1"}  # placeholders of options that take a number


def texts() -> list[tuple[str, str]]:
    """The lines of every page, those of a command that goes on behind a backslash as one."""
    found = []
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                text = path.read_text(encoding="utf-8")
                if path.suffix == ".ipynb":
                    text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
                found.append((path.relative_to(ROOT).as_posix(), re.sub(r"\\\n\s*", "", text)))
    return found


def commands(text: str) -> list[str]:
    """What stands behind ``python -m pipeline`` in a text; sentences that name the program alone are none."""
    return [
        match[0] for match in re.findall(r"python -m pipeline ([a-z][\w-]*( [^`#\n;|&]*?)?)(?=[`#\n;|&]| -->|$)", text)
    ]


def parse(command: str) -> argparse.Namespace | None:
    """The command as the program reads it; None where it is cut short (``…``) or goes on in prose."""
    if "…" in command or "..." in command:
        return None
    try:
        words = shlex.split(command.replace("[", "").replace("]", "") if "[-" in command else command)
    except ValueError:
        return None
    return parser().parse_args([NUMBERS.get(word, word) for word in words])


@pytest.mark.parametrize(("page", "text"), [pytest.param(*entry, id=entry[0]) for entry in texts()])
def test_it_is_a_command(page: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for command in commands(text):
        try:
            parse(command)
        except SystemExit:
            said = capsys.readouterr().err.splitlines()[-1]
            if "arguments are required" not in said:  # a sentence may leave out what everybody has to add
                wrong.append(f"{command}: {said}")
    assert wrong == []


@pytest.mark.parametrize("command", ["run --profile embedded --recipe R --output-dir D", "sweeep --output-dir D"])
def test_a_wrong_command_is_found(command: str) -> None:
    assert commands(f"Try `python -m pipeline {command}`; it is short.") == [command]
    with pytest.raises(SystemExit):
        parse(command)
