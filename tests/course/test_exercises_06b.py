"""Exercises of notebook 06b: right answers pass, and each wrong one gets a hint of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.course.exercises import check


def row(a: int, b: int, said: str | None = None, reasoning: str = "Easy.") -> dict[str, Any]:
    answer = {"role": "assistant", "content": said or f"The answer is {a + b}.", "reasoning_content": reasoning}
    return {"messages": [{"role": "user", "content": f"What is {a} + {b}?"}, answer]}


def trains(*values: Any) -> Any:
    """A parameter of a test whose check trains for seconds: by night; by day the solutions try the right answer."""
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.nightly])


FIVE = [row(n, 2 * n) for n in range(1, 6)]


@pytest.mark.parametrize(("name", "answer"), [trains("06b.1", 5e-4), ("06b.2", 534), ("06b.3", FIVE)])
def test_right_answers_pass(name: str, answer: Any) -> None:
    assert check(name, answer) == f"{name}: right"


@pytest.mark.parametrize(
    ("name", "answer", "hint"),
    [
        ("06b.1", "5e-4", "a number"),
        ("06b.1", True, "a number"),
        ("06b.1", 2, "between"),
        ("06b.1", float("nan"), "between"),
        trains("06b.1", 1e-4, "hardly learns"),
        trains("06b.1", 3e-3, "still right"),
        ("06b.2", 533.3, "whole number"),
        ("06b.2", 800, "may come twice"),
        ("06b.2", 400, "More questions are asked"),
        ("06b.2", 600, "divide"),
        ("06b.2", 533, "too few"),
        ("06b.2", 900, "fewer questions"),
        ("06b.3", FIVE[:4], "at least five"),
        ("06b.3", [{"text": "3"}] * 5, "messages"),
        ("06b.3", [*FIVE[:4], row(1, 9, reasoning="")], "thinking mode"),
        ("06b.3", [*FIVE[:4], row(1, 9, "<think>\n</think>\n\nThe answer is 10.")], "think tag"),
        ("06b.3", [*FIVE[:4], row(1, 9, "The answer is 11.")], "not right"),
        ("06b.3", [*FIVE, FIVE[0]], "twice"),
        ("06b.4", 3, "folder of a run"),
    ],
)
def test_a_wrong_answer_gets_its_hint(name: str, answer: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check(name, answer)


def _run(folder: Path, kl: float, source: str) -> Path:
    folder.mkdir()
    cell = {"benchmarks": {"embedded_chat": {"score": 0.5}}}
    report = {
        "mix": {"sources": [{"name": source, "requested": 1.0}, {"name": "chat", "requested": 0.0}]},
        "evaluation": {"base": {"thinking": cell}, "tuned": {"thinking": cell}},
    }
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (folder / "profile.yaml").write_text(yaml.safe_dump({"training": {"kl_to_base": kl}}), encoding="utf-8")
    return folder


def test_the_run_that_is_held_to_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("06b.4", _run(tmp_path / "right", 1.0, "math")) == "06b.4: right"
    assert "embedded_chat" in capsys.readouterr().out
    for folder, hint in (
        (tmp_path / "nothing", "no finished run"),
        (_run(tmp_path / "plain", 0.0, "math"), "nothing held it"),
        (_run(tmp_path / "mixed", 1.0, "chat_and_math"), "mathematics alone"),
    ):
        with pytest.raises(AssertionError, match=hint):
            check("06b.4", folder)
