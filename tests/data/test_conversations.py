"""Rows become conversations or are rejected with a reason; nothing else ever happens."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from examples import examples
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data import conversations, formats
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import (
    FORMATS,
    Conversation,
    Preference,
    Rejected,
    converter,
    preference_pair,
)
from pipeline.data.rows import media, parts, reasoning, tools, turns
from pipeline.data.rows.parts import unfilled_placeholder
from pipeline.data.rows.reasoning import split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
MODULES = (conversations, formats, media, parts, reasoning, tools, turns)


def user(text: Any) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def turn(who: str, text: str) -> Row:
    return {"from": who, "value": text}


# --- reasoning and answer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("just an answer", "", "just an answer"),
        (" padded\n", "", "padded"),
        ("    return x  \n", "", "    return x"),
        ("\n \n\tif x:\n\t\ty\n", "", "\tif x:\n\t\ty"),
        ("\u3000\u3000x", "", "x"),
        ("<think>why</think>   what", "why", "what"),
        ("<think>why</think>\n\n    return x\n", "why", "    return x"),
        ("  Prose begins so.\nOften.", "", "Prose begins so.\nOften."),
        (" One.\n  - two", "", "One.\n  - two"),
        ("  if x:\n    y", "", "  if x:\n    y"),
        ("    x</think>  \n    y", "x", "    y"),
        ("<think>why</think>what", "why", "what"),
        ("<think>\nwhy\nand how\n</think>\n\nwhat\n\nnow\n", "why\nand how", "what\n\nnow"),
        ("\n <think>why</think>what", "why", "what"),
        ("opening tag was cut</think>what", "opening tag was cut", "what"),
        ("<think></think>what", "", "what"),
        ("<think>\n \n</think>what", "", "what"),
        ("<think>why</think>", "why", ""),
        ("", "", ""),
        ("<think>为什么 🧑‍🚀</think>答案", "为什么 🧑‍🚀", "答案"),
    ],
)
def test_split_reasoning(text: str, reasoning: str, answer: str) -> None:
    assert split(text)[:2] == (reasoning, answer)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>cut by the token limit", "unclosed_think"),
        ("<think>a</think>b<think>c", "unclosed_think"),
        ("answer, then <think>", "unclosed_think"),
        ("<think>a</think>b<think>c</think>d", "several_think_blocks"),
        ("first <think>a</think>b", "several_think_blocks"),
        ("a</think>b</think>c", "several_think_blocks"),
        ("<think>a</think>b</think>", "several_think_blocks"),
        ("<think>a<think>b</think>c", "nested_think"),
        ("<think>\n<think>\na</think>b", "nested_think"),
        ("<think>a<think>b</think>c</think>d", "nested_think"),
        ("<think>a<think>b", "unclosed_think"),
    ],
)
def test_split_reasoning_rejects(text: str, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        split(text)
    assert caught.value.reason == reason
    assert caught.value.detail in " ".join(text.split())  # says what was seen


# --- what each layout becomes ---------------------------------------------------------------------------------------


def test_alpaca() -> None:
    got = converter("alpaca")({"instruction": "Add.", "input": "", "output": " 4\n"})
    assert got == Conversation([user("Add."), assistant("4")], "non_thinking")


def test_alpaca_with_input_system_and_history() -> None:
    row = {
        "system": "Be brief.",
        "history": [["Hi", "Hello"], ("How?", "<think>hm</think>Well")],
        "instruction": "Translate.",
        "input": "猫",
        "output": "cat",
    }
    assert converter("alpaca")(row).messages == [
        {"role": "system", "content": "Be brief."},
        user("Hi"),
        assistant("Hello"),
        user("How?"),
        assistant("Well", reasoning_content="hm"),
        user("Translate.\n猫"),
        assistant("cat"),
    ]


@pytest.mark.parametrize("empty", [None, "", "  \n"])
def test_alpaca_blank_input_adds_nothing(empty: str | None) -> None:
    got = converter("alpaca")({"instruction": "Add.", "input": empty, "output": "4", "history": None, "system": None})
    assert got.messages == [user("Add."), assistant("4")]


def test_alpaca_reasoning_in_output_makes_it_thinking() -> None:
    got = converter("alpaca")({"instruction": "2+2?", "output": "<think>\ntwo and two\n</think>\n\n4"})
    assert got.mode == "thinking"
    assert got.messages[-1] == assistant("4", reasoning_content="two and two")


def test_sharegpt_finetome_row() -> None:
    row = {
        "conversations": [
            turn("system", "You are terse."),
            turn("human", "Hi\n"),
            turn("gpt", "Hello"),
            turn("human", "1+1"),
            turn("gpt", "2"),
        ],
        "source": "infini-instruct-top-500k",
        "score": 5.2,
    }
    got = converter("sharegpt")(row)
    assert got.messages == [
        {"role": "system", "content": "You are terse."},
        user("Hi\n"),
        assistant("Hello"),
        user("1+1"),
        assistant("2"),
    ]
    assert (got.mode, got.tools) == ("non_thinking", [])


def test_mode_is_that_of_the_last_answer() -> None:
    think, direct = turn("gpt", "<think>r</think>a"), turn("gpt", "a")
    ask = turn("human", "q")
    assert converter("sharegpt")({"conversations": [ask, direct, ask, think]}).mode == "thinking"
    assert converter("sharegpt")({"conversations": [ask, think, ask, direct]}).mode == "non_thinking"


def test_glaive_tool_call_row() -> None:
    schema = {"name": "weather", "description": "…", "parameters": {"type": "object", "properties": {}}}
    row = {
        "conversations": [
            turn("human", "Weather in 北京?"),
            turn("function_call", '{"name": "weather", "arguments": {"city": "北京"}}'),
            turn("observation", '{"t": 3}'),
            turn("gpt", "3 degrees."),
        ],
        "tools": json.dumps([schema]),
    }
    got = converter("sharegpt")(row)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
    assert got.messages == [
        user("Weather in 北京?"),
        assistant("", tool_calls=[call]),
        {"role": "tool", "content": '{"t": 3}'},
        assistant("3 degrees."),
    ]
    assert got.tools == [{"type": "function", "function": schema}]


@pytest.mark.parametrize("value", ["", "  ", None, [], "[]"])
def test_no_tools(value: Any) -> None:
    row = {"conversations": [turn("human", "q"), turn("gpt", "a")], "tools": value}
    assert converter("sharegpt")(row).tools == []


def test_wrapped_tools_stay_as_they_are() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = {"messages": [user("q"), assistant("a")], "tools": tools}
    assert converter("messages")(row).tools == tools


def test_openmathreasoning() -> None:
    row = {
        "problem": " What is 12 × 3? ",
        "generated_solution": "<think>\n10×3 is 30, 2×3 is 6.\n</think>\n\n$\\boxed{36}$",
        "expected_answer": "36",
        "problem_type": "has_answer_extracted",
    }
    got = converter("openmathreasoning")(row)
    assert got == Conversation(
        [user("What is 12 × 3?"), assistant("$\\boxed{36}$", reasoning_content="10×3 is 30, 2×3 is 6.")], "thinking"
    )


def test_messages_with_reasoning_content_keeps_tags_in_the_answer_as_text() -> None:
    row = {"messages": [user("q"), assistant("Write <think> first.", reasoning_content=" r\n")]}
    got = converter("messages")(row)
    assert got.messages[-1] == assistant("Write <think> first.", reasoning_content="r")
    assert got.mode == "thinking"


def test_messages_with_tags_in_content() -> None:
    got = converter("messages")({"messages": [user("q"), assistant("<think>r</think>a")]})
    assert got.messages[-1] == assistant("a", reasoning_content="r")


def test_messages_with_parallel_tool_calls() -> None:
    calls = [{"type": "function", "function": {"name": n, "arguments": {"x": 1}}} for n in ("f", "g")]
    row = {
        "messages": [
            {"role": "system", "content": "s"},
            user("q"),
            {"role": "assistant", "content": None, "reasoning_content": "two at once", "tool_calls": calls},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
            assistant("done", reasoning_content="both came"),
        ],
        "tools": [{"name": "f"}, {"name": "g"}],
    }
    got = converter("messages")(row)
    assert got.messages[2] == assistant("", reasoning_content="two at once", tool_calls=calls)
    assert [m["role"] for m in got.messages] == ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert [t["function"]["name"] for t in got.tools] == ["f", "g"]
    assert got.mode == "thinking"


@pytest.mark.parametrize(
    ("call", "kept"),
    [
        ({"name": "f", "arguments": {"x": 1}}, {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}),
        ({"function": {"name": "f"}}, {"type": "function", "function": {"name": "f", "arguments": {}}}),
        (
            {"function": {"name": "f", "arguments": None}},
            {"type": "function", "function": {"name": "f", "arguments": {}}},
        ),
        (
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
        ),
        (
            {"function": {"name": "f", "arguments": " "}},
            {"type": "function", "function": {"name": "f", "arguments": {}}},
        ),
    ],
)
def test_messages_layouts_of_a_tool_call(call: Row, kept: Row) -> None:
    got = converter("messages")({"messages": [user("q"), assistant("", tool_calls=[call])]})
    assert got.messages[-1]["tool_calls"] == [kept]


def test_a_row_is_not_changed_by_its_conversion() -> None:
    row = {
        "messages": [user("q"), assistant("<think>r</think>a"), user("q"), assistant("a", reasoning_content="r")],
        "tools": [{"name": "f"}],
    }
    before = json.dumps(row)
    converter("messages")(row)
    assert json.dumps(row) == before


# --- every reason for leaving a row out -----------------------------------------------------------------------------

_CALL = '{"name": "f", "arguments": {}}'
SYSTEM = {"role": "system", "content": "s"}
REJECTED: list[tuple[str, str, Row]] = [
    ("missing_column", "alpaca", {"output": "a"}),
    ("missing_column", "alpaca", {"instruction": "q"}),
    ("missing_column", "sharegpt", {"messages": []}),
    ("missing_column", "openmathreasoning", {"problem": "p"}),
    ("missing_column", "openmathreasoning", {"generated_solution": "<think>r</think>a"}),
    ("missing_column", "messages", {}),
    ("not_text", "alpaca", {"instruction": 3, "output": "a"}),
    ("not_text", "alpaca", {"instruction": None, "output": "a"}),
    ("not_text", "alpaca", {"instruction": "q", "input": ["x"], "output": "a"}),
    ("not_text", "alpaca", {"instruction": "q", "output": None}),
    ("not_text", "alpaca", {"instruction": "q", "output": "a", "system": {"a": 1}}),
    ("not_text", "alpaca", {"instruction": "q", "output": "a", "history": [["q", None]]}),
    ("not_text", "sharegpt", {"conversations": [turn("human", "q"), {"from": "gpt", "value": None}]}),
    ("not_text", "openmathreasoning", {"problem": 1, "generated_solution": "<think>r</think>a"}),
    ("not_text", "messages", {"messages": [user("q"), assistant("a", reasoning_content=["r", "s"])]}),
    ("needs_media", "messages", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
    ("not_text", "messages", {"messages": [{"role": "user", "content": ["q"]}, assistant("a")]}),
    ("not_text", "messages", {"messages": [{"role": "user", "content": None}, assistant("a")]}),
    ("not_text", "messages", {"messages": [user("q"), {"role": "assistant", "content": 0}]}),
    ("not_text", "messages", {"messages": [user("q"), {"role": "assistant", "content": False}]}),
    ("not_text", "sharegpt", {"conversations": [turn("human", "q"), {"from": "gpt", "value": ["a"]}]}),
    ("not_text", "sharegpt", {"conversations": [turn("human", "q"), {"from": "gpt", "value": 7}]}),
    ("not_text", "sharegpt", {"conversations": [{"from": "human"}, turn("gpt", "a")]}),
    ("empty_answer", "sharegpt", {"conversations": [turn("human", "q"), {"from": "gpt"}]}),
    ("not_text", "sharegpt", {"conversations": [turn("human", "q"), turn("gpt", "a")], "system": 3}),
    ("not_text", "alpaca", {"instruction": "q", "output": b"a"}),
    ("not_text", "alpaca", {"instruction": "q", "output": True}),
    ("not_text", "alpaca", {"instruction": "q", "output": 7}),
    ("not_text", "alpaca", {"instruction": "q", "output": float("nan")}),
    ("not_text", "prompt_completion", {"question": "q", "answer": 7}),
    ("not_text", "reasoning", {"question": "q", "reasoning": True, "answer": "a"}),
    ("not_text", "preference", {"prompt": "q", "chosen": 1, "rejected": "b"}),
    ("missing_column", "prompt_completion", {"prompt": "q", "key": 1}),
    ("missing_column", "prompt_completion", {"completion": "a"}),
    ("missing_column", "reasoning", {"prompt": "q", "completion": "a"}),
    ("missing_column", "preference", {"prompt": "q", "rejected": "b"}),
    ("missing_column", "preference", {"chosen": "a", "rejected": "b"}),
    ("bad_history", "alpaca", {"instruction": "q", "output": "a", "history": [["only a question"]]}),
    ("bad_history", "alpaca", {"instruction": "q", "output": "a", "history": ["qa"]}),
    ("bad_history", "alpaca", {"instruction": "q", "output": "a", "history": 7}),
    ("empty_prompt", "alpaca", {"instruction": " \n", "input": " ", "output": "a"}),
    ("empty_prompt", "openmathreasoning", {"problem": " ", "generated_solution": "<think>r</think>a"}),
    ("empty_answer", "alpaca", {"instruction": "q", "output": " \n"}),
    ("empty_answer", "sharegpt", {"conversations": [turn("human", "q"), turn("gpt", "")]}),
    ("empty_answer", "openmathreasoning", {"problem": "p", "generated_solution": "<think>r</think>\n"}),
    ("empty_answer", "messages", {"messages": [user("q"), {"role": "assistant", "content": None}]}),
    ("empty_answer", "alpaca", {"instruction": "q", "output": "a", "history": [["q", " "]]}),
    ("empty_answer", "messages", {"messages": [user("q"), assistant(""), user("q"), assistant("a")]}),
    ("empty_answer", "messages", {"messages": [user("q"), assistant("", reasoning_content="r")]}),
    ("empty_answer", "sharegpt", {"conversations": [turn("human", "q"), turn("gpt", "r</think>")]}),
    ("empty_answer", "reasoning", {"question": "q", "reasoning": "r", "answer": ""}),
    ("empty_prompt", "prompt_completion", {"prompt": "", "completion": "a"}),
    ("empty_prompt", "messages", {"messages": [user("q"), assistant("a"), user(" "), assistant("a")]}),
    ("empty_prompt", "messages", {"messages": [user([]), assistant("a")]}),
    ("empty_reasoning", "reasoning", {"question": "q", "reasoning": " ", "answer": "a"}),
    ("empty_reasoning", "reasoning", {"question": "q", "reasoning": None, "answer": "a"}),
    ("empty_reasoning", "reasoning", {"question": "q", "reasoning": "<think></think>", "answer": "a"}),
    ("empty_reasoning", "alpaca", {"instruction": "q", "output": "</think>a"}),
    ("nested_think", "messages", {"messages": [user("q"), assistant("a", reasoning_content="r</think>a")]}),
    ("nested_think", "reasoning", {"question": "q", "cot": "<think>r</think>r", "answer": "a"}),
    ("nested_think", "alpaca", {"instruction": "q", "output": "<think>r<think>r</think>a"}),
    ("several_think_blocks", "messages", {"messages": [user("q"), assistant("<think>x</think>a", reasoning="r")]}),
    ("several_systems", "messages", {"messages": [SYSTEM, SYSTEM, user("q"), assistant("a")]}),
    (
        "several_systems",
        "messages",
        {"messages": [SYSTEM, user("q"), assistant("a"), SYSTEM, user("q"), assistant("a")]},
    ),
    ("several_systems", "messages", {"messages": [SYSTEM, user("q"), assistant("a")], "system": "another"}),
    ("control_characters", "alpaca", {"instruction": "q", "output": "a\x00"}),
    ("control_characters", "alpaca", {"instruction": "what is \x0crac{1}{2}?", "output": "a"}),
    ("control_characters", "sharegpt", {"conversations": [turn("human", "q"), turn("gpt", "<think>\x1b[0m</think>a")]}),
    ("control_characters", "messages", {"messages": [user("q"), assistant("a")], "tools": [{"name": "f", "x": "\b"}]}),
    ("not_unicode", "alpaca", {"instruction": "q", "output": "half of \ud83d"}),
    ("not_unicode", "sharegpt", {"conversations": [turn("human", "q"), turn("function_call", '{"name": "\\ud83d"}')]}),
    ("unfilled_placeholder", "alpaca", {"instruction": "Who are you?", "output": "I am {{name}}, made by {{author}}."}),
    ("unfilled_placeholder", "alpaca", {"instruction": "Hi, {{ user_name }}", "output": "Hi"}),
    ("unfilled_placeholder", "messages", {"messages": [user("q"), assistant("a", reasoning_content="I am {{char}}.")]}),
    ("prompts_differ", "preference", {"prompt": "x", "chosen": [user("q"), assistant("a")], "rejected": "b"}),
    ("unclosed_think", "alpaca", {"instruction": "q", "output": "<think>r"}),
    ("unclosed_think", "sharegpt", {"conversations": [turn("human", "q"), turn("gpt", "<think>r")]}),
    ("unclosed_think", "openmathreasoning", {"problem": "p", "generated_solution": "<think>r"}),
    ("unclosed_think", "messages", {"messages": [user("q"), assistant("<think>r")]}),
    ("several_think_blocks", "messages", {"messages": [user("q"), assistant("<think>r</think>a<think>r</think>a")]}),
    ("empty_reasoning", "openmathreasoning", {"problem": "p", "generated_solution": "no chain at all"}),
    ("empty_reasoning", "openmathreasoning", {"problem": "p", "generated_solution": "<think>\n\n</think>\n\na"}),
    ("empty_conversation", "sharegpt", {"conversations": []}),
    ("empty_conversation", "sharegpt", {"conversations": " "}),
    ("not_json", "sharegpt", {"conversations": "hello"}),
    ("not_json", "sharegpt", {"conversations": '{"from": "human", "value": "q"}'}),
    ("not_json", "sharegpt", {"conversations": str([turn("human", "q"), turn("gpt", "a")])}),
    ("not_json", "messages", {"messages": "[" * 100_000}),
    ("not_json", "alpaca", {"instruction": "q", "output": "a", "history": "x"}),
    ("not_json", "prompt_completion", {"prompt": str([user("q")]), "completion": "a"}),
    ("not_json", "preference", {"prompt": "q", "chosen": str([assistant("a")]), "rejected": "b"}),
    ("bad_weight", "messages", {"messages": [user("q"), assistant("a", weight=0.5)]}),
    ("bad_weight", "messages", {"messages": [user("q"), assistant("a", weight="0")]}),
    ("no_weighted_answer", "messages", {"messages": [user("q"), assistant("a", weight=0)]}),
    ("empty_conversation", "messages", {"messages": []}),
    ("empty_conversation", "messages", {"messages": None}),
    ("not_a_turn", "sharegpt", {"conversations": ["hello"]}),
    ("not_a_turn", "messages", {"messages": ["hello"]}),
    ("not_a_turn", "messages", {"messages": [{"content": "hello"}]}),
    ("unknown_role", "sharegpt", {"conversations": [turn("human", "q"), turn("narrator", "a")]}),
    ("not_a_turn", "sharegpt", {"conversations": [{"value": "q"}]}),
    ("not_a_turn", "sharegpt", {"conversations": [None, turn("gpt", "a")]}),
    ("unknown_role", "sharegpt", {"conversations": [{"from": None, "value": "q"}]}),
    ("unknown_role", "messages", {"messages": [{"role": "robot", "content": "q"}, user("q"), assistant("a")]}),
    ("unknown_role", "messages", {"messages": [{"role": ["user"], "content": "q"}, assistant("a")]}),
    ("no_assistant_turn", "messages", {"messages": [user("q")]}),
    ("no_assistant_turn", "sharegpt", {"conversations": [turn("human", "q")]}),
    (
        "does_not_end_on_assistant",
        "sharegpt",
        {"conversations": [turn("human", "q"), turn("function_call", _CALL), turn("observation", "1")]},
    ),
    ("roles_out_of_order", "sharegpt", {"conversations": [turn("gpt", "a")]}),
    ("roles_out_of_order", "messages", {"messages": [user("q"), user("q"), assistant("a")]}),
    ("roles_out_of_order", "messages", {"messages": [user("q"), assistant("a"), assistant("a")]}),
    ("roles_out_of_order", "messages", {"messages": [user("q"), {"role": "system", "content": "s"}, assistant("a")]}),
    ("roles_out_of_order", "messages", {"messages": [user("q"), {"role": "tool", "content": "1"}, assistant("a")]}),
    (
        "roles_out_of_order",
        "sharegpt",
        {"conversations": [turn("human", "q"), turn("function_call", _CALL), turn("gpt", "no answer to the call")]},
    ),
    ("bad_tool_call", "sharegpt", {"conversations": [turn("human", "q"), turn("function_call", "{not json")]}),
    ("bad_tool_call", "sharegpt", {"conversations": [turn("human", "q"), turn("function_call", "[1]")]}),
    ("bad_tool_call", "sharegpt", {"conversations": [turn("human", "q"), turn("function_call", '{"name": 3}')]}),
    ("bad_tool_call", "sharegpt", {"conversations": [turn("human", "q"), turn("function_call", "9" * 5000)]}),
    ("bad_tool_call", "messages", {"messages": [user("q"), assistant("", tool_calls="f()")]}),
    ("bad_tool_call", "messages", {"messages": [user("q"), assistant("", tool_calls=7)]}),
    ("bad_tool_call", "messages", {"messages": [user("q"), assistant("", tool_calls=["f"])]}),
    ("bad_tool_call", "messages", {"messages": [user("q"), assistant("", tool_calls=[{"function": {}}])]}),
    (
        "bad_tool_call",
        "messages",
        {"messages": [user("q"), assistant("", tool_calls=[{"name": "f", "arguments": "{"}])]},
    ),
    (
        "bad_tool_call",
        "messages",
        {"messages": [user("q"), assistant("", tool_calls=[{"name": "f", "arguments": [1]}])]},
    ),
    ("bad_tool_call", "messages", {"messages": [user("q"), assistant("", tool_calls=[{"name": " "}])]}),
    ("bad_tool_call", "sharegpt", {"conversations": [turn("human", "q"), turn("function_call", "[]")]}),
    (
        "bad_tool_call",
        "sharegpt",
        {"conversations": [turn("human", "q"), turn("function_call", '{"name": "f", "arguments": {"x": NaN}}')]},
    ),
    (
        "bad_tool_call",
        "sharegpt",
        {"conversations": [turn("human", "q"), turn("gpt", "<tool_call>{</tool_call>"), turn("tool", "1")]},
    ),
    (
        "bad_tool_call",
        "sharegpt",
        {
            "conversations": [
                turn("human", "q"),
                turn("gpt", f"<tool_call>{_CALL}</tool_call> and <tool_call>{_CALL}</tool_call>"),
                turn("tool", "1"),
            ]
        },
    ),
    ("bad_tools", "messages", {"messages": [user("q"), assistant("a")], "tools": [{"type": "function"}]}),
    ("bad_tools", "messages", {"messages": [user("q"), assistant("a")], "tools": {"name": "f"}}),
    ("bad_tools", "messages", {"messages": [user("q"), assistant("a")], "tools": [{"name": "f", "n": float("inf")}]}),
    ("bad_tools", "sharegpt", {"conversations": [turn("human", "q"), turn("gpt", "a")], "tools": "[{"}),
    ("bad_tools", "sharegpt", {"conversations": [turn("human", "q"), turn("gpt", "a")], "tools": '{"name": "f"}'}),
    ("bad_tools", "messages", {"messages": [user("q"), assistant("a")], "tools": ["f"]}),
    ("bad_tools", "messages", {"messages": [user("q"), assistant("a")], "tools": {"name": ["f", "g"], "x": []}}),
    ("bad_tool_call", "tool_calls", {"query": "q", "answers": '[{"name": "f", "city": "x"}]', "tools": "[]"}),
    ("empty_answer", "tool_calls", {"query": "q", "answers": "[]", "tools": "[]"}),
    (
        "bad_tool_result",
        "messages",
        {"messages": [user("q"), assistant("", tool_calls=[json.loads(_CALL)]), {"role": "tool", "content": {1: b""}}]},
    ),
    (
        "unmatched_result",
        "messages",
        {
            "messages": [
                user("q"),
                assistant("", tool_calls=[json.loads(_CALL) | {"id": "a"}]),
                {"role": "tool", "content": "1", "tool_call_id": "b"},
                assistant("a"),
            ]
        },
    ),
    ("ragged_turns", "messages", {"messages": {"role": ["user", "assistant"], "content": ["q"]}}),
    ("foreign_think", "alpaca", {"instruction": "q", "output": "<|channel|>analysis<|message|>r<|end|>a"}),
    ("stray_think_tag", "alpaca", {"instruction": "q", "output": "The tag </think> ends it."}),
    ("mode_disagrees", "auto", {"question": "q", "reasoning": "on", "answer": "a"}),
    ("mode_disagrees", "auto", {"question": "q", "reasoning": "off", "answer": "<think>r</think>a"}),
    ("labelled_bad", "auto", {"prompt": "q", "completion": "a", "label": False}),
    ("needs_media", "auto", {"prompt": "<image>\nq", "completion": "a"}),
]


_IDS = [f"{reason}-{name}-{index}" for index, (reason, name, _) in enumerate(REJECTED)]


@pytest.mark.parametrize(("reason", "name", "row"), REJECTED, ids=_IDS)
def test_rejection(reason: str, name: str, row: Row) -> None:
    with pytest.raises(Rejected) as caught:
        converter(name)(row)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(reason)


def test_the_table_above_holds_every_reason() -> None:
    """A reason added to the modules must be added to the table. Two are of functions that have tests of their own."""
    source = "".join(Path(str(m.__file__)).read_text(encoding="utf-8") for m in MODULES)
    written = set(re.findall(r'Rejected\(\s*"(\w+)"', source)) - {"unknown_format", "same_answers"}
    written |= set(re.findall(r'columns_of_lists\([^\n]*"(\w+)", (?:where|name|"tools")\)', source))
    assert {reason for reason, _, _ in REJECTED} == written | {"needs_media", "empty_prompt", "unclosed_think"}


def test_every_rejection_says_what_was_seen() -> None:
    for _, name, row in REJECTED:
        with pytest.raises(Rejected) as caught:
            converter(name)(row)
        check_rejected(caught.value)
        caught.value.detail.encode()


def test_a_long_detail_is_cut_and_can_be_written() -> None:
    detail = Rejected("not_unicode", "\ud800" + "x" * 500).detail
    assert len(detail) == 200
    assert detail.startswith("\\ud800xx")


def test_details_say_where_and_what() -> None:
    with pytest.raises(Rejected, match=r"no 'problem'; .* 'question', 'answer'$"):
        converter("openmathreasoning")({"question": "q", "answer": "a"})
    with pytest.raises(Rejected, match=r"conversations\[1\] is from 'narrator'"):
        converter("sharegpt")({"conversations": [turn("human", "q"), turn("narrator", "a")]})
    with pytest.raises(Rejected, match="message 1: user after user"):
        converter("messages")({"messages": [user("q"), user("q"), assistant("a")]})
    with pytest.raises(Rejected, match=r"no_assistant_turn: nobody answers: system, user"):
        converter("messages")({"messages": [SYSTEM, user("q")]})
    with pytest.raises(Rejected, match=r"empty_answer: message 1 .* but reasoning"):
        converter("alpaca")({"instruction": "q", "output": "<think>r</think>"})
    with pytest.raises(Rejected, match=r"messages\[0\].content .*'image_url' \(part 1\)"):
        parts = [{"type": "text", "text": "q"}, {"type": "image_url"}]
        converter("messages")({"messages": [user(parts), assistant("a")]})
    with pytest.raises(Rejected, match=r"not_text: output is NaN"):
        converter("alpaca")({"instruction": "q", "output": float("nan")})
    with pytest.raises(Rejected, match=r"control_characters: U\+0000 in 'a.x00b'"):
        converter("alpaca")({"instruction": "q", "output": "a\x00b"})
    with pytest.raises(Rejected, match=r"{{name}} in message 1 \(assistant\): 'I am {{name}}.'"):
        converter("alpaca")({"instruction": "q", "output": "I am {{name}}."})


def test_unknown_converter_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'sharegpt'") as caught:
        converter("share_gpt")
    assert all(name in str(caught.value) for name in FORMATS)
    with pytest.raises(UserError) as caught:
        converter("zzzzzz")
    assert "Did you mean" not in str(caught.value)


# --- no row at all makes a converter fail otherwise -----------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_JUNK = _JSON | st.sampled_from(
    [
        "",
        " ",
        "<think>",
        "<think>r</think>a",
        "</think>",
        "[]",
        _CALL,
        "user",
        "assistant",
        "a\x00",
        "\ud800",
        "{{name}}",
    ]
)
_FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
_VALID: dict[str, Row] = {
    "alpaca": {
        "instruction": "q",
        "input": "i",
        "output": "<think>r</think>a",
        "system": "s",
        "history": [["q", "a"], ["q", "a"]],
    },
    "sharegpt": {
        "conversations": [
            turn("system", "s"),
            turn("human", "q"),
            turn("function_call", _CALL),
            turn("observation", "1"),
            turn("gpt", "a"),
        ],
        "tools": [_FUNCTION],
    },
    "openmathreasoning": {"problem": "p", "generated_solution": "<think>r</think>a"},
    "prompt_completion": {
        "prompt": [SYSTEM, user("q")],
        "completion": [assistant("<think>r</think>a")],
        "context": "c",
    },
    "reasoning": {"question": "q", "reasoning": "r", "answer": "a", "system": "s", "history": [["q", "a"]]},
    "preference": {
        "prompt": [user("q")],
        "chosen": [user("q"), assistant("a", reasoning_content="r")],
        "rejected": turn("gpt", "b"),
        "tools": [_FUNCTION],
    },
    "tool_calls": {"query": "q", "answers": [{"name": "f", "arguments": {"x": 1}}], "tools": [_FUNCTION]},
    "messages": {
        "messages": [
            {"role": "system", "content": "s"},
            user("q"),
            assistant("", reasoning_content="r", tool_calls=[{"type": "function", "function": json.loads(_CALL)}]),
            {"role": "tool", "content": "1"},
            assistant("a", reasoning_content="r"),
        ],
        "tools": [{"type": "function", "function": _FUNCTION}],
    },
}


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in nested data."""
    if not isinstance(value, dict | list):
        return []
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    return [(value, key) for key, _ in items] + [spot for _, inner in items for spot in _spots(inner)]


@st.composite
def _damaged_rows(draw: st.DrawFn, names: Sequence[str] = sorted(_VALID)) -> tuple[str, Row]:
    """A good row with up to three values replaced by something else, or taken out."""
    name = draw(st.sampled_from(names))
    row = copy.deepcopy(_VALID[name])
    for _ in range(draw(st.integers(0, 3))):
        if not (spots := _spots(row)):
            break
        container, key = draw(st.sampled_from(spots))
        if draw(st.integers(0, 3)) == 0:
            del container[key]
        else:
            container[key] = draw(_JUNK)
    return name, row


def check(got: Conversation) -> None:
    """What must hold of every conversation that a converter returns."""
    roles = [m["role"] for m in got.messages]
    assert roles[-1] == "assistant"
    assert "system" not in roles[1:]
    assert set(roles) <= {"system", "user", "assistant", "tool"}
    for before, message in pairwise([{"role": "start"}, *got.messages]):
        role, previous = message["role"], "call" if before.get("tool_calls") else before["role"]
        assert role != "user" or previous in ("start", "system", "assistant")
        assert role != "assistant" or previous in ("user", "tool")
        assert role != "tool" or previous in ("call", "tool")
        assert set(message) <= {"role", "content", "reasoning_content", "tool_calls"}
        assert isinstance(message["content"], str)
        assert message["content"].strip() or role == "tool" or message["tool_calls"]
        assert "reasoning_content" not in message or message["reasoning_content"].strip()
        for call in message.get("tool_calls", []):
            assert isinstance(call["function"]["name"], str)
            assert isinstance(call["function"]["arguments"], dict)
    thinking = [("reasoning_content" in m) for m in got.messages]
    assert got.mode == ("thinking" if thinking[-1] else "non_thinking")
    assert all(isinstance(tool["function"]["name"], str) for tool in got.tools)
    json.dumps([got.messages, got.tools], allow_nan=False, ensure_ascii=False).encode()


def check_rejected(rejected: Rejected) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", rejected.reason)
    listed = rejected.reason in ("unknown_format", "missing_column", "not_a_turn")  # all columns, in full
    assert 0 < len(rejected.detail) <= (formats.LONG_DETAIL if listed else 200)


@settings(max_examples=examples(80))
@given(damaged=_damaged_rows(), forced=st.sampled_from(["", "auto"] * 5 + sorted(FORMATS)))
def test_any_json_row_converts_or_is_rejected(
    embedded_tokenizer: PreTrainedTokenizerBase, damaged: tuple[str, Row], forced: str
) -> None:
    name, row = damaged
    try:
        got = converter(forced or name)(row)
    except Rejected as rejected:
        event(f"{name}: {rejected.reason}")
        check_rejected(rejected)
        return
    event(f"{name}: converted")
    check(got)
    assert ChatFormat(embedded_tokenizer).example(got)  # what converts can be rendered


@settings(max_examples=examples(80))
@given(damaged=_damaged_rows(["preference", "preference", "messages"]))
def test_any_json_row_is_a_preference_pair_or_rejected(
    embedded_tokenizer: PreTrainedTokenizerBase, damaged: tuple[str, Row]
) -> None:
    try:
        pair = preference_pair(damaged[1])
    except Rejected as rejected:
        check_rejected(rejected)
        return
    event("made")
    assert isinstance(pair, Preference)
    assert pair.chosen != pair.rejected
    for answer in (pair.chosen, pair.rejected):
        mode = "thinking" if "reasoning_content" in answer else "non_thinking"
        got = Conversation([*pair.prompt, answer], mode, tools=pair.tools, each=True)
        check(got)
        assert ChatFormat(embedded_tokenizer).example(got)


_COLUMNS = sorted({c for layout in formats.LAYOUTS.values() for c in layout.columns} | {"x"})
_TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": _JUNK | st.sampled_from(["user", "assistant", "system", "tool"]),
        "content": _JUNK | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": _JUNK}), max_size=2),
        "from": _JUNK | st.sampled_from(["human", "gpt", "function_call", "observation"]),
        "value": _JUNK,
        "reasoning_content": _JUNK,
        "tool_calls": _JUNK | st.just([json.loads(_CALL)]),
    },
)


@settings(max_examples=examples(80))
@given(
    row=st.dictionaries(st.sampled_from(_COLUMNS), _JUNK | st.lists(_TURN, max_size=4), max_size=7),
    name=st.sampled_from(["auto", "auto", *sorted(FORMATS)]),
)
def test_rows_with_known_columns_and_anything_in_them(row: Row, name: str) -> None:
    for read in (converter(name), preference_pair):
        try:
            got = read(row)
        except Rejected as rejected:
            check_rejected(rejected)
            continue
        event(f"{name}: made")
        if isinstance(got, Conversation):
            check(got)


@pytest.mark.parametrize("name", _VALID)
def test_the_undamaged_rows_convert(name: str) -> None:
    assert set(_VALID) == set(FORMATS)
    assert converter(name)(_VALID[name]).messages[-1]["content"] == ("" if name == "tool_calls" else "a")


# --- spellings of the same conversation -----------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["conversations", "conversation"])
@pytest.mark.parametrize("answerer", ["gpt", "assistant", "chatgpt", "bing", "bard", "model", "GPT", "Assistant "])
def test_sharegpt_roles(column: str, answerer: str) -> None:
    row = {column: [turn("System", "s"), turn("Human", "q"), turn(answerer, "a"), turn("USER", "q"), turn("gpt", "a")]}
    got = converter("sharegpt")(row)
    assert [m["role"] for m in got.messages] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("name", ["observation", "tool", "function_response", "function", "tool_response"])
def test_names_of_a_tool_turn(name: str) -> None:
    row = {"conversations": [turn("human", "q"), turn("function_call", _CALL), turn(name, "1"), turn("gpt", "a")]}
    assert converter("sharegpt")(row).messages[2] == {"role": "tool", "content": "1"}


def test_role_and_content_in_conversations_and_nulls_from_a_joint_schema() -> None:
    turns = [{"from": None, "value": None, **user("q")}, {"role": None, "content": None, **turn("gpt", "a")}]
    for name, column in (("sharegpt", "conversations"), ("messages", "messages")):
        assert converter(name)({column: turns, "tools": None}).messages == [user("q"), assistant("a")]


def test_developer_is_system_and_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    row = {"messages": [{"role": "developer", "content": "s"}, user(parts), assistant([{"type": "text", "text": "a"}])]}
    assert converter("messages")(row).messages == [SYSTEM, user("one two"), assistant("a")]


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_system_column(column: str) -> None:
    turns = [turn("human", "q"), turn("gpt", "a")]
    want = [SYSTEM, user("q"), assistant("a")]
    assert converter("sharegpt")({"conversations": turns, column: "s"}).messages == want
    assert converter("sharegpt")({"conversations": [turn("system", "s"), *turns], column: "s"}).messages == want
    for blank in (None, "", " ", float("nan")):
        assert converter("sharegpt")({"conversations": turns, column: blank}).messages == want[1:]
    assert converter("sharegpt")({"conversations": [turn("system", " "), *turns]}).messages == want[1:]


def test_nan_in_optional_columns_is_no_column() -> None:
    nan = float("nan")
    row = {"instruction": "q", "input": nan, "output": "a", "system": nan, "history": nan, "tools": nan}
    assert converter("alpaca")(row).messages == [user("q"), assistant("a")]
    row = {"messages": [user("q"), assistant("a", reasoning_content=nan, tool_calls=nan)]}
    assert converter("messages")(row).messages == [user("q"), assistant("a")]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_names_of_reasoning_in_a_message(key: str) -> None:
    got = converter("messages")({"messages": [user("q"), assistant("a", **{key: "<think>\nr\n</think>"})]})
    assert got.messages[-1] == assistant("a", reasoning_content="r")


def test_reasoning_that_is_beside_and_in_the_text_is_kept_once() -> None:
    row = {"messages": [user("q"), assistant("<think>\nr\n</think>\n\na", reasoning_content="r")]}
    assert converter("messages")(row).messages[-1] == assistant("a", reasoning_content="r")


def test_think_tags_of_a_user_stay_text() -> None:
    for text in ("What does <think> mean?", "</think>", "<think>a</think>b<think>"):
        got = converter("sharegpt")({"conversations": [turn("human", text), turn("gpt", "a")]})
        assert got.messages[0] == user(text)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        *(("prompt", a) for a in ("completion", "response", "output", "answer")),
        *((p, "response") for p in ("instruction", "query", "question")),
        *(("question", "answer"), ("input", "output"), ("problem", "solution")),
    ],
)
def test_prompt_completion_names(prompt: str, answer: str) -> None:
    assert converter("prompt_completion")({prompt: "q", answer: "a"}).messages == [user("q"), assistant("a")]


def test_prompt_completion_of_trl_and_dolly() -> None:
    row = {"prompt": [SYSTEM, user("q")], "completion": [assistant("<think>r</think>a")]}
    got = converter("prompt_completion")(row)
    assert (got.messages, got.mode) == ([SYSTEM, user("q"), assistant("a", reasoning_content="r")], "thinking")
    row = {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada", "category": "closed_qa"}
    assert converter("prompt_completion")(row).messages == [user("Who?\nAda wrote it."), assistant("Ada")]


def test_a_worked_solution_goes_before_a_bare_answer() -> None:
    row = {"problem": "1+1", "answer": "2", "solution": "One and one is 2."}
    assert converter("prompt_completion")(row).messages[-1] == assistant("One and one is 2.")


@pytest.mark.parametrize(
    "column", ["reasoning", "reasoning_content", "think", "thinking", "cot", "chain_of_thought", "thought"]
)
def test_reasoning_column(column: str) -> None:
    got = converter("reasoning")({"instruction": "q", "input": "i", column: " r\n", "output": "a"})
    assert got.messages == [user("q\ni"), assistant("a", reasoning_content="r")]
    assert (got.mode, got.notes) == ("thinking", [])
    forced = converter("alpaca")({"instruction": "q", column: "r", "output": "a"})
    assert forced.mode == "non_thinking"
    assert forced.notes == [f"reasoning_ignored: column {column!r}; format: reasoning would read it"]


def test_each_answer_keeps_its_own_mode(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    think, direct, ask = {"from": "gpt", "value": "<think>r</think>a"}, turn("gpt", "a"), turn("human", "q")
    call = turn("function_call", f"<think>which tool</think>{_CALL}")
    form = ChatFormat(embedded_tokenizer)
    for said, modes in (
        ([ask, think, ask, think, ask, direct], ["thinking", "thinking", "non_thinking"]),
        ([ask, direct, ask, think], ["non_thinking", "thinking"]),
        ([ask, call, turn("observation", "1"), direct], ["thinking", "non_thinking"]),
    ):
        got = converter("sharegpt")({"conversations": said})
        assert got.notes == []
        rows = form.example(got)
        assert [row.mode for row in rows] == modes
        for row in rows:
            learnt = [token for token, label in zip(row.input_ids, row.labels, strict=True) if label != -100]
            assert embedded_tokenizer.decode(learnt).startswith("<think>\n") == (row.mode == "thinking")


# --- tool calls -----------------------------------------------------------------------------------------------------

_PARALLEL = [{"type": "function", "function": {"name": n, "arguments": {"x": 1}}} for n in ("f", "g")]


@pytest.mark.parametrize(
    "calls",
    [
        [turn("function_call", json.dumps([c["function"] for c in _PARALLEL]))],
        [turn("function_call", json.dumps(c["function"])) for c in _PARALLEL],
        [{"from": "function_call", "value": [c["function"] for c in _PARALLEL]}],
        [turn("gpt", "".join(f"<tool_call>\n{json.dumps(c['function'])}\n</tool_call>\n" for c in _PARALLEL))],
        [assistant(None, tool_calls=_PARALLEL)],
    ],
    ids=["list", "a turn each", "data", "hermes", "openai"],
)
def test_parallel_calls(embedded_tokenizer: PreTrainedTokenizerBase, calls: list[Row]) -> None:
    row = {"conversations": [turn("human", "q"), *calls, turn("tool", "1"), turn("tool", "2"), turn("gpt", "a")]}
    got = converter("sharegpt")(row)
    assert got.messages[1] == assistant("", tool_calls=_PARALLEL)
    assert [m["role"] for m in got.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    text = embedded_tokenizer.apply_chat_template(got.messages, tokenize=False)
    calls_as_qwen_writes_them = "\n".join(
        f'<tool_call>\n{{"name": "{n}", "arguments": {{"x": 1}}}}\n</tool_call>' for n in "fg"
    )
    assert f"<|im_start|>assistant\n{calls_as_qwen_writes_them}<|im_end|>" in text


def test_calls_one_after_the_other() -> None:
    call, seen = turn("function_call", _CALL), turn("observation", "1")
    got = converter("sharegpt")({"conversations": [turn("human", "q"), call, seen, call, seen, turn("gpt", "a")]})
    assert [m["role"] for m in got.messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert converter("sharegpt")({"conversations": [turn("human", "q"), call]}).messages[-1]["tool_calls"]


def test_hermes_rows() -> None:
    row = {
        "conversations": [
            turn("human", "q"),
            turn("gpt", f"I will look.\n<tool_call>\n{_CALL}\n</tool_call>"),
            turn("tool", '<tool_response>\n{"t": 3}\n</tool_response>\n<tool_response>\nmore\n</tool_response>\n'),
            turn("gpt", "a"),
        ]
    }
    got = converter("sharegpt")(row)
    assert got.messages[1:4] == [
        assistant("I will look.", tool_calls=[{"type": "function", "function": json.loads(_CALL)}]),
        {"role": "tool", "content": '{"t": 3}'},
        {"role": "tool", "content": "more"},
    ]
    # a row with tools may end on the call; without tools and without an answer it is somebody writing about tags
    row = {"conversations": row["conversations"][:2]}
    assert "tool_calls" not in converter("sharegpt")(row).messages[-1]
    assert "tool_calls" in converter("sharegpt")(row | {"tools": [{"name": "f"}]}).messages[-1]


def test_older_openai_function_call() -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}
    row = {"messages": [user("q"), call, {"role": "function", "name": "f", "content": "1"}, assistant("a")]}
    got = converter("messages")(row | {"functions": [{"name": "f"}]})
    assert got.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert got.tools == [{"type": "function", "function": {"name": "f"}}]


def _deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"x": [value]}
    return value


def test_depth_is_no_danger(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    deep, text = _deep(5000), '{"x": [' * 5000 + "]}" * 5000
    ask = turn("human", "q")
    call = f'{{"name": "f", "arguments": {text}}}'
    good = {"conversations": [ask, turn("gpt", "a")]}
    for name, row, reason in (
        ("messages", {"messages": [user("q"), assistant("", tool_calls=[{"name": "f", "arguments": deep}])]}, "call"),
        ("messages", {"messages": [user("q"), assistant("", tool_calls=[{"name": "f", "arguments": text}])]}, "call"),
        ("sharegpt", {"conversations": [ask, turn("function_call", call)]}, "call"),
        ("sharegpt", good | {"tools": [{"name": "f", "parameters": deep}]}, "s"),
        ("sharegpt", good | {"tools": f'[{{"name": "f", "parameters": {text}}}]'}, "s"),
        ("sharegpt", {"conversations": [{"from": deep, "value": "q"}]}, "role"),
        ("sharegpt", {"conversations": [ask, {"from": "gpt", "value": [deep]}]}, "text"),
        ("auto", {"conversations": deep}, "conversation"),
    ):
        with pytest.raises(Rejected, match=rf"^(bad_tool_?|unknown_|not_|empty_){reason}:"):
            converter(name)(row)
    calls = [{"name": "f", "arguments": _deep(20)}]
    got = converter("messages")({"messages": [user("q"), assistant("", tool_calls=calls)]})
    assert ChatFormat(embedded_tokenizer).example(got)


# --- placeholders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "I am {{name}}.",
        "我是 {{name}}，由 {{author}} 开发的人工智能助手。",
        "我是{{姓名}}",
        "Dear {{ first name }},\nthank you.",
        "*{{user}}* smiles at {{char}}.",
        "It costs $5, {{customer}}, not $6.",
        "```\ncode {{in_here}}\n```\nbut I am {{name}}",
        "Written by our company ({{company-name}}).",
        "Name: {{name}}",
    ],
)
def test_placeholder(text: str) -> None:
    assert unfilled_placeholder(text) in re.findall(r"\{\{.*?\}\}", text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{name} and { {name} } and {{}}",
        "x^{{2}} + y_{{max}} and x^{{ab}}",
        r"\frac{{total}}{{count}} of \text{{words}} and $$ {{abc}} $$ and \( {{abc}} \)",
        r"the set $\{ {{ab}} \}$, $ {{ab}}^2 $ and {{n}} of them",
        "```yaml\nrun: echo {{ name }}\n```",
        "```\nnever closed {{ name }}",
        "Write `{{ name }}` there.",
        "run: echo ${{ secrets.TOKEN }} and ${{ name }}",
        "{% for item in items %}{{ item }}{% endfor %}",
        "Hello {{ name | upper }} and {{ title }}",
        "Hello {{ user.name }}",
        "{{#each people}} {{name}} {{/each}}",
        "<p>Hello {{ name }}</p>",
        "  <Chart data={{ rows }} />",
        'print(f"{{name}} stays")',
        "    return {{name}}",
        "fmt.format({{name}})",
        'const text = "{{name}}";',
        '{\n"name": "{{name}}",\n}',
        "style={{ fontWeight: 'bold', fontSize: '1.1em' }}",
        "within curly braces ( '{{ ... }}' )",
        "a set of sets {{1, 2}, {3}}",
        "{{ . }}",
    ],
)
def test_no_placeholder(text: str) -> None:
    assert unfilled_placeholder(text) is None


def test_a_talk_about_templates_may_have_placeholders() -> None:
    row = {"instruction": "Write a letter template with placeholders.", "output": "Dear {{name}},"}
    assert converter("alpaca")(row).messages[-1]["content"] == "Dear {{name}},"
    row = {"instruction": "写一个邮件模板", "output": "你好 {{name}}"}
    assert converter("alpaca")(row).messages
    # a tool's reply is data that nobody writes
    row = {
        "conversations": [turn("human", "q"), turn("function_call", _CALL), turn("tool", "{{name}}"), turn("gpt", "a")]
    }
    assert converter("sharegpt")(row).messages


@pytest.mark.parametrize(
    "text", ["{{" + "." * 100_000, "{{" + r"\(" * 50_000, "{{$" + "^" * 100_000, "{{" + "a " * 50_000, "{{a" * 50_000]
)
def test_hostile_text_is_searched_in_linear_time(text: str) -> None:
    assert unfilled_placeholder(text) is None  # would take minutes if it were quadratic


# --- preference pairs -----------------------------------------------------------------------------------------------

_PAIR = Preference([user("q")], assistant("a"), assistant("b"))


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [turn("human", "q")], "chosen": turn("gpt", "a"), "rejected": turn("gpt", "b")},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"question": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        {"messages": [user("q")], "chosen": assistant("a"), "rejected": "b"},
    ],
    ids=["llama-factory", "text", "question", "trl", "trl implicit", "ultrafeedback", "messages"],
)
def test_preference_layouts(row: Row) -> None:
    assert preference_pair(row) == _PAIR
    got = converter("auto")(row)
    assert (got.messages, got.format) == ([user("q"), assistant("a")], "preference")


def test_preference_keeps_system_history_and_reasoning() -> None:
    row = {
        "system": "s",
        "conversations": [turn("human", "q"), turn("gpt", "a"), turn("human", "q")],
        "chosen": turn("gpt", "<think>r</think>a"),
        "rejected": turn("gpt", "b"),
        "tools": [{"name": "f"}],
    }
    got = preference_pair(row)
    assert got.prompt == [SYSTEM, user("q"), assistant("a"), user("q")]
    assert (got.chosen, got.rejected) == (assistant("a", reasoning_content="r"), assistant("b"))
    assert got.tools == [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("reason", "row"),
    [
        ("same_answers: chosen and rejected", {"prompt": "q", "chosen": "a", "rejected": " a\n"}),
        ("prompts_differ: chosen", {"chosen": [user("q"), assistant("a")], "rejected": [user("x"), assistant("b")]}),
        ("not_text: rejected: rejected is NoneType", {"prompt": "q", "chosen": "a", "rejected": None}),
        ("missing_column: rejected", {"prompt": "q", "chosen": "a"}),
        ("empty_answer: chosen", {"prompt": "q", "chosen": "", "rejected": "b"}),
        ("unclosed_think: rejected", {"prompt": "q", "chosen": "a", "rejected": "<think>b"}),
        ("no_assistant_turn: chosen", {"prompt": "q", "chosen": turn("human", "a"), "rejected": "b"}),
        ("roles_out_of_order: chosen", {"messages": [user("q"), assistant("a")], "chosen": "a", "rejected": "b"}),
    ],
)
def test_preference_rejections(reason: str, row: Row) -> None:
    with pytest.raises(Rejected, match=f"^{reason}"):
        preference_pair(row)


# --- columns under other names --------------------------------------------------------------------------------------


def test_columns_are_renamed() -> None:
    row = {"question": "q", "reply": "a", "input": "not the input", "output": "not the answer"}
    columns = {"instruction": "question", "output": "reply", "input": "context"}
    before = dict(row)
    assert converter("alpaca", columns)(row).messages == [user("q"), assistant("a")]
    assert row == before
    swapped = converter("prompt_completion", {"input": "output", "output": "input"})({"output": "q", "input": "a"})
    assert swapped.messages == [user("q"), assistant("a")]
    got = converter("auto", {"instruction": "question", "output": "reply"})({"question": "q", "reply": "a"})
    assert (got.format, got.messages) == ("alpaca", [user("q"), assistant("a")])


def test_a_column_that_no_format_reads_is_refused() -> None:
    with pytest.raises(UserError, match="alpaca .* 'instructions'. Did you mean 'instruction'"):
        converter("alpaca", {"instructions": "question"})
    with pytest.raises(UserError, match="format auto reads no column 'colour'"):
        converter("auto", {"colour": "x"})


def test_a_conversation_says_how_it_was_read() -> None:
    row = {"instruction": "q", "output": "a"}
    assert (converter("auto")(row).format, converter("alpaca")(row).format) == ("alpaca", "alpaca")
    assert converter("auto")(row).because == "has 'instruction' and 'output'"
    assert converter("alpaca")(row).because == "the recipe says so"
    assert converter("auto")(row) == converter("alpaca")(row)  # which is no part of what it is


# --- JSON text in columns -------------------------------------------------------------------------------------------

_TURNS = [turn("human", 'say "hi"\nplease'), turn("gpt", "hi, 你好")]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": _TURNS, "tools": [{"name": "f"}], "system": "s"},
        {"messages": [user("q"), assistant("a")]},
        {"instruction": "q", "output": "a", "history": [["x", "y"]]},
        {"prompt": [user("q")], "completion": [assistant("a")]},
        {"prompt": [user("q")], "completion": "a"},
        {"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"conversations": _TURNS[:1], "chosen": turn("gpt", "a"), "rejected": turn("gpt", "b")},
    ],
)
def test_json_text_reads_as_the_data_it_holds(row: Row) -> None:
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
    assert converter("auto")(text) == converter("auto")(row)
    renamed = {f"my {name}": value for name, value in text.items()}
    assert converter("auto", {name: f"my {name}" for name in row})(renamed) == converter("auto")(row)


@pytest.mark.parametrize("answer", ['{"name": "x"}', '[{"name": "x"}]', "[[1]]", '[{"role": "user", "content": "q"}]'])
def test_an_answer_that_is_json_stays_text(answer: str) -> None:
    for row in ({"instruction": "q", "output": answer}, {"prompt": "q", "chosen": answer, "rejected": "b"}):
        assert converter("auto")(row).messages == [user("q"), assistant(answer)]
    assert converter("auto")({"prompt": answer[:-1], "completion": "a"}).messages[0] == user(answer[:-1])


@pytest.mark.parametrize("nothing", ["", " ", "[]", None, []])
def test_an_empty_history_is_none(nothing: Any) -> None:
    got = converter("auto")({"instruction": "q", "input": "", "output": "a", "history": nothing, "tools": ""})
    assert got.messages == [user("q"), assistant("a")]


def test_turns_as_python_prints_them_are_named() -> None:
    with pytest.raises(Rejected, match=r"^not_json: conversations .*json.dumps"):
        converter("sharegpt")({"conversations": str(_TURNS)})


# --- weights, reasoning beside turns, equal sides -------------------------------------------------------------------


def test_an_answer_of_weight_0_keeps_it_and_one_of_weight_1_does_not() -> None:
    rows = [user("q"), assistant("bad", weight=0), user("q2"), assistant("good", weight=1.0)]
    got = converter("messages")({"messages": rows})
    assert got.messages == [user("q"), assistant("bad", weight=0), user("q2"), assistant("good")]
    assert got.notes == ["weight_zero: 1 of 2 answers"]


def test_a_conversation_ends_on_its_last_answer_with_weight() -> None:
    last = assistant("<think>r</think>b", weight=0)
    got = converter("messages")({"messages": [user("q"), assistant("a"), user("q2"), last]})
    assert (got.messages, got.mode) == ([user("q"), assistant("a")], "non_thinking")
    assert got.notes == ["weight_zero: 1 of 2 answers"]


def test_a_call_of_weight_0() -> None:
    call = turn("function_call", _CALL) | {"weight": 0}
    said = [turn("human", "q"), call, call, turn("observation", "1"), turn("gpt", "a")]
    messages = converter("sharegpt")({"conversations": said}).messages
    assert [(m["role"], m.get("weight")) for m in messages][1:] == [
        ("assistant", 0),
        ("tool", None),
        ("assistant", None),
    ]
    assert len(messages[1]["tool_calls"]) == 2


@pytest.mark.parametrize(("value", "noted"), [("because", True), ("", False), (None, False)])
def test_a_reasoning_column_beside_several_answers_is_noted(value: Any, noted: bool) -> None:
    for row in (
        {"messages": [user("q"), assistant("a")] * 2},
        {"conversations": _TURNS * 2},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ):
        notes = converter("auto")({**row, "reasoning": value}).notes
        assert [note.partition(";")[0] for note in notes] == ["reasoning_ignored: column 'reasoning'"] * noted


def test_equal_sides_are_noted_where_only_one_is_used() -> None:
    got = converter("auto")({"prompt": "q", "chosen": "a", "rejected": "a"})
    assert got.messages[-1] == assistant("a")
    assert [note.partition(":")[0] for note in got.notes] == ["same_answers"]
