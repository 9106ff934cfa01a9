"""Notebook 12: what was left, which exercises are right, what can be counted again, and the own numbers beside the course's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import write_json, write_jsonl
from pipeline.course import achieved
from pipeline.course.achieved import (
    LEFT,
    Held,
    claims,
    counted_again,
    fidelity_lines,
    held,
    lessons,
    lessons_text,
    report_of,
    solved,
)
from pipeline.course.execute import course_notebooks, number_of
from pipeline.course.exercises import check

REPLIES = {
    "thinking": ["<think>\n2 + 2 = 4\n</think>\n\n4", "4", "<think>\n1\n</think>\n\n5", "<think>\n2\n</think>\n\n4"],
    "non_thinking": ["4", "4", "5", "<think>\n\n</think>\n\n4"],
}


def saved(path: Path, *texts: str) -> None:
    """A notebook whose cells have printed these texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    outputs = [[nbformat.v4.new_output("stream", text=text)] for text in texts]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=o) for o in outputs]), path)


def finished(run: Path, profile: str = "embedded") -> dict[str, Any]:
    """A run directory with a report and the replies that it counts: in each mode, three of four have the form and are right."""
    evaluation: dict[str, Any] = {}
    for which in ("base", "tuned"):
        for mode, replies in REPLIES.items():
            scores = [1.0, 1.0, 0.0, 1.0]
            rows = [
                {"benchmark": "embedded_skill", "index": i, "reply": text, "truncated": False, "score": score}
                for i, (text, score) in enumerate(zip(replies, scores, strict=True))
            ]
            write_jsonl(run / "evaluation" / which / mode / "predictions.jsonl", rows)
            cell = {"benchmarks": {"embedded_skill": {"score": 0.75, "n": 4, "ci95": [0.30, 0.954]}}, "n": 4}
            cell |= {"mode_fidelity": 0.75, "mode_fidelity_ci95": [0.30, 0.954]}
            evaluation.setdefault(which, {})[mode] = cell
    report = {"run": {"profile": profile}, "evaluation": evaluation}
    write_json(run / "report.json", report)
    return report


def test_what_a_notebook_leaves_is_of_a_notebook_that_there_is() -> None:
    assert set(LEFT) <= {number_of(notebook.name) for notebook in course_notebooks()}


def test_exercises_that_are_right_in_either_language(tmp_path: Path) -> None:
    saved(tmp_path / "a" / "01_x.ipynb", "01.1: right\n", "01.2: not answered yet\n", "the text 01.3: right is no line")
    saved(tmp_path / "b" / "02_x.ipynb", "first\n02.1：正确\n", "02.2：尚未作答\n")
    assert solved([tmp_path / "a", tmp_path / "b", tmp_path / "none"]) == {"01.1", "02.1"}


def test_lessons(tmp_path: Path) -> None:
    run = tmp_path / "main"
    write_json(run / "mix" / "manifest.json", {})
    write_json(tmp_path / "sweep" / "sweep.json", {})
    saved(tmp_path / "notebooks" / "03_mix.ipynb", "03.1: right\n")
    found = {lesson.number: lesson for lesson in lessons(run, [tmp_path / "notebooks"])}
    assert list(found) == [number_of(notebook.name) for notebook in course_notebooks()]
    assert found["03"].there and found["06"].there and not found["04"].there and not found["00"].there
    assert (found["03"].right, found["04"].right) == (1, 0) and all(lesson.asked >= 3 for lesson in found.values())
    lines = lessons_text(list(found.values())).splitlines()
    assert "exercises right: 1 of " in next(line for line in lines if line.startswith("03 "))
    assert (
        sum("not yet" in line for line in lines) == len(LEFT) - 2
        and sum("leaves nothing" in line for line in lines) > 2
    )


def test_counted_again(tmp_path: Path) -> None:
    assert counted_again(tmp_path) == ["There is nothing to count yet: notebooks 03 to 05 make it."]
    assert report_of(tmp_path) is None
    finished(tmp_path)
    assert counted_again(tmp_path) == [
        f"right: {which}, {mode}, 4 replies, mode fidelity 0.750"
        for which in ("base", "tuned")
        for mode in ("thinking", "non-thinking")
    ]
    path = tmp_path / "evaluation" / "tuned" / "thinking" / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    write_jsonl(path, [rows[0] | {"reply": "4"}, *rows[1:]])  # a reply without its block
    assert counted_again(tmp_path)[2] == "wrong: tuned, thinking, 4 replies, mode fidelity 0.500"
    write_jsonl(path, [rows[0] | {"score": 0.0}, *rows[1:]])
    assert counted_again(tmp_path)[2].startswith("wrong: tuned, thinking")
    path.unlink()
    assert counted_again(tmp_path)[2] == "tuned, thinking: the replies are not stored here"


def test_a_mix_that_was_changed_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "mix" / "manifest.json", {"fingerprint": "x", "sources": []})
    (line,) = counted_again(tmp_path)
    assert line.startswith("wrong: The mix in")


@pytest.mark.parametrize(
    ("value", "interval", "verdict"),
    [
        (1.0, [0.994, 1.0], "reached"),
        (0.995, [0.98, 0.999], "reached"),
        (0.992, [0.95, 0.999], "below, and cannot be told apart from it"),
        (0.9, [0.87, 0.93], "not reached"),
    ],
)
def test_mode_fidelity_against_what_is_asked(tmp_path: Path, value: float, interval: list[float], verdict: str) -> None:
    report = finished(tmp_path)
    report["evaluation"]["tuned"]["thinking"] |= {"mode_fidelity": value, "mode_fidelity_ci95": interval}
    first, second = fidelity_lines(report)
    assert first.startswith(f"thinking: {value:.3f} [") and first.endswith(f"asked is 0.995: {verdict}")
    assert second.startswith("non-thinking: 0.750") and second.endswith("not reached")


def test_the_claims_about_the_main_job() -> None:
    found = claims()
    assert ("tuned", "thinking", "embedded_skill") in found and ("base", "thinking", "embedded_skill") in found
    assert ("tuned", "non_thinking", "mode fidelity") in found
    assert all(low <= value <= high for value, (low, high) in found.values())


def test_the_own_numbers_beside_them(tmp_path: Path) -> None:
    compared = {one.rate: one for one in held(finished(tmp_path))}
    assert compared["skill, base, thinking"].verdict == "stands apart"  # 0.75 is far from 0.000
    assert compared["skill, tuned, thinking"].verdict == "agrees"
    assert "chat, tuned, thinking" not in compared  # the report has no such benchmark
    assert held(finished(tmp_path, "qwen3-0.6b")) == []


def test_agrees_is_that_the_intervals_have_a_value_in_common() -> None:
    assert Held("x", 0.5, [0.4, 0.6], 0.65, [0.6, 0.7]).verdict == "agrees"
    assert Held("x", 0.5, [0.4, 0.6], 0.65, [0.61, 0.7]).verdict == "stands apart"
    assert Held("x", 1.0, [0.994, 0.9999999999999998], 1.0, [1.0, 1.0]).verdict == "agrees"


def test_without_the_claims_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(achieved, "CLAIMS", tmp_path / "claims.md")
    with pytest.raises(UserError, match="come with a checkout"):
        claims()


# --- the exercises ------------------------------------------------------------------------------------------------------


def overlap(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return max(first[0], second[0]) <= min(first[1], second[1])


def test_right_answers_pass() -> None:
    assert check("12.1", 3) == "12.1: right" and check("12.2", overlap) == "12.2: right"


@pytest.mark.parametrize(
    ("name", "answer", "hint"),
    [
        ("12.1", 4, "below 0.995"),
        ("12.1", 2, "more may too"),
        ("12.1", "3", "whole number"),
        ("12.2", lambda a, b: True, "it says True"),
        ("12.2", lambda a, b: a[0] <= b[0] <= a[1], "it says False"),  # forgets that b may begin first
        ("12.2", lambda a, b: a[1] > b[0] and b[1] > a[0], "it says False"),  # ends that touch
        ("12.2", lambda a, b: 1, "return True or False"),
        ("12.2", 3, "a function"),
        ("12.3", 0.9, "a pair"),
        ("12.3", (2, 0), "between 0 and 1"),
        pytest.param("12.3", (0.5, 0.7), "With thinking", marks=[pytest.mark.slow, pytest.mark.nightly]),
        pytest.param("12.3", (1.0, 1.0), "Without thinking", marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def test_a_wrong_answer_gets_its_hint(name: str, answer: Any, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check(name, answer)
