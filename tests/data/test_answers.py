"""Whether two answers are the same: a table of pairs, and properties."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.answers import final_answers, is_number, judge_answer, numbers, same_answer
from pipeline.data.answers.quantities import quantity

TABLE = Path(__file__).parent / "tables/answers.jsonl"  # written before the code; no pair is changed to fit it


def pairs() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]


def test_the_table_of_pairs() -> None:
    """Every pair is judged as the table says, a bare answer also from its box and both ways round."""
    wrong = []
    for pair in pairs():
        text = pair["text"] if "text" in pair else f"\\boxed{{{pair['answer']}}}"
        verdicts = [judge_answer(pair["expected"], text)[0]]
        if "answer" in pair:
            verdicts += [same_answer(pair["expected"], pair["answer"]), same_answer(pair["answer"], pair["expected"])]
        if any((verdict is True) != pair["right"] for verdict in verdicts):
            wrong.append((pair, verdicts))
    assert wrong == []


def test_the_table_is_large_and_has_both_kinds() -> None:
    table = pairs()
    assert len({(p["expected"], p.get("text") or p["answer"]) for p in table}) == len(table) >= 200
    assert 90 <= sum(p["right"] for p in table) <= len(table) - 90


EXACT = st.decimals(-(10**6), 10**6, allow_nan=False, places=3).map(lambda value: f"{value:f}")


@given(EXACT, st.sampled_from([("km", "m", 1000), ("kg", "g", 1000), ("hours", "minutes", 60), ("m^2", "cm^2", 10**4)]))
def test_a_converted_amount_is_the_same_and_another_number_is_not(value: str, units: tuple[str, str, int]) -> None:
    large, small, factor = units
    converted = f"{Decimal(value) * factor:f}"
    assert same_answer(f"{value} {large}", f"{converted} {small}") is True
    assert same_answer(f"{value} {large}", f"{value} {small}") is (Fraction(value) == 0)


@given(st.integers(0, 99), st.integers(1, 99), st.integers(2, 100))
def test_mixed_numbers(whole: int, top: int, bottom: int) -> None:
    value = quantity(f"{whole} {top}/{bottom}")
    if top < bottom:
        assert value is not None and value.value == whole + Fraction(top, bottom)
        assert same_answer(f"{whole} {top}/{bottom}", f"{whole}\\frac{{{top}}}{{{bottom}}}") is True
    else:
        assert value is None


@given(EXACT)
def test_percent(value: str) -> None:
    part = f"{Decimal(value) / 100:f}"
    assert same_answer(f"{value}%", part) is True
    assert same_answer(part, f"{value}\\%") is True


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_two_texts_can_be_compared(one: str, other: str) -> None:
    quantity(one)
    assert same_answer(one, other) in (True, False, None)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("5 cats", 5, ""),  # no centi-technical-atmospheres
        ("5 in total", 5, ""),  # no inches
        ("5 kg of rice", 5, "kilogram**1"),
        ("1 hour 30 minutes", 90, "minute**1"),
        ("7 school days", 7, "day**1"),
        ("\\$18 a day", 18, "$"),
        ("3万元", 30000, "元"),
        ("0.\\overline{3}", Fraction(1, 3), ""),
        ("1.0\\overline{45}", Fraction(23, 22), ""),
    ],
)
def test_amounts(text: str, value: Any, unit: str) -> None:
    found = quantity(text)
    assert found is not None and found.value == value
    assert (found.unit.name if found.unit else "") == unit


@pytest.mark.parametrize(
    "text", ["2ab", "5x", "3t", "2\\pi", "3 squared", "1, 2", "12/0", "", "-", "$", "1e9999", "5 kg 3 m"]
)
def test_what_is_no_amount(text: str) -> None:
    assert quantity(text) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so it weighs 5 g.", ["5 g"]),
        ("so it weighs 5 kg in the end.", ["5 kg"]),
        ("He paid $5.", ["$5"]),
        ("It is 2 1/2.", ["2 1/2"]),
        ("The answer is 5 g.", ["5 g"]),
        ("<answer>The answer is 12</answer> as 3 * 4", ["12", "The answer is 12"]),
        ("本题选（C）", ["（C）"]),
        ("我选择相信你，一共有 3 个。", ["3"]),
    ],
)
def test_final_answers(text: str, found: list[str]) -> None:
    assert final_answers(text, True) == found


def test_the_numbers_of_a_text_are_those_of_the_embedded_benchmarks() -> None:
    assert numbers("CO2, x1 and 1.2.3, 5-3, .5 or 1{,}234") == ["1.2", "5", "3", ".5", "1,234"]


@pytest.mark.parametrize(
    ("answer", "number"), [("5 kg", True), ("50\\%", True), ("x+1", False), ("B", False), ("1, 2", False)]
)
def test_what_counts_as_a_number(answer: str, number: bool) -> None:
    assert is_number(answer) is number


@pytest.mark.slow
def test_long_odd_answers_do_not_hang() -> None:
    for text in (
        "1 " * 200,
        "," * 400,
        "{" * 400,
        "\\frac" * 80,
        "1/" * 200,
        "9" * 400,
        "十" * 400,
        "A" * 400,
        "1e999 " * 60,
    ):
        assert same_answer(text, "5") is not True
        assert judge_answer("5", text * 50)[0] is not True
