"""The command line: what it prints, and that every mistake gets one sentence, a non-zero exit, and destroys nothing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.main import main
from pipeline.core.place import ROOT
from pipeline.settings import load_profile

SMALL = ["--set", "mix.total=200"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail with one sentence; returns the sentence."""
    assert main(list(arguments)) == 2
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in output.err
    assert not output.out.strip()
    return lines[0]


def recipe(tmp_path: Path, source: dict[str, Any], **changes: Any) -> str:
    values = {"name": "own", "kind": "chat", "source": "local", "path": "x", "format": "sharegpt", "share": 1.0}
    data = {"name": "own", "sources": [values | source]} | changes
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return str(path)


def short_recipe(tmp_path: Path) -> str:
    """The embedded recipe with 600 rows a source."""
    data = yaml.safe_load((ROOT / "data_recipes" / "embedded.yaml").read_text(encoding="utf-8"))
    for source in data["sources"]:
        source["rows"] = 600
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return str(path)


def test_help_needs_no_heavy_library() -> None:
    code = (
        "import sys, pipeline, pipeline.cli.main\n"
        "try: pipeline.cli.main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'unsloth', 'transformers', 'datasets', 'evalscope', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in ("doctor", "data", "train", "evaluate", "run", "report", "course"):
        assert command in result.stdout


def test_wrong_usage_exits_with_two() -> None:
    result = subprocess.run([sys.executable, "-m", "pipeline", "fly"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "invalid choice" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "inspect", "--rows", "-1"], "argument --rows: needs a whole number from 1 on, given: '-1'"),
        (["data", "inspect", "--rows", "9" * 30], "argument --rows: needs a whole number"),
        (["data", "inspect", "--recipe", ""], "argument --recipe: is empty"),
        (["data", "stats", "--source", " "], "argument --source: is empty"),
        (["data", "build", "--output-dir", ""], "argument --output-dir: is empty"),
        (["sweep", "--output-dir", "x", "--values", "0", "--seeds", "0"], "argument --seeds: needs a whole number"),
        (["sweep", "--output-dir", "x", "--values", "0", "--workers", "0"], "argument --workers: needs a whole number"),
        (["sweep", "--output-dir", "x", "--values", ","], "argument --values: needs at least one value"),
        (["embedded", "check", "--output-dir", "x", "--items", "none"], "argument --items: needs a whole number"),
    ],
)
def test_an_option_out_of_range_is_named(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and words in capsys.readouterr().err


def test_sweep_takes_its_values_with_or_without_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def record(name: str, axis: str, values: list[str], *_: object) -> dict[str, Any]:
        taken.append(values)
        return {"failed": []}

    monkeypatch.setattr("pipeline.studies.sweep.run_sweep", record)
    monkeypatch.setattr("pipeline.studies.curve.sweep_table", lambda result: "")
    for values in (["0,0.5,1"], ["0,", "0.5,", "1"], ["0, 0.5 ,1"], ["0", "0.5", "1"]):
        assert main(["sweep", "--output-dir", str(tmp_path / "s"), "--values", *values]) == 0
    assert taken == [["0", "0.5", "1"]] * 4


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_ends_it_quietly() -> None:
    command = [sys.executable, "-m", "pipeline", "data", "inspect", "--rows", "900"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 141
    assert "Traceback" not in errors and "BrokenPipe" not in errors


def test_data_build_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mix"
    arguments = ["data", "build", "--recipe", "data_recipes/embedded.yaml", "--output-dir", str(folder), *SMALL]
    assert main([*arguments, "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["total"]["rows"] == 200
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        "rejected.jsonl",
        "train.parquet",
        "validation.parquet",
    ]


def test_data_inspect_marks_loss(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", "--source", "math", "--rows", "2"]) == 0
    text = capsys.readouterr().out
    assert text.count("[[<think>\n") == 2 and text.count("<|im_end|>]]") == 2
    assert main(["data", "inspect", "--source", "chat", "--rows", "2"]) == 0
    assert "[[<think>" not in capsys.readouterr().out


def test_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert (
        main(["run", "--dry-run", "--json", "--output-dir", str(folder), *SMALL, "--set", "training.max_steps=7"]) == 0
    )
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] == 7 and plan["training_tokens"] > 0 and plan["estimated_memory_bytes"]["cpu"]["total"] > 0
    assert plan["replies_to_generate"] == 4 * 3 * load_profile("embedded").evaluation.limit  # type: ignore[operator]
    assert plan["estimated_seconds"] > 0 and plan["mix"]["total"]["rows"] == 200
    assert not folder.exists()


def test_data_stats_marks_the_limit_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "stats", "--recipe", short_recipe(tmp_path), "--set", "model.max_seq_length=100"]
    assert main([*arguments, "--source", "math"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("math, thinking: ") and "a limit of    100 costs" in text and "← the limit in force" in text
    assert main([*arguments, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [e["source"] for e in entries] == ["chat", "math"]
    cost = next(c for c in entries[1]["limits"] if c["limit"] == 100)
    assert f"{cost['rows']:.1%} of the source's rows" in text and cost["rows"] > 0


def test_data_inspect_shows_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"prompt": "hello", "completion": "Hello!"}
    rows = [good, {"prompt": "hello"}, good | {"completion": "<think>open"}, good]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    clean = {"exact_duplicates": True}
    path = recipe(tmp_path, {"path": str(tmp_path / "rows.jsonl"), "format": "auto"}, clean=clean)
    assert main(["data", "inspect", "--recipe", path, "--rejected", "--rows", "9", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(r["line"], r["step"]) for r in shown] == [(2, "convert"), (3, "convert"), (4, "exact_duplicates")]
    assert [r["row"] for r in shown] == rows[1:]
    assert main(["data", "inspect", "--recipe", path, "--reason", "duplicate"]) == 0
    assert capsys.readouterr().out.startswith(
        "--- own, rows.jsonl:4, exact_duplicates, duplicate: the same as rows.jsonl:1"
    )
    assert main(["data", "inspect", "--recipe", path, "--reason", "refusal"]) == 0
    assert capsys.readouterr().out == "no such rows\n"


def test_data_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, share in (("a", "0.5"), ("b", "0.8")):
        assert (
            main(["data", "build", "--output-dir", str(tmp_path / name), *SMALL, "--set", f"mix.chat_share={share}"])
            == 0
        )
    capsys.readouterr()
    assert main(["data", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "sources.chat.share: 0.5 → 0.8" in capsys.readouterr().out
    assert main(["data", "diff", str(tmp_path / "a"), str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True
    assert "holds no finished mix" in fails(capsys, "data", "diff", str(tmp_path / "a"), str(tmp_path / "c"))


def test_what_was_decided_and_taken_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": f"Say {n}.", "output": f"{n}!"} for n in range(60)] + [
        {"instruction": "x", "output": "<think>"}
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    path = recipe(tmp_path, {"path": str(tmp_path / "rows.jsonl"), "format": "auto"})
    assert main(["data", "build", "--recipe", path, "--dry-run", "--output-dir", str(tmp_path / "mix")]) == 0
    text = capsys.readouterr().out
    assert "61 rows read, 60 kept; 60 as alpaca (has 'instruction' and 'output')" in text
    assert "convert: rejected 1 unclosed_think" in text and "rows.jsonl:61 unclosed_think" in text
    assert not (tmp_path / "mix").exists()


def test_no_path_out_of_the_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    outside = str(tmp_path / "root" / ".." / "secret.jsonl")
    path = recipe(tmp_path, {"path": outside, "format": "auto"}, root=str(tmp_path / "root"))
    text = fails(capsys, "data", "build", "--recipe", path, "--output-dir", str(tmp_path / "mix"))
    assert "secret.jsonl" in text and "root" in text


# --- bad input ------------------------------------------------------------------------------------------------------------


def test_missing_model_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = fails(capsys, "train", "--output-dir", str(tmp_path / "r"), "--set", "model.name=no/such/folder")
    assert "'no/such/folder'" in text and "model.source=huggingface" in text


def test_folder_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}", encoding="utf-8")
    text = fails(capsys, "train", "--output-dir", str(tmp_path / "r"), "--set", f"model.name={tmp_path / 'm'}")
    assert "is no model folder: it has no tokenizer_config.json, no *.safetensors" in text


def test_hub_name_without_network_fails_within_five_seconds(tmp_path: Path) -> None:
    arguments = [
        "run",
        "--output-dir",
        str(tmp_path / "r"),
        "--set",
        "model.name=Qwen/Qwen3-0.6B",
        "--set",
        "model.source=huggingface",
    ]
    environment = {**os.environ, "HF_ENDPOINT": "http://192.0.2.1"}  # reserved for documentation: nobody answers
    environment.pop("HF_HUB_OFFLINE", None)
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert time.monotonic() - started < 5
    assert result.returncode == 2
    error = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "Qwen/Qwen3-0.6B" in error[0] and "offline" in error[0]


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        ({"format": "sharegtp"}, {}, "Unknown format 'sharegtp'. Did you mean 'sharegpt'?"),
        ({"share": 1.5}, {}, "less than or equal to 1"),
        ({"share": 0.4}, {}, "add up to 0.4, not 1"),
        ({"colour": "red"}, {}, "unknown key 'sources.0.colour'"),
        ({"path": "absent.jsonl"}, {}, "absent.jsonl does not exist"),
        ({}, {"unit": "words"}, "unit"),
    ],
)
def test_bad_recipes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "mix"
    text = fails(capsys, "data", "build", "--recipe", recipe(tmp_path, source, **changes), "--output-dir", str(folder))
    assert words in text
    assert not folder.exists()


def test_share_out_of_range_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = fails(capsys, "run", "--output-dir", str(tmp_path / "r"), "--chat-share", "1.2")
    assert "mix.chat_share" in text and "1.2" in text and not (tmp_path / "r").exists()


def test_empty_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    path = recipe(tmp_path, {"path": str(tmp_path / "empty.jsonl")})
    assert "holds no rows" in fails(capsys, "data", "build", "--recipe", path, "--output-dir", str(tmp_path / "mix"))


def test_row_without_an_assistant_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"conversations": [{"from": "human", "value": "hello"}]}\n', encoding="utf-8")
    path = recipe(tmp_path, {"path": str(rows)})
    text = fails(capsys, "data", "build", "--recipe", path, "--output-dir", str(tmp_path / "mix"))
    assert "no_assistant_turn" in text and "rows.jsonl:1" in text


def test_output_directory_of_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.run import Run

    folder = tmp_path / "run"
    Run.open(load_profile("embedded"), folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    text = fails(capsys, "run", "--output-dir", str(folder), "--set", "training.learning_rate=1e-5", "--resume")
    assert "belongs to another run" in text and "training.learning_rate is 0.001 there and 1e-05 here" in text
    assert "--resume" in fails(capsys, "run", "--output-dir", str(folder))
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_output_directory_that_is_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    for command in (["run"], ["data", "build", *SMALL]):
        text = fails(capsys, *command, "--output-dir", str(tmp_path))
        assert "nothing was changed" in text
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    assert "no run directory" in fails(capsys, "report", "--output-dir", str(tmp_path))


@pytest.mark.parametrize("below", ["", "/mix", "/deep/mix"])
@pytest.mark.parametrize("command", [["run"], ["data", "build"], ["sweep", "--values", "0,1"], ["report"]])
def test_output_directory_with_a_file_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], below: str
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("kept", encoding="utf-8")
    text = fails(capsys, *command, "--output-dir", f"{path}{below}")
    assert f"{path} is in the way" in text and "Choose another --output-dir" in text
    assert path.read_text(encoding="utf-8") == "kept"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here, where no folder can be made")
def test_output_directory_where_none_can_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    text = fails(capsys, "data", "build", "--output-dir", "/proc/no-such-folder/mix", *SMALL)
    assert "cannot be written" in text and "Choose another --output-dir" in text


def test_report_of_an_unfinished_run_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.run import Run

    Run.open(load_profile("embedded"), tmp_path / "run")
    text = fails(capsys, "report", "--output-dir", str(tmp_path / "run"))
    assert "training (train)" in text and "base model (evaluate)" in text


def test_a_mix_is_never_written_over_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mix"
    arguments = ["data", "build", "--output-dir", str(folder), *SMALL]
    assert main(arguments) == 0 and main(arguments) == 0  # the same one again is nothing to do
    before = {p: p.read_bytes() for p in folder.iterdir()}
    capsys.readouterr()
    assert "holds another mix" in fails(capsys, *arguments, "--set", "seed=1")
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_a_damaged_mix_is_not_taken_for_a_whole_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mix"
    arguments = ["data", "build", "--output-dir", str(folder), *SMALL]
    assert main(arguments) == 0
    whole = {p.name: p.read_bytes() for p in folder.iterdir()}
    damage: list[tuple[str, bytes | None]] = [
        ("train.parquet", None),
        ("train.parquet", b"PAR1xx"),
        ("validation.parquet", whole["train.parquet"]),
        ("manifest.json", b"[1]"),
        ("manifest.json", b"{}"),
        ("manifest.json", b"{"),
    ]
    for name, content in damage:
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        capsys.readouterr()
        text = fails(capsys, *arguments)
        assert f"Nothing was changed: remove {folder}, or choose another --output-dir." in text
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
        (folder / name).write_bytes(whole[name])
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["data", "build"], "run the same command again"),
        (["sweep", "--values", "0"], "run the same command again"),
        (["run"], "run the same command again with --resume"),
        (["train"], "run the same command again with --resume"),
    ],
)
def test_how_to_go_on_names_only_options_that_there_are(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    words: str,
) -> None:
    failures: list[BaseException] = [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

    def fail(*_: object) -> None:
        raise failures[0]

    monkeypatch.setattr("pipeline.settings.load_profile", fail)
    monkeypatch.setattr("pipeline.studies.sweep.run_sweep", fail)
    arguments = [*command, "--output-dir", str(tmp_path / "new")]
    assert main(arguments) == 130
    assert capsys.readouterr().err == f"stopped; {words} to go on\n"
    failures.pop(0)
    assert fails(capsys, *arguments) == f"error: The disk is full. Free some space and {words}."


def test_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mix"

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.core.files.os.replace", no_space)
        text = fails(capsys, "data", "build", "--output-dir", str(folder), *SMALL)
    assert "disk is full" in text and "Nothing was lost" in text
    assert not list(folder.iterdir())  # no half file, no temporary left
    assert main(["data", "build", "--output-dir", str(folder), *SMALL]) == 0  # and the same command goes on


def test_too_little_space_stops_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=10 * 2**20))
    text = fails(capsys, "train", "--output-dir", str(tmp_path / "run"), *SMALL)
    assert "10 MiB are free" in text


def test_data_needs_a_tokenizer_and_no_weights(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = f"model.name={shared_data / 'qwen3_tokenizer'}"
    arguments = ["--recipe", short_recipe(tmp_path), "--source", "math", "--set", tokenizer, "--json"]
    assert main(["data", "stats", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)[0]["rows"] == 600
    assert "is no model folder" in fails(capsys, "train", "--output-dir", str(tmp_path / "r"), "--set", tokenizer)
