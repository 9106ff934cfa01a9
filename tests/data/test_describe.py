"""What a build says of its rows: their modes and why, what was not used, and what to do about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.data.describe import describe_mix
from pipeline.data.mix import mix_from_recipe
from pipeline.settings import CleanSettings, Recipe, RepetitionFilter, load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def form(embedded_tokenizer: Any) -> ChatFormat:
    return ChatFormat(embedded_tokenizer)


def recipe_of(path: Path, rows: list[dict[str, Any]], **options: Any) -> Recipe:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"name": "math", "kind": "reasoning", "source": "local", "path": str(path), "share": 1} | options
    return Recipe.model_validate({"name": "r", "sources": [source]})


def described(recipe: Recipe, form: ChatFormat) -> tuple[dict[str, Any], str]:
    mix = mix_from_recipe(recipe, form, max_seq_length=256, seed=1, validation_fraction=0)
    return mix.manifest, describe_mix(mix.manifest)


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"question": f"How many legs have {number} cats?", "answer": str(4 * number), **more}


def test_modes_are_counted_with_their_reasons(form: ChatFormat, tmp_path: Path) -> None:
    rows = [row(1, cot="Four."), row(2, answer="<think>Eight.</think>8"), row(3, reasoning="off"), row(4, id=7)]
    manifest, text = described(recipe_of(tmp_path / "rows.jsonl", rows), form)
    (source,) = manifest["sources"]
    assert source["modes"] == {
        "thinking": {"column 'cot'": 1, "<think> in the text": 1},
        "non_thinking": {"reasoning says so": 1, "no reasoning in the row": 1},
    }
    assert source["unread"] == {"id": 1}
    assert "modes: 2 non_thinking (1 no reasoning in the row, 1 reasoning says so); 2 thinking (" in text
    assert "columns not used: id" in text
    assert "warning: source 'math' is of kind reasoning, but 1 of 4 rows have no reasoning" in text


def test_reasoning_under_a_name_that_nobody_knows_is_no_silent_loss(form: ChatFormat, tmp_path: Path) -> None:
    rows = [row(n, grübeln=f"{n} times four.") for n in range(1, 6)]
    recipe = recipe_of(tmp_path / "rows.jsonl", rows)
    _, text = described(recipe, form)
    assert "5 of 5 rows have no reasoning" in text and "not read: 'grübeln'; is one of them the reasoning?" in text
    named = recipe_of(tmp_path / "rows.jsonl", rows, columns={"reasoning": "grübeln"})
    manifest, text = described(named, form)
    assert manifest["sources"][0]["modes"] == {"thinking": {"column 'reasoning'": 5}}
    assert "warning" not in text
    with pytest.raises(UserError, match=r"5 × no_reasoning.*columns that are not read: grübeln"):
        described(recipe_of(tmp_path / "rows.jsonl", rows, contradictions="reject"), form)


def test_a_chat_source_may_be_plain(form: ChatFormat, tmp_path: Path) -> None:
    _, text = described(recipe_of(tmp_path / "rows.jsonl", [row(1), row(2)], kind="chat"), form)
    assert "warning" not in text


def test_the_expected_answer_under_another_name(form: ChatFormat, tmp_path: Path) -> None:
    rows = [row(n, cot="r", gtruth_answer=str(4 * n + (n == 3))) for n in range(1, 5)]
    recipe = recipe_of(tmp_path / "rows.jsonl", rows, clean={"check_answer": True})
    _, text = described(recipe, form)
    assert "set columns: {expected_answer: gtruth_answer}" in text
    named = recipe_of(
        tmp_path / "rows.jsonl", rows, clean={"check_answer": True}, columns={"expected_answer": "gtruth_answer"}
    )
    manifest, text = described(named, form)
    assert manifest["sources"][0]["rejected"] == {"wrong_answer": 1}
    warnings = [line for line in text.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "check_answer takes 25% of the rows" in warnings[0]
    assert manifest["sources"][0]["unread"] == {}


def test_contradictions_and_roles_of_a_recipe(form: ChatFormat, tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [
                {"from": "Ann", "value": f"Add {n}. /no_think"},
                {"from": "Bo", "value": "<think>r</think>1"},
            ]
        }
        for n in range(3)
    ]
    roles = {"Ann": "user", "Bo": "assistant"}
    manifest, _ = described(recipe_of(tmp_path / "rows.jsonl", rows, roles=roles), form)
    assert manifest["sources"][0]["notes"] == {"switch_contradicts": 3}
    manifest, _ = described(recipe_of(tmp_path / "rows.jsonl", rows, roles=roles, contradictions="repair"), form)
    assert manifest["sources"][0]["notes"] == {"switch_taken_out": 3}
    with pytest.raises(UserError, match="3 × switch_contradicts"):
        described(recipe_of(tmp_path / "rows.jsonl", rows, roles=roles, contradictions="reject"), form)
    with pytest.raises(UserError, match="roles: Bo cannot be 'asistant'"):
        described(recipe_of(tmp_path / "rows.jsonl", rows, roles={"Bo": "asistant"}), form)


def test_true_means_the_defaults_of_a_step(tmp_path: Path) -> None:
    assert CleanSettings.model_validate({"repetition": True}).repetition == RepetitionFilter()
    assert CleanSettings.model_validate({"repetition": False}).repetition is None
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\nclean: {repetition: true, personal_data: true, near_duplicates: true, length: false}\n"
        "sources: [{name: s, kind: chat, source: local, path: x.jsonl, share: 1}]\n",
        encoding="utf-8",
    )
    cleaning = load_recipe(str(path)).clean
    assert cleaning.near_duplicates is not None and cleaning.personal_data is not None and cleaning.length is None


@pytest.mark.slow
@pytest.mark.parametrize("command", ["build", "inspect"])
def test_a_data_command_loads_neither_torch_nor_transformers(command: str, tmp_path: Path) -> None:
    """Ten rows: what is not loaded costs nothing."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row(n, cot="r")) + "\n" for n in range(10)), encoding="utf-8")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nsources: [{{name: s, kind: reasoning, source: local, path: {rows}, share: 1}}]\n", encoding="utf-8"
    )
    program = (
        "import sys, time\nfrom pipeline.cli.main import main\n"
        f"code = main(['data', {command!r}, '--recipe', {str(recipe)!r}, '--set', 'data.validation_fraction=0', "
        f"*{['--dry-run', '--output-dir', str(tmp_path / 'out')] if command == 'build' else []!r}])\n"
        "print(code, sorted({'torch', 'transformers', 'unsloth', 'datasets'} & set(sys.modules)), time.process_time())\n"
    )
    environment = {**os.environ, "PIPELINE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    code, loaded, seconds = done.stdout.splitlines()[-1].partition(" ")[0], done.stdout.splitlines()[-1], done.stdout
    assert code == "0" and " [] " in loaded, loaded
    assert float(seconds.rsplit(maxsplit=1)[-1]) < 5  # processor time; 2 s on a quiet machine, some 10 with torch
