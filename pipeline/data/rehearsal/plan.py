"""Chat with reasoning from a model that has no thinking mode: its plan for an answer becomes the thought before it.

The model is asked twice, both times in the mode that it has: for its answer, and for a plan of it. In: the rows of both
rehearsals. Out: rows with the plan as ``reasoning_content``, for ``hybridise``. The plan was not followed when the answer was
written; such rows teach the form of a thought, not how to think. A small model asked for two sentences often goes on, into the
answer itself; what lies behind them is cut off, so that a thought is short and ends. Where it writes the answer at once, or
announces it ("Sure, here is a list:", "Great idea!"), there is no plan: a model that learns from such rows answers in the block
and forgets to close it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, make_folder
from pipeline.data.prepare import json_line

REQUEST = "\n\nDo not answer yet. In one or two sentences, say what is asked for and what a good answer has to contain."

# How every thought begins, in the language of its question: the same words each time, so that what begins as an answer does not
# look like a thought; and with a word with which no worked solution begins (many begin with "First"), so that no solution is
# drawn into it.
OPENING, OPENING_ZH = "What is asked for, and what does the answer need?", "问题要什么，回答里要有什么？"

SENTENCES = 2  # as REQUEST says
ALIKE = 12  # characters with which plan and answer begin alike, from which on the plan is taken for an answer
# How a reply begins that gives what was asked for, where a plan speaks of it.
_GIVES = re.compile(r"(?:sure|certainly|of course|absolutely|here(?:['’]s| is| are))\b|当然|好的|以下是", re.IGNORECASE)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_BOUNDARY = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows that a rehearsal wrote."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def plan_questions(answers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """To each answered question, the same with a request for a plan, as ``{"messages": […]}`` without an answer."""
    return [{"messages": _with_request(row["messages"][:-1])} for row in answers]


def with_plans(answers: Iterable[dict[str, Any]], plans: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answered questions that have a plan, in order, with it as the thought before the answer.

    Raises:
        UserError: no question has one.
    """
    by_question = {_key(row["messages"][:-1]): row for row in plans}
    made = []
    for row in answers:
        *before, answer = row["messages"]
        plan = by_question.get(_key(_with_request(before)))
        text = plan["messages"][-1]["content"] if plan is not None else ""
        said = "" if is_answer(text, answer["content"]) else first_sentences(text)
        if plan is not None and said:
            with_thought = {**answer, "reasoning_content": thought(before[-1]["content"], said)}
            made.append({**row, "messages": [*before, with_thought], "plan": plan["rehearsal"]})
    if not made:
        raise UserError(
            "no question has both an answer and a plan that could be kept, so there is no chat with reasoning to write. "
            "left_out.jsonl in both folders says why; a larger max_new_tokens of the profile's sampling may do."
        )
    return made


def first_sentences(text: str, count: int = SENTENCES) -> str:
    """The first sentences of the first paragraph, at most ``count``, without a colon at the end."""
    paragraph = text.strip().split("\n")[0].strip()
    return " ".join(part for part in _BOUNDARY.split(paragraph)[:count] if part).rstrip(":").rstrip()


def thought(question: str, plan: str) -> str:
    """A plan as the thought before an answer: behind the opening, which is always the same."""
    return f"{OPENING_ZH}{plan}" if _CHINESE.search(question) else f"{OPENING} {plan}"


def is_answer(plan: str, answer: str) -> bool:
    """Whether what stands in the place of a plan is an answer: its announcement, code, or the beginning of the answer itself.

    An exclamation mark behind the first sentence counts as an announcement, as in "What a good question!".
    """
    first = plan.strip().split("\n")[0].strip()
    begin, other = (" ".join(text.casefold().split())[:ALIKE] for text in (plan, answer))
    announced = first.endswith((":", "：")) or first_sentences(plan, 1).endswith(("!", "！")) or _GIVES.match(first)
    return bool(announced) or first.startswith("```") or (begin == other and len(begin) == ALIKE)


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    make_folder(path.parent)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(map(json_line, rows))


def _with_request(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    *before, last = messages
    return [*before, {**last, "content": f"{last['content']}{REQUEST}"}]


def _key(messages: list[dict[str, Any]]) -> str:
    return json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)
