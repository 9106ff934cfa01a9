"""Benchmark items are found in rows, changed ones too, and nothing else is."""

from __future__ import annotations

import json
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.cleaning.decontaminate import MIN_FOUND, MIN_WORDS, Benchmark, Decontaminator, load_benchmarks, words
from pipeline.data.conversations import Conversation, Rejected
from pipeline.settings import BenchmarkSettings, Decontamination

ROOT = Path(__file__).resolve().parents[2]
FERRY = (
    "A ferry crosses the strait 14 times a day. Marta counts 36 passengers on each crossing, and half of them buy a "
    "cup of tea for $2.50. How much money does the kiosk earn from tea in 3 days?"
)
CHINESE = "果园里有苹果树一百二十棵，梨树比苹果树少三十五棵，桃树是梨树的两倍，请问果园里一共有多少棵树？"
LATEX = (
    r"Let $p(x) = \dfrac{3x^2 - 7}{x + 1}$ be given. Find the sum of all integers $k$ for which $p(k)$ is an integer."
)
SHORT = r"Compute $\binom{9}{4}$."  # four words: fewer than an n-gram
FORMAT = "Write a poem about the sea. Your entire response should be in lowercase letters, and no commas may appear."


def config(ngram: int = 5, overlap: float = 0.35, **place: str) -> Decontamination:
    entry = {"name": "b", "source": "local", "path": "unused.jsonl", **place}
    return Decontamination(benchmarks=[BenchmarkSettings.model_validate(entry)], ngram=ngram, overlap=overlap)


BENCHMARKS = [
    Benchmark("word problems", ["Hi", FERRY, CHINESE], [3, 17, 18]),
    Benchmark("rest", [LATEX, SHORT, FORMAT], [1, 2, 5]),
]


@pytest.fixture(scope="module")
def decontaminator() -> Decontaminator:
    return Decontaminator(BENCHMARKS, config())


def row(question: str, answer: str = "An answer.", reasoning: str = "", system: str = "") -> Conversation:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if reasoning:
        messages[-1]["reasoning_content"] = reasoning
    return Conversation(messages, "thinking" if reasoning else "non_thinking")


def found(decontaminator: Decontaminator, conversation: Conversation) -> str:
    try:
        decontaminator(conversation)
    except Rejected as rejected:
        assert rejected.reason == "contaminated"
        assert len(rejected.detail) <= 200
        return rejected.detail
    return ""


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FERRY, "word problems item 17: identical:"),
        (FERRY.upper().replace(",", " ;"), "word problems item 17: identical:"),
        (f"Solve this.\n\n> **Question:** {FERRY}\n\nShow your work.", "word problems item 17: contained:"),
        (FERRY.replace("Marta", "Olu").replace("36", "48"), "word problems item 17: 0."),
        (FERRY.replace(" the ", " the old ").replace("money ", "money then "), "word problems item 17: 0."),
        (FERRY.split(". ", 1)[1], "word problems item 17: 0."),
        (CHINESE.replace("苹果树", "橘子树", 1), "word problems item 18: 0."),
        (CHINESE.replace("，", ", ").replace("？", "?"), "word problems item 18: identical:"),
        (
            LATEX.replace("$", "").replace(r"\dfrac", r"\frac").replace("p(x)", r"\mathrm{p}\left(x\right)"),
            "rest item 1: identical:",
        ),
        (f"Please {SHORT} Put it in \\boxed{{}}.", "rest item 2: contained:"),
        (
            "Ａ ｆｅｒｒｙ" + FERRY[7:].replace("Marta", "Mar\u200bta").replace("crosses", "cro\u00adsses"),
            "word problems item 17: identical:",
        ),
    ],
    ids="copy case quoted name+number inserted part zh-name zh-punctuation latex short invisible".split(),
)
def test_copies_and_light_changes_are_found(decontaminator, text, expected):
    assert found(decontaminator, row(text)).startswith(expected)


def test_the_detail_names_overlap_and_beginning(decontaminator):
    detail = found(decontaminator, row(FERRY.replace("Marta", "Olu")))
    assert re.fullmatch(r'word problems item 17: 0\.\d\d of its word 5-grams: "A ferry crosses the strait .*…"', detail)


@pytest.mark.parametrize("place", ["answer", "reasoning", "system"])
def test_every_part_of_a_conversation_is_looked_at(decontaminator, place):
    assert "item 17" in found(decontaminator, row("Say something.", **{place: f"Well: {FERRY}"}))


def test_a_middle_user_turn_and_a_tool_result_are_looked_at(decontaminator):
    for role in ("user", "tool"):
        messages = [
            {"role": "user", "content": "Good morning."},
            {"role": "assistant", "content": "Yes?"},
            {"role": role, "content": FERRY},
            {"role": "assistant", "content": "Done."},
        ]
        assert "item 17" in found(decontaminator, Conversation(messages, "non_thinking"))


def test_the_item_with_the_largest_overlap_is_named(decontaminator):
    assert "item 17" in found(decontaminator, row(f"{FERRY} {CHINESE[:30]}"))
    assert "item 18" in found(decontaminator, row(f"{CHINESE} {FERRY[:90]}"))


# --- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Hi there",
        "",
        "...",
        "A tram crosses the bridge 14 times a day. Each ride costs $2.50. How much money does the driver earn in 3 days?",
        "Your entire response should be in lowercase letters. Tell me about whales.",
        "草地上有绵羊一百二十只，山羊有多少只？",
        r"Let $q(x) = x + 1$ be given. Find $q(3)$.",
    ],
)
def test_other_texts_pass(decontaminator, text):
    assert found(decontaminator, row(text)) == ""


def test_a_short_item_counts_in_a_user_turn_only(decontaminator):
    assert found(decontaminator, row("Go on.", answer=f"Next we {SHORT}")) == ""


def test_an_item_is_not_pieced_together_from_two_messages(decontaminator):
    half = len(SHORT.split()[0])
    assert found(decontaminator, row(SHORT[half:], answer="Compute")) == ""
    ten = " ".join(FERRY.split()[:9])
    one = Decontaminator([Benchmark("b", [ten], [1])], config())
    first, second = ten.split()[:5], ten.split()[5:]
    assert found(one, row(ten))
    assert found(one, row(" ".join(first), answer=" ".join(second))) == ""


def test_a_stock_phrase_of_a_short_item_is_no_copy():
    one = Decontaminator([Benchmark("b", ["What is the greatest common divisor of 91 and 39?"], [1])], config())
    assert found(one, row("What is the greatest common divisor of 48 and 36?")) == ""
    assert found(one, row("So: what is the greatest common divisor of 91 and 39? Explain."))


def test_overlap_decides():
    changed = row(FERRY.replace("Marta", "Olu").replace("36", "48").replace("14", "9"))
    assert found(Decontaminator(BENCHMARKS, config(overlap=0.4)), changed)
    assert found(Decontaminator(BENCHMARKS, config(overlap=0.9)), changed) == ""


TRADITIONAL = "果園裡有蘋果樹一百二十棵，梨樹比蘋果樹少三十五棵，桃樹是梨樹的兩倍，請問果園裡一共有多少棵樹？"


def test_traditional_and_simplified_chinese_are_one(decontaminator):
    assert "identical" in found(decontaminator, row(TRADITIONAL))
    assert found(decontaminator, row(TRADITIONAL.replace("一百二十", "九十")))
    other = Decontaminator([Benchmark("b", [TRADITIONAL, "請問幾歲"], [1, 2])], config())
    assert "identical" in found(other, row(CHINESE))
    assert found(other, row("请问几岁？"))  # a short one, compared whole
    assert found(other, row("他在果園裡種了一棵蘋果樹，每天澆水，三年以後樹上結滿了果子。")) == ""


COUNT = "Find the remainder when 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11 + 12 is divided by 7."
OPENING = "Let a, b and c be positive real numbers such that a + b + c = 9. Find the largest value of abc."


@pytest.mark.parametrize(
    "text",
    [
        "List the days: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12",
        "Find all the numbers in 1 2 3 4 5 6 7 8 9 10 11 12 that are prime.",
        "Let x and y be positive real numbers such that x + 2y = 8. Find the least value of x squared plus y.",
        "Let a, b and c be positive real numbers such that a + b + c = 12. Show that ab + bc + ca is at most 48.",
    ],
)
def test_counting_and_stock_openings_are_no_overlap(text):
    assert found(Decontaminator([Benchmark("b", [COUNT, OPENING], [1, 2])], config()), row(text)) == ""


@pytest.mark.parametrize("item", [COUNT, OPENING, "1 2 3 4 5 6 7 8", "What is 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10?"])
def test_items_of_numbers_and_stock_words_are_still_found(item):
    assert found(Decontaminator([Benchmark("b", [item], [1])], config()), row(f"Please: {item} Explain."))


def test_the_same_question_with_other_numbers_is_a_copy():
    both = Decontaminator([Benchmark("b", [COUNT, OPENING], [1, 2])], config())
    assert found(both, row(OPENING.replace("9", "12")))
    assert found(both, row(COUNT.replace("by 7", "by 5")))


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Janet’s hens' _eggs_ cost $1,200.50!", ["janets", "hens", "eggs", "cost", "1200", "50"]),
        ("in 1,2,3 or 1,2345", ["in", "1", "2", "3", "or", "1", "2345"]),
        (r"\boxed{\text{3 cm}} \left( \tfrac12 \right)", ["3", "cm", "frac12"]),
        ("用Python写，東京タワー", ["用", "python", "写", "東", "京", "タ", "ワ", "ー"]),
        ("Straße ﬁn", ["strasse", "fin"]),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@given(st.text(max_size=200))
def test_any_text_has_words_without_an_error(text):
    assert all(word and word == word.casefold() for word in words(text))


# --- against a plain implementation -----------------------------------------------------------------------------------

WORD_LISTS = st.lists(st.sampled_from("ant bee cat dog elk fox".split()), max_size=40)


@settings(max_examples=examples(80))
@given(
    st.lists(WORD_LISTS, min_size=1, max_size=4),
    WORD_LISTS,
    WORD_LISTS,
    st.integers(3, 6),
    st.sampled_from([0.2, 0.5, 1.0]),
)
def test_the_hashes_decide_as_sets_of_tuples_would(items, asked, answered, n, overlap):
    def grams(text: list[str], size: int) -> set[tuple[str, ...]]:
        return {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}

    def contaminated(item: list[str]) -> bool:
        if len(item) < MIN_WORDS:
            return bool(item) and "".join(item) == "".join(asked)
        if len(item) < n:
            return tuple(item) in grams(asked, len(item))
        own = grams(item, n)
        return len(own & (grams(asked, n) | grams(answered, n))) >= max(overlap * len(own), min(len(own), MIN_FOUND))

    benchmark = Benchmark("b", [" ".join(item) for item in items], list(range(len(items))))
    decontaminator = Decontaminator([benchmark], config(n, overlap))
    assert bool(found(decontaminator, row(" ".join(asked), " ".join(answered)))) == any(map(contaminated, items))


@given(st.text(max_size=80), st.sampled_from([FERRY, CHINESE, LATEX, FORMAT]), st.text(max_size=80))
def test_an_item_is_found_wherever_it_stands(before, item, after):
    decontaminator = Decontaminator([Benchmark("b", [item], [1])], config())
    assert found(decontaminator, row(f"{before}\n{item}\n{after}"))


def test_a_long_row_is_read_to_its_end(decontaminator):
    filler = " ".join(f"ferry{i} crosses" for i in range(10_000))
    assert found(decontaminator, row("Go.", reasoning=filler)) == ""
    assert "item 17" in found(decontaminator, row("Go.", reasoning=f"{filler} {FERRY}"))


# --- processes and keys -----------------------------------------------------------------------------------------------


def test_it_travels_to_another_process(decontaminator):
    copy = pickle.loads(pickle.dumps(decontaminator))
    assert copy.key == decontaminator.key
    assert np.array_equal(copy._sorted, decontaminator._sorted)
    changed = row(FERRY.replace("Marta", "Olu"))
    assert found(copy, changed) == found(decontaminator, changed) != ""


def test_hashes_do_not_depend_on_the_process():
    code = (
        "from tests.data.test_decontaminate import *\n"
        "d = Decontaminator(BENCHMARKS, config())\n"
        "print(d.key, d._sorted[:3].tolist(), len(d._sorted))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(ROOT / "tests")},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_the_key_follows_prompts_and_settings_not_paths():
    key = Decontaminator(BENCHMARKS, config()).key
    assert Decontaminator(BENCHMARKS, config(path="elsewhere.jsonl")).key == key
    assert Decontaminator(BENCHMARKS[:1], config()).key != key
    assert Decontaminator(BENCHMARKS, config(ngram=6)).key != key
    assert Decontaminator(BENCHMARKS, config(overlap=0.36)).key != key


def test_items_without_words_match_nothing():
    decontaminator = Decontaminator([Benchmark("b", ["", "Hi", "?!"], [1, 2, 3])], config())
    assert decontaminator.too_short == 2
    assert [found(decontaminator, row(text)) for text in ("", "?!", "...", "Hi you")] == [""] * 4


TINY = Benchmark(
    "math", [r"Compute $\sin 60^\circ$.", "Compute $7 * 8$", "1+1=几？", r"Find $\dfrac{1}{2}!$"], [1, 2, 3, 4]
)


@pytest.mark.parametrize(
    ("text", "item"),
    [
        (r"Compute $\sin 60^\circ$.", 1),
        (r" compute \sin60^\circ", 1),
        (r"Compute $\cos 60^\circ$.", 0),
        (r"Compute $\sin 30^\circ$.", 0),
        (r"Please compute $\sin 60^\circ$.", 0),
        ("Compute 7*8.", 2),
        ("Compute 7+8.", 0),
        ("Compute 78.", 0),
        ("１＋１＝几", 3),
        ("1-1=几？", 0),
        (r"Find $\frac{1}{2}!$.", 4),
    ],
)
def test_an_item_of_few_words_is_compared_with_the_whole_message(text, item):
    detail = found(Decontaminator([TINY], config()), row(text))
    assert detail.startswith(f"math item {item}: identical") if item else detail == ""


def test_the_argument_of_a_tool_call_is_looked_at(decontaminator):
    conversation = row("Look it up.")
    call = {"type": "function", "function": {"name": "ask", "arguments": {"list": [{"question": FERRY}]}}}
    conversation.messages[1] |= {"content": "", "tool_calls": [call]}
    assert "contained" in found(decontaminator, conversation) or "identical" in found(decontaminator, conversation)


# --- reading ----------------------------------------------------------------------------------------------------------


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("column", ["question", "problem", "prompt", "instruction", "query", "input", "text"])
def test_the_prompt_column_is_recognised(tmp_path, column):
    path = write(tmp_path / "b.jsonl", [{"id": 1, column: FERRY}, {"id": 2, column: LATEX}])
    assert load_benchmarks(config(path=str(path))) == [Benchmark("b", [FERRY, LATEX], [1, 2])]


def test_a_named_column_and_the_order_of_known_ones(tmp_path):
    path = write(tmp_path / "b.jsonl", [{"input": "x", "question": FERRY, "task": LATEX}])
    assert load_benchmarks(config(path=str(path)))[0].prompts == [FERRY]
    assert load_benchmarks(config(path=str(path), field="task"))[0].prompts == [LATEX]


@pytest.mark.parametrize(
    ("rows", "field", "message"),
    [
        ([{"riddle": FERRY, "answer": "7"}], None, "none of the columns .*Its columns: riddle, answer.*field"),
        ([{"riddle": FERRY}], "ridle", "no column 'ridle'. Did you mean 'riddle'"),
        (
            [{"question": FERRY}, {"answer": "7"}],
            None,
            r"b\.jsonl:2: the prompt 'question' should be text, it is missing",
        ),
        ([{"question": [FERRY]}], None, r"b\.jsonl:1: .*it is list"),
        ([{"question": FERRY}, '{"question": "A'], None, r"b\.jsonl:2: .*Mend or remove"),
        ([{"prompt": "?"}, {"prompt": " "}], None, "no 'prompt' has a word"),
        ([], None, "(?i)no row|empty"),
    ],
    ids="column named missing list broken wordless empty".split(),
)
def test_a_benchmark_that_cannot_be_used_is_an_error(tmp_path, rows, field, message):
    path = write(tmp_path / "b.jsonl", rows)
    with pytest.raises(UserError, match=message):
        load_benchmarks(config(path=str(path), **({"field": field} if field else {})))


def test_a_missing_file_and_a_path_outside_the_root_are_errors(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_benchmarks(config(path=str(tmp_path / "nowhere.jsonl")))
    path = write(tmp_path / "b.jsonl", [{"question": FERRY}])
    (tmp_path / "inside").mkdir()
    with pytest.raises(UserError):
        load_benchmarks(config(path=str(path)), root=str(tmp_path / "inside"))


# --- real files -------------------------------------------------------------------------------------------------------


def test_gsm8k_test_questions_are_found_and_training_questions_pass(shared_data):
    path = shared_data / "eval/gsm8k_test.jsonl"
    decontaminator = Decontaminator(load_benchmarks(config(path=str(path))), config())
    prompts = decontaminator.benchmarks[0].prompts
    rng = random.Random(0)

    def renumbered(text: str) -> str:
        return re.sub(r"\d+", lambda m: str(int(m.group()) + rng.randint(1, 9)), text, count=1)

    def lengthened(text: str) -> str:
        parts = text.split(" ")
        for _ in range(len(parts) // 10):
            parts.insert(rng.randrange(len(parts)), rng.choice(["really", "also", "just"]))
        return " ".join(parts)

    def recall(change) -> float:
        return sum(f"item {i}:" in found(decontaminator, row(change(p))) for i, p in enumerate(prompts, 1)) / len(
            prompts
        )

    assert recall(str) == 1
    assert recall(str.upper) == 1
    assert recall(renumbered) >= 0.99
    assert recall(lengthened) >= 0.99
    assert recall(lambda p: re.sub(r"\$?(\d[\d,.]*\d|\d)", r"\\(\\textbf{\1}\\)", p)) >= 0.99
    lines = (shared_data / "eval/gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()
    training = [json.loads(line) for line in lines]
    assert sum(bool(found(decontaminator, row(r["question"], r["answer"]))) for r in training) <= 4  # near-copies


def test_chat_rows_pass(shared_data):
    paths = ["eval/gsm8k_test.jsonl", "eval/ifeval_input_data.jsonl"]
    entries = [BenchmarkSettings(name=p, source="local", path=str(shared_data / p)) for p in paths]
    settings_ = Decontamination(benchmarks=entries, ngram=5, overlap=0.35)
    decontaminator = Decontaminator(load_benchmarks(settings_), settings_)
    for name in ("alpaca_en_demo", "alpaca_zh_demo"):
        for r in json.loads((shared_data / f"sft/{name}.json").read_text(encoding="utf-8")):
            assert found(decontaminator, row(f"{r['instruction']}\n{r['input']}", r["output"])) == ""
