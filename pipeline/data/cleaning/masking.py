"""Step ``personal_data``: mask what ``personal_data`` finds in a row, or leave the row out.

A password that only its name makes one ("password: …") stays where it is plainly invented: in an answer to somebody who asked
for one, and in the JSON of tool calls, their results, and the rows around them.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from pipeline.data.cleaning import personal_data
from pipeline.data.cleaning.step import EXAMPLE_LENGTH, Result, short
from pipeline.data.conversations import Conversation, Message, Rejected
from pipeline.settings import PersonalDataFilter

_WANTS_A_PASSWORD = re.compile(
    r"(?i)(?:suggest|generat|creat|make|come up|invent|think of|ideas?|examples?|give|need|want|recommend|propose|design|write"
    r"|produce|strong|secure|random)\w*\b[^.?!\n]{0,60}\b(?:password|passphrase|passcode|token|api key|secret key)"
    r"|(?:生成|创建|设计|推荐|起|想|编|给我|来|建议|需要|写)[^。？！\n]{0,20}(?:密码|口令|密钥|令牌)"
)

# One of these stands in what the pattern finds. To look for them first takes a hundredth of its time.
_A_PASSWORD = ("password", "passphrase", "passcode", "token", " key", "密码", "口令", "密钥", "令牌")


def _wants_a_password(text: str) -> bool:
    lowered = text.lower()
    return any(word in lowered for word in _A_PASSWORD) and _WANTS_A_PASSWORD.search(text) is not None


def _masked(value: Any, kinds: tuple[str, ...], counts: Counter[str], cached: bool = False) -> Any:
    """A copy of plain data with every text masked, the same object where nothing was found; ``counts`` grows."""
    if isinstance(value, str):
        if not cached and not personal_data.find(value, kinds):  # most texts
            return value
        text, found = (personal_data.mask_cached if cached else personal_data.mask)(value, kinds)
        counts.update(found)
        return text if found else value
    if isinstance(value, list):
        items = [_masked(item, kinds, counts, cached) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    if isinstance(value, dict):
        fields = {key: _masked(item, kinds, counts, cached) for key, item in value.items()}
        for key in value:
            if isinstance(key, str) and (inside := personal_data.find_cached(key, kinds)):
                # A masked name could meet another one, and one of the two would be lost.
                raise Rejected("personal_data", f"{inside[0][0]} in the name of a field")
        return value if all(fields[key] is value[key] for key in value) else fields
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10**10:
        text, found = personal_data.mask(str(value), kinds)  # {"phone": 13812345678}
        counts.update(found)
        return text if found else value
    return value


def _masked_messages(conversation: Conversation, kinds: tuple[str, ...], counts: Counter[str]) -> list[Message]:
    shapes = tuple("secret_shape" if kind == "secret" else kind for kind in kinds)
    calls = bool(conversation.tools) or any(message.get("tool_calls") for message in conversation.messages)
    asked = False
    result: list[Message] = []
    for message in conversation.messages:
        if message["role"] == "user":
            asked = _wants_a_password(message["content"])
        invented = calls or (asked and message["role"] == "assistant")
        result.append(_masked(message, shapes if invented else kinds, counts))
    return result


def _first_mask(messages: list[Message]) -> str:
    for message in messages:
        text = "\n".join(
            str(message[key]) for key in ("content", "reasoning_content", "tool_calls") if message.get(key)
        )
        places = [text.find(mask) for mask in personal_data.MASKS.values() if mask in text]
        if places:
            start = min(places)
            return short(text[max(0, start - 30) : start + 50], 90)
    return ""


def step_personal_data(conversation: Conversation, row: dict[str, Any], setting: PersonalDataFilter) -> Result:
    counts: Counter[str] = Counter()
    kinds = tuple(setting.kinds)
    messages = _masked_messages(conversation, kinds, counts)
    tools = _masked(conversation.tools, kinds, counts, cached=True)
    if not counts:
        return None
    found = ", ".join(f"{kind} × {number}" for kind, number in sorted(counts.items()))
    if setting.action == "drop":
        raise Rejected("personal_data", found)
    example = (
        f"{found} → {_first_mask([m for m, old in zip(messages, conversation.messages, strict=True) if m is not old])}"
    )
    return replace(conversation, messages=messages, tools=tools), example[:EXAMPLE_LENGTH]
