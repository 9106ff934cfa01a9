"""Every row means what it says: each row is learnt in the mode that it shows, in whatever shape it is written.

The kinds first, with rows of this project's own; then the small public cases where they are at hand; then a property: any row,
built in every shape, is learnt as it stands or is left out with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from examples import examples
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Rejected, converter
from pipeline.data.formats import REASONING, REASONING_FIELDS
from pipeline.data.rows.reasoning import naked_tag, split
from pipeline.data.switches import check_switches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
CASES = Path(__file__).parents[2] / "../shared/cases/rows.jsonl"


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def learnt(tokenizer: PreTrainedTokenizerBase, row: Row) -> list[tuple[str, str]]:
    """(mode, what carries loss) of each example of a row."""
    result = []
    for example in ChatFormat(tokenizer).example(converter("auto")(row)):
        ids = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label != -100]
        result.append((example.mode, str(tokenizer.decode(ids)).removesuffix("<|im_end|>")))
    return result


def reason_of(row: Row, **options: Any) -> str:
    with pytest.raises(Rejected) as caught:
        converter("auto", **options)(row)
    return caught.value.reason


# --- reasoning ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*REASONING, "Complex_CoT", "thinkingContent", "Reasoning-Trace"])
def test_columns_of_reasoning(name: str) -> None:
    got = converter("auto")({"question": "How many legs have 3 cats?", name: "Three times four.", "answer": "12"})
    assert got.messages[-1] == assistant("12", reasoning_content="Three times four.")
    assert (got.mode, got.format) == ("thinking", "reasoning")


@pytest.mark.parametrize("name", [n for n in REASONING_FIELDS if n not in ("reasoning_details", "thinking_blocks")])
def test_fields_of_reasoning(name: str) -> None:
    for key, who, text in (("messages", "role", "content"), ("conversations", "from", "value")):
        turns = [{who: "user", text: "q"}, {who: "assistant", text: "a", name: "because"}]
        assert converter("auto")({key: turns}).messages[-1] == assistant("a", reasoning_content="because")


@pytest.mark.parametrize(
    "turn",
    [
        assistant("a", reasoning_details=[{"type": "reasoning.text", "text": "because"}]),
        assistant("a", thinking_blocks=[{"type": "thinking", "thinking": "because", "signature": "x"}]),
        assistant([{"type": "thinking", "thinking": "because"}, {"type": "text", "text": "a"}]),
        assistant(
            [{"type": "thinking", "thinking": [{"type": "text", "text": "because"}]}, {"type": "text", "text": "a"}]
        ),
    ],
)
def test_reasoning_in_parts(turn: Row) -> None:
    got = converter("messages")({"messages": [user("q"), turn]})
    assert got.messages[-1] == assistant("a", reasoning_content="because")


def test_reasoning_as_a_turn_of_its_own() -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "thinking", "value": "because"}, {"from": "gpt", "value": "a"}]
    assert converter("auto")({"conversations": turns}).messages[-1] == assistant("a", reasoning_content="because")
    assert reason_of({"conversations": turns[:2]}) == "empty_answer"
    assert reason_of({"conversations": [turns[1], *turns]}) == "roles_out_of_order"


def test_the_answer_of_the_same_maker() -> None:
    row = {"problem": "q", "solution": "short", "deepseek_reasoning": "because", "deepseek_solution": "long"}
    assert converter("auto")(row).messages[-1] == assistant("long", reasoning_content="because")
    row = {"question": "q", "solution": "gold", "thinking_trajectories": ["because"], "attempt": "a", "cot": None}
    assert converter("auto")(row).messages[-1] == assistant("a", reasoning_content="because")
    assert converter("auto")(row).unread == ("solution",)


@pytest.mark.parametrize("name", ["reasoning", "thinking", "enable_thinking", "mode"])
@pytest.mark.parametrize(("off", "on"), [("off", "on"), (False, True), ("no", "yes"), ("non_thinking", "thinking")])
def test_flags(name: str, off: Any, on: Any) -> None:
    if name == "mode" and "think" not in str(off):
        return  # a column of that name may say anything
    plain, thought = (
        {"input": [user("5 + 7?")], "output": text} for text in ("12", "<think>\nFive, seven.\n</think>\n12")
    )
    assert converter("auto")(plain | {name: off}).mode == "non_thinking"
    got = converter("auto")(thought | {name: on})
    assert got.messages[-1] == assistant("12", reasoning_content="Five, seven.")
    assert reason_of(plain | {name: on}) == reason_of(thought | {name: off}) == "mode_disagrees"
    mended = converter("auto", repair=True)(thought | {name: off})
    assert (mended.mode, mended.messages[-1]) == ("non_thinking", assistant("12"))
    assert mended.notes[-1].startswith("mode_repaired")


TEXT = [
    "It writes `</think>` and then the answer.",
    "The pair is `<think>` and `</think>`, in that order.",
    "```python\ntext.split('</think>')[-1]\n```",
    "~~~\n<think>\nr\n</think>\na\n~~~\nshows both.",
    'Look for "<think>" first, then for "</think>".',
    'It prints "<think>why</think>what" in one line.',
    "Split at '</think>' and take the rest.",
    "它先写“<think>”，再写「</think>」。",
    "1. Do this:\n   ```\n   <thought>x</thought>\n   ```\n2. And that.",
    "Write `[THINK]` for Magistral and `<seed:think>` for Seed.",
    "I think, therefore I am. So <b>think</b>!",
    "if a <thinking_time> b",
]


@pytest.mark.parametrize("text", TEXT)
def test_a_tag_in_code_or_quotes_is_text(embedded_tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert split(text) == ("", text, "", "")
    assert naked_tag(text) == ""
    assert learnt(embedded_tokenizer, {"question": "q", "answer": text}) == [("non_thinking", text)]
    thought = converter("auto")({"question": "q", "answer": f"<think>\nI say:\n{text}\n</think>\n\n{text}"})
    assert thought.messages[-1] == assistant(text, reasoning_content=f"I say:\n{text}")


FOREIGN = {
    "attribute": '<think type="deep">{r}</think>{a}',
    "case": "<Think>{r}</Think>{a}",
    "blank": "<think >{r}</think >\n{a}",
    "thinking": "<thinking>\n{r}\n</thinking>\n\n{a}",
    "thought": "<thought>{r}</thought>{a}",
    "reasoning": "<reasoning>{r}</reasoning>{a}",
    "magistral": "[THINK]{r}[/THINK]{a}",
    "seed": "<seed:think>{r}</seed:think>{a}",
    "kimi": "◁think▷{r}◁/think▷{a}",
    "sky": "<|begin_of_thought|>\n{r}\n<|end_of_thought|>\n\n<|begin_of_solution|>\n{a}\n<|end_of_solution|>",
    "command": "<|START_THINKING|>{r}<|END_THINKING|><|START_RESPONSE|>{a}<|END_RESPONSE|>",
    "grpo": "<start_working_out>{r}<end_working_out><SOLUTION>{a}</SOLUTION>",
    "channels": "<|channel|>analysis<|message|>{r}<|end|><|start|>assistant<|channel|>final<|message|>{a}<|return|>",
    "gemma": "<|channel>thought\n{r}\n<channel|>{a}",
    "granite": "Here is my thought process:\n{r}\nHere is my response:\n{a}",
    "apertus": "<|inner_prefix|>{r}<|inner_suffix|>{a}",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_forms_of_other_makers(embedded_tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    text = FOREIGN[name].format(r="Two and two.", a="Four.")
    assert learnt(embedded_tokenizer, {"question": "2 + 2?", "answer": text}) == [
        ("thinking", "<think>\nTwo and two.\n</think>\n\nFour.")
    ]
    notes = converter("auto")({"question": "2 + 2?", "answer": text}).notes
    assert [note.partition(":")[0] for note in notes] == ["foreign_think"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<thought>cut off", "unclosed_think"),
        ('<think type="x">cut off', "unclosed_think"),
        ("Well: <reasoning>r</reasoning> a", "several_think_blocks"),
        ("<think>r</think>a <thought>more</thought> b", "several_think_blocks"),
        ("<thinking><think>r</think></thinking>a", "nested_think"),
        ("<|channel|>analysis<|message|>r", "foreign_think"),
        ("<|begin_of_thought|>r<|end_of_thought|><|begin_of_solution|>cut", "foreign_think"),
        ('<details type="reasoning" done="true"><summary>Thought</summary>r</details>a', "foreign_think"),
        ("&lt;think&gt;r&lt;/think&gt;a", "foreign_think"),
        ("analysisWe need four.assistantfinalFour.", "foreign_think"),
        ("The tag </think> ends it.", "stray_think_tag"),
    ],
)
def test_forms_that_cannot_be_read_are_rejected(text: str, reason: str) -> None:
    assert reason_of({"question": "q", "answer": text}) == reason


def test_an_empty_first_column_hides_nothing() -> None:
    got = converter("auto")(
        {"prompt": "", "question": "q", "completion": None, "reasoning": " ", "thinking": "r", "answer": "a"}
    )
    assert got.messages == [user("q"), assistant("a", reasoning_content="r")]
    turn = {"role": "assistant", "content": "", "value": "a", "reasoning_content": "", "reasoning": "r"}
    got = converter("auto")({"messages": [], "conversations": [{"from": "human", "value": "q"}, turn]})
    assert got.messages == [user("q"), assistant("a", reasoning_content="r")]
    got = converter("auto")(
        {
            "prompt": "q",
            "completion": "a",
            "system": "",
            "system_prompt": "s",
            "tools": [],
            "functions": [{"name": "f"}],
        }
    )
    assert (got.messages[0]["content"], len(got.tools)) == ("s", 1)


def test_switches_that_contradict() -> None:
    full = converter("auto")({"question": "Add 2 and 2. /no_think", "answer": "<think>r</think>4"})
    plain = converter("auto")({"question": "Add 2 and 2. /think", "answer": "4"})
    for got, said in ((full, "/no_think before an answer with"), (plain, "/think before an answer without")):
        (note,) = check_switches(got, "note").notes
        assert note.startswith(f"switch_contradicts: {said}")
        with pytest.raises(Rejected, match="^switch_contradicts"):
            check_switches(got, "reject")
        mended = check_switches(got, "repair")
        assert mended.messages == [user("Add 2 and 2."), got.messages[-1]]
    for text, answer in (
        ("q /no_think", "4"),
        ("q /think", "<think>r</think>4"),
        ("write `/no_think`", "<think>r</think>4"),
    ):
        got = converter("auto")({"question": text, "answer": answer})
        assert check_switches(got, "reject") is got


# --- tools ------------------------------------------------------------------------------------------------------------------

SCHEMA = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.mark.parametrize(
    "call",
    [
        *({"name": "weather", key: {"city": "Oslo"}} for key in ("arguments", "parameters", "args", "input", "kwargs")),
        {"name": "weather", "arguments": '{"city": "Oslo"}'},
        {"name": "weather", "arguments": json.dumps('{"city": "Oslo"}')},
        {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Oslo"}},
        {"function": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        json.dumps({"name": "weather", "args": {"city": "Oslo"}}),
        {"name": "weather", "arguments": {"city": "Oslo", "zip": None}},  # Arrow's null for another tool's argument
    ],
)
def test_no_call_loses_its_arguments(embedded_tokenizer: PreTrainedTokenizerBase, call: Any) -> None:
    for calls in ([call], json.dumps([call])):
        row = {"tools": [SCHEMA], "messages": [user("q"), assistant(None, tool_calls=calls)]}
        assert learnt(embedded_tokenizer, row) == [("non_thinking", CALL)]


@pytest.mark.parametrize(
    "call",
    [
        {"name": "weather", "city": "Oslo"},
        {"name": "weather", "arguments": {"city": "Oslo"}, "args": {"city": "Rome"}},
        {"name": "weather", "arguments": "Oslo"},
        {"type": "retrieval", "name": "weather", "arguments": {}},
    ],
)
def test_calls_that_are_not_understood(call: Row) -> None:
    assert reason_of({"tools": [SCHEMA], "messages": [user("q"), assistant("", tool_calls=[call])]}) == "bad_tool_call"


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}',
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}',
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}}]',
        "<function=weather>{}</function>",
        "<functioncall> {}",
        "Action: weather\nAction Input: Oslo",
        f"{CALL}\nand so on",
        '{"name": "undeclared", "arguments": {"city": "Oslo"}}',
        '```json\n{"name": "weather", "arguments": {"city": "Oslo"}}\n```',
    ],
)
def test_calls_in_the_text_that_are_not_read_reject(text: str) -> None:
    assert reason_of({"tools": [SCHEMA], "messages": [user("q"), assistant(text)]}) == "bad_tool_call"
    written = f"Write `{text.splitlines()[0]}` there."
    assert converter("auto")({"tools": [SCHEMA], "messages": [user("q"), assistant(written)]})


@pytest.mark.parametrize("text", ['{"name": "weather", "parameters": {"city": "Oslo"}}', CALL])
def test_calls_in_the_text_that_are_read(embedded_tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    row = {"tools": [SCHEMA], "messages": [user("q"), assistant(text)]}
    assert learnt(embedded_tokenizer, row) == [("non_thinking", CALL)]


# Anthropic's API: calls and results are blocks of the content, a schema's parameters stand under input_schema.
USE = {
    "type": "tool_use",
    "id": "b",
    "name": "weather",
    "input": {"city": "Oslo"},
    "cache_control": {"type": "ephemeral"},
}
BLOCK_TOOL = {"name": "weather", "input_schema": SCHEMA["parameters"], "cache_control": {"type": "ephemeral"}}


def result(named: str = "b", content: Any = "4 °C") -> Row:
    return {"type": "tool_result", "tool_use_id": named, "content": content}


def text_block(text: str) -> Row:
    return {"type": "text", "text": text}


def test_blocks_of_calls_and_results(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    blocks: list[Row] = [
        user("How cold is it in Oslo and Rome?"),
        assistant([{"type": "thinking", "thinking": "Ask.", "signature": "s"}, text_block("One moment."), USE,
                   USE | {"id": "r", "input": {"city": "Rome"}}]),
        {"role": "user", "content": [result("r", [text_block("20 °C")]), result("b", "4 °C")]},
        assistant([{"type": "thinking", "thinking": "4 and 20.", "signature": "s"}, text_block("4 °C and 20 °C.")]),
    ]  # fmt: skip
    calls = [
        {"id": i, "function": {"name": "weather", "arguments": {"city": c}}} for i, c in (("b", "Oslo"), ("r", "Rome"))
    ]
    plain = [
        blocks[0],
        assistant("One moment.", tool_calls=calls, reasoning_content="Ask."),
        {"role": "tool", "tool_call_id": "b", "content": "4 °C"},
        {"role": "tool", "tool_call_id": "r", "content": "20 °C"},
        assistant("4 °C and 20 °C.", reasoning_content="4 and 20."),
    ]
    got = converter("auto")({"tools": [BLOCK_TOOL], "messages": blocks})
    want = converter("auto")({"tools": [SCHEMA], "messages": plain})
    assert got.tools == want.tools == [{"type": "function", "function": SCHEMA}]
    assert [{**m, "tool_calls": None} for m in got.messages] == [{**m, "tool_calls": None} for m in want.messages]
    shown = learnt(embedded_tokenizer, {"tools": [BLOCK_TOOL], "messages": blocks})
    assert shown == learnt(embedded_tokenizer, {"tools": [SCHEMA], "messages": plain})
    assert [mode for mode, _ in shown] == ["thinking", "thinking"]
    for tool in (
        {"name": "weather", "inputSchema": SCHEMA["parameters"]},
        {"type": "function", "function": BLOCK_TOOL},
    ):
        assert converter("auto")({"tools": [tool], "messages": plain}).tools == want.tools


@pytest.mark.parametrize(
    ("answer", "after", "reason"),
    [
        ([USE, text_block("and so on")], [result()], "bad_tool_call"),
        ([USE, result()], [result()], "bad_tool_result"),
        ([USE], [text_block("Look:"), result()], "bad_tool_result"),
        ([USE], [{"type": "tool_result", "content": "4"}], "bad_tool_result"),
        ([USE], [result("other")], "unmatched_result"),
        ([USE], [result(content=[{"type": "image", "source": {}}])], "needs_media"),
        ([{"type": "redacted_thinking", "data": "x"}, USE], [result()], "not_text"),
        ([USE, {"type": ["text"]}], [result()], "bad_tool_call"),
        ([USE], [USE], "bad_tool_call"),  # by the user
    ],
)
def test_blocks_that_are_not_understood(answer: Any, after: Any, reason: str) -> None:
    messages = [user("q"), assistant(answer), {"role": "user", "content": after}, assistant("4 °C")]
    assert reason_of({"tools": [BLOCK_TOOL], "messages": messages}) == reason


def test_calls_in_two_places_or_of_the_user() -> None:
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    both = assistant([USE], tool_calls=[call])
    assert reason_of({"tools": [BLOCK_TOOL], "messages": [user("q"), both]}) == "bad_tool_call"
    asked = [user("q") | {"tool_calls": [call]}, assistant("4 °C")]
    assert reason_of({"tools": [SCHEMA], "messages": asked}) == "bad_tool_call"
    for none in (None, [], "", "[]", "null"):  # as tables fill the field in every turn
        asked[0]["tool_calls"] = none
        assert converter("auto")({"tools": [SCHEMA], "messages": asked}).mode == "non_thinking"


def test_a_schema_with_both_names_of_its_parameters() -> None:
    tools = [BLOCK_TOOL | {"parameters": {"type": "object"}}]
    assert reason_of({"tools": tools, "messages": [user("q"), assistant([USE])]}) == "bad_tools"


def test_query_answers_tools(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    row = {
        "query": "q",
        "answers": '[{"name": "weather", "arguments": {"city": "Oslo"}}]',
        "tools": json.dumps([SCHEMA]),
    }
    assert learnt(embedded_tokenizer, row) == [("non_thinking", CALL)]


@pytest.mark.parametrize(
    ("value", "text"),
    [({"t": 3}, '{"t": 3}'), ([1, 2], "[1, 2]"), (3, "3"), (None, "null"), (True, "true"), ("warm", "warm")],
)
@pytest.mark.parametrize("role", ["tool", "ipython", "environment", "observation"])
def test_results(value: Any, text: str, role: str) -> None:
    turns = [user("q"), assistant("", tool_calls=[{"name": "f"}]), {"role": role, "content": value}, assistant("a")]
    assert converter("auto")({"messages": turns}).messages[2] == {"role": "tool", "content": text}


def test_results_go_to_their_calls() -> None:
    calls = [{"id": name, "name": name, "arguments": {}} for name in "ab"]
    results = [{"role": "tool", "tool_call_id": name, "content": name.upper()} for name in "ba"]
    row = {"messages": [user("q"), assistant("", tool_calls=calls), *results, assistant("x")]}
    got = converter("auto")(row)
    assert [m["content"] for m in got.messages[2:4]] == ["A", "B"]
    assert got.notes == []
    row["messages"].pop(2)
    assert converter("auto")(row).notes == ["missing_result: 1 results of 2 calls in message 1"]


def test_what_is_noted_about_tools() -> None:
    turns = [user("q"), assistant("", reasoning_content=f"I write {CALL}", tool_calls=[{"name": "other"}])]
    notes = converter("auto")({"tools": [SCHEMA], "messages": turns}).notes
    assert {note.partition(":")[0] for note in notes} == {"undeclared_tool", "call_in_reasoning"}


# --- labels, media, columns, roles ------------------------------------------------------------------------------------------


def test_labels() -> None:
    row = {"prompt": "Say hello.", "completion": "Go away."}
    for label in ({"label": False}, {"label": "False"}, {"kto_tag": False}, {"is_correct": False}):
        assert reason_of(row | label) == "labelled_bad"
        assert reason_of({"messages": [user("q"), assistant("a")], **label}) == "labelled_bad"
    for label in ({"label": True}, {"label": 0}, {"label": "negative"}, {"label": None}):
        assert converter("auto")(row | label).messages[-1]["content"] == "Go away."
    assert converter("auto")({"prompt": "Is fire cold?", "completion": "False", "label": "False"})


def test_media() -> None:
    row = {"instruction": "What is on it?", "output": "A cat."}
    for more in (
        {"images": ["cat.png"]},
        {"image": {"bytes": b"x"}},
        {"instruction": "<image>\nWhat?"},
        {"input": "<video>"},
    ):
        assert reason_of(row | more) == "needs_media"
    for more in (
        {"images": []},
        {"images": [None]},
        {"image": None},
        {"instruction": "What does `<image>` mean in SVG?"},
    ):
        assert converter("auto")(row | more)


@pytest.mark.parametrize("nothing", ["<noinput>", "<NoInput>", " <no input>\n", "", None])
def test_no_input(nothing: str | None) -> None:
    got = converter("auto")({"instruction": "Name a colour.", "input": nothing, "output": "Red."})
    assert got.messages[0] == user("Name a colour.")


def test_names_in_other_case() -> None:
    assert converter("auto")({"Question": "q", "ANSWER": "a"}).messages == [user("q"), assistant("a")]
    assert converter("auto")(
        {"Messages": [{"Role": "User", "Content": "q"}, {"Role": "Assistant", "Content": "a"}]}
    ).messages
    got = converter("auto")({"question": "q", "Question": "other", "answer": "a"})
    assert (got.messages[0], got.unread) == (user("q"), ("Question",))


def test_roles() -> None:
    def row(asks: str, answers: str) -> Row:
        return {"conversations": [{"from": asks, "value": "q"}, {"from": answers, "value": "a"}]}

    for asks, answers in (
        ("human", "bot"),
        ("customer", "agent"),
        ("User", "AI"),
        ("client", "model"),
        ("user", "chatbot"),
    ):
        assert converter("auto")(row(asks, answers)).messages == [user("q"), assistant("a")]
    assert reason_of(row("Alice", "Bob")) == "unknown_role"
    own = converter("auto", roles={"Alice": "user", "bob": "assistant"})
    assert own(row("alice", "Bob")).messages == [user("q"), assistant("a")]
    with pytest.raises(UserError, match="Bob cannot be 'asistant'. Did you mean 'assistant'"):
        converter("auto", roles={"Bob": "asistant"})


def test_a_last_question_is_left_out() -> None:
    got = converter("auto")({"messages": [user("q"), assistant("a"), user("and?")]})
    assert got.messages == [user("q"), assistant("a")]
    assert got.notes[0].startswith("last_question_dropped: 1 turns")


def test_replacement_characters_are_counted() -> None:
    assert converter("auto")({"question": "q", "answer": "caf\ufffd"}).notes[0].startswith("replacement_characters")


# --- the public cases -------------------------------------------------------------------------------------------------------


def test_the_public_cases(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    """Small inputs that went wrong once. Those about answers and plain text have tests of their own."""
    if not CASES.is_file():
        pytest.skip(f"no cases at {CASES}")
    rows = [json.loads(line)["row"] for line in CASES.read_text(encoding="utf-8").splitlines()]
    thinking, plain = "thinking", "non_thinking"
    wanted: list[Any] = [
        *([thinking], [plain], [plain], [plain], [thinking], [thinking], [thinking, plain], [thinking, plain]),
        *([plain, plain], "bad_tool_call", [plain], [plain, plain], "labelled_bad", "needs_media"),
        *(None, None, None, [plain], [plain], None),
    ]
    for row, want in zip(rows, wanted, strict=True):
        if isinstance(want, str):
            assert reason_of(row) == want
        elif want is not None:
            found = learnt(embedded_tokenizer, row)
            assert [mode for mode, _ in found] == want, row
            assert all(text.startswith("<think>") == (mode == thinking) for mode, text in found)


# --- any row in every shape -------------------------------------------------------------------------------------------------

_WORDS = st.text(st.sampled_from("abc xyz.,!?\n`'\"<>/[]{}#*-1 中文é"), min_size=1, max_size=40)
_LITERAL = st.sampled_from(["`</think>`", "```\n<think>\n```", '"<think>"', "'</thought>'", "`<tool_call>`", ""])
_TEXT = st.builds(lambda a, b, c: f"{a} {b} {c}".strip(), _WORDS, _LITERAL, _WORDS).filter(
    lambda t: any(c.isalnum() for c in t) and not naked_tag(t)
)


def _beside(name: str) -> Callable[[str, str, str], Row]:
    return lambda q, r, a: {"question": q, name: r, "answer": a}


def _field(name: str) -> Callable[[str, str, str], Row]:
    return lambda q, r, a: {"messages": [user(q), assistant(a, **{name: r})]}


def _written(form: str) -> Callable[[str, str, str], Row]:
    return lambda q, r, a: {"instruction": q, "input": "", "output": form.replace("{r}", r).replace("{a}", a)}


SHAPES: dict[str, Callable[[str, str, str], Row]] = {
    **{f"column {name}": _beside(name) for name in REASONING},
    **{f"field {name}": _field(name) for name in REASONING_FIELDS if not name.endswith(("details", "blocks"))},
    "think": _written("<think>\n{r}\n</think>\n\n{a}"),
    "cut": _written("{r}\n</think>\n\n{a}"),
    **{f"foreign {name}": _written(form) for name, form in FOREIGN.items()},
    "openmath": lambda q, r, a: {"problem": q, "generated_solution": f"<think>\n{r}\n</think>\n\n{a}"},
    "trl": lambda q, r, a: {"prompt": [user(q)], "completion": [assistant(f"<think>{r}</think>\n{a}")]},
    "turn": lambda q, r, a: {
        "conversations": [{"from": who, "value": text} for who, text in (("human", q), ("thought", r), ("gpt", a))]
    },
    "preference": lambda q, r, a: {"prompt": q, "chosen": f"<think>\n{r}\n</think>\n\n{a}", "rejected": "no"},
    "flag": lambda q, r, a: {"prompt": q, "reasoning": "on", "completion": f"<think>{r}</think>\n{a}"},
    "json": lambda q, r, a: {"messages": json.dumps([user(q), assistant(a, reasoning_content=r)])},
    "struct": lambda q, r, a: {
        "messages": {"role": ["user", "assistant"], "content": [q, a], "reasoning_content": [None, r]}
    },
    "case": lambda q, r, a: {"Question": q, "Complex_CoT": r, "Response": a},
    "weighted": lambda q, r, a: {"messages": [user(q), assistant(f"<think>\n{r}\n</think>\n\n{a}", weight=1)]},
}
PLAIN: dict[str, Callable[[str, str], Row]] = {
    "alpaca": lambda q, a: {"instruction": q, "input": "<noinput>", "output": a},
    "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "bot", "value": a}]},
    "messages": lambda q, a: {"messages": [user(q), assistant(a, reasoning_content="", thinking=None)]},
    "empty block": lambda q, a: {"prompt": q, "completion": f"<think>\n\n</think>\n\n{a}"},
    "flag": lambda q, a: {"prompt": q, "reasoning": "off", "completion": a},
    "preference": lambda q, a: {"prompt": q, "chosen": a, "rejected": "no"},
    "last question": lambda q, a: {"messages": [user(q), assistant(a), user("more")]},
}


def _means(text: str) -> str:
    return " ".join(text.split())


@settings(max_examples=examples(20))
@given(question=_TEXT, reasoning=_TEXT, answer=_TEXT)
def test_no_row_is_learnt_in_another_mode_than_it_says(
    embedded_tokenizer: PreTrainedTokenizerBase, question: str, reasoning: str, answer: str
) -> None:
    """Each row in all shapes: the mode is that of the row and nothing of its reasoning or answer is lost; or it is rejected."""
    form = ChatFormat(embedded_tokenizer)
    rows = [(name, make(question, reasoning, answer), True) for name, make in SHAPES.items()]
    rows += [(name, make(question, answer), False) for name, make in PLAIN.items()]
    for name, row, thinks in rows:
        try:
            got = converter("auto")(row)
        except Rejected as rejected:
            event(f"{name}: {rejected.reason}")
            continue
        (example,) = form.examples([got])
        assert not isinstance(example, Rejected)
        assert [e.mode for e in example] == ["thinking" if thinks else "non_thinking"], (name, row)
        last = got.messages[-1]
        assert _means(last["content"]) == _means(answer), (name, row)
        assert _means(last.get("reasoning_content", "")) == (_means(reasoning) if thinks else ""), (name, row)
        assert not naked_tag(last["content"])
