"""Step ``repetition``: texts that run in a loop."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from pipeline.data.cleaning.protected import unprotected
from pipeline.data.cleaning.step import Result, short
from pipeline.data.conversations import Conversation, Rejected
from pipeline.settings import RepetitionFilter

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_BETWEEN_WORDS = {
    code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "_")
}  # as _WORD parts them
_RUNNING_CHARACTER = re.compile(
    r"([^\s\d\-_=*#.·~─━═])\1{199}|(\d)\2{999}"
)  # lines are drawn with those; digits are written out
_SHORTEST_RUN = 200  # characters; what is repeated hundreds of times is no shorter
_FEWEST_WORDS = 100  # below, a chorus or a list of options is no loop
_SAME_LINES = 100
ROUNDS = 4  # without a pause: three times is emphasis, or a refrain
_PERIODS = 8  # lengths of blocks that are tried, the likeliest first
OFTEN = 16  # anywhere in a text: a month in each line of a year comes twelve times


def _words(text: str) -> list[str]:
    """The words of a text, code and mathematics left out; a CJK character is a word."""
    text = unprotected(text)
    return text.translate(_BETWEEN_WORDS).split() if text.isascii() else _WORD.findall(text)


def looping_part(text: str, ngram: int) -> float:
    """Part (0..1) of the words of a text that go in circles; a CJK character counts as a word.

    A word does so that lies in a block said ``ROUNDS`` times or more without a pause, or in a word n-gram that occurs ``OFTEN``
    times or more. A chorus, a plan with the same exercise each day, the code before and after a change come back too, but not
    so often, or not at once. Code is left out: it repeats by nature. 0 for a text of fewer than 100 words.
    """
    words = _words(text)
    if len(words) < max(_FEWEST_WORDS, ngram):
        return 0.0
    grams = list(zip(*(words[shift:] for shift in range(ngram)), strict=False))
    if len(set(grams)) == len(grams):  # most texts: half of the time that counting takes
        return 0.0
    counts = Counter(grams)
    looping = np.zeros(len(words), bool)
    distances: Counter[int] = Counter()  # to where an n-gram stood before
    last: dict[tuple[str, ...], int] = {}
    for place, gram in enumerate(grams):
        if counts[gram] > 1:
            if counts[gram] >= OFTEN:
                looping[place : place + ngram] = True
            if gram in last:
                distances[place - last[gram]] += 1
            last[gram] = place
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(word, len(numbers)) for word in words])
    for period, _ in distances.most_common(_PERIODS):
        if period * ROUNDS > len(ids):
            continue
        same = np.concatenate([[False], ids[period:] == ids[:-period], [False]])  # as the word a period before
        edges = np.flatnonzero(same[1:] != same[:-1])
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if end - start >= (ROUNDS - 1) * period:
                looping[start : end + period] = True
    return float(looping.mean())


def _runs(text: str) -> str:
    """What is repeated hundreds of times without words; "" if nothing is."""
    if len(text) < _SHORTEST_RUN:
        return ""
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
            if (part := looping_part(text, setting.ngram)) > setting.at_most:
                seen = f"{part:.0%} of the words go in circles, at most {setting.at_most:.0%}"
                raise Rejected("repetitive", f"message {index}, {name}: {seen}: {short(text)}")
    return None
