"""What a study compares: the values of one setting, or named lists of settings, each with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from pipeline.core.errors import UserError, nearest
from pipeline.core.files import fingerprint
from pipeline.settings import (
    Profile,
    Recipe,
    Section,
    apply_overrides,
    load_profile,
    load_recipe,
    locate,
    parse,
    read_yaml,
)

ITEM_KEYS = ("benchmarks", "limit", "seed")  # of evaluation: which items are asked


# --- axes and cells -----------------------------------------------------------------------------------------------------


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all single settings of a settings class."""
    names = []
    for name, field in model.model_fields.items():
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        is_list = getattr(field.annotation, "__origin__", None) is list
        if inner is None or is_list:
            names.append(prefix + name)
        else:
            names += [prefix + name, *_keys(inner, f"{prefix}{name}.")]
    return names


def axis_key(axis: str) -> str:
    """The dotted key of an axis: ``chat_share`` → ``mix.chat_share``; keys of the recipe begin with ``recipe.``.

    Raises:
        UserError: there is no such setting (names the nearest), or several that end so.
    """
    known = [*_keys(Profile), *(f"recipe.{key}" for key in _keys(Recipe))]
    if axis in known:
        return axis
    ending = [key for key in known if key.rpartition(".")[2] == axis]
    # Of a setting of training and of what may follow it, training's is meant; of the profile and of the recipe, the profile's.
    ending = [key for key in ending if not key.startswith(("preference.", "grpo."))] or ending
    ending = [key for key in ending if not key.startswith("recipe.")] or ending
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UserError(f"--axis {axis} could be {', '.join(ending)}; name one of them whole.")
    hint = nearest(axis, known) or nearest(axis, [key.rpartition(".")[2] for key in known])
    raise UserError(f"There is no setting {axis!r} to sweep.{hint} Any key of a profile works, or recipe.KEY.")


class Arm(Section):
    """One thing to try. What holds for a profile holds for those that extend it, and counts more than ``set``."""

    set: list[str] = Field([])  # KEY=VALUE; keys of the recipe begin with ``recipe.``
    profiles: dict[str, list[str]] = Field({})  # the same, for a profile; rates depend on the size of a model
    why: str = ""
    source: str = ""
    dose: float | None = Field(None, ge=0)  # how much of a remedy it is; arms that have one are held against each other


class Arms(Section):
    """A file of arms: what is compared, and the question it answers. The others are compared with the first arm."""

    question: str = ""
    set: list[str] = Field([])  # of all arms
    profiles: dict[str, list[str]] = Field({})  # of all arms, for a profile
    arms: dict[str, Arm] = Field(min_length=1)


def settings_for(arm: Arm | Arms, lineage: Sequence[str]) -> list[str]:
    """What an arm, or a file of arms, sets for a profile: for all, then for those that it extends, then for itself."""
    return [*arm.set, *(text for name in lineage for text in arm.profiles.get(name, []))]


def load_arms(path: str) -> Arms:
    """Read a file of arms, looked for in the working directory and then in the project; a bare name is one of ``ablations/``.

    Raises:
        UserError: no such file, or a key in it that is not known.
    """
    file = path if Path(path).suffix else f"ablations/{path}.yaml"
    return parse(Arms, read_yaml(locate(file)), path)


@dataclass
class SweepCell:
    """One value with one seed."""

    number: int
    value: Any
    seed: int
    profile: Profile
    recipe: Recipe
    folder: Path
    dose: float | None = None

    @property
    def report(self) -> Path:
        return self.folder / "run" / "report.json"

    @property
    def name(self) -> str:
        return f"{self.value} (seed {self.seed})"

    @property
    def base_key(self) -> str:
        """Names the base evaluation that this cell shares with others: the same model, asked the same."""
        same = {"model": self.profile.model.model_dump(), "evaluation": self.profile.evaluation.model_dump()}
        return f"base/{fingerprint(same)[:16]}"


def resolve(profile: str, overrides: list[str]) -> tuple[Profile, Recipe]:
    """Profile and recipe of a cell: as the profile's section ``sweep`` says, then ``overrides`` (also of the recipe)."""
    named = load_profile(profile)
    own = [text for text in overrides if not text.startswith("recipe.")]
    settings = _named_by_its_recipe(load_profile(profile, [*named.sweep.overrides, *own]), named.recipe)
    recipe = load_recipe(settings.recipe, settings.mix)
    changes = [text.removeprefix("recipe.") for text in overrides if text.startswith("recipe.")]
    if changes:
        recipe = parse(
            Recipe, apply_overrides(recipe.model_dump(), changes), f"recipe {settings.recipe} with {changes}"
        )
    return settings, recipe


def _named_by_its_recipe(settings: Profile, whole: str) -> Profile:
    """``mix.local`` and ``mix.without`` may name sources of the profile's own recipe, ``whole``, which a study's may lack."""
    mix = settings.mix
    if not (mix.local or mix.without) or settings.recipe == whole:
        return settings
    own = {source.name for source in load_recipe(settings.recipe).sources}
    other = {source.name for source in load_recipe(whole).sources} - own
    left = {
        "local": {name: place for name, place in mix.local.items() if name not in other},
        "without": [name for name in mix.without if name not in other],
    }
    return settings.model_copy(update={"mix": mix.model_copy(update=left)})


def plan_axis(
    profile: str,
    overrides: list[str],
    axis: str,
    values: Sequence[str],
    seeds: int,
    folder: Path,
    cells_folder: Path | None = None,
) -> tuple[str, list[SweepCell]]:
    """All cells of an axis, checked: every value fits its setting.

    Args:
        cells_folder: where cells are kept by their settings, to be shared with other sweeps; None: in ``folder``.

    Raises:
        UserError: unknown axis, a value of the wrong type, fewer than one value or seed, a value given twice, or values that
            change which items are asked.
    """
    key = axis_key(axis)
    resolved: list[tuple[Any, Profile, Recipe]] = []
    for text in values:
        settings, recipe = resolve(profile, [*overrides, f"{key}={text}"])
        data = (
            {**settings.model_dump(), "recipe": recipe.model_dump()}
            if key.startswith("recipe.")
            else settings.model_dump()
        )
        value = _at(data, key)
        if value in [seen for seen, _, _ in resolved]:
            raise UserError(f"--values: {text} is given twice.")
        resolved.append((value, settings, recipe))
    return key, _cells(resolved, seeds, folder, cells_folder)


def plan_arms(
    profile: str, overrides: list[str], arms: Arms, seeds: int, folder: Path, cells_folder: Path | None = None
) -> list[SweepCell]:
    """All cells of a file of arms, checked.

    Raises:
        UserError: a setting that does not exist, a value of the wrong type (names the arm), or arms that are asked different
            items.
    """
    resolved = []
    lineage = load_profile(profile).lineage
    common = settings_for(arms, lineage)
    for name, arm in arms.arms.items():
        try:
            resolved.append((name, *resolve(profile, [*common, *overrides, *settings_for(arm, lineage)])))
        except UserError as error:
            raise UserError(f"arm {name!r}: {error}") from error
    cells = _cells(resolved, seeds, folder, cells_folder)
    for cell in cells:
        cell.dose = arms.arms[cell.value].dose
    return cells


def _cells(
    resolved: Sequence[tuple[Any, Profile, Recipe]], seeds: int, folder: Path, cells_folder: Path | None
) -> list[SweepCell]:
    if not resolved or seeds < 1:
        raise UserError("A sweep needs at least one value and one seed.")
    for key in ITEM_KEYS:
        if len({str(getattr(settings.evaluation, key)) for _, settings, _ in resolved}) > 1:
            raise UserError(
                f"evaluation.{key} decides which items are asked; a sweep compares answers to the same items."
            )
    cells: list[SweepCell] = []
    for number, (value, settings, recipe) in enumerate(resolved):
        for add in range(seeds):
            one = settings.model_copy(update={"seed": settings.seed + add}, deep=True)
            if cells_folder:
                identity = fingerprint([one.model_dump(exclude={"recipe", "mix", "sweep"}), recipe.model_dump()])
                path = cells_folder / identity[:16]
            else:
                path = folder / "cells" / f"{number:02d}-seed{one.seed}"
            cells.append(SweepCell(len(cells), value, one.seed, one, recipe, path))
    return cells


def _at(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data[part]
    return data
