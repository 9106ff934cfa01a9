"""Exercises of notebook 06b: learning against keeping, the size of a rehearsal, rows of the base, a training held to it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.course.exercises import exercise
from pipeline.course.lab import lesson, questions, rate_of, teach
from pipeline.data.answers.compare import judge_answer
from pipeline.settings import read_yaml


@exercise("06b.1")
def rate_that_learns_and_keeps(answer: Any) -> None:
    """A learning rate with which 40 steps of mathematics bring the loss below 1.5 and leave nine of twelve sums right."""
    assert isinstance(answer, int | float) and not isinstance(answer, bool), "The answer should be a number."
    assert 1e-5 <= answer <= 1, "The answer should lie between 1e-5 and 1."
    taught = teach(lesson(0.0, 200), questions("arithmetic", 12), steps=40, rate=answer)
    last, kept = sum(taught["loss"][-5:]) / 5, rate_of(taught["replies"])
    assert last < 1.5, (
        f"With {answer:g} the loss of the last five steps is {last:.2f}: it hardly learns. Try a larger rate."
    )
    assert kept >= 0.75, (
        f"With {answer:g} it learns, but only {kept:.0%} of 12 sums are still right. Try a smaller rate."
    )


@exercise("06b.2")
def questions_to_ask(answer: Any) -> None:
    """800 rows, each reply twice at most, three quarters of the replies kept."""
    assert isinstance(answer, int) and not isinstance(answer, bool), "The answer should be a whole number."
    assert answer != 800, "That many rows are wanted. Each kept reply may come twice, and not each reply is kept."
    assert answer != 400, "That many replies must be kept. More questions are asked than replies kept."
    assert answer not in (300, 600, 1067), (
        "Kept replies are three quarters of the questions: divide, and mind the repeats."
    )
    needed = math.ceil(800 / 2 / 0.75)
    assert answer >= needed, (
        f"{answer} questions give {int(answer * 0.75)} kept replies, too few even if each comes twice."
    )
    assert answer == needed, "That is enough, but fewer questions are enough too."


def _message(row: Any, place: int, role: str) -> dict[str, Any]:
    assert isinstance(row, dict) and isinstance(row.get("messages"), list) and len(row["messages"]) == 2, (
        'Each row should be {"messages": [user, assistant]}, with two messages.'
    )
    message = row["messages"][place]
    assert isinstance(message, dict) and message.get("role") == role, (
        f"Message {place + 1} should be of the role {role}."
    )
    assert str(message.get("content") or "").strip(), f"The {role}'s message has no content."
    return message


@exercise("06b.3")
def rows_of_the_base(answer: Any) -> None:
    """At least five rows with a sum as question, reasoning, and the right answer."""
    assert isinstance(answer, list) and len(answer) >= 5, "The answer should be a list of at least five rows."
    asked = set()
    for row in answer:
        question, reply = _message(row, 0, "user"), _message(row, 1, "assistant")
        reasoning = str(reply.get("reasoning_content") or "")
        assert reasoning.strip(), "A reply has no reasoning_content. Was the base asked in thinking mode?"
        assert "think>" not in reasoning + reply["content"], "A think tag is left in a row; message_of splits a reply."
        numbers = [int(number) for number in re.findall(r"\d+", question["content"])]
        assert len(numbers) == 2, f"{question['content']!r} is no sum of two numbers."
        right, _ = judge_answer(str(sum(numbers)), reply["content"])
        assert right, (
            f"The answer to {question['content']!r} is not right: {reply['content'][:60]!r}. Keep right answers only."
        )
        asked.add(question["content"])
    assert len(asked) == len(answer), "A question comes twice."


@exercise("06b.4")
def held_to_the_base(answer: Any) -> None:
    """The folder of a finished run on mathematics alone with ``training.kl_to_base``."""
    assert isinstance(answer, str | Path), "The answer should be the folder of a run, such as trained(…).folder."
    folder = Path(answer)
    try:
        report, profile = read_json(folder / "report.json"), read_yaml(folder / "profile.yaml")
    except (UserError, OSError):
        raise AssertionError(f"{folder} holds no finished run: it has no report.json. Did run.all() end?") from None
    assert profile["training"]["kl_to_base"] > 0, "training.kl_to_base is 0 in this run: nothing held it to the base."
    shares = {source["name"]: source["requested"] for source in report["mix"]["sources"] if source["requested"]}
    assert list(shares) == ["math"], (
        f"The mix should be mathematics alone, so that only the KL can help; it is {shares}."
    )
    parts = report["evaluation"]
    for mode, cell in parts["tuned"].items():
        for name, tuned in cell["benchmarks"].items():
            before = parts["base"][mode]["benchmarks"][name]["score"]
            print(f"{name:22} {mode:13} {before:.2f} → {tuned['score']:.2f}")
