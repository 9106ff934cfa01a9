"""Questions with conditions: which they get, that it depends on the question alone, and what a file of them has to be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.conversations import Message
from pipeline.data.rehearsal.conditions import MOST, SHIPPED, conditioned, read_conditions

LISTS = read_conditions(str(SHIPPED))


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def asked(text: str) -> str:
    return conditioned(user(text), LISTS)[-1]["content"]


@given(st.text(min_size=1))
def test_a_question_keeps_its_words_and_gets_some_behind(text: str) -> None:
    assert asked(text).startswith(text.rstrip())
    assert len(asked(text)) > len(text.rstrip()) + 10
    assert asked(text) == asked(text)
    assert not re.search(r"\{[^{}]*\|", asked(text)[len(text.rstrip()) :])  # every choice was made


@given(st.integers())
def test_at_most_one_of_each_list_and_at_most_three(number: int) -> None:
    lists = tuple(tuple(f"<{i}.{j}>" for j in range(3)) for i in range(6))
    said = conditioned(user(f"question {number}"), lists)[-1]["content"]
    drawn = re.findall(r"<(\d)\.\d>", said)
    assert 1 <= len(drawn) <= MOST
    assert len(set(drawn)) == len(drawn)


def test_questions_differ_in_what_they_get() -> None:
    behind = {asked(f"question {i}").removeprefix(f"question {i}") for i in range(200)}
    assert len(behind) > 150


def test_earlier_turns_and_a_system_prompt_stay() -> None:
    before: list[Message] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ]
    messages = conditioned([*before, *user("Why?")], LISTS)
    assert messages[:3] == before
    assert messages[3]["content"].startswith("Why?")
    assert conditioned(before[:1], LISTS) == before[:1]


@pytest.mark.parametrize(
    "text", ["", "- Be brief.\n", "length: Be brief.\n", "length: []\n", "length: [1]\n", "length: ['']\n"]
)
def test_a_file_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match="should hold lists of conditions"):
        read_conditions(str(tmp_path / "own.yaml"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_conditions(str(tmp_path / "none.yaml"))
