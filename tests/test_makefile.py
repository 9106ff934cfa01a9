"""What the Makefile says of packages."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_what_is_compiled_by_set_up_can_be_imported() -> None:
    """The import stands in one line: one name that is missing, and nothing behind it is compiled, in silence."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    (names,) = re.findall(r"^COMPILED := (.+)$", text, re.MULTILINE)
    modules = [name.strip() for name in names.split(",")]
    assert len(modules) > 10
    assert [name for name in modules if importlib.util.find_spec(name.partition(".")[0]) is None] == []
