"""The page of complaints: every command on it is one that there is, and both languages have the same ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipeline.cli.main import parser
from pipeline.settings import load_profile

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("complaints.md", "complaints.zh.md")


def commands(name: str) -> list[str]:
    """What stands behind ``P`` in the page's commands, without the comments."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return [found.strip() for found in re.findall(r"(?:^    |`)P ([^#`\n]+)", text, flags=re.MULTILINE)]


@pytest.mark.parametrize("command", sorted(set(commands("complaints.md"))))
def test_a_command_is_one_that_there_is(command: str) -> None:
    args = parser().parse_args(shlex.split(command))
    load_profile(getattr(args, "profile", None) or "embedded", getattr(args, "set", []) or [])
    for path in re.findall(r"(?:ablations|data_recipes)/\S+", command):
        assert (ROOT / path).is_file()


def test_both_languages_have_the_same_commands_and_sections() -> None:
    english, chinese = map(commands, PAGES)
    assert english == chinese and len(english) > 20
    sections = [re.findall(r"(?m)^(#+) ", (ROOT / "docs" / name).read_text(encoding="utf-8")) for name in PAGES]
    assert sections[0] == sections[1]
