"""A run against the reference of its profile: the same settings with several seeds, measured and shipped.

Scores differ from seed to seed and, a little, from processor to processor. So a run is held against the spread of the reference:
a rate stands apart from it only if its own 95 % interval does not reach the lowest or the highest of the seeds.

``docs/make_reference.py`` writes the file from finished runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.core.files import read_json
from pipeline.core.modes import MODES
from pipeline.evaluation.report.words import label_of
from pipeline.settings import Profile, Recipe, Section, parse, read_yaml
from pipeline.settings.compare import affects, flat

REFERENCES = Path(__file__).resolve().parents[1] / "reference"
FIDELITY = "mode fidelity"
BY_CHANCE = ("seed", "model.cpu_threads")  # they move a score no further than another seed or processor does


class ReferenceRun(Section):
    """The tuned model of one seed: {mode: {benchmark, or "mode fidelity": rate}}."""

    seed: int
    tuned: dict[str, dict[str, float]]


class Reference(Section):
    """``reference/PROFILE.json``: what was run, and what came out."""

    command: str
    machine: str
    profile: dict[str, Any]
    recipe: dict[str, Any]
    runs: list[ReferenceRun] = Field(min_length=1)


def rates(cell: Mapping[str, Any]) -> dict[str, tuple[float, list[float]]]:
    """Rate and 95 % interval of each benchmark of a cell, and of its mode fidelity."""
    scores = {name: (score["score"], score["ci95"]) for name, score in cell["benchmarks"].items()}
    return scores | {FIDELITY: (cell["mode_fidelity"], cell["mode_fidelity_ci95"])}


def _comparable(profile: Mapping[str, Any], recipe: Mapping[str, Any]) -> Any:
    """Settings that change what a run measures, as they are resolved today: one that is new since then has its default."""
    every = flat(parse(Profile, dict(profile), "profile").model_dump())
    counted = {k: v for k, v in every.items() if k not in BY_CHANCE and affects(k, "mix", "training", "evaluation")}
    return counted, parse(Recipe, dict(recipe), "recipe").model_dump()


def reference_of(folder: Path) -> Reference | None:
    """The reference of the settings of a run directory; None where there is none, or where they differ."""
    mine = read_yaml(folder / "profile.yaml"), read_yaml(folder / "recipe.yaml")
    path = REFERENCES / f"{mine[0].get('name')}.json"
    if not path.exists():
        return None
    reference = parse(Reference, read_json(path), str(path))
    return reference if _comparable(*mine) == _comparable(reference.profile, reference.recipe) else None


def compare_with_reference(report: Mapping[str, Any], reference: Reference) -> list[str]:
    """A line for each rate that stands apart from the reference, and one that says how many do."""
    apart, count = [], 0
    for mode in (mode for mode in MODES if mode in report["evaluation"]["tuned"]):
        for name, (value, (low, high)) in rates(report["evaluation"]["tuned"][mode]).items():
            seeds = [run.tuned[mode][name] for run in reference.runs if name in run.tuned.get(mode, {})]
            if not seeds:
                continue
            count += 1
            low, high = min(low, value), max(high, value)  # an interval that ends at 1 may end a rounding error below
            if low > max(seeds) or high < min(seeds):
                apart.append(f"  {name}, {label_of(mode)}: {value:.3f}, reference {min(seeds):.3f} to {max(seeds):.3f}")
    runs = f"{len(reference.runs)} seeds, {reference.machine}"
    if apart:
        return [f"{len(apart)} of {count} rates stand apart from the reference ({runs}):", *apart]
    return [f"All {count} rates agree with the reference ({runs})."]
