"""Run the cells of a study where its engine says: the local pool, or Ray.

In: cells whose profile and recipe are written. Out: what ``pipeline.studies.pool`` and
``pipeline.studies.on_ray`` leave, which is the same. What is done already, here or in the study's storage, is taken up by either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.studies.arms import SweepCell
from pipeline.studies.engine import CellWatch, StudyEngine, remembered_store
from pipeline.studies.losses import validation_losses
from pipeline.studies.on_ray import fetch_done, run_on_ray
from pipeline.studies.pool import run_in_pool, runs_at_once, wait_for_orphan
from pipeline.studies.storage import Storage


@dataclass(frozen=True)
class Cells:
    """Where the cells of a study lie and run.

    Args:
        root: the folder below which their folders lie.
        held: the study's folder, in which the caller is the only coordinator.
        study: names the study in a storage of its own; None: cells that several studies share.
    """

    root: Path
    held: Path
    engine: StudyEngine
    study: str | None


def run_cells(
    cells: Sequence[SweepCell], where: Cells, at_once: int | None = None, watch: CellWatch | None = None
) -> None:
    """Run those that are not done.

    Args:
        at_once: runs at a time; None: as many as the cores allow, on Ray as many as fit.
        watch: is told of those that are done already, too.

    Raises:
        UserError: see ``run_on_ray``.
    """
    root, engine = where.root, where.engine
    store = remembered_store(where.held, engine)
    if store:
        fetch_done([cell for cell in cells if not cell.report.exists()], root, Storage(store))
    waiting = []
    for cell in cells:
        if not cell.report.exists():
            waiting.append(cell)
        elif watch is not None:
            watch(cell, validation_losses(cell.folder / "run"))
    if engine.name == "ray":
        for cell in waiting:
            wait_for_orphan(cell)
        run_on_ray(waiting, root, engine, store or str(root), where.held, at_once, where.study, watch)
    elif waiting:
        run_in_pool(waiting, at_once or runs_at_once(waiting[0].profile), root, watch)
