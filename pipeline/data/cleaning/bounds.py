"""Steps ``score`` and ``length``: a number of the row, and the length of its texts, against bounds."""

from __future__ import annotations

import math
from typing import Any

from pipeline.data.cleaning.step import Result, last_message, short
from pipeline.data.conversations import Conversation, Rejected
from pipeline.settings import LengthFilter, ScoreFilter


def step_score(conversation: Conversation, row: dict[str, Any], setting: ScoreFilter) -> Result:
    value = row.get(setting.field)
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        seen = f"is {short(repr(value), 60)}" if setting.field in row else "is not in the row"
        raise Rejected("no_score", f"{setting.field!r} {seen}")
    if number < setting.at_least:
        raise Rejected("low_score", f"{setting.field} {number:g} is below {setting.at_least:g}")
    return None


def step_length(conversation: Conversation, row: dict[str, Any], setting: LengthFilter) -> Result:
    answer = last_message(conversation, "assistant")
    for name, message, least, most in (
        ("answer", answer, setting.min_answer, setting.max_answer),
        ("prompt", last_message(conversation, "user"), setting.min_prompt, setting.max_prompt),
    ):
        length = len(message["content"].strip())
        if length < least and not message.get("tool_calls"):
            raise Rejected("too_short", f"{name} of {length} characters, at least {least}")
        if most is not None and length > most:
            raise Rejected("too_many_characters", f"{name} of {length} characters, at most {most}")
    return None
