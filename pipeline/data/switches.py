"""Soft switches that contradict their row: ``/no_think`` before an answer with reasoning, ``/think`` before one without.

In: a conversation and what its recipe wants done. Out: the conversation with a note, with the switch taken out, or ``Rejected``.
"""

from __future__ import annotations

import dataclasses
import re

from pipeline.data.chat_format import soft_switch
from pipeline.data.conversations import Conversation, Message, Rejected
from pipeline.settings.data import Contradictions

_SWITCH = re.compile(r"[ \t]*(?<!\S)/(?:no_)?think(?!\S)")


def _contradictions(messages: list[Message]) -> list[int]:
    """The answers whose form is not what the switch in force asks for."""
    found = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("weight") == 0:
            continue
        wanted = soft_switch(messages[:index])
        if wanted and (wanted == "/think") != ("reasoning_content" in message):
            found.append(index)
    return found


def _without(text: str) -> str:
    return _SWITCH.sub("", text).strip(" \t")


def check_switches(conversation: Conversation, policy: Contradictions) -> Conversation:
    """Note, reject or repair a conversation with a switch that its answers do not obey.

    ``repair`` takes the switches out of what the user and the system say: the answers are what they are, and a model that learns
    them behind a switch that says otherwise learns to ignore it.

    Raises:
        Rejected: ``switch_contradicts``, with ``reject``; or a question that was nothing but its switch.
    """
    if not any("think" in message["content"] for message in conversation.messages if message["role"] != "assistant"):
        return conversation
    found = _contradictions(conversation.messages)
    if not found:
        return conversation
    thinks = "reasoning_content" in conversation.messages[found[0]]
    switch, form = ("/no_think", "with") if thinks else ("/think", "without")
    said = f"{switch} before an answer {form} reasoning (message {found[0]})"
    if policy == "reject":
        raise Rejected("switch_contradicts", said)
    if policy == "note":
        return dataclasses.replace(conversation, notes=[*conversation.notes, f"switch_contradicts: {said}"])
    messages = [
        message | {"content": _without(message["content"])} if message["role"] in ("user", "system") else message
        for message in conversation.messages
    ]
    if any(not message["content"] for message in messages if message["role"] == "user"):
        raise Rejected("switch_contradicts", f"{said}; the question is nothing but its switch")
    messages = [message for message in messages if message["content"] or message["role"] != "system"]
    return dataclasses.replace(
        conversation, messages=messages, notes=[*conversation.notes, f"switch_taken_out: {said}"]
    )
