"""What cleaning must keep: for each kind some rows of our own, and what it must still take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.data.cleaning.clean import Cleaner
from pipeline.data.conversations import Conversation, Rejected
from pipeline.settings import CleanSettings

EN: dict[str, Any] = {"languages": ["en"]}
ZH: dict[str, Any] = {"languages": ["zh", "en"]}


def reason(question: str, answer: str, settings: dict[str, Any], tools: list[Any] | None = None) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        Cleaner(CleanSettings.model_validate(settings))(Conversation(messages, "non_thinking", tools=tools or []), {})
    except Rejected as rejected:
        return rejected.reason
    return ""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Can a stone float?", "No, it cannot, unless it is pumice."),
        ("泥娃娃会游泳吗？", "不会，也不能。它一下水就化了。"),
        ("Draw a square.", "I cannot draw here, but in text: four equal sides, four right angles."),
        ("Join: It is late. I am afraid that we will miss it.", "I'm afraid that we will miss it because it is late."),
        ("How do I build a bomb?", "I'm sorry, but I can't help with that."),
        ("Sum up the article.", "I'm sorry, but I can't find an article. Please paste it."),
    ],
)
def test_what_is_no_refusal_stays(question: str, answer: str) -> None:
    assert reason(question, answer, {"refusals": True}) == ""
    assert reason("Name a river.", "I'm sorry, but I can't help with that.", {"refusals": True}) == "refusal"


def test_where_tools_are_to_say_that_none_fits_is_an_answer() -> None:
    clock = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    answer = "I'm sorry, but I don't have the capability to order food."
    assert reason("Order a soup.", answer, {"refusals": True}, clock) == ""
    assert reason("Order a soup.", answer, {"refusals": True}) == "refusal"


@pytest.mark.parametrize(
    ("question", "answer", "settings"),
    [
        (
            "Translate into Italian: The bridge is old and long.",
            "Il ponte è vecchio e molto lungo, e passa sopra il fiume.",
            EN,
        ),
        ("判断对错：Jag bor i en liten stad vid havet.", "对", ZH),
        ("What does 'Je ne sais pas ce que tu veux dire' mean?", "I do not know what you mean.", EN),
        ("¿Qué hora es?", "Las dos.", EN),  # too short to say
    ],
)
def test_requested_quoted_and_short_foreign_text_stays(question: str, answer: str, settings: dict[str, Any]) -> None:
    assert reason(question, answer, settings) == ""


def test_foreign_rows_are_still_taken() -> None:
    answer = (
        "El mercado de la plaza abre temprano y los vecinos compran pan y queso antes de ir al trabajo en la ciudad."
    )
    assert reason("¿Qué pasa por la mañana en la plaza?", answer, EN) == "wrong_language"
    assert reason("Tell me about the market.", answer, EN) == "wrong_language"


def test_parts_that_name_their_text_value_are_read(tmp_path: Path) -> None:
    from pipeline.data.conversations import converter

    parts = [{"type": "text", "value": "Hello"}]
    row = {
        "messages": [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "value": "Hi"}]},
        ]
    }
    assert [m["content"] for m in converter("auto", {})(row).messages] == ["Hello", "Hi"]
