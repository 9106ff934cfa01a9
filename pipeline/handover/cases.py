"""Conversations that show where frameworks differ: both modes, one turn and several, a system prompt, tools.

Few and short, so that a page can show all of them. ``data audit --recipe`` takes rows of a recipe in their place.
"""

from __future__ import annotations

from typing import Any

from pipeline.data.conversations import Conversation, converter

WEATHER = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city now.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Name of the city."}},
                "required": ["city"],
            },
        },
    }
]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _answer(text: str, reasoning: str = "") -> dict[str, Any]:
    return {"role": "assistant", "content": text, **({"reasoning_content": reasoning} if reasoning else {})}


def _call(city: str, reasoning: str = "") -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
    return _answer("", reasoning) | {"tool_calls": [call]}


_RAIN = {"role": "tool", "content": '{"sky": "rain", "degrees": 9}'}

# name → messages, tools
CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "thinking, one turn": ([_user("What is 17 + 25?"), _answer("42", "17 + 25: 10 + 20 = 30, 7 + 5 = 12. 42.")], []),
    "non-thinking, one turn": ([_user("Name a fruit."), _answer("Apple.")], []),
    "thinking, several turns": (
        [
            _user("What is 6 × 7?"),
            _answer("42", "Six sevens are forty-two."),
            _user("And half of it?"),
            _answer("21", "42 / 2 = 21."),
        ],
        [],
    ),
    "non-thinking, several turns": (
        [_user("Name a fruit."), _answer("Apple."), _user("Another one."), _answer("Pear.")],
        [],
    ),
    "both modes in turn": (
        [_user("Say hello."), _answer("Hello!"), _user("What is 9 × 9?"), _answer("81", "Nine nines are eighty-one.")],
        [],
    ),
    "system prompt, non-thinking": (
        [{"role": "system", "content": "Answer in one word."}, _user("Capital of France?"), _answer("Paris")],
        [],
    ),
    "tools, non-thinking": (
        [_user("Is it raining in Oslo?"), _call("Oslo"), _RAIN, _answer("Yes, at 9 degrees.")],
        WEATHER,
    ),
    "tools, thinking": (
        [
            _user("Is it raining in Bergen?"),
            _call("Bergen", "I need the weather of Bergen."),
            _RAIN,
            _answer("Yes, at 9 degrees.", "The sky says rain."),
        ],
        WEATHER,
    ),
}


def case_conversations() -> list[Conversation]:
    """The cases in order, read as rows of a file are; ``source`` is the case's name."""
    convert = converter("messages")
    found = []
    for name, (messages, tools) in CASES.items():
        conversation = convert({"messages": messages, **({"tools": tools} if tools else {})})
        conversation.source = name
        found.append(conversation)
    return found
