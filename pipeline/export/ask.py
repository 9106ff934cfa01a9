"""Retrieval beside fine-tuning: a run's models answer a question with what stands in a folder, or without.

In: a run, a folder with text, a question. Out: replies of base or tuned model in either mode, and what they were shown. The
passages go into the system message, each under its source; they are added from the best on as long as the prompt has room, and
what is left out is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES, Mode
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Message
from pipeline.export.passages import Index, Passage, Skipped, index_folder
from pipeline.export.source import Source

if TYPE_CHECKING:
    from pipeline.export.talk import Talker

HEADING = "Passages that may help:"
COUNT = 3  # passages in a prompt, at most
LONGEST = 400  # tokens of a passage, at most; a quarter of the prompt where that is less


def prompt_room(source: Source) -> int:
    """Tokens that a prompt may have: what the run was trained and measured with."""
    return source.profile.model.max_seq_length


def open_index(folder: Path, source: Source, count_tokens: Any) -> Index:
    """The index of a folder for the models of a run.

    Args:
        count_tokens: of a text.

    Raises:
        UserError: see ``index_folder``.
    """
    return index_folder(folder, count_tokens, max(1, min(LONGEST, prompt_room(source) // 4)))


def with_passages(question: str, passages: Sequence[Passage]) -> list[Message]:
    """The conversation that asks: without passages, the question alone."""
    asked: list[Message] = [{"role": "user", "content": question}]
    if not passages:
        return asked
    shown = "\n\n".join(f"[{passage.source}]\n{passage.text}" for passage in passages)
    return [{"role": "system", "content": f"{HEADING}\n\n{shown}"}, *asked]


@dataclass(frozen=True)
class Fitted:
    """A prompt with the passages that it has room for."""

    messages: list[Message]
    tokens: int  # of the longer prompt of the two modes
    used: list[Passage] = field(default_factory=list)
    left_out: list[Skipped] = field(default_factory=list)


def fit(question: str, found: Sequence[Passage], form: ChatFormat, room: int) -> Fitted:
    """Add passages from the best on; one that does not fit is left out, and a shorter one behind it may still fit.

    Args:
        room: tokens of the prompt, in both modes.

    Raises:
        UserError: the question alone is too long, or the chat template does not take the messages.
    """

    def length(passages: Sequence[Passage]) -> int:
        return max(len(form.prompt_ids(with_passages(question, passages), mode)) for mode in MODES)

    tokens = length([])
    if tokens > room:
        raise UserError(f"The question has {tokens:,} tokens as a prompt; {room:,} are the limit. Ask a shorter one.")
    used: list[Passage] = []
    left_out: list[Skipped] = []
    for passage in found:
        longer = length([*used, passage])
        if longer <= room:
            used, tokens = [*used, passage], longer
        else:
            left_out.append(Skipped(passage.source, f"{longer:,} tokens with it; {room:,} are the limit of a prompt"))
    return Fitted(with_passages(question, used), tokens, used, left_out)


@dataclass(frozen=True)
class Reply:
    """One answer."""

    which: str  # base or tuned
    mode: Mode
    passages: bool
    text: str
    cut: bool


@dataclass(frozen=True)
class Asked:
    """A question, what was found for it, and the replies."""

    question: str
    room: int
    fitted: Fitted
    skipped: list[Skipped]
    replies: list[Reply]


def ask(
    talker: Talker,
    index: Index,
    question: str,
    which: Sequence[str] = ("tuned",),
    modes: Sequence[Mode] = ("thinking",),
    without: bool = False,
    count: int = COUNT,
    seed: int | None = None,
) -> Asked:
    """Answer a question from a folder.

    Args:
        which: ``base``, ``tuned``. without: answer without the passages too.
        count: passages in the prompt, at most. seed: of the sampling.

    Raises:
        UserError: the question is too long.
    """
    room = prompt_room(talker.source)
    fitted = fit(question, index.search(question, count), talker.format, room)
    replies = []
    for name in which:
        for mode in modes:
            for shown in (False, True) if without else (True,):
                messages = fitted.messages if shown else with_passages(question, [])
                ids = talker.prompt_ids(messages, mode, name, "ask a shorter question")
                written = talker.reply(ids, name, mode, lambda text: None, seed)
                replies.append(Reply(name, mode, shown and bool(fitted.used), written.text, written.cut))
    return Asked(question, room, fitted, index.skipped, replies)


def asked_data(asked: Asked) -> dict[str, Any]:
    """Plain data of it, for ``--json``."""
    return {
        "question": asked.question,
        "prompt_tokens": asked.fitted.tokens,
        "limit": asked.room,
        "passages": [{"source": passage.source, "text": passage.text} for passage in asked.fitted.used],
        "left_out": [vars(item) for item in asked.fitted.left_out],
        "skipped": [vars(item) for item in asked.skipped],
        "replies": [vars(reply) for reply in asked.replies],
    }


def asked_text(asked: Asked) -> str:
    """What a person reads."""
    fitted = asked.fitted
    lines = [f"{len(fitted.used)} passages, a prompt of {fitted.tokens:,} of {asked.room:,} tokens"]
    lines += [f"  [{passage.source}] {_short(passage.text)}" for passage in fitted.used]
    lines += [f"  left out: {item.source} ({item.reason})" for item in fitted.left_out]
    lines += [f"  not read: {item.source} ({item.reason})" for item in asked.skipped]
    for reply in asked.replies:
        kind = "with passages" if reply.passages else "without passages"
        cut = " (cut)" if reply.cut else ""
        lines += ["", f"{reply.which}, {reply.mode.replace('_', '-')}, {kind}{cut}:", reply.text]
    return "\n".join(lines)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"
