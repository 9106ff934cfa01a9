"""Steps ``broken_reasoning`` and ``check_answer``: a whole chain of thought that ends in the answer that was expected."""

from __future__ import annotations

import re
from typing import Any

from pipeline.data.answers import expected_answer, judge_answer
from pipeline.data.cleaning.protected import protected_spans
from pipeline.data.cleaning.step import Result, last_message, short
from pipeline.data.conversations import Conversation, Rejected

_THINK_TAG = re.compile(r"</?think(?:ing)?>")
_ENDS_OPEN = re.compile(r"[,，、(（\[{\\]\s*$")
_LATEX_GROUP = re.compile(r"(?:\\[A-Za-z]+|[\^_]|\})\s*\{[^{}\n]*$")


def _is_cut(reasoning: str) -> str:
    """Why the reasoning plainly stops in the middle; "" where it does not. It errs on the side of keeping."""
    if _ENDS_OPEN.search(reasoning[-8:]):
        return "ends with a comma or an open bracket"
    tail = reasoning[-200:]
    while (shorter := re.sub(r"\{[^{}]*\}", "", tail)) != tail:
        tail = shorter
    if _LATEX_GROUP.search(tail):
        return "ends inside a LaTeX group"
    spans = protected_spans(reasoning)
    if spans and spans[-1][1] == len(reasoning):
        last = reasoning[spans[-1][0] :].strip()
        fence = re.match(r"(?:(?:[-*+>]|\d+[.)])[ \t]+)*(`{3,}|~{3,})", last)
        if fence and not last[fence.end() :].rstrip().endswith(fence[1]):
            return "ends inside a code fence"
    return ""


def step_broken_reasoning(conversation: Conversation, row: dict[str, Any], setting: bool) -> Result:
    for index, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        where = f"message {index}"
        answer, reasoning = message.get("content") or "", message.get("reasoning_content")
        for name, text in (("reasoning", reasoning or ""), ("answer", answer)):
            if tag := _THINK_TAG.search(text):
                raise Rejected("think_tag_inside", f"{where}: {tag[0]} in the {name}")
        if not answer.strip() and not message.get("tool_calls"):
            raise Rejected("empty_answer", f"{where}: nothing after the reasoning" if reasoning else where)
        if reasoning is None:
            continue
        if not any(character.isalnum() for character in reasoning):
            raise Rejected("empty_reasoning", f"{where}: {short(reasoning, 40)!r}")
        if reasoning.strip() == answer.strip():
            raise Rejected("reasoning_is_answer", f"{where}: both are {short(answer)!r}")
        if why := _is_cut(reasoning):
            raise Rejected("reasoning_cut", f"{where}: {why}: …{short(reasoning[-60:], 60)}")
    return None


def step_check_answer(conversation: Conversation, row: dict[str, Any], setting: bool) -> Result:
    expected = row.get("expected_answer")
    if not isinstance(expected, str | int | float) or isinstance(expected, bool) or expected != expected:
        return None  # nothing to compare with; NaN is how tables spell a missing value
    if not str(expected).strip():
        return None
    last = last_message(conversation, "assistant")
    if last.get("tool_calls"):
        return None
    gold = expected_answer(str(expected))
    right, found = judge_answer(gold, last["content"])
    if right:
        return None
    if not found:
        raise Rejected("no_final_answer", f"expected {short(gold, 60)!r}; ends on {short(last['content'][-80:])!r}")
    seen = f"expected {short(gold, 70)!r}, found {short(found, 70)!r}"
    if right is None:
        raise Rejected("unchecked_answer", f"cannot be compared: {seen}")
    raise Rejected("wrong_answer", seen)
