"""Where the cells of a study run: a pool of processes on this machine, or a Ray cluster.

In: what the command line says. Out: an ``Engine``, which the studies hand on. Whichever runs a cell, it is the same command with
the same profile and recipe, so ``sweep.json`` is the same but for times and memory; and each takes up what another has left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.redact import masked_text
from pipeline.studies.arms import SweepCell

RECORD = "store.json"  # in the study's folder: where its cells are kept, if not there
# Is told a cell's validation losses by step while it runs, and once more when it has ended; says whether to stop it.
CellWatch = Callable[[SweepCell, dict[int, float]], bool]


@dataclass(frozen=True)
class StudyEngine:
    """Where cells run.

    Args:
        address: of Ray: ``host:port`` of its head, ``ray://host:port`` of its client server, or ``auto``: this machine's.
        store: where cells leave what they made, a folder that all nodes see or a URL that fsspec knows; None: the study's folder.
        cpus: cores of a cell; None: as many as its profile has threads (``model.cpu_threads``), else 1.
        gpus: GPUs of a cell, may be a part of one; None: one where the cluster has any, else none.
    """

    name: Literal["local", "ray"] = "local"
    address: str = "auto"
    store: str | None = None
    cpus: float | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.name == "local" and (self.cpus is not None or self.gpus is not None or self.address != "auto"):
            raise UserError(
                "--address, --cell-cpus and --cell-gpus are for --engine ray; the local pool has --workers."
            )
        if any(amount is not None and amount < 0 for amount in (self.cpus, self.gpus)):
            raise UserError("--cell-cpus and --cell-gpus need numbers from 0 on.")


LOCAL = StudyEngine()


@dataclass(frozen=True)
class CellPlace:
    """Where the cells of a sweep lie, and where they run.

    Args:
        shared: a folder that keeps cells by their settings, so that several sweeps share them; None: in the sweep's own folder.
    """

    shared: Path | None = None
    engine: StudyEngine = LOCAL


HERE = CellPlace()


def remembered_store(folder: Path, engine: StudyEngine) -> str | None:
    """The engine's store, else the one that the study was begun with; None: the study's own folder.

    A URL that carries a secret is not remembered: it has to be given each time.
    """
    record = folder / RECORD
    if engine.store is None:
        return str(read_json(record)["store"]) if record.exists() else None
    store = engine.store if "://" in engine.store else str(Path(engine.store).resolve())
    if masked_text(store) == store:
        write_json(record, {"store": store})
    return store
