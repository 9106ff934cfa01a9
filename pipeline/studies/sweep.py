"""One setting, several values, several seeds: each cell is a run of its own, and together they are a curve.

In: a profile, an axis and its values (or a file of arms: named lists of settings), a number of seeds. Out: a directory with
one run a cell, and ``sweep.json``, ``sweep.png``: scores and mode fidelity by value with intervals over items and seeds, the
differences from the first value, the Pareto front, and a recommended range with its rule.

Every cell is ``python -m pipeline run`` in a process of its own, so whatever happens to one leaves the others alone. What
cells have in common is made once: the tokenised pools (by their cache) and the evaluation of the base (copied). Sweeps that
are given the same folder for their cells share the cells that they have in common, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError, nearest
from pipeline.core.files import fingerprint, is_taken, read_json, require_folder, write_json
from pipeline.studies.arms import SweepCell, load_arms, plan_arms, plan_axis
from pipeline.studies.cells import write_inputs
from pipeline.studies.coordinator import only_coordinator
from pipeline.studies.curve import summarise_sweep
from pipeline.studies.engine import HERE, CellPlace
from pipeline.studies.results import Sweep
from pipeline.studies.running import Cells, run_cells
from pipeline.studies.storage import Storage


def run_sweep(
    profile: str,
    axis: str,
    values: Sequence[str],
    seeds: int,
    folder: Path,
    overrides: list[str] | None = None,
    workers: int | None = None,
    place: CellPlace = HERE,
) -> Sweep:
    """Run the cells of an axis that are not done, then summarise_sweep; see the module's docstring.

    Args:
        workers: runs at a time; None: as many as the cores allow at the profile's number of threads, on a GPU one.
        place: where cells lie and run; each engine takes up what another has left.

    Returns:
        What ``sweep.json`` holds; ``failed`` names cells without a result, with the reason.

    Raises:
        UserError: see ``plan_axis``; or the directory belongs to another sweep, or another coordinator works on it; or every
            cell failed; or the engine or its storage cannot be used.
    """
    key, cells = plan_axis(profile, overrides or [], axis, values, seeds, folder, place.shared)
    return _sweep(Plan(key, values, seeds, cells), folder, workers, place)


def sweep_arms(
    profile: str,
    arms: str,
    seeds: int,
    folder: Path,
    overrides: list[str] | None = None,
    workers: int | None = None,
    place: CellPlace = HERE,
    only: Sequence[str] = (),
) -> Sweep:
    """``run_sweep`` of a file of arms, named lists of settings, in the place of an axis and its values.

    Args:
        only: names of arms to run; none: all.

    Raises:
        UserError: see ``plan_arms`` and ``run_sweep``; or an arm of ``only`` is not in the file.
    """
    compared = load_arms(arms)
    if unknown := [name for name in only if name not in compared.arms]:
        raise UserError(f"{arms} has no arm {unknown[0]!r}.{nearest(unknown[0], compared.arms)}")
    if only:
        compared.arms = {name: arm for name, arm in compared.arms.items() if name in only}
    cells = plan_arms(profile, overrides or [], compared, seeds, folder, place.shared)
    plan = Plan(Path(arms).stem, list(compared.arms), seeds, cells, compared.question)
    return _sweep(plan, folder, workers, place)


@dataclass(frozen=True)
class Plan:
    """What a sweep compares: the values of ``key``, or the arms of a file of that name, and a cell for each with each seed."""

    key: str
    values: Sequence[str]
    seeds: int
    cells: list[SweepCell]
    question: str = ""


def _sweep(plan: Plan, folder: Path, workers: int | None, place: CellPlace) -> Sweep:
    cells = plan.cells
    require_folder(folder)
    if place.shared:
        require_folder(place.shared)
    identity = fingerprint([[c.profile.model_dump(), c.recipe.model_dump()] for c in cells])
    record = folder / "plan.json"
    if record.exists():
        if read_json(record)["cells"] != identity:
            raise UserError(f"{folder} holds another sweep. Choose another --output-dir; nothing was changed.")
    elif is_taken(folder):
        raise UserError(f"{folder} is not empty and holds no sweep. Choose another --output-dir; nothing was changed.")
    values = [str(value) for value in plan.values]
    write_json(record, {"axis": plan.key, "values": values, "seeds": plan.seeds, "cells": identity})
    with only_coordinator(Storage(str(folder))):
        for cell in cells:
            write_inputs(cell)
        root, owner = place.shared or folder, None if place.shared else identity
        run_cells(cells, Cells(root, folder, place.engine, owner), workers)
        return summarise_sweep(plan.key, cells, folder, plan.question)
