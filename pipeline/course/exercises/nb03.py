"""Exercises of notebook 03: what a share counts, when a source is short, from a share of tokens to a share of rows."""

from __future__ import annotations

import math
from typing import Any

from pipeline.course.exercises import exercise
from pipeline.course.lab import lesson, questions, rate_of, teach
from pipeline.data.chat_format import IGNORE_INDEX


def _example(source: str, prompt: int, target: int) -> dict[str, Any]:
    ids = list(range(prompt + target))
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * prompt + ids[prompt:], "source": source}


@exercise("03.1")
def share_of_loss_tokens(answer: Any) -> None:
    """``answer(examples, name)``: the source's part of the tokens with loss."""
    assert callable(answer), "The answer should be a function of the examples (a list of dicts) and a source's name."
    # (prompt, target) of each example; the truth is a sum over the targets.
    cases = (
        {"chat": [(20, 5), (10, 5)], "math": [(20, 30)]},
        {"chat": [(3, 1)], "math": [(30, 60), (1, 39)], "tools": [(50, 20)]},
        {"chat": [], "math": [(8, 8)]},
    )
    for sizes in cases:
        examples = [_example(name, *size) for name, group in sizes.items() for size in group]
        total = sum(target for group in sizes.values() for _, target in group)
        for name, group in sizes.items():
            share, given = sum(target for _, target in group) / total, answer(examples, name)
            assert isinstance(given, int | float), f"It returned {type(given).__name__}; a share is a number."
            assert 0 <= given <= 1, f"It returned {given:g}; a share lies between 0 and 1."
            counted = sum(len(e["labels"]) for e in examples if e["source"] == name) / sum(
                len(e["labels"]) for e in examples
            )
            assert math.isclose(given, share, abs_tol=1e-9) or not math.isclose(given, counted, abs_tol=1e-9), (
                "That is the share in all tokens. Leave out the tokens whose label is −100."
            )
            rows = len(group) / len(examples)
            assert math.isclose(given, share, abs_tol=1e-9) or not math.isclose(given, rows, abs_tol=1e-9), (
                "That is the share in rows. Count tokens with loss instead."
            )
            assert math.isclose(given, share, abs_tol=1e-9), (
                f"For {len(examples)} examples the share of {name!r} is not {given:g}."
            )


@exercise("03.2")
def largest_total(answer: Any) -> None:
    """The largest mix from 4,000 chat rows at a share of 1/4 and 9,000 maths rows at 3/4."""
    assert isinstance(answer, int | float), "The answer should be a number of rows."
    need = {"chat": (1 / 4, 4_000), "maths": (3 / 4, 9_000)}
    short = [name for name, (share, have) in need.items() if share * answer > have + 1e-6]
    assert not short, (
        f"In a mix of that size the {' and the '.join(short)} source is short: share × total is more than it has."
    )
    # One row more must be too much for some source.
    assert any(share * (answer + 1) > have for share, have in need.values()), (
        "No source is short there yet: a larger mix works."
    )


@exercise("03.3")
def share_in_rows(answer: Any) -> None:
    """Chat's share of the rows that gives it half of the loss tokens: 20 a chat row, 80 a maths row."""
    assert isinstance(answer, int | float), "The answer should be a number."
    assert 0 <= answer <= 1, "A share lies between 0 and 1."
    chat, maths = 20 * answer, 80 * (1 - answer)
    assert math.isclose(chat, maths, rel_tol=1e-3), (
        f"Of 100 rows, chat would then give {100 * chat:,.0f} loss tokens and maths {100 * maths:,.0f}: not one half each."
    )


@exercise("03.4")
def what_chat_alone_loses(answer: Any) -> None:
    """The kinds that fall below 0.6 after 30 steps on chat alone."""
    kinds = ("chat", "arithmetic")
    assert isinstance(answer, list | tuple | set) and set(answer) <= set(kinds), (
        'The answer should be a list that holds "chat", "arithmetic", both, or nothing.'
    )
    asked = [item for kind in kinds for item in questions(kind, 8)]
    replies = teach(lesson(1.0, 200), asked, steps=30, rate=1e-2)["replies"]
    rates = {kind: rate_of(replies[8 * i : 8 * i + 8]) for i, kind in enumerate(kinds)}
    lost = {kind for kind in kinds if rates[kind] < 0.6}
    assert set(answer) >= lost, "Something else falls below 0.6 as well. Ask the trained model for both kinds."
    assert set(answer) <= lost, "Something that you name stays above 0.6. Ask the trained model for both kinds."
