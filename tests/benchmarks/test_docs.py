"""The tables in the docs are those of docs/results, and every number's file is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    """A script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def make_tables() -> ModuleType:
    return script("make_tables")


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


def test_the_table_of_profiles_is_as_it_is_made_in_both_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_profiles = script("make_profiles")
    good = [page.read_text(encoding="utf-8") for page in make_profiles.PAGES]
    pages = tuple(tmp_path / page.name for page in make_profiles.PAGES)
    for page, text in zip(pages, good, strict=True):
        page.write_text(make_profiles.filled(text, "old"), encoding="utf-8")
        assert page.read_text(encoding="utf-8") != text
    monkeypatch.setattr(make_profiles, "PAGES", pages)
    monkeypatch.setattr("sys.argv", ["make_profiles.py"])
    make_profiles.main()
    assert [page.read_text(encoding="utf-8") for page in pages] == good, "run: python docs/make_profiles.py"
