"""Exercises of notebook 02: a converter, a cleaning that takes the dirt and nothing else, a length limit, whole rows."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import write_jsonl
from pipeline.course import lab
from pipeline.course.exercises import exercise
from pipeline.data import corpora
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Conversation, Rejected
from pipeline.model.load import load_tokenizer
from pipeline.settings import CleanSettings, Recipe, load_profile, parse

LIMIT = 4096  # tokens; no row of the practice file is as long, so that nothing but the cleaning decides


# --- 02.2: the practice file --------------------------------------------------------------------------------------------

_MARKET = (
    "A farmer takes apples, pears and plums to the market. The apples lie in {} boxes, the pears in green ones and the "
    "plums in a basket. In the morning it rains and few people come. At noon the sun shines, and by the evening nearly "
    "everything is sold. Only the plums are left, because their price was too high. What should the farmer do next week?"
)
_WALK = "Write two sentences about a long walk {} with an old dog that still likes to run after each bird it sees, {}."
_LOOP = "Add the digits, then look at the sum again, then add the digits of the sum. "


def _think(reasoning: str, answer: str) -> str:
    return f"<think>\n{reasoning}\n</think>\n\n{answer}"


def _row(question: str, answer: str, score: float = 4.0, **more: str) -> dict[str, Any]:
    return {"question": question, "answer": answer, "score": score, **more}


def _good() -> list[dict[str, Any]]:
    """Rows that have to stay; some of them fall to a step that is set too sharply."""
    r = random.Random(2)
    rows = []
    for row in corpora.openmath_like(rows=44, seed=3):
        answer = {"expected_answer": row["expected_answer"]}
        rows.append(_row(row["problem"], row["generated_solution"], round(3 + 2 * r.random(), 1), **answer))
    return [
        *rows,
        _row("Is 7 a prime number?", "Yes.", 3.2),  # short
        _row("What is 3 + 4?", "7", 3.1),
        _row("Which address does a home router often have?", "Often it is 192.168.0.1, an address for private networks."),
        _row("用一句话介绍一下北京。", "北京是中国的首都，有三千多年的历史，也是全国的文化中心。", 4.4),
        _row("你好，你会做什么？", "你好！我可以回答问题，也可以陪你聊天。", 3.9),
        _row(_MARKET.format("red"), "Ask less for the plums, and come at noon if the morning is wet."),
        # Alike, but not the same: they share well over half of their word 3-grams.
        _row(_WALK.format("in the park", "in the voice of a child"), "We walked around the pond. He ran after each duck."),
        _row(_WALK.format("at the river", "in the voice of a poet"), "We walked around the town. He ran after each duck."),
        # It regrets, and then it helps.
        _row(
            "I lost my grandmother's ring. What can I do?",
            "I am sorry, I cannot bring it back, but these steps often help:\n\n1. Write down where you had it last.\n"
            "2. Search each place in daylight.\n3. Ask at the lost property office.\n4. Tell your insurance.",
        ),
    ]  # fmt: skip


def _dirt(good: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(kind, row) of every row that has to go."""
    wrong = [
        _row(row["problem"], row["generated_solution"], expected_answer=str(int(row["expected_answer"]) + 10))
        for row in corpora.openmath_like(rows=3, seed=8)
    ]
    cut = [
        _row(
            f"Compute {a} × {b}.", _think(f"I multiply {a} by {b}. First {b} × {a % 10} = {b * (a % 10)},", f"{a * b}")
        )
        for a, b in ((38, 6), (74, 9))
    ]
    return [
        *(("a duplicate", dict(good[n])) for n in (1, 12, 30)),
        ("a near-duplicate", _row(_MARKET.format("blue"), "Ask less for the plums, and come at noon if the morning is wet.")),
        *(("a wrong answer", row) for row in wrong),
        *(("a chain of thought that was cut", row) for row in cut),
        ("a refusal", _row("How do I open a jar that is stuck?", "I'm sorry, but I cannot assist with that request.", 3.4)),
        ("a refusal", _row("怎样才能学好英语？", "很抱歉，作为一个人工智能语言模型，我无法回答这个问题。", 3.3)),
        ("a person's data", _row("Who sells the piano?", "Ask Martin Weber, martin.weber@pianos-weber.de, he sells it.")),
        ("a person's data", _row("How can I reach the plumber?", "Call me at +49 30 901820 after six in the evening.")),
        (
            "another language",
            _row(
                "Quelle est la capitale de la France, et pourquoi est-elle connue ?",
                "La capitale de la France est Paris. La ville est connue pour ses musées, ses ponts et sa cuisine.",
            ),
        ),
        (
            "another language",
            _row(
                "Wie lange muss ein Ei kochen, damit es weich bleibt?",
                "Etwa fünf Minuten, wenn das Wasser schon kocht. Danach sollte man es kalt abschrecken.",
            ),
        ),
        ("text that goes in circles", _row("What is the digit sum of 3,996?", _think(_LOOP * 12 + "It is 9.", "9"))),
        ("text that goes in circles", _row("Tell me about the sea.", "The sea is deep and blue and wide and old. " * 15)),
        *(
            ("an answer of low quality", _row(question, answer, score))
            for question, answer, score in (
                ("Why is the sky blue?", "Because it is blue, I think, or something.", 0.8),
                ("How do bees find flowers?", "Bees are animals. Animals are nice.", 1.3),
                ("What is a verb?", "It is what a noun is not.", 1.6),
            )
        ),
    ]  # fmt: skip


@cache
def _practice() -> tuple[tuple[str, str], ...]:
    """(what is wrong with it, or "", the row as JSON) for each line of the practice file."""
    good = _good()
    lines = [("", row) for row in good]
    r = random.Random(4)
    for kind, row in _dirt(good):  # a repeat has to stand after what it repeats
        least = len(good) - 4 if kind.startswith(("a duplicate", "a near")) else 0
        lines.insert(r.randrange(least, len(lines)) + 1, (kind, row))
    return tuple((kind, json.dumps(row, ensure_ascii=False)) for kind, row in lines)


def practice_file(folder: Path) -> Path:
    """Write ``practice.jsonl``: rows with question, answer, score and, where it is known, expected_answer. Some are dirty."""
    path = folder / "practice.jsonl"
    write_jsonl(path, (json.loads(line) for _, line in _practice()))
    return path


@cache
def _form() -> ChatFormat:
    return ChatFormat(load_tokenizer(load_profile("embedded").model))


def _left_out(clean: CleanSettings) -> dict[int, str]:
    """Line → why it was left out, when the practice file is built with these cleaning steps."""
    from pipeline.data.pools import build_pools
    from pipeline.data.screen import screen

    with tempfile.TemporaryDirectory() as folder:
        path = practice_file(Path(folder))
        source = {"name": "practice", "kind": "other", "source": "local", "path": str(path), "share": 1.0}
        recipe = parse(Recipe, {"name": "practice", "sources": [source]}, "practice")
        recipe.clean = clean
        pools = build_pools(recipe, _form(), LIMIT)
        rejected = [*pools[0].iter_rejected(), *screen(recipe, pools)[0].iter_rejected()]
    return {row["line"]: f"{row['step']}, {row['reason']}: {row['detail']}" for row in rejected}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


# --- the checks ---------------------------------------------------------------------------------------------------------


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
def find_the_dirt(answer: Any) -> None:
    """``answer``: the ``clean`` section of a recipe under which exactly the dirty rows of ``practice_file`` are left out."""
    assert isinstance(answer, dict), "The answer should be a dict: step → its setting, as under clean: in a recipe."
    try:
        clean = parse(CleanSettings, answer, "your clean section")
        left_out = _left_out(clean)
    except UserError as error:
        text = str(error)
        raise AssertionError(text if text.endswith((".", "?")) else f"{text}.") from error
    kinds = dict(enumerate((kind for kind, _ in _practice()), 1))
    lost = [f"line {line} ({why})" for line, why in sorted(left_out.items()) if not kinds[line]]
    shown = "; ".join(lost[:3]) + (f"; and {len(lost) - 3} more" if len(lost) > 3 else "")
    assert not lost, f"Good rows were lost: {shown}. Look at them: which setting is too sharp?"
    still = _listed(kind for line, kind in kinds.items() if kind and line not in left_out)
    assert not still, f"Still in the data: {still}. Which step looks for that, and does it drop the row?"


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


# --- 02.4: rows that never end ------------------------------------------------------------------------------------------


def broken_rows() -> list[lab.Row]:
    """120 training rows; every third was cut somewhere in its answer."""
    rows = lab.lesson(0.5, 120, seed=4)
    r = random.Random(4)
    for row in rows[::3]:
        begins = next(i for i, label in enumerate(row["labels"]) if label != -100)
        end = r.randint(begins + 1, len(row["labels"]) - 1)
        row["input_ids"], row["labels"] = row["input_ids"][:end], row["labels"][:end]
    return rows


@exercise("02.4")
def whole_rows(answer: Any) -> None:
    """``answer(rows)``: those rows that end with the end of the turn."""
    assert callable(answer), "The answer should be a function that takes the rows and gives back those to train on."
    rows = broken_rows()
    end = rows[1]["labels"][-1]
    kept = answer([{"input_ids": list(row["input_ids"]), "labels": list(row["labels"])} for row in rows])
    assert isinstance(kept, list) and all(row in rows for row in kept), "Give back a list of rows, unchanged."
    cut = sum(row["labels"][-1] != end for row in kept)
    assert not cut, f"{cut} of your rows have no end. What is the last token of a whole row?"
    lost = sum(row["labels"][-1] == end and row not in kept for row in rows)
    assert not lost, f"{lost} whole rows are missing. Leave out those that were cut, and no others."
    replies = lab.teach(kept, lab.questions("chat", 6, "non_thinking"), steps=15, rate=5e-3)["replies"]
    ended = lab.rate_of(replies, "faithful")
    assert ended >= 0.8, f"Trained on your rows, only {ended:.0%} of 6 replies come to an end. Look at the rows again."
