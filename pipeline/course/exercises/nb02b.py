"""Exercises of notebook 02b: an item within a row, a number of hash functions, contaminated rows, what a leak does to a score."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipeline.core.files import write_jsonl
from pipeline.course import lab
from pipeline.course.exercises import exercise
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Conversation
from pipeline.model.load import load_data_tokenizer
from pipeline.settings import load_profile

# --- 02b.3: a benchmark and rows that hold some of it --------------------------------------------------------------------

_BENCHMARK = (
    "Nora has 14 apples and gives 5 of them to her brother. Then she buys twice as many as she has left. How many apples does "
    "she have now?",
    "A train leaves the harbour at 9:40 and reaches the airport 75 minutes later. At what time does it arrive at the airport?",
    "The garden of the school is 12 metres long and 7 metres wide. How many metres of fence are needed to go all around it?",
    "Write a letter of exactly three paragraphs to a museum that has lost your umbrella, without using the letter q.",
    "小明有二十四颗糖，他把其中的三分之一分给了妹妹，又吃掉了四颗，请问小明最后还剩下多少颗糖？",
)
# (whether an item of the benchmark stands in it, question, answer)
_TRAINING = (
    (False, "Tom has 8 marbles and finds 3 more on his way to school. How many marbles does he have now?", "11"),
    (True, _BENCHMARK[1], "At 10:55."),
    (False, "A bus leaves the station at 8:15 and needs 40 minutes to the zoo. At what time is it there?", "At 8:55."),
    (
        True,
        f"Here is a little puzzle for you! Please think step by step.\n\n**Question:** {_BENCHMARK[0]}\n\nPut the final "
        "answer in \\boxed{}.",
        "\\boxed{27}",
    ),
    (False, "The room is 5 metres long and 4 metres wide. How large is its floor?", "20 square metres."),
    (False, "小红有十五支铅笔，送给同桌六支，她还有多少支铅笔？", "九支。"),
    (
        True,
        "The garden of the school is 15 metres long and 9 metres wide. How many metres of fence are needed to go all around it?",
        "48 metres.",
    ),
    (False, "Write a letter to a friend who has moved to another town, in two paragraphs.", "Dear Kim, how are you? …"),
    (True, "Can you give me an example of a hard word problem in Chinese?", f"Gladly. {_BENCHMARK[4]} The answer is 12."),
    (False, "How many apples does she have now, if Ida had 6 apples and has eaten 2?", "4"),
)  # fmt: skip


def contamination_files(folder: Path) -> tuple[Path, Path]:
    """Write ``benchmark.jsonl`` (column question) and ``training.jsonl`` (question, answer); returns both paths."""
    benchmark, training = folder / "benchmark.jsonl", folder / "training.jsonl"
    write_jsonl(benchmark, ({"question": item} for item in _BENCHMARK))
    write_jsonl(training, ({"question": question, "answer": answer} for _, question, answer in _TRAINING))
    return benchmark, training


# --- 02b.4: an exam that was seen before --------------------------------------------------------------------------------

LEAKED = 6
STEPS = 40


def leaked_items() -> tuple[list[lab.LabQuestion], list[lab.LabQuestion]]:
    """Twelve held-out multiplications, to be answered without thinking: six that the training sees, six that it does not."""
    items = lab.questions("skill", 2 * LEAKED, "non_thinking")
    return items[:LEAKED], items[LEAKED:]


def rows_of(items: list[lab.LabQuestion]) -> list[lab.Row]:
    """Training rows of questions with their right answers."""
    form = ChatFormat(load_data_tokenizer(load_profile("embedded").model))
    rows: list[lab.Row] = []
    for item in items:
        reply = {"role": "assistant", "content": f"The answer is {item['answer']}."}
        example = form.example(Conversation([*item["messages"], reply], item["mode"]))[-1]
        rows.append({"input_ids": example.input_ids, "labels": example.labels})
    return rows


# --- the checks ---------------------------------------------------------------------------------------------------------


@exercise("02b.1")
def containment(answer: Any) -> None:
    """``answer(item, row)``: |item ∩ row| / |item| of two sets, 0 for an empty item."""
    assert callable(answer), "The answer should be a function of two sets: the n-grams of the item and of the row."
    for item, row in (
        ({1, 2, 3, 4}, {3, 4, 5, 6, 7, 8}),
        (set(range(20)), set(range(200))),
        (set(range(50)), set(range(10))),
        ({"x"}, {"y"}),
        ({"x"}, set()),
    ):
        given = answer(set(item), set(row))
        assert isinstance(given, int | float) and not isinstance(given, bool), "The function should return one number."
        shared, wanted = len(item & row), len(item & row) / len(item)
        right = math.isclose(given, wanted, abs_tol=1e-9)
        assert right or not math.isclose(given, shared / len(item | row)), (
            "That is the Jaccard similarity. It is small where the row is long, even if the whole item stands in it."
        )
        assert right or not row or not math.isclose(given, shared / len(row)), (
            "That is the part of the row that comes from the item. How much of the item is there?"
        )
        assert right, (
            f"An item of {len(item)} n-grams and a row of {len(row)} share {shared}; then {given:.4g} is not right."
        )
    try:
        empty = answer(set(), {1})
    except ZeroDivisionError:
        raise AssertionError("An item without n-grams makes it divide by zero. Such an item is in no row.") from None
    assert empty == 0, "An item without n-grams is in no row: that part is 0."


@exercise("02b.2")
def numberings(answer: Any) -> None:
    """The smallest n with √(0.8 · 0.2 / n) ≤ 0.02."""
    assert isinstance(answer, int) and not isinstance(answer, bool), "The answer should be a whole number."
    assert answer > 0, "Without a numbering there is no estimate."
    error = math.sqrt(0.8 * 0.2 / answer)
    assert error <= 0.02 + 1e-12, (
        f"With {answer} the standard error is {error:.4f}. It falls with the root of the number, not with the number."
    )
    needed = math.ceil(0.8 * 0.2 / 0.02**2 - 1e-9)
    assert answer == needed, "That is enough, but fewer are enough too. Solve √(J (1 − J) / n) = 0.02 for n."


@exercise("02b.3")
def contaminated_rows(answer: Any) -> None:
    """``answer``: numbers, from 1, of the lines of training.jsonl that hold an item of benchmark.jsonl."""
    assert isinstance(answer, list | tuple | set) and all(type(line) is int for line in answer), (
        "The answer should be a list of line numbers, counted from 1."
    )
    outside = [line for line in answer if not 1 <= line <= len(_TRAINING)]
    assert not outside, f"There is no line {outside[0]} in training.jsonl; lines count from 1."
    truth = {line for line, (contaminated, *_) in enumerate(_TRAINING, 1) if contaminated}
    style = sorted(set(answer) - truth)
    assert not style, (
        f"Line {style[0]} is of the same style as the benchmark, but it is another task. A lower overlap finds such rows too."
    )
    missing = len(truth - set(answer))
    assert not missing, (
        f"{missing} more line(s) hold an item. Items may be wrapped in other text, stand in an answer, or have other numbers: "
        "shorter n-grams survive such a change."
    )


@exercise("02b.4")
def leak(answer: Any) -> None:
    """``answer``: the parts of six items that were trained on and of six that were not that are right afterwards."""
    assert isinstance(answer, tuple | list) and len(answer) == 2, "The answer should be a pair: (seen, not seen)."
    assert all(isinstance(part, int | float) and 0 <= part <= 1 for part in answer), "Each part lies between 0 and 1."
    seen, unseen = leaked_items()
    replies = lab.teach(rows_of(seen), [*seen, *unseen], steps=STEPS, rate=5e-3)["replies"]
    known, others = lab.rate_of(replies[:LEAKED]), lab.rate_of(replies[LEAKED:])
    assert abs(answer[0] - known) <= 0.2, (
        "For the items that the training saw, your guess is too far from what comes out. How hard are six answers to repeat?"
    )
    assert abs(answer[1] - others) <= 0.2, (
        "For the items that the training did not see, your guess is too far from what comes out. Do six rows teach to multiply?"
    )
