"""What all steps share: a step is a function ``(conversation, row, setting) -> (conversation, example) | None``.

``None`` means that nothing changed; a row that is to be left out raises ``Rejected`` with the reason and what was seen.
"""

from __future__ import annotations

from pipeline.data.conversations import Conversation, Message

EXAMPLE_LENGTH = 160  # characters
Result = tuple[Conversation, str] | None


def short(text: str, length: int = 80) -> str:
    """One line of at most ``length`` characters for a message."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def last_message(conversation: Conversation, role: str) -> Message:
    """The last message of a role; an empty one where there is none."""
    return next((m for m in reversed(conversation.messages) if m["role"] == role), {"role": role, "content": ""})
