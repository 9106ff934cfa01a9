"""On which side of the split an item lies, and draws from one side."""

from __future__ import annotations

import hashlib
import random

from pipeline.data.corpora.arithmetic import addition, reversal, skill, subtraction, times_table
from pipeline.data.corpora.chat import dialogue
from pipeline.data.corpora.words import Turn

TEST_PERCENT = 8  # of all keys are held out


def is_held_out(key: str) -> bool:
    """Whether the item with this key belongs to the test side. Depends on the key alone, never on a seed."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100 < TEST_PERCENT


def prompt_keys(turns: list[Turn]) -> list[str]:
    """The prompt of every assistant turn, the last one last."""
    lines = [f"{t['role']}: {t['content']}" for t in turns]
    return ["\n".join(lines[:i]) for i, t in enumerate(turns) if t["role"] == "assistant"]


def draw_chat(r: random.Random, held_out: bool) -> list[Turn]:
    while True:
        turns, stands_alone = dialogue(r)
        keys = prompt_keys(turns)
        if stands_alone:
            keys = [*(f"user: {t['content']}" for t in turns if t["role"] == "user"), *keys]
        # Training must not hold a test prompt anywhere, not as one turn of a longer dialogue either.
        if is_held_out(keys[-1]) if held_out else not any(map(is_held_out, keys)):
            return turns


def draw_arithmetic(r: random.Random, held_out: bool) -> list[Turn]:
    if not held_out and r.random() < 0.4:
        return times_table(r)
    while True:
        key, turns = addition(r)
        if is_held_out(key) == held_out:
            return turns


def draw_skill(r: random.Random, held_out: bool) -> tuple[str, str, str, int]:
    while True:
        key, *item = skill(r)
        if is_held_out(key) == held_out:
            return tuple(item)  # type: ignore[return-value]


def draw_subtraction(r: random.Random, held_out: bool) -> tuple[str, str, str, int]:
    while True:
        key, *item = subtraction(r)
        if is_held_out(key) == held_out:
            return tuple(item)  # type: ignore[return-value]


def draw_reversal(r: random.Random, held_out: bool) -> list[Turn]:
    while True:
        key, turns = reversal(r)
        if is_held_out(key) == held_out:
            return turns


def draw_sum(r: random.Random) -> tuple[str, str, str, int]:
    """A sum for the mathematics corpus: training side, answer in a box."""
    while True:
        key, turns = addition(r)
        if not is_held_out(key) and "boxed" in turns[-1]["content"]:
            a, b = map(int, key.split("+"))
            return turns[0]["content"], turns[1]["reasoning_content"], turns[1]["content"], a + b


def generator(seed: int, purpose: str, index: int) -> random.Random:
    return random.Random(f"{purpose}:{seed}:{index}")
