"""What a search tries: the ranges of ``search_space.yaml`` for a profile, and the settings that a trial takes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint
from pipeline.settings import Section, load_profile, parse, read_yaml
from pipeline.studies.arms import SweepCell, resolve
from pipeline.studies.curve import FIDELITY_FLOOR
from pipeline.studies.search_result import OBJECTIVE

if TYPE_CHECKING:
    import optuna


SPACE = Path(__file__).with_name("search_space.yaml")


# --- the ranges ----------------------------------------------------------------------------------------------------------


class Dimension(Section):
    """What one setting may be: a range, or choices; ``grid`` is what a grid search takes of it."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[Any] | None = None
    grid: list[Any] = Field(min_length=1)
    source: str = Field(min_length=10)

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("a dimension has either low and high, or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        inside = self.choices if self.choices is not None else [g for g in self.grid if self.low <= g <= self.high]
        if any(value not in inside for value in self.grid):
            raise ValueError(f"the grid {self.grid} leaves the dimension")
        return self


class Fixed(Section):
    """A setting that no search changes."""

    value: Any
    source: str = Field(min_length=10)


class EffectiveBatch(Section):
    """Rows before each optimiser step; reached by accumulation."""

    at_least: int = Field(gt=0)
    source: str = Field(min_length=10)


class Card(Section):
    """Batch size and accumulation for a GPU."""

    model: str
    per_device_train_batch_size: int = Field(gt=0)
    gradient_accumulation_steps: int = Field(gt=0)


class OwnRanges(Section):
    """What differs for a profile."""

    space: dict[str, Dimension] = Field({})
    effective_batch: EffectiveBatch | None = None


class SearchSpace(Section):
    """All of ``search_space.yaml``."""

    space: dict[str, Dimension] = Field(min_length=1)
    fixed: dict[str, Fixed]
    effective_batch: EffectiveBatch
    cards: dict[int, Card]
    profiles: dict[str, OwnRanges]

    @field_validator("space")
    @classmethod
    def _check_one_base(cls, space: dict[str, Dimension]) -> dict[str, Dimension]:
        if changed := [name for name in space if name.startswith(("model.", "evaluation."))]:
            raise ValueError(f"{changed[0]} would give trials different bases or items; compare its values by a sweep")
        return space

    def _own(self, lineage: Sequence[str]) -> list[OwnRanges]:
        return [self.profiles[name] for name in lineage if name in self.profiles]

    def of(self, lineage: Sequence[str]) -> dict[str, Dimension]:
        """The dimensions that hold for a profile.

        Args:
            lineage: what it extends, the farthest first, and its own name.
        """
        found = dict(self.space)
        for own in self._own(lineage):
            found |= own.space
        return found

    def rows_a_step(self, lineage: Sequence[str]) -> int:
        """The smallest effective batch that holds for a profile."""
        batches = [own.effective_batch for own in self._own(lineage) if own.effective_batch]
        return (batches[-1] if batches else self.effective_batch).at_least

    def card(self, gib: float) -> Card:
        """Batch size and accumulation for a GPU with so much memory: those of the largest card that is not larger.

        Raises:
            UserError: less memory than the smallest card of the table.
        """
        fitting = [size for size in self.cards if size <= gib]
        if not fitting:
            raise UserError(f"The table begins at {min(self.cards)} GiB; for {gib:g} GiB look at: run --dry-run.")
        return self.cards[max(fitting)]


def load_space(path: Path = SPACE) -> SearchSpace:
    """Read the file of ranges.

    Raises:
        UserError: it does not exist, or a value in it does not pass.
    """
    return parse(SearchSpace, read_yaml(path), str(path))


# --- a study's trials --------------------------------------------------------------------------------------------------


@dataclass
class Search:
    """What all workers of a study share."""

    profile: str
    overrides: list[str]
    folder: Path
    space: dict[str, Dimension]
    settings: list[str]  # of all trials, before ``overrides``
    floor: float

    @property
    def identity(self) -> str:
        """Studies with equal ones try the same things."""
        space = {name: dimension.model_dump(exclude={"source"}) for name, dimension in self.space.items()}
        base, recipe = resolve(self.profile, [*self.settings, *self.overrides])
        return fingerprint([base.model_dump(exclude={"sweep"}), recipe.model_dump(), space, self.floor, OBJECTIVE])

    def suggest(self, trial: optuna.Trial, grid: bool) -> None:
        """Draw the trial's settings, those that it does not have yet."""
        for name, d in self.space.items():
            if grid or d.choices is not None:
                trial.suggest_categorical(name, d.grid if grid else (d.choices or []))
            else:
                assert d.low is not None and d.high is not None
                trial.suggest_float(name, d.low, d.high, log=d.log)

    def cell(self, number: int, chosen: Sequence[str]) -> SweepCell:
        """The trial as a run, in a folder named by its settings."""
        profile, recipe = resolve(self.profile, [*self.settings, *chosen, *self.overrides])
        name = fingerprint([profile.model_dump(exclude={"recipe", "mix", "sweep"}), recipe.model_dump()])[:16]
        return SweepCell(number, f"trial {number}", profile.seed, profile, recipe, self.folder / "trials" / name)


def make_search(profile: str, overrides: list[str], folder: Path, floor: float = FIDELITY_FLOOR) -> Search:
    """Check everything that can be checked before a study is opened.

    Raises:
        UserError: a setting that does not exist, or a value that does not fit.
    """
    file = load_space()
    base = load_profile(profile)
    space = {
        name: d for name, d in file.of(base.lineage).items() if not any(o.startswith(f"{name}=") for o in overrides)
    }
    if not space:
        raise UserError("Every setting of the search space is given with --set; nothing is left to search.")
    settings = [f"{name}={'null' if fixed.value is None else fixed.value}" for name, fixed in file.fixed.items()]
    rows = base.training.per_device_train_batch_size
    settings.append(f"training.gradient_accumulation_steps={-(-file.rows_a_step(base.lineage) // rows)}")
    steps = resolve(profile, [*settings, *overrides])[0].training.max_steps
    if steps > 0:  # four validations a run: three of them can prune it
        settings += [f"training.{name}_steps={max(1, steps // 4)}" for name in ("eval", "save")]
    search = Search(profile, overrides, folder, space, settings, floor)
    checked = search.cell(0, [f"{name}={d.grid[0]}" for name, d in space.items()])
    if not checked.profile.data.validation_fraction:
        raise UserError("A search prunes on the validation loss; set data.validation_fraction above 0.")
    return search
