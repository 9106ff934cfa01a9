"""Preference tuning: pairs to tokens under the parity rule, the account of the rows, win rates, and small trainings.

The trainings run in processes of their own, as unsloth has to be imported before transformers.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.core.files import write_json, write_jsonl
from pipeline.core.modes import MODES
from pipeline.data.chat_format import EMPTY_THINK, ChatFormat
from pipeline.data.conversations import Rejected
from pipeline.data.corpora import preference_like
from pipeline.second.preference import (
    Pair,
    as_examples,
    check_preference,
    describe,
    preference_table,
    prepare,
    read_pairs,
    share_of_modes,
    tokenise,
    win_rates,
)
from pipeline.second.stage import Stage, stage_profile
from pipeline.settings import Profile, RowsSettings, load_profile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]
LIMIT = 100_000
PIECES = st.characters(exclude_categories=["Cs"]) | st.sampled_from(
    ["<think>", "</think>", "<|im_end|>", " ", "\n", "好"]
)
TEXT = st.lists(PIECES, min_size=1, max_size=20).map("".join).filter(str.strip)  # control tokens in a text stay text
slowly = settings(max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])


def think(reasoning: str, answer: str) -> str:
    return f"<think>\n{reasoning}\n</think>\n\n{answer}"


def row(chosen: str, rejected: str, **columns: Any) -> dict[str, Any]:
    return {"prompt": "What is 2 + 2?", "chosen": chosen, "rejected": rejected, **columns}


# --- masks: the parity rule ---------------------------------------------------------------------------------------------


@slowly
@given(
    question=TEXT,
    history=st.lists(st.tuples(TEXT, TEXT), max_size=2),
    chosen=TEXT,
    rejected=TEXT,
    mode=st.sampled_from(MODES),
    thinks=st.booleans(),
)
def test_both_answers_follow_the_prompt_that_inference_sends(
    chat_format: ChatFormat,
    question: str,
    history: list[tuple[str, str]],
    chosen: str,
    rejected: str,
    mode: Any,
    thinks: bool,
) -> None:
    turns = [t for q, a in history for t in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
    messages = [*turns, {"role": "user", "content": question}]
    reasoning = {"reasoning_content": "Because."}
    good = {"role": "assistant", "content": chosen} | (reasoning if mode == "thinking" else {})
    bad = {"role": "assistant", "content": rejected} | (reasoning if thinks else {})
    prompt, (first, second) = chat_format.answer_ids(messages, [good, bad], mode)
    assert prompt == chat_format.prompt_ids(messages, mode)
    tokenizer = chat_format.tokenizer
    end, opening, closing = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<think>", "</think>"))
    for ids in (first, second):
        assert ids[-1] == end and ids.count(end) == 1  # "<|im_end|>" in the text of an answer stays text
    assert tokenizer.decode(prompt).endswith(EMPTY_THINK) == (mode == "non_thinking")
    # The preferred answer has the form of the mode, and is what supervised fine-tuning would train.
    assert (first[0] == opening) == (mode == "thinking") and first.count(closing) == (mode == "thinking")
    # The rejected one: without reasoning in thinking mode, the empty block is what it wrote; with it in the other, it leaks.
    assert second.count(opening) == second.count(closing) == (1 if thinks or mode == "thinking" else 0)
    if thinks or mode == "thinking":
        assert second[0] == opening
        between = tokenizer.decode(second[1 : second.index(closing)])
        assert between.strip() == ("Because." if thinks else "")


def test_a_preferred_answer_is_what_supervised_tuning_trains(chat_format: ChatFormat) -> None:
    from pipeline.data.conversations import Conversation

    for mode in MODES:
        answer = {"role": "assistant", "content": "4"} | ({"reasoning_content": "2 + 2."} if mode == "thinking" else {})
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
        prompt, (target,) = chat_format.answer_ids(messages, [answer], mode)
        (example,) = chat_format.example(Conversation([*messages, answer], mode), "last")
        assert example.input_ids == prompt + target
        assert example.labels == [-100] * len(prompt) + target


def test_the_mask_of_a_pair(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    from pipeline.data.chat_format import coloured

    chat_format = ChatFormat(embedded_tokenizer)
    pair = tokenise(row("4", "5", mode="non_thinking", defect="wrong_answer"), chat_format, LIMIT)
    assert pair.kind == "wrong_answer"
    shown = [coloured(embedded_tokenizer, example, "plain") for example in as_examples(pair)]
    head = f"<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n{EMPTY_THINK}"
    assert shown == [f"{head}[[4<|im_end|>]]", f"{head}[[5<|im_end|>]]"]


def test_trl_collates_the_pair_with_that_mask(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    from dataclasses import asdict

    from trl.trainer.dpo_trainer import DataCollatorForPreference

    chat_format = ChatFormat(embedded_tokenizer)
    pairs = [tokenise(r, chat_format, LIMIT) for r in preference_like(6, 3)]
    batch = DataCollatorForPreference(pad_token_id=embedded_tokenizer.pad_token_id)([asdict(p) for p in pairs])
    sequences = [p.prompt_ids + p.chosen_ids for p in pairs] + [p.prompt_ids + p.rejected_ids for p in pairs]
    answers = [p.chosen_ids for p in pairs] + [p.rejected_ids for p in pairs]
    for ids, mask, completion, whole, answer in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], sequences, answers, strict=True
    ):
        assert ids[mask.bool()].tolist() == whole and ids[completion.bool()].tolist() == answer


# --- rows that are no pairs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("same_answers", row("4", "4")),
        ("same_answers", row("4", "4\n")),
        ("mode_unclear", row("4", think("2 + 2 is 4.", "4"))),
        ("mode_unclear", row(think("2 + 2 is 4.", "4"), "4")),
        ("mode_disagrees", row("4", "5", mode="thinking")),
        ("mode_disagrees", row(think("So.", "4"), think("So.", "5"), mode="non_thinking")),
        ("unknown_mode", row("4", "5", mode="fast")),
        ("too_long", row("4 " * 500, "5")),
        ("prompts_differ", row([{"role": "user", "content": "x"}, {"role": "assistant", "content": "4"}], "5")),
        ("unclosed_think", row("<think>4", "5")),
        ("unknown_format", {"prompt": "q", "completion": "a"}),
    ],
)
def test_rejected_rows(reason: str, bad: dict[str, Any], embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    if reason == "unknown_format":
        with pytest.raises(Rejected):
            tokenise(bad, ChatFormat(embedded_tokenizer), 256)
        return
    with pytest.raises(Rejected) as caught:
        tokenise(bad, ChatFormat(embedded_tokenizer), 256)
    assert caught.value.reason == reason


def test_the_mode_comes_from_the_answers_or_from_its_column(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    chat_format = ChatFormat(embedded_tokenizer)
    thought, bare = think("2 + 2 is 4.", "4"), "5"
    assert tokenise(row("4", "5"), chat_format, LIMIT).mode == "non_thinking"
    assert tokenise(row(thought, think("Hm.", "5")), chat_format, LIMIT).mode == "thinking"
    assert tokenise(row(thought, bare, mode="thinking"), chat_format, LIMIT).mode == "thinking"
    assert tokenise(row(bare, thought, mode="non_thinking"), chat_format, LIMIT).mode == "non_thinking"


def local(path: Path, **settings: Any) -> RowsSettings:
    return RowsSettings(source="local", path=str(path), **settings)


def test_every_row_is_kept_or_rejected_with_its_place(
    tmp_path: Path, embedded_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [row("4", "5"), row("4", "4"), row("4", "5"), row(think("So.", "4"), "4"), {"question": "x"}]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    read = read_pairs(local(tmp_path / "pairs.jsonl"), ChatFormat(embedded_tokenizer), 256)
    assert len(read.pairs) + len(read.rejected) == len(rows)
    reasons = {"same_answers": 1, "exact_duplicate": 1, "mode_unclear": 1, "missing_column": 1}
    assert read.reasons == reasons
    assert [r["line"] for r in read.rejected] == [2, 3, 4, 5] and read.rejected[0]["row"] == rows[1]


def test_a_file_without_pairs_is_refused_with_its_reasons(
    tmp_path: Path, embedded_tokenizer: PreTrainedTokenizerBase
) -> None:
    write_jsonl(tmp_path / "chat.jsonl", [row("4", "4"), row("5", "5")])
    with pytest.raises(UserError, match=r"no pair .*: 2 same_answers.*chat.jsonl:1"):
        read_pairs(local(tmp_path / "chat.jsonl"), ChatFormat(embedded_tokenizer), 256)
    with pytest.raises(UserError, match="only preference rows hold pairs"):
        read_pairs(local(tmp_path / "chat.jsonl", format="alpaca"), ChatFormat(embedded_tokenizer), 256)
    with pytest.raises(UserError, match="clean does nothing here"):
        read_pairs(local(tmp_path / "chat.jsonl", clean={"normalise": True}), ChatFormat(embedded_tokenizer), 256)


def test_real_pairs(shared_data: Path, qwen3_tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("dpo_en_demo", "dpo_zh_demo"):
        path = shared_data / "pref" / f"{name}.json"
        if not path.exists():
            pytest.skip(f"no real preference pairs at {path}")
        read = read_pairs(local(path, rows=60), ChatFormat(qwen3_tokenizer), 2048)
        assert len(read.pairs) + len(read.rejected) == 60 and len(read.pairs) > 40
        assert {p.mode for p in read.pairs} == {"non_thinking"}


# --- split and share ----------------------------------------------------------------------------------------------------


def fake(mode: str, number: int) -> Pair:
    return Pair([1, number], [2], [3], mode, "", f"{number:016x}")  # type: ignore[arg-type]


@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]))
def test_share_of_modes(thinking: int, other: int, share: float) -> None:
    pairs = [fake("thinking", i) for i in range(thinking)] + [fake("non_thinking", 100 + i) for i in range(other)]
    if (share > 0 and not thinking) or (share < 1 and not other):
        with pytest.raises(UserError, match="and there are none"):
            share_of_modes(pairs, share, 0)
        return
    kept = share_of_modes(pairs, share, 0)
    got = sum(p.mode == "thinking" for p in kept)
    assert abs(got - share * len(kept)) <= 1 and len({id(p) for p in kept}) == len(kept)
    assert len(kept) >= min(thinking / share if share else other, other / (1 - share) if share < 1 else thinking) - 1
    assert kept == share_of_modes(pairs, share, 0)


def test_held_out_prompts_are_not_trained_on(tmp_path: Path, embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    chat_format = ChatFormat(embedded_tokenizer)
    prepared = prepare(load_profile("embedded"), chat_format)
    assert len(prepared.train) > 1000 and len(prepared.held_out) > 300
    assert not {p.key for p in prepared.train} & {p.key for p in prepared.held_out}
    assert "held-out: 3" in describe(prepared.manifest)
    # Without held-out pairs of their own, a hash of the prompt decides.
    rows = [row("4", "5") | {"prompt": f"Question {i // 2}?", "rejected": f"no, {i}"} for i in range(400)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    profile = load_profile("embedded")
    profile.preference.pairs, profile.preference.held_out = local(tmp_path / "pairs.jsonl"), None
    split = prepare(profile, chat_format)
    assert not {p.key for p in split.train} & {p.key for p in split.held_out}
    assert 0.04 < len(split.held_out) / 400 < 0.18 and len(split.train) + len(split.held_out) == 400
    profile.preference.pairs = None
    with pytest.raises(UserError, match="preference.pairs.path=FILE"):
        prepare(profile, chat_format)


def test_settings_that_would_do_nothing_are_refused() -> None:
    for sets, words in (
        (["data.loss_on=everything"], "does nothing in dpo"),
        (["data.empty_think=trained"], "always prompt"),
    ):
        with pytest.raises(UserError, match=words):
            check_preference(load_profile("embedded", sets))
    check_preference(load_profile("embedded", ["data.loss_on=everything", "preference.method=orpo"]))


# --- win rates ----------------------------------------------------------------------------------------------------------


def test_win_rates_by_hand() -> None:
    pairs = [
        Pair([1], [2, 2], [3], "thinking", "rambling", "a"),
        Pair([1], [2], [3, 3, 3, 3], "non_thinking", "", "b"),
    ]
    before = {"chosen": [-4.0, -2.0], "rejected": [-3.0, -4.0]}
    after = {"chosen": [-2.0, -2.5], "rejected": [-3.0, -4.0]}
    result = win_rates(pairs, before, after, beta=0.5)
    assert list(result) == ["all", "thinking", "thinking: rambling", "non_thinking"]
    all_pairs = result["all"]
    assert all_pairs["n"] == 2 and all_pairs["before"]["value"] == 0.5 and all_pairs["after"]["value"] == 1.0
    # Per token before: −2 against −3, and −2 against −1.
    assert all_pairs["per_token_before"]["value"] == 0.5
    assert all_pairs["reward_accuracy"]["value"] == 0.5  # rewards move by +1.0 and −0.25
    assert all_pairs["margin"]["value"] == pytest.approx((1.0 - 0.25) / 2)
    low, high = all_pairs["after"]["ci95"]
    assert low < 0.5 and high == pytest.approx(1.0)


# --- directories --------------------------------------------------------------------------------------------------------


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is no directory of preference"):
        Stage.open("preference", load_profile("embedded"), tmp_path / "x")
    Stage.open("preference", load_profile("embedded"), tmp_path / "y")
    with pytest.raises(UserError, match="unfinished training"):
        Stage.open("preference", load_profile("embedded"), tmp_path / "y")
    with pytest.raises(UserError, match=r"preference.beta is 0.1 there and 0.5 here"):
        Stage.open("preference", load_profile("embedded", ["preference.beta=0.5"]), tmp_path / "y", resume=True)
    with pytest.raises(UserError, match="it is one of preference"):
        Stage.open("grpo", load_profile("embedded"), tmp_path / "y", resume=True)
    with pytest.raises(UserError, match="is no run directory"):
        stage_profile(None, tmp_path / "none", [])


def made_run(folder: Path, adapter: bool = True, profile: Profile | None = None) -> Path:
    """What a run leaves behind, as far as a second stage asks for it before it loads anything."""
    from pipeline.run import Run

    Run.open(profile or load_profile("embedded"), folder)
    if adapter:
        write_json(folder / "adapter" / "adapter_config.json", {})
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    return folder


@pytest.mark.parametrize(("method", "advice"), [("full", "set model.name to its folder"), ("ia3", "by one of these")])
def test_a_method_that_gives_no_lora_adapter_is_refused(method: str, advice: str, tmp_path: Path) -> None:
    profile = load_profile("embedded", [f"method={method}"])
    with pytest.raises(UserError, match=rf"\(lora, .* method here is {method}.*{advice}"):
        Stage.open("preference", profile, tmp_path / "new")
    run = made_run(tmp_path / "run", profile=profile)
    with pytest.raises(UserError, match=f"the method here is {method}"):
        Stage.open("grpo", load_profile("embedded"), tmp_path / "new", run)
    assert not (tmp_path / "new").exists()


def test_a_run_without_an_adapter_or_with_one_of_another_base(tmp_path: Path) -> None:
    bare = made_run(tmp_path / "bare", adapter=False)
    with pytest.raises(UserError, match="has no adapter yet"):
        Stage.open("preference", load_profile("embedded"), tmp_path / "a", bare)
    run = made_run(tmp_path / "run")
    other = tmp_path / "model"
    shutil.copytree(ROOT / "models" / "embedded", other)
    weights = next(other.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    profile = stage_profile(None, run, [f"model.name={other}"])
    with pytest.raises(UserError, match="holds an adapter of another base"):
        Stage.open("preference", profile, tmp_path / "b", run)
    assert not (tmp_path / "b").exists()
    assert stage_profile(None, run, ["preference.beta=0.3"]).preference.beta == 0.3


def test_secrets_are_masked_and_asked_for(tmp_path: Path) -> None:
    profile = load_profile("embedded")
    profile.evaluation.dataset_args = {"gsm8k": {"api_key": "planted-key", "url": "https://bob:planted@host/x"}}
    folder = tmp_path / "out"
    Stage.open("preference", profile, folder)
    assert "planted" not in "".join(path.read_text(encoding="utf-8") for path in folder.iterdir())
    profile.evaluation.dataset_args["gsm8k"]["api_key"] = "planted-other"
    Stage.open("preference", profile, folder, resume=True)  # another key makes no other training
    run = made_run(tmp_path / "run", profile=profile)
    with pytest.raises(UserError, match=r"gsm8k.api_key=VALUE --set .*gsm8k.url=VALUE"):
        stage_profile(None, run, [])
    given = ["evaluation.dataset_args.gsm8k.api_key=planted-key", "evaluation.dataset_args.gsm8k.url=https://host/x"]
    assert stage_profile(None, run, given).evaluation.dataset_args["gsm8k"]["api_key"] == "planted-key"


def test_a_stage_asks_about_its_own_settings_alone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    Stage.open("preference", load_profile("embedded"), folder)
    for override in ("grpo.beta=0.5", "data.workers=2", "mix.total=100"):
        Stage.open("preference", load_profile("embedded", [override]), folder, resume=True)
    for override in ("preference.eval_steps=7", "training.weight_decay=0.5", "evaluation.limit=3"):
        with pytest.raises(UserError, match="belongs to another training"):
            Stage.open("preference", load_profile("embedded", [override]), folder, resume=True)
    path = folder / "profile.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("eval_steps: 20", "eval_steps: 7"), encoding="utf-8")
    with pytest.raises(UserError, match="profile.yaml was changed"):
        Stage.open("preference", load_profile("embedded", ["preference.eval_steps=7"]), folder, resume=True)


# --- log-probabilities --------------------------------------------------------------------------------------------------


def pairs_of(count: int, width: int) -> list[Pair]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 1000, (3, count, width)).tolist()
    return [Pair(ids[0][i], ids[1][i], ids[2][i][: 1 + i % width], "thinking", "", str(i)) for i in range(count)]


def test_log_probabilities_are_those_of_the_logits(
    tiny_qwen3: Any, embedded_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from pipeline.second import preference

    model, pairs = tiny_qwen3(0), pairs_of(7, 9)
    monkeypatch.setattr(preference, "LOGIT_BYTES", 4 * 1024 * 5)  # five tokens at a time
    found = preference.log_probabilities(model, embedded_tokenizer, pairs, 4)
    for side in ("chosen", "rejected"):
        for pair, value in zip(pairs, found[side], strict=True):
            answer = getattr(pair, f"{side}_ids")
            with torch.no_grad():
                logits = model(torch.tensor([pair.prompt_ids + answer])).logits[0, len(pair.prompt_ids) - 1 : -1]
            expected = torch.log_softmax(logits.float(), -1).gather(-1, torch.tensor(answer)[:, None]).sum()
            assert value == pytest.approx(float(expected), rel=1e-5, abs=1e-4)


PEAK = """
import json
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from pipeline.second.preference import LOGIT_BYTES, Pair, log_probabilities
from pipeline.training.measure import MemoryMeter
shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
model = Qwen3ForCausalLM(Qwen3Config(vocab_size=150_000, head_dim=16, eos_token_id=0, bos_token_id=None, **shape)).float()
class Tokenizer: pad_token_id = 0
def measured(width):
    pairs = [Pair([1] * 5, [2] * width, [3] * width, "thinking", "", str(i)) for i in range(16)]
    meter = MemoryMeter()
    log_probabilities(model, Tokenizer(), pairs, 32)
    return meter.read()
measured(2)
print(json.dumps([measured(64), LOGIT_BYTES]))
"""


@pytest.mark.slow
def test_memory_of_log_probabilities_is_bounded() -> None:
    """32 answers of 64 tokens and 150,000 words: 1.2 GB of logits in float32, of which few exist at a time."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    peak, bound = json.loads(done.stdout.splitlines()[-1])
    if peak is None:
        pytest.skip("memory is measured on Linux and on a GPU")
    assert peak < 4 * bound


def test_too_little_memory_for_log_probabilities_is_said(
    tiny_qwen3: Any, embedded_tokenizer: PreTrainedTokenizerBase
) -> None:
    import torch

    from pipeline.second.preference import log_probabilities

    model = tiny_qwen3(0)
    model.model.register_forward_pre_hook(lambda *_: torch.empty(2**55))  # torch's own allocator refuses it
    with pytest.raises(UserError, match=r"of 4 answers.*1\. evaluation.batch_size=2; 2\. model"):
        log_probabilities(model, embedded_tokenizer, pairs_of(4, 9), 4)


# --- trainings ----------------------------------------------------------------------------------------------------------

TINY = ["evaluation.benchmarks=[embedded_chat]", "evaluation.limit=12"]
TINY += [
    f"preference.{s}" for s in ("pairs.rows=60", "held_out.rows=24", "max_steps=4", "save_steps=2", "eval_steps=2")
]
TINY += ["preference.logging_steps=1", "preference.per_device_train_batch_size=4"]


@pytest.fixture(scope="module")
def command(pipeline_command: Command) -> Command:
    return functools.partial(pipeline_command, sets=TINY)


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


ARMS = """question: Which method?
arms:
  dpo: {set: [preference.method=dpo]}
  orpo: {set: [preference.method=orpo]}
  kto: {set: [preference.method=kto]}
"""


@pytest.mark.slow
def test_all_methods_train_and_a_cut_off_one_goes_on_to_the_same_adapter(
    command: Command, tiny_run: Path, tmp_path: Path
) -> None:
    arms = tmp_path / "arms.yaml"
    arms.write_text(ARMS, encoding="utf-8")
    folder = tmp_path / "out"
    done = command("preference", "--run", str(tiny_run), "--arms", str(arms), "--output-dir", str(folder), "--json")
    result = json.loads(done.stdout)
    assert result == json.loads((folder / "preference.json").read_text(encoding="utf-8"))
    assert [arm["name"] for arm in result["arms"]] == ["dpo", "orpo", "kto"]
    adapters = {weights(tiny_run)}
    for arm in result["arms"]:
        assert [e["step"] for e in arm["training"]["curve"]] == [1, 2, 3, 4]
        assert [e["step"] for e in arm["training"]["eval_curve"]] == [2, 4]
        assert all(np.isfinite([e["loss"], e["margin"]]).all() for e in arm["training"]["curve"])
        assert all(
            (e["accuracy"] is None) == (arm["name"] == "kto") for e in arm["training"]["curve"]
        )  # it has no pairs
        assert arm["evaluation"]["before"] == result["arms"][0]["evaluation"]["before"]
        for cells in arm["evaluation"].values():
            assert {cell["n"] for cell in cells.values()} == {12}
        pairs = arm["win_rates"]["all"]
        assert pairs["n"] == arm["pairs"]["held_out"]["pairs"] > 15
        assert not list((folder / arm["name"]).rglob("ref"))  # the frozen reference is nobody's adapter
        adapters.add(weights(folder / arm["name"]))
    assert len(adapters) == 4  # each differs from the start and from the others
    # DPO's first step starts exactly at its reference: no margin yet, and a loss of log 2.
    first = result["arms"][0]["training"]["curve"][0]
    assert first["margin"] == 0 and first["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert "| dpo, all |" in preference_table(result) and "after orpo" in preference_table(result)
    assert (folder / "preference.png").read_bytes().startswith(b"\x89PNG")

    # What a kill after step 2 would have left behind.
    cut = tmp_path / "cut"
    shutil.copytree(folder / "dpo", cut)
    for name in ("adapter", "checkpoints/checkpoint-4", "evaluation/after"):
        shutil.rmtree(cut / name)
    for name in ("training.json", "preference.json"):
        (cut / name).unlink()
    record = json.loads((cut / "stage.json").read_text(encoding="utf-8"))
    write_json(cut / "stage.json", record | {"finished": None})
    arguments = ["preference", "--run", str(tiny_run), "--method", "dpo", "--output-dir", str(cut)]
    assert "add --resume" in command(*arguments, code=2).stderr
    again = json.loads(command(*arguments, "--resume", "--json").stdout)
    assert again["training"]["resumed_from"] == 2
    first_half = json.loads((cut / "checkpoints" / "checkpoint-2" / "manifest.json").read_text(encoding="utf-8"))
    assert again["training"]["seconds"] > first_half["progress"]["seconds"] > 0
    assert weights(cut) == weights(folder / "dpo")
    assert again["win_rates"] == result["arms"][0]["win_rates"]

    # A kill behind the last checkpoint: nothing is left to train, and what was counted stays.
    late = tmp_path / "late"
    shutil.copytree(folder / "dpo", late)
    for name in ("adapter", "evaluation/after"):
        shutil.rmtree(late / name)
    for name in ("training.json", "preference.json"):
        (late / name).unlink()
    arguments[arguments.index(str(cut))] = str(late)
    last = json.loads(command(*arguments, "--resume", "--json").stdout)["training"]
    whole = result["arms"][0]["training"]
    assert last["steps"] == 4 and last["curve"] == whole["curve"] and last["eval_curve"] == whole["eval_curve"]
    assert weights(late) == weights(folder / "dpo")
    manifest = json.loads((late / "checkpoints" / "checkpoint-4" / "manifest.json").read_text(encoding="utf-8"))
    assert last["seconds"] == manifest["progress"]["seconds"] <= whole["seconds"]


@pytest.mark.slow
def test_a_bad_loss_stops_with_the_settings_to_change(command: Command, tiny_run: Path, tmp_path: Path) -> None:
    sets = [*TINY, "preference.learning_rate=1e30", "preference.max_grad_norm=1e30", "preference.warmup_steps=0"]
    result = command("preference", "--run", str(tiny_run), "--output-dir", str(tmp_path / "x"), sets=sets, code=2)
    assert "Lower preference.learning_rate" in result.stderr
    assert not (tmp_path / "x" / "adapter").exists()
