"""The row-local cleaning steps: each leaves out what it should, keeps what only resembles it, and says why."""

from __future__ import annotations

import copy
import json
import pickle
import re
import threading
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data import corpora
from pipeline.data.answers import boxed, final_answers, numbers, same_answer
from pipeline.data.cleaning.clean import STEPS, Cleaner
from pipeline.data.cleaning.languages import LANGUAGES, language_of
from pipeline.data.cleaning.normalise import normalise
from pipeline.data.cleaning.protected import prose, protected_spans
from pipeline.data.cleaning.refusals import is_refusal
from pipeline.data.cleaning.repetition import OFTEN, ROUNDS, looping_part
from pipeline.data.conversations import (
    Conversation,
    Message,
    Rejected,
    from_alpaca,
    from_openmathreasoning,
    from_sharegpt,
)
from pipeline.settings import CleanSettings


def conversation(answer: str, reasoning: str | None = None, question: str = "What is it?") -> Conversation:
    message: Message = {"role": "assistant", "content": answer}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    return Conversation([{"role": "user", "content": question}, message], "thinking" if reasoning else "non_thinking")


def clean(given: Conversation, row: dict[str, Any] | None = None, **settings: Any) -> tuple[Conversation, list[str]]:
    """One call with those settings; that the input is untouched is checked every time."""
    before = copy.deepcopy(given)
    result, changes = Cleaner(CleanSettings(**settings))(given, row or {})
    assert given == before
    assert all(change.step in STEPS and 0 < len(change.example) <= 160 for change in changes)
    return result, [change.step for change in changes]


def reason(given: Conversation, row: dict[str, Any] | None = None, **settings: Any) -> str:
    """Why the row is left out; "" if it is kept."""
    (step,) = settings
    try:
        clean(given, row, **settings)
    except Rejected as rejected:
        assert rejected.step == step
        assert len(rejected.detail) <= 200
        return rejected.reason
    return ""


# --- the cleaner ----------------------------------------------------------------------------------------------------------


def test_no_step_is_on_by_default() -> None:
    given = conversation("I'm sorry, but I can't assist with that.  ", "")
    assert clean(given) == (given, [])
    assert Cleaner(CleanSettings()).steps == []


def test_the_steps_are_settings_in_their_order() -> None:
    names = [name for name in CleanSettings.model_fields if name in STEPS]
    assert names == list(STEPS)


def test_a_cleaner_can_be_sent_to_another_process() -> None:
    cleaner = pickle.loads(pickle.dumps(Cleaner(CleanSettings(normalise=True, languages=["en"]))))
    assert cleaner(conversation("a\n"), {})[0].messages[1]["content"] == "a"


def test_the_first_step_that_objects_is_named() -> None:
    with pytest.raises(Rejected) as caught:
        clean(conversation(""), {}, score={"at_least": 1}, length={})
    assert (caught.value.reason, caught.value.step) == ("no_score", "score")


def test_a_reason_does_not_quote_personal_data() -> None:
    with pytest.raises(Rejected) as caught:
        clean(conversation("I'm sorry, but I can't help a@b.com with that."), refusals=True, personal_data={})
    assert "a@b.com" not in caught.value.detail
    assert "[EMAIL]" in caught.value.detail


# --- normalise --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\u200bb\ufeffc\xadd\x00e\x07f\x9fg\u2060h", "abcdefgh"),
        ("if \u202eadmin\u202c\u2066x\u2069", "if adminx"),
        ("a\xa0b", "a b"),
        ("one  two   three.  Four", "one two three. Four"),
        ("line \t\nnext  ", "line\nnext"),
        ("a\n\n\n\n\nb", "a\n\n\nb"),
        ("\n\na\n\n", "a"),
        ("a\u2028b\x0cc", "a\nb\nc"),
        ("cafe\u0301 Vie\u0323\u0302t e\u0302\u0301 \u0438\u0306 \u03b1\u0301", "café Việt ế й ά"),
        ("cafÃ© â€œhiâ€\x9d, itâ€™s", "café “hi”, it’s"),
        ("- item  one\n\n  - item  two", "- item one\n\n  - item two"),
    ],
)
def test_normalise_mends(text: str, expected: str) -> None:
    assert normalise(text, spaces=True) == expected


@pytest.mark.parametrize(
    "text",
    [
        "First line.  \nSecond line.  It goes on.",  # a hard break of Markdown, two spaces behind a full stop
        "one  two   three ",
        "What does this print?\n>>> for i in range(2):\n...     pass",
        "for i in range(2):\n  if i:\n    print(i)  # two\n",
        "Name:   Ann",
    ],
)
def test_spaces_are_the_authors_unless_the_recipe_evens_them_out(text: str) -> None:
    assert normalise(text) == text.rstrip("\n")
    assert clean(conversation(text.strip()), normalise=True)[1] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("First line.  \nSecond line.  It goes on.", "First line.  \nSecond line. It goes on."),
        ("First line.    \nSecond  ", "First line.  \nSecond"),
        ("A paragraph.  \n\nAnother", "A paragraph.\n\nAnother"),
        (">>> for i in range(2):\n...     pass", ">>> for i in range(2):\n...     pass"),
        ("$ ls  -l\nIn [3]:  x", "$ ls  -l\nIn [3]:  x"),
    ],
)
def test_hard_breaks_and_prompts_survive_even_then(text: str, expected: str) -> None:
    assert normalise(text, spaces=True) == expected
    assert clean(conversation(text), normalise="spaces")[0].messages[1]["content"] == expected


@pytest.mark.parametrize(
    "text",
    [
        "½ ² ﬁ ① ℝ № ™ … ，。！？（）　全角 ＡＢＣ １２３ ｶﾅ",
        "\uf900\ufa0e \u212b \u2126 \u1fef \u0958",  # NFC would replace all of them
        "か\u3099 は\u309a \u1100\u1161",
        "👩\u200d👩\u200d👧 می\u200cخواهم क्\u200dष \u200eabc\u200f",
        "　　第一段，全角空格开头。",
        "x = { 'a':  1,   'b': 2 }",
        "print('a  b')",
        "| a   | b |\n|-----|---|\n| 1   | 2 |",
        "name      age\nAnn       12\nBartholomew 7",
        "def f(x):\n    y  = x   # two  \n\n\n\n    return  y",
        "`a  b\u200b` and ``c  `  d``",
        "```python\nx =  1 \t\n\n\n\n\ny\xa0= 2\u200b\n```",
        "~~~\na  b \n```\nc  d \n~~~",
        "text\n```\nnever  closed \n\n\n\n\n",
        "$a  +  b$, $$c \\\\  d \n\n\n\n e$$, \\(f  g\\), \\[h \n  i \\]",
        "\\begin{align}a &=  b \\\\ \n \\begin{align}x  y\\end{align}  c\\end{align}",
        "<pre>a  b \n\n\n\n\nc</pre>",
        "NÃO É SÃO, Â and Ã, L'ÂGE",
        "In UTF-8 read as Latin-1, é becomes Ã©.",
        "x\u0302 q\u0307",  # no composed form exists
        "a \u2264 b, 10\u202f000, \u2009thin",
    ],
)
def test_normalise_leaves_alone(text: str) -> None:
    assert normalise(text) == text
    assert normalise(text, spaces=True) == text


def test_money_is_not_mathematics() -> None:
    text = "It costs $5  or maybe  $6, and $x + y$ more"
    assert [text[a:b] for a, b in protected_spans(text)] == ["$x + y$"]
    assert normalise(text, spaces=True) == "It costs $5 or maybe $6, and $x + y$ more"


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("a `b` c", ["`b`"]),
        ("a ` b\n\nc ` d", []),
        ("\\$5 and \\`x\\`", []),
        ("- ```py\n  x\n  ```\nafter", ["- ```py\n  x\n  ```"]),
        ("```a``` b", ["```a```"]),
        ("````\n```\nx\n````\ny", ["````\n```\nx\n````"]),
        ("$ x = 1 $ and $ 5", ["$ x = 1 $"]),
        ("\\(a and \\[b", []),
        ("x \\\\[4pt] y", []),
    ],
)
def test_what_counts_as_code_or_mathematics(text: str, spans: list[str]) -> None:
    assert [text[start:end] for start, end in protected_spans(text)] == spans


PIECES = st.sampled_from(
    [
        *("  ", "\n", "\n\n\n\n", "\t", "\xa0", "\u200b", "\r\n", "    x", "a", "é", "e\u0301", "Ã©", "。"),
        *("`", "```", "$", "$$", "\\(", "\\)", "|"),
    ]
)
DIRTY = st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=14).map("".join)


@given(DIRTY)
def test_normalise_twice_changes_nothing_more(text: str) -> None:
    for spaces in (False, True):
        once = normalise(text, spaces)
        assert normalise(once, spaces) == once


PROSE = st.lists(
    st.sampled_from(["word", " ", "  ", "\n", "\n\n\n\n\n", "\xa0", "\u200b", "é", "e\u0301", "，", "字", ". ", "42"]),
    max_size=12,
).map("".join)
BODY = st.text(
    st.characters(blacklist_characters="`$\\~\r\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069", codec="utf-8"),
    max_size=40,
)
FRAMES = [
    ("\n```py\n", "\n```\n"), ("\n~~~\n", "\n~~~\n"), ("`x", "x`"), ("$$", "$$"), ("$x", "x$"), ("\\(", "\\)"), ("\\[", "\\]"),
    ("\\begin{aligned}", "\\end{aligned}"), ("<pre>", "</pre>"),
]  # fmt: skip


@given(before=PROSE, frame=st.sampled_from(FRAMES), body=BODY, after=PROSE)
def test_code_and_mathematics_survive_byte_for_byte(before: str, frame: tuple[str, str], body: str, after: str) -> None:
    opening, closing = frame
    if opening in ("`x", "$x"):
        body = body.replace("\n", " ")
    body = body.replace("</pre", "")
    code = f"{opening.strip()}{'' if opening[0] != chr(10) else chr(10)}{body}"
    for spaces in (False, True):
        result = normalise(f"{before}{opening}{body}{closing} {after}", spaces)
        assert code + closing.rstrip("\n") in result


@given(st.text(st.characters(categories=["Lo", "Po", "No", "So", "Sm"]), max_size=30))
def test_letters_of_other_scripts_and_symbols_stay(text: str) -> None:
    kept = "".join(c for c in text if c not in "`$\\~<")
    assert normalise(f"x{kept}x") == f"x{kept}x"


def test_normalise_changes_answers_and_reasoning_but_not_what_tools_say() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"q": "a  b "}}}
    messages: list[Message] = [
        {"role": "system", "content": "s "},
        {"role": "user", "content": "u  u"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "t  t "},
        {"role": "assistant", "content": "a\u200bb", "reasoning_content": "r  r"},
    ]
    result, steps = clean(Conversation(messages, "thinking", tools=[{"d": "x  y"}]), normalise="spaces")
    assert steps == ["normalise"]
    assert [m["content"] for m in result.messages] == ["s", "u u", "", "t  t ", "ab"]
    assert result.messages[4]["reasoning_content"] == "r r"
    assert result.messages[2]["tool_calls"] == [call]
    assert result.tools == [{"d": "x  y"}]


def test_a_change_shows_what_was_invisible_but_no_personal_data() -> None:
    cleaner = Cleaner(CleanSettings(normalise=True))
    assert cleaner(conversation("zero\u200bwidth"), {})[1][0].example == "zero\\u200bwidth → zerowidth"
    example = cleaner(conversation("write to ann\u200b@example.com"), {})[1][0].example
    assert "ann" not in example


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (conversation("\u200b"), "empty_answer"),
        (conversation("a", "\u200b \u2060"), "empty_reasoning"),
        (conversation("a", question="\ufeff"), "empty_prompt"),
    ],
)
def test_what_normalises_to_nothing_is_left_out(given: Conversation, why: str) -> None:
    assert reason(given, normalise=True) == why


# --- score ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"score": 4.5}, ""),
        ({"score": 4}, ""),
        ({"score": " 4.0 "}, ""),
        ({"score": 3.99}, "low_score"),
        ({"score": "-1e3"}, "low_score"),
        ({"score": float("nan")}, "no_score"),
        ({"score": "inf"}, "no_score"),
        ({"score": "good"}, "no_score"),
        ({"score": None}, "no_score"),
        ({"score": True}, "no_score"),
        ({"score": [5]}, "no_score"),
        ({"score": 10**400}, "no_score"),
        ({}, "no_score"),
    ],
)
def test_score(row: dict[str, Any], why: str) -> None:
    assert reason(conversation("a"), row, score={"at_least": 4}) == why


def test_score_of_another_column() -> None:
    assert reason(conversation("a"), {"quality": 1}, score={"field": "quality", "at_least": 2}) == "low_score"


# --- broken reasoning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reasoning", "why"),
    [
        ("4", "2 + 2 is 4.", ""),
        ("4", None, ""),
        ("4", "So the answer is:", ""),
        ("4", "The set is {1, 2}, and $x_{1}$ is 4", ""),
        ("4", "It is f(x) = {4", ""),
        ("4", "```\ncode\n```", ""),
        ("4", "Costs $5 and {", "reasoning_cut"),
        ("4", " . … \n", "empty_reasoning"),
        ("4", "", "empty_reasoning"),
        ("", "Long thought.", "empty_answer"),
        (" \n", None, "empty_answer"),
        ("4", "one</think>two", "think_tag_inside"),
        ("<think>4", "thought", "think_tag_inside"),
        ("`</think>` 4", None, ""),  # in a code span it is text
        ("The same.", "The same. ", "reasoning_is_answer"),
        ("4", "First we add two,", "reasoning_cut"),
        ("4", "首先，我们计算，", "reasoning_cut"),
        ("4", "so f(", "reasoning_cut"),
        ("4", "which gives \\frac{1", "reasoning_cut"),
        ("4", "so \\boxed{\\frac{1}{2} + x^{2", "reasoning_cut"),
        ("4", "so:\n```python\nx = 1", "reasoning_cut"),
    ],
)
def test_broken_reasoning(answer: str, reasoning: str | None, why: str) -> None:
    assert reason(conversation(answer, reasoning), broken_reasoning=True) == why


def test_a_tool_call_needs_no_words() -> None:
    given = conversation("")
    given.messages[1]["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    for settings in ({"broken_reasoning": True}, {"length": {"min_answer": 5}}, {"refusals": True}):
        assert reason(given, **settings) == ""
    assert reason(given, {"expected_answer": "4"}, check_answer=True) == ""


# --- check answer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "answer", "why"),
    [
        ("5", "So \\boxed{5}.", ""),
        ("5", "\\boxed{4}, no: \\boxed{5}", ""),
        ("5", "\\boxed{5}, no: \\boxed{4}", "wrong_answer"),
        ("2, 3", "\\boxed{2} and \\boxed{3}", ""),
        ("\\frac{1}{2}", "\\boxed{\\dfrac{1}{2}}", ""),
        ("\\frac{1}{2}", "\\boxed{0.5}", ""),
        ("1/3", "\\boxed{0.33}", "wrong_answer"),
        ("\\frac{\\sqrt{2}}{2}", "$\\boxed{\\frac{1}{\\sqrt{2}}}$", ""),
        ("x^2-1", "\\boxed{(x-1)(x+1)}", ""),
        ("\\{1,2\\}", "\\boxed{\\{2, 1\\}}", ""),
        ("5", "\\boxed{x = 5}", ""),
        ("1000", "\\boxed{1{,}000 \\text{ cm}}", ""),
        ("50", "\\boxed{50\\%}", ""),
        ("-3", "\\boxed{−3}", ""),
        ("\\text{east}", "\\boxed{East}", ""),
        ("\\text{east}", "\\boxed{\\text{west}}", "wrong_answer"),
        ("Yes", "\\boxed{\\textbf{yes}.}", ""),
        ("B", "\\boxed{(B)}", ""),
        ("B", "\\boxed{\\text{B. Paris}}", ""),
        ("B", "\\boxed{C}", "wrong_answer"),
        ("720", "That is $720. The answer is 720", ""),
        ("720", "The answer is $720.00 dollars.", ""),
        ("40", "He answered 43 questions, 3 wrong. The answer is 40", ""),
        ("40", "The answer is 40. Check: 20 + 20", ""),
        ("1200", "答案是1,200元。", ""),
        ("72", "6 * 12 = 72\n#### 72", ""),
        ("72", "6 * 12 = 73\n#### 73", "wrong_answer"),
        ("7", "Three and four make 7.", ""),
        ("7", "I do not know.", "no_final_answer"),
        ("7", "\\boxed{7", ""),  # the box is open, the last number counts
        ("yes", "Yes.", ""),
        ("x+1", "It is a very long story " * 10, "no_final_answer"),
        ("2^{99999}", "\\boxed{2^{99998}}", "unchecked_answer"),
        ("9^{9^9}", "\\boxed{9^{9^{9}}+1}", "unchecked_answer"),
        ("1" * 500, "\\boxed{" + "x" * 500 + "}", "unchecked_answer"),
        ("7" * 5000, "7", "unchecked_answer"),
        ("7" * 5000, "The answer is " + "7" * 5000, ""),
        ("7", "7" * 5000, "unchecked_answer"),
        ("\\boxed{" * 40_000, "7", "unchecked_answer"),
        ("long " * 60_000 + "\\boxed{7}", "7", ""),
        (5, "\\boxed{5.0}", ""),
        (None, "\\boxed{5}", ""),
        ("", "\\boxed{5}", ""),
        (float("nan"), "\\boxed{5}", ""),
    ],
)
def test_check_answer(expected: Any, answer: str, why: str) -> None:
    assert reason(conversation(answer), {"expected_answer": expected}, check_answer=True) == why


def test_a_row_without_an_expected_answer_is_kept() -> None:
    assert reason(conversation("no number"), {}, check_answer=True) == ""


def test_a_wrong_answer_says_both() -> None:
    with pytest.raises(Rejected, match="expected '5', found '4'"):
        clean(conversation("\\boxed{4}"), {"expected_answer": "5"}, check_answer=True)


def test_answers_are_compared_in_a_thread_too() -> None:
    verdicts: list[bool | None] = []
    thread = threading.Thread(target=lambda: verdicts.append(same_answer("(a+b)^2", "a^2+2ab+b^2")))
    thread.start()
    thread.join(60)
    assert verdicts == [True]


def test_boxes() -> None:
    assert boxed("\\boxed{a{b}c} \\fbox {d\\}} \\boxed{") == ["a{b}c", "d\\}"]
    assert final_answers("a \\boxed{1} b \\boxed{2}", True) == ["2", "1, 2"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("一共有42个苹果", ["42"]),  # a Chinese character is no letter of a name
        ("CO2, x1 and 1.2.3", ["1.2"]),
        ("5-3, then -3 or −4", ["5", "3", "-3", "−4"]),
        ("1,234 or 1{,}234 or .5", ["1,234", "1,234", ".5"]),
    ],
)
def test_numbers_of_a_text(text: str, found: list[str]) -> None:
    assert numbers(text) == found


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_plain_numbers_are_compared_exactly(a: int, b: int) -> None:
    assert same_answer(str(a), f"{b:,}") == (a == b)


def test_wrong_answers_of_real_rows(shared_data: Path) -> None:
    lines = (shared_data / "eval/gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()
    gold = {r["question"]: r["answer"].rpartition("####")[2].strip() for r in map(json.loads, lines)}
    rows = json.loads((shared_data / "reason/gsm8k_gemini_cot_level2.json").read_text(encoding="utf-8"))[:1500]
    cleaner = Cleaner(CleanSettings(check_answer=True))
    wrong = right = 0
    for row in rows:
        expected = gold.get(row["instruction"])
        stated = row["output"].rpartition("The answer is")[2].strip(" .").replace(",", "")
        if expected is None or not re.fullmatch(r"-?[\d.]+", stated):
            continue
        try:
            cleaner(from_alpaca(row), {"expected_answer": expected})
            right += 1
            assert float(stated) == float(expected.replace(",", ""))
        except Rejected as rejected:
            assert rejected.reason == "wrong_answer"
            wrong += 1
            assert float(stated) != float(expected.replace(",", ""))
    assert right > 1000
    assert 0.03 < wrong / (wrong + right) < 0.07  # "about 5 %" says the data's description


# --- length -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, ""),
        ({"min_answer": 7}, ""),
        ({"min_answer": 8}, "too_short"),
        ({"max_answer": 7}, ""),
        ({"max_answer": 6}, "too_many_characters"),
        ({"min_prompt": 12}, "too_short"),
        ({"max_prompt": 10}, "too_many_characters"),
    ],
)
def test_length_in_characters_without_reasoning(settings: dict[str, int], why: str) -> None:
    assert reason(conversation(" answer. ", "r" * 1000, "question 11"), length=settings) == why


# --- repetition -------------------------------------------------------------------------------------------------------------

VARIED = " ".join(f"word{i} then{i * 7 % 13}" for i in range(120))
LOOP = "I will check the sum once more and see whether it holds. " * 30


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (VARIED, ""),
        (LOOP, "repetitive"),
        ("我们再检查一遍这个结果是否正确。" * 20, "repetitive"),
        ("We won!\n" * 6, ""),  # a chorus
        ("a" * 200, "repetitive"),
        ("哈" * 300, "repetitive"),
        ("0" * 300, ""),  # a large power of ten
        ("-" * 300 + "\n" + "=" * 300, ""),
        ("😀\n" * 100, "repetitive"),
        ("ab" * 300, "repetitive"),
        (f"```\n{'x = x + 1; ' * 200}\n```", ""),
        ("\n".join(f"| {i} | {i * i} | {i**3} |" for i in range(80)), ""),
    ],
)
def test_repetition_in_answer_and_reasoning(text: str, why: str) -> None:
    assert reason(conversation(text), repetition={}) == why
    assert reason(conversation("4", text), repetition={}) == why


def test_answer_and_reasoning_are_judged_alone() -> None:
    assert reason(conversation(VARIED, VARIED + " so"), repetition={}) == ""


def words_of(number: int, seed: int = 0) -> str:
    """Different words, no two alike."""
    return " ".join(f"w{seed}x{i}" for i in range(number))


def test_looping_part() -> None:
    assert looping_part(VARIED, 8) == 0
    assert looping_part(LOOP, 8) > 0.9
    assert looping_part("short " * 20, 8) == 0
    # Said without a pause; with something else between, so often does not make a loop.
    block = words_of(50)
    assert looping_part(" ".join([block] * (ROUNDS - 1)), 8) == 0
    assert looping_part(" ".join([block] * ROUNDS), 8) == 1
    assert looping_part(f"{words_of(200, 1)} {' '.join([block] * ROUNDS)} {words_of(100, 2)}", 8) == 200 / 500
    assert looping_part(" ".join(f"{block} {words_of(10, i)}" for i in range(2, OFTEN + 1)), 8) == 0
    assert looping_part(" ".join(f"{block} {words_of(10, i)}" for i in range(2, OFTEN + 2)), 8) > 0.8


@given(st.lists(st.sampled_from("abc"), max_size=200), st.integers(2, 9))
def test_the_looping_part_is_a_part(letters: list[str], ngram: int) -> None:
    assert 0 <= looping_part(" ".join(letters), ngram) <= 1


SONG = "\n\n".join(
    [words_of(60, 1), *[words_of(50, 9)] * 2, words_of(60, 2), *[words_of(50, 9)] * 2, words_of(40, 3), words_of(50, 9)]
)
WEEK = "\n".join(
    f"{day}: 10 minutes of warm-up, then three rounds of ten squats, ten push-ups and a plank, then a slow walk and stretching."
    for day in "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
)
CODE = "\n".join(f"value_{i} = read(source, {i}, default=None, strict=True)\ncheck(value_{i})" for i in range(40))


@pytest.mark.parametrize("text", [SONG, WEEK, f"{CODE}\nBetter:\n{CODE}", VARIED + "\n" + VARIED])
def test_what_repeats_by_nature_is_no_loop(text: str) -> None:
    assert reason(conversation(text), repetition={}) == ""


def test_a_loop_may_be_the_whole_text() -> None:
    assert reason(conversation(LOOP), repetition={"at_most": 1}) == ""


# --- languages --------------------------------------------------------------------------------------------------------------

TEXTS = {
    "en": "The river rises in the mountains and flows through three countries before it reaches the sea.",
    "zh": "这条河发源于山区，流经三个国家，最后注入大海。",
    "ja": "この川は山から流れ出し、三つの国を通って海に注ぎます。",
    "ko": "이 강은 산에서 시작되어 세 나라를 지나 바다로 흘러갑니다.",
    "es": "El río nace en las montañas y atraviesa tres países antes de llegar al mar.",
    "fr": "Le fleuve prend sa source dans les montagnes et traverse trois pays avant la mer.",
    "de": "Der Fluss entspringt in den Bergen und fließt durch drei Länder, bevor er das Meer erreicht.",
    "ru": "Река берёт начало в горах и протекает через три страны, прежде чем впадает в море.",
}


@pytest.mark.parametrize("language", TEXTS)
def test_languages_are_told_apart(language: str) -> None:
    assert language_of(TEXTS[language]) == language
    given = conversation(TEXTS[language], question=TEXTS[language])
    assert reason(given, languages=[language]) == ""
    assert reason(given, languages=["it"]) == "wrong_language"


@pytest.mark.parametrize(
    "text",
    ["", "42", "x = 3y + 7", "OK.", "好", "$\\int_0^1 x\\,dx$", "```\nthe code is not looked at, however long it may be\n```", "https://www.example.com/the/long/way/home"],
)  # fmt: skip
def test_nothing_is_guessed_from_too_little(text: str) -> None:
    assert language_of(text) is None
    assert reason(conversation(text or "1", question="1 + 1"), languages=["fr"]) == ""


def test_an_answer_in_a_wanted_language_saves_a_quoting_row() -> None:
    assert reason(conversation(TEXTS["en"], question=TEXTS["es"] * 3), languages=["en"]) == ""
    assert reason(conversation(TEXTS["es"], question=TEXTS["es"]), languages=["en", "zh"]) == "wrong_language"


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("用法语介绍一下巴黎这座城市。", ""),
        ("请用普通话说说你的家乡。", ""),
        ("请用上海话打个招呼。", ""),
        ("用一句话介绍巴黎这座城市。", "wrong_language"),
        ("用两段话介绍巴黎这座城市。", "wrong_language"),
        ("请用自己的话介绍巴黎这座城市。", "wrong_language"),
        ("请用这段课文介绍巴黎这座城市。", "wrong_language"),
    ],
)
def test_a_chinese_task_names_a_language_or_only_how_much_to_write(question: str, expected: str) -> None:
    assert reason(conversation(TEXTS["fr"], question=question), languages=["zh"]) == expected


@pytest.mark.parametrize(
    ("codes", "message"), [(["eng"], "Did you mean 'en'"), (["xx"], "Known: af"), ([], "empty list")]
)
def test_unknown_languages_are_refused_before_any_row(codes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Cleaner(CleanSettings(languages=codes))


def test_prose_and_known_languages() -> None:
    assert prose("see `x` at https://a.example/b or $y$").split() == ["see", "at", "or"]
    assert set(TEXTS) < set(LANGUAGES)


# --- refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, but I can’t help with this request.",
        "I am sorry, but as an AI, I don't have the capability to book flights. My current function is to create invoices.",
        "As an AI language model, I cannot have opinions.",
        "Unfortunately, I'm not able to provide medical advice.",
        "I cannot provide instructions for that.",
        "I'm unable to provide that information.",
        "I’m not able to help.",
        "I must decline to answer.",
        "I have to respectfully decline this.",
        "Apologies, but that's not something I can help with.",
        "Sorry, that is something I can’t assist with.",
        "我不能帮你做这件事。",
        "我无法为您预订机票。",
        "抱歉，我无法回答这个问题。",
        "很抱歉，作为一个人工智能，我无法执行预订机票等外部任务。我可以帮助您转换货币。",
        "作为一个AI语言模型，我没有能力提供个人意见。",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Je suis désolé, mais je ne peux pas répondre.",
        "Es tut mir leid, aber ich kann diese Frage nicht beantworten.",
        "申し訳ありませんが、そのご質問にはお答えできません。",
        "Извините, но я не могу помочь с этим.",
    ],
)
def test_refusals_are_left_out(answer: str) -> None:
    assert reason(conversation(answer), refusals=True) == "refusal"
    assert reason(conversation(answer, "They ask for something."), refusals=True) == "refusal"


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("Once, a boy said: I'm sorry, I can't come. And so he stayed.", "Tell me a tale"),
        ("I'm sorry for your loss. Here is what you can do.", "My dog died"),
        ("I'm sorry, but I can't make it to the party tonight.", "Write a message to decline an invitation"),
        ("Dear Ann, I am sorry that I cannot attend.", "Write an apology letter"),
        ("Unfortunately, I cannot determine the angle from two sides only.", "What is the angle?"),
        ("I'm sorry, but I can't see the image. Usually:\n1. Open it\n2. Look at it", "Describe it"),
        ("I'm sorry, I can't run code, but here it is:\n```\nx\n```", "Run"),
        (
            "As an AI language model, I cannot feel. However, silk is often described as smooth, soft and cool to the touch.",
            "How does silk feel?",
        ),
        ("抱歉让您久等了，答案是五。", "几？"),
        ("对不起，我不能参加今晚的聚会。", "写一封道歉信"),
        ("I can help with that.", "Help"),
        ("That's something I can help with.", "Help"),
        ("I must admit that it declined.", "Did it?"),
        ("I'm unable to find a root, so there is none.", "Is there a root?"),
        ("我不能说他错了。", "他错了吗？"),
        ("The patient is unable to walk.", "Describe"),
        ("As an AI company, we cannot stop.", "Slogan"),
    ],
)  # fmt: skip
def test_apologies_and_help_are_no_refusals(answer: str, question: str) -> None:
    assert not is_refusal(answer, question)


def test_only_the_final_answer_is_judged() -> None:
    messages: list[Message] = [
        {"role": "user", "content": "Book a flight"},
        {"role": "assistant", "content": "I'm sorry, but I can't book flights."},
        {"role": "user", "content": "Then add 2 and 2"},
        {"role": "assistant", "content": "4"},
    ]
    assert reason(Conversation(messages, "non_thinking"), refusals=True) == ""


# --- personal data ----------------------------------------------------------------------------------------------------------


def with_personal_data() -> Conversation:
    call = {
        "type": "function",
        "function": {"name": "send", "arguments": {"to": ["ann@b.com"], "phone": 13812345678, "n": 3}},
    }
    messages: list[Message] = [
        {"role": "user", "content": "Mail ann@b.com"},
        {"role": "assistant", "content": "", "reasoning_content": "To ann@b.com.", "tool_calls": [call]},
        {"role": "tool", "content": '{"password": "aB3#fG7!kL9@"}'},
        {"role": "assistant", "content": "Done"},
    ]
    tools = [{"type": "function", "function": {"name": "send", "description": "ask bob@c.org"}}]
    return Conversation(messages, "non_thinking", tools=tools)


def test_personal_data_is_masked_everywhere() -> None:
    cleaner = Cleaner(CleanSettings(personal_data={}))  # type: ignore[arg-type]
    result, changes = cleaner(with_personal_data(), {})
    everything = json.dumps([result.messages, result.tools])
    assert everything.count("[EMAIL]") == 4
    assert result.messages[1]["tool_calls"][0]["function"]["arguments"] == {
        "to": ["[EMAIL]"],
        "phone": "[PHONE]",
        "n": 3,
    }
    assert result.messages[2]["content"] == '{"password": "aB3#fG7!kL9@"}'  # what a tool made up
    assert changes[0].example.startswith("email × 4, phone × 1 → ")
    for value in ("ann@b.com", "bob@c.org", "13812345678"):
        assert value not in everything + changes[0].example
    assert cleaner(result, {}) == (result, [])


def test_personal_data_is_dropped_without_naming_it() -> None:
    with pytest.raises(Rejected) as caught:
        clean(with_personal_data(), personal_data={"action": "drop"})
    assert (caught.value.reason, caught.value.detail) == ("personal_data", "email × 4, phone × 1")


def test_personal_data_in_the_name_of_a_field_drops_the_row() -> None:
    given = with_personal_data()
    given.messages[1]["tool_calls"][0]["function"]["arguments"] = {"ann@b.com": 1}
    assert reason(given, personal_data={}) == "personal_data"


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Suggest a password.", "Use this password: rv7-Lamp-40", "Use this password: rv7-Lamp-40"),
        ("给我想一个密码", "密码：rv7Lamp40", "密码：rv7Lamp40"),
        ("Why can I not log in?", "Your password: rv7-Lamp-40", "Your password: [SECRET]"),
        # A key that is known by its form is masked even there.
        ("Generate a token", "token: sk-proj-Ab12Cd34Ef56Gh78Ij90", "token: [SECRET]"),
    ],
)
def test_invented_passwords_stay(question: str, answer: str, expected: str) -> None:
    assert clean(conversation(answer, question=question), personal_data={})[0].messages[1]["content"] == expected


def test_kinds_that_are_not_named_stay() -> None:
    given = conversation("203.0.113.7 and a@b.com")
    assert clean(given, personal_data={})[0].messages[1]["content"] == "203.0.113.7 and [EMAIL]"
    assert clean(given, personal_data={"kinds": ["phone"]}) == (given, [])


# --- all steps on rows that are fine ----------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "normalise": True, "broken_reasoning": True, "check_answer": True, "length": {}, "repetition": {}, "refusals": True,
    "personal_data": {},
}  # fmt: skip


def test_the_projects_own_rows_pass_unchanged() -> None:
    for row in corpora.openmath_like(200, seed=3):
        assert clean(from_openmathreasoning(row), row, **EVERYTHING)[1] == []
    for row in corpora.finetome_like(200, seed=3):
        assert clean(from_sharegpt(row), row, **EVERYTHING, score={"at_least": 0})[1] == []


@pytest.mark.parametrize("name", ["alpaca_en_demo", "alpaca_zh_demo"])
def test_few_real_rows_are_lost(shared_data: Path, name: str) -> None:
    rows = json.loads((shared_data / f"sft/{name}.json").read_text(encoding="utf-8"))
    cleaner = Cleaner(CleanSettings(**{**EVERYTHING, "refusals": False, "languages": ["en", "zh"]}))
    lost = 0
    for row in rows:
        try:
            result, _ = cleaner(from_alpaca(row), row)
        except Rejected:
            lost += 1
            continue
        for message in result.messages:  # what is left in NFC stays so: nothing was decomposed
            original = next(m for m in from_alpaca(row).messages if m["role"] == message["role"])
            assert len(unicodedata.normalize("NFC", message["content"])) <= len(original["content"])
    assert lost <= 3


@pytest.mark.parametrize(
    "text",
    [
        *("\\(" * 50_000, "\\begin{a}" * 20_000, "` `` " * 20_000, "$5 " * 50_000, "a\u200b`" * 50_000, "{" * 100_000),
        *("\\boxed{" * 5_000, "~~~" * 50_000, "a@" * 50_000),
    ],
)
def test_long_odd_texts_do_not_hang(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)  # a quadratic search would take minutes
    assert reason(conversation("4", f"{text} x = 4 so"), broken_reasoning=True) in ("", "reasoning_cut")
    assert not is_refusal(text)
    assert language_of(text) in (None, *LANGUAGES)
    assert final_answers(text + " 7", True)[-1] in ("7", "5")
