"""A model with one mode gets the other: tokens and template, both methods, a stop, the verdict, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.core.errors import UserError
from pipeline.core.files import read_jsonl, write_jsonl
from pipeline.data.chat_format import ChatFormat
from pipeline.data.rehearsal.plan import REQUEST, first_sentences, is_answer, thought
from pipeline.hybrid.accept import failures
from pipeline.hybrid.hybridise import hybridise, needed, settings_of, training_profile
from pipeline.hybrid.start import base_folder, make_start
from pipeline.model.hub.check import check_folder
from pipeline.settings import HybridSettings, load_profile, parse

EMBEDDED = Path(__file__).parents[2] / "models/embedded"


# --- the model to begin with --------------------------------------------------------------------------------------------


def test_new_tokens_begin_at_the_mean_and_the_template_has_both_modes(instruct: Path, tmp_path: Path) -> None:
    record = make_start(instruct, tmp_path / "start")
    base, start = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (instruct, tmp_path / "start"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    assert record["added"] == ["<think>", "</think>"]
    assert record["tokens"] == [tokenizer.convert_tokens_to_ids(t) for t in record["added"]] == [1022, 1023]
    old, new = (m.get_input_embeddings().weight for m in (base, start))
    torch.testing.assert_close(new[record["tokens"]], old.mean(dim=0).expand(2, -1), atol=0.01, rtol=0)
    assert torch.equal(new[:1022], old)
    assert start.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompt = ChatFormat(tokenizer).prompt_text([{"role": "user", "content": "x"}], "non_thinking")
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert check_folder(tmp_path / "start").hybrid
    assert make_start(instruct, tmp_path / "start") == record  # the second time, nothing is done


def test_a_mean_is_never_the_largest_logit(instruct: Path, tmp_path: Path) -> None:
    """Why the rows of new tokens have to be trained."""
    tokens = make_start(instruct, tmp_path / "start")["tokens"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start", dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.randint(0, 1000, (8, 32))).logits
    assert (logits[..., tokens].amax(dim=-1) < logits.amax(dim=-1)).all()


def test_a_model_without_padding_of_its_own(instruct: Path, tmp_path: Path) -> None:
    shutil.copytree(instruct, tmp_path / "base")
    path = tmp_path / "base/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|im_end|>"}))
    make_start(tmp_path / "base", tmp_path / "start")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_bases_that_will_not_do(instruct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="has both modes already"):
        base_folder(str(EMBEDDED))
    with pytest.raises(UserError, match="models fetch smollm2-135m"):
        base_folder("smollm2-135m")
    with pytest.raises(UserError, match="There is no folder"):
        base_folder("nowhere")
    shutil.copytree(instruct, tmp_path / "pickled")
    (tmp_path / "pickled/model.safetensors").rename(tmp_path / "pickled/pytorch_model.bin")
    with pytest.raises(UserError, match="pickle files alone"):
        base_folder("pickled")
    shutil.copytree(instruct, tmp_path / "bare")
    (tmp_path / "bare/chat_template.jinja").unlink()
    assert base_folder("bare") == Path("bare")  # a base model gets its template here


# --- the verdict --------------------------------------------------------------------------------------------------------


def cell(fidelity: float, score: float) -> dict[str, object]:
    form = {"truncated": 0.1, "leaked": 0.0, "opened": 1.0, "closed": 0.9}
    return {"mode_fidelity": fidelity, "benchmarks": {"ifeval": {"score": score, "n": 100}}, **form}


def test_what_is_accepted() -> None:
    settings = parse(HybridSettings, {"base": "x", "recipe": "y"}, "hybrid")
    both = {"thinking": cell(0.95, 0.0), "non_thinking": cell(1.0, 0.20)}
    assert failures(settings, both, cell(1.0, 0.23)) == []
    assert failures(settings, both, None) == []
    (lost,) = failures(settings, both, cell(1.0, 0.24))
    assert "0.200 and 0.240 before (n=100)" in lost
    (form,) = failures(settings, both | {"thinking": cell(0.94, 0.5)}, cell(1.0, 0.2))
    assert "thinking: mode fidelity is 0.940, at least 0.95" in form and "10.0% cut by the limit" in form


# --- settings -----------------------------------------------------------------------------------------------------------


def test_settings_of_the_training(profile: Path, tmp_path: Path) -> None:
    own = training_profile(str(profile), ["training.max_steps=3"], tmp_path / "start", [7, 8])
    assert (own.training.max_steps, own.model.name) == (3, str(tmp_path / "start"))
    assert own.recipe.endswith("recipe.yaml") and own.lora.trainable_token_indices == [7, 8]
    full = training_profile(str(profile), ["method=full"], tmp_path / "start", [7, 8])
    assert full.lora.trainable_token_indices == []
    with pytest.raises(UserError, match="method=ia3 cannot teach new tokens"):
        training_profile(str(profile), ["method=ia3"], tmp_path / "start", [7])
    with pytest.raises(UserError, match=r"needs 16 bit; set model\.load_in_4bit=false"):
        training_profile(str(profile), ["method=qlora"], tmp_path / "start", [7])
    with pytest.raises(UserError, match="has no section hybrid"):
        settings_of(load_profile("embedded"))


def test_the_shipped_profile_and_its_recipes_can_be_read() -> None:
    from pipeline.settings import load_recipe

    profile = load_profile("smollm2-135m")
    own = training_profile("smollm2-135m", [], Path("start"), [1])
    assert load_recipe(profile.recipe).name == "smollm2_rehearsal" and load_recipe(own.recipe).name == "hybridise"
    assert settings_of(profile).keep in own.evaluation.benchmarks


# --- all of it ----------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.slow
def test_a_hybrid_is_made_and_taken(
    profile: Path, tmp_path: Path, pipeline_command: Callable[..., object], instruct: Path
) -> None:
    output = tmp_path / "hybrid"
    arguments = ("hybridise", "--profile", str(profile), "--output-dir", str(output), "--json")
    done = pipeline_command(*arguments)
    record = json.loads(done.stdout)  # type: ignore[attr-defined]
    assert record["accepted"] and record["new_tokens"] == ["<think>", "</think>"]
    assert record == json.loads((output / "hybrid.json").read_text())
    assert record["evaluation"]["hybrid"]["thinking"]["opened"] > 0.9  # the base had no such token
    found = check_folder(output)
    assert found.hybrid and found.trainable
    assert not (output / "hybridise/start").exists() and not (output / "hybridise/candidate").exists()
    # Trained rows differ from the mean, and from each other; the rest of the embedding is the base's.
    new, old = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (output, instruct))
    table, before = new.get_input_embeddings().weight, old.get_input_embeddings().weight
    assert torch.equal(table[:1022], before)
    assert (table[1022:] - before.mean(dim=0)).abs().max() > 0.01 and not torch.equal(table[1022], table[1023])
    again = pipeline_command(*arguments)
    assert json.loads(again.stdout) == record  # type: ignore[attr-defined]


@pytest.mark.nightly
def test_full_fine_tuning_and_a_verdict_of_no(profile: Path, tmp_path: Path) -> None:
    sets = ["method=full", "training.max_steps=4", "training.learning_rate=1e-4", "hybrid.fidelity=1.0"]
    output = tmp_path / "hybrid"
    record = hybridise(str(profile), sets, output)
    assert not record["accepted"] and record["method"] == "full"
    assert "mode fidelity" in record["failures"][0]
    assert not (output / "config.json").exists() and (output / "hybridise/candidate/config.json").exists()
    with pytest.raises(UserError, match="training.save_steps is 40 there and 2 here"):
        hybridise(str(profile), [*sets, "training.save_steps=2"], output)


def test_a_folder_that_holds_another_model(profile: Path, tmp_path: Path) -> None:
    output = tmp_path / "taken"
    output.mkdir()
    (output / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a model that was not made here"):
        hybridise(str(profile), [], output)


def test_too_little_memory_is_said_before(profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    memory = namedtuple("memory", "available")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(10**6))
    with pytest.raises(UserError, match="needs about .* MB of memory, and 1 MB"):
        hybridise(str(profile), [], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_memory_is_that_of_a_step(profile: Path, instruct: Path) -> None:
    """It was a multiple of the weights, a third of what SmolLM2's training held: rows and their length count."""

    def asked(*sets: str) -> int:
        return needed(training_profile(str(profile), sets, instruct, []), instruct, 10**6)[1]

    few, many = (asked(f"training.per_device_train_batch_size={rows}") for rows in (64, 512))
    assert many > 2 * few > 10**9
    assert asked("training.per_device_train_batch_size=64", "method=full") > few


@pytest.mark.slow
def test_answers_and_plans_become_chat_with_reasoning(
    pipeline_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """``rehearse --plan --conditions``: answers, with conditions and without, plans, and both in one row; then none is asked."""
    questions = [{"prompt": f"What is {a} + {a + 1}?"} for a in range(2, 14)]
    write_jsonl(tmp_path / "sums.jsonl", questions)
    arguments = [
        "rehearse",
        "--questions",
        str(tmp_path / "sums.jsonl"),
        "--mode",
        "non_thinking",
        "--plan",
        "--conditions",
        "--rows",
        "10",
    ]
    arguments += ["--output-dir", str(tmp_path / "own"), "--json"]
    sets = [
        "evaluation.workers=1",
        "evaluation.batch_size=10",
    ]  # the embedded model, in the mode that an instruct model has
    environment = {"PIPELINE_CACHE": str(tmp_path / "cache")}
    record = json.loads(pipeline_command(*arguments, sets=sets, environment=environment).stdout)
    assert record["sums"]["replies"] == 20 and record["sums.plan"]["replies"] == record["sums"]["kept"]
    answers, plans, made = (
        read_jsonl(tmp_path / "own" / f"sums{end}" / "rows.jsonl") for end in ("", ".plan", ".thinking")
    )
    assert len({row["messages"][0]["content"].split("?")[0] for row in answers}) < len(answers)
    by_question = {row["messages"][0]["content"]: row for row in answers}
    by_request = {row["messages"][0]["content"]: row for row in plans}
    replies = {question: row["messages"][-1]["content"] for question, row in by_question.items()}
    written = {request.removesuffix(REQUEST): row["messages"][-1]["content"] for request, row in by_request.items()}
    # this model often writes an answer in the place of a plan, and such a row is left out
    kept = [question for question, plan in written.items() if not is_answer(plan, replies[question])]
    assert [row["messages"][0]["content"] for row in made] == kept
    assert 0 < len(made) == record["sums.plan"]["with_plan"] < len(plans) == record["sums.plan"]["kept"]
    for row in made:
        question, answer = row["messages"]
        plan = by_request[f"{question['content']}{REQUEST}"]
        assert answer["content"] == by_question[question["content"]]["messages"][-1]["content"]
        assert answer["reasoning_content"] == thought("sum", first_sentences(plan["messages"][-1]["content"]))
    again = pipeline_command(*arguments, sets=sets, environment=environment)
    assert json.loads(again.stdout) == record and "loading" not in again.stderr
