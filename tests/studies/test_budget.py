"""The study of thinking budgets: its rows, what a loop is, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pipeline.cli.main import main
from pipeline.cli.schemas import schema_of
from pipeline.core.errors import UserError
from pipeline.model.thinking_budget import Budget
from pipeline.studies.budget import NGRAM, ROUNDS, budget_text, loops, require_budgets, run_budget


def test_a_loop_is_a_run_of_words_that_comes_back() -> None:
    assert loops("Wait, let me check 17 + 25 again. " * 4)
    assert not loops("Wait, let me check 17 + 25 again. " * (ROUNDS - 1))
    assert not loops("7 + 5 = 12, carry the 1. 1 + 2 + 1 = 4, so the sum is 42.") and not loops("")


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=3), min_size=NGRAM, max_size=12), st.integers(ROUNDS, 6))
def test_whatever_is_said_often_enough_is_a_loop(words: list[str], rounds: int) -> None:
    assert loops(" ".join(words * rounds))


def test_budgets_are_checked(embedded_tokenizer: Any) -> None:
    closing = Budget(embedded_tokenizer, 0)
    assert require_budgets([16, 0, 8], closing, 160) == [0, 8, 16]
    for bad in ([], [-1], [8, 8]):
        with pytest.raises(UserError, match="from 0 on, each given once"):
            require_budgets(bad, closing, 160)
    with pytest.raises(UserError, match="leave no room for an answer"):
        require_budgets([8, 150], closing, 160)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_study_of_a_run(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    command = ["budget", "--run", str(tiny_run), "--output-dir", str(folder), "--values", "0,8", "--limit", "3"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    Draft202012Validator(schema_of("budget")).validate(result)
    assert [row["budget"] for row in result["rows"]] == [0, 8, None] and result["direct"]["accuracy"]["n"] == 9
    assert result["rows"][0]["stopped"]["value"] > 0 and result["rows"][-1]["stopped"]["value"] == 0
    assert result["rows"][0]["mean_reasoning_tokens"] < result["rows"][-1]["mean_reasoning_tokens"] + 80
    assert (folder / "budget.png").read_bytes().startswith(b"\x89PNG")
    assert "unlimited" in budget_text(result) and "n = 9 a row" in budget_text(result)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/cell.json")}
    assert len(before) == 4
    assert main([*command, "--json"]) == 0 and json.loads(capsys.readouterr().out) == result
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*/cell.json")} == before  # nothing is repeated
    with pytest.raises(UserError, match="another model or other items"):
        run_budget(tiny_run, folder, [0], "base", 3)


def test_what_is_no_number_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", "--run", str(tmp_path), "--output-dir", str(tmp_path / "o"), "--values", "0,x"]) == 2
    assert "--values needs whole numbers from 0 on" in capsys.readouterr().err
    with pytest.raises(UserError, match="is no run directory"):
        run_budget(tmp_path / "none", tmp_path / "out")
