"""A recipe that asks the base, for the notebook on forgetting: that of the course, unless it is one that asks nothing."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.errors import UserError
from pipeline.settings import load_profile, load_recipe


def with_questions(profile: str, overrides: Sequence[str]) -> list[str]:
    """The overrides, and what they lack for a recipe in which the base answers questions.

    That is nothing, or ``mix.rehearsal`` switched on again, or the profile's own recipe in the place of another.

    Raises:
        UserError: the profile's own recipe asks nothing either.
    """
    own = load_profile(profile).recipe
    for more in ([], ["mix.rehearsal=true"], ["mix.rehearsal=true", f"recipe={own}"]):
        settings = load_profile(profile, [*overrides, *more])
        if any(source.source == "base" for source in load_recipe(settings.recipe, settings.mix).sources):
            return [*overrides, *more]
    raise UserError(
        f"Neither the recipe of this course nor {own} asks the base (a source with `source: base`). Set recipe= to one that "
        "does, such as data_recipes/embedded_rehearsal.yaml or data_recipes/finetome_openmath_rehearsal.yaml."
    )
