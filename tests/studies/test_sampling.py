from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.core.files import write_jsonl
from pipeline.settings import load_profile
from pipeline.studies.sampling import TABLE, _verdict, rows_of_study, run_sampling, sampling_text
from pipeline.studies.switches import CASES, form_of, items, run_switches, switches_text

# --- sampling -----------------------------------------------------------------------------------------------------------


def test_rows_change_the_temperature_and_nothing_else() -> None:
    table = load_profile("embedded").evaluation
    rows = rows_of_study(table, [0.1, 1.3])
    assert list(rows) == [TABLE, "0.1", "1.3"] and rows[TABLE] == table
    changed = rows["1.3"].sampling
    assert (changed.thinking.temperature, changed.non_thinking.temperature) == (1.3, 1.3)
    assert (changed.thinking.top_p, changed.non_thinking.top_p) == (0.95, 0.8)
    assert table.sampling.thinking.temperature == 0.6
    for bad in ([-0.1], [float("nan")], [0.5, 0.50]):
        with pytest.raises(UserError, match="numbers from 0 on, each given once"):
            rows_of_study(table, bad)


def fabricated(folder: Path, name: str, rate: float, seed: int) -> None:
    scores = (np.random.default_rng(seed).random(400) < rate).astype(float)
    rows = [{"benchmark": "b", "subset": "s", "index": i, "score": s} for i, s in enumerate(scores)]
    write_jsonl(folder / name / "thinking" / "predictions.jsonl", rows)


def test_the_verdict_is_paired_and_needs_an_interval(tmp_path: Path) -> None:
    for name, rate, seed in ((TABLE, 0.6, 1), ("0.1", 0.62, 1), ("0.9", 0.3, 1)):
        fabricated(tmp_path, name, rate, seed)
    near = _verdict(tmp_path, [TABLE, "0.1", "0.9"], "thinking")
    assert near["best"] == "0.1" and near["difference"]["n"] == 400
    fabricated(tmp_path, "0.1", 0.9, 1)
    far = _verdict(tmp_path, [TABLE, "0.1", "0.9"], "thinking")
    assert far["shown_to_be_worse"] and far["difference"]["ci95"][0] > 0.2
    fabricated(tmp_path, "0.1", 0.6, 1)  # the very same answers
    assert not _verdict(tmp_path, [TABLE, "0.1", "0.9"], "thinking")["shown_to_be_worse"]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_study_of_a_run(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    command = ["sampling", "--run", str(tiny_run), "--output-dir", str(folder), "--temperatures", "0.1", "1.3"]
    command += ["--limit", "3", "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in result["rows"]] == [TABLE, "0.1", "1.3"]
    entry = result["rows"][0]["modes"]["thinking"]
    assert entry["accuracy"]["n"] == 9 and set(entry) >= {"mode_fidelity", "truncated", "repetition"}
    assert (folder / "sampling.png").read_bytes().startswith(b"\x89PNG")
    shown = sampling_text(result)
    assert "0.6/0.95/20" in shown and "0.7/0.8/20" in shown and "n = 9, paired" in shown
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/cell.json")}
    assert main(command) == 0 and json.loads(capsys.readouterr().out) == result
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*/cell.json")} == before  # nothing is repeated
    with pytest.raises(UserError, match="another model or other items"):
        run_sampling(tiny_run, folder, [0.1], "base", 3)


@pytest.mark.slow
def test_bad_runs(tmp_path: Path, tiny_run: Path) -> None:
    with pytest.raises(UserError, match="is no run directory"):
        run_sampling(tmp_path / "none", tmp_path / "out")
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(run / "adapter")
    with pytest.raises((UserError, FileNotFoundError)):
        run_sampling(run, tmp_path / "out", [0.1])
    with pytest.raises(UserError, match="holds no adapter"):
        run_switches(run, tmp_path / "switches", 2)


# --- soft switches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "form"),
    [
        ("<think>\nSo 4.\n</think>\n\n4", "thinks"),
        ("<think>\n\n</think>\n\n4", "empty"),
        ("4", "direct"),
        ("", None),
        ("<think>\nSo 4.\n</think>\n\n", None),
        ("<think>\nSo 4.", None),
        ("4 <think>", None),
        ("<think>\n<think>\n</think>\n\n4", None),
    ],
)
def test_forms(reply: str, form: str | None) -> None:
    assert form_of(reply, truncated=False) == form
    assert form_of(reply, truncated=True) is None


def test_prompts_hold_their_switches_and_are_held_out() -> None:
    asked = items(12, 42)
    assert len(asked) == 12 == len({item[2] for item in asked}) and asked == items(12, 42)
    for case in CASES:
        whole = [[m["content"] for m in case.messages(item)] for item in asked]
        last = whole[0][-1]
        assert last.startswith(asked[0][2])
        if case.name.startswith("/no_think, then /think"):
            assert whole[0][0].endswith("/no_think") and last.endswith("/think") and len(whole[0]) == 3
    from pipeline.data.chat_format import soft_switch

    for case in CASES[1:6]:  # the last switch in the prompt is the one that the case expects to be obeyed
        wanted = "/think" if case.expected == "thinks" else "/no_think"
        assert soft_switch(case.messages(asked[0])) == wanted


@pytest.mark.nightly
@pytest.mark.slow
def test_switches_of_a_run(tiny_run: Path, tmp_path: Path) -> None:
    result: dict[str, Any] = run_switches(tiny_run, tmp_path / "switches", 6)
    by = {entry["case"]: entry for entry in result["cases"]}
    assert len(by) == len(CASES) and all(entry["n"] == 6 for entry in by.values())
    # Four steps of tuning change nothing: the shipped base thinks unless it is told otherwise.
    assert by["no switch"]["base"]["value"] > 0.6 and by["/no_think"]["base"]["value"] > 0.6
    assert by["no switch"]["p"] > 0.05
    shown = switches_text(result)
    assert "/no_think, then /think" in shown and "| 6 |" in shown
    assert (tmp_path / "switches" / "tuned.jsonl").exists()
