"""The main job on the embedded model, small: real Unsloth, TRL and EvalScope, in processes of their own.

Unsloth has to be imported before transformers, which other tests import first; hence the processes. The first run and the
one that is killed are of the real Python, all others are forked from a process that has imported everything (conftest.py).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import SETTINGS

from pipeline.training.records import TrainingRecord, read_record

ROOT = Path(__file__).parents[1]
Command = Callable[..., subprocess.CompletedProcess[str]]
OVERRIDES = [part for text in SETTINGS for part in ("--set", text)]
pytestmark = pytest.mark.slow


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def finished(tiny_run: Path) -> Path:
    """A whole small run, made by one command of the real Python."""
    return tiny_run


def test_run_directory_holds_everything(finished: Path) -> None:
    expected = {
        *("profile.yaml", "recipe.yaml", "run.json", "training.json", "report.json", "report.html", "model_card.md"),
        *("mix", "adapter", "checkpoints", "evaluation"),
    }
    assert expected <= {path.name for path in finished.iterdir()}
    assert not [path for path in finished.rglob("*.tmp")]


def test_no_temporary_folder_is_left(finished: Path) -> None:
    assert list(finished.with_name("tmp").iterdir()) == []


NOISE = ("Warning", "site-packages", "Failed to load", "it/s]", "%|", "Unsloth", "Loading weights", "encryption")


def test_the_console_is_quiet(finished: Path) -> None:
    """What libraries print goes to the run's log, and nothing of it to the console."""
    console = finished.with_name("console.txt").read_text(encoding="utf-8")
    assert [line for line in console.splitlines() if any(word in line for word in NOISE)] == []
    assert "Unsloth" in (finished / "log.txt").read_text(encoding="utf-8")  # they do print


def test_report_agrees_with_the_files_it_sums_up(finished: Path) -> None:
    report: dict[str, Any] = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert report["schema_version"] == 1
    manifest = json.loads((finished / "mix" / "manifest.json").read_text(encoding="utf-8"))
    assert report["run"]["data_fingerprint"] == manifest["fingerprint"]
    assert report["training"]["steps"] == 12
    assert [entry["step"] for entry in report["training"]["loss"]] == list(range(1, 13))
    assert [entry["step"] for entry in report["training"]["eval_loss"]] == [4, 8, 12]
    assert 0 < report["training"]["loss_tokens_per_second"] < report["training"]["tokens_per_second"]
    # rank 32 on seven matrices of each of four layers: rank × (inputs + outputs)
    shapes = [(128, 256), (128, 128), (128, 128), (256, 128), (128, 512), (128, 512), (512, 128)]
    assert report["training"]["trainable_parameters"] == 4 * 32 * sum(a + b for a, b in shapes)
    for which in ("base", "tuned"):
        for mode in ("thinking", "non_thinking"):
            lines = (
                (finished / "evaluation" / which / mode / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
            )
            rows = [json.loads(line) for line in lines]
            cell = report["evaluation"][which][mode]
            assert len(rows) == cell["n"] == 18
            assert cell["mode_fidelity"] == pytest.approx(sum(row["faithful"] for row in rows) / 18)
            for name, result in cell["benchmarks"].items():
                scores = [row["score"] for row in rows if row["benchmark"] == name]
                assert result["n"] == len(scores) == 6 and result["score"] == pytest.approx(sum(scores) / 6)
                assert result["ci95"][0] - 1e-9 <= result["score"] <= result["ci95"][1] + 1e-9


def test_base_model_knows_both_modes_and_not_the_skill(finished: Path) -> None:
    base = json.loads((finished / "report.json").read_text(encoding="utf-8"))["evaluation"]["base"]
    for mode in ("thinking", "non_thinking"):
        assert base[mode]["mode_fidelity"] >= 17 / 18
        assert base[mode]["benchmarks"]["embedded_chat"]["score"] >= 5 / 6
        assert base[mode]["benchmarks"]["embedded_skill"]["score"] <= 1 / 6
    assert base["thinking"]["mean_reasoning_tokens"] > 5
    assert base["non_thinking"]["mean_reasoning_tokens"] == 0


def test_a_finished_run_is_not_done_again(pipeline_command: Command, tiny_run: Path, tmp_path: Path) -> None:
    finished = shutil.copytree(tiny_run, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("adapter_model.safetensors")}
    started = time.monotonic()
    result = pipeline_command("run", "--output-dir", str(finished), "--json", *OVERRIDES)
    assert json.loads(result.stdout) == json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("adapter_model.safetensors")} == before
    assert "loading" not in result.stderr and time.monotonic() - started < 60


def test_killed_training_goes_on_to_the_same_adapter(pipeline_command: Command, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["train", "--output-dir", str(folder), *OVERRIDES]
    command = [sys.executable, "-m", "pipeline", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (folder / "checkpoints" / "checkpoint-4" / "manifest.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "adapter").exists()
    # Checkpoints that the kill cut short, or that were damaged afterwards, must not be taken.
    half, damaged = (folder / "checkpoints" / f"checkpoint-{step}" for step in (9, 10))
    for copy in (half, damaged):
        shutil.copytree(folder / "checkpoints" / "checkpoint-4", copy)
    (half / "manifest.json").unlink(missing_ok=True)
    (damaged / "optimizer.pt").write_bytes(b"cut")
    assert "add --resume" in pipeline_command(*arguments, code=2).stderr
    changed = [*arguments, "--set", "training.learning_rate=0.001"]
    refused = pipeline_command(*changed, "--resume", code=2).stderr
    assert "training.learning_rate is 0.003 there and 0.001 here" in refused
    resumed = pipeline_command(*arguments, "--resume")
    assert "checkpoint-10 cannot be used: optimizer.pt has 3 bytes" in resumed.stderr
    assert "checkpoint-9 cannot be used: it was not written to its end" in resumed.stderr
    assert sorted(p.name for p in (folder / "checkpoints").glob("*checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "models/embedded"
    assert adapter_bytes(folder) == adapter_bytes(finished)


def test_an_exchanged_adapter_is_not_reported_with_the_evaluation_of_another(
    pipeline_command: Command, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "adapter" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = bytes(4)  # the last weight becomes 0
    path.write_bytes(content)
    report = pipeline_command("report", "--output-dir", str(folder), code=2)
    assert "The evaluation of the tuned model" in report.stderr and "is of other weights" in report.stderr
    again = pipeline_command("evaluate", "--which", "tuned", "--output-dir", str(folder), *OVERRIDES)
    assert "is of other weights than those here; it is done again" in again.stderr
    pipeline_command("report", "--output-dir", str(folder))


def test_force_goes_on_under_other_settings_and_says_so(
    pipeline_command: Command, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    other = ["--resume", "--force", "--set", "training.learning_rate=0.001"]
    refused = pipeline_command("run", "--output-dir", str(folder), *OVERRIDES, *other, code=2)
    assert "is finished, and --force cannot change what it was trained with" in refused.stderr
    # As if it had been killed behind step 8.
    for name in ("training.json", "report.json"):
        (folder / name).unlink()
    for name in ("adapter", "checkpoints/checkpoint-12", "evaluation/tuned"):
        shutil.rmtree(folder / name)
    done = pipeline_command("train", "--output-dir", str(folder), *OVERRIDES, *other, "--json")
    assert json.loads(done.stdout)["steps"] == 12
    notes = json.loads((folder / "run.json").read_text(encoding="utf-8"))["notes"]
    assert "training.learning_rate is 0.003 there and 0.001 here" in notes[0]
    assert "checkpoint-8" in notes[1] and "training.learning_rate was 0.003 and is 0.001" in notes[1]
    assert adapter_bytes(folder) != adapter_bytes(finished)
    assert "needs --resume" in pipeline_command("train", "--output-dir", str(folder), "--force", code=2).stderr


def test_another_seed_gives_another_mix_and_adapter(pipeline_command: Command, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pipeline_command("train", "--output-dir", str(folder), *OVERRIDES, "--set", "seed=7")
    manifests = [json.loads((f / "mix" / "manifest.json").read_text(encoding="utf-8")) for f in (folder, finished)]
    assert manifests[0]["fingerprint"] != manifests[1]["fingerprint"]
    assert adapter_bytes(folder) != adapter_bytes(finished)


def test_prequantised_model_trains_to_the_same_adapter(
    pipeline_command: Command, finished: Path, tmp_path: Path
) -> None:
    quantised = tmp_path / "bnb"
    pipeline_command("embedded", "quantise", "--output-dir", str(quantised))
    assert "quantization_config" in json.loads((quantised / "config.json").read_text(encoding="utf-8"))
    folder = tmp_path / "run"
    pipeline_command("train", "--output-dir", str(folder), *OVERRIDES, "--set", f"model.name={quantised}")
    assert adapter_bytes(folder) == adapter_bytes(finished)


def test_early_stopping_stops(pipeline_command: Command, tmp_path: Path) -> None:
    # A learning rate far too large: the validation loss jumps about, so some evaluation is worse than the one before.
    settings = {"early_stopping_patience": 1, "learning_rate": 0.5, "eval_steps": 1, "save_steps": 1}
    extra = [part for key, value in settings.items() for part in ("--set", f"training.{key}={value}")]
    result = pipeline_command("train", "--output-dir", str(tmp_path / "run"), "--json", *OVERRIDES, *extra)
    assert json.loads(result.stdout)["steps"] < 12


def test_wrong_target_module_is_named(pipeline_command: Command, tmp_path: Path) -> None:
    result = pipeline_command(
        "train",
        "--output-dir",
        str(tmp_path / "run"),
        *OVERRIDES,
        "--set",
        "lora.target_modules=[q_proj, w_proj]",
        code=2,
    )
    assert "no module w_proj" in result.stderr


def test_notebooks_give_what_the_modules_give(pipeline_command: Command, finished: Path, tmp_path: Path) -> None:
    """Contract 8: notebooks 03 and 04 end with the same data fingerprint and the same adapter weights as the commands."""
    folder = tmp_path / "course"
    arguments = ["course", "--output-dir", str(folder), "--only", "03", "--only", "04", *OVERRIDES]
    pipeline_command(*arguments)
    manifest = json.loads((folder / "main" / "mix" / "manifest.json").read_text(encoding="utf-8"))
    report = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert manifest["fingerprint"] == report["run"]["data_fingerprint"]
    assert adapter_bytes(folder / "main") == adapter_bytes(finished)
    # What the next notebook, and every command, reads: a record of the same form.
    own = read_record(folder / "main" / "training.json", TrainingRecord)
    assert {*own, "memory_above_base_bytes"} == set(read_record(finished / "training.json", TrainingRecord))
    assert sorted(p.name for p in (folder / "notebooks").glob("*.html")) == ["03_mix.html", "04_finetune.html"]
    again = pipeline_command(*arguments, "--json")
    assert {entry["status"] for entry in json.loads(again.stdout)["notebooks"]} == {"done before"}


def test_course_stops_at_the_first_failure_and_shows_the_cell(pipeline_command: Command, tmp_path: Path) -> None:
    arguments = ["course", "--output-dir", str(tmp_path / "c"), "--only", "03", "--only", "04"]
    environment = {"PIPELINE_CACHE": str(tmp_path / "cache")}
    arguments += ["--set", "recipe=data_recipes/embedded.yaml", "--set", "mix.total=10000000", "--json"]
    result = pipeline_command(*arguments, environment=environment, code=1)
    notebooks = json.loads(result.stdout)["notebooks"]
    assert [entry["status"] for entry in notebooks] == ["failed", "not run"]
    assert "03_mix.ipynb failed in code cell" in result.stderr and "short" in result.stderr
    assert len(notebooks[0]["error"].splitlines()) < 45
