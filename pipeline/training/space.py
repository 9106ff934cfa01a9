"""Room on the disk, asked for before a training begins.

In: how many weights are trained, by which optimizer, and how many checkpoints stay. Out: bytes, or an error that says what to do.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.training.estimate import FLOAT32

OTHER_BYTES = 16 * 2**20  # of a checkpoint, at most: tokenizer, random states, history
REPORT_BYTES = 16 * 2**20  # replies, report and records
OPTIMIZER_NUMBERS = {
    "sgd": 0.0,
    "adafactor": 0.1,
    "paged_adamw_8bit": 0.5,
    "adamw_8bit": 0.5,
}  # float32 a weight; else 2


def bytes_to_write(trainable: int, keep: int, optim: str) -> int:
    """Bytes that a training writes at most: a checkpoint more than stay, the adapter, and what the evaluation leaves.

    A checkpoint holds the trained weights in float32 and the state of the optimizer, for AdamW two numbers a weight.

    Args:
        trainable: parameters that are trained.
        keep: checkpoints that stay.
        optim: the optimizer, by transformers' name; one that is not known counts as AdamW.
    """
    weights = trainable * FLOAT32
    checkpoint = weights * (1 + OPTIMIZER_NUMBERS.get(optim, 2.0)) + OTHER_BYTES
    return int((keep + 1) * checkpoint + weights + OTHER_BYTES + REPORT_BYTES)


def require_space(folder: Path, trainable: int, keep: int, optim: str) -> None:
    """See that the disk holds what will be written; checkpoints that lie there already count as written.

    Args:
        folder: of the training, with ``checkpoints/`` in it. The others: see ``bytes_to_write``.

    Raises:
        UserError: it does not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    needed = max(REPORT_BYTES, bytes_to_write(trainable, keep, optim) - written)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"Only {free / 2**20:,.0f} MiB are free where {folder} lies; this training needs "
            f"{needed / 2**20:,.0f}: {keep} checkpoints and one more while it is written, each with "
            f"{trainable:,} trained weights and the optimizer's state, and the adapter. Free some space, choose another "
            "--output-dir, or keep fewer checkpoints (save_total_limit)."
        )
