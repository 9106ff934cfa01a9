"""Which format a row is in and why; and what becomes of every row of the real files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.conversations import FORMATS, Rejected, converter, preference_pair
from pipeline.data.formats import LAYOUTS, LONG_DETAIL, Detection, detect

Row = dict[str, Any]
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_every_layout_has_a_converter() -> None:
    assert set(LAYOUTS) == set(FORMATS)


@pytest.mark.parametrize(
    ("row", "name", "because"),
    [
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca", "has 'instruction' and 'output'"),
        (
            {"conversations": TURNS, "score": 5.0},
            "sharegpt",
            "has 'conversations', a list of turns with 'from' and 'value'",
        ),
        ({"conversation": MESSAGES}, "sharegpt", "has 'conversation', a list of turns with 'role' and 'content'"),
        ({"messages": MESSAGES}, "messages", "has 'messages', a list of turns with 'role' and 'content'"),
        ({"messages": ["q"]}, "messages", "has 'messages', a list of turns"),
        ({"messages": []}, "messages", "has 'messages' (here with nothing in it)"),
        ({"messages": "[]"}, "messages", "has 'messages', turns as JSON text"),
        ({"messages": ""}, "messages", "has 'messages' (here with str in it)"),
        (
            {"problem": "p", "generated_solution": "<think>r</think>a", "expected_answer": "1"},
            "openmathreasoning",
            "has 'problem' and 'generated_solution'",
        ),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", "has 'prompt' and 'completion'"),
        ({"question": "q", "answer": "a"}, "prompt_completion", "has 'question' and 'answer'"),
        ({"input": "q", "output": "a"}, "prompt_completion", "has 'input' and 'output'"),
        ({"instruction": "q", "response": "a"}, "prompt_completion", "has 'instruction' and 'response'"),
        ({"question": "q", "cot": "r", "answer": "a"}, "reasoning", "has 'question', 'cot' and 'answer'"),
        (
            {"instruction": "q", "input": "", "thinking": "r", "output": "a"},
            "reasoning",
            "has 'instruction', 'thinking' and 'output'",
        ),
        ({"conversations": TURNS[:1], "chosen": {}, "rejected": {}}, "preference", "has 'chosen' and 'rejected'"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", "has 'chosen' and 'rejected'"),
        (
            {"prompt": "q", "messages": MESSAGES},
            "messages",
            "has 'messages', a list of turns with 'role' and 'content'",
        ),
    ],
)
def test_detection(row: Row, name: str, because: str) -> None:
    assert detect(row) == Detection(name, because)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": None, "instruction": "q", "output": "a"}, "alpaca"),
        ({"messages": float("nan"), "conversations": TURNS}, "sharegpt"),
        ({"prompt": None, "completion": None, "question": "q", "answer": "a"}, "prompt_completion"),
        ({"chosen": None, "rejected": None, "messages": MESSAGES}, "messages"),
        ({"instruction": "q", "output": None}, "alpaca"),  # nothing else is there: its own converter says what is wrong
        ({"conversations": None}, "sharegpt"),
        ({"question": "q", "reasoning": None, "answer": "a"}, "reasoning"),  # lost reasoning must not change the mode
    ],
)
def test_columns_that_hold_nothing_decide_last(row: Row, name: str) -> None:
    assert detect(row).format == name


def test_each_row_is_detected_for_itself() -> None:
    read = converter("auto")
    rows = [{"instruction": "q", "output": "a"}, {"messages": MESSAGES}, {"conversations": TURNS}]
    assert [read(row).format for row in [*rows, *rows]] == ["alpaca", "messages", "sharegpt"] * 2
    assert all(read(row).messages == MESSAGES for row in rows)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "q", "reply": "a"}, ["'instruction', 'reply'", "nearest is alpaca, which lacks 'output'"]),
        ({"prompt": "q", "key": 1}, ["nearest is prompt_completion, which lacks one of 'completion', 'response'"]),
        ({"conversatons": TURNS}, ["nearest is sharegpt, which lacks", "is it 'conversatons'?"]),
        ({"mesages": MESSAGES}, ["nearest is messages, which lacks 'messages'", "is it 'mesages'?"]),
        ({"chosen": "a", "prompt": "q"}, ["nearest is preference, which lacks 'rejected'"]),
        ({"text": "some document"}, ["columns 'text'; set format:"]),
        ({}, ["columns nothing; set format:"]),
        ({f"column_{i}": i for i in range(90)}, ["'column_0', 'column_1'", "'column_89'"]),
        ({f"column_{i}" * 9: i for i in range(90)}, ["'column_0column_0", "…; set format:"]),
    ],
)
def test_unknown_format(row: Row, said: list[str]) -> None:
    with pytest.raises(Rejected) as caught:
        detect(row)
    assert caught.value.reason == "unknown_format"
    assert caught.value.detail.endswith("set format: or columns: in the recipe")
    assert len(caught.value.detail) <= LONG_DETAIL
    for part in said:
        assert part in caught.value.detail


# --- rows nobody here wrote -----------------------------------------------------------------------------------------


def load(folder: Path, name: str) -> list[Row]:
    path = folder / name
    if not path.is_file():
        pytest.skip(f"no {name} in the real data")
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)


@pytest.mark.parametrize(
    ("name", "layout", "kept", "rejected"),
    [
        ("eval/gsm8k_train.jsonl", "prompt_completion", 7473, {}),
        ("eval/gsm8k_test.jsonl", "prompt_completion", 1319, {}),
        ("eval/ifeval_input_data.jsonl", "", 0, {"unknown_format": 541}),  # prompts that nobody answers
        ("sft/alpaca_en_demo.json", "alpaca", 999, {}),
        ("sft/alpaca_zh_demo.json", "alpaca", 1000, {}),
        ("sft/identity.json", "alpaca", 6, {"unfilled_placeholder": 85}),
        ("reason/gsm8k_gemini_cot_level2.json", "alpaca", 7433, {}),
        ("tools/glaive_toolcall_en_demo.json", "sharegpt", 300, {}),
        # two rows whose call stands in the words of an answer, so that their observation answers no call
        ("tools/glaive_toolcall_zh_demo.json", "sharegpt", 298, {"roles_out_of_order": 2}),
        # one chosen answer with a form feed where \frac was meant
        ("pref/dpo_en_demo.json", "preference", 299, {"control_characters": 1}),
        ("pref/dpo_zh_demo.json", "preference", 300, {}),
    ],
)
def test_real_rows(shared_data: Path, name: str, layout: str, kept: int, rejected: dict[str, int]) -> None:
    formats, reasons = Counter[str](), Counter[str]()
    read = converter("auto")
    for row in load(shared_data, name):
        try:
            got = read(row)
        except Rejected as reason:
            reasons[reason.reason] += 1
            continue
        formats[got.format] += 1
        assert got.mode == "non_thinking"
        # one Chinese row holds U+FFFD, the mark of a character that was lost
        assert {note.partition(":")[0] for note in got.notes} <= {"replacement_characters"}
        assert got == converter(layout)(row)
        text = "".join(m["content"] for m in got.messages)
        said = [row[column] for column in ("instruction", "input", "output", "question", "answer") if column in row]
        said += [t["value"] for t in row.get("conversations", []) if t["from"] != "function_call"]
        said += [row["chosen"]["value"]] if "chosen" in row else []
        assert said
        assert all(part.strip() in text for part in said)  # nothing of the row is lost
    assert reasons == rejected
    assert formats == ({layout: kept} if kept else {})


def test_the_rejected_identity_rows_are_those_with_braces(shared_data: Path) -> None:
    for row in load(shared_data, "sft/identity.json"):
        try:
            converter("auto")(row)
        except Rejected as rejected:
            assert "{{" in row["output"]
            assert rejected.detail.split()[0] in ("{{name}}", "{{author}}")
        else:
            assert "{{" not in row["output"]


def test_ifeval_forced_says_which_column_is_missing(shared_data: Path) -> None:
    row = load(shared_data, "eval/ifeval_input_data.jsonl")[0]
    with pytest.raises(Rejected, match="no 'completion' or .* has 'key', 'prompt'"):
        converter("prompt_completion")(row)


def test_real_tool_calls_are_kept(shared_data: Path) -> None:
    calls = 0
    for row in load(shared_data, "tools/glaive_toolcall_en_demo.json"):
        got = converter("auto")(row)
        assert [t["function"] for t in got.tools] == json.loads(row["tools"] or "[]")
        wanted = [json.loads(t["value"]) for t in row["conversations"] if t["from"] == "function_call"]
        made = [m["tool_calls"][0]["function"] for m in got.messages if m.get("tool_calls")]
        assert made == wanted
        calls += len(made)
    assert calls == 211


@pytest.mark.parametrize(("name", "pairs"), [("pref/dpo_en_demo.json", 299), ("pref/dpo_zh_demo.json", 300)])
def test_real_preference_pairs(shared_data: Path, name: str, pairs: int) -> None:
    made = 0
    for row in load(shared_data, name):
        try:
            got = preference_pair(row)
        except Rejected as rejected:
            assert rejected.reason == "control_characters"
            continue
        made += 1
        assert [m["content"] for m in got.prompt] == [t["value"] for t in row["conversations"]]
        assert got.chosen["content"] == row["chosen"]["value"].strip()
        assert got.rejected["content"] == row["rejected"]["value"].strip()
    assert made == pairs
