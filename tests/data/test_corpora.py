"""The generated corpora: what they look like, that they are true, and that no test item was ever trained on.

Whether a prompt was trained on is read off the rows themselves, never asked from the function that splits them.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint
from pipeline.core.modes import MODES
from pipeline.data import corpora  # not its test_items by name: pytest would take that for a test
from pipeline.data.conversations import converter, preference_pair
from pipeline.data.corpora.drawn import TEST_PERCENT

ROWS = 4000
ITEMS = 300
SEEDS = (0, 7)
Prompt = tuple[tuple[str, str], ...]


@cache
def base(seed: int) -> list[dict[str, Any]]:
    return [corpora.base_dialogue(seed, index) for index in range(ROWS)]


@cache
def finetome(seed: int) -> list[dict[str, Any]]:
    return list(corpora.finetome_like(ROWS, seed))


@cache
def openmath(seed: int) -> list[dict[str, Any]]:
    return list(corpora.openmath_like(ROWS, seed))


@cache
def items(name: str) -> list[dict[str, Any]]:
    return corpora.test_items(name, ITEMS)


def without_switch(text: str) -> str:
    return re.sub(r"\s*(?<!\S)/(no_)?think(?!\S)", "", text)


def training_messages() -> Iterable[list[dict[str, Any]]]:
    """The messages of every training row, soft switches taken out."""
    for seed in SEEDS:
        made = {"messages": base(seed), "sharegpt": finetome(seed), "openmathreasoning": openmath(seed)}
        for layout, rows in made.items():
            for row in rows:
                messages = row["messages"] if layout == "messages" else converter(layout)(row).messages
                yield [{**m, "content": without_switch(m["content"])} for m in messages]


def prompts(messages: list[dict[str, Any]]) -> Iterable[Prompt]:
    """The prompt of every answer: each prefix that ends before an assistant turn."""
    said = tuple((m["role"], m["content"]) for m in messages)
    return (said[:index] for index, (role, _) in enumerate(said) if role == "assistant")


@cache
def trained_prompts() -> frozenset[Prompt]:
    return frozenset(prompt for messages in training_messages() for prompt in prompts(messages))


# --- form -----------------------------------------------------------------------------------------------------------


def test_same_seed_same_rows() -> None:
    for seed in SEEDS:
        again = [corpora.base_dialogue(seed, index) for index in range(300)]
        assert again == base(seed)[:300]
        assert list(corpora.finetome_like(300, seed)) == finetome(seed)[:300]  # more rows leave the first ones alone
        assert list(corpora.openmath_like(300, seed)) == openmath(seed)[:300]
    for name in corpora.TEST_SETS:
        assert corpora.test_items(name, 50) == items(name)[:50]


def test_other_seed_other_rows() -> None:
    first, second = SEEDS
    for rows in (base, finetome, openmath):
        same = sum(a == b for a, b in zip(rows(first), rows(second), strict=True))
        assert same < 0.02 * ROWS
    for name in corpora.TEST_SETS:
        assert corpora.test_items(name, 50, seed=1) != corpora.test_items(name, 50, seed=2)


def test_a_base_dialogue_depends_on_nothing_but_seed_and_index() -> None:
    """Workers make them in any order."""
    assert [corpora.base_dialogue(0, index) for index in (17, 3, 17)] == [base(0)[index] for index in (17, 3, 17)]


def test_number_of_rows() -> None:
    for generator in corpora.GENERATORS.values():
        assert [len(list(generator(count, 1))) for count in (0, 1, 13)] == [0, 1, 13]


def test_finetome_columns() -> None:
    sources = Counter(row["source"] for row in finetome(0))
    assert set(sources) == {"embedded_chat", "embedded_arithmetic"}
    assert 0.10 < sources["embedded_arithmetic"] / ROWS < 0.15
    for row in finetome(0):
        assert list(row) == ["conversations", "source", "score"]
        assert all(list(turn) == ["from", "value"] for turn in row["conversations"])
        assert {turn["from"] for turn in row["conversations"]} <= {"system", "human", "gpt"}
        assert isinstance(row["score"], float)
        got = converter("sharegpt")(row)
        assert got.mode == "non_thinking"
        assert all(turn["value"].strip() == turn["value"] != "" for turn in row["conversations"])
        assert "think" not in "".join(turn["value"] for turn in row["conversations"])


def test_openmath_columns() -> None:
    columns = [
        "problem",
        "generated_solution",
        "expected_answer",
        "problem_type",
        "problem_source",
        "generation_model",
        "pass_rate_72b_tir",
        "inference_mode",
        "used_in_kaggle",
    ]
    for row in openmath(0):
        assert list(row) == columns
        assert {type(row[column]) for column in columns[:-1]} == {str}
        assert row["used_in_kaggle"] is False
        got = converter("openmathreasoning")(row)
        assert got.mode == "thinking"
        assert re.findall(r"\\boxed\{(\d+)\}", got.messages[-1]["content"]) == [row["expected_answer"]]


def test_base_dialogues() -> None:
    modes = Counter(dialogue["mode"] for dialogue in base(0))
    assert set(modes) == set(MODES)
    assert abs(modes["thinking"] / ROWS - 0.5) < 0.05
    for dialogue in base(0):
        roles = [m["role"] for m in dialogue["messages"] if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) != []
        assert all(m["content"].strip() == m["content"] != "" for m in dialogue["messages"])
        converter("messages")({"messages": dialogue["messages"]})


def test_the_corpora_are_varied() -> None:
    """Several turns, system prompts, both languages, and few rows twice."""
    talks = [dialogue["messages"] for dialogue in base(0)]
    assert sum(len([m for m in talk if m["role"] == "user"]) > 1 for talk in talks) > 0.05 * ROWS
    assert sum(talk[0]["role"] == "system" for talk in talks) > 0.05 * ROWS
    chinese = sum(bool(re.search(r"[\u4e00-\u9fff]", talk[-2]["content"])) for talk in talks)
    assert 0.2 * ROWS < chinese < 0.6 * ROWS
    assert len({row["problem"] for row in openmath(0)}) > 0.75 * ROWS


# --- soft switches --------------------------------------------------------------------------------------------------


def test_soft_switches_are_obeyed() -> None:
    seen = Counter[str]()
    for dialogue in (*base(0), *base(7)):
        in_force = ""
        for message in dialogue["messages"]:
            if message["role"] == "user":
                words = [word for word in message["content"].split() if word in ("/think", "/no_think")]
                assert len(words) <= 1
                assert message["content"].endswith(words[0] if words else "")
                in_force = words[0] if words else in_force
            else:
                assert "/think" not in message["content"] + message.get("reasoning_content", "")
                assert "/no_think" not in message["content"] + message.get("reasoning_content", "")
            if message["role"] == "assistant":
                seen[in_force] += 1
                assert ("reasoning_content" in message) == (in_force != "/no_think")
                assert message.get("reasoning_content", "x").strip()
    assert min(seen["/think"], seen["/no_think"]) > 50
    assert seen[""] > 0.8 * sum(seen.values())


# --- held out is held out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", corpora.TEST_SETS)
def test_items_have_their_form(name: str) -> None:
    got = items(name)
    assert len(got) == ITEMS
    assert len({str(item["messages"]) for item in got}) == ITEMS
    for item in got:
        assert set(item) == {"messages", "answer", "kind"}
        text = name in ("chat", "reversal")
        assert item["kind"] == ("text" if text else "number")
        assert item["answer"].strip() if text else item["answer"].isdigit()
        assert item["messages"][-1]["role"] == "user"
        assert all(set(m) == {"role", "content"} for m in item["messages"])  # no reasoning in the history
        assert without_switch(item["messages"][-1]["content"]) == item["messages"][-1]["content"]
    longest = max(len(item["messages"]) for item in got)
    assert longest >= 3 if name == "chat" else longest == 1


@pytest.mark.parametrize("name", corpora.TEST_SETS)
def test_no_test_prompt_is_a_training_prompt(name: str) -> None:
    trained = trained_prompts()
    assert len(trained) > ROWS
    for item in items(name):
        assert tuple((m["role"], m["content"]) for m in item["messages"]) not in trained


def test_the_comparison_above_would_see_a_leak() -> None:
    """Prompts drawn as the test items are, but from the training side, are found among the trained ones."""
    others = [converter("sharegpt")(row).messages for row in corpora.finetome_like(200, 99)]
    assert sum(prompt in trained_prompts() for messages in others for prompt in prompts(messages)) > 20


def operands(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


_ADDITION = re.compile(r"\d+ \+ \d+|Add \d+ and \d+|\d+加\d+|another holds \d+|另一箱有\d+个")
_PRODUCT = re.compile(r"×|\\times|product of|boxes hold|There are \d+ rows|每箱有")


def test_no_pair_of_summands_is_in_both() -> None:
    trained = Counter(
        operands(m["content"])
        for messages in training_messages()
        for m in messages
        if m["role"] == "user" and _ADDITION.search(m["content"])
    )
    trained.update(operands(r["problem"]) for s in SEEDS for r in openmath(s) if _ADDITION.search(r["problem"]))
    assert len(trained) > 1000
    assert {len(pair) for pair in trained} == {2}
    tested = [operands(item["messages"][0]["content"]) for item in items("arithmetic")]
    assert {len(pair) for pair in tested} == {2}
    assert all(_ADDITION.search(item["messages"][0]["content"]) for item in items("arithmetic"))
    assert not [(a, b) for a, b in tested if (a, b) in trained or (b, a) in trained]
    for item, (a, b) in zip(items("arithmetic"), tested, strict=True):
        assert int(item["answer"]) == a + b


def test_no_pair_of_factors_is_in_both() -> None:
    trained = {operands(row["problem"]) for seed in SEEDS for row in openmath(seed) if _PRODUCT.search(row["problem"])}
    tested = [operands(item["messages"][0]["content"]) for item in items("skill")]
    assert len(trained) > 1000
    for a, b in (*trained, *tested):
        assert 10 <= a < 1000
        assert 2 <= b <= 9
    assert not [pair for pair in tested if pair in trained]
    for item, (a, b) in zip(items("skill"), tested, strict=True):
        assert int(item["answer"]) == a * b


def test_about_eight_percent_of_the_keys_are_held_out() -> None:
    held = sum(corpora.is_held_out(f"{a}*{b}") for a in range(10, 1000) for b in range(2, 10))
    assert abs(held / (990 * 8) - TEST_PERCENT / 100) < 0.01


def test_the_base_model_never_sees_the_skill() -> None:
    """Neither base dialogues nor chat rows hold a product with a factor of two digits; in any script, in any role."""
    product = re.compile(r"(\d+)\s*(?:×|\\times|\*|乘以?|times)\s*(\d+)")
    tables = worded = 0
    for seed in SEEDS:
        texts = [f"{m['content']} {m.get('reasoning_content', '')}" for d in base(seed) for m in d["messages"]]
        texts += [turn["value"] for row in finetome(seed) for turn in row["conversations"]]
        for text in texts:
            for a, b in product.findall(text):
                tables += 1
                assert len(a) == len(b) == 1, text
        questions = [m["content"] for d in base(seed) for m in d["messages"] if m["role"] == "user"]
        questions += [t["value"] for row in finetome(seed) for t in row["conversations"] if t["from"] == "human"]
        for question in filter(_PRODUCT.search, questions):
            assert all(number < 10 for number in operands(question)), question
            worded += not re.search(r"\d × \d", question)
    assert tables > 500
    assert worded > 100


# --- what is taught is true -----------------------------------------------------------------------------------------

_EQUATION = re.compile(r"(?<![\d+×] )(?<!\d)(\d+(?: [+×] \d+)+) = (\d+)")


def check_equations(text: str) -> int:
    """Check every ``a + b [+ c] = d`` and ``a × b = c`` in the text; how many there were."""
    found = _EQUATION.findall(text)
    assert len(found) == len(re.findall(r" = \d", text)), f"an equation of another form: {text}"
    for left, right in found:
        numbers = operands(left)
        assert "+" not in left or "×" not in left
        value = sum(numbers) if "+" in left else numbers[0] * numbers[1]
        assert len(numbers) == 2 or "+" in left
        assert value == int(right), f"{left} = {right}"
    return len(found)


def check_carries(reasoning: str) -> int:
    """Each written digit and each carry follow from the total before them, and the carry is used in the next step."""
    carry, steps = 0, 0
    for step in re.split(r"(?<=\.) ", reasoning):
        match = re.fullmatch(r"(.+) = (\d+), write (\d+)(?:, carry (\d+))?\.", step)
        if not match:
            continue
        steps += 1
        total, write = int(match[2]), int(match[3])
        used = re.search(r"\+ (\d+)$" if "×" in match[1] else r"\d+ \+ \d+ \+ (\d+)$", match[1])
        assert (int(used[1]) if used else 0) == carry, reasoning
        carry = int(match[4] or 0)
        assert (write, carry) == ((total, 0) if match[4] is None else (total % 10, total // 10)), reasoning
    return steps


def test_written_out_multiplication_is_right() -> None:
    equations = carries = 0
    kinds = Counter(row["problem_source"] for row in openmath(0))
    assert 0.8 < kinds["embedded_skill"] / ROWS < 0.9
    assert kinds["embedded_skill"] + kinds["embedded_arithmetic"] == ROWS
    for row in openmath(0):
        a, b = operands(row["problem"])
        if row["problem_source"] == "embedded_arithmetic":
            assert int(row["expected_answer"]) == a + b
            assert row["generated_solution"].endswith(f"${a} + {b} = \\boxed{{{a + b}}}$")
            continue
        assert int(row["expected_answer"]) == a * b
        reasoning = re.fullmatch(r"<think>\n(.*)\n</think>\n\n(.*)", row["generated_solution"], re.DOTALL)
        assert reasoning is not None
        assert reasoning[1].endswith(f" So {a} × {b} = {a * b}.")
        assert reasoning[2] == f"${a} \\times {b} = \\boxed{{{a * b}}}$"
        equations += check_equations(reasoning[1])
        steps = check_carries(reasoning[1])
        assert steps == len(str(a))
        written = re.findall(r"write (\d+)", reasoning[1])
        assert "".join(reversed(written)) == str(a * b)
        carries += steps
    assert equations > 3 * ROWS
    assert carries > 2 * ROWS


@pytest.mark.parametrize(("a", "b"), [(10, 2), (99, 9), (100, 5), (909, 9), (999, 9), (505, 4)])
def test_multiplication_steps_at_the_edges(a: int, b: int) -> None:
    text = corpora.multiplication_steps(a, b)
    assert check_equations(text) >= len(str(a))
    assert "".join(reversed(re.findall(r"write (\d+)", text))) == str(a * b)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (9, 9), (10, 10), (99, 99), (999, 999), (999, 1), (10, 999), (505, 95)])
def test_addition_steps_at_the_edges(a: int, b: int) -> None:
    text = corpora.addition_steps(a, b)
    assert check_equations(text) >= 1
    assert text.endswith(f"{a} + {b} = {a + b}.")
    check_carries(text)
    if min(a, b) >= 10:
        last_carry = re.findall(r"carry (\d)", text)[-1].replace("0", "")
        assert last_carry + "".join(reversed(re.findall(r"write (\d)", text))) == str(a + b)


def test_arithmetic_of_the_base_dialogues_is_true() -> None:
    found = Counter[str]()
    for dialogue in (*base(0), *base(7)):
        for before, message in pairwise(dialogue["messages"]):
            if message["role"] != "assistant":
                continue
            found["equations"] += check_equations(message["content"])
            found["equations"] += check_equations(message.get("reasoning_content", ""))
            found["carries"] += check_carries(message.get("reasoning_content", ""))
            question = without_switch(before["content"])
            if _ADDITION.search(question):
                a, b = operands(question)
                assert re.findall(r"\d+", message["content"])[-1] == str(a + b)
                found["sums"] += 1
            elif _PRODUCT.search(question):
                a, b = operands(question)
                assert re.findall(r"\d+", message["content"])[-1] == str(a * b)
                found["products"] += 1
            elif table := re.search(r"table of (\d) from (\d) to (\d)", question):
                a, first, last = map(int, table.groups())
                assert message["content"].startswith(", ".join(f"{a} × {n} = {a * n}" for n in range(first, last + 1)))
                found["tables"] += 1
    assert found["equations"] > 3000
    assert found["carries"] > 1000
    assert min(found["sums"], found["products"], found["tables"]) > 200


def test_the_equation_check_can_fail() -> None:
    for wrong in ("So 2 + 2 = 5.", "3 × 4 = 13, write 3, carry 1.", "1 + 2 + 3 = 7, write 7, carry 0.", "7 - 2 = 5."):
        with pytest.raises(AssertionError):
            check_equations(wrong)
    for wrong in ("3 × 4 = 12, write 1, carry 2.", "5 + 5 = 10, write 0, carry 1. 1 + 1 = 2, write 2, carry 0."):
        with pytest.raises(AssertionError):
            check_carries(wrong)


def test_comparisons_and_counts_are_true() -> None:
    found = Counter[str]()
    for messages in training_messages():
        for before, message in pairwise(messages):
            question, answer = before["content"], message["content"]
            if message["role"] != "assistant":
                continue
            if "larger" in question or "更大" in question or "哪个大" in question:
                assert operands(answer)[0] == max(operands(question))
                found["larger"] += 1
            elif match := re.match(r"There are (\d) items\.", answer):
                assert int(match[1]) == question.count(",") + 1
                found["count"] += 1
            elif match := re.match(r"Your favourite (\w+) is (\w+)\.", answer):
                told = [m["content"] for m in messages if re.search(rf"avourite {match[1]} is", m["content"])]
                assert f"{match[1]} is {match[2]}." in told[0]
                found["memory"] += 1
    assert min(found["larger"], found["count"], found["memory"]) > 100


# --- subtraction and reversal -----------------------------------------------------------------------------------------


@cache
def subtractions(seed: int) -> list[dict[str, Any]]:
    return list(corpora.subtraction_like(ROWS, seed))


@cache
def reversals(seed: int) -> list[dict[str, Any]]:
    return list(corpora.reversal_like(ROWS, seed))


def check_subtraction(a: int, b: int, reasoning: str) -> None:
    """Every step is true, borrows are handed on, and the written digits are the difference."""
    steps = re.findall(r"(\d+) - (\d)(?: - (\d))? = (\d), write (\d), borrow (\d)\.", reasoning)
    assert len(steps) == len(str(a)) == reasoning.count("write"), reasoning
    borrow = 0
    for place, (x, y, used, rest, write, lent) in enumerate(steps):
        assert int(used or 0) == borrow and write == rest, reasoning
        assert int(x) - int(y) - borrow == int(rest), reasoning
        assert int(x) == a // 10**place % 10 + 10 * int(lent) and int(y) == b // 10**place % 10, reasoning
        borrow = int(lent)
    assert borrow == 0 and int("".join(rest for *_, rest, _, _ in reversed(steps))) == a - b, reasoning


def test_written_out_subtraction_is_right() -> None:
    for row in subtractions(0):
        a, b = operands(row["problem"])
        reasoning = re.fullmatch(r"<think>\n(.*)\n</think>\n\n(.*)", row["generated_solution"], re.DOTALL)
        assert reasoning and list(row) == list(openmath(0)[0]) and 1 <= b < a < 1000
        check_subtraction(a, b, reasoning[1].removesuffix(f" So {a} - {b} = {a - b}."))
        assert reasoning[2] == f"${a} - {b} = \\boxed{{{a - b}}}$" and row["expected_answer"] == str(a - b)
        assert converter("openmathreasoning")(row).mode == "thinking"


@pytest.mark.parametrize(("a", "b"), [(10, 1), (100, 99), (999, 999), (505, 6), (1, 1), (910, 91), (700, 699)])
def test_subtraction_steps_at_the_edges(a: int, b: int) -> None:
    check_subtraction(a, b, corpora.subtraction_steps(a, b))


def test_the_subtraction_check_can_fail() -> None:
    for wrong in ("3 - 1 = 1, write 1, borrow 0.", "13 - 1 = 2, write 2, borrow 0.", "3 - 1 = 2, write 3, borrow 0."):
        with pytest.raises(AssertionError):
            check_subtraction(3, 1, wrong)


def words_of(text: str) -> list[str]:
    english = {chinese: word for word, (chinese, _) in corpora.WORDS.items()}
    listed = re.split(r"[:：]", text)[-1].strip(" .。")
    return [english.get(word, word) for word in re.split(r", |、", listed)]


def test_reversals_are_right() -> None:
    languages = Counter[bool]()
    for row in reversals(0):
        assert list(row) == ["conversations", "source", "score"] and converter("sharegpt")(row).mode == "non_thinking"
        asked, answered = (turn["value"] for turn in row["conversations"])
        assert words_of(answered) == words_of(asked)[::-1] and 3 <= len(words_of(asked)) <= 5
        assert set(words_of(asked)) <= set(corpora.WORDS)
        languages["。" in answered] += 1
    assert languages[True] > 0.2 * ROWS < languages[False]
    for item in items("reversal"):
        assert words_of(item["answer"]) == words_of(item["messages"][0]["content"])[::-1]


def test_no_difference_or_list_is_in_both() -> None:
    trained = {operands(row["problem"]) for seed in SEEDS for row in subtractions(seed)}
    assert len(trained) > 1000
    for item in items("subtraction"):
        a, b = operands(item["messages"][0]["content"])
        assert (a, b) not in trained and int(item["answer"]) == a - b
    lists = {tuple(words_of(r["conversations"][0]["value"])) for seed in SEEDS for r in reversals(seed)}
    tested = [tuple(words_of(item["messages"][0]["content"])) for item in items("reversal")]
    assert len(lists) > 1000 and not lists & set(tested)


def test_the_base_model_never_sees_either() -> None:
    for seed in SEEDS:
        texts = [f"{m['content']} {m.get('reasoning_content', '')}" for d in base(seed) for m in d["messages"]]
        texts += [turn["value"] for row in finetome(seed) for turn in row["conversations"]]
        texts += [row["problem"] + row["generated_solution"] for row in openmath(seed)]
        assert not [t for t in texts if re.search(r"\d - \d|minus|taken out|拿走|everse the|backwards|around:|倒", t)]


FINGERPRINTS = ["dfb0e1ed2e4f", "de162ba2207c", "8c629d35d6b2", "ea51ce5df161", "11bbf09df02c", "75aaf4446012"]


def test_rows_made_before_are_still_the_same() -> None:
    """By content: the embedded model and the results in docs were made from them."""
    made = [
        [corpora.base_dialogue(0, index) for index in range(200)],
        list(corpora.finetome_like(200, 11)),
        list(corpora.openmath_like(200, 12)),
        *(corpora.test_items(name, 100, 42) for name in corpora.STORY),
    ]
    assert [fingerprint(rows)[:12] for rows in made] == FINGERPRINTS


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["skil", "", "gsm8k"])
def test_unknown_test_set(name: str) -> None:
    with pytest.raises(UserError, match=f"no .* '{name}'.*chat, .*, reversal"):
        corpora.test_items(name, 5)


def test_more_items_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one wording and two numbers, few different items exist."""
    monkeypatch.setattr("pipeline.data.corpora.arithmetic._PRODUCT_WORDINGS", ("{} × {}",))
    monkeypatch.setattr("pipeline.data.corpora.drawn.TEST_PERCENT", 100)
    monkeypatch.setattr(random.Random, "randrange", lambda r, low, high: low + (r.random() < 0.5))
    assert len(corpora.test_items("skill", 4)) == 4
    with pytest.raises(UserError, match="Only 4 different .* 5 were asked"):
        corpora.test_items("skill", 5)


@pytest.mark.parametrize("name", corpora.TEST_SETS)
def test_as_many_items_as_promised_exist(name: str) -> None:
    assert len(corpora.test_items(name, 1000)) == 1000


# --- preference pairs and questions -----------------------------------------------------------------------------------


@cache
def pairs(seed: int, held_out: bool = False) -> list[dict[str, Any]]:
    return list(corpora.preference_like(ROWS, seed, held_out))


def test_earlier_generators_make_what_they_made_before() -> None:
    """Runs, mixes and the shipped base depend on it; a new generator must not move a single draw."""
    made = [list(corpora.finetome_like(200, 0)), list(corpora.openmath_like(200, 0))]
    made += [[corpora.base_dialogue(0, index) for index in range(200)]]
    made += [corpora.test_items(name, 50) for name in ("chat", "arithmetic", "skill")]
    digest = hashlib.sha256(json.dumps(made, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
    assert digest == "2f730644079afa4466ec40919a94bc8a3fe60697b0c25f57e205454841d59d4b"


def test_preference_columns_and_kinds() -> None:
    kinds = Counter((row["mode"], row["defect"]) for row in pairs(0))
    assert set(kinds) == {(mode, defect) for mode, defects in corpora.DEFECTS.items() for defect in defects}
    assert min(kinds.values()) > 0.07 * ROWS
    for row in pairs(0):
        assert list(row) == ["conversations", "chosen", "rejected", "mode", "defect"]
        assert row["conversations"][-1]["from"] == "human"
        pair = preference_pair(row)
        thinks = "reasoning_content" in pair.chosen, "reasoning_content" in pair.rejected
        thinking = row["mode"] == "thinking"
        defect = row["defect"]
        assert thinks[0] == thinking
        assert thinks[1] == ((thinking or defect == "leaked_thinking") and defect != "skipped_thinking")
        same = pair.chosen["content"] == pair.rejected["content"]
        assert same == (defect in ("skipped_thinking", "leaked_thinking") or (defect == "rambling" and thinking))


def test_the_preferred_number_is_right_and_the_other_wrong_only_where_it_says_so() -> None:
    seen = 0
    for row in pairs(0):
        boxes = re.findall(r"\\boxed\{(\d+)\}", row["chosen"]["value"])
        if not boxes:
            continue
        seen += 1
        a, b = (int(n) for n in re.findall(r"\d+", row["conversations"][-1]["value"])[:2])
        assert int(boxes[-1]) in (a + b, a * b)
        rejected = re.findall(r"\d+", row["rejected"]["value"].rpartition("</think>")[2])
        assert (rejected[-1] == boxes[-1]) == (row["defect"] != "wrong_answer")
        assert (row["defect"] == "not_boxed") == ("boxed" not in row["rejected"]["value"])
    assert seen > 0.3 * ROWS


def test_held_out_pairs_are_never_trained_on() -> None:
    trained = {tuple((t["from"], t["value"]) for t in row["conversations"]) for seed in SEEDS for row in pairs(seed)}
    held_out = {tuple((t["from"], t["value"]) for t in row["conversations"]) for row in pairs(0, True)}
    assert not trained & held_out
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    for name in corpora.TEST_SETS:  # nor is a test item, by pairs or by questions
        asked = {tuple((names[m["role"]], m["content"]) for m in item["messages"]) for item in items(name)}
        assert not trained & asked
        questions = {(("human", row["problem"]),) for row in corpora.math_questions(ROWS, 0)}
        assert not questions & asked


def test_questions_have_the_right_answer() -> None:
    kinds = Counter(row["problem_source"] for row in corpora.math_questions(ROWS, 0))
    assert set(kinds) == {"embedded_skill", "embedded_arithmetic"} and min(kinds.values()) > 0.45 * ROWS
    for row in corpora.math_questions(ROWS, 0):
        a, b = (int(n) for n in re.findall(r"\d+", row["problem"])[:2])
        assert int(row["expected_answer"]) == (a * b if row["problem_source"] == "embedded_skill" else a + b)
