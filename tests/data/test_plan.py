"""Chat with reasoning from a model without thinking mode: answers and plans, joined by their question."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.rehearsal.plan import (
    OPENING,
    REQUEST,
    first_sentences,
    is_answer,
    plan_questions,
    rows_of,
    thought,
    with_plans,
    write,
)


def row(question: str, reply: str, *before: dict[str, Any]) -> dict[str, Any]:
    messages = [*before, {"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "rehearsal": {"model": "m", "seed": 0}}


def plans_for(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    said = {"role": "assistant"}
    return [
        {"messages": [*asked["messages"], said | {"content": f"plan {i}"}], "rehearsal": {"plan": i}}
        for i, asked in enumerate(plan_questions(answers))
    ]


def test_the_last_question_gets_the_request_and_the_rest_stays() -> None:
    system = {"role": "system", "content": "Be brief."}
    (asked,) = plan_questions([row("Why?", "Because.", system)])
    assert asked == {"messages": [system, {"role": "user", "content": f"Why?{REQUEST}"}]}


@given(st.lists(st.text(min_size=1), min_size=1, max_size=8, unique=True), st.data())
def test_each_answer_gets_the_plan_of_its_own_question(questions: list[str], data: st.DataObject) -> None:
    answers = [row(question, f"answer {i}") for i, question in enumerate(questions)]
    plans = plans_for(answers)
    kept = data.draw(st.lists(st.sampled_from(plans), min_size=1, unique_by=lambda p: p["rehearsal"]["plan"]))
    made = with_plans(answers, kept)
    numbers = sorted(plan["rehearsal"]["plan"] for plan in kept)
    assert [m["messages"][-1]["reasoning_content"] for m in made] == [
        thought(questions[i], f"plan {i}") for i in numbers
    ]
    assert [m["messages"][-1]["content"] for m in made] == [f"answer {i}" for i in numbers]
    assert all(REQUEST not in m["messages"][0]["content"] for m in made)
    assert [m["plan"] for m in made] == [{"plan": i} for i in numbers]


def test_the_same_question_under_another_system_prompt_is_another() -> None:
    answers = [row("Why?", "a", {"role": "system", "content": s}) for s in "xy"]
    (made,) = with_plans(answers, plans_for(answers)[1:])
    assert made["messages"][0]["content"] == "y"


@pytest.mark.parametrize(
    ("plan", "kept"),
    [
        ("It asks for a name. A good answer is short. Here it is: Tom.", "It asks for a name. A good answer is short."),
        ("It asks for 4 ways:\n\n1. Bags\n2. Bottles", "It asks for 4 ways"),
        ("问的是原因。答案要短。答案：因为。", "问的是原因。 答案要短。"),
        ("No end", "No end"),
    ],
)
def test_a_plan_is_two_sentences_at_most(plan: str, kept: str) -> None:
    assert first_sentences(plan) == kept


@given(st.text())
def test_a_plan_is_never_made_longer_and_has_no_line_break(plan: str) -> None:
    kept = first_sentences(plan)
    assert len(kept.split()) <= len(plan.split()) + 1 and "\n" not in kept


def test_every_thought_begins_alike_in_the_language_of_its_question() -> None:
    assert thought("Why?", "It asks why.") == "What is asked for, and what does the answer need? It asks why."
    assert thought("为什么？", "问原因。") == "问题要什么，回答里要有什么？问原因。"


def test_no_worked_solution_begins_as_a_thought_of_chat_does(shared_data: Path) -> None:
    rows = rows_of(shared_data / "eval/gsm8k_train.jsonl")
    words = Counter(row["answer"].split()[0].strip(",").casefold() for row in rows)
    assert words["first"] > 0.05 * len(rows), "the sets are not what they were"
    assert words[OPENING.split()[0].casefold()] == 0


def test_a_plan_without_words_is_none() -> None:
    answers = [row("Why?", "a"), row("How?", "b")]
    plans = plans_for(answers)
    plans[0]["messages"][-1]["content"] = ":"
    assert [m["messages"][0]["content"] for m in with_plans(answers, plans)] == ["How?"]


def test_no_plan_at_all_is_said() -> None:
    with pytest.raises(UserError, match="both an answer and a plan"):
        with_plans([row("Why?", "a")], [])


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    rows = [row("为什么？", "因为。")]
    write(tmp_path / "new" / "rows.jsonl", rows)
    assert rows_of(tmp_path / "new" / "rows.jsonl") == rows


@pytest.mark.parametrize(
    ("plan", "answer", "said"),
    [
        ("Sure, here is a list:\n1. Bags", "Bags and bottles.", True),
        ("好的，答案如下：\n一、……", "袋子和瓶子。", True),
        ("```python\nprint(1)\n```", "Take `print`.", True),
        ("To make crepes, start by boiling milk.", "To make  crepes, you need flour.", True),
        ("What a wonderful idea! Begin with flour.", "Take flour.", True),
        ("Sure. Take flour and milk.", "You need flour.", True),
        ("Here's a letter to a friend.", "Dear friend, …", True),
        ("当然可以！先准备面粉。", "面粉两杯。", True),
        ("Here’s what you need. Flour.", "Take flour.", True),
        ("这是一个关于原因的问题。回答要短。", "因为下雨。", False),
        ("It asks for a greeting such as Hello! A good one is short.", "Hi.", True),  # left out too: rather one too few
        ("It asks where the river rises. Here a name is enough.", "In Spain.", False),
        ("Surety bonds are to be explained.", "A bond is …", False),
        ("It asks for a recipe. A good answer has steps.", "Take flour.", False),
        ("It asks why: a good answer names the cause.", "Because of the rain.", False),
        ("Two.", "Two.", False),  # too short to say
        ("", "", False),
    ],
)
def test_an_answer_in_the_place_of_a_plan_is_none(plan: str, answer: str, said: bool) -> None:
    assert is_answer(plan, answer) is said
    answers = [row("Why?", answer or "x"), row("How?", "So.")]
    made = with_plans(answers, [*plans_with(answers[:1], plan), *plans_with(answers[1:], "It asks for a way.")])
    assert ("Why?" in [m["messages"][0]["content"] for m in made]) is (bool(plan) and not said)


def plans_with(answers: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    said = {"role": "assistant", "content": text}
    return [{"messages": [*asked["messages"], said], "rehearsal": {}} for asked in plan_questions(answers)]
