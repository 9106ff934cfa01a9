"""The training loop's room on the disk, and files that are hashed once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.core.files import known_sha256
from pipeline.training.loop import OTHER_BYTES, REPORT_BYTES, Task, bytes_to_write, require_space

MIB = 2**20


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def task(folder: Path, keep: int = 2) -> Task:
    return Task(folder, {}, keep, load=lambda: pytest.fail("not loaded"), make_trainer=lambda *_: None)


def test_what_a_method_writes_goes_with_what_it_trains() -> None:
    """AdamW: 4 bytes a weight and 8 of state in each of keep + 1 checkpoints, and 4 in the adapter."""
    fixed = 4 * OTHER_BYTES + REPORT_BYTES
    assert bytes_to_write(1_000_000, 2, "adamw_torch") == 3 * 12_000_000 + 4_000_000 + fixed
    assert bytes_to_write(1_000_000, 2, "adamw_8bit") == 3 * 6_000_000 + 4_000_000 + fixed
    assert bytes_to_write(600_000_000, 2, "adamw_torch") > 20 * 10**9  # a full training of 0.6 B asks for what it takes


def test_too_little_room_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 200 * MIB
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free))
    require_space(task(tmp_path), 2_000_000, "adamw_torch")
    with pytest.raises(UserError, match=r"Only 200 MiB are free .* needs 1,\d\d\d: 2 checkpoints"):
        require_space(task(tmp_path), 30_000_000, "adamw_torch")
    # What an earlier process has written of it needs no more room.
    weights = tmp_path / "checkpoints" / "checkpoint-2" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    with weights.open("wb") as file:
        file.truncate(1100 * MIB)
    require_space(task(tmp_path), 30_000_000, "adamw_torch")


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []
    original = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: reads.append(path) or original(path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    assert known_sha256(path) == known_sha256(path) == original(path) and len(reads) == 1
    path.write_bytes(b"other")
    assert known_sha256(path) == original(path) and len(reads) == 2
