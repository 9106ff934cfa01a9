"""Notebooks 06 to 10 from first to last cell, with tiny trainings. (03 and 04 are held against the modules in test_run.)"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

TINY = [
    "recipe=data_recipes/embedded.yaml",
    "training.max_steps=4",
    "evaluation.limit=4",
    "mix.total=200",
    "training.logging_steps=1",
]
TINY += [
    f"preference.{s}" for s in ("pairs.rows=60", "held_out.rows=16", "max_steps=2", "save_steps=2", "eval_steps=2")
]
TINY += ["preference.per_device_train_batch_size=2", "preference.logging_steps=1"]
TINY += [
    "grpo.prompts.rows=12",
    "grpo.max_steps=1",
    "grpo.save_steps=1",
    "grpo.prompts_per_step=2",
    "grpo.num_generations=2",
]
WORDS = {
    "06": "recommended:",
    "06b": "asked in thinking mode",
    "07": "The objective is the balance",
    "08": "Memory above the base",
    "09": "preferred answer likelier",
    "10": "merged against adapter",
}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("number", list(WORDS))
def test_the_notebook_runs(
    number: str, pipeline_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    own = TINY if number != "06b" else [text for text in TINY if not text.startswith("recipe=")]  # it asks the base
    done = pipeline_command("course", "--only", number, "--output-dir", str(tmp_path), "--json", sets=own)
    (notebook,) = json.loads(done.stdout)["notebooks"]
    assert notebook["status"] == "done"
    page = next((tmp_path / "notebooks").glob("*.html")).read_text(encoding="utf-8")
    assert WORDS[number] in page
