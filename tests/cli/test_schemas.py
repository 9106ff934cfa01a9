"""Every document that the project writes, and every profile and recipe that it ships, agrees with its JSON schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from pipeline.cli.main import main
from pipeline.cli.schemas import forms, schema_of
from pipeline.core.errors import UserError
from pipeline.settings import load_profile, load_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", forms())
def test_it_is_a_schema_and_refuses_nonsense(name: str) -> None:
    schema = schema_of(name)
    Draft202012Validator.check_schema(schema)
    assert not Draft202012Validator(schema).is_valid({"nonsense": object})


@pytest.mark.parametrize(
    "name", ["sweep", "methods", "search", "sampling", "switches", "preference_arms", "grpo", "audit"]
)
def test_kept_results_agree(name: str) -> None:
    file = {"sweep": "chat_share", "preference_arms": "preference"}.get(name, name)
    document = json.loads((ROOT / "docs" / "results" / f"{file}.json").read_text(encoding="utf-8"))
    assert [error.message for error in Draft202012Validator(schema_of(name)).iter_errors(document)] == []


@pytest.mark.parametrize(("name", "folder"), [("profile", "pipeline/profiles"), ("recipe", "data_recipes")])
def test_shipped_settings_agree(name: str, folder: str) -> None:
    """What they are when they are loaded: a profile may extend another, and a source of the base has keys of its own."""
    validator = Draft202012Validator(schema_of(name))
    for path in sorted((ROOT / folder).glob("*.yaml")):
        loaded = load_profile(path.stem) if name == "profile" else load_recipe(str(path))
        assert [error.message for error in validator.iter_errors(loaded.model_dump(mode="json"))] == [], path.name


def test_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out.split() == list(forms())
    assert main(["schema", "recipe"]) == 0
    assert json.loads(capsys.readouterr().out) == schema_of("recipe")
    assert main(["schema", "--all", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.schema.json" for name in forms()}
    with pytest.raises(UserError, match="Did you mean 'recipe'"):
        schema_of("recipes")
