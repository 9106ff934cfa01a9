"""Every real profile, from rows to report, on stand-ins: its own limits, batches, sampling and schedule (see standin.py)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import standin

from pipeline.settings import load_profile
from pipeline.settings.section import PROFILES

Command = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slow
REAL = sorted(path.stem for path in PROFILES.glob("*.yaml") if path.stem.startswith("qwen"))
ALWAYS = ("qwen3-0.6b", "qwen3-8b-full")  # the others by night


@pytest.fixture(scope="session")
def folder(once: Callable[..., Path]) -> Path:
    return once("standin", standin.make)


def run_once(once: Any, command: Command, folder: Path, profile: str) -> Path:
    """A run of the profile on the stand-ins; not to be changed."""
    make = lambda path: command("run", "--profile", profile, "--output-dir", str(path),  # noqa: E731
                                sets=standin.settings(folder, profile))  # fmt: skip
    return once(f"standin-{profile}", make)


@pytest.fixture
def finished(once: Any, pipeline_command: Command, folder: Path) -> Path:
    return run_once(once, pipeline_command, folder, "qwen3-0.6b")


@pytest.mark.parametrize(
    "profile", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.nightly) for name in REAL]
)
def test_a_real_profile_finishes(once: Any, pipeline_command: Command, folder: Path, profile: str) -> None:
    report = json.loads((run_once(once, pipeline_command, folder, profile) / "report.json").read_text(encoding="utf-8"))
    assert report["training"]["steps"] == 2
    for which in ("base", "tuned"):
        for mode in ("thinking", "non_thinking"):
            cell = report["evaluation"][which][mode]
            assert set(cell["benchmarks"]) == set(standin.BENCHMARKS)
            assert cell["truncated"] < 0.5  # what the stand-in is made for


@pytest.mark.parametrize("profile", ["qwen3-0.6b", pytest.param("qwen3-8b-full", marks=pytest.mark.nightly)])
def test_a_real_recipe_rehearses(pipeline_command: Command, folder: Path, tmp_path: Path, profile: str) -> None:
    standin.make_trained(tmp_path / "model")
    sets = [text for text in standin.settings(folder, profile) if not text.startswith("mix.rehearsal")]
    sets.append(f"model.name={tmp_path / 'model'}")
    environment = {"PIPELINE_CACHE": str(tmp_path / "cache")}
    out = ["--profile", profile, "--output-dir", str(tmp_path / "rows")]
    asked = pipeline_command("rehearse", *out, "--json", sets=sets, environment=environment)
    record = json.loads(asked.stdout)["own_chat"]
    assert record["mode"] == "thinking" and record["fidelity"] > 0.9 and record["kept"] > 200
    out[-1] = str(tmp_path / "mix")
    pipeline_command("data", "build", *out, sets=sets, environment=environment)
    manifest = json.loads((tmp_path / "mix" / "manifest.json").read_text(encoding="utf-8"))
    achieved = {source["name"]: source["achieved"]["rows"] for source in manifest["sources"]}
    assert achieved == pytest.approx({"chat": 0.25, "own_chat": 0.1, "math": 0.65}, abs=0.01)


def test_only_names_places_and_counts_are_changed(folder: Path) -> None:
    """Else the runs above would prove nothing about the profiles' own limits."""
    counted = (
        "mix.total",
        "mix.rehearsal",
        "data.workers",
        "training.max_steps",
        "training.eval_steps",
        "training.save_steps",
    )
    for profile in REAL:
        for text in standin.settings(folder, profile):
            key = text.partition("=")[0]
            assert key in (*counted, "training.logging_steps", "evaluation.limit", "recipe") or key.startswith(
                ("model.name", "model.source", "evaluation.dataset_args.")
            )
        own, changed = load_profile(profile), load_profile(profile, standin.settings(folder, profile))
        assert own.evaluation.sampling == changed.evaluation.sampling
        assert own.model.max_seq_length == changed.model.max_seq_length == 4096
        assert own.training.per_device_train_batch_size == changed.training.per_device_train_batch_size


@pytest.mark.nightly
def test_another_tokenizer_and_shape(
    once: Any, pipeline_command: Command, qwen3_tokenizer: Any, tmp_path: Path
) -> None:
    """The real vocabulary, other sizes: nothing in the path depends on those of the embedded model."""
    tokenizer = tmp_path / "tokenizer"
    qwen3_tokenizer.save_pretrained(tokenizer)
    other = tmp_path / "other"
    standin.make(
        other, tokenizer, seed=1, hidden_size=96, num_attention_heads=3, num_key_value_heads=3, num_hidden_layers=3
    )
    run = tmp_path / "run"
    pipeline_command(
        "run", "--profile", "qwen3-0.6b", "--output-dir", str(run), sets=standin.settings(other, "qwen3-0.6b")
    )
    assert json.loads((run / "report.json").read_text(encoding="utf-8"))["training"]["steps"] == 2


def test_second_stages(pipeline_command: Command, folder: Path, finished: Path, tmp_path: Path) -> None:
    pairs = f"{{source: local, path: {folder / 'pairs'}}}"
    few = ["max_steps=1", "save_steps=1", "logging_steps=1"]
    sets = [f"preference.pairs={pairs}", "preference.held_out=null", "preference.eval_steps=1"]
    pipeline_command("preference", "--run", str(finished), "--output-dir", str(tmp_path / "dpo"),
                     sets=[*sets, *(f"preference.{text}" for text in few)])  # fmt: skip
    assert (tmp_path / "dpo" / "preference.json").exists()


@pytest.mark.nightly
def test_grpo(pipeline_command: Command, folder: Path, finished: Path, tmp_path: Path) -> None:
    few = ["max_steps=1", "save_steps=1", "logging_steps=1", "prompts_per_step=1", "num_generations=2"]
    prompts = f"grpo.prompts={{source: local, path: {folder / 'openmath'}}}"
    pipeline_command("grpo", "--run", str(finished), "--output-dir", str(tmp_path / "grpo"),
                     sets=[prompts, *(f"grpo.{text}" for text in few)])  # fmt: skip
    assert (tmp_path / "grpo" / "grpo.json").exists()


NOTEBOOKS = {
    "run": pytest.param(["03", "04", "05"], id="run"),  # mix, training, evaluation
    "others": pytest.param(["00", "01", "02", "02b", "03b", "06", "06b", "07", "08", "09", "10", "11", "12"], id="others",
                           marks=pytest.mark.nightly),
}  # fmt: skip


@pytest.mark.parametrize("notebooks", NOTEBOOKS.values())
@pytest.mark.parametrize(
    "profile", ["qwen3-0.6b", *(pytest.param(name, marks=pytest.mark.nightly) for name in REAL if name != "qwen3-0.6b")]
)
def test_notebooks(
    once: Any, pipeline_command: Command, folder: Path, tmp_path: Path, profile: str, notebooks: list[str]
) -> None:
    """Every notebook with every real profile; on a model that keeps to its modes, as the notebooks look at replies."""
    model = once("standin-trained", standin.make_trained)
    own = ("model.name", "mix.rehearsal")
    sets = [text for text in standin.settings(folder, profile) if not text.startswith(own)]
    sets.append(f"preference.pairs={{source: local, path: {folder / 'pairs'}}}")
    sets += ["preference.held_out=null", f"grpo.prompts={{source: local, path: {folder / 'openmath'}}}"]
    only = [word for number in notebooks for word in ("--only", number)]
    pipeline_command("course", "--profile", profile, "--output-dir", str(tmp_path / "course"), *only,
                     sets=[*sets, f"model.name={model}"])  # fmt: skip
    record = json.loads((tmp_path / "course" / "course.json").read_text(encoding="utf-8"))
    assert len(record["finished"]) == len(notebooks)


STUDIES = {
    "sweep": ["--axis", "chat_share", "--values", "0,0.5"],
    "search": ["--trials", "1", "--fidelity-floor", "0"],  # random weights keep to no mode
    "methods": ["--methods", "qlora,prefix"],
}


@pytest.mark.nightly
@pytest.mark.parametrize("study", STUDIES)
def test_studies(pipeline_command: Command, folder: Path, tmp_path: Path, study: str) -> None:
    sets = standin.settings(folder, "qwen3-8b")
    pipeline_command(study, "--profile", "qwen3-8b", "--output-dir", str(tmp_path / study), *STUDIES[study], sets=sets)
    assert (tmp_path / study / f"{study}.json").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("study", ["sampling", "switches"])
def test_studies_of_a_run(pipeline_command: Command, finished: Path, tmp_path: Path, study: str) -> None:
    pipeline_command(study, "--run", str(finished), "--output-dir", str(tmp_path / study))
    assert (tmp_path / study / f"{study}.json").exists()
