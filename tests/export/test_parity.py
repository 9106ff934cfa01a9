"""The verdict: what is the same, what is close, and each fault that has a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.core.modes import MODES, Mode
from pipeline.export.engines import Answer
from pipeline.export.measure import Item, Measured
from pipeline.export.parity import compare_replies, parity_text, plain
from pipeline.model.decode import Reply

HEAD, END = "<|im_start|>user\nq{}<|im_end|>\n<|im_start|>assistant\n", 9
TEXT = {"thinking": "<think>\nr\n</think>\n\n{}", "non_thinking": "{}"}
BLOCK = {"thinking": "", "non_thinking": "<think>\n\n</think>\n\n"}


def item(mode: Mode, number: int, answer: int, prob: float = 0.9, truncated: bool = False) -> Item:
    ids = [100 + answer, END]
    text = TEXT[mode].format(answer)
    reply = Reply(text, ids, 5, len(ids), 0, 1, truncated)
    prompt = HEAD.format(number) + BLOCK[mode]
    right = answer == number
    return Item(
        [{"role": "user", "content": f"q{number}"}], prompt, [1, number], Answer(reply, [-prob, 0.0]), right, True
    )


def measured(answer: Callable[[int], int], **options: Any) -> Measured:
    return Measured({mode: [item(mode, n, answer(n), **options) for n in range(40)] for mode in MODES}, [END])


def changed(original: Measured, mode: Mode | None, **changes: Callable[[Item], Any]) -> Measured:
    """A copy in which attributes of the items of a mode (None: of both) are what a function makes of the item."""
    items = {
        m: [
            dataclasses.replace(i, **{k: make(i) for k, make in changes.items()}) if mode in (m, None) else i
            for i in rows
        ]
        for m, rows in original.items.items()
    }
    return dataclasses.replace(original, items=items)


def with_text(item: Item, text: str, **changes: Any) -> Answer:
    return dataclasses.replace(item.answer, reply=dataclasses.replace(item.answer.reply, text=text, **changes))


BASE, REFERENCE = measured(lambda n: 0), measured(lambda n: n)


def test_the_same_replies_are_the_same() -> None:
    result = compare_replies(REFERENCE, measured(lambda n: n, prob=1.0), BASE, exact=True)
    assert result["verdict"] == "same" and not result["faults"]
    row = result["modes"]["thinking"]
    assert row["same_replies"] == row["accuracy"] == 1 and row["accuracy_change"] == 0
    assert row["log_prob_difference"] == pytest.approx(0.05)  # 0.1 on the first token, 0 on the end


def test_another_reply_of_the_same_worth_is_close() -> None:
    other = changed(REFERENCE, "thinking", answer=lambda i: dataclasses.replace(i.answer, log_probs=i.answer.log_probs))
    one = other.items["thinking"][3]
    ids = dataclasses.replace(one.answer.reply, token_ids=[50, END])
    other.items["thinking"][3] = dataclasses.replace(one, answer=dataclasses.replace(one.answer, reply=ids))
    result = compare_replies(REFERENCE, other, BASE)
    assert result["verdict"] == "close" and result["modes"]["thinking"]["same_replies"] == 39 / 40
    broken = compare_replies(REFERENCE, other, BASE, exact=True)
    assert broken["verdict"] == "broken" and "the arithmetic is the reference's" in broken["faults"][0]


def test_one_wrong_reply_differs_and_many_are_a_fault() -> None:
    assert compare_replies(REFERENCE, measured(lambda n: n if n else 99), BASE)["verdict"] == "differs"
    result = compare_replies(REFERENCE, measured(lambda n: n if n > 12 else 99), BASE)
    assert result["verdict"] == "broken"
    assert "accuracy fell from 1.000 to 0.675 (thinking)" in result["faults"]


@pytest.mark.parametrize(("lost", "verdict"), [(7, "differs"), (8, "broken")])
def test_a_fall_is_judged_by_an_exact_test(lost: int, verdict: str) -> None:
    """Seven of seven changes in one direction are one in 128 by chance, eight one in 256."""
    assert compare_replies(REFERENCE, measured(lambda n: n if n >= lost else 99), BASE)["verdict"] == verdict


def test_an_adapter_that_does_nothing() -> None:
    (fault,) = [fault for fault in compare_replies(REFERENCE, BASE, BASE)["faults"] if "effect" in fault]
    assert fault == ("the adapter has no effect here: 100.0% of the replies are the base's, 2.5% the tuned model's")
    assert "no effect" in compare_replies(BASE, BASE, BASE)["faults"][0]
    # The same replies with other probabilities: it was trained, if little.
    assert compare_replies(measured(lambda n: 0, prob=0.8), measured(lambda n: 0, prob=0.8), BASE)["faults"] == []


FAULTS: dict[str, tuple[Callable[[Measured], Measured], str]] = {
    "lost switch": (
        lambda m: changed(m, "non_thinking", prompt=lambda i: i.prompt.removesuffix(BLOCK["non_thinking"])),
        "the switch is lost",
    ),
    "default system prompt": (
        lambda m: changed(m, None, prompt=lambda i: "<|im_start|>system\nYou are Qwen.<|im_end|>\n" + i.prompt),
        "another default system prompt or header stands before it, '<|im_start|>system",
    ),
    "think doubled in the prompt": (
        lambda m: changed(m, "thinking", prompt=lambda i: i.prompt + "<think>\n"),
        "<think> is doubled in the prompt",
    ),
    "think lost in the prompt": (
        lambda m: changed(m, "non_thinking", prompt=lambda i: i.prompt.replace("<think>", "")),
        "<think> is lost in the prompt",
    ),
    "another prompt": (
        lambda m: changed(m, None, prompt=lambda i: i.prompt.replace("user", "human")),
        "from character 12 on it is 'human",
    ),
    "other tokens": (
        lambda m: changed(m, None, prompt_ids=lambda i: [1, 7, 7]),
        "cut into other tokens",
    ),
    "think lost": (
        lambda m: changed(m, "thinking", answer=lambda i: with_text(i, "r\n</think>\n\n1")),
        "<think> is lost (thinking): 40 of 40 replies, 0 before",
    ),
    "think doubled": (
        lambda m: changed(m, "thinking", answer=lambda i: with_text(i, "<think>\n<think>\nr\n</think>\n\n1")),
        "<think> is doubled (thinking)",
    ),
    "thinks again": (
        lambda m: changed(m, "non_thinking", answer=lambda i: with_text(i, "<think>\nr\n</think>\n\n1")),
        "it thinks in non-thinking mode",
    ),
    "does not end": (
        lambda m: changed(m, None, answer=lambda i: with_text(i, i.answer.reply.text, truncated=True)),
        "replies do not end (wrong end token?) (thinking)",
    ),
    "end token": (lambda m: dataclasses.replace(m, ends=[3]), "the end token is another: [3], where the run has [9]"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(name: str) -> None:
    make, words = FAULTS[name]
    result = compare_replies(REFERENCE, make(REFERENCE), BASE)
    assert result["verdict"] == "broken"
    assert [fault for fault in result["faults"] if words in fault], result["faults"]


def test_a_prompt_that_opens_the_thought_has_not_lost_it() -> None:
    opened = changed(REFERENCE, "thinking", prompt=lambda i: i.prompt + "<think>\n")
    both = changed(opened, "thinking", answer=lambda i: with_text(i, "r\n</think>\n\n1"))
    assert compare_replies(both, both, BASE)["faults"] == []


def test_text_has_a_line_for_each_mode_and_fault() -> None:
    target = compare_replies(REFERENCE, dataclasses.replace(REFERENCE, ends=[3]), BASE)
    text = parity_text({"base": plain(BASE), "reference": plain(REFERENCE), "targets": {"gguf q8_0": target}})
    lines = text.splitlines()
    assert len(lines) == 1 + 6 + 1 and lines[-1].startswith("BROKEN gguf q8_0: the end token")
    assert "non-thinking" in lines[-2] and lines[-2].endswith("broken")
