"""The parity rule: what carries no loss is exactly the prompt that inference sends; what follows it all carries loss.

The expected prompt is always asked from ``tokenizer.apply_chat_template`` itself, never from the module under test.
"""

from __future__ import annotations

import copy
import html
import json
import pickle
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from examples import examples
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES, Mode
from pipeline.data import corpora
from pipeline.data.chat_format import EMPTY_THINK, IGNORE_INDEX, ChatFormat, Example, coloured, soft_switch
from pipeline.data.conversations import Conversation, Rejected, converter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, reasoning: str | None = None, calls: list[Any] | None = None) -> Message:
    message: Message = {"role": "assistant", "content": text}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    return message


def tool(text: str) -> Message:
    return {"role": "tool", "content": text}


def schema(name: str, description: str = "…") -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string", "description": description}}}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


# --- the oracle -----------------------------------------------------------------------------------------------------


def inference_ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], mode: Mode, tools: Any = None
) -> list[int]:
    """What a user of transformers, vLLM or EvalScope sends for these messages."""
    ids = tokenizer.apply_chat_template(
        messages,
        tools=tools or None,
        add_generation_prompt=True,
        enable_thinking=mode == "thinking",
        tokenize=True,
        return_dict=False,
    )
    assert isinstance(ids, list)
    assert all(isinstance(i, int) for i in ids)
    return ids


def without_reasoning(messages: list[Message]) -> list[Message]:
    """The history as it is in non-thinking mode: nobody has thought."""
    return [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages]


def split(row: Example) -> tuple[list[int], list[int]]:
    """(prompt, target) of an example, by its labels alone; checks that nothing without loss follows the first loss."""
    assert len(row.input_ids) == len(row.labels)
    start = next(i for i, label in enumerate(row.labels) if label != -100)
    assert row.labels[start:] == row.input_ids[start:], "a token after the first loss-bearing one has no loss"
    return row.input_ids[:start], row.input_ids[start:]


def check(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, rows: list[Example], at: list[int], raw: bool = True
) -> list[str]:
    """Check every invariant of the examples of a conversation whose loss-bearing messages are ``at``.

    Returns:
        The decoded target of each example.
    """
    assert len(rows) == len(at)
    think, end = tokenizer.convert_tokens_to_ids(["<think>", "<|im_end|>"])
    empty_block = tokenizer(EMPTY_THINK, add_special_tokens=False)["input_ids"]
    targets = []
    for row, index in zip(rows, at, strict=True):
        prompt, target = split(row)
        assert (row.mode, row.source) == (conversation.mode, conversation.source)
        messages = conversation.messages[:index]
        if conversation.mode == "non_thinking":
            messages = without_reasoning(messages)
        if raw:
            assert prompt == inference_ids(tokenizer, messages, row.mode, conversation.tools)
        assert target[-1] == end
        assert target.count(end) == 1
        if row.mode == "thinking":
            assert target[0] == think
            assert prompt[-len(empty_block) :] != empty_block
        else:
            assert prompt[-len(empty_block) :] == empty_block
            assert think not in target
        targets.append(tokenizer.decode(target))
    return targets


def one(
    chat_format: ChatFormat, conversation: Conversation, at: list[int] | None = None, turns: Any = "all"
) -> list[str]:
    """Check a conversation whose loss-bearing messages are ``at`` (the last one if not said); the decoded targets."""
    rows = chat_format.example(conversation, turns)
    return check(chat_format.tokenizer, conversation, rows, at or [len(conversation.messages) - 1])


# --- one turn -------------------------------------------------------------------------------------------------------

TEXTS = {
    "plain": "What is 2 + 2?",
    "chinese": "二加二等于几？",
    "japanese_korean": "こんにちは、한국어",
    "emoji_zwj": "👩‍👩‍👧‍👦 and 🏳️‍🌈",
    "emoji_flags": "🇩🇪🇨🇳🇺🇳",
    "emoji_skin": "👋🏽",
    "rtl": "שלום مرحبا",
    "combining": "e\u0301 n\u0303 क्षि",
    "private_use": "a\ue000b\ue001\uf8ff",
    "leading_newlines": "\n\nx",
    "trailing_newlines": "x\n\n",
    "leading_spaces": "   x",
    "trailing_spaces": "x   ",
    "mixed_edges": " \n\t x \r\n ",
    "carriage_returns": "a\r\nb\rc",
    "code": "def f():\n    return {'a': 1}\n",
    "almost_tokens": "<|im_end| > <think <tool_call < |im_start|>",
    "json": '{"name": "f", "arguments": {}}',
    "latex": r"$\frac{1}{2} \times \boxed{36}$",
    "jinja": "{{ messages }} {% for x in y %} {# no #}",
    "controls": "a\x00b\x1b[31mc\x7f",
    "separators": "a\u2028b\u2029c\u00a0d\ufeffe",
    "one_char": "x",
    "long": "na " * 800,
}


@pytest.mark.parametrize("name", TEXTS)
def test_single_turn_non_thinking(chat_format: ChatFormat, name: str) -> None:
    text = TEXTS[name]
    (target,) = one(chat_format, Conversation([user(text), assistant(text)], "non_thinking", "s"))
    assert same(target, text.strip("\n") + "<|im_end|>")


@pytest.mark.parametrize("name", TEXTS)
def test_single_turn_thinking(chat_format: ChatFormat, name: str) -> None:
    text = TEXTS[name]
    (target,) = one(chat_format, Conversation([user(text), assistant(text, text)], "thinking", "s"))
    text = text.strip("\n")
    assert same(target, f"<think>\n{text}\n</think>\n\n{text}<|im_end|>")


def same(decoded: str, expected: str) -> bool:
    """Equal up to canonical equivalence: both tokenizers normalise to NFC."""
    return unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", expected)


def test_bytes_of_the_two_modes(chat_format: ChatFormat) -> None:
    """Written out once in full, so that nobody need trust the oracle."""
    decode = chat_format.tokenizer.decode
    (row,) = chat_format.example(Conversation([user("q"), assistant("a")], "non_thinking"))
    prompt, target = split(row)
    assert decode(prompt) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert decode(target) == "a<|im_end|>"
    (row,) = chat_format.example(Conversation([user("q"), assistant("a", "r")], "thinking"))
    prompt, target = split(row)
    assert decode(prompt) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert decode(target) == "<think>\nr\n</think>\n\na<|im_end|>"


def test_published_token_numbers(qwen3_tokenizer: PreTrainedTokenizerBase) -> None:
    (row,) = ChatFormat(qwen3_tokenizer).example(Conversation([user("q"), assistant("Hello, world!", "r")], "thinking"))
    _, target = split(row)
    assert (target[0], target[-1]) == (151667, 151645)
    assert target[-5:-1] == [9707, 11, 1879, 0]


def test_reasoning_of_a_non_thinking_conversation_is_left_out(chat_format: ChatFormat) -> None:
    (target,) = one(chat_format, Conversation([user("q"), assistant("a", "thought in silence")], "non_thinking"))
    assert target == "a<|im_end|>"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("text", ["Be terse.", "你是小星。", "\nedges \n", " ", "👩‍👩‍👧‍👦\ue000"])
def test_system_prompt(chat_format: ChatFormat, mode: Mode, text: str) -> None:
    (target,) = one(chat_format, Conversation([system(text), user("q"), assistant("a", "r")], mode))
    assert target == ("<think>\nr\n</think>\n\na<|im_end|>" if mode == "thinking" else "a<|im_end|>")


@pytest.mark.parametrize("mode", MODES)
def test_prompt_ids_is_the_inference_prompt(chat_format: ChatFormat, mode: Mode) -> None:
    tokenizer = chat_format.tokenizer
    messages = [system("s"), user("\nq\n"), assistant("a\n"), user(" q2 ")]
    assert chat_format.prompt_ids(messages, mode) == inference_ids(tokenizer, messages, mode)
    tools = [schema("f")]
    assert chat_format.prompt_ids(messages, mode, tools) == inference_ids(tokenizer, messages, mode, tools)
    text = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=mode == "thinking", tokenize=False
    )
    assert chat_format.prompt_text(messages, mode) == text


# --- several turns --------------------------------------------------------------------------------------------------

DIALOGUE = [
    system("s"),
    user("first?"),
    assistant("one", "reason one"),
    user("second?"),
    assistant("two", "reason two"),
    user("third?"),
    assistant("three", "reason three"),
]


@pytest.mark.parametrize("mode", MODES)
def test_each_answer_is_its_own_example(chat_format: ChatFormat, mode: Mode) -> None:
    targets = one(chat_format, Conversation(DIALOGUE, mode, "s"), at=[2, 4, 6])
    words = [("one", "reason one"), ("two", "reason two"), ("three", "reason three")]
    assert targets == [
        (f"<think>\n{r}\n</think>\n\n" if mode == "thinking" else "") + f"{a}<|im_end|>" for a, r in words
    ]


@pytest.mark.parametrize("mode", MODES)
def test_history_holds_answers_but_no_think_blocks(chat_format: ChatFormat, mode: Mode) -> None:
    last = chat_format.example(Conversation(DIALOGUE, mode))[-1]
    prompt = chat_format.tokenizer.decode(split(last)[0])
    assert "assistant\none<|im_end|>" in prompt
    assert "assistant\ntwo<|im_end|>" in prompt
    assert "reason" not in prompt
    assert prompt.count("<think>") == (0 if mode == "thinking" else 1)  # the one of the generation prompt


@pytest.mark.parametrize("mode", MODES)
def test_turns_last(chat_format: ChatFormat, mode: Mode) -> None:
    conversation = Conversation(DIALOGUE, mode)
    every, last = chat_format.example(conversation, "all"), chat_format.example(conversation, "last")
    one(chat_format, conversation, at=[6], turns="last")
    assert len(every) == 3
    assert last == every[-1:]


def test_earlier_answers_without_reasoning_carry_no_loss_in_thinking_mode(chat_format: ChatFormat) -> None:
    messages = [user("q"), assistant("fast"), user("q"), assistant("slow", "r"), user("q"), assistant("slower", "r")]
    targets = one(chat_format, Conversation(messages, "thinking"), at=[3, 5])
    assert [t.endswith(a + "<|im_end|>") for t, a in zip(targets, ("slow", "slower"), strict=True)] == [True, True]


@pytest.mark.parametrize("mode", MODES)
def test_empty_answers_in_the_middle_carry_no_loss(chat_format: ChatFormat, mode: Mode) -> None:
    messages = [user("q"), assistant("", "r"), user("q"), assistant(" \n", "r"), user("q"), assistant("a", "r")]
    assert len(one(chat_format, Conversation(messages, mode), at=[5])) == 1


# --- tools ----------------------------------------------------------------------------------------------------------

TOOLS = [schema("weather", "城市 🏙️"), schema("time")]
CALLS = [("weather", {"city": "北京", "n": [1, 2.5, None, True]}), ("time", '{"city": "Paris"}')]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("calls", [CALLS[:1], CALLS[1:], CALLS], ids=["dict", "string", "parallel"])
def test_tool_calls(chat_format: ChatFormat, mode: Mode, calls: list[Any]) -> None:
    messages = [
        system("s"),
        user("Weather?"),
        assistant("", "I should look.", calls),
        *[tool(f'\n{{"t": {i}}} ') for i in range(len(calls))],
        assistant("3 degrees.", "It says 3."),
    ]
    conversation = Conversation(messages, mode, "tools", TOOLS)
    call, answer = one(chat_format, conversation, at=[2, len(messages) - 1])
    assert call.count("<tool_call>") == call.count("</tool_call>") == len(calls)
    for block, (name, arguments) in zip(re.findall(r"<tool_call>\n(.*)\n</tool_call>", call), calls, strict=True):
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        assert json.loads(block) == {"name": name, "arguments": arguments}
    if mode == "thinking":
        assert call.startswith("<think>\nI should look.\n</think>\n\n<tool_call>")
        assert answer == "<think>\nIt says 3.\n</think>\n\n3 degrees.<|im_end|>"
    else:
        assert call.startswith("<tool_call>")
        assert answer == "3 degrees.<|im_end|>"


def test_reasoning_stays_between_a_call_and_its_answer_only(chat_format: ChatFormat) -> None:
    messages = [
        user("q"),
        assistant("Looking.", "R1", CALLS[:1]),
        tool("5"),
        assistant("", "R2", CALLS[1:]),
        tool("6"),
        assistant("Five.", "R3"),
        user("And now?"),
        assistant("Six.", "R4"),
    ]
    conversation = Conversation(messages, "thinking", "", TOOLS)
    one(chat_format, conversation, at=[1, 3, 5, 7])
    prompts = [chat_format.tokenizer.decode(split(row)[0]) for row in chat_format.example(conversation)]
    assert [re.findall(r"R\d", prompt) for prompt in prompts] == [[], ["R1"], ["R1", "R2"], []]


@pytest.mark.parametrize("mode", MODES)
def test_conversation_that_ends_on_a_call(chat_format: ChatFormat, mode: Mode) -> None:
    conversation = Conversation([user("q"), assistant("", "r", CALLS)], mode, "", TOOLS)
    (target,) = one(chat_format, conversation)
    assert target.endswith("</tool_call><|im_end|>")


@pytest.mark.parametrize("mode", MODES)
def test_tools_are_in_the_prompt_without_a_call(chat_format: ChatFormat, mode: Mode) -> None:
    conversation = Conversation([user("q"), assistant("a", "r")], mode, "", TOOLS)
    one(chat_format, conversation)
    (row,) = chat_format.example(conversation)
    prompt = chat_format.tokenizer.decode(split(row)[0])
    assert all(json.dumps(t, ensure_ascii=False) in prompt for t in TOOLS)


# --- what is left out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reasoning", [None, "", " ", "\n\n"])
@pytest.mark.parametrize("turns", ["all", "last"])
def test_thinking_without_reasoning_is_rejected(chat_format: ChatFormat, reasoning: str | None, turns: Any) -> None:
    with pytest.raises(Rejected) as caught:
        chat_format.example(Conversation([user("q"), assistant("a", reasoning)], "thinking"), turns)
    assert caught.value.reason == "empty_reasoning"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("answer", ["", " ", "\n"])
def test_empty_answer_is_rejected(chat_format: ChatFormat, mode: Mode, answer: str) -> None:
    with pytest.raises(Rejected) as caught:
        chat_format.example(Conversation([user("q"), assistant(answer, "r")], mode))
    assert caught.value.reason == "no_assistant_turn"


def test_unclosed_think_never_reaches_the_tokens() -> None:
    for name, row in {
        "openmathreasoning": {"problem": "p", "generated_solution": "<think>cut off by the limi"},
        "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "<think>cut"}]},
        "messages": {"messages": [user("q"), assistant("<think>cut")]},
        "alpaca": {"instruction": "q", "output": "<think>cut"},
    }.items():
        with pytest.raises(Rejected) as caught:
            converter(name)(row)
        assert caught.value.reason == "unclosed_think"


def test_batch_keeps_order_and_puts_rejections_in_their_place(chat_format: ChatFormat) -> None:
    good = [Conversation([user(f"q{i}"), assistant(f"a{i}", f"r{i}")], MODES[i % 2], f"s{i}") for i in range(5)]
    bad = Conversation([user("q"), assistant("a")], "thinking", "bad")
    several = Conversation(DIALOGUE, "thinking", "several")
    batch = chat_format.examples(iter([good[0], bad, several, *good[1:], bad]))
    assert [isinstance(entry, Rejected) for entry in batch] == [False, True, False, False, False, False, False, True]
    kept = [entry for entry in batch if not isinstance(entry, Rejected)]
    assert kept == [chat_format.example(c) for c in (good[0], several, *good[1:])]  # as one by one
    assert chat_format.examples([]) == []


def test_lone_surrogate_is_rejected_and_spares_its_batch(chat_format: ChatFormat) -> None:
    """``json.loads`` makes one of a cut emoji; no tokenizer takes it."""
    broken = json.loads('"cut \\ud83d"')
    good = Conversation([user("q"), assistant("a")], "non_thinking")
    bad = [
        Conversation([user(broken), assistant("a")], "non_thinking"),
        Conversation([user("q"), assistant("a", broken)], "thinking"),
        Conversation([user("q"), assistant("a")], "non_thinking", "", [schema(broken)]),
    ]
    first, *rest, last = chat_format.examples([good, *bad, good])
    assert isinstance(first, list)
    assert first == last
    assert [r.reason for r in rest if isinstance(r, Rejected)] == ["not_unicode"] * 3


# --- soft switches --------------------------------------------------------------------------------------------------


def test_no_think_in_thinking_mode_trains_the_empty_block(chat_format: ChatFormat) -> None:
    """The only case in which the empty block is a target: the prompt is the thinking one, the user said /no_think."""
    (target,) = one(chat_format, Conversation([user("q /no_think"), assistant("a")], "thinking"))
    assert target == EMPTY_THINK + "a<|im_end|>"


def test_blank_reasoning_after_no_think_gives_the_very_empty_block(chat_format: ChatFormat) -> None:
    (target,) = one(chat_format, Conversation([user("q /no_think"), assistant("a", "  \n ")], "thinking"))
    assert target == EMPTY_THINK + "a<|im_end|>"


def test_no_think_in_non_thinking_mode_stays_prompt(chat_format: ChatFormat) -> None:
    (target,) = one(chat_format, Conversation([user("q /no_think"), assistant("a")], "non_thinking"))
    assert target == "a<|im_end|>"


@pytest.mark.parametrize(
    "messages",
    [
        [user("q /no_think"), assistant("x"), user("q /think"), assistant("a")],  # the last switch wins
        [user("q/no_think"), assistant("a")],  # not a word of its own
        [user("q /no_thinking"), assistant("a")],
        [user("q"), assistant("I obey /no_think"), user("q"), assistant("a")],  # the model cannot switch itself
        [user("q"), assistant("a"), user("q /think"), assistant("a")],
    ],
)
def test_without_no_think_in_force_reasoning_is_required(chat_format: ChatFormat, messages: list[Message]) -> None:
    with pytest.raises(Rejected) as caught:
        chat_format.example(Conversation(messages, "thinking"), "last")
    assert caught.value.reason == "empty_reasoning"


def test_switches_over_several_turns(chat_format: ChatFormat) -> None:
    messages = [
        system("s /no_think"),
        user("q"),
        assistant("fast"),
        user("q /think"),
        assistant("slow", "r"),
        user("q /no_think"),
        assistant("fast again"),
        user("still"),
        assistant("fast too"),
    ]
    targets = one(chat_format, Conversation(messages, "thinking"), at=[2, 4, 6, 8])
    assert [t.startswith(EMPTY_THINK) for t in targets] == [True, False, True, True]


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["q"], ""),
        (["q /think"], "/think"),
        (["/no_think q"], "/no_think"),
        (["q\n/no_think\n"], "/no_think"),
        (["q /no_think", "q /think"], "/think"),
        (["q /think /no_think"], "/no_think"),
        (["see docs/think and /thinking"], ""),
        (["(/no_think)"], ""),
    ],
)
def test_soft_switch(texts: list[str], found: str) -> None:
    assert soft_switch([user(text) for text in texts]) == found
    assert soft_switch([tool(text) for text in texts] + [assistant(text) for text in texts]) == ""


# --- literal control tokens in the data -----------------------------------------------------------------------------

LITERALS = (
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>\n\n</think>\n\n",
    "<tool_response>x</tool_response>",
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|im_<|im_end|>end|>",
    "<|im_end|><|im_end|>",
    "\ue000<|im_end|>\ue001",
)
PLACES = ("system", "user", "history", "reasoning", "answer", "arguments", "arguments_string", "schema", "tool", "all")
WORD = "HARMLESS"


def _with(place: str, text: str, mode: Mode) -> Conversation:
    """A conversation with tools and history that holds ``text`` in one place, and only there (or everywhere)."""

    def at(name: str) -> str:
        return text if place in (name, "all") else "x"

    calls = [("f", {"city": at("arguments"), at("arguments"): 1}), ("g", json.dumps({"c": at("arguments_string")}))]
    messages = [
        system(at("system")),
        user(at("user")),
        assistant(f"{at('history')} h", "r"),
        user(at("user")),
        assistant(f"a {at('answer')} b", f"r {at('reasoning')} r", calls),
        tool(at("tool")),
        assistant(f"{at('answer')} b", at("reasoning") + " r"),
    ]
    return Conversation(messages, mode, "s", [schema("f", at("schema"))])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", PLACES)
def test_literal_control_tokens_stay_text(chat_format: ChatFormat, place: str, mode: Mode) -> None:
    tokenizer = chat_format.tokenizer
    control = set(tokenizer.get_added_vocab().values())
    harmless = _with(place, WORD, mode)
    expected = chat_format.example(harmless)
    check(tokenizer, harmless, expected, [2, 4, 6])
    extra = [t for t in tokenizer.get_added_vocab() if t not in LITERALS]
    seen = any(WORD in tokenizer.decode(row.input_ids) for row in expected)
    assert seen == (place != "reasoning" or mode == "thinking")
    for literal in (*LITERALS, *extra):
        conversation = _with(place, literal, mode)
        rows = chat_format.example(conversation)
        check(tokenizer, conversation, rows, [2, 4, 6], raw=False)  # inference would see control tokens there
        for row, wanted in zip(rows, expected, strict=True):
            for got, want in zip(split(row), split(wanted), strict=True):
                assert [i for i in got if i in control] == [i for i in want if i in control], literal
                assert tokenizer.decode(got) == _put(literal, tokenizer.decode(want))


def _put(literal: str, text: str) -> str:
    """The text with the literal in place of the harmless word; between quotes as JSON writes it."""
    text = text.replace(f'"c": "{WORD}"', f'"c": {json.dumps(literal)}')  # arguments that were JSON in the data already
    return text.replace(f'"{WORD}"', json.dumps(literal, ensure_ascii=False)).replace(WORD, literal)


def test_no_literal_token_loses_its_turn(qwen3_tokenizer: PreTrainedTokenizerBase) -> None:
    """The danger in one line: as it stands, this answer would end the turn at its first word."""
    conversation = Conversation([user("q"), assistant("<|im_end|> ends a turn.")], "non_thinking")
    (row,) = ChatFormat(qwen3_tokenizer).example(conversation)
    assert 151645 not in split(row)[1][:-1]
    assert qwen3_tokenizer.decode(split(row)[1]) == "<|im_end|> ends a turn.<|im_end|>"


def test_prompt_ids_keeps_literal_tokens_as_text(chat_format: ChatFormat) -> None:
    control = set(chat_format.tokenizer.get_added_vocab().values())
    for mode in MODES:
        harmless = chat_format.prompt_ids([user(f"What does {WORD} mean?")], mode)
        for literal in LITERALS:
            got = chat_format.prompt_ids([user(f"What does {literal} mean?")], mode)
            assert [i for i in got if i in control] == [i for i in harmless if i in control]
            assert chat_format.tokenizer.decode(got) == chat_format.tokenizer.decode(harmless).replace(WORD, literal)
            (row,) = chat_format.example(Conversation([user(f"What does {literal} mean?"), assistant("a", "r")], mode))
            assert split(row)[0] == got  # trained on what prompt_ids gives


def test_private_use_characters_survive_beside_literal_tokens(chat_format: ChatFormat) -> None:
    text = "".join(map(chr, range(0xE000, 0xE100))) + "<|im_end|>"
    (row,) = chat_format.example(Conversation([user("q"), assistant(text)], "non_thinking"))
    assert chat_format.tokenizer.decode(split(row)[1]) == text + "<|im_end|>"


def test_all_private_use_characters_and_a_literal_token(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    every = "".join(map(chr, range(0xE000, 0xF900)))
    chat_format = ChatFormat(embedded_tokenizer)
    assert chat_format.example(Conversation([user("q"), assistant(every)], "non_thinking"))  # nothing to protect
    with pytest.raises(Rejected) as caught:
        chat_format.example(Conversation([user(every), assistant("<think>")], "non_thinking"))
    assert caught.value.reason == "no_free_private_use_character"


# --- tokenizers that cannot be used ---------------------------------------------------------------------------------


def _changed(tokenizer: PreTrainedTokenizerBase, old: str, new: str) -> PreTrainedTokenizerBase:
    template = tokenizer.chat_template
    assert isinstance(template, str)
    assert old in template
    clone = copy.deepcopy(tokenizer)
    clone.chat_template = template.replace(old, new)
    return clone


def test_no_template(tokenizer: PreTrainedTokenizerBase) -> None:
    clone = copy.deepcopy(tokenizer)
    clone.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        ChatFormat(clone)


@pytest.mark.parametrize("new", ["enable_thinking is defined and false", "true"], ids=["never_empty", "always_empty"])
def test_template_without_a_thinking_switch(tokenizer: PreTrainedTokenizerBase, new: str) -> None:
    with pytest.raises(UserError, match="does not switch thinking"):
        ChatFormat(_changed(tokenizer, "enable_thinking is defined and enable_thinking is false", new))


@pytest.mark.parametrize(
    ("old", "new", "mode"),
    [
        # No empty block before the last answer: what Qwen3's template does not do, but many copies of it.
        ("loop.last or (not loop.last and reasoning_content)", "reasoning_content", "non_thinking"),
        ("{%- set content = message.content %}", "{%- set content = message.content %}{{- ' ' }}", "thinking"),
        ("{%- if message.tool_calls %}", "{{- '!' }}{%- if message.tool_calls %}", None),  # odd, but it keeps the rule
    ],
    ids=["no_empty_block", "something_before_the_header", "still_parity"],
)
def test_template_that_breaks_parity(tokenizer: PreTrainedTokenizerBase, old: str, new: str, mode: Mode | None) -> None:
    changed = _changed(tokenizer, old, new)
    if mode == "thinking":  # the stray space breaks both modes: there is nothing to train
        with pytest.raises(UserError, match="breaks parity"):
            ChatFormat(changed)
        return
    chat_format = ChatFormat(changed)
    for each in MODES:
        conversation = Conversation([user("q"), assistant("a", "r")], each)
        if mode == each:
            with pytest.raises(UserError, match="breaks parity"):
                chat_format.example(conversation)
        else:
            assert chat_format.example(conversation)


def test_template_that_does_not_close_the_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    """Qwen3-Base calls <|endoftext|> its end: its answers would never be taught to stop."""
    clone = copy.deepcopy(tokenizer)
    clone.eos_token = "<|endoftext|>"
    with pytest.raises(UserError, match=r"breaks parity.*<\|endoftext\|>"):
        ChatFormat(clone).example(Conversation([user("q"), assistant("a")], "non_thinking"))


# --- looking at a mask ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def seen(chat_format: ChatFormat) -> tuple[Example, str, str]:
    """An example with its prompt and its target as text."""
    text = 'a < b & "c" 北京 👩‍👩‍👧‍👦'
    (row,) = chat_format.example(Conversation([user(text), assistant(text, text)], "thinking", "s"))
    prompt, target = (chat_format.tokenizer.decode(part) for part in split(row))
    assert text in prompt
    assert target.count(text) == 2
    return row, prompt, target


def test_coloured_plain(chat_format: ChatFormat, seen: tuple[Example, str, str]) -> None:
    row, prompt, target = seen
    assert coloured(chat_format.tokenizer, row, "plain") == f"{prompt}[[{target}]]"


def test_coloured_ansi(chat_format: ChatFormat, seen: tuple[Example, str, str]) -> None:
    row, prompt, target = seen
    shown = coloured(chat_format.tokenizer, row)  # the default
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == prompt + target
    dim, green, rest = shown.split("\x1b[0m")
    assert (dim.removeprefix("\x1b[2m"), green.removeprefix("\x1b[1;32m"), rest) == (prompt, target, "")


def test_coloured_html(chat_format: ChatFormat, seen: tuple[Example, str, str]) -> None:
    row, prompt, target = seen
    shown = coloured(chat_format.tokenizer, row, "html")
    assert html.unescape(re.sub(r"<[^>]*>", "", shown)) == prompt + target  # only our own tags are tags
    assert set(re.findall(r"</?(\w+)", shown)) == {"pre", "span"}
    assert "<think>" not in shown
    assert "&lt;think&gt;" in shown
    first, second = re.findall(r'<span style="([^"]*)">', shown)
    assert first != second


def test_coloured_takes_a_row_of_a_dataset(chat_format: ChatFormat, seen: tuple[Example, str, str]) -> None:
    row = {"input_ids": seen[0].input_ids, "labels": seen[0].labels}
    assert coloured(chat_format.tokenizer, row, "plain") == coloured(chat_format.tokenizer, seen[0], "plain")


@pytest.mark.parametrize("form", ["", "HTML", "markdown"])
def test_coloured_in_a_wrong_form(chat_format: ChatFormat, seen: tuple[Example, str, str], form: str) -> None:
    with pytest.raises(UserError, match=f"Unknown form '{form}'; use ansi, html or plain"):
        coloured(chat_format.tokenizer, seen[0], form)


# --- any conversation -----------------------------------------------------------------------------------------------

_EDGES = st.sampled_from(["", "", "", " ", "\n", "\n\n", "  \n", "\t", "\r\n", "\u3000", "\ue000"])
_CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])  # Cn: Python and Rust may know different Unicodes
_BODY = st.one_of(
    st.text(_CHARACTERS, max_size=20),
    st.text(st.sampled_from(" \n\tab<>|/thinkno_{}\"'\\é\u0301你👩\u200d👧🇩🇪\ue000"), max_size=20),
)
_TEXT = st.builds(lambda a, b, c: a + b + c, _EDGES, _BODY, _EDGES)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXT, inner, max_size=2),
    max_leaves=3,
)
_CALL = st.tuples(_TEXT, st.dictionaries(_TEXT, _JSON, max_size=2))
_REASONING = st.one_of(st.none(), _TEXT, _TEXT)
_ROUND = st.tuples(_TEXT, _REASONING, st.lists(_CALL, min_size=1, max_size=2), st.lists(_TEXT, min_size=1, max_size=2))


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages = [system(draw(_TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(_TEXT) + draw(st.sampled_from(["", "", "", " /no_think", " /think"]))))
        for text, reasoning, calls, results in draw(st.lists(_ROUND, max_size=1)):
            messages += [assistant(text, reasoning, calls), *map(tool, results)]
        messages.append(assistant(draw(_TEXT), draw(_REASONING)))
    tools = [schema(draw(_TEXT), draw(_TEXT))] if draw(st.booleans()) else []
    return Conversation(messages, draw(st.sampled_from(MODES)), "random", tools)


def _expected(conversation: Conversation) -> list[int]:
    """Which messages carry loss, by the rule as the design words it."""
    at = []
    for index, message in enumerate(conversation.messages):
        said = message["content"].strip() or message.get("tool_calls")
        if message["role"] == "assistant" and said:
            thought = (message.get("reasoning_content") or "").strip()
            switches = [
                word
                for m in conversation.messages[:index]
                if m["role"] in ("user", "system")
                for word in m["content"].split()
                if word in ("/think", "/no_think")
            ]
            if conversation.mode == "non_thinking" or thought or switches[-1:] == ["/no_think"]:
                at.append(index)
    return at


def _strings(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@settings(max_examples=examples(40))
@given(conversation=conversations())
@example(Conversation([user("\n"), assistant("\n x \n", "\n r \n")], "thinking", "random"))
@example(Conversation([user("q"), assistant("\u0338", "\u0338")], "thinking", "random"))
@example(Conversation([user("q"), assistant("a\n"), user("\n\n"), assistant("b\n\n")], "non_thinking", "random"))
def test_parity_and_round_trip_of_any_conversation(
    embedded_tokenizer: PreTrainedTokenizerBase, request: pytest.FixtureRequest, conversation: Conversation
) -> None:
    for tokenizer in _tokenizers(embedded_tokenizer, request):
        before = copy.deepcopy(conversation)
        (result,) = ChatFormat(tokenizer).examples([conversation])
        assert conversation == before
        at = _expected(conversation)
        last_missing = not at or (
            conversation.mode == "thinking"
            and at[-1] != len(conversation.messages) - 1
            and conversation.messages[-1]["content"].strip()
        )
        event(f"{conversation.mode}: {'rejected' if isinstance(result, Rejected) else 'kept'}")
        if isinstance(result, Rejected):
            assert last_missing
            assert result.reason in ("empty_reasoning", "no_assistant_turn")
            continue
        assert not last_missing
        text = _strings([conversation.messages, conversation.tools])
        literal = any(token in text for token in tokenizer.get_added_vocab())
        targets = check(tokenizer, conversation, result, at, raw=not literal)
        for index, target in zip(at, targets, strict=True):
            message = conversation.messages[index]
            reasoning, answer = (message.get("reasoning_content") or "").strip("\n"), message["content"].strip("\n")
            reasoning = reasoning if reasoning.strip() else ""
            head = f"<think>\n{reasoning}\n</think>\n\n" if conversation.mode == "thinking" else ""
            calls = [
                f'<tool_call>\n{{"name": "{f["name"]}", "arguments": {_strings(f["arguments"])}}}\n</tool_call>'
                for f in (call["function"] for call in message.get("tool_calls", []))
            ]
            body = "\n".join([answer, *calls] if answer else calls)
            assert same(target, f"{head}{body}<|im_end|>")


def _tokenizers(embedded: PreTrainedTokenizerBase, request: pytest.FixtureRequest) -> list[PreTrainedTokenizerBase]:
    """Both, but only the embedded one where the real one is absent: the property then still holds for one."""
    try:
        return [embedded, request.getfixturevalue("qwen3_tokenizer")]
    except pytest.skip.Exception:
        return [embedded]


@settings(max_examples=examples(25))
@given(
    pieces=st.lists(st.sampled_from(LITERALS) | _TEXT, max_size=5),
    mode=st.sampled_from(MODES),
)
def test_any_mixture_of_literal_tokens_round_trips(
    embedded_tokenizer: PreTrainedTokenizerBase, request: pytest.FixtureRequest, pieces: list[str], mode: Mode
) -> None:
    text = f"x{''.join(pieces)}x"
    for tokenizer in _tokenizers(embedded_tokenizer, request):
        chat_format = ChatFormat(tokenizer)
        control = Counter(i for i in _ids(chat_format, "x", mode) if i in tokenizer.get_added_vocab().values())
        ids = _ids(chat_format, text, mode)
        assert Counter(i for i in ids if i in tokenizer.get_added_vocab().values()) == control
        answer = f"<think>\n{text}\n</think>\n\n{text}" if mode == "thinking" else text
        empty = "" if mode == "thinking" else EMPTY_THINK
        assert same(
            tokenizer.decode(ids),
            f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n{empty}{answer}<|im_end|>",
        )


def _ids(chat_format: ChatFormat, text: str, mode: Mode) -> list[int]:
    (row,) = chat_format.example(Conversation([user(text), assistant(text, text)], mode))
    return row.input_ids


# --- rows nobody here wrote -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout", "sample"),
    [
        ("sft/alpaca_en_demo.json", "alpaca", 150),
        ("sft/alpaca_zh_demo.json", "alpaca", 150),
        ("reason/gsm8k_gemini_cot_level2.json", "openmathreasoning", 150),
        ("tools/glaive_toolcall_en_demo.json", "sharegpt", 100),
        ("tools/glaive_toolcall_zh_demo.json", "sharegpt", 100),
    ],
)
def test_parity_of_real_rows(
    qwen3_tokenizer: PreTrainedTokenizerBase, shared_data: Path, name: str, layout: str, sample: int
) -> None:
    path = shared_data / name
    if not path.is_file():
        pytest.skip(f"no {name} in the real data")
    chat_format = ChatFormat(qwen3_tokenizer)
    checked = 0
    for row in json.loads(path.read_text(encoding="utf-8"))[:sample]:
        if layout == "openmathreasoning":  # written-out reasoning, put into the layout that the converter reads
            reasoning, _, answer = row["output"].rpartition("The answer is")
            row = {"problem": row["instruction"], "generated_solution": f"<think>\n{reasoning}\n</think>\n\n{answer}"}
            if not reasoning.strip():
                continue
        try:
            conversation = converter(layout)(row)
        except Rejected:
            continue
        rows = chat_format.example(conversation)
        targets = check(qwen3_tokenizer, conversation, rows, _expected(conversation))
        last = conversation.messages[-1]
        assert same(targets[-1].rpartition("</think>\n\n")[2], last["content"] + "<|im_end|>")
        checked += len(rows)
    assert checked >= 0.9 * sample


def test_parity_of_the_embedded_corpora(chat_format: ChatFormat) -> None:
    """Everything the embedded model is trained on, switches included, keeps the rule, and no row of it is rejected."""
    made = [Conversation(d["messages"], d["mode"], "base") for d in (corpora.base_dialogue(5, i) for i in range(200))]
    made += [converter("sharegpt")(row) for row in corpora.finetome_like(80, 5)]
    made += [converter("openmathreasoning")(row) for row in corpora.openmath_like(80, 5)]
    empty = 0
    for conversation, rows in zip(made, chat_format.examples(made), strict=True):
        assert not isinstance(rows, Rejected)
        everything = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
        targets = check(chat_format.tokenizer, conversation, rows, everything)
        for index, target in zip(everything, targets, strict=True):
            switched = soft_switch(conversation.messages[:index]) == "/no_think" and conversation.mode == "thinking"
            assert target.startswith(EMPTY_THINK) == switched
            empty += switched
    assert empty  # the case did occur


def test_the_sandbox_keeps_its_verdicts(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    # What ChatFormat puts into transformers' sandbox must be in use, and must refuse what the sandbox refuses.
    from jinja2.exceptions import SecurityError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    ChatFormat(embedded_tokenizer)
    environment = _compile_jinja_template(embedded_tokenizer.chat_template).environment
    assert "is_safe_attribute" in vars(environment)
    for attack in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        for _ in range(2):
            with pytest.raises(SecurityError):
                environment.from_string(attack).render(messages=[])
    assert environment.from_string("{{ 'a b'.split(' ')[1] }}").render() == "b"


NAMES = ("role", "content", "items", "keys", "get", "update", "pop", "__class__", "_own")


@given(
    message=st.dictionaries(st.sampled_from(NAMES), st.none() | st.text(max_size=5) | st.just({"role": "x"})),
    name=st.sampled_from(NAMES),
    more=st.sampled_from(["", ".role", ".upper()", "()", "['role']"]),
)
def test_the_sandbox_reads_dicts_as_it_did(
    embedded_tokenizer: PreTrainedTokenizerBase, message: dict[str, Any], name: str, more: str
) -> None:
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    ChatFormat(embedded_tokenizer)
    seen = []
    for compiled in (_compile_jinja_template, _compile_jinja_template.__wrapped__):  # ours, and one that nobody touched
        environment = compiled(embedded_tokenizer.chat_template).environment
        assert ("getattr" in vars(environment)) == (compiled is _compile_jinja_template)
        text = f"{{{{ m.{name} is defined }}}} {{{{ m.{name}{more} }}}}"
        try:
            seen.append(environment.from_string(text).render(m=dict(message)))
        except (TemplateError, TypeError) as error:
            seen.append(f"{type(error).__name__}: {error}")
    assert re.sub("0x[0-9a-f]+", "", seen[0]) == re.sub("0x[0-9a-f]+", "", seen[1])


@pytest.mark.slow
def test_the_sandbox_keeps_its_verdicts_in_a_worker_process(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    code = (
        "import pickle, sys\n"
        "form = pickle.load(sys.stdin.buffer)\n"
        "from transformers.utils.chat_template_utils import _compile_jinja_template as compiled\n"
        "print('is_safe_attribute' in vars(compiled(form.tokenizer.chat_template).environment))\n"
    )
    sent = pickle.dumps(ChatFormat(embedded_tokenizer))
    worker = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert worker.stdout.split() == [b"True"]


# --- the masks that are there to be measured ----------------------------------------------------------------------------


def _masks(tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> tuple[str, str]:
    """(prompt, target) of a chat answer as text."""
    form = ChatFormat(tokenizer, **kwargs)
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
    (example,) = form.example(Conversation(messages, "non_thinking"))
    cut = sum(label == IGNORE_INDEX for label in example.labels)
    assert example.labels[cut:] == example.input_ids[cut:] and example.mode == "non_thinking"
    return tokenizer.decode(example.input_ids[:cut]), tokenizer.decode(example.input_ids[cut:])


def test_masks_of_an_empty_think_block(tokenizer: PreTrainedTokenizerBase) -> None:
    masked, trained, switched = (_masks(tokenizer, empty_think=k) for k in ("masked", "trained", "soft_switch"))
    assert masked[0].endswith(EMPTY_THINK) and masked[1] == "Hi!<|im_end|>"
    assert trained == (masked[0].removesuffix(EMPTY_THINK), EMPTY_THINK + masked[1])
    assert switched == (trained[0].replace("Hello", "Hello /no_think"), trained[1])
    # The public notebooks' prompt is the thinking prompt: that is the trouble with it.
    thinking = ChatFormat(tokenizer).prompt_text([{"role": "user", "content": "Hello"}], "thinking")
    assert trained[0] == thinking
    assert _masks(tokenizer, loss_on="everything") == ("", masked[0] + masked[1])


def test_masks_leave_reasoning_alone_and_have_keys_of_their_own(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4", "reasoning_content": "2 and 2 are 4."},
    ]
    conversation = Conversation(messages, "thinking")
    forms = [ChatFormat(tokenizer, empty_think=k) for k in ("masked", "trained", "soft_switch")]  # type: ignore[arg-type]
    assert len({json.dumps(form.example(conversation)[0].input_ids) for form in forms}) == 1
    assert len({form.key for form in [*forms, ChatFormat(tokenizer, loss_on="everything")]}) == 4
