"""What a way of training costs: seconds, memory, and, where the base answered first, questions and the seconds of asking them.

In: finished runs. Out: means over them. Seconds are of the machine that the runs shared, and blur where several ran at a time;
those of asking are the store's, whichever run asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.files import read_json
from pipeline.studies.results import Price


def price_of(runs: Sequence[Path]) -> Price:
    """Mean price of some runs."""
    seconds, memory, asked, asking = [], [], [], []
    for run in runs:
        training = read_json(run / "report.json")["training"]
        seconds.append(training.get("training_seconds"))
        memory.append(training.get("memory_above_base_bytes"))
        records = [read_json(path) for path in sorted((run / "rehearsal").glob("*/rehearsal.json"))]
        asked.append(sum(record["questions"]["asked"] for record in records))
        asking.append(sum(record["seconds"] for record in records))
    return {
        "training_seconds": _mean(seconds),
        "memory_above_base_bytes": _mean(memory),
        "questions": _mean(asked) or 0.0,
        "asking_seconds": _mean(asking) or 0.0,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """None where a run did not measure it."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) and known else None


def price_cells(price: Price) -> list[str]:
    """Seconds, MiB, questions, seconds of asking, as a table shows them."""
    seconds, memory = price["training_seconds"], price["memory_above_base_bytes"]
    return [
        "" if seconds is None else f"{seconds:,.0f}",
        "" if memory is None else f"{memory / 2**20:,.0f}",
        f"{price['questions']:,.0f}",
        f"{price['asking_seconds']:,.0f}",
    ]


PRICE_HEADS = ["training, s", "memory above the base, MiB", "questions asked", "asking, s"]
