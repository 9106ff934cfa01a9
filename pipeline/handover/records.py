"""The types of ``audit.json``. The command ``schema audit`` prints their JSON schema."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.core.modes import Mode

Kind = Literal[
    "loss_on_prompt",
    "empty_block_in_loss",
    "empty_block_missing",
    "empty_block_added",
    "no_loss_on_opening",
    "no_loss_on_reasoning",
    "no_loss_on_answer",
    "reasoning_missing",
    "reasoning_in_history",
    "history_in_loss",
    "end_without_loss",
    "newline_after_end",
    "end_twice",
    "system_added",
    "tools_differ",
    "cut",
    "left_out",
    "other",
]
# What each kind means, in a sentence.
MEANING: dict[Kind, str] = {
    "loss_on_prompt": "Loss on what the user or the system says: the model learns to write questions.",
    "empty_block_in_loss": "The empty think block carries loss behind the thinking prompt: the model learns to skip thinking.",
    "empty_block_missing": "The empty think block is missing: the answer follows another prompt than inference sends.",
    "empty_block_added": "An empty think block stands where the prompt of inference has none.",
    "no_loss_on_opening": "No loss on the tag that opens the reasoning: the model does not learn to begin a thought.",
    "no_loss_on_reasoning": "No loss on the reasoning, or a part of it.",
    "no_loss_on_answer": "No loss on the answer, or a part of it.",
    "reasoning_missing": "Reasoning is not shown that inference shows: the row's own, or that before a call of tools.",
    "reasoning_in_history": "Reasoning of earlier answers is shown, which inference leaves out.",
    "history_in_loss": "Earlier answers carry loss behind a prompt that inference does not send for them.",
    "end_without_loss": "No loss on the token that ends the answer: the model does not learn to stop.",
    "newline_after_end": "A line break with loss follows the end token; inference has stopped before it.",
    "end_twice": "A line break and a second end token follow the end token, with loss.",
    "system_added": "A system prompt that the row does not have.",
    "tools_differ": "Tools are described to the model in other words.",
    "cut": "The row is cut at the limit, or ends early; here a row that is too long is left out.",
    "left_out": "The framework left the row out.",
    "other": "A difference of no known kind.",
}


class Record(BaseModel):
    """No key but these."""

    model_config = ConfigDict(extra="forbid")


class Finding(Record):
    """One difference between what the framework trains on and what this project does."""

    kind: Kind
    text: str  # where it is, as text; at most some hundred characters
    tokens: int  # how many
    loss: bool  # whether the framework puts loss on them


class Span(Record):
    """Neighbouring tokens of one kind, as text."""

    text: str
    loss: bool
    differs: bool  # from the other side, in token or in loss


class RowAudit(Record):
    """One row, both sides. Loss-bearing tokens are equal where the token and all that stands before it are."""

    row: int
    source: str
    mode: Mode
    turns: int  # answers in it
    tools: bool
    equal: bool
    loss_tokens: int  # of ours
    framework_loss_tokens: int
    equal_loss_tokens: int
    findings: list[Finding]
    ours: list[list[Span]]  # an example each
    framework: list[Span]


class SettingAudit(Record):
    """One framework with one set of settings."""

    framework: str
    setting: str
    how: str  # a sentence
    values: dict[str, Any]  # under the framework's own names
    form: Literal[
        "conversations", "answers", "tokens"
    ]  # a row is a whole conversation, one answer with what precedes it, tokens
    versions: dict[str, str]
    version_note: str  # where another version ran than the pinned one
    error: str  # why it did not run; then rows is empty
    rows: list[RowAudit]
    equal_rows: int
    loss_tokens: int
    equal_loss_tokens: int
    framework_loss_tokens: int


class Audit(Record):
    """The whole of ``audit.json``."""

    schema_version: Literal[1] = 1
    made: str
    model: str
    template: str  # hash of vocabulary and chat template
    recipe: str  # name, or "cases"
    max_length: int
    settings: list[SettingAudit] = Field(default_factory=list)
