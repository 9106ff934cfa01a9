"""The tables in the docs are those of docs/results, and every number's file is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def make_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_is_that_of_its_result(make_tables: ModuleType) -> None:
    for page in make_tables.pages():
        text = page.read_text(encoding="utf-8")
        assert make_tables.filled(text) == text, f"{page.name}: run python docs/make_tables.py"
        assert text.count("<!-- results:") == len(make_tables.BLOCK.findall(text)), page.name


def test_every_result_is_shown_and_explained(make_tables: ModuleType) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in make_tables.pages())
    commands = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")
    measured = {path.stem for path in (ROOT / "docs" / "results").glob("*.json")}
    shown = {match["name"] for match in make_tables.BLOCK.finditer(text)}
    assert len(measured) > 5
    for name in sorted(measured | shown):
        assert f"results:{name} " in text or f"results:{name}:" in text, name
        assert f"{name}.json" in commands, name


def test_a_table_is_made_anew(make_tables: ModuleType, tmp_path: Path) -> None:
    page = "a\n<!-- results:rank -->\nold\n<!-- end -->\nb\n"
    new = make_tables.filled(page)
    assert new.startswith("a\n<!-- results:rank -->\n\n") and new.endswith("\n\n<!-- end -->\nb\n") and "old" not in new
    assert make_tables.filled(new) == new
    assert "Not measured yet" in make_tables.render("none")
