"""Step ``repetition``: texts that run in a loop."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from pipeline.data.cleaning.protected import unprotected
from pipeline.data.cleaning.step import Result, short
from pipeline.data.conversations import Conversation, Rejected
from pipeline.settings import RepetitionFilter

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_RUNNING_CHARACTER = re.compile(
    r"([^\s\d\-_=*#.·~─━═])\1{199}|(\d)\2{999}"
)  # lines are drawn with those; digits are written out
_FEWEST_WORDS = 100  # below, a chorus or a list of options is no loop
_SAME_LINES = 100


def repeated_part(text: str, ngram: int) -> float:
    """Part (0..1) of the word n-grams of a text that repeat earlier ones; a CJK character counts as a word.

    Code is left out: it repeats by nature. 0 for a text of fewer than 100 words.
    """
    words = _WORD.findall(unprotected(text))
    if len(words) < max(_FEWEST_WORDS, ngram):
        return 0.0
    grams = list(zip(*(words[shift:] for shift in range(ngram)), strict=False))
    return 1 - len(set(grams)) / len(grams)


def _runs(text: str) -> str:
    """What is repeated hundreds of times without words; "" if nothing is."""
    if match := _RUNNING_CHARACTER.search(text):
        return f"{match[0][0]!r} {len(match[0])} times in a row"
    if text.count("\n") >= _SAME_LINES:
        lines = Counter(filter(None, map(str.strip, text.split("\n"))))
        line, times = max(lines.items(), key=lambda item: item[1], default=("", 0))
        if times >= _SAME_LINES:
            return f"the line {short(line, 40)!r} {times} times"
    for word in text.split():
        if len(word) >= 400 and any(word[period:] == word[:-period] for period in range(1, 9)):
            return f"a word that is {short(word[:8], 20)!r} over and over"
    return ""


def step_repetition(conversation: Conversation, row: dict[str, Any], setting: RepetitionFilter) -> Result:
    for index, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        for key, name in (("content", "answer"), ("reasoning_content", "reasoning")):
            text = message.get(key) or ""
            if run := _runs(text):
                raise Rejected("repetitive", f"message {index}, {name}: {run}")
            if (part := repeated_part(text, setting.ngram)) > setting.at_most:
                seen = f"{part:.0%} of the {setting.ngram}-grams repeat, at most {setting.at_most:.0%}"
                raise Rejected("repetitive", f"message {index}, {name}: {seen}: {short(text)}")
    return None
