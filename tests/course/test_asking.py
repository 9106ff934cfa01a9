from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.course.asking import with_questions
from pipeline.settings import load_profile, load_recipe

PLAIN = "recipe=data_recipes/embedded.yaml"


@pytest.mark.parametrize(
    ("overrides", "more"),
    [
        ([], []),
        (["mix.rehearsal=false"], ["mix.rehearsal=true"]),
        ([PLAIN], ["mix.rehearsal=true", "recipe=data_recipes/embedded_rehearsal.yaml"]),
    ],
)
def test_what_is_missing_is_added(overrides: list[str], more: list[str]) -> None:
    found = with_questions("embedded", overrides)
    assert found == [*overrides, *more]
    settings = load_profile("embedded", found)
    assert any(source.source == "base" for source in load_recipe(settings.recipe, settings.mix).sources)


@pytest.mark.parametrize("profile", ["qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b"])
def test_the_real_profiles_ask_by_themselves(profile: str) -> None:
    assert with_questions(profile, []) == []


def test_a_profile_that_asks_nothing(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("extends: embedded\nname: mine\nrecipe: data_recipes/embedded.yaml\n")
    with pytest.raises(UserError, match="source: base.*embedded_rehearsal"):
        with_questions(str(own), [])
