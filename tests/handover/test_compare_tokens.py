"""What is said of a framework's row beside ours: which tokens are equal, and of which kind each difference is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.chat_format import IGNORE_INDEX, ChatFormat
from pipeline.handover.audit import align
from pipeline.handover.cases import CASES, case_conversations
from pipeline.handover.compare import Comparer, Tokens, equal_loss_tokens
from pipeline.handover.rows import AuditRow, answer_rows, conversation_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIMIT = 1024


@pytest.fixture(scope="module")
def form(embedded_tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    return ChatFormat(embedded_tokenizer)


@pytest.fixture(scope="module")
def comparer(form: ChatFormat) -> Comparer:
    return Comparer(form.tokenizer, form.style, LIMIT)


@pytest.fixture(scope="module")
def rows(form: ChatFormat) -> dict[str, AuditRow]:
    return dict(zip(CASES, conversation_rows(case_conversations(), form, "all", LIMIT), strict=True))


def tokens_of(form: ChatFormat, *parts: tuple[str, bool]) -> Tokens:
    """Pieces of text, each with loss or without."""
    ids, labels = [], []
    for text, loss in parts:
        own = form.encode([text])[0]
        ids += own
        labels += own if loss else [IGNORE_INDEX] * len(own)
    return Tokens(ids, labels)


def kinds(comparer: Comparer, row: AuditRow, theirs: Tokens) -> dict[str, bool]:
    found = comparer.row(row, theirs)
    assert not found.equal
    return {finding.kind: finding.loss for finding in found.findings}


def test_cases_come_out_in_both_forms(form: ChatFormat, rows: dict[str, AuditRow]) -> None:
    assert [len(row.examples) for row in rows.values()] == [1, 1, 2, 2, 2, 1, 2, 2]
    answers = answer_rows(case_conversations(), form, "all", LIMIT)
    assert len(answers) == 13 and all(len(row.examples) == 1 for row in answers)
    assert all(row.messages[-1]["role"] == "assistant" for row in answers)
    assert [row.mode for row in answers if row.source == "both modes in turn"] == ["non_thinking", "thinking"]


def test_the_same_is_equal(comparer: Comparer, rows: dict[str, AuditRow]) -> None:
    for row in rows.values():
        if len(row.examples) == 1:
            example = row.examples[0]
            found = comparer.row(row, Tokens(example.input_ids, example.labels))
            assert found.equal and not found.findings
            assert found.loss_tokens == found.equal_loss_tokens == found.framework_loss_tokens > 0
            assert "".join(span.text for span in found.framework) == "".join(span.text for span in found.ours[0])


HEAD = "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n"
BLOCK = "<think>\n\n</think>\n\n"
SUM = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"
THOUGHT = "17 + 25: 10 + 20 = 30, 7 + 5 = 12. 42.\n</think>\n\n"


@pytest.mark.parametrize(
    ("case", "parts", "wanted"),
    [
        ("non-thinking, one turn", [(HEAD, False), (BLOCK + "Apple.<|im_end|>", True)], {"empty_block_in_loss": True}),
        (
            "non-thinking, one turn",
            [(HEAD + BLOCK + "Apple.<|im_end|>", True)],
            {"empty_block_in_loss": True, "loss_on_prompt": True},
        ),
        ("non-thinking, one turn", [(HEAD, False), ("Apple.<|im_end|>", True)], {"empty_block_missing": False}),
        (
            "non-thinking, one turn",
            [(HEAD + BLOCK, False), ("Apple.", True), ("<|im_end|>", False)],
            {"end_without_loss": False},
        ),
        (
            "non-thinking, one turn",
            [(HEAD + BLOCK, False), ("Apple.<|im_end|>\n", True)],
            {"newline_after_end": True},
        ),
        (
            "non-thinking, one turn",
            [(HEAD + BLOCK, False), ("Apple.<|im_end|>\n<|im_end|>", True)],
            {"end_twice": True},
        ),
        ("non-thinking, one turn", [(HEAD + BLOCK, False), ("Apple.", True)], {"cut": False}),
        (
            "non-thinking, one turn",
            [("<|im_start|>system\nBe good.<|im_end|>\n" + HEAD + BLOCK, False), ("Apple.<|im_end|>", True)],
            {"system_added": False},
        ),
        (
            "thinking, one turn",
            [(SUM + "<think>\n", False), (THOUGHT + "42<|im_end|>", True)],
            {"no_loss_on_opening": False},
        ),
        (
            "thinking, one turn",
            [(SUM + "<think>\n" + THOUGHT, False), ("42<|im_end|>", True)],
            {"no_loss_on_reasoning": False},
        ),
        ("thinking, one turn", [(SUM, False), ("42<|im_end|>", True)], {"reasoning_missing": False}),
    ],
)
def test_each_difference_has_its_kind(
    form: ChatFormat,
    comparer: Comparer,
    rows: dict[str, AuditRow],
    case: str,
    parts: list[tuple[str, bool]],
    wanted: dict[str, bool],
) -> None:
    assert kinds(comparer, rows[case], tokens_of(form, *parts)) == wanted


def test_what_stands_behind_without_loss_does_not_count(
    form: ChatFormat, comparer: Comparer, rows: dict[str, AuditRow]
) -> None:
    theirs = tokens_of(form, (HEAD + BLOCK, False), ("Apple.<|im_end|>", True), ("\n<|im_end|>", False))
    assert comparer.row(rows["non-thinking, one turn"], theirs).equal


def test_reasoning_before_a_call(form: ChatFormat, comparer: Comparer, rows: dict[str, AuditRow]) -> None:
    """Qwen3's template shows it to the answer that follows the call; a framework that takes it away trains on another prompt."""
    row = rows["tools, thinking"]
    example = row.examples[-1]
    thought = form.encode(["<think>\nI need the weather of Bergen.\n</think>\n\n"])[0]
    ids = example.input_ids
    start = next(i for i in range(len(ids)) if ids[i : i + len(thought)] == thought)
    theirs = Tokens(
        ids[:start] + ids[start + len(thought) :], example.labels[:start] + example.labels[start + len(thought) :]
    )
    assert kinds(comparer, row, theirs) == {"reasoning_missing": False}


def test_history(form: ChatFormat, comparer: Comparer, rows: dict[str, AuditRow]) -> None:
    row = rows["thinking, several turns"]
    first = "<|im_start|>user\nWhat is 6 × 7?<|im_end|>\n<|im_start|>assistant\n"
    second = "<|im_start|>user\nAnd half of it?<|im_end|>\n<|im_start|>assistant\n"
    last = ("<think>\n42 / 2 = 21.\n</think>\n\n21<|im_end|>", True)
    plain = tokens_of(form, (first, False), ("42<|im_end|>", True), ("\n" + second, False), last)
    assert kinds(comparer, row, plain) == {"history_in_loss": True}
    thought = "<think>\nSix sevens are forty-two.\n</think>\n\n42<|im_end|>"
    shown = tokens_of(form, (first, False), (thought, True), ("\n" + second, False), last)
    found = kinds(comparer, row, shown)
    assert found["reasoning_in_history"] is True and "other" not in found
    # What it trains on in the first answer is what our first example trains on: those tokens are equal.
    assert comparer.row(row, shown).equal_loss_tokens == sum(Tokens(*_pair(row, 0)).loss)


def _pair(row: AuditRow, number: int) -> tuple[list[int], list[int]]:
    return row.examples[number].input_ids, row.examples[number].labels


def test_a_row_that_is_left_out(comparer: Comparer, rows: dict[str, AuditRow]) -> None:
    found = comparer.row(rows["thinking, one turn"], None)
    assert not found.equal and [f.kind for f in found.findings] == ["left_out"] and found.framework == []


def test_a_row_over_the_limit(form: ChatFormat) -> None:
    """Here it is left out; a framework that leaves it out too is equal, one that cuts it is not."""
    short = Comparer(form.tokenizer, form.style, 20)
    rows = conversation_rows(case_conversations(), form, "all", 20)
    row = next(row for row in rows if row.source == "thinking, one turn")
    assert row.too_long and not all(
        other.too_long for other in conversation_rows(case_conversations(), form, "all", 60)
    )
    assert short.row(row, None).equal
    ids, labels = _pair(row, 0)
    found = short.row(row, Tokens(ids[:30], labels[:30]))
    assert not found.equal and [f.kind for f in found.findings] == ["cut"] and found.loss_tokens == 0
    assert found.framework_loss_tokens == sum(label != IGNORE_INDEX for label in labels[:30]) > 0


def test_rows_that_were_left_out_are_found(rows: dict[str, AuditRow]) -> None:
    all_rows = list(rows.values())
    made = [Tokens(*_pair(row, -1)) for row in all_rows]
    assert align(all_rows, made) == made
    assert align(all_rows, [*made[:2], *made[3:6], made[7]]) == [
        *made[:2], None, *made[3:6], None, made[7],
    ]  # fmt: skip
    with pytest.raises(UserError, match="made more rows"):
        align(all_rows[:2], made)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=20),
    st.lists(st.integers(0, 3), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
def test_counts_are_of_tokens_behind_equal_ones(a: list[int], b: list[int], random: object) -> None:
    def masked(ids: list[int]) -> Tokens:
        return Tokens(ids, [i if random.random() < 0.5 else IGNORE_INDEX for i in ids])  # type: ignore[attr-defined]

    ours, theirs = masked(a), masked(b)
    # By its meaning: pairs of what stands before a token, and the token.
    pairs = [
        {(tuple(t.input_ids[:i]), t.input_ids[i]) for i, carries in enumerate(t.loss) if carries}
        for t in (ours, theirs)
    ]
    assert equal_loss_tokens([ours], theirs) == len(pairs[0] & pairs[1])
    assert equal_loss_tokens([ours, ours], theirs) == len(pairs[0] & pairs[1])
    assert equal_loss_tokens([ours], ours) == sum(ours.loss)
