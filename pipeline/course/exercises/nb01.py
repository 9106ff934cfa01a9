"""Exercises of notebook 01: labels of a row that is filled up, modes, the parity rule, a prompt by hand, a mask to repair."""

from __future__ import annotations

from typing import Any

from pipeline.course.exercises import exercise
from pipeline.course.lab import lesson, questions, rate_of, teach
from pipeline.data.chat_format import ChatFormat
from pipeline.model.load import load_data_tokenizer
from pipeline.settings import load_profile

_BLOCK = "<think>\n\n</think>\n\n"

# (messages, mode, rendered prompt). The texts stand here in full, so that the check needs no tokenizer;
# tests/course/test_exercises.py holds them against the template.
PROMPTS: tuple[tuple[list[dict[str, str]], str, str], ...] = (
    (
        [{"role": "user", "content": "Who are you?"}],
        "thinking",
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        [{"role": "user", "content": "Who are you?"}],
        "non_thinking",
        f"<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n{_BLOCK}",
    ),
    (
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": f"What does {_BLOCK}mean?"}],
        "thinking",
        f"<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhat does {_BLOCK}mean?<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    (
        [{"role": "user", "content": "Is 7 even? /no_think"}],
        "thinking",
        "<|im_start|>user\nIs 7 even? /no_think<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "Is 7 even? /think"},
        ],
        "non_thinking",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        f"<|im_start|>user\nIs 7 even? /think<|im_end|>\n<|im_start|>assistant\n{_BLOCK}",
    ),
)


@exercise("01.1")
def labels_of_a_filled_row(answer: Any) -> None:
    """``answer(prompt_ids, target_ids, length)``: the labels of an example that is filled up to ``length`` tokens."""
    assert callable(answer), "The answer should be a function of prompt_ids, target_ids and length."
    for prompt, target, length in (([5, 6, 7], [8, 9, 2], 9), ([5], [5, 5, 2], 4), ([3, 4, 3, 4], [3, 2], 8)):
        labels = list(answer(list(prompt), list(target), length))
        assert len(labels) == length, (
            f"The row is {length} tokens long once it is filled up, so it needs as many labels; there are {len(labels)}."
        )
        end = len(prompt) + len(target)
        assert all(label == -100 for label in labels[: len(prompt)]), "A prompt token carries loss; it must not."
        assert all(label == -100 for label in labels[end:]), (
            "A place that was only filled up carries loss; it must not."
        )
        assert -100 not in labels[len(prompt) : end], "A target token carries no loss; it must."
        assert labels[len(prompt) : end] == target, (
            "The label of a target token is the token itself, at its own place. The model's own code shifts by one."
        )


@exercise("01.2")
def mode_of(answer: Any) -> None:
    """``answer(prompt)``: ``thinking`` or ``non_thinking`` for a rendered prompt."""
    assert callable(answer), "The answer should be a function that takes a rendered prompt (text)."
    for _, mode, text in PROMPTS:
        given = answer(text)
        assert given in ("thinking", "non_thinking"), f"It returned {given!r}; return 'thinking' or 'non_thinking'."
        assert given == mode, (
            f"It says {given!r} for the prompt {text!r}, which is wrong. What does the template do when "
            "enable_thinking=False, and where? A user may write anything in a message."
        )


@exercise("01.3")
def obeys_parity(answer: Any) -> None:
    """``answer(prompt_ids, input_ids, labels, end_id)``: whether an example obeys the parity rule."""
    assert callable(answer), "The answer should be a function of prompt_ids, input_ids, labels and end_id."
    prompt, end = [11, 12, 13, 14], 2
    ids = [*prompt, 21, 22, end]
    good = [-100] * 4 + [21, 22, end]
    cases = (
        (ids, good, True, "The masked part is the prompt, all the rest carries loss and ends the turn: that is right."),
        ([*prompt, end], [-100] * 4 + [end], True, "An answer may be as short as its end token."),
        (ids, [-100] * 2 + [13, 14, 21, 22, end], False, "Here a part of the prompt is trained."),
        (ids, [-100] * 5 + [22, end], False, "Here the first token of the answer carries no loss."),
        (ids, [*good[:-1], -100], False, "Here the end of the turn carries no loss."),
        (ids[:-1], good[:-1], False, "Here the answer was cut: it does not end with the end token."),
        ([11, 12, 99, 14, 21, 22, end], good, False, "Here the masked part is not the prompt."),
        (ids, [-100] * 4 + [22, 21, end], False, "Here labels and tokens of the answer differ."),
        (prompt, [-100] * 4, False, "Here is no answer at all."),
    )
    for input_ids, labels, truth, hint in cases:
        given = answer(list(prompt), list(input_ids), list(labels), end)
        assert isinstance(given, bool), f"It returned {given!r}; return True or False."
        assert given is truth, f"input_ids {input_ids}, labels {labels}, prompt {prompt}: {hint} It says {given}."


@exercise("01.4")
def a_prompt_by_hand(answer: Any) -> None:
    """``answer``: the whole prompt, as text, that asks for 58 + 67 without thinking."""
    assert isinstance(answer, str), "The answer should be the prompt, written out as one text."
    assert "58" in answer and "67" in answer, "Ask what 58 + 67 is: both numbers stand in the question."
    assert "125" not in answer, "The prompt gives the result away."
    asked = [{"prompt": answer, "mode": "non_thinking", "answer": "125"}]
    reply = teach([], asked, steps=0)["replies"][0]
    said = f"The model said {reply['text'][:80]!r}."
    assert "<think>" not in reply["text"], (
        f"{said} It began to think: what does the template put at the end for this mode?"
    )
    assert reply["faithful"], (
        f"{said} It did not end, or wrote a tag. Compare your text with `direct`, letter by letter."
    )
    assert reply["right"], f"{said} The form is right, the sum is not. Is your question in a user's message of its own?"


@exercise("01.5")
def repair_the_mask(answer: Any) -> None:
    """``answer(input_ids, labels)``: labels without loss on the empty think block at their beginning."""
    assert callable(answer), "The answer should be a function of input_ids and labels."
    rows = lesson(1.0, 120, empty_think="trained")
    block = ChatFormat(load_data_tokenizer(load_profile("embedded").model)).encode([_BLOCK])[0]
    repaired = []
    for row in rows:
        given = answer(list(row["input_ids"]), list(row["labels"]))
        assert isinstance(given, list) and len(given) == len(row["labels"]), "Return a list with one label a token."
        begins = next(i for i, label in enumerate(row["labels"]) if label != -100)
        after = begins + len(block)
        assert given[after:] == row["labels"][after:], "The answer itself has to keep its loss, up to its last token."
        assert set(given[:begins]) == {-100}, "The prompt carries loss now. Only take labels away."
        repaired.append({"input_ids": row["input_ids"], "labels": given})
    replies = teach(repaired, questions("chat", 8), steps=25, rate=1e-2)["replies"]
    kept = rate_of(replies, "faithful")
    assert kept >= 0.75, (
        f"After 25 steps on your labels, the model thinks in {kept:.0%} of 8 chat answers. Which tokens still teach it not to?"
    )
