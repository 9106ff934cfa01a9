"""Where the training loop begins: at step 0, or at the checkpoint that a session goes on from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.training.checkpoints import write_manifest
from pipeline.training.loop import Session, Task, _starting_point, done
from pipeline.training.records import StageTrainingRecord


def task(session: Session, identity: dict[str, Any]) -> Task:
    return Task(session, identity, 2, load=lambda: pytest.fail("not loaded"), make_trainer=lambda *_: None)


def test_a_session_is_not_changed_on_the_way(tmp_path: Path) -> None:
    session = Session(tmp_path)
    assert (session.resume, session.force, tuple(session.callbacks)) == (False, False, ())
    assert session.checkpoints == tmp_path / "checkpoints"
    with pytest.raises(dataclasses.FrozenInstanceError):
        session.resume = True  # type: ignore[misc]


def test_without_a_checkpoint_training_begins_at_step_0(tmp_path: Path) -> None:
    for resume in (False, True):
        assert _starting_point(task(Session(tmp_path, resume), {"seed": 1})) is None


def test_an_unfinished_training_wants_to_be_gone_on_with(tmp_path: Path) -> None:
    assert done(tmp_path, False, StageTrainingRecord) is None
    record = dict.fromkeys(("steps", "resumed_from", "peak_memory_bytes"), 3) | {"curve": [], "eval_curve": []}
    record |= {"seconds": 1.5, "trainable_parameters": 8, "total_parameters": 9}
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert done(tmp_path, False, StageTrainingRecord) == record
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(UserError, match="form of a StageTrainingRecord"):
        done(tmp_path, False, StageTrainingRecord)


def test_what_force_went_past_is_noted_with_the_session(tmp_path: Path) -> None:
    who: dict[str, Any] = {"config": {"training.learning_rate": 0.001}, "data": "a" * 64, "versions": {}}
    folder = tmp_path / "checkpoints" / "checkpoint-2"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    write_manifest(folder, who)
    assert _starting_point(task(Session(tmp_path, resume=True), who)) == folder
    other = who | {"data": "b" * 64}
    with pytest.raises(UserError, match="the data was a"):
        _starting_point(task(Session(tmp_path, resume=True), other))
    noted: list[str] = []
    assert _starting_point(task(Session(tmp_path, True, True, noted.append), other)) == folder
    assert len(noted) == 1 and "checkpoint-2 by --force although the data was" in noted[0]
