"""Exercises of notebook 02: a converter, rejected rows, a length limit."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from pipeline.conversations import Conversation, Rejected
from pipeline.exercises import exercise


def _practice() -> list[tuple[dict[str, Any], str]]:
    """ShareGPT rows and, known because they were made so, the reason for which each is rejected ("": it is kept)."""
    r = random.Random(2)
    question, reply = {"from": "human", "value": "What is 3 + 4?"}, {"from": "gpt", "value": "7"}
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("", {"conversations": [question, reply]}),
        ("", {"conversations": [question, {"from": "gpt", "value": "<think>\n3 + 4 = 7\n</think>\n\n7"}]}),
        ("unclosed_think", {"conversations": [question, {"from": "gpt", "value": "<think>\n3 + 4 is"}]}),
        ("empty_answer", {"conversations": [question, {"from": "gpt", "value": " "}]}),
        ("no_assistant_turn", {"conversations": [question]}),
        ("roles_out_of_order", {"conversations": [reply, question, reply]}),
        ("unknown_role", {"conversations": [question, {"from": "narrator", "value": "7"}]}),
        ("missing_column", {"messages": [question]}),
    )
    weights = (20, 8, 5, 4, 3, 2, 2, 1)
    rows = r.choices(kinds, weights, k=80)
    return [(row, reason) for reason, row in [*kinds, *rows]]


def practice_rows() -> list[dict[str, Any]]:
    """88 rows in ShareGPT's layout, some of them dirty."""
    return [row for row, _ in _practice()]


@exercise("02.1")
def a_converter(answer: Any) -> None:
    """``answer(row)``: the conversation of a row with ``question``, ``scratchpad`` and ``reply``."""
    assert callable(answer), "The answer should be a function that takes a row (a dict)."
    for question, scratchpad, reply in (("What is 3 + 4?", "3 + 4 = 7", "7"), ("Is 9 even?", "9 = 2 × 4 + 1", "No.")):
        result = answer({"question": question, "scratchpad": scratchpad, "reply": reply})
        assert isinstance(result, Conversation), f"It returned {type(result).__name__}; return a Conversation."
        assert [m.get("role") for m in result.messages] == ["user", "assistant"], (
            "The conversation should have two messages: from the user and from the assistant."
        )
        user, assistant = result.messages
        assert user == {"role": "user", "content": question}, "The user's message should hold the question and no more."
        assert "<think>" not in assistant["content"], "Write no think tag into content; the template adds the tags."
        assert assistant["content"] == reply, "The assistant's content should be the reply alone."
        assert assistant.get("reasoning_content") == scratchpad, "Where does a message keep its reasoning?"
        assert result.mode == "thinking", f"An answer that comes with reasoning is not of the mode {result.mode!r}."
    for blank in ("", " \n"):
        try:
            answer({"question": "What is 3 + 4?", "scratchpad": blank, "reply": "7"})
        except Rejected as rejected:
            assert rejected.reason == "empty_reasoning", f"The reason is {rejected.reason!r}, not empty_reasoning."
        else:
            raise AssertionError(f"A row with the scratchpad {blank!r} should be rejected, not converted.")


@exercise("02.2")
def count_reasons(answer: Any) -> None:
    """``answer``: how many of ``practice_rows()`` are rejected for which reason."""
    truth = Counter(reason for _, reason in _practice() if reason)
    assert isinstance(answer, dict), "The answer should be a dict (a Counter is one): reason → number of rows."
    unknown = [reason for reason in answer if reason not in truth]
    assert not unknown, f"No row is rejected for {unknown[0]!r}. Count the attribute `reason`, of rejected rows only."
    missing = len(truth.keys() - answer.keys())
    assert not missing, f"{missing} more reason(s) occur in the rows."
    wrong = [reason for reason in truth if answer[reason] != truth[reason]]
    assert not wrong, f"The number for {', '.join(map(repr, wrong))} is not right."


@exercise("02.3")
def smallest_limit(answer: Any) -> None:
    """``answer(lengths, keep)``: the smallest limit in tokens that keeps at least the share ``keep`` of the rows."""
    assert callable(answer), "The answer should be a function of lengths (a list) and keep (a share from 0 to 1)."
    r = random.Random(3)
    cases = (
        ([10, 20, 30, 40], 0.5),
        ([10, 20, 30, 40], 1.0),
        ([7], 0.9),
        ([50] * 9 + [400], 0.9),
        ([r.randrange(5, 300) for _ in range(1000)], 0.99),
        ([r.randrange(5, 3000) for _ in range(200)], 0.99),
    )
    for lengths, keep in cases:
        # A row is kept where its length does not exceed the limit; so only a length can be the smallest limit.
        truth = min(x for x in lengths if sum(n <= x for n in lengths) / len(lengths) >= keep)
        given = answer(list(lengths), keep)
        shown = lengths if len(lengths) < 12 else f"{len(lengths)} lengths"
        kept = sum(n <= given for n in lengths) / len(lengths)
        assert kept >= keep, f"{shown}, keep {keep}: the limit {given} keeps only {kept:.4f} of the rows."
        assert given == truth, f"{shown}, keep {keep}: a limit lower than {given} keeps enough rows too."
        assert isinstance(given, int), f"It returned {given!r}; a limit is a whole number of tokens."
