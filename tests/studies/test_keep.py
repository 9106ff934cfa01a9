"""What keeps the rest: the scale of an adapter, flips and paired tests, price, and whether forgetting goes with distance."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.statistics import flips, mcnemar
from pipeline.evaluation.distance import estimate
from pipeline.studies.arms import load_arms, plan_arms
from pipeline.studies.forgetting import correlation, distance_of, forgetting, forgetting_text, spearman
from pipeline.studies.price import price_cells, price_of
from pipeline.studies.results import ScaleStudy, load_result
from pipeline.studies.scale import require_scalable, scale_text

Command = Callable[..., subprocess.CompletedProcess[str]]


# --- flips --------------------------------------------------------------------------------------------------------------


def test_flips_are_counted_in_both_directions() -> None:
    found = flips(np.array([[1, 1, 0, 0, 0.0]]), np.array([[1, 0, 1, 1, 0.0]]))
    assert (found["gained"], found["lost"], found["n"]) == (2, 1, 5)
    assert found["p"] == 1.0
    assert flips(np.zeros((1, 8)), np.ones((1, 8)))["p"] == pytest.approx(2 / 2**8)


def test_seeds_that_agree_are_no_more_evidence() -> None:
    first, second = np.zeros((1, 6)), np.ones((1, 6))
    one = flips(first, second)["p"]
    five = flips(np.repeat(first, 5, 0), np.repeat(second, 5, 0))
    assert five["gained"] == 30 and five["p"] == pytest.approx(one, rel=0.2)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)
    assert comb(3, 1) == 3


# --- distance and forgetting --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 100)), min_size=1, max_size=30))
def test_a_mean_lies_in_its_interval(items: list[tuple[float, int]]) -> None:
    found = estimate([total for total, _ in items], [count for _, count in items])
    assert found["ci95"][0] <= found["kl"] <= found["ci95"][1] and found["n"] == len(items)
    assert found["kl"] == pytest.approx(sum(t for t, _ in items) / sum(c for _, c in items))


def write_run(folder: Path, kl: dict[str, float], lost: dict[str, float], seconds: float = 10.0) -> Path:
    """A run's report, as far as is read here."""
    names = list(kl)
    cells: dict[str, Any] = {}
    for which in ("base", "tuned"):
        scores = {name: 1.0 - (lost.get(name, 0.0) if which == "tuned" else 0.0) for name in names}
        cells[which] = {
            m: {"benchmarks": {n: {"score": s} for n, s in scores.items()}} for m in ("thinking", "non_thinking")
        }
    entries = {name: {"kl": value, "ci95": [value, value], "n": 5, "tokens": 50} for name, value in kl.items()}
    training = {"training_seconds": seconds, "memory_above_base_bytes": 2**20}
    distance = {"thinking": entries, "non_thinking": entries}
    write_json(folder / "report.json", {"evaluation": cells, "distance": distance, "training": training})
    return folder


def test_forgetting_that_goes_with_distance_is_seen(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(n), {"skill": n * 0.1, "chat": n * 0.01}, {"chat": n * 0.05}) for n in range(1, 9)]
    found = forgetting(runs, ["thinking/skill"], ["thinking/chat", "non_thinking/chat"])
    assert found is not None
    for entry in (found["new_task"], found["own_task"]):
        assert entry["spearman"] == pytest.approx(1.0) and entry["runs"] == 8
        assert entry["ci95"] is not None and entry["ci95"][0] > 0.9
    assert "+1.00" in forgetting_text(found)
    assert forgetting(runs, ["thinking/skill"], []) is None
    few = forgetting(runs[:3], ["thinking/skill"], ["thinking/chat"])
    assert few is not None and few["new_task"]["spearman"] is None and "not defined" in forgetting_text(few)
    write_json(runs[0] / "report.json", read_json(runs[0] / "report.json") | {"distance": None})
    assert forgetting(runs, ["thinking/skill"], ["thinking/chat"]) is None and distance_of(runs) is None


def test_no_correlation_has_an_interval_around_nothing() -> None:
    x = np.arange(40.0)[:, None]
    found = correlation(x, x * 17 % 40)
    assert found["ci95"] is not None and found["ci95"][0] < 0 < found["ci95"][1]
    assert spearman(np.ones(5), np.arange(5)) is None


def test_a_mean_distance_is_wider_where_seeds_differ(tmp_path: Path) -> None:
    alike = [write_run(tmp_path / f"a{n}", {"chat": 0.1}, {}) for n in range(3)]
    apart = [write_run(tmp_path / f"b{n}", {"chat": 0.05 * n + 0.05}, {}) for n in range(3)]
    (one, other) = (distance_of(runs) for runs in (alike, apart))
    assert one is not None and other is not None
    assert one["thinking"]["chat"] == {"value": pytest.approx(0.1), "ci95": [pytest.approx(0.1)] * 2}
    low, high = other["thinking"]["chat"]["ci95"]
    assert other["thinking"]["chat"]["value"] == pytest.approx(0.1) and low < 0.09 < 0.11 < high


def test_price_is_a_mean_and_counts_what_was_asked(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(n), {"chat": 0.1}, {}, seconds=10.0 * n) for n in (1, 3)]
    for run in runs:
        write_json(run / "rehearsal/own/rehearsal.json", {"questions": {"asked": 100}, "seconds": 4.0})
        write_json(run / "rehearsal/two/rehearsal.json", {"questions": {"asked": 50}, "seconds": 1.0})
    price = price_of(runs)
    assert price == {
        "training_seconds": 20.0,
        "memory_above_base_bytes": 2**20,
        "questions": 150.0,
        "asking_seconds": 5.0,
    }
    assert price_cells(price) == ["20", "1", "150", "5"]


# --- arms ---------------------------------------------------------------------------------------------------------------


def test_arms_of_keep_differ_in_one_thing_each(tmp_path: Path) -> None:
    arms = load_arms("keep")
    cells = {cell.value: cell for cell in plan_arms("embedded", [], arms, 1, tmp_path)}
    assert next(iter(cells)) == "chat_50"  # what the others are compared with
    parts = {"rehearsal_01": 0.01, "rehearsal_05": 0.05, "rehearsal_10": 0.1, "rehearsal_20": 0.2, "rehearsal_40": 0.4}
    for name, part in parts.items():
        own = sum(s.share for s in cells[name].recipe.sources if s.source == "base")
        assert own == pytest.approx(part)
        chat, math = (next(s.share for s in cells[name].recipe.sources if s.name == n) for n in ("chat", "math"))
        assert chat == math
    assert {cells[f"kl_{w}"].profile.training.kl_to_base for w in ("0.1", "0.3", "1")} == {0.1, 0.3, 1.0}
    assert cells["recipe_kl_0.3"].profile.training.kl_rows == "rehearsal"
    assert {cell.profile.training.max_steps for cell in cells.values()} == {1400}


# --- scale --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_scale_from_the_base_to_the_tuned_model(pipeline_command: Command, tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scale"
    command = ["scale", "--run", str(tiny_run), "--output-dir", str(folder), "--values", "0,0.5"]
    shown = pipeline_command(*command).stdout
    result = load_result(folder / "scale.json", ScaleStudy)
    assert [row["scale"] for row in result["rows"]] == [0.0, 0.5, 1.0]
    base, half, tuned = result["rows"]
    report = read_json(tiny_run / "report.json")
    for mode in ("thinking", "non_thinking"):
        for row, which in ((base, "base"), (tuned, "tuned")):
            assert row["modes"][mode]["benchmarks"] == report["evaluation"][which][mode]["benchmarks"]
        assert base["distance"] and half["distance"] and tuned["distance"] and half["from_trained"]
        for name in base["distance"][mode]:
            kl = [row["distance"][mode][name]["kl"] for row in (base, half, tuned)]  # type: ignore[index]
            assert kl[0] == pytest.approx(0, abs=1e-6) and kl[0] < kl[1] < kl[2]
            assert tuned["distance"][mode][name]["kl"] == pytest.approx(report["distance"][mode][name]["kl"], rel=1e-3)
    assert tuned["from_trained"] is None and "flips" in half["from_trained"]["thinking"]["mode_fidelity"]
    assert scale_text(result) in shown and (folder / "scale.png").read_bytes().startswith(b"\x89PNG")
    again = pipeline_command(*command, "--json")
    assert json.loads(again.stdout) == result


@pytest.mark.parametrize("values", [[1.5], [-0.1], [0.5, 0.5], [float("nan")]])
def test_values_are_parts_of_one(values: list[float]) -> None:
    with pytest.raises(UserError, match="from 0 to 1, each given once"):
        require_scalable(values, "qlora")


@pytest.mark.parametrize("method", ["full", "dora", "prefix", "adapter"])
def test_what_is_no_plain_lora_cannot_be_scaled(method: str) -> None:
    with pytest.raises(UserError, match=f"method {method} cannot be scaled"):
        require_scalable([0.5], method)
    assert require_scalable([0.5, 0.25], "lora") == [0.25, 0.5, 1.0]
