"""Exact keys, signatures, the choice of bands, and the search: against brute force, on planted rows, in the worst cases."""

from __future__ import annotations

import importlib.util
import json
import pickle
import random
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.cleaning import duplicates
from pipeline.data.cleaning.duplicates import (
    ANSWER_SLOTS,
    Duplicates,
    Signer,
    alike,
    bands,
    exact_key,
    find_duplicates,
    signature_width,
    text_of,
)
from pipeline.data.conversations import Conversation, Rejected
from pipeline.settings import NearDuplicates

FURTHER = 25  # 32-bit words beside slots and numbers: 64 bytes of the answers, 16 half-words of the edges
NO_KEYS = np.empty((0, 16), np.uint8)


def settings(**values: Any) -> NearDuplicates:
    return NearDuplicates.model_validate({"permutations": 128, **values})


def chat(question: str, answer: str = "Yes.", **more: Any) -> Conversation:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(messages, "non_thinking", **more)


def words(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(string.ascii_lowercase, k=8)) for _ in range(count)]


def write(folder: Path, signatures: np.ndarray, name: str = "signatures") -> list[Path]:
    (folder / name).write_bytes(signatures.astype("<u4").tobytes())
    return [folder / name]


def search(folder: Path, texts: Sequence[str], near: NearDuplicates) -> Duplicates:
    return find_duplicates(NO_KEYS, write(folder, Signer(near)(texts)), near)


def similarity(one: str, other: str, near: NearDuplicates | None = None) -> float:
    """The estimate from two signatures, numbers aside."""
    near = near or settings(permutations=512)
    signatures = Signer(near)([one, other]).view(np.uint8)
    return float(alike(signatures[:1], signatures[1:], near)[0][0])


# --- text and key -------------------------------------------------------------------------------------------------------


def test_the_text_has_every_turn_with_its_role() -> None:
    call = {"type": "function", "function": {"name": "Look", "arguments": {"at": "SKY"}}}
    conversation = Conversation(
        [
            {"role": "system", "content": "Be  brief."},
            {"role": "user", "content": "Ｈello\nthere"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "blue"},
            {"role": "assistant", "content": "Blue.", "reasoning_content": "I saw\t it."},
        ],
        "thinking",
    )
    assert text_of(conversation).split("\n") == [
        "user hello there",
        "assistant ",
        'call ["look", {"at": "sky"}]',
        "tool blue",
        "reasoning i saw it.",
        "assistant blue.",
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat("caf\u00e9 a"), chat("cafe\u0301  a\r\n")),
        (chat("a", source="x"), chat("a", source="y")),
        (chat("def f():\n    return 1"), chat("def f():\n\treturn 1")),
    ],
)
def test_whitespace_composition_and_source_do_not_change_the_key(one: Conversation, other: Conversation) -> None:
    assert exact_key(one) == exact_key(other)
    assert len(exact_key(one)) == 16


@pytest.mark.parametrize(
    "other",
    [
        chat("A question?"),
        chat("a question"),
        chat("a question?", "No."),
        chat("a question? Yes.", ""),
        chat("a question?", tools=[{"type": "function", "function": {"name": "f"}}]),
        Conversation([{"role": "system", "content": "s"}, *chat("a question?").messages], "non_thinking"),
        Conversation(
            [chat("a question?").messages[0], {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}],
            "thinking",
        ),
    ],
)
def test_case_punctuation_reasoning_and_tools_change_the_key(other: Conversation) -> None:
    assert exact_key(chat("a question?")) != exact_key(other)


def _with_call(arguments: Any, **more: Any) -> Conversation:
    call = {"function": {"name": "f", "arguments": arguments}, **more}
    return Conversation([{"role": "assistant", "content": "", "tool_calls": [call]}], "non_thinking")


def test_tool_calls_count_by_name_and_arguments() -> None:
    key = exact_key(_with_call({"b": 1, "a": "x  y"}, id="call_1"))
    assert key == exact_key(_with_call('{"a": "x y", "b": 1}', id="call_2"))
    assert key != exact_key(_with_call({"b": 2, "a": "x y"}))
    assert exact_key(_with_call("not JSON")) != exact_key(_with_call("not json"))


@pytest.mark.parametrize("function", [exact_key, text_of])
def test_arguments_nested_too_deep_are_rejected(function: Any) -> None:
    deep: Any = "x"
    for _ in range(sys.getrecursionlimit() * 2):
        deep = [deep]
    with pytest.raises(Rejected, match="nested_too_deep"):
        function(_with_call({"deep": deep}))


@given(st.text(), st.text())
def test_any_text_has_a_key_and_a_signature(question: str, answer: str) -> None:
    conversation = chat(question, answer)
    assert exact_key(conversation) == exact_key(chat(f" {question}\n", answer))
    signer = Signer(settings(permutations=16))
    assert signer([text_of(conversation)]).shape == (1, 5 + FURTHER)


def test_lone_surrogates_do_no_harm() -> None:
    assert exact_key(chat("\ud800")) != exact_key(chat("\ud801"))
    assert similarity("user a\ud800b", "user a \ud801 b") == pytest.approx(1)


@given(st.text(alphabet=string.printable))
def test_both_patterns_find_the_same_words_in_ascii(text: str) -> None:
    assert duplicates._ASCII_WORD.findall(text) == duplicates._WORD.findall(text)


# --- signatures ---------------------------------------------------------------------------------------------------------


def test_signatures_have_not_changed() -> None:
    """Another version of rensa or of the tokenisation would give other mixes: it must not happen unseen."""
    text = text_of(chat("What is 23 + 45? 你好", "It is 68."))
    signature = Signer(settings(permutations=16))([text])
    assert signature.dtype == np.dtype("<u4") and signature.flags["C_CONTIGUOUS"]
    whole = [2047054215, 1703794108, 1562229806, 2440962336]
    answer = [2928891166, 3732420529, 1531961321, 3283615587, 3278285589, 1072643326, 1981807994, 485928838]
    answer += [1186681185, 1531834728, 3826826828, 749603702, 147453012, 59747497, 1295315514, 3653462116]
    edge = [991043459, 2509013901, 3513559180, 60745]
    assert signature.tolist() == [[*whole, *answer, *edge, *edge, 3329196892, 1129867273]]


def test_a_signature_depends_neither_on_its_batch_nor_on_the_process() -> None:
    texts = [" ".join(words(1 + i % 40, i)) for i in range(duplicates.BATCH + 50)]
    signer = Signer(settings())
    together = signer(texts)
    assert together.shape == (len(texts), signer.width) == (len(texts), 33 + FURTHER)
    assert np.array_equal(together, np.concatenate([signer([text]) for text in texts]))
    assert np.array_equal(together, pickle.loads(pickle.dumps(signer))(texts))
    assert signer([]).shape == (0, 33 + FURTHER)


@pytest.mark.parametrize("permutations", [16, 18, 128, 131])
def test_a_slot_is_a_byte_and_the_rest_is_empty(permutations: int) -> None:
    near = settings(permutations=permutations)
    signature = Signer(near)(["user some few words and more of them"])
    assert signature.shape[1] == signature_width(near) == -(-permutations // 4) + FURTHER + 1
    assert not signature.view(np.uint8)[0, permutations : -(-permutations // 4) * 4].any()


@pytest.mark.parametrize("shared", [0, 20, 60, 90, 99])
def test_the_estimate_is_the_jaccard_similarity(shared: int) -> None:
    """Mean of 200 pairs with the same true similarity; within four standard errors of the mean."""
    near = settings(ngram=1)
    true = shared / (200 - shared)
    estimates = []
    for seed in range(200):
        vocabulary = words(200 - shared, seed)
        estimates.append(similarity(" ".join(vocabulary[:100]), " ".join(vocabulary[100 - shared :]), near))
    error = max((true * (1 - true) / near.permutations) ** 0.5, 0.006)
    assert abs(np.mean(estimates) - true) < 4 * error / 200**0.5
    assert np.std(estimates) < 1.3 * error + 0.002


def test_case_punctuation_and_spaces_do_not_matter() -> None:
    one = chat("What is a whale? Tell me, please: is it a fish", "No, a mammal.")
    other = chat("what is  A WHALE -- tell me please (is it a fish)?", "No; a *mammal*")
    assert similarity(text_of(one), text_of(other)) == pytest.approx(1)


def test_chinese_characters_and_pictures_are_words() -> None:
    text = "人工智能正在改变我们的生活方式，也带来新的问题。"
    changed = text.replace("问", "难")
    assert 0.6 < similarity(text, changed) < 1  # one word of a text without spaces would give 0
    assert similarity(text, text.replace("，", ",").replace("。", "")) == pytest.approx(1)
    assert similarity("is it good? 👍", "is it good? 👎") < 0.8


@pytest.mark.parametrize(
    ("one", "other", "same"), [("hi", "hi", True), ("hi", "ho", False), ("", "", True), ("", "hi", False)]
)
def test_a_text_shorter_than_an_ngram_is_one_ngram(one: str, other: str, same: bool) -> None:
    assert similarity(one, other) == pytest.approx(1 if same else 0, abs=0.02)


def test_the_numbers_of_other_texts_in_the_batch_do_not_leak_into_an_ngram() -> None:
    assert similarity("a b", "c d") < 0.02
    signer = Signer(settings())
    assert np.array_equal(signer(["a b", "c"])[0], signer(["a b", "d e f g"])[0])


# --- numbers ------------------------------------------------------------------------------------------------------------


def _same_numbers(one: str, other: str) -> bool:
    signer = Signer(settings())
    return bool(signer([text_of(chat(one))])[0, -1] == signer([text_of(chat(other))])[0, -1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 23 + 45?", "What is 23 + 46?"),
        ("What is 23 + 45?", "What is 45 + 23?"),
        ("What is 23 + 45?", "What is 23 - 45?"),
        ("Solve x + 1 = y", "Solve x - 1 = y"),
        ("Is a < b", "Is a > b"),
        ("Find 10²", "Find 102"),
        ("Take 3.5", "Take 35"),
        ("Take 3.5", "Take 3, 5"),
        ("Half of it", "Half of it 2"),
    ],
)
def test_other_numbers_or_operators_are_another_problem(one: str, other: str) -> None:
    assert not _same_numbers(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 23 + 45?", "Please tell me what 23+45 is"),
        ("Take 1,000 of 2,345,678", "take 1000 of 2345678!"),
        ("It is 23 − 45", "It is 23 - 45"),
        ("１２ of them", "12 of them"),
        ("A well-known t-shirt, and/or an e-mail", "A well known shirt and e mail"),
        ("No number", "None at all"),
    ],
)
def test_the_same_numbers_written_otherwise_are_the_same(one: str, other: str) -> None:
    assert _same_numbers(one, other)


def test_numbers_outside_the_users_turns_do_not_count() -> None:
    signer = Signer(settings())
    assert signer([text_of(chat("How many?", "7"))])[0, -1] == signer([text_of(chat("How many?", "8"))])[0, -1]


def test_a_long_problem_with_one_other_number_is_kept(tmp_path: Path) -> None:
    story = " ".join(words(120))
    problems = [f"{story} she buys {n} apples {story[::-1]}, how many are left?" for n in (12, 13, 12)]
    texts = [text_of(chat(problem)) for problem in problems]
    assert similarity(texts[0], texts[1]) > 0.9
    assert search(tmp_path, texts, settings()).of.tolist() == [-1, -1, 0]


# --- shared texts -------------------------------------------------------------------------------------------------------


def _changed(text: list[str], *places: int) -> str:
    return " ".join("other" + word if place in places else word for place, word in enumerate(text))


def _found(folder: Path, conversations: Sequence[Conversation], near: NearDuplicates | None = None) -> Duplicates:
    return search(folder, [text_of(conversation) for conversation in conversations], near or settings(permutations=256))


def _stay(found: Duplicates) -> bool:
    """Nothing is rejected, and no row is bound to another one."""
    return (found.of == -1).all() and np.array_equal(found.group, np.arange(len(found.of)))


def test_different_rows_with_one_long_system_prompt_stay(tmp_path: Path) -> None:
    system = {"role": "system", "content": " ".join(words(400))}
    rows = [chat(" ".join(words(15, n)), " ".join(words(30, 100 + n))) for n in range(20)]
    prompted = [Conversation([system, *row.messages], "non_thinking") for row in rows]
    assert _stay(_found(tmp_path, prompted))
    assert text_of(prompted[0]) == text_of(rows[0]) and exact_key(prompted[0]) != exact_key(rows[0])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 20, 40])
def test_different_questions_and_answers_on_one_long_text_stay(first: bool, size: int, tmp_path: Path) -> None:
    context = " ".join(words(800))
    asked = [" ".join(words(12, n)) for n in range(1, 21)]
    answers = [" ".join(words(size, n)) for n in range(101, 121)]
    rows = [chat(f"{q} {context}" if first else f"{context} {q}", a) for q, a in zip(asked, answers, strict=True)]
    texts = [text_of(row) for row in rows]
    assert similarity(texts[0], texts[1]) > 0.85
    assert _stay(_found(tmp_path, rows))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("answer", ["Yes.", "The text that is given here says nothing about that, I am sorry."])
def test_different_questions_with_the_same_short_answer_stay(first: bool, answer: str, tmp_path: Path) -> None:
    context = " ".join(words(400))
    asked = [" ".join(words(6, n)) for n in range(1, 21)]
    rows = [chat(f"{q} {context}" if first else f"{context} {q}", answer) for q in asked]
    assert similarity(text_of(rows[0]), text_of(rows[1])) > 0.9
    assert _stay(_found(tmp_path, rows))


@pytest.mark.parametrize("other", ["No.", "No, it is.", "The sentiment is negative."])
def test_one_word_of_a_short_answer_is_another_answer(other: str, tmp_path: Path) -> None:
    answer = other.replace("No", "Yes").replace("negative", "positive")
    question = " ".join(words(100))
    assert _stay(_found(tmp_path, [chat(question, answer), chat(question, other)]))
    assert _found(tmp_path, [chat(question, answer), chat(f"{question} then", answer)]).of.tolist() == [-1, 0]


@pytest.mark.parametrize("length", [1, 7, 8, 20, 31, 40, 100])
def test_another_answer_to_the_same_question_is_another_row(length: int, tmp_path: Path) -> None:
    """A third of the answer is other words; the question is long, so that the whole texts are alike."""
    question, answer = " ".join(words(2000)), words(length, 1)
    other = [*answer[: length - length // 3 - 1], *words(length // 3 + 1, 2)]
    assert _stay(_found(tmp_path, [chat(question, " ".join(answer)), chat(question, " ".join(other))]))
    again = _found(tmp_path, [chat(question, " ".join(answer)), chat(question, f" {' '.join(answer).upper()}! ")])
    assert again.of.tolist() == [-1, 0]


def test_the_answer_is_all_that_the_assistant_says(tmp_path: Path) -> None:
    """Reasoning, every turn and the tool calls; what a tool says is not."""
    question = {"role": "user", "content": " ".join(words(400))}

    def row(seed: int, **where: bool) -> Conversation:
        def text(name: str) -> str:
            return " ".join(words(40, seed if where.get(name) else 1))

        call = {"function": {"name": "f", "arguments": {"at": text("call")}}}
        turns: list[dict[str, Any]] = [
            question,
            {"role": "assistant", "content": "", "reasoning_content": text("reasoning"), "tool_calls": [call]},
            {"role": "tool", "content": text("tool")},
            {"role": "assistant", "content": text("answer")},
        ]
        return Conversation(turns, "thinking")

    near = settings(permutations=256, threshold=0.6)
    assert _found(tmp_path, [row(1), row(2, tool=True)], near).of.tolist() == [-1, 0]
    assert _stay(_found(tmp_path, [row(1), row(2, reasoning=True, call=True, answer=True)], near))


@pytest.mark.parametrize("length", [8, 9, 12, 20])
def test_a_changed_word_in_a_short_answer_is_a_duplicate(length: int, tmp_path: Path) -> None:
    rows = []
    for seed in range(100):
        question, answer = words(150, seed), words(length, 1000 + seed)
        rows += [chat(" ".join(question), " ".join(answer))]
        rows += [chat(_changed(question, seed), _changed(answer, seed % length))]
    found = _found(tmp_path, rows)
    assert np.mean(found.of[1::2] == np.arange(0, 200, 2)) >= 0.95
    assert (found.of[::2] == -1).all()


def test_chinese_rows_on_one_text(tmp_path: Path) -> None:
    letters = [chr(0x4E00 + n) for n in range(3000)]
    rng = random.Random(0)
    context = "".join(rng.choices(letters, k=600))
    rows = [chat(f"{context}\n{''.join(rng.choices(letters, k=12))}？", "是。") for _ in range(10)]
    rows += [chat(f"{context}\n{''.join(rng.choices(letters, k=12))}？", "".join(rng.choices(letters, k=20)))]
    changed = [{**turn, "content": turn["content"].replace(turn["content"][5], "龘")} for turn in rows[-1].messages]
    found = _found(tmp_path, [*rows, Conversation(changed, "non_thinking")])
    assert found.of.tolist() == [-1] * 11 + [10]
    assert found.group.tolist() == [*range(11), 10]


def test_a_duplicate_on_a_shared_text_is_bound_to_its_own_row_only(tmp_path: Path) -> None:
    context = " ".join(words(400))
    rows = [chat(f"{context} {' '.join(words(12, n))}", " ".join(words(30, 100 + n))) for n in range(10)]
    answer = rows[4].messages[1]["content"].split()
    question = rows[4].messages[0]["content"].split()
    found = _found(tmp_path, [*rows, chat(_changed(question, 200), _changed(answer, 7))])
    assert found.of.tolist() == [-1] * 10 + [4]
    assert found.group.tolist() == [*range(10), 4]


# --- bands --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("permutations", [64, 128, 512])
def test_the_bands_find_what_reaches_the_threshold(threshold: float, permutations: int) -> None:
    count, slots = bands(settings(threshold=threshold, permutations=permutations))
    assert count * slots <= permutations and count <= duplicates.MOST_BANDS
    assert 1 - (1 - threshold**slots) ** count >= duplicates.CANDIDATE_RECALL


def test_the_bands_named_in_the_docstring() -> None:
    assert bands(settings()) == (16, 6) and bands(settings(permutations=512)) == (20, 7)
    assert [round(1 - (1 - j**7) ** 20, 4) for j in (0.8, 0.85, 0.5, 0.3)] == [0.991, 0.9996, 0.1452, 0.0044]


def test_a_threshold_too_low_for_the_bands_takes_as_many_as_there_may_be() -> None:
    assert bands(settings(threshold=0.01)) == (duplicates.MOST_BANDS, 1)
    assert bands(settings(threshold=0.01, permutations=16)) == (16, 1)


# --- the search ---------------------------------------------------------------------------------------------------------


def _answers(signatures: np.ndarray) -> np.ndarray:
    """The bytes of the answers; behind them stand 17 words: the edges and the numbers."""
    return signatures.view(np.uint8)[:, -68 - ANSWER_SLOTS : -68]


def _random_rows(rng: np.random.Generator, near: NearDuplicates, rows: int) -> np.ndarray:
    """Signatures in families of chains: each row is an earlier one with a few slots changed, or new."""
    result = np.zeros((rows, signature_width(near)), "<u4")
    slots, answers = result.view(np.uint8)[:, : near.permutations], _answers(result)
    for row in range(rows):
        answers[row] = rng.integers(0, 256, ANSWER_SLOTS)
        slots[row] = rng.integers(0, 256, near.permutations)
        if row and rng.random() < 0.7:
            origin = int(rng.integers(max(0, row - 30), row))
            changed = rng.random(near.permutations) < rng.choice([0.0, 0.05, 0.12, 0.18, 0.3])
            slots[row] = np.where(changed, slots[row], slots[origin])
            result[row, -1] = result[origin, -1] if rng.random() < 0.9 else row
            answers[row] = answers[origin] if rng.random() < 0.9 else rng.integers(0, 256, ANSWER_SLOTS)
    return result


def _estimates(signatures: np.ndarray, near: NearDuplicates) -> np.ndarray:
    slots = signatures.view(np.uint8)[:, : near.permutations]
    equal = np.array([(slots == row).mean(axis=1) for row in slots])
    answers = _answers(signatures)
    same = np.array([(answers == row).all(axis=1) for row in answers]) & (signatures[:, -1:] == signatures[:, -1])
    return (equal - 1 / 256) / (1 - 1 / 256) * same


def _by_brute_force(signatures: np.ndarray, near: NearDuplicates) -> tuple[list[int], list[set[int]]]:
    estimates = _estimates(signatures, near)
    of: list[int] = []
    for row in range(len(signatures)):
        kept = [k for k in range(row) if of[k] < 0 and estimates[row, k] >= near.threshold]
        of.append(max(kept, key=lambda k: (estimates[row, k], -k)) if kept else -1)
    groups = [{row} for row in range(len(signatures))]
    for row, other in zip(*np.nonzero(estimates >= near.threshold), strict=True):
        if groups[row] is not groups[other]:
            groups[row] |= groups[other]
            for member in groups[row]:
                groups[member] = groups[row]
    return of, groups


@pytest.mark.parametrize("seed", range(4))
def test_the_search_is_the_greedy_one_in_reading_order(seed: int, tmp_path: Path) -> None:
    near = settings(permutations=128)
    signatures = _random_rows(np.random.default_rng(seed), near, 500)
    expected, groups = _by_brute_force(signatures, near)
    found = find_duplicates(NO_KEYS, write(tmp_path, signatures), near)
    missed = np.mean(found.of != np.array(expected))
    assert 0.1 < np.mean(found.of >= 0) < 0.9
    assert missed <= 0.02  # a pair at the threshold shares no band once in a hundred
    wrong = [row for row in range(500) if found.group[row] != min(groups[row])]
    assert len(wrong) <= 10
    estimates = _estimates(signatures, near)
    for row in np.flatnonzero(found.of >= 0).tolist():
        assert found.of[row] < row and found.of[found.of[row]] == -1
        assert found.similarity[row] == pytest.approx(estimates[row, found.of[row]]) and not found.exact[row]
        assert found.group[row] == found.group[found.of[row]]


def _row(near: NearDuplicates, base: np.ndarray, changed: slice) -> np.ndarray:
    result = base.copy()
    result.view(np.uint8)[changed] += 1
    return result


def test_nothing_is_rejected_for_being_like_a_rejected_row(tmp_path: Path) -> None:
    """0 ~ 1 ~ 2, but 0 is unlike 2: 1 goes, 2 stays. All three belong together in a split."""
    near = settings()
    base = np.random.default_rng(0).integers(0, 2**32, signature_width(near), np.uint32)
    base[-1] = 7
    rows = np.stack([base, _row(near, base, slice(0, 18)), _row(near, _row(near, base, slice(0, 18)), slice(40, 58))])
    found = find_duplicates(NO_KEYS, write(tmp_path, rows), near)
    assert found.of.tolist() == [-1, 0, -1]
    assert found.group.tolist() == [0, 0, 0]
    assert found.similarity.tolist() == pytest.approx([0, 1 - 18 / 128 * 256 / 255, 0])


def test_the_first_of_a_bucket_may_be_unlike_the_others(tmp_path: Path) -> None:
    near = settings()
    _, slots = bands(near)
    rng = np.random.default_rng(0)
    odd, base = rng.integers(0, 2**32, (2, signature_width(near)), np.uint32)
    odd[-1] = base[-1] = 0
    odd.view(np.uint8)[: 2 * slots] = base.view(np.uint8)[: 2 * slots]  # shares two buckets, nothing else
    rows = np.stack([odd, base, *[_row(near, base, slice(100, 100 + n)) for n in range(8)]])
    found = find_duplicates(NO_KEYS, write(tmp_path, rows), near)
    assert found.of.tolist() == [-1, -1, *[1] * 8]
    assert found.group.tolist() == [0, *[1] * 9]


def test_the_most_similar_kept_row_is_named(tmp_path: Path) -> None:
    near = settings(threshold=0.7)
    base = np.zeros(signature_width(near), np.uint32)
    rows = np.stack([_row(near, base, slice(0, 30)), _row(near, base, slice(60, 90)), _row(near, base, slice(60, 70))])
    assert find_duplicates(NO_KEYS, write(tmp_path, rows), near).of.tolist() == [-1, -1, 1]


@pytest.mark.parametrize("cuts", [[], [0], [1, 1, 2], [100, 299], list(range(1, 300))])
def test_the_boundaries_of_the_files_do_not_matter(cuts: list[int], tmp_path: Path) -> None:
    """300 files are more than are held open at once."""
    near = settings(permutations=64)
    signatures = _random_rows(np.random.default_rng(1), near, 300)
    whole = find_duplicates(NO_KEYS, write(tmp_path, signatures), near)
    paths = [path for n, part in enumerate(np.split(signatures, cuts)) for path in write(tmp_path, part, f"part-{n}")]
    parts = find_duplicates(NO_KEYS, paths, near)
    for name in ("of", "similarity", "exact", "group"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def test_exact_duplicates_alone() -> None:
    keys = np.frombuffer(b"".join(exact_key(chat(q)) for q in "abacab"), np.uint8).reshape(-1, 16)
    found = find_duplicates(keys, (), None)
    assert found.of.tolist() == [-1, -1, 0, -1, 0, 1]
    assert found.exact.tolist() == [False, False, True, False, True, True]
    assert found.similarity.tolist() == [0, 0, 1, 0, 1, 1]
    assert found.group.tolist() == [0, 1, 0, 3, 0, 1]


def test_an_exact_duplicate_of_a_rejected_row_names_the_kept_one(tmp_path: Path) -> None:
    story = words(100)
    texts = [" ".join(story), " ".join([*story[:-1], "end"]), " ".join([*story[:-1], "end"]), "else entirely"]
    keys = np.frombuffer(b"".join(exact_key(chat(text)) for text in texts), np.uint8).reshape(-1, 16)
    near = settings()
    found = find_duplicates(keys, write(tmp_path, Signer(near)(texts)), near)
    assert found.of.tolist() == [-1, 0, 0, -1]
    assert not found.exact.any() and found.similarity[2] == found.similarity[1] < 1
    assert found.group.tolist() == [0, 0, 0, 3]


def test_no_rows_at_all(tmp_path: Path) -> None:
    near = settings()
    for signatures in ((), write(tmp_path, np.empty((0, 33 + FURTHER)))):
        assert len(find_duplicates(NO_KEYS, signatures, near).of) == 0


def test_a_signature_file_cut_short_is_named(tmp_path: Path) -> None:
    near = settings()
    [path] = write(tmp_path, Signer(near)(["a", "b"]))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="signatures is cut short"):
        find_duplicates(NO_KEYS, [path], near)


def test_keys_and_signatures_must_be_of_the_same_rows(tmp_path: Path) -> None:
    near = settings()
    with pytest.raises(ValueError, match="3 keys, but 2 signatures"):
        find_duplicates(np.zeros((3, 16), np.uint8), write(tmp_path, Signer(near)(["a", "b"])), near)


# --- crowds -------------------------------------------------------------------------------------------------------------


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    reads: list[int] = []
    take = duplicates._Signatures.take

    def counted(self: Any, rows: Sequence[int]) -> np.ndarray:
        reads.append(len(rows))
        return take(self, rows)

    monkeypatch.setattr(duplicates._Signatures, "take", counted)
    return reads


@pytest.mark.parametrize("n", [10_000, pytest.param(50_000, marks=pytest.mark.nightly)])
def test_many_rows_that_are_almost_the_same(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near = settings()
    rng = np.random.default_rng(0)
    rows = np.tile(rng.integers(0, 2**32, signature_width(near), np.uint32), (n, 1))
    rows.view(np.uint8)[np.arange(n), rng.integers(0, near.permutations, n)] += 1
    rows[:, -1] = 0
    reads = _count_reads(monkeypatch)
    found = find_duplicates(NO_KEYS, write(tmp_path, rows), near)
    assert found.of[0] == -1 and (found.of[1:] == 0).all() and not found.group.any()
    assert max(reads) < 2 * duplicates.MOST_CANDIDATES


def test_a_crowd_that_shares_a_band_but_is_unlike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 kept rows in one bucket: each is compared with some of them only, and copies are still found."""
    near = settings()
    _, slots = bands(near)
    rows = np.random.default_rng(0).integers(0, 2**32, (5_000, signature_width(near)), np.uint32)
    rows.view(np.uint8)[:, :slots] = 1
    rows[:, -1] = 0
    reads = _count_reads(monkeypatch)
    found = find_duplicates(NO_KEYS, write(tmp_path, np.concatenate([rows, rows[:100]])), near)
    assert (found.of[:5_000] == -1).all() and found.of[5_000:].tolist() == list(range(100))
    assert max(reads) < 2 * duplicates.MOST_CANDIDATES


# --- planted ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks/near_duplicates.py"
    spec = importlib.util.spec_from_file_location("near_duplicates", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def planted(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("planted") / "rows.jsonl"
    return path, benchmark.make_rows(path, 2_000, 0.3, 5, settings())


def test_the_rows_are_unlike_unless_planted(benchmark: ModuleType, planted: tuple[Path, Any]) -> None:
    assert len(planted[1].pairs) == 600
    assert benchmark.check_variety(*planted, settings()) < 0.1


@pytest.mark.parametrize("permutations", [128, 512])
def test_planted_duplicates_are_found_and_nothing_else(
    benchmark: ModuleType, planted: tuple[Path, Any], permutations: int
) -> None:
    near = settings(permutations=permutations)
    path, pairs = planted
    numbers, found = benchmark.ours(path, 2_000, near)
    verdict = benchmark.judge(path, 2_000, found.of, pairs, near)
    assert numbers["rows"] == 2_000
    assert verdict["recall"] >= 0.95 and min(verdict["recall_by_kind"].values()) >= 0.9
    assert verdict["precision"] >= 0.99
    assert "unplanted" not in verdict["wrong_by_kind"] and "other_number" not in verdict["wrong_by_kind"]


def test_real_rows_have_few_duplicates(shared_data: Path, tmp_path: Path) -> None:
    """GSM8K's questions are one template short of each other, but differ in their numbers."""
    path = shared_data / "eval/gsm8k_test.jsonl"
    if not path.is_file():
        pytest.skip(f"no GSM8K at {path}")
    texts = [text_of(chat(json.loads(line)["question"])) for line in path.read_text(encoding="utf-8").splitlines()]
    found = search(tmp_path, texts + texts[:200], settings())
    assert found.of[len(texts) :].tolist() == list(range(200))
    assert (found.of[: len(texts)] >= 0).sum() <= 3
