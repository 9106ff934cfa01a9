"""Rows become conversations or are rejected with a reason; nothing else ever happens."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pipeline import conversations
from pipeline.chat_format import ChatFormat
from pipeline.conversations import CONVERTERS, Conversation, Rejected, converter, split_reasoning
from pipeline.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def turn(who: str, text: str) -> Row:
    return {"from": who, "value": text}


# --- split_reasoning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("just an answer", "", "just an answer"),
        ("  padded\n", "", "padded"),
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
    assert split_reasoning(text) == (reasoning, answer)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>cut by the token limit", "unclosed_think"),
        ("<think>a</think>b<think>c", "unclosed_think"),
        ("answer, then <think>", "unclosed_think"),
        ("<think>a</think>b<think>c</think>d", "several_think_blocks"),
        ("first <think>a</think>b", "several_think_blocks"),
        ("a</think>b</think>c", "several_think_blocks"),
    ],
)
def test_split_reasoning_rejects(text: str, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        split_reasoning(text)
    assert caught.value.reason == reason
    assert caught.value.detail in text  # says what was seen


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
        ({"function": {"name": "f"}}, {"function": {"name": "f", "arguments": {}}}),
        ({"function": {"name": "f", "arguments": None}}, {"function": {"name": "f", "arguments": {}}}),
        (
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
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
    ("not_text", "messages", {"messages": [user("q"), assistant("a", reasoning_content=["r"])]}),
    ("not_text", "messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}),
    ("bad_history", "alpaca", {"instruction": "q", "output": "a", "history": [["only a question"]]}),
    ("bad_history", "alpaca", {"instruction": "q", "output": "a", "history": ["qa"]}),
    ("bad_history", "alpaca", {"instruction": "q", "output": "a", "history": 7}),
    ("empty_prompt", "alpaca", {"instruction": " \n", "input": " ", "output": "a"}),
    ("empty_prompt", "openmathreasoning", {"problem": " ", "generated_solution": "<think>r</think>a"}),
    ("empty_answer", "alpaca", {"instruction": "q", "output": " \n"}),
    ("empty_answer", "sharegpt", {"conversations": [turn("human", "q"), turn("gpt", "")]}),
    ("empty_answer", "openmathreasoning", {"problem": "p", "generated_solution": "<think>r</think>\n"}),
    ("empty_answer", "messages", {"messages": [user("q"), {"role": "assistant", "content": None}]}),
    ("unclosed_think", "alpaca", {"instruction": "q", "output": "<think>r"}),
    ("unclosed_think", "sharegpt", {"conversations": [turn("human", "q"), turn("gpt", "<think>r")]}),
    ("unclosed_think", "openmathreasoning", {"problem": "p", "generated_solution": "<think>r"}),
    ("unclosed_think", "messages", {"messages": [user("q"), assistant("<think>r")]}),
    ("several_think_blocks", "messages", {"messages": [user("q"), assistant("<think>r</think>a<think>r</think>a")]}),
    ("empty_reasoning", "openmathreasoning", {"problem": "p", "generated_solution": "no chain at all"}),
    ("empty_reasoning", "openmathreasoning", {"problem": "p", "generated_solution": "<think>\n\n</think>\n\na"}),
    ("empty_conversation", "sharegpt", {"conversations": []}),
    ("empty_conversation", "sharegpt", {"conversations": "hello"}),
    ("empty_conversation", "messages", {"messages": []}),
    ("empty_conversation", "messages", {"messages": None}),
    ("not_a_turn", "sharegpt", {"conversations": ["hello"]}),
    ("not_a_turn", "messages", {"messages": ["hello"]}),
    ("not_a_turn", "messages", {"messages": [{"content": "hello"}]}),
    ("unknown_role", "sharegpt", {"conversations": [turn("human", "q"), turn("bing", "a")]}),
    ("unknown_role", "sharegpt", {"conversations": [{"value": "q"}]}),
    ("unknown_role", "messages", {"messages": [{"role": "robot", "content": "q"}, user("q"), assistant("a")]}),
    ("unknown_role", "messages", {"messages": [{"role": ["user"], "content": "q"}, assistant("a")]}),
    ("no_assistant_turn", "messages", {"messages": [user("q")]}),
    ("no_assistant_turn", "sharegpt", {"conversations": [turn("human", "q")]}),
    ("does_not_end_on_assistant", "messages", {"messages": [user("q"), assistant("a"), user("q")]}),
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
    ("bad_tools", "sharegpt", {"conversations": [turn("human", "q"), turn("gpt", "a")], "tools": "[{"}),
    ("bad_tools", "sharegpt", {"conversations": [turn("human", "q"), turn("gpt", "a")], "tools": '{"name": "f"}'}),
    ("bad_tools", "messages", {"messages": [user("q"), assistant("a")], "tools": ["f"]}),
]


_IDS = [f"{reason}-{name}-{index}" for index, (reason, name, _) in enumerate(REJECTED)]


@pytest.mark.parametrize(("reason", "name", "row"), REJECTED, ids=_IDS)
def test_rejection(reason: str, name: str, row: Row) -> None:
    with pytest.raises(Rejected) as caught:
        converter(name)(row)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(reason)


def test_the_table_above_holds_every_reason() -> None:
    """A reason added to the module must be added to the table."""
    source = Path(conversations.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'Rejected\(\s*"(\w+)"', source)) == {reason for reason, _, _ in REJECTED}


def test_details_say_where_and_what() -> None:
    with pytest.raises(Rejected, match=r"^missing_column: no 'problem'; the row has 'question', 'answer'$"):
        converter("openmathreasoning")({"question": "q", "answer": "a"})
    with pytest.raises(Rejected, match=r"conversations\[1\] is from 'bing'"):
        converter("sharegpt")({"conversations": [turn("human", "q"), turn("bing", "a")]})
    with pytest.raises(Rejected, match="message 1: user after user"):
        converter("messages")({"messages": [user("q"), user("q"), assistant("a")]})


def test_unknown_converter_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'sharegpt'") as caught:
        converter("share_gpt")
    assert all(name in str(caught.value) for name in CONVERTERS)
    with pytest.raises(UserError) as caught:
        converter("zzzzzz")
    assert "Did you mean" not in str(caught.value)


# --- no row at all makes a converter fail otherwise -----------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_JUNK = _JSON | st.sampled_from(["", " ", "<think>", "<think>r</think>a", "</think>", "[]", _CALL, "user", "assistant"])
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
def _damaged_rows(draw: st.DrawFn) -> tuple[str, Row]:
    """A good row with up to three values replaced by something else, or taken out."""
    name = draw(st.sampled_from(sorted(_VALID)))
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


@settings(max_examples=300, deadline=None, derandomize=True)
@given(damaged=_damaged_rows())
def test_any_json_row_converts_or_is_rejected(
    embedded_tokenizer: PreTrainedTokenizerBase, damaged: tuple[str, Row]
) -> None:
    name, row = damaged
    try:
        got = converter(name)(row)
    except Rejected as rejected:
        event(f"{name}: {rejected.reason}")
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", rejected.reason)
        return
    event(f"{name}: converted")
    assert got.messages[-1]["role"] == "assistant"
    assert got.mode == ("thinking" if got.messages[-1].get("reasoning_content") else "non_thinking")
    assert all(isinstance(m["content"], str) for m in got.messages)
    assert all(isinstance(m.get("reasoning_content", ""), str) for m in got.messages)
    assert ChatFormat(embedded_tokenizer).example(got)  # what converts can be rendered


@pytest.mark.parametrize("name", _VALID)
def test_the_undamaged_rows_convert(name: str) -> None:
    assert set(_VALID) == set(CONVERTERS)
    assert converter(name)(_VALID[name]).messages[-1]["content"] == "a"


# --- rows nobody here wrote -----------------------------------------------------------------------------------------


def load(folder: Path, name: str) -> list[Row]:
    path = folder / name
    if not path.is_file():
        pytest.skip(f"no {name} in the real data")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "layout", "rows", "rejected"),
    [
        ("sft/alpaca_en_demo.json", "alpaca", 999, {}),
        ("sft/alpaca_zh_demo.json", "alpaca", 1000, {}),
        ("sft/identity.json", "alpaca", 91, {}),
        ("reason/gsm8k_gemini_cot_level2.json", "alpaca", 7433, {}),
        ("tools/glaive_toolcall_en_demo.json", "sharegpt", 300, {}),
        # two rows whose call stands in the text of an answer, so that their observation answers no call
        ("tools/glaive_toolcall_zh_demo.json", "sharegpt", 300, {"roles_out_of_order": 2}),
    ],
)
def test_real_rows(shared_data: Path, name: str, layout: str, rows: int, rejected: dict[str, int]) -> None:
    kept, reasons = 0, Counter[str]()
    for row in load(shared_data, name):
        try:
            got = converter(layout)(row)
        except Rejected as reason:
            reasons[reason.reason] += 1
            continue
        kept += 1
        assert got.mode == "non_thinking"
        text = "".join(m["content"] for m in got.messages)
        said = [row["instruction"], row.get("input", ""), row["output"]] if layout == "alpaca" else []
        said += [t["value"] for t in row.get("conversations", []) if t["from"] != "function_call"]
        assert said
        assert all(part.strip() in text for part in said)  # nothing of the row is lost
    assert kept + sum(reasons.values()) == rows
    assert reasons == rejected


def test_real_tool_calls_are_kept(shared_data: Path) -> None:
    calls = 0
    for row in load(shared_data, "tools/glaive_toolcall_en_demo.json"):
        try:
            got = converter("sharegpt")(row)
        except Rejected:
            continue
        assert [t["function"] for t in got.tools] == json.loads(row["tools"] or "[]")
        wanted = [json.loads(t["value"]) for t in row["conversations"] if t["from"] == "function_call"]
        made = [m["tool_calls"][0]["function"] for m in got.messages if m.get("tool_calls")]
        assert made == wanted
        calls += len(made)
    assert calls > 100
