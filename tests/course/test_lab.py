"""The bench of the exercises: what it teaches it can be asked, the same each time, and wrong jobs are refused."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.course import lab

THINK = 1022  # the token <think> of the embedded model


def test_a_lesson_has_the_share_that_was_asked_for() -> None:
    rows = lab.lesson(0.25, 40)
    assert len(rows) == 40 and len({row["labels"][-1] for row in rows}) == 1  # all end the turn, in the loss
    assert all(THINK in row["input_ids"] for row in rows)
    assert sum(THINK in row["labels"] for row in rows) == 30, (
        "mathematics opens its thought in the loss, chat never does"
    )


def test_the_mistake_can_be_asked_for() -> None:
    assert all(THINK in row["labels"] for row in lab.lesson(1.0, 10, empty_think="trained"))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="share"):
        lab.lesson(share)


ROW = {"input_ids": [5, 6], "labels": [-100, 6]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": []}, "no rows"),
        ({"rows": [{"input_ids": [5, 6], "labels": [6]}]}, "same length"),
        ({"rows": [{"input_ids": [5, 6], "labels": [-100, 7]}]}, "−100 or the token"),
        ({"rows": [{"input_ids": [5, 6], "labels": [-100, -100]}]}, "nothing to learn"),
        ({"steps": -1}, "steps"),
        ({"steps": 10_000}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"rate": 0.0}, "learning rate"),
        ({"rate": float("nan")}, "learning rate"),
        ({"rank": 0}, "rank"),
        ({"schedule": "zigzag"}, "cosine, linear, constant, exponential, not 'zigzag'"),
        ({"weight_decay": -0.1}, "Weight decay"),
        ({"weight_decay": float("inf")}, "Weight decay"),
        ({"dropout": 1.0}, "Dropout"),
        ({"ask": [{"messages": [], "mode": "fast", "answer": ""}]}, "mode"),
    ],
)
def test_a_job_that_cannot_work_is_refused_before_it_begins(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        lab.teach(**({"rows": [ROW], "steps": 1} | change))


def test_a_schedule_begins_at_the_peak_and_never_rises() -> None:
    for name, shape in lab.SCHEDULES.items():
        rates = [shape(step / 40) for step in range(41)]
        assert rates[0] == 1 and all(a >= b for a, b in itertools.pairwise(rates)), name
        assert rates[-1] == (1 if name == "constant" else pytest.approx(0, abs=0.011)), name


@pytest.mark.slow
def test_it_teaches_and_asks_the_same_each_time() -> None:
    asked = [lab.question("What is 58 + 67?", answer="125"), lab.question("What is 58 + 67?", "non_thinking", "125")]
    base = lab.teach([], asked, steps=0)
    assert base["loss"] == [] and [reply["mode"] for reply in base["replies"]] == ["thinking", "non_thinking"]
    assert lab.rate_of(base["replies"]) == lab.rate_of(base["replies"], "faithful") == 1.0
    rows = lab.lesson(0.0, 40)
    first, again = (lab.teach(rows, steps=4, rate=1e-2) for _ in range(2))
    assert first["loss"] == again["loss"] and first["loss"][-1] < first["loss"][0]


@pytest.mark.slow
def test_beside_unsloth_it_works_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unsloth", object())  # type: ignore[arg-type]
    started: list[list[str]] = []
    run = subprocess.run

    def watched(command: list[str], **options: Any) -> Any:
        started.append(command)
        return run(command, **options)

    monkeypatch.setattr(lab.subprocess, "run", watched)
    asked = [lab.question("What is 58 + 67?", answer="125")]
    assert lab.teach([], asked, steps=0)["replies"][0]["right"]
    assert started == [[sys.executable, "-m", "pipeline.course.lab"]]
