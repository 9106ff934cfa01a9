"""``rehearse`` with the embedded model itself: what it writes, a kill in the middle, a run that has it in its recipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.files import read_json, read_jsonl, write_jsonl

ROOT = Path(__file__).parents[1]
Command = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slow
SMALL = ["evaluation.batch_size=8", "evaluation.workers=2"]


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    from pipeline.data.corpora import known_questions

    write_jsonl(tmp_path / "sums.jsonl", list(known_questions(40, 3)))
    return ["rehearse", "--questions", str(tmp_path / "sums.jsonl"), "--mode", "thinking", "--samples", "2"]


def test_a_killed_rehearsal_goes_on_to_the_same_rows(
    pipeline_command: Command, warm_python: str, asked: list[str], tmp_path: Path
) -> None:
    environment = {"PIPELINE_CACHE": str(tmp_path / "cache")}
    sets = [part for text in SMALL for part in ("--set", text)]
    arguments = [*asked, "--output-dir", str(tmp_path / "rows"), *sets]
    process = subprocess.Popen(
        [warm_python, "-m", "pipeline", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    deadline = time.monotonic() + 300
    replies: list[Path] = []
    while not replies or not replies[0].read_bytes():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
        replies = list((tmp_path / "cache/rehearsals/replies").glob("*/replies.jsonl"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = replies[0].read_bytes()
    count = before.count(b"\n")
    assert 0 < count < 80
    result = pipeline_command(*arguments, "--json", environment=environment)
    record = json.loads(result.stdout)["sums"]
    assert record["replies"] == 80 and record["fidelity"] > 0.9 and record["right"] > 0.9
    assert record["as_written"] == 1.0  # what is trained on is, token by token, what the base wrote
    after = read_jsonl(replies[0])
    assert len(after) == 80 == len({(said["key"], said["seed"]) for said in after})
    assert replies[0].read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert "are known" in result.stderr
    rows = read_jsonl(tmp_path / "rows/sums/rows.jsonl")
    assert len(rows) == record["kept"] and rows[0]["messages"][-1]["reasoning_content"]
    again = pipeline_command(*arguments, "--json", environment=environment)
    assert json.loads(again.stdout)["sums"] == record and "loading" not in again.stderr


def test_a_run_rehearses_first(pipeline_command: Command, tmp_path: Path) -> None:
    sums = {"source": "generated", "path": "known_questions", "rows": 30, "seed": 4}
    maths = {"source": "generated", "path": "openmath_like", "rows": 300, "format": "openmathreasoning"}
    recipe = {
        "name": "small",
        "total": 100,
        "on_shortage": "repeat",
        "group_near_duplicates": False,
        "sources": [
            {"name": "own", "source": "base", "mode": "thinking", "questions": sums, "share": 0.5},
            {"name": "math", "kind": "reasoning", "share": 0.5, **maths},
        ],
    }
    (tmp_path / "small.yaml").write_text(json.dumps(recipe))
    sets = [
        f"recipe={tmp_path / 'small.yaml'}",
        "training.max_steps=2",
        "evaluation.limit=3",
        "data.validation_fraction=0.2",
    ]
    folder = tmp_path / "run"
    environment = {"PIPELINE_CACHE": str(tmp_path / "cache")}
    result = pipeline_command("run", "--output-dir", str(folder), sets=sets, environment=environment)
    assert "[1/6] rehearse" in result.stderr and result.stderr.count("answered 30 questions") == 1
    report = read_json(folder / "report.json")
    own = next(source for source in report["mix"]["sources"] if source["name"] == "own")
    assert own["achieved"]["rows"] == 0.5 and own["mode"] == "thinking"
    record = read_json(folder / "rehearsal/own/rehearsal.json")
    assert record["kept"] == len(read_jsonl(folder / "rehearsal/own/rows.jsonl"))
    assert record["questions"]["asked"] == 30
    again = pipeline_command("data", "build", "--output-dir", str(tmp_path / "mix"), sets=sets, environment=environment)
    assert "loading" not in again.stderr  # everything was said
    assert read_json(tmp_path / "mix/manifest.json")["fingerprint"] == report["run"]["data_fingerprint"]


def test_what_rehearse_refuses(pipeline_command: Command, tmp_path: Path) -> None:
    out = ["--output-dir", str(tmp_path / "out")]
    plain = ["--recipe", "data_recipes/embedded.yaml"]
    assert "has no source: base" in pipeline_command("rehearse", *out, *plain, code=2).stderr
    recipe = ["--recipe", "data_recipes/embedded_rehearsal.yaml"]
    assert (
        "Did you mean 'own_sums'" in pipeline_command("rehearse", *out, *recipe, "--source", "own_sum", code=2).stderr
    )
    assert "needs --mode" in pipeline_command("rehearse", *out, "--questions", "x.jsonl", code=2).stderr
    assert "belong to --questions" in pipeline_command("rehearse", *out, "--mode", "thinking", code=2).stderr
    assert "belong to --questions" in pipeline_command("rehearse", *out, "--rows", "3", code=2).stderr
    assert "belong to --questions" in pipeline_command("rehearse", *out, "--conditions", code=2).stderr
    write_jsonl(tmp_path / "one.jsonl", [{"prompt": "Why?"}])
    own = ["--questions", str(tmp_path / "one.jsonl"), "--mode", "thinking", "--conditions", "none.yaml"]
    assert "none.yaml" in pipeline_command("rehearse", *out, *own, code=2).stderr
    plan = ["--questions", "x.jsonl", "--plan", "--mode"]
    assert "--mode non_thinking" in pipeline_command("rehearse", *out, *plan, "thinking", code=2).stderr
    assert "--mode non_thinking" in pipeline_command("rehearse", *out, *recipe, "--plan", code=2).stderr
    assert not (tmp_path / "out").exists()
