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

from pipeline import duplicates
from pipeline.conversations import Conversation, Rejected
from pipeline.duplicates import Duplicates, Signer, bands, exact_key, find_duplicates, signature_width, text_of
from pipeline.errors import UserError
from pipeline.settings import NearDuplicates

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
    slots = Signer(near)([one, other])[:, :-1].copy().view(np.uint8)[:, : near.permutations]
    return ((slots[0] == slots[1]).mean() - 1 / 256) / (1 - 1 / 256)


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
        "system be brief.",
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
    assert signer([text_of(conversation)]).shape == (1, 5)


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
    assert signature.tolist() == [[2047054215, 1703794108, 1562229806, 2440962336, 1129867273]]


def test_a_signature_depends_neither_on_its_batch_nor_on_the_process() -> None:
    texts = [" ".join(words(1 + i % 40, i)) for i in range(duplicates.BATCH + 50)]
    signer = Signer(settings())
    together = signer(texts)
    assert together.shape == (len(texts), signer.width) == (len(texts), 33)
    assert np.array_equal(together, np.concatenate([signer([text]) for text in texts]))
    assert np.array_equal(together, pickle.loads(pickle.dumps(signer))(texts))
    assert signer([]).shape == (0, 33)


@pytest.mark.parametrize("permutations", [16, 18, 128, 131])
def test_a_slot_is_a_byte_and_the_rest_is_empty(permutations: int) -> None:
    near = settings(permutations=permutations)
    signature = Signer(near)(["user some few words and more of them"])
    assert signature.shape[1] == signature_width(near) == -(-permutations // 4) + 1
    assert not signature[:, :-1].copy().view(np.uint8)[:, permutations:].any()


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


def _random_rows(rng: np.random.Generator, near: NearDuplicates, rows: int) -> np.ndarray:
    """Signatures in families of chains: each row is an earlier one with a few slots changed, or new."""
    result = np.zeros((rows, signature_width(near)), "<u4")
    slots = result.view(np.uint8)[:, : near.permutations]
    for row in range(rows):
        slots[row] = rng.integers(0, 256, near.permutations)
        if row and rng.random() < 0.7:
            origin = int(rng.integers(max(0, row - 30), row))
            changed = rng.random(near.permutations) < rng.choice([0.0, 0.05, 0.12, 0.18, 0.3])
            slots[row] = np.where(changed, slots[row], slots[origin])
            result[row, -1] = result[origin, -1] if rng.random() < 0.9 else row
    return result


def _estimates(signatures: np.ndarray, near: NearDuplicates) -> np.ndarray:
    slots = signatures.view(np.uint8)[:, : near.permutations]
    equal = np.array([(slots == row).mean(axis=1) for row in slots])
    return (equal - 1 / 256) / (1 - 1 / 256) * (signatures[:, -1:] == signatures[:, -1])


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
    for signatures in ((), write(tmp_path, np.empty((0, 33)))):
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


def test_fifty_thousand_rows_that_are_almost_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near = settings()
    rng = np.random.default_rng(0)
    rows = np.tile(rng.integers(0, 2**32, signature_width(near), np.uint32), (50_000, 1))
    rows.view(np.uint8)[np.arange(50_000), rng.integers(0, near.permutations, 50_000)] += 1
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
    path = Path(__file__).parents[1] / "benchmarks/near_duplicates.py"
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
