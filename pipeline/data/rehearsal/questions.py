"""What the base is asked: the rows of a source become prompts, each once.

In: a source of conversations (the last answer is cut off), of questions with their answers, or of bare questions. Out:
``Question``s with their prompt in the chosen mode, and every row that cannot be asked, with its reason. An item of a
benchmark is never asked: decontamination looks at what is asked before anything is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline.core.modes import Mode
from pipeline.data.chat_format import ChatFormat
from pipeline.data.cleaning.decontaminate import Decontaminator
from pipeline.data.conversations import Conversation, Message, Rejected, converter
from pipeline.data.formats import ANSWERS, Row, filled, is_missing, rename
from pipeline.data.rehearsal.conditions import Conditions, conditioned, read_conditions
from pipeline.data.sources import SourceRow, read_rows
from pipeline.settings import SourceSettings

REFERENCE = "expected_answer"  # the column with which an answer is compared, as in cleaning
_FILLER = "-"  # stands where an answer would, so that a bare question can be read by the converters


@dataclass(frozen=True)
class Question:
    """Messages up to the user's last one, the prompt that they make in a mode, and where they came from."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    prompt_ids: list[int]
    file: str
    line: int
    reference: str | None = None  # the right answer, where it is known

    @cached_property
    def key(self) -> str:
        """A hash of the prompt: equal prompts are one question."""
        return hashlib.sha256(",".join(map(str, self.prompt_ids)).encode()).hexdigest()[:32]


@dataclass
class Questions:
    """Rows read = questions kept + rows left out."""

    kept: list[Question] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)  # file, line, step, reason, detail, row

    @property
    def read(self) -> int:
        return len(self.kept) + len(self.left_out)


def _completed(row: Row) -> Row:
    """A bare question with a filler where its answer would stand; any other row as it is."""
    if filled(row, ("chosen",)):  # a preference row: its conversation ends on the user, and the answer stands beside it
        return row
    for name in ("messages", "conversations", "conversation"):
        turns = row.get(name)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            last = turns[-1].get("role") or turns[-1].get("from")
            if last in ("user", "human", "tool", "observation"):
                return {**row, name: [*turns, {"role": "assistant", "content": _FILLER}]}
            return row
    if filled(row, ANSWERS) or filled(row, ("generated_solution",)):
        return row
    return {**row, "completion": _FILLER}


def _history(messages: list[Message]) -> list[Message]:
    """The messages before the last answer, earlier answers without their reasoning, which no prompt shows."""
    return [{k: v for k, v in m.items() if k not in ("reasoning_content", "weight")} for m in messages[:-1]]


def _reference(row: Row) -> str | None:
    value = row.get(REFERENCE)
    if is_missing(value) or not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    text = str(value)
    return (text.rpartition("####")[2] if "####" in text else text).strip() or None  # GSM8K ends a worked solution so


@dataclass
class Reader:
    """From rows to questions in one mode. ``room``: tokens that a prompt may have, so that the reply still fits."""

    source: SourceSettings
    form: ChatFormat
    mode: Mode
    room: int
    decontaminator: Decontaminator | None = None
    conditions: str | None = None  # a file of conditions: each question is asked without any, and again with some

    @cached_property
    def _convert(self) -> Callable[[Row], Conversation]:
        # Columns are renamed here, before a filler is put to a bare question.
        return converter(self.source.format if self.source.format != "openmathreasoning" else "auto")

    def question(self, row: SourceRow, conditions: Conditions | None = None) -> Question:
        """Read one row; its question comes with some of these conditions.

        Raises:
            Rejected: it cannot be read, is a benchmark's, or its prompt is too long.
        """
        if row.data is None:
            raise Rejected(row.reason or "broken_row", row.error, "read")
        data = rename(row.data, self.source.columns) if self.source.columns else row.data
        conversation = self._convert(_completed(data))
        asked = _history(conversation.messages)
        if conditions:
            asked = conditioned(asked, conditions)
        if self.decontaminator:
            try:
                self.decontaminator(Conversation(asked, self.mode))
            except Rejected as rejected:
                rejected.step = "decontaminate"
                raise
        ids = self.form.prompt_ids(asked, self.mode, conversation.tools)
        if len(ids) > self.room:
            raise Rejected(
                "too_long", f"a prompt of {len(ids)} tokens leaves no room for the reply; {self.room} may be"
            )
        return Question(asked, conversation.tools, ids, row.file, row.line, _reference(data))

    def read(self, root: str | None = None) -> Questions:
        """All questions of the source, equal ones once.

        Raises:
            UserError: as ``read_rows``.
        """
        result = Questions()
        seen: dict[str, Question] = {}
        for row, question in self._each(root):
            if isinstance(question, Rejected):
                result.left_out.append(left_out(row.file, row.line, question, row.data))
            elif (earlier := seen.get(question.key)) is not None:
                again = Rejected("asked_already", f"the same as {earlier.file}:{earlier.line}", "question")
                result.left_out.append(left_out(row.file, row.line, again, row.data))
            else:
                seen[question.key] = question
                result.kept.append(question)
        return result

    def _each(self, root: str | None) -> Iterator[tuple[SourceRow, Question | Rejected]]:
        wanted = [None, read_conditions(self.conditions)] if self.conditions else [None]
        for row in read_rows(self.source, root):
            for conditions in wanted:
                try:
                    yield row, self.question(row, conditions)
                except Rejected as rejected:
                    rejected.step = rejected.step or "question"
                    yield row, rejected
                    break  # what cannot be asked without conditions cannot be asked with them


def left_out(file: str, line: int, why: Rejected, row: Any) -> dict[str, Any]:
    """What is written of a question or a reply that was left out."""
    return {"file": file, "line": line, "step": why.step, "reason": why.reason, "detail": why.detail, "row": row}
