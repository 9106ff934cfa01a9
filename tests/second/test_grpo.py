"""GRPO: the two rewards, the questions, and a small training that goes on to the same adapter after a cut."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.core.files import write_json, write_jsonl
from pipeline.data.chat_format import EMPTY_THINK, ChatFormat
from pipeline.second.grpo import (
    check_grpo,
    correct_reward,
    ends,
    form_reward,
    grpo_table,
    read_questions,
    reward_functions,
    room_for,
)
from pipeline.second.stage import Stage, with_exact_start
from pipeline.settings import Profile, RowsSettings, load_profile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]

# (reply, cut by the token limit, correct for 42, form in thinking mode, form in non-thinking mode)
REPLIES = [
    ("<think>\n6 × 7 = 42.\n</think>\n\n$6 \\times 7 = \\boxed{42}$", False, 1, 1, 0),
    ("<think>\n6 × 7 = 41.\n</think>\n\n$6 \\times 7 = \\boxed{41}$", False, 0, 1, 0),
    ("The answer is 42.", False, 1, 0, 1),
    ("The answer is 43.", False, 0, 0, 1),
    ("<think>\n6 × 7 = 42, so \\boxed{42}", False, 0, 0, 0),  # never closed: what stands in the thought is no answer
    ("<think>\n6 × 7 = 42.\n</think>\n\n\\boxed{42}", True, 0, 0, 0),  # cut
    ("<think>\n6 × 7 = \\boxed{42}.\n</think>", False, 0, 0, 0),  # no answer
    ("<think>\n\n</think>\n\n\\boxed{42}", False, 1, 0, 0),  # right, but did not think
    ("", False, 0, 0, 0),
    ("   \n", False, 0, 0, 0),
    ("42 <think>\nHm.\n</think>\n\n42", False, 1, 0, 0),  # a block where none belongs
    ("<think>\nA.\n</think>\n\n<think>\nB.\n</think>\n\n42", False, 1, 0, 0),
    ("<think>\nA.\n</think>\n\n42 <think>", False, 0, 0, 0),
    ("40 or 41 or 42 or 43", False, 0, 0, 1),  # naming many does not help: the last one counts
    ("\\boxed{41} \\boxed{42}", False, 1, 0, 1),
    ("答案是 42。", False, 1, 0, 1),
]


@pytest.mark.parametrize(("text", "cut", "correct", "thinking", "direct"), REPLIES)
def test_rewards(text: str, cut: bool, correct: int, thinking: int, direct: int) -> None:
    assert correct_reward(text, cut, "42") == correct
    assert form_reward(text, cut, "thinking") == thinking
    assert form_reward(text, cut, "non_thinking") == direct


@pytest.mark.parametrize(
    ("reply", "expected", "right"),
    [
        ("\\boxed{\\frac{1}{2}}", "0.5", 1),
        ("\\boxed{1,234}", "1234", 1),
        ("\\boxed{x^2 + 2x + 1}", "(x+1)^2", 1),
        ("\\boxed{x^2 + 1}", "(x+1)^2", 0),
        ("\\boxed{}", "0", 0),
        ("\\boxed{42", "42", 1),  # no box, but the last number
    ],
)
def test_answers_are_compared_as_mathematics(reply: str, expected: str, right: int) -> None:
    assert correct_reward(reply, False, expected) == right


def test_trl_is_given_one_reward_a_reply() -> None:
    texts = {1: ("<think>\nSo.\n</think>\n\n4", False), 2: ("5", False), 3: ("4", True)}
    correct, form = reward_functions(lambda prompt, ids: texts[ids[0]])
    columns: dict[str, Any] = {"prompts": ["q"] * 3, "completions": [""] * 3, "trainer_state": None}
    columns |= {
        "completion_ids": [[1], [2], [3]],
        "answer": ["4"] * 3,
        "mode": ["thinking", "non_thinking", "non_thinking"],
    }
    assert correct(**columns) == [1.0, 0.0, 0.0] and form(**columns) == [1.0, 1.0, 0.0]
    assert (correct.__name__, form.__name__) == ("correct", "form")  # under which TRL logs them


# --- questions ----------------------------------------------------------------------------------------------------------


def with_rows(path: Path, **changes: Any) -> Profile:
    profile = load_profile("embedded", ["grpo.prompts_per_step=2"])
    profile.grpo.prompts = RowsSettings(source="local", path=str(path), **changes)
    return profile


def test_the_prompt_is_what_inference_sends(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    chat_format = ChatFormat(embedded_tokenizer)
    for share, number in ((1.0, {"thinking"}), (0.0, {"non_thinking"}), (0.5, {"thinking", "non_thinking"})):
        questions = read_questions(load_profile("embedded", [f"grpo.thinking_share={share}"]), chat_format)
        assert {q.mode for q in questions.kept} == number and len(questions.kept) == 600
        for q in questions.kept[:50]:
            assert chat_format.encode([q.prompt]) == [q.prompt_ids]
            assert q.prompt.endswith(EMPTY_THINK) == (q.mode == "non_thinking") and q.answer.isdigit()


def test_rows_without_question_or_answer_are_counted(
    tmp_path: Path, embedded_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "6 × 7?", "answer": "6 × 7 = 42\n#### 42"},
        {"question": "1 + 1?", "answer": 2},
        {"question": "2 + 2?", "answer": ""},
        {"question": " ", "answer": "4"},
        {"question": "long " * 400, "answer": "4"},
    ]
    write_jsonl(tmp_path / "q.jsonl", rows)
    profile = with_rows(tmp_path / "q.jsonl", columns={"expected_answer": "answer"})
    questions = read_questions(profile, ChatFormat(embedded_tokenizer))
    assert [q.answer for q in questions.kept] == ["42", "2"]
    assert questions.manifest["rejected"] == {"no_expected_answer": 1, "no_question": 1, "too_long": 1}
    assert [r["line"] for r in questions.rejected] == [3, 4, 5]
    with pytest.raises(UserError, match=r"holds 0 questions with a known answer.*q.jsonl:1"):
        read_questions(with_rows(tmp_path / "q.jsonl"), ChatFormat(embedded_tokenizer))
    profile.grpo.prompts = None
    with pytest.raises(UserError, match="grpo.prompts.path=FILE"):
        read_questions(profile, ChatFormat(embedded_tokenizer))


def test_the_room_of_a_prompt_is_what_a_reply_leaves_of_the_context() -> None:
    """The positions of the embedded model are 1,024, max_seq_length 256: a reply does not count against the latter."""
    profile = load_profile("embedded", ["grpo.max_new_tokens=800"])
    assert room_for(profile, "thinking") == 1024 - 800
    profile = load_profile("embedded", ["grpo.max_new_tokens=null"])
    assert room_for(profile, "thinking") == room_for(profile, "non_thinking") == profile.model.max_seq_length
    stage = Stage("grpo", profile, Path("nowhere"))
    assert stage.model_settings().max_seq_length == 256 + 160  # what is trained on: prompt and reply
    long = load_profile("embedded", ["grpo.max_new_tokens=900"])
    assert Stage("grpo", long, Path("nowhere")).model_settings().max_seq_length == 1024
    assert Stage("preference", long, Path("nowhere")).model_settings().max_seq_length == 256


class Reference:
    """A PEFT model as far as TRL's trainers copy it; its weights are one number each."""

    def __init__(self) -> None:
        self.peft_config = {"default": "lora"}
        self.weights = {"a.default.weight": torch.nn.Parameter(torch.ones(1))}

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.weights.items())

    def add_adapter(self, name: str, config: Any) -> None:
        self.peft_config[name] = config
        self.weights[f"a.{name}.weight"] = torch.nn.Parameter(torch.zeros(1), requires_grad=False)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_start_is_the_reference_where_unsloth_takes_it_out(wanted: bool) -> None:
    model = Reference()
    with_exact_start(cast(Any, model), lambda: SimpleNamespace(needs_reference=wanted))
    assert ("ref" in model.peft_config) == wanted
    if wanted:
        assert model.weights["a.ref.weight"].item() == 1.0 and not model.weights["a.ref.weight"].requires_grad


def test_what_the_libraries_say_of_a_reference() -> None:
    """Contracts on the sources: TRL asks for an adapter of this name; on a GPU Unsloth takes out the lines that add it."""
    places = {name: importlib.util.find_spec(name) for name in ("trl", "unsloth")}
    trl, unsloth = (Path(str(spec.origin)).parent for spec in places.values() if spec)
    for trainer in ("grpo", "dpo", "kto"):
        text = (trl / "trainer" / f"{trainer}_trainer.py").read_text(encoding="utf-8")
        assert 'adapter_name="ref" if "ref" in' in text, trainer
    assert 'Skip add_adapter("ref")' in (unsloth / "models" / "rl.py").read_text(encoding="utf-8")


def test_settings_that_cannot_be() -> None:
    assert check_grpo(load_profile("embedded", ["grpo.gradient_accumulation_steps=4"])) == 16
    with pytest.raises(UserError, match="does not divide"):
        check_grpo(load_profile("embedded", ["grpo.gradient_accumulation_steps=5"]))
    with pytest.raises(UserError, match="nothing would be learnt"):
        check_grpo(load_profile("embedded", ["grpo.correct_weight=0", "grpo.form_weight=0"]))


def test_the_ends_of_a_curve() -> None:
    curve = [{"correct": 0.2}] * 10 + [{"correct": 0.5}] * 10 + [{"correct": 0.9}] * 10
    result = ends(curve, "correct")
    assert result["steps"] == 10
    assert result["first"]["value"] == pytest.approx(0.2) and result["last"]["value"] == pytest.approx(0.9)
    assert ends(curve[:3], "correct")["steps"] == 1


# --- training -----------------------------------------------------------------------------------------------------------

TINY = ["evaluation.benchmarks=[embedded_chat]", "evaluation.limit=12"]
TINY += [f"grpo.{s}" for s in ("prompts.rows=20", "max_steps=2", "save_steps=1", "num_generations=2")]
TINY += ["grpo.prompts_per_step=4", "grpo.thinking_share=0.5", "grpo.beta=0.01"]


@pytest.fixture(scope="module")
def command(pipeline_command: Command) -> Command:
    return functools.partial(pipeline_command, sets=TINY)


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_steps_and_a_cut_between_them(command: Command, tiny_run: Path, tmp_path: Path) -> None:
    folder, cut = tmp_path / "out", tmp_path / "cut"
    result = json.loads(command("grpo", "--run", str(tiny_run), "--output-dir", str(folder), "--json").stdout)
    assert result == json.loads((folder / "grpo.json").read_text(encoding="utf-8"))
    assert [e["step"] for e in result["training"]["curve"]] == [1, 2]
    for entry in result["training"]["curve"]:
        assert 0 <= entry["correct"] <= 1 and 0 <= entry["form"] <= 1 and entry["tokens"] > 1
        assert entry["reward"] == pytest.approx(entry["correct"] + 0.25 * entry["form"], abs=1e-5)
    assert set(result["questions"]["modes"]) == {"thinking", "non_thinking"}
    assert not list(folder.rglob("ref"))
    assert "| correct |" in grpo_table(result) and "after GRPO" in grpo_table(result)
    assert (folder / "grpo.png").read_bytes().startswith(b"\x89PNG")

    shutil.copytree(folder, cut)
    for name in ("adapter", "checkpoints/checkpoint-2", "evaluation/after"):
        shutil.rmtree(cut / name)
    for name in ("training.json", "grpo.json"):
        (cut / name).unlink()
    record = json.loads((cut / "stage.json").read_text(encoding="utf-8"))
    write_json(cut / "stage.json", record | {"finished": None})
    again = json.loads(command("grpo", "--run", str(tiny_run), "--output-dir", str(cut), "--resume", "--json").stdout)
    assert again["training"]["resumed_from"] == 1
    assert weights(cut) == weights(folder)

    # A kill behind the last checkpoint: nothing is left to train, and what was counted stays.
    for name in ("adapter", "evaluation/after"):
        shutil.rmtree(cut / name)
    for name in ("training.json", "grpo.json"):
        (cut / name).unlink()
    late = json.loads(command("grpo", "--run", str(tiny_run), "--output-dir", str(cut), "--resume", "--json").stdout)
    assert late["training"]["curve"] == again["training"]["curve"] and late["training"]["steps"] == 2
    assert late["training"]["seconds"] <= again["training"]["seconds"]
    assert weights(cut) == weights(folder)


NO_MEMORY = """
import sys
import pipeline.core.versions
pipeline.core.versions.import_unsloth()
import torch
import pipeline.second.grpo as grpo
{patch}
from pipeline.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
IN_ROLLOUT = "grpo.generate = lambda *_: torch.empty(2**55)"
IN_TRAINING = """
from pipeline.second.trainers import GRPO
GRPO._compute_loss = lambda *_: torch.empty(2**55)
"""


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (
            IN_ROLLOUT,
            "replies at a time at step 1. Set, until it fits: 1. evaluation.batch_size=50; 2. grpo.max_new_tokens=",
        ),
        (
            IN_TRAINING,
            "a batch of training at step 1. Set, until it fits: 1. grpo.gradient_accumulation_steps=2; 2. training.",
        ),
    ],
)
def test_too_little_memory_is_said_with_settings_that_exist(patch: str, words: str, tmp_path: Path) -> None:
    sets = [part for text in [*TINY, "evaluation.limit=1"] for part in ("--set", text)]
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY.format(patch=patch), "grpo", "--output-dir", str(tmp_path / "out"), *sets],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2 and words in " ".join(done.stderr.split()), done.stderr[-3000:]
    assert "Traceback" not in done.stderr
