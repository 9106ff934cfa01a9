"""Rehearsal: what the base is asked, which of its answers become rows, and that nothing is asked twice.

Whatever answers is given here by the tests, through the same ``Answers`` that a model or a server stands behind; the base itself
answers in tests/test_rehearse.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, read_jsonl, write_jsonl
from pipeline.data.chat_format import ChatFormat
from pipeline.data.describe import profile_mix
from pipeline.data.mix import build_mix, held_out
from pipeline.data.pools import build_pools
from pipeline.data.rehearsal import ask
from pipeline.data.rehearsal.ask import Said, Store, message_of, seed_of
from pipeline.data.rehearsal.keep import grams, near_copy
from pipeline.data.rehearsal.questions import Question
from pipeline.data.rehearsal.rehearse import copy_to, rehearsed
from pipeline.data.screen import screen
from pipeline.evaluation.report.card import hub_datasets
from pipeline.model.decode import Reply
from pipeline.settings import Recipe, load_profile, parse

THOUGHT = "<think>\nI know it.\n</think>\n\n"


class Script:
    """Answers by a function of the question and its sample; counts what it was asked."""

    at_once = 8

    def __init__(self, reply: Callable[[Question, int], str | tuple[str, bool]], stop_after: int | None = None):
        self.reply, self.stop_after, self.asked = reply, stop_after, Counter[tuple[str, int]]()

    def __call__(
        self,
        questions: Sequence[Question],
        mode: str,
        sampling: Any,
        seed: int,
        arrived: Callable[[int, Reply], object],
    ) -> list[Reply]:
        result = []
        for place, question in enumerate(questions):
            if self.stop_after is not None and sum(self.asked.values()) >= self.stop_after:
                raise KeyboardInterrupt  # in the middle of a call
            self.asked[question.key, seed] += 1
            said = self.reply(question, seed)
            text, truncated = said if isinstance(said, tuple) else (said, False)
            result.append(Reply(text, [], len(question.prompt_ids), 7, 4, 3, truncated))
            arrived(place, result[-1])
        return result


def never(*_: Any) -> Any:
    raise AssertionError("the base was loaded")


def recipe(tmp_path: Path, rows: list[dict[str, Any]], mode: str = "thinking", **changes: Any) -> Recipe:
    write_jsonl(tmp_path / "questions.jsonl", rows)
    questions = {"source": "local", "path": str(tmp_path / "questions.jsonl")} | changes.pop("questions", {})
    own = {"name": "own", "source": "base", "mode": mode, "questions": questions, "share": 1.0} | changes.pop("own", {})
    values = {"name": "test", "group_near_duplicates": False, "sources": [own, *changes.pop("others", [])]} | changes
    return parse(Recipe, values, "test")


@pytest.fixture
def run(tmp_path: Path, embedded_tokenizer: Any) -> Callable[..., tuple[Recipe, dict[str, Any]]]:
    profile = load_profile("embedded")

    def call(wanted: Recipe, answers: Script) -> tuple[Recipe, dict[str, Any]]:
        return rehearsed(profile, wanted, embedded_tokenizer, never, tmp_path / "cache", answers)

    return call


def asked(question: Question) -> str:
    return str(question.messages[-1]["content"])


def rows_of(ready: Recipe, name: str = "rows.jsonl") -> list[dict[str, Any]]:
    (source,) = [source for source in ready.sources if source.rows_at is not None]
    assert source.rows_at is not None
    return read_jsonl(source.rows_at.with_name(name))


def numbered(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"problem": f"Question number {n}?", **more} for n in range(count)]


# --- what is asked ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "messages", "reference"),
    [
        ({"prompt": "Hello"}, [("user", "Hello")], None),
        ({"problem": "2 + 2", "expected_answer": 4}, [("user", "2 + 2")], "4"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, [("user", "Hi")], None),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
            [("user", "Hi")],
            None,
        ),
        (
            {
                "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Ho"},
                "rejected": {"from": "gpt", "value": "No"},
            },
            [("system", "Be brief."), ("user", "Hi")],
            None,
        ),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": "No"}, [("user", "Hi")], None),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "I am Ada."},
                    {"role": "assistant", "content": "Hi.", "reasoning_content": "A name."},
                    {"role": "user", "content": "Who am I?"},
                    {"role": "assistant", "content": "Ada."},
                ]
            },
            [("system", "Be brief."), ("user", "I am Ada."), ("assistant", "Hi."), ("user", "Who am I?")],
            None,
        ),
        (
            {"problem": "2 + 2", "generated_solution": "<think>\n4\n</think>\n\n4", "expected_answer": "4"},
            [("user", "2 + 2")],
            "4",
        ),
    ],
)
def test_a_row_becomes_the_question_that_it_asks(
    tmp_path: Path, run: Any, row: dict[str, Any], messages: list[tuple[str, str]], reference: str | None
) -> None:
    seen: list[Question] = []

    def reply(question: Question, seed: int) -> str:
        seen.append(question)
        return THOUGHT + (reference or "ok")

    run(recipe(tmp_path, [row]), Script(reply))
    (question,) = seen
    assert [(m["role"], m["content"]) for m in question.messages] == messages
    assert question.reference == reference
    assert all(set(m) == {"role", "content"} for m in question.messages)


def test_a_column_may_be_named_as_the_reference(tmp_path: Path, run: Any) -> None:
    rows = [{"question": "2 + 2", "answer": "2 + 2 = 5 - 1\n#### 4"}]
    wanted = recipe(tmp_path, rows, questions={"columns": {"expected_answer": "answer"}})
    ready, records = run(wanted, Script(lambda q, s: THOUGHT + "The answer is 4."))
    assert records["own"]["right"] == 1.0 and len(rows_of(ready)) == 1


def test_every_question_that_is_not_asked_is_written_with_its_reason(tmp_path: Path, run: Any) -> None:
    rows = [{"prompt": "Hello"}, {"prompt": "Hello"}, {"prompt": "word " * 300}, {"nothing": 1}]
    ready, records = run(recipe(tmp_path, rows), Script(lambda q, s: THOUGHT + "ok"))
    out = rows_of(ready, "left_out.jsonl")
    assert [(o["line"], o["reason"]) for o in out] == [(2, "asked_already"), (3, "too_long"), (4, "unknown_format")]
    assert all(o["detail"] for o in out) and out[1]["row"] == rows[2]
    questions = records["own"]["questions"]
    assert questions["read"] == 4 == questions["asked"] + sum(questions["left_out"].values())


def test_a_question_is_asked_again_with_conditions(tmp_path: Path, run: Any) -> None:
    (tmp_path / "own.yaml").write_text("end: [Say please.]\n")
    answers = Script(lambda question, _: f"Yes, {asked(question)}")
    plain = recipe(tmp_path, [{"question": "May I?"}], "non_thinking")
    both = recipe(
        tmp_path, [{"question": "May I?"}], "non_thinking", questions={"conditions": str(tmp_path / "own.yaml")}
    )
    before, after = (
        [row["messages"][0]["content"].split() for row in rows_of(run(wanted, answers)[0])] for wanted in (plain, both)
    )
    assert before == [["May", "I?"]]
    assert after == [["May", "I?"], ["May", "I?", "Say", "please."]]
    assert len(answers.asked) == 2  # nothing is asked twice


def test_an_item_of_a_benchmark_is_never_asked(tmp_path: Path, run: Any) -> None:
    item = "A farmer has seventeen sheep and buys five more at the market; how many sheep does he have now?"
    write_jsonl(tmp_path / "benchmark.jsonl", [{"question": item}])
    benchmark = {"name": "bench", "source": "local", "path": str(tmp_path / "benchmark.jsonl")}
    rows = [{"prompt": item}, {"prompt": "What is the capital of France?"}]
    script = Script(lambda q, s: THOUGHT + "ok")
    ready, _ = run(recipe(tmp_path, rows, decontaminate={"benchmarks": [benchmark]}), script)
    assert sum(script.asked.values()) == 1
    assert [o["reason"] for o in rows_of(ready, "left_out.jsonl")] == ["contaminated"]
    with pytest.raises(UserError, match=r"none of the 1 questions .*\(1 × contaminated.*never asked"):
        run(recipe(tmp_path, rows[:1], decontaminate={"benchmarks": [benchmark]}), script)


# --- what is kept -------------------------------------------------------------------------------------------------------

FORMS = {
    "thinking": {
        "ok": (THOUGHT + "fine", None),
        "cut": ((THOUGHT + "fi", True), ("truncated", "cut after 7 tokens")),
        "bare": ("fine", ("unfaithful", "does not begin with a think block")),
        "open": ("<think>\nhm", ("unfaithful", "never closes")),
        "empty": ("<think>\n\n</think>\n\nfine", ("unfaithful", "an empty think block")),
        "mute": ("<think>\nhm\n</think>", ("unfaithful", "no answer behind")),
        "twice": (THOUGHT + "a </think> b", ("unfaithful", "a second think tag")),
    },
    "non_thinking": {
        "ok": ("fine", None),
        "cut": (("fi", True), ("truncated", "cut after 7 tokens")),
        "tags": (THOUGHT + "fine", ("unfaithful", "a think tag in non-thinking mode")),
        "none": (" ", ("unfaithful", "no answer")),
    },
}


@pytest.mark.parametrize("mode", FORMS)
def test_a_reply_is_kept_only_in_the_form_of_its_mode(tmp_path: Path, run: Any, mode: str) -> None:
    forms = FORMS[mode]
    rows = [{"prompt": name} for name in forms]
    ready, records = run(recipe(tmp_path, rows, mode), Script(lambda q, s: forms[asked(q)][0]))
    assert [row["messages"][0]["content"] for row in rows_of(ready)] == ["ok"]
    out = rows_of(ready, "left_out.jsonl")
    expected = [why for _, why in forms.values() if why]
    assert [o["reason"] for o in out] == [reason for reason, _ in expected]
    assert all(words in o["detail"] for o, (_, words) in zip(out, expected, strict=True))
    record = records["own"]
    assert record["fidelity"] == 1 / len(forms) and record["truncated"] == 1 / len(forms)
    assert record["replies"] == len(forms) == record["kept"] + sum(record["left_out"].values())
    assert [w for w in record["warnings"] if "keeps to its mode in" in w]
    assert [w for w in record["warnings"] if "is cut at the length limit" in w]


def test_a_wrong_answer_is_left_out_where_the_right_one_is_known(tmp_path: Path, run: Any) -> None:
    rows = [{"problem": f"{n} + 1", "expected_answer": n + 1} for n in range(4)] + [{"problem": "Hello"}]
    ready, records = run(recipe(tmp_path, rows), Script(lambda q, s: THOUGHT + "The answer is 2."))
    assert [row["messages"][0]["content"] for row in rows_of(ready)] == ["1 + 1", "Hello"]
    assert {o["reason"] for o in rows_of(ready, "left_out.jsonl")} == {"wrong_answer"}
    assert records["own"]["right"] == 0.25 and any("is right in 0.250" in w for w in records["own"]["warnings"])


def test_of_near_copies_of_one_question_the_first_stays(tmp_path: Path, run: Any) -> None:
    story = "Once there was a small grey cat who lived by the sea and liked to watch the boats come home at night"
    said = [story, story.upper(), "The answer is quite another story.", story]
    seeds = [seed_of(0, n) for n in range(4)]
    ready, _ = run(
        recipe(tmp_path, [{"prompt": "a"}, {"prompt": "b"}], own={"samples": 4}),
        Script(lambda q, s: "<think>\nhm\n</think>\n\n" + said[seeds.index(s)]),
    )
    kept = rows_of(ready)
    assert [(r["messages"][0]["content"], r["rehearsal"]["sample"]) for r in kept] == [
        ("a", 0),
        ("a", 2),
        ("b", 0),
        ("b", 2),
    ]
    assert [o["reason"] for o in rows_of(ready, "left_out.jsonl")] == ["near_copy"] * 4


def test_rows_say_where_they_come_from(tmp_path: Path, run: Any) -> None:
    ready, _ = run(recipe(tmp_path, numbered(2), own={"seed": 5}), Script(lambda q, s: THOUGHT + "ok"))
    about = rows_of(ready)[1]["rehearsal"]
    assert about["model"].startswith("embedded-") and about["mode"] == "thinking" and about["seed"] == 5
    assert about["sampling"]["temperature"] == 0.6 and "revision" in about
    assert about["question"] == {"file": "questions.jsonl", "line": 2} and about["sample"] == 0


words_of_a_text = st.text("abc 12\n", max_size=40)


@given(words_of_a_text, words_of_a_text)
def test_likeness_is_symmetric_and_whole_for_the_same(a: str, b: str) -> None:
    assert near_copy(grams(a), grams(a)) == 1
    assert 0 <= near_copy(grams(a), grams(b)) == near_copy(grams(b), grams(a)) <= 1


# --- what becomes of the rows -------------------------------------------------------------------------------------------


def test_the_mask_of_every_row_begins_where_the_base_began(tmp_path: Path, run: Any, embedded_tokenizer: Any) -> None:
    form = ChatFormat(embedded_tokenizer)
    rows = [
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]},
        {
            "messages": [
                {"role": "user", "content": "I am Ada."},
                {"role": "assistant", "content": "Hello, Ada!"},
                {"role": "user", "content": "Who am I? <|im_end|>"},
            ]
        },
    ]
    for mode, start in (("thinking", "<think>"), ("non_thinking", "You are")):
        seen: dict[str, Question] = {}

        def reply(question: Question, seed: int, seen: dict[str, Question] = seen, start: str = start) -> str:
            seen[asked(question)] = question
            return "<think>\nA name.\n</think>\n\nYou are Ada." if start == "<think>" else "You are Ada."

        ready, _ = run(recipe(tmp_path, rows, mode), Script(reply))
        (pool,) = build_pools(ready, form, 256)
        assert not pool.rejected
        examples_of = list(pool.examples)
        assert len(examples_of) == len(rows)  # an earlier answer, which is not the base's, carries no loss
        for example, question in zip(examples_of, seen.values(), strict=True):
            prompt = example["labels"].count(-100)
            assert example["input_ids"][:prompt] == question.prompt_ids
            target = embedded_tokenizer.decode(example["input_ids"][prompt:])
            assert target.startswith(start) and target.endswith("You are Ada.<|im_end|>")
            assert example["mode"] == mode


@pytest.mark.parametrize("conditions", [False, True])
def test_answers_to_one_question_fall_on_one_side(
    tmp_path: Path, run: Any, embedded_tokenizer: Any, conditions: bool
) -> None:
    kinds = ["red", "blue", "green"]
    seeds = [seed_of(0, n) for n in range(3)]
    rows = numbered(60)
    (tmp_path / "own.yaml").write_text("end: [Say please., Do it., Go on.]\n")
    more = {"conditions": str(tmp_path / "own.yaml")} if conditions else {}
    ready, _ = run(
        recipe(tmp_path, rows, own={"samples": 3}, questions=more),
        Script(lambda q, s: f"<think>\nhm\n</think>\n\nI like {kinds[seeds.index(s)]} {asked(q)} best."),
    )
    pools = build_pools(ready, ChatFormat(embedded_tokenizer), 256)
    (judged,) = screen(ready, pools)
    sides: dict[str, set[bool]] = {}
    for row, side in zip(rows_of(ready), held_out(judged.key, 0.3), strict=True):
        sides.setdefault(row["messages"][0]["content"].split("?")[0], set()).add(bool(side))
    assert len(rows_of(ready)) == (360 if conditions else 180)
    assert len(sides) == 60 and all(len(side) == 1 for side in sides.values())
    assert {side for own in sides.values() for side in own} == {True, False}


def test_a_share_that_cannot_be_filled_says_how_many_questions_it_takes(
    tmp_path: Path, run: Any, embedded_tokenizer: Any
) -> None:
    ready, _ = run(recipe(tmp_path, numbered(40), total=100), Script(lambda q, s: THOUGHT + asked(q)))
    pools = build_pools(ready, ChatFormat(embedded_tokenizer), 256)
    with pytest.raises(UserError, match=r"'own' has 40 of 100 .*about 100 .*instead of 40"):
        build_mix(ready, pools, 1, 0.0)


def test_the_mix_is_that_of_the_recipe(
    tmp_path: Path, embedded_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
    chat = {"source": "generated", "path": "finetome_like", "rows": 200, "format": "sharegpt", "kind": "chat"}
    wanted = recipe(
        tmp_path, numbered(60), own={"share": 0.25}, others=[{**chat, "name": "chat", "share": 0.75}], total=80
    )
    wanted.sources.append(wanted.sources[0].model_copy(update={"name": "other", "share": 0.0}))
    profile = load_profile("embedded")
    run_it = Script(lambda q, s: THOUGHT + asked(q))
    rehearsed(profile, wanted, embedded_tokenizer, never, tmp_path / "cache", run_it)
    mix = profile_mix(profile, wanted, embedded_tokenizer, never)  # everything was said already
    assert mix.manifest["sources"][0]["achieved"]["rows"] == 0.25
    assert mix.manifest["rehearsal"]["own"]["kept"] == 60
    text = json.dumps(mix.manifest)
    assert str(tmp_path / "cache") not in text  # nothing of this machine
    assert mix.manifest["recipe"]["sources"][0]["source"] == "base"
    # What has no share is not asked and in no account: report and model card find a row count for each source named.
    assert [s["name"] for s in mix.manifest["recipe"]["sources"]] == ["own", "chat"]
    assert hub_datasets(mix.manifest) == []


def test_a_source_without_a_share_is_not_asked(tmp_path: Path, run: Any) -> None:
    chat = {"source": "generated", "path": "finetome_like", "rows": 20, "format": "sharegpt", "kind": "chat"}
    wanted = recipe(tmp_path, numbered(3), own={"share": 0.0}, others=[{**chat, "name": "chat", "share": 1.0}])
    script = Script(lambda q, s: THOUGHT + "ok")
    ready, records = run(wanted, script)
    assert [s.name for s in ready.sources] == ["chat"] and not records and not script.asked


# --- nothing is asked twice ---------------------------------------------------------------------------------------------


def test_a_stopped_rehearsal_goes_on_and_asks_nothing_twice(tmp_path: Path, run: Any, embedded_tokenizer: Any) -> None:
    wanted = recipe(tmp_path, numbered(50), own={"samples": 2})
    first = Script(lambda q, s: f"{THOUGHT}{asked(q)} {s}", stop_after=30)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, first)
    (store,) = (tmp_path / "cache/rehearsals/replies").glob("*/replies.jsonl")
    with store.open("ab") as file:
        file.write(b'{"key": "half a li')  # what a kill in the middle of a write leaves
    second = Script(first.reply)
    ready, records = run(wanted, second)
    assert not first.asked.keys() & second.asked.keys()
    assert set((first.asked + second.asked).values()) == {1} and len(first.asked + second.asked) == 100
    assert records["own"]["replies"] == 100 and len(read_jsonl(store)) == 100
    again = Script(first.reply)
    assert run(wanted, again)[1] == records and not again.asked
    whole = rows_of(ready)
    profile = load_profile("embedded")
    fresh, _ = rehearsed(profile, wanted, embedded_tokenizer, never, tmp_path / "another", Script(first.reply))
    assert rows_of(fresh) == whole  # as if it had never been stopped


def test_replies_are_on_the_disk_while_others_are_written(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "WRITE_EVERY_S", 0.0)
    seen: list[int] = []

    def reply(question: Question, seed: int) -> str:
        stored = list((tmp_path / "cache/rehearsals/replies").glob("*/replies.jsonl"))
        seen.append(sum(path.read_bytes().count(b"\n") for path in stored))
        return f"{THOUGHT}{asked(question)} {seed}"

    run(recipe(tmp_path, numbered(8)), Script(reply))
    assert seen == list(range(8))  # one call


def test_another_source_or_seed_shares_what_was_said(tmp_path: Path, run: Any) -> None:
    script = Script(lambda q, s: f"{THOUGHT}{asked(q)} {s}")
    run(recipe(tmp_path, numbered(10)), script)
    run(recipe(tmp_path, numbered(15)), script)
    assert len(script.asked) == 15 and set(script.asked.values()) == {1}
    run(recipe(tmp_path, numbered(15), own={"seed": 1}), script)
    run(recipe(tmp_path, numbered(15), "non_thinking"), Script(lambda q, s: "ok"))
    run(recipe(tmp_path, numbered(15), own={"max_new_tokens": 50}), script)
    assert sum(script.asked.values()) == 45


said = st.builds(
    Said, st.text("ab", min_size=1, max_size=3), st.integers(0, 3), st.text(), st.booleans(), st.integers(0, 9),
    st.floats(0, 9), st.none() | st.booleans(),
)  # fmt: skip


@given(st.lists(said, min_size=1, max_size=6, unique_by=lambda s: (s.key, s.seed)), st.data())
@settings(max_examples=examples(30))
def test_any_beginning_of_a_store_gives_whole_replies(
    tmp_path_factory: pytest.TempPathFactory, replies: list[Said], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("store")
    Store(folder, {"model": "m"}).add(replies)
    whole = (folder / "replies.jsonl").read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    (folder / "replies.jsonl").write_bytes(whole[:cut])
    store = Store(folder, {"model": "m"})
    count = whole[:cut].count(b"\n")
    assert [store.get(s.key, s.seed) for s in replies[:count]] == replies[:count]
    assert not any((s.key, s.seed) in store for s in replies[count:])
    store.add(replies[count:])
    assert (folder / "replies.jsonl").read_bytes() == whole


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_a_base_that_cannot_do_the_mode_is_refused_early(tmp_path: Path, run: Any) -> None:
    script = Script(lambda q, s: "Never a thought.")
    with pytest.raises(UserError, match=r"0 of 8 open .*begins 'Never a thought.'.*another base"):
        run(recipe(tmp_path, numbered(400)), script)
    assert sum(script.asked.values()) == 64
    few = Script(lambda q, s: "Never a thought.")
    for _ in range(2):  # also where all of it is stored
        with pytest.raises(UserError, match="in none of its replies"):
            run(recipe(tmp_path, numbered(5)), few)
    assert sum(few.asked.values()) <= 5


def test_a_base_that_is_always_wrong_has_nothing_to_rehearse(tmp_path: Path, run: Any) -> None:
    rows = numbered(5, expected_answer=7)
    with pytest.raises(UserError, match=r"none of .* 5 replies .*\(5 × wrong_answer\)"):
        run(recipe(tmp_path, rows), Script(lambda q, s: THOUGHT + "The answer is 6."))


def test_no_room_for_a_question(tmp_path: Path, run: Any) -> None:
    with pytest.raises(UserError, match="leave no room for a question"):
        run(recipe(tmp_path, numbered(2), own={"max_new_tokens": 256}), Script(lambda q, s: "x"))


def test_a_cache_of_another_model_is_not_taken(tmp_path: Path, run: Any) -> None:
    script = Script(lambda q, s: THOUGHT + "ok")
    run(recipe(tmp_path, numbered(2)), script)
    (header,) = (tmp_path / "cache/rehearsals/replies").glob("*/identity.json")
    header.write_text(json.dumps(read_json(header) | {"model": "other-123"}))
    with pytest.raises(UserError, match=r"replies of another model .*'other-123' there"):
        run(recipe(tmp_path, numbered(3)), script)


def test_a_folder_with_the_rehearsal_of_another_model_is_not_written_over(tmp_path: Path, run: Any) -> None:
    ready, _ = run(recipe(tmp_path, numbered(2)), Script(lambda q, s: THOUGHT + "ok"))
    rows_at = ready.sources[0].rows_at
    assert rows_at is not None
    copy_to(tmp_path / "out", rows_at.parent)
    copy_to(tmp_path / "out", rows_at.parent)
    record = tmp_path / "out" / "rehearsal.json"
    record.write_text(json.dumps(read_json(record) | {"model": "other-123"}))
    with pytest.raises(UserError, match="holds the rehearsal of another model"):
        copy_to(tmp_path / "out", rows_at.parent)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"mode": None}, "needs mode"),
        ({"questions": None}, "needs questions"),
        ({"source": "local", "kind": "chat", "path": "x"}, "mode, questions|questions, mode"),
        ({"mode": "loud"}, "mode"),
        ({"questions": {"source": "base", "path": "x"}}, "questions.source"),
    ],
)
def test_settings_of_a_rehearsal_are_checked(tmp_path: Path, own: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe(tmp_path, numbered(1), own=own)


def test_pools_of_a_base_that_was_not_asked(tmp_path: Path, embedded_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="has not been asked yet"):
        build_pools(recipe(tmp_path, numbered(1)), ChatFormat(embedded_tokenizer), 256)


@pytest.mark.parametrize("text", ["<think>\na\n</think>\n\nb", "b", "<think>\na\n</think>\nb\n"])
def test_a_reply_as_a_message(text: str) -> None:
    message = message_of(text)
    assert message["content"] == "b" and message.get("reasoning_content") == ("a" if "think" in text else None)
