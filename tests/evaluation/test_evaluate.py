"""EvalScope with our model and benchmarks: known replies must get known scores, through the same ``run_task``."""

from __future__ import annotations

import inspect
import json
import logging
import random
import re
import socket
import time
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, read_jsonl, write_jsonl
from pipeline.core.hubs import reachable
from pipeline.core.modes import MODES
from pipeline.core.statistics import interval, wilson
from pipeline.data import corpora
from pipeline.data.answers import score_answer
from pipeline.evaluation.evalscope import contain
from pipeline.evaluation.evalscope.items import prepare
from pipeline.evaluation.evaluate import evaluate_model, evaluate_replies
from pipeline.model.decode import Reply
from pipeline.run import Run
from pipeline.settings import EvaluationSettings, load_profile
from pipeline.training.plan import plan_run

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "eval"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no copies of GSM8K and IFEval on this machine")
SAMPLING = {
    "thinking": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_new_tokens": 16},
    "non_thinking": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "max_new_tokens": 16},
}


def settings(*benchmarks, limit=None, batch_size=8, seed=42, **dataset_args):
    return EvaluationSettings(
        benchmarks=list(benchmarks),
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        sampling=SAMPLING,
        dataset_args=dataset_args,
    )


def say(text, truncated=False):
    """A stored reply, with a token a word."""
    reasoning, tag, answer = text.rpartition("</think>")
    counts = len((reasoning + tag).split()), len(answer.split())
    return Reply(text, [1] * sum(counts), 5, sum(counts), *counts, truncated)


class Replay:
    """Answers with ``reply(last user message, mode)`` and counts what it was asked."""

    def __init__(self, reply):
        self.reply = reply
        self.batches = []

    def __call__(self, conversations, mode):
        self.batches.append([messages[-1]["content"] for messages in conversations])
        return [self.reply(messages[-1]["content"], mode) for messages in conversations]

    @property
    def asked(self):
        return sum(map(len, self.batches))


def in_form(answer, mode):
    return say(f"<think>\nI know it.\n</think>\n\n{answer}" if mode == "thinking" else answer)


def score_of(reply, benchmark, tmp_path, mode="non_thinking", **options):
    name = benchmark if isinstance(benchmark, str) else benchmark[0]
    limit = options.pop("limit", None)
    cells = evaluate_replies(Replay(reply), "m", settings(name, limit=limit, **options), tmp_path, [mode], False)
    return cells[mode]["benchmarks"][name]


# --- embedded benchmarks ----------------------------------------------------------------------------------------------


def gold(limit, seed=42):
    # A conversation of several turns is told apart by its last user message and what came before.
    answers = {}
    for name in corpora.TEST_SETS:
        for item in corpora.test_items(name, limit, seed):
            answers[json.dumps(item["messages"], ensure_ascii=False)] = item["answer"]
    return lambda messages: answers[json.dumps(messages, ensure_ascii=False)]


EMBEDDED = ("embedded_chat", "embedded_arithmetic", "embedded_skill")


@pytest.mark.slow
def test_gold_replies_score_one_and_are_faithful(tmp_path):
    answer = gold(12)
    calls = []

    def reply_to(conversations, mode):
        calls.append((mode, len(conversations)))
        return [in_form(answer(messages), mode) for messages in conversations]

    config = settings(*EMBEDDED, limit=12)
    cells = evaluate_replies(reply_to, "base", config, tmp_path, progress=False)
    assert calls == [(mode, size) for mode in MODES for _ in EMBEDDED for size in (8, 4)]  # full batches, nothing twice
    for mode in MODES:
        cell = cells[mode]
        scores = {name: (b["score"], b["n"]) for name, b in cell["benchmarks"].items()}
        assert scores == dict.fromkeys(EMBEDDED, (1.0, 12))
        assert (cell["n"], cell["mode_fidelity"], cell["truncated"], cell["leaked"]) == (36, 1.0, 0.0, 0.0)
        assert cell["opened"] == cell["closed"] == (mode == "thinking")
        assert cell["mode_fidelity_ci95"] == wilson(36, 36)
        assert cell["mean_reasoning_tokens"] == (5 if mode == "thinking" else 0)
        rows = read_jsonl(tmp_path / mode / "predictions.jsonl")
        assert [(r["benchmark"], r["index"]) for r in rows] == [(name, i) for name in EMBEDDED for i in range(12)]
        assert all(r["score"] == 1 and r["faithful"] and r["reply"].endswith(answer(r["messages"])) for r in rows)
        assert rows[0]["reference"] == answer(rows[0]["messages"])
        assert read_json(tmp_path / mode / "cell.json")["cell"] == cell
    assert not (tmp_path / ".evaluation_data").exists()

    def never(conversations, mode):
        raise AssertionError("a finished cell was asked again")

    assert evaluate_replies(never, "base", config, tmp_path, progress=False) == cells
    config.batch_size = 3
    assert evaluate_replies(never, "base", config, tmp_path, progress=False) == cells
    for other, changed in (("tuned", config), ("base", settings(*EMBEDDED, limit=12, seed=1))):
        with pytest.raises(AssertionError, match="asked again"):
            evaluate_replies(never, other, changed, tmp_path, progress=False)


@pytest.mark.parametrize(
    ("form", "mode", "score", "fidelity"),
    [
        (lambda answer: say("No."), "non_thinking", 0, 1),
        (lambda answer: say(""), "non_thinking", 0, 0),
        (lambda answer: say(answer, truncated=True), "non_thinking", 0, 0),
        (lambda answer: say(f"<think>\n\n</think>\n\n{answer}"), "non_thinking", 1, 0),
        (lambda answer: say(answer), "thinking", 1, 0),
        (lambda answer: say(f"<think>\nIt is {answer}"), "thinking", 0, 0),
        (lambda answer: say(f"<think>\na\n</think>\n\n{answer}", truncated=True), "thinking", 0, 0),
        (lambda answer: say(f"<think>\na\n</think>\n\n{answer} <think>"), "thinking", 0, 0),
        (lambda answer: say(f"<think>\n{answer}\n</think>\n\n"), "thinking", 0, 0),
    ],
)
def test_replies_out_of_form(tmp_path, form, mode, score, fidelity):
    answer = gold(5)
    replies = lambda conversations, _: [form(answer(messages)) for messages in conversations]  # noqa: E731
    cell = evaluate_replies(replies, "m", settings("embedded_skill", limit=5), tmp_path, [mode], False)[mode]
    assert (cell["benchmarks"]["embedded_skill"]["score"], cell["mode_fidelity"]) == (score, fidelity)


def test_a_killed_evaluation_goes_on_where_it_stopped(tmp_path):
    answer = gold(20)
    first = []

    def until_interrupted(conversations, mode):
        if len(first) == 2:
            raise KeyboardInterrupt
        first.append(conversations)
        return [in_form(answer(messages), mode) for messages in conversations]

    config = settings("embedded_skill", limit=20, batch_size=6)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        evaluate_replies(until_interrupted, "m", config, tmp_path, ["thinking"], False)
    assert time.monotonic() - started < 15
    assert not (tmp_path / "thinking" / "cell.json").exists()
    stored = next((tmp_path / "thinking").rglob("predictions/*/*.jsonl"))
    stored.write_bytes(stored.read_bytes()[:-40])  # a kill in the middle of a write
    then = Replay(lambda question, mode: in_form(answer([{"role": "user", "content": question}]), mode))
    cells = evaluate_replies(then, "m", config, tmp_path, ["thinking"], False)
    assert cells["thinking"]["benchmarks"]["embedded_skill"]["n"] == 20
    assert cells["thinking"]["benchmarks"]["embedded_skill"]["score"] == 1
    assert then.asked == 9
    whole = Replay(then.reply)
    assert evaluate_replies(whole, "m", config, tmp_path / "b", ["thinking"], False) == cells
    assert whole.asked == 20
    files = [folder / "thinking" / "predictions.jsonl" for folder in (tmp_path, tmp_path / "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_model_end_to_end(tmp_path, embedded_tokenizer, tiny_qwen3):
    import torch

    tokenizer = embedded_tokenizer
    model = tiny_qwen3(0, max_position_embeddings=512)
    kept = logging.NullHandler()
    logging.getLogger().addHandler(kept)
    before = logging.getLogger().handlers[:], random.getstate(), torch.get_rng_state().tolist()
    config = settings("embedded_chat", limit=10, batch_size=4)
    cells = evaluate_model(model, tokenizer, "random", config, tmp_path / "a", progress=False)
    assert (logging.getLogger().handlers, random.getstate(), torch.get_rng_state().tolist()) == before
    logging.getLogger().removeHandler(kept)
    assert cells["thinking"]["n"] == cells["non_thinking"]["n"] == 10
    assert cells["thinking"]["mode_fidelity"] == 0  # an untrained model does not think
    evaluate_model(model, tokenizer, "random", settings("embedded_chat", limit=10), tmp_path / "b", progress=False)
    for mode in MODES:
        rows, others = (read_jsonl(tmp_path / folder / mode / "predictions.jsonl") for folder in "ab")
        assert rows == others  # the batch size does not matter
        assert all(r["truncated"] <= (r["output_tokens"] == 16) for r in rows)
        assert cells[mode]["truncated"] > 0.5


def test_its_output_is_quiet(tmp_path, capfd):
    answer = gold(4)
    replies = Replay(lambda question, mode: in_form(answer([{"role": "user", "content": question}]), mode))
    evaluate_replies(replies, "m", settings("embedded_skill", limit=4), tmp_path, ["thinking"], False)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert "Finished evaluation" in next(tmp_path.rglob("eval_log.log")).read_text()
    assert not list(tmp_path.rglob("*.html"))


# --- what is patched in EvalScope ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", contain.PATCHES)
def test_a_patched_name_still_exists_and_is_given_back(tmp_path, patch):
    with contain.contained(tmp_path / "run", []):
        owner, name = contain.patched_name(patch)
        inside = getattr(owner, name)
    assert getattr(owner, name) is not inside
    with contain.replaced(patch, inside):
        assert getattr(owner, name) is inside
    assert not list((tmp_path / "run").iterdir())


def test_what_the_patches_rely_on_in_evalscope(tmp_path):
    # Each patched name has to be looked up where it is patched, at the time of the call.
    import evalscope.api.dataset.utils as items
    import evalscope.run as run
    import evalscope.utils.tqdm_utils.tqdm_logging as bars

    assert "from evalscope.report import Report, gen_html_report_file" in inspect.getsource(run.evaluate_model)
    assert "gc.collect()" in inspect.getsource(run.evaluate_model)
    assert "logging_redirect_tqdm(" in inspect.getsource(bars.TqdmLogging.__init__)
    assert " tqdm(" in inspect.getsource(items)


def test_sentences_can_be_counted_without_nltks_own_model(tmp_path, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(contain, "_punkt_installed", lambda: False)
    with contain.sentence_model(tmp_path / "nltk") as notes:
        tokenizer = nltk.data.load("tokenizers/punkt_tab/english.pickle")
        assert tokenizer.tokenize("It is Dr. Who, e.g. here. Is it? Yes!") == [
            "It is Dr. Who, e.g. here.",
            "Is it?",
            "Yes!",
        ]
    assert len(notes) == 1 and "punkt_tab" in notes[0] and nltk.data.path == []


# --- EvalScope's own benchmarks, on rows of the public data -----------------------------------------------------------


@pytest.fixture
def gsm8k(tmp_path):
    """30 rows in a folder of a user's: question → (reasoning, number)."""
    rows = read_jsonl(SHARED / "gsm8k_test.jsonl")[:30]
    folder = tmp_path / "user"
    write_jsonl(folder / "test.jsonl", rows)
    (folder / "dataset_infos.json").write_text("{}")
    return folder, {row["question"]: row["answer"].split("####") for row in rows}


def gsm8k_score(tmp_path, gsm8k, form, mode="thinking", **arguments):
    folder, answers = gsm8k
    question = lambda prompt: prompt.partition("\nPlease reason step by step")[0]  # noqa: E731
    replay = Replay(lambda prompt, _: form(*(part.strip() for part in answers[question(prompt)])))
    config = settings("gsm8k", batch_size=30, gsm8k={"local_path": str(folder), "few_shot_num": 0, **arguments})
    return evaluate_replies(replay, "m", config, tmp_path / "run", [mode], False)[mode]["benchmarks"]["gsm8k"]


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(
    ("form", "score"),
    [
        (lambda steps, number: say(f"<think>\n{steps}\n</think>\n\nSo it is \\boxed{{{number}}}."), 1),
        (lambda steps, number: say(f"<think>\n{steps}\n</think>\n\nSo it is \\boxed{{{number}1}}."), 0),
        (lambda steps, number: say(f"<think>\nIs it \\boxed{{{number}}}?", truncated=True), 0),
        (lambda steps, number: say(f"<think>\nIs it \\boxed{{{number}}}?"), 0),
        (lambda steps, number: say(f"<think>\n{steps}\n</think>\n\n\\boxed{{{number}}}", truncated=True), 0),
        (lambda steps, number: say(f"<think>\n\\boxed{{{number}}}\n</think>\n\nI cannot tell."), 0),
    ],
    ids=["right", "wrong", "cut in its reasoning", "unclosed", "cut after its answer", "right in its reasoning only"],
)
def test_gsm8k(tmp_path, gsm8k, form, score):
    result = gsm8k_score(tmp_path, gsm8k, form)
    assert (result["score"], result["n"]) == (score, 30)
    assert {path.name for path in gsm8k[0].iterdir()} == {"test.jsonl", "dataset_infos.json"}  # left as it was


@needs_shared
def test_gsm8k_with_examples(tmp_path, gsm8k):
    folder, _ = gsm8k
    with pytest.raises(UserError, match=r"4 examples .* 'train', but .* no train.jsonl"):
        gsm8k_score(tmp_path, gsm8k, lambda s, n: say(n), few_shot_num=4)
    write_jsonl(folder / "gsm8k_train.jsonl", read_jsonl(SHARED / "gsm8k_train.jsonl")[:20])
    replay = Replay(lambda prompt, mode: say("0"))
    config = settings("gsm8k", limit=3, gsm8k={"local_path": str(folder)})
    evaluate_replies(replay, "m", config, tmp_path / "run", ["non_thinking"], False)
    assert all(prompt.count("Reasoning:") == 4 for prompt in replay.batches[0])


def sentences(count):
    return " ".join(["Here is one more."] * max(count, 1))


# What obeys an instruction of IFEval and what does not; a row of the test has exactly one instruction.
IFEVAL = {
    "punctuation:no_comma": lambda k: ("No pause in here.", "Well, there is."),
    "change_case:english_lowercase": lambda k: (
        "this whole text is written in small english letters only.",
        "THIS whole text is Not written in small letters only.",
    ),
    "change_case:english_capital": lambda k: (
        "THIS WHOLE TEXT IS WRITTEN IN BIG ENGLISH LETTERS ONLY.",
        "this whole text is written in small letters.",
    ),
    "detectable_format:title": lambda k: ("<<A title>>\nText.", "Text without one."),
    "startend:quotation": lambda k: ('"Quoted from end to end."', "Not quoted."),
    "detectable_format:json_format": lambda k: ('{"a": 1}', "a is 1"),
    "length_constraints:number_sentences": lambda k: (
        (sentences(k["num_sentences"]), "")
        if k["relation"] == "at least"
        else ("One for Dr. Who.", sentences(k["num_sentences"] + 1))
    ),
    "change_case:capital_word_frequency": lambda k: (
        " ".join(["LOUD"] * k["capital_frequency"]) if k["capital_relation"] == "at least" else "quiet",
        "quiet" if k["capital_relation"] == "at least" else " ".join(["LOUD"] * (k["capital_frequency"] + 1)),
    ),
}


@needs_shared
@pytest.mark.parametrize("obey", [True, False])
def test_ifeval(tmp_path, obey):
    rows = [
        row
        for row in read_jsonl(SHARED / "ifeval_input_data.jsonl")
        if len(row["instruction_id_list"]) == 1 and row["instruction_id_list"][0] in IFEVAL
    ]
    assert {row["instruction_id_list"][0] for row in rows} == set(IFEVAL)
    assert len(rows) > 60
    folder = tmp_path / "user"
    write_jsonl(folder / "ifeval_input_data.jsonl", rows)
    replies = {}
    for row in rows:
        right, wrong = IFEVAL[row["instruction_id_list"][0]](row["kwargs"][0])
        replies[row["prompt"]] = right if obey else wrong
    replay = Replay(lambda prompt, mode: in_form(replies[prompt], mode))
    config = settings("ifeval", batch_size=100, ifeval={"local_path": str(folder)})
    cell = evaluate_replies(replay, "m", config, tmp_path / "run", ["thinking"], False)["thinking"]
    result = cell["benchmarks"]["ifeval"]
    missed = [
        (r["messages"][0]["content"][-100:], r["reply"][-60:])
        for r in read_jsonl(tmp_path / "run" / "thinking" / "predictions.jsonl")
        if r["score"] != obey
    ]
    assert missed == []
    assert (result["score"], result["n"]) == (float(obey), len(rows))


def test_math_500_layout_and_the_limit_over_subsets(tmp_path):
    rows = [
        {
            "problem": f"What is ${n}^2$?",
            "solution": f"It is {n * n}.",
            "answer": str(n * n),
            "subject": "Algebra",
            "level": level,
            "unique_id": f"own/{n}.json",
        }
        for n, level in enumerate([1, 2, 3, 1, 2, 3], 2)
    ]
    write_jsonl(tmp_path / "user" / "test.jsonl", rows)
    square = lambda prompt, mode: say(f"It is $\\boxed{{{int(re.search(r'[0-9]+', prompt)[0]) ** 2}}}$.")  # noqa: E731
    arguments = {"local_path": str(tmp_path / "user")}
    result = score_of(square, "math_500", tmp_path / "a", math_500=arguments)
    assert (result["score"], result["n"]) == (1, 6)
    result = score_of(square, "math_500", tmp_path / "b", math_500=arguments, limit=5)
    assert (result["score"], result["n"]) == (1, 3)  # five levels, so one item of each level that there is


def test_items_that_evalscope_does_not_score_are_an_error(tmp_path):
    bad = {"key": 1, "prompt": "Say hello.", "instruction_id_list": ["no:such"], "kwargs": [{"n": None}]}
    good = {**bad, "key": 2, "instruction_id_list": ["punctuation:no_comma"]}
    write_jsonl(tmp_path / "user" / "train.jsonl", [bad, good])
    config = settings("ifeval", ifeval={"local_path": str(tmp_path / "user")})
    with pytest.raises(UserError, match=r"EvalScope scored 1 of 2 items of ifeval"):
        evaluate_replies(Replay(lambda *_: say("Hello.")), "m", config, tmp_path / "run", ["thinking"], False)
    assert not (tmp_path / "run" / "thinking" / "cell.json").exists()


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (settings("gsm9k"), r"there is no benchmark 'gsm9k'\. Did you mean 'gsm8k'\?"),
        (settings("embedded_chats"), r"Did you mean 'embedded_chat'\?"),
        (settings("embedded_chat", "embedded_chat"), "names embedded_chat more than once"),
        (settings("gsm8k", gsm8k={"local_path": "nowhere"}), r"gsm8k\.local_path: nowhere does not exist"),
        (settings("gsm8k", gsm8k={"local_path": __file__}), "is a file, not a folder"),
        (settings("gsm8k", gsm8k={"few_shot_nun": 0}), r"unknown key 'few_shot_nun'\. Did you mean 'few_shot_num'\?"),
        (settings("arena_hard"), "cannot set arena_hard up"),  # wants a second model as its judge
    ],
)
def test_mistakes_are_named(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        evaluate_replies(Replay(lambda *_: say("")), "m", config, tmp_path, ["thinking"], False)


def test_a_folder_without_the_files(tmp_path):
    (tmp_path / "user").mkdir()
    config = settings("gsm8k", gsm8k={"local_path": str(tmp_path / "user")})
    with pytest.raises(UserError, match=r"user has no test\.jsonl \(nor gsm8k_test\.jsonl"):
        evaluate_replies(Replay(lambda *_: say("")), "m", config, tmp_path / "run", ["thinking"], False)
    write_jsonl(tmp_path / "user" / "test.jsonl", [{"q": "1 + 1?", "a": "2"}])
    config = settings("gsm8k", gsm8k={"local_path": str(tmp_path / "user"), "few_shot_num": 0})
    with pytest.raises(UserError, match=r"items of gsm8k could not .*KeyError: 'question'"):
        evaluate_replies(Replay(lambda *_: say("")), "m", config, tmp_path / "run", ["thinking"], False)


def test_a_hub_out_of_reach_is_said_soon(tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("evalscope.constants.DEFAULT_EVALSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "127.0.0.1:9")  # nothing listens on the discard port
    asked: list[tuple[str, int]] = []  # one look with a time limit; the hub's own library tries again for minutes
    connect = socket.create_connection

    def counted(address, *arguments, **options):
        asked.append(address)
        return connect(address, *arguments, **options)

    monkeypatch.setattr(socket, "create_connection", counted)
    with pytest.raises(UserError, match=r"gsm8k .*cannot be reached .*gsm8k\.local_path"):
        evaluate_replies(Replay(lambda *_: say("")), "m", settings("gsm8k"), tmp_path, ["thinking"], False)
    assert asked == [("127.0.0.1", 9)]


def test_reachable(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert reachable(f"https://127.0.0.1:{port}")
    assert not reachable(f"https://127.0.0.1:{port}", seconds=0.5)


# --- scores and intervals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("The answer is 42.", "42", True),
        ("答案是 42。", "42", True),
        ("42.0", "42", True),
        ("It is 1,234.", "1234", True),
        ("It is 1{,}234", "1234", True),
        ("5-3", "3", True),
        ("It is -3", "3", False),
        ("It is \u22123", "-3", True),
        ("$6 \\times 7 = \\boxed{42}$, since 6 × 7 is that of 6 and 7", "42", True),
        ("\\boxed{41} no, \\boxed{42}", "42", True),
        ("\\boxed{41} and 42", "42", False),
        ("\\boxed{x} and 42", "42", False),
        ("\\boxed{42 and 42", "42", True),
        ("421", "42", False),
        ("4 2", "42", False),
        ("共有42个", "42", True),
        ("x42", "42", False),
        ("forty-two", "42", False),
        ("", "42", False),
    ],
)
def test_numbers(answer, reference, right):
    assert score_answer("number", answer, reference) == right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Hello, Ada.", True), (" Hello,\n Ada. ", True), ("Hello, Ada!", False), ("hello, Ada.", False), ("", False)],
)
def test_texts(answer, right):
    assert score_answer("text", answer, "Hello, Ada.") == right


def test_intervals():
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson(successes, n) == pytest.approx([low, high], abs=1e-4)
    assert wilson(1, 29) == pytest.approx([0.0061, 0.1718], abs=1e-4)
    assert interval([1.0, 0.0, 1.0]) == wilson(2, 3)
    assert interval([0.5, 0.7]) == pytest.approx([0.6 - 1.96 * 0.1, 0.6 + 1.96 * 0.1], abs=1e-4)
    assert interval([0.95, 1.0])[1] == 1.0
    assert interval([8.0, 10.0])[1] > 10


# --- looked at before anything is built ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (
            ["evaluation.sampling.thinking.max_new_tokens=1020"],
            r"thinking.max_new_tokens=1020 cannot fit: .* 1024 positions",
        ),
        (["evaluation.sampling.non_thinking.max_new_tokens=4096"], "at most 1008, less what your prompts take"),
        (["method=prompt", "evaluation.sampling.thinking.max_new_tokens=1000"], "at most 988"),  # virtual tokens count
    ],
)
def test_replies_that_cannot_fit_are_refused_before_the_mix_is_built(tmp_path, sets, words):
    profile = load_profile("embedded", sets)
    with pytest.raises(UserError, match=words):
        Run.open(profile, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=words):
        plan_run(profile)


@pytest.mark.slow
def test_a_prompt_without_room_for_its_reply_is_found_before_the_mix_is_built(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("the mix was built")

    monkeypatch.setattr("pipeline.run.profile_mix", never)
    tight = ["evaluation.limit=20", "evaluation.sampling.thinking.max_new_tokens=1000"]
    with pytest.raises(UserError, match=r"longest prompt .*\(thinking\) has \d+ tokens; with max_new"):
        Run.open(load_profile("embedded", tight), tmp_path / "a").all()
    short = ["evaluation.limit=20", "model.max_seq_length=24", "data.max_length=24"]
    with pytest.raises(UserError, match=r"\d+ tokens, more than model.max_seq_length=24"):
        Run.open(load_profile("embedded", short), tmp_path / "b").all()
    with pytest.raises(UserError, match="there is no benchmark 'gsm9k'"):
        Run.open(load_profile("embedded", ["evaluation.benchmarks=[gsm9k]"]), tmp_path / "c").all()
    with pytest.raises(AssertionError, match="the mix was built"):
        Run.open(load_profile("embedded", ["evaluation.limit=20"]), tmp_path / "d").all()


@needs_shared
def test_prompts_with_examples_are_those_that_are_asked(tmp_path):
    folder = tmp_path / "user"
    write_jsonl(folder / "test.jsonl", read_jsonl(SHARED / "gsm8k_test.jsonl")[:3])
    write_jsonl(folder / "train.jsonl", read_jsonl(SHARED / "gsm8k_train.jsonl")[:20])
    replay = Replay(lambda prompt, mode: say("0"))
    config = settings("gsm8k", gsm8k={"local_path": str(folder)})
    evaluate_replies(replay, "m", config, tmp_path / "run", ["non_thinking"], False)
    with contain.contained(tmp_path / "items", ["gsm8k"]):
        prompts = prepare("gsm8k", config, tmp_path / "items").prompts
    assert sorted(prompt[-1]["content"] for prompt in prompts) == sorted(
        prompt for batch in replay.batches for prompt in batch
    )
