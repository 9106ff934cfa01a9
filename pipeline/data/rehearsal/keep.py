"""Which of the base's replies become rows, and why the others do not.

In: questions and the replies that are stored. Out: rows in the layout ``messages``, with their provenance; an account of all
others. A reply is kept if it ended by itself, is faithful to its mode, gives the right answer where that is known, and is no
near-copy of another kept reply to the same question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.modes import THINK, Mode, Tags
from pipeline.core.statistics import wilson
from pipeline.data.cleaning.decontaminate import words
from pipeline.data.cleaning.reasoning import step_check_answer
from pipeline.data.conversations import Conversation, Rejected
from pipeline.data.rehearsal.ask import Said, Store, message_of
from pipeline.data.rehearsal.questions import REFERENCE, Question, left_out
from pipeline.model.form import judge, split_reply

NEAR_COPY = 0.8  # Jaccard index of the word trigrams, the default of cleaning's near_duplicates


@dataclass
class Kept:
    """Rows, the replies that were left out, and counts over all replies."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    replies: int = 0
    faithful: int = 0
    truncated: int = 0
    compared: int = 0  # faithful, with a known answer
    right: int = 0
    tokens: int = 0
    seconds: float = 0.0
    as_rendered: list[bool] = field(default_factory=list)


def grams(text: str) -> frozenset[tuple[str, ...]]:
    """The word trigrams of a text; a shorter text is one n-gram."""
    found = words(text)
    if len(found) < 3:
        return frozenset([tuple(found)])
    return frozenset(zip(found, found[1:], found[2:], strict=False))


def near_copy(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    """Jaccard index of two sets of trigrams."""
    return len(a & b) / len(a | b)


def _form(text: str, mode: Mode, tags: Tags) -> str:
    """What an unfaithful reply lacks, in words."""
    reasoning, answer, opened, closed = split_reply(text, tags)
    if mode == "non_thinking":
        return "no answer" if not text.strip() else "a think tag in non-thinking mode"
    if not opened:
        return "does not begin with a think block"
    if not closed:
        return f"never closes its think block with {tags.close}"
    if not reasoning:
        return "an empty think block"
    return "no answer behind its think block" if not answer else "a second think tag"


def _judge(
    question: Question, said: Said, mode: Mode, tags: Tags, siblings: list[frozenset[tuple[str, ...]]], kept: Kept
) -> None:
    """Count a reply.

    Raises:
        Rejected: it is not to be kept.
    """
    kept.replies += 1
    kept.tokens += said.tokens
    kept.seconds += said.seconds
    kept.truncated += said.truncated
    if said.truncated:
        raise Rejected("truncated", f"cut after {said.tokens} tokens", "reply")
    if not judge(said.text, False, mode, tags)["faithful"]:
        raise Rejected("unfaithful", _form(said.text, mode, tags), "reply")
    kept.faithful += 1
    if said.as_rendered is not None:
        kept.as_rendered.append(said.as_rendered)
    message = message_of(said.text, tags)
    if question.reference is not None:
        kept.compared += 1
        try:
            step_check_answer(Conversation([*question.messages, message], mode), {REFERENCE: question.reference}, True)
        except Rejected as rejected:
            rejected.step = "reply"
            raise
        kept.right += 1
    own = grams(f"{message.get('reasoning_content', '')}\n{message['content']}")
    for sibling in siblings:
        if (alike := near_copy(own, sibling)) >= NEAR_COPY:
            raise Rejected("near_copy", f"{alike:.2f} similar to another reply to the same question", "reply")
    siblings.append(own)


def _row(question: Question, said: Said, tags: Tags, provenance: dict[str, Any], sample: int) -> dict[str, Any]:
    # Earlier answers are somebody else's: they are read, not learnt.
    before = [m | {"weight": 0} if m["role"] == "assistant" else m for m in question.messages]
    row: dict[str, Any] = {"messages": [*before, message_of(said.text, tags)]}
    if question.tools:
        row["tools"] = question.tools
    if question.reference is not None:
        row[REFERENCE] = question.reference
    place = {"file": question.file, "line": question.line}
    return row | {"rehearsal": {**provenance, "sample": sample, "question": place}}


def keep(
    questions: Sequence[Question],
    seeds: Sequence[int],
    mode: Mode,
    store: Store,
    provenance: dict[str, Any],
    tags: Tags = THINK,
) -> Kept:
    """Judge every stored reply to the questions, in their order.

    Args:
        tags: those around the model's reasoning.
    """
    kept = Kept()
    for question in questions:
        siblings: list[frozenset[tuple[str, ...]]] = []
        for sample, seed in enumerate(seeds):
            said = store.get(question.key, seed)
            try:
                _judge(question, said, mode, tags, siblings, kept)
            except Rejected as why:
                shown = {"messages": question.messages, "reply": said.text, "sample": sample}
                kept.left_out.append(left_out(question.file, question.line, why, shown))
                continue
            kept.rows.append(_row(question, said, tags, provenance, sample))
    return kept


def account(kept: Kept) -> dict[str, Any]:
    """Counts and rates of the replies, with 95 % intervals."""
    return {
        "replies": kept.replies,
        "kept": len(kept.rows),
        "left_out": dict(Counter(record["reason"] for record in kept.left_out).most_common()),
        "fidelity": kept.faithful / kept.replies,
        "fidelity_ci95": wilson(kept.faithful, kept.replies),
        "truncated": kept.truncated / kept.replies,
        "right": kept.right / kept.compared if kept.compared else None,
        "right_ci95": wilson(kept.right, kept.compared) if kept.compared else None,
        "mean_tokens": kept.tokens / kept.replies,
        # Of the faithful ones: those whose tokens in training are the very tokens that the base wrote.
        "as_written": sum(kept.as_rendered) / len(kept.as_rendered) if kept.as_rendered else None,
    }


WEAK_FIDELITY, WEAK_TRUNCATED, WEAK_RIGHT = 0.9, 0.05, 0.5


def warnings(name: str, mode: Mode, found: dict[str, Any]) -> list[str]:
    """Where the base itself is weak, so that its answers teach that."""
    said = []
    in_mode = f"source {name!r}: in {mode.replace('_', '-')} mode the base itself"
    if found["fidelity"] < WEAK_FIDELITY:
        said.append(
            f"{in_mode} keeps to its mode in {found['fidelity']:.3f} of its replies only; the rest were left out"
        )
    if found["truncated"] > WEAK_TRUNCATED:
        said.append(
            f"{in_mode} is cut at the length limit in {found['truncated']:.3f} of its replies: the rows that are left favour "
            "what can be said shortly; raise max_new_tokens"
        )
    if found["right"] is not None and found["right"] < WEAK_RIGHT:
        said.append(
            f"{in_mode} is right in {found['right']:.3f} of the replies whose answer is known; only easy questions are left"
        )
    return said
