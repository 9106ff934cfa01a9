"""Questions with a known answer: for a verifiable reward, for a base to answer, and with the reasoning that it was trained on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.data.corpora.arithmetic import addition
from pipeline.data.corpora.drawn import draw_chat, generator, is_held_out
from pipeline.data.corpora.pairs import skill_item, sum_item
from pipeline.data.corpora.words import Turn


def math_questions(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Sums and products that may be trained on, half of each: ``problem`` and ``expected_answer``, no solution."""
    for index in range(rows):
        r = generator(seed, "questions", index)
        skill = r.random() < 0.5
        while True:
            key, (problem, _, _, number) = skill_item(r) if skill else sum_item(r)
            if not is_held_out(key):
                break
        yield {
            "problem": problem,
            "expected_answer": str(number),
            "problem_source": "embedded_skill" if skill else "embedded_arithmetic",
        }


def known_questions(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Additions that the base knows, training side, in all its wordings: ``problem`` and ``expected_answer``, no solution."""
    for index in range(rows):
        r = generator(seed, "known", index)
        while True:
            key, turns = addition(r)
            if not is_held_out(key):
                break
        answer = sum(map(int, key.split("+")))
        yield {"problem": turns[0]["content"], "expected_answer": str(answer), "problem_source": "embedded_arithmetic"}


def gold_chat(
    rows: int, seed: int, draw: Callable[[random.Random], list[Turn]] | None = None
) -> Iterator[dict[str, Any]]:
    """Chat of the training side with the reasoning that the base was trained on: ``messages``, reasoning with every answer.

    What no user has: an upper bound for what a base's own answers can keep.
    """
    for index in range(rows):
        r = generator(seed, "gold", index)
        yield {"messages": draw_chat(r, False) if draw is None else draw(r)}


def gold_sums(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Additions likewise."""

    def draw(r: random.Random) -> list[Turn]:
        while True:
            key, turns = addition(r)
            if not is_held_out(key):
                return turns

    return gold_chat(rows, seed, draw)
