"""Room on the disk, asked for before a training begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.core.errors import UserError
from pipeline.training.space import OTHER_BYTES, REPORT_BYTES, bytes_to_write, require_space

MIB = 2**20


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_what_a_method_writes_goes_with_what_it_trains() -> None:
    """AdamW: 4 bytes a weight and 8 of state in each of keep + 1 checkpoints, and 4 in the adapter."""
    fixed = 4 * OTHER_BYTES + REPORT_BYTES
    assert bytes_to_write(1_000_000, 2, "adamw_torch") == 3 * 12_000_000 + 4_000_000 + fixed
    assert bytes_to_write(1_000_000, 2, "adamw_8bit") == 3 * 6_000_000 + 4_000_000 + fixed
    assert bytes_to_write(600_000_000, 2, "adamw_torch") > 20 * 10**9  # a full training of 0.6 B asks for what it takes


def test_too_little_room_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 200 * MIB
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free))
    require_space(tmp_path, 2_000_000, 2, "adamw_torch")
    with pytest.raises(UserError, match=r"200 MiB are free .* needs 1,\d\d\d: 2 "):
        require_space(tmp_path, 30_000_000, 2, "adamw_torch")
    # What an earlier process has written of it needs no more room.
    weights = tmp_path / "checkpoints" / "checkpoint-2" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    with weights.open("wb") as file:
        file.truncate(1100 * MIB)
    require_space(tmp_path, 30_000_000, 2, "adamw_torch")
