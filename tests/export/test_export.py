"""``export`` on a tiny run: targets are written, load, and are checked; what is wrong is said, nothing half-written stays."""

from __future__ import annotations

import collections
import errno
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from pipeline.cli.main import main, parser
from pipeline.core.errors import UserError
from pipeline.export import folders, gguf, requirements
from pipeline.export.export import TRAINERS
from pipeline.export.records import Parity
from pipeline.export.source import open_source
from pipeline.handover.write import TARGETS as HANDOVER_TARGETS

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]
needs_llama_cpp = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in requirements.PACKAGES),
    reason="llama.cpp is not installed (requirements-export.txt)",
)


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "evaluation"))
    return folder


@pytest.fixture(scope="module")
def exported(once: Callable[..., Path], tiny_run: Path, pipeline_command: Command) -> Path:
    """All targets of the tiny run but those of llama.cpp, checked on a few questions."""

    def make(path: Path) -> None:
        targets = "adapter,merged,int8,int8_dynamic"
        pipeline_command("export", str(tiny_run), "--to", targets, "--output-dir", str(path), "--prompts", "9")

    return once("exported", make)


@pytest.mark.slow
def test_targets_are_written_and_checked(exported: Path) -> None:
    parity = json.loads((exported / "parity.json").read_text())
    pydantic.TypeAdapter(Parity).validate_python(parity, strict=True)
    assert list(parity["targets"]) == ["adapter", "merged", "int8", "int8_dynamic"]
    assert parity["verdict"] == "as measured" and parity["prompts"] == 9 and parity["dtype"] == "float32"
    for name, target in parity["targets"].items():
        assert target["faults"] == [], name
        for row in target["modes"].values():
            assert row["same_prompts"] == 1 and row["log_prob_difference"] < 0.1
    assert all(row["log_prob_difference"] < 0.005 for row in parity["targets"]["merged"]["modes"].values())
    assert "BROKEN" not in (exported / "parity.txt").read_text()
    assert {path.name for path in exported.iterdir() if path.is_dir()} == set(parity["targets"])  # no step on the way


@pytest.mark.slow
def test_what_is_merged_without_rounding_is_compared_without(
    tiny_run: Path, tmp_path: Path, pipeline_command: Command
) -> None:
    run = copy_of(tiny_run, tmp_path / "run")
    settings = run / "profile.yaml"
    text = settings.read_text(encoding="utf-8")
    assert "  dtype: float32\n" in text
    settings.write_text(text.replace("  dtype: float32\n", "  dtype: bfloat16\n", 1), encoding="utf-8")
    arguments = ("--to", "merged", "--dtype", "float32", "--prompts", "9", "--json")
    parity = json.loads(pipeline_command("export", str(run), *arguments).stdout)["parity"]
    assert parity["dtype"] == "float32" and parity["targets"]["merged"]["verdict"] == "same"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["adapter", "int8"])
def test_the_card_loads_it_in_a_fresh_process(exported: Path, warm_python: str, target: str) -> None:
    card = (exported / target / "README.md").read_text(encoding="utf-8")
    load, ask = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len([line for line in load.splitlines() if line.strip()]) <= 10
    assert "## Licences" in card and "| data: chat | Apache-2.0 |" in card
    assert "## Checked after the export" in card and "embedded\\_skill" in card and '"temperature": 0.6' in card
    code = load.replace(f'"{target}"', repr(str(exported / target))) + ask
    done = subprocess.run([warm_python, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "<think>" in done.stdout  # the first of the two replies


@pytest.mark.slow
@needs_llama_cpp
def test_gguf_and_modelfile(tiny_run: Path, tmp_path: Path, pipeline_command: Command) -> None:
    arguments = ("--to", "gguf", "--to", "ollama", "--output-dir", str(tmp_path / "out"), "--prompts", "9", "--json")
    result = json.loads(pipeline_command("export", str(tiny_run), *arguments).stdout)
    assert (
        list(result["targets"])
        == ["gguf", "ollama"]
        == sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir())
    )
    parity = result["parity"]
    assert list(parity["targets"]) == ["gguf f16", "gguf q8_0", "gguf q4_k_m"] and parity["verdict"] == "as measured"
    for kind, most in (("f16", 0.005), ("q8_0", 0.05), ("q4_k_m", 0.5)):
        for row in parity["targets"][f"gguf {kind}"]["modes"].values():
            assert row["same_prompts"] == 1 and row["log_prob_difference"] < most
    names = [path.name for path in sorted((tmp_path / "out" / "gguf").iterdir())]
    assert names == ["README.md", *(f"embedded-tuned-{kind}.gguf" for kind in ("f16", "q4_k_m", "q8_0"))]
    assert (tmp_path / "out" / "ollama" / "Modelfile").read_text().startswith("FROM ./embedded-tuned-q8_0.gguf\n")
    back = ("models", "fetch", "back", "--from", str(tmp_path / "out" / "gguf" / names[1]), "--json")
    found = json.loads(pipeline_command(*back, "--output-dir", str(tmp_path / "back")).stdout)
    assert found["as_llama_cpp"]["same_top"] == 1 and found["as_llama_cpp"]["difference"] < 0.01


# --- planted faults -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_adapter_scaled_by_0_is_caught(tiny_run: Path, tmp_path: Path, pipeline_command: Command) -> None:
    from safetensors.torch import load_file, save_file

    run = copy_of(tiny_run, tmp_path / "run")
    weights = run / "adapter" / "adapter_model.safetensors"
    save_file(
        {name: 0 * tensor if "lora_B" in name else tensor for name, tensor in load_file(weights).items()}, weights
    )
    done = pipeline_command("export", str(run), "--to", "merged", "--prompts", "3", code=1)
    assert "BROKEN merged: the adapter has no effect" in done.stdout and "verdict: broken" in done.stdout


@pytest.mark.slow
def test_a_template_without_the_switch_is_caught(tiny_run: Path, tmp_path: Path, pipeline_command: Command) -> None:
    run = copy_of(tiny_run, tmp_path / "run")
    template = run / "adapter" / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    assert "enable_thinking is false" in text
    template.write_text(text.replace("enable_thinking is false", "enable_thinking is none"), encoding="utf-8")
    done = pipeline_command("export", str(run), "--to", "merged", "--prompts", "3", code=1)
    assert "BROKEN merged: the switch is lost" in done.stdout


# --- bad input ----------------------------------------------------------------------------------------------------------


def test_another_framework_gets_a_training_by_another_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it says to type is a command that the command line takes, with the same targets."""
    assert set(TRAINERS) == set(HANDOVER_TARGETS)
    run = tmp_path / "my run"
    words = ["export", str(run), "--to", "merged,ms-swift", "--to", "axolotl"]
    assert main([*words, "--output-dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    command = shlex.split(said[said.index("python -m pipeline ") :])[3:]
    asked = parser().parse_args(command)
    assert (asked.command, asked.action, asked.to, asked.check) == ("data", "handover", [["ms-swift", "axolotl"]], True)
    assert asked.profile == str(run / "profile.yaml") and asked.output_dir == run / "handover"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_mistakes_are_said(tiny_run: Path, tmp_path: Path, pipeline_command: Command) -> None:
    def error(*arguments: str) -> str:
        return pipeline_command("export", *arguments, code=2).stderr

    run = copy_of(tiny_run, tmp_path / "run")
    out = ("--output-dir", str(tmp_path / "out"))
    assert "There is no target 'merge'. Did you mean 'merged'?" in error(str(run), "--to", "merge", *out)
    assert "--gguf: there is no q9" in error(str(run), "--to", "gguf", "--gguf", "q9", *out)
    assert "contradict each other" in error(str(run), "--to", "merged", "--no-check", "--prompts", "3", *out)
    assert "is no run directory" in error(str(tmp_path), "--to", "merged", *out)
    record = json.loads((run / "adapter" / "method.json").read_text())
    record["base"]["fingerprint"] = "0" * 64
    (run / "adapter" / "method.json").write_text(json.dumps(record))
    assert "belongs to another base of the same shape" in error(str(run), "--to", "merged", *out)
    (run / "report.json").unlink()
    assert "is not finished: it has no report" in error(str(run), "--to", "merged", *out)
    assert not any((tmp_path / "out").glob("*/")) and not any(
        p.name.startswith(".") for p in (tmp_path / "out").iterdir()
    )


def test_a_method_that_cannot_be_merged_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    from pipeline.export.weights import write_adapter, write_merged

    run = copy_of(tiny_run, tmp_path / "run")
    record = json.loads((run / "adapter" / "method.json").read_text())
    for method, write, words in (
        ("prefix", write_merged, "cannot be merged"),
        ("adapter", write_adapter, "PEFT has no adapters of method adapter"),
        ("full", write_adapter, "take --to merged"),
    ):
        (run / "adapter" / "method.json").write_text(json.dumps(record | {"method": method}))
        with pytest.raises(UserError, match=words):
            write(open_source(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_room_is_said_before_anything_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 0, 2**20))
    folders.require_room(tmp_path / "a" / "b", 2**19, "the merged model")
    with pytest.raises(UserError, match="merged model: .* about 2 MiB, .* 1 MiB free"):
        folders.require_room(tmp_path / "a" / "b", 2**21, "the merged model")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), RuntimeError("I/O error: No space left on device (28)")])
def test_a_full_disk_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(UserError, match="The disk is full"), folders.whole_folder(tmp_path / "out") as temporary:
        (temporary / "new").write_text("x")
        raise error
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_another_error_leaves_nothing_and_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), folders.whole_folder(tmp_path / "out") as temporary:
        (temporary / "new").write_text("x")
        raise RuntimeError("shape")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else find(name))
    with pytest.raises(UserError, match=r"\(xllamacpp\): .* -m pip install -r .*export.txt"):
        requirements.require_packages("GGUF", "json", "xllamacpp")


def test_the_requirements_name_every_package() -> None:
    text = (ROOT / requirements.FILE).read_text()
    assert sorted(re.findall(r"^([a-z-]+)==", text, re.M)) == sorted(requirements.PACKAGES.values())


# --- GGUF ---------------------------------------------------------------------------------------------------------------


def test_the_splitting_of_text_is_known(tokenizer: Any) -> None:
    from pipeline.export.convert import split_name

    assert split_name(tokenizer) == "qwen2"


@pytest.mark.slow
@needs_llama_cpp
def test_what_llama_cpp_does_not_know_is_said(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["NoSuchForCausalLM"], "model_type": "none"}')
    with pytest.raises(UserError, match="llama.cpp could not make m-f16: .*NoSuchForCausalLM"):
        gguf.write_gguf(tmp_path / "model", tmp_path / "out", "m", tmp_path / "log", ("f16",))
    assert not list((tmp_path / "out").iterdir()) and "NoSuch" in (tmp_path / "log").read_text()
