"""What is audited: conversations, and the examples that this project makes of each.

In: a recipe, or the built-in cases. Out: ``Row``s. A framework gets them as whole conversations, or answer by answer: each answer
that carries loss as a row of its own, with what precedes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.modes import Mode
from pipeline.data.chat_format import ChatFormat, Example, Turns
from pipeline.data.conversations import Conversation, Message, Rejected
from pipeline.data.prepare import CHUNK, Preparation
from pipeline.data.sources import read_rows
from pipeline.settings import Recipe


@dataclass(frozen=True)
class AuditRow:
    """One row that both sides see. ``examples`` are ours, in order; the last one is of the last answer.

    ``too_long``: one of them is over the limit, so here the row is left out.
    """

    number: int
    source: str
    messages: list[Message]
    tools: list[dict[str, Any]]
    mode: Mode
    examples: list[Example]
    too_long: bool = False

    @property
    def turns(self) -> int:
        """Answers in it."""
        return sum(m["role"] == "assistant" for m in self.messages)

    @property
    def has_system(self) -> bool:
        return self.messages[0]["role"] == "system"

    @property
    def asked(self) -> list[str]:
        """What was said by others than the assistant."""
        return [m["content"] for m in self.messages if m["role"] != "assistant"]

    @property
    def earlier_answers(self) -> list[str]:
        """Contents of the answers before the last; of an answer that calls, the names of what it calls."""
        answers = [m for m in self.messages[:-1] if m["role"] == "assistant"]
        called = [f'{{"name": "{c["function"]["name"]}"' for m in answers for c in m.get("tool_calls") or []]
        return [m["content"] for m in answers if m["content"].strip()] + called

    @property
    def earlier_reasoning(self) -> list[str]:
        return [m["reasoning_content"] for m in self.messages[:-1] if m.get("reasoning_content")]

    @property
    def reasoning(self) -> str:
        return str(self.messages[-1].get("reasoning_content") or "")

    def plain(self) -> dict[str, Any]:
        """As other programs read it, without our tokens."""
        kept = ("role", "content", "reasoning_content", "tool_calls")
        plain = [{k: v for k, v in m.items() if k in kept and v is not None} for m in self.messages]
        return {"id": self.number, "messages": plain, "tools": self.tools, "mode": self.mode}

    def job(self) -> dict[str, Any]:
        """As a runner reads it: with our tokens of the last answer, for settings that take tokens."""
        last = self.examples[-1]
        return self.plain() | {"ours": {"input_ids": last.input_ids, "labels": last.labels}}


def conversation_rows(
    conversations: Sequence[Conversation], form: ChatFormat, turns: Turns, limit: int
) -> list[AuditRow]:
    """A row a conversation that examples can be made of; the others are no training rows."""
    rows: list[AuditRow] = []
    for conversation, made in zip(conversations, form.examples(conversations, turns), strict=True):
        if isinstance(made, Rejected):
            continue
        messages, mode = _as_trained(conversation), made[-1].mode
        rows.append(
            AuditRow(len(rows), conversation.source, messages, conversation.tools, mode, made, _too_long(made, limit))
        )
    return rows


def answer_rows(conversations: Sequence[Conversation], form: ChatFormat, turns: Turns, limit: int) -> list[AuditRow]:
    """A row an answer that carries loss, with what precedes it."""
    rows: list[AuditRow] = []
    for conversation, made in zip(conversations, form.examples(conversations, turns), strict=True):
        if isinstance(made, Rejected):
            continue
        messages, over = _as_trained(conversation), _too_long(made, limit)
        for (index, mode), example in zip(form.targets(conversation, turns), made, strict=True):
            rows.append(
                AuditRow(
                    len(rows), conversation.source, messages[: index + 1], conversation.tools, mode, [example], over
                )
            )
    return rows


def _too_long(made: Sequence[Example], limit: int) -> bool:
    """Whether a row is left out here: one of its examples is longer than the limit."""
    return max(len(example.input_ids) for example in made) > limit


def _as_trained(conversation: Conversation) -> list[Message]:
    """The messages without reasoning that the conversation's mode leaves out."""
    if conversation.mode == "thinking" or conversation.each:
        return conversation.messages
    return [{k: v for k, v in m.items() if k != "reasoning_content"} for m in conversation.messages]


def recipe_conversations(recipe: Recipe, form: ChatFormat, limit: int, turns: Turns, number: int) -> list[Conversation]:
    """The first ``number`` usable conversations of each source, converted and cleaned as a mix has them.

    Raises:
        UserError: a source cannot be read, or has no usable row among the first ones; or all are answers of the base.
    """
    found: list[Conversation] = []
    for source in recipe.sources:
        if source.source == "base":
            say(f"source {source.name}: answers of the base, which are not asked for here; left out")
            continue
        preparation = Preparation(source, form, limit, turns, recipe.cleaning(source))
        rows = list(islice(read_rows(source, recipe.root), max(CHUNK, 2 * number)))
        draft = preparation.draft(rows, 0)
        usable = [
            conversation
            for conversation, entry in zip(draft.conversations, draft.rendered, strict=True)
            if not isinstance(entry, Rejected)
        ]
        if not usable:
            raise UserError(f"source {source.name!r} has no usable row among its first {len(rows)}; see data inspect.")
        found += usable[:number]
    if not found:
        raise UserError(
            f"All sources of recipe {recipe.name} are answers of the base; name a recipe with rows, or --cases."
        )
    return found
