from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json, write_jsonl
from pipeline.core.modes import MODES
from pipeline.settings import PROFILES, apply_overrides, load_profile, parse, read_yaml
from pipeline.studies import search as module
from pipeline.studies.arms import SweepCell, load_arms, plan_arms
from pipeline.studies.cells import note_failure
from pipeline.studies.coordinator import only_coordinator
from pipeline.studies.engine import StudyEngine
from pipeline.studies.losses import validation_losses
from pipeline.studies.search import run_search
from pipeline.studies.search_result import loss_agreement, measure_trial, search_table, summarise_search, trial_balance
from pipeline.studies.search_space import SPACE, Search, SearchSpace, load_space, make_search
from pipeline.studies.search_study import StudySettings, constraints, open_study, take_point
from pipeline.studies.storage import Storage

ROOT = Path(__file__).resolve().parents[2]
TINY = ["training.max_steps=4", "training.logging_steps=1", "evaluation.limit=4", "mix.total=200"]
ONE = [f"{name}={value}" for name, value in (
    ("training.warmup_steps", 0), ("training.weight_decay", 0.01), ("lora.dropout", 0),
    ("training.lr_scheduler_type", "cosine"),
)]  # fmt: skip
GRID = StudySettings(sampler="grid")


# --- the file of ranges -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_setting_of_the_space_exists_and_every_value_fits() -> None:
    space = load_space()
    for profile in (path.stem for path in PROFILES.glob("*.yaml")):
        for name, dimension in space.of(load_profile(profile).lineage).items():
            ends = dimension.choices or [dimension.low, dimension.high]
            for value in [*ends, *dimension.grid]:
                load_profile(profile, [f"{name}={value}"])
        for name, fixed in space.fixed.items():
            load_profile(profile, [f"{name}={'null' if fixed.value is None else fixed.value}"])
    assert space.of(["embedded"])["training.learning_rate"].high > space.space["training.learning_rate"].high  # type: ignore[operator]
    assert space.rows_a_step(["embedded", "mine"]) == 8 and space.rows_a_step(["qwen3-0.6b", "qwen3-8b"]) == 16


def test_the_asked_for_ranges() -> None:
    space = load_space().space
    assert (space["training.learning_rate"].low, space["training.learning_rate"].high) == (1e-5, 5e-4)
    assert space["training.learning_rate"].log
    assert (space["training.warmup_steps"].low, space["training.warmup_steps"].high) == (0.05, 0.2)
    assert (space["training.weight_decay"].low, space["training.weight_decay"].high) == (0.001, 0.1)
    assert (space["lora.dropout"].low, space["lora.dropout"].high) == (0, 0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space.lora.dropout": {"low": 0.1, "high": 0.0, "grid": [0.1], "source": "nowhere at all"}}, "must be below"),
        ({"space.lora.dropout": {"grid": [0.1], "source": "nowhere at all"}}, "low and high, or choices"),
        ({"space.lora.dropout": {"low": 0, "high": 0.1, "grid": [0.5], "source": "nowhere at all"}}, "leaves the"),
        ({"space.lora.dropout": {"low": 0, "high": 0.1, "grid": [0.05], "source": ""}}, "at least 10 characters"),
    ],
)
def test_a_bad_space_is_refused(change: dict[str, Any], words: str) -> None:
    data = read_yaml(SPACE)
    for key, value in change.items():
        head, _, rest = key.partition(".")
        data[head][rest] = value
    with pytest.raises(UserError, match=words):
        parse(SearchSpace, data, "space")


def test_cards() -> None:
    space = load_space()
    for gib, rows in ((24, 2), (39.9, 2), (40, 4), (80, 8), (141, 8), (500, 16)):
        assert space.card(gib).per_device_train_batch_size == rows
    for card in space.cards.values():
        batch = card.per_device_train_batch_size * card.gradient_accumulation_steps
        assert batch >= space.effective_batch.at_least
    with pytest.raises(UserError, match="begins at 24 GiB"):
        space.card(16)


def test_presets_are_arms(tmp_path: Path) -> None:
    arms = load_arms("presets")
    rates = {c.value: c.profile.training.learning_rate for c in plan_arms("qwen3-8b", [], arms, 1, tmp_path)}
    assert rates == {
        "conservative": 1e-5, "balanced": 3e-4, "aggressive": 5e-4, "recommended": 2e-4, "profile": 2e-4,
    }  # fmt: skip
    assert all(arm.source for name, arm in arms.arms.items() if name != "profile")


# --- what is tried ------------------------------------------------------------------------------------------------------


def test_given_settings_are_not_searched(tmp_path: Path) -> None:
    search = make_search("embedded", [*TINY, "training.learning_rate=0.001"], tmp_path)
    assert "training.learning_rate" not in search.space and "lora.dropout" in search.space
    cell = search.cell(3, ["lora.dropout=0.05"])
    training = cell.profile.training
    assert (training.learning_rate, training.max_steps, training.eval_steps, training.save_steps) == (0.001, 4, 1, 1)
    assert cell.profile.lora.dropout == 0.05 and training.gradient_accumulation_steps == 1
    assert search.cell(9, ["lora.dropout=0.05"]).folder == cell.folder  # named by its settings
    assert search.cell(9, ["lora.dropout=0.06"]).folder != cell.folder
    with pytest.raises(UserError, match="nothing is left to search"):
        make_search("embedded", [*ONE, "training.learning_rate=1"], tmp_path)
    with pytest.raises(UserError, match="validation_fraction"):
        make_search("embedded", ["data.validation_fraction=0"], tmp_path)
    with pytest.raises(UserError, match="lerning_rate"):
        make_search("embedded", ["training.lerning_rate=1"], tmp_path)


def set_measured(trial: Any, balance: float, fidelity: list[float]) -> None:
    """The attributes that a finished trial leaves."""
    measured = {"balance": balance, "learnt": balance, "kept": 1.0, "score": 0.5, "mode_fidelity": fidelity}
    base = {"balance": 0.0, "score": 0.62, "mode_fidelity": [0.99, 1.0]}
    measured |= {"ci95": [balance - 0.1, balance + 0.1], "base": base, "seconds": 1.0, "folder": "trials/0"}
    for key, value in measured.items():
        trial.set_user_attr(key, value)


def fabricated(folder: Path, outcomes: list[tuple[float, list[float]]]) -> tuple[Search, optuna.Study]:
    """A study with finished trials of these (balance, mode fidelity)."""
    search = make_search("embedded", [*TINY, *ONE], folder)
    study = open_study(search, StudySettings())
    for index, (balance, fidelity) in enumerate(outcomes):
        trial = optuna.trial.create_trial(
            value=balance,
            params={"training.learning_rate": 1e-3 * (index + 1)},
            distributions={"training.learning_rate": optuna.distributions.FloatDistribution(5e-4, 1e-2, log=True)},
            intermediate_values={4: balance - 1},  # the loss, negated
        )
        set_measured(trial, balance, fidelity)
        study.add_trial(trial)
    return search, study


def summarised(search: Search, study: optuna.Study) -> Any:
    return summarise_search(study, search.space, search.floor, search.folder)


@pytest.mark.slow
def test_the_best_trial_keeps_both_modes(tmp_path: Path) -> None:
    outcomes = [(0.6, [0.99, 1.0]), (0.9, [0.5, 1.0]), (0.7, [0.96, 0.95]), (0.8, [1, 0.94])]
    search, study = fabricated(tmp_path, outcomes)
    result = summarised(search, study)
    assert result["best"]["number"] == 2 and [t["feasible"] for t in result["trials"]] == [True, False, True, False]
    text = search_table(result)
    assert "best: trial 2, balance 0.700 [0.600, 0.800]" in text
    assert text.count("below the floor") == 2 and "at least 0.95 in each mode" in text
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "search.json").read_text(encoding="utf-8"))["best"] == result["best"]
    violated = constraints(0.95)(study.trials[1])
    assert violated[0] == pytest.approx(0.45) and violated[1] < 0


def test_no_trial_keeps_both_modes(tmp_path: Path) -> None:
    result = summarised(*fabricated(tmp_path, [(0.9, [0.5, 1.0])]))
    assert result["best"] is None and "nothing can be recommended" in search_table(result)


def test_the_base_stands_in_the_table(tmp_path: Path) -> None:
    result = summarised(*fabricated(tmp_path, [(0.6, [0.99, 1.0])]))
    assert result["base"] == {"balance": 0.0, "score": 0.62, "mode_fidelity": [0.99, 1.0]}
    row = search_table(result).splitlines()[2]
    assert row.startswith("| base |") and "| 0.000 | 0.000 | 1.000 | 0.620 | 0.990, 1.000 | not tuned |" in row
    (tmp_path / "none").mkdir()
    assert summarised(*fabricated(tmp_path / "none", []))["base"] is None


# --- the objective ------------------------------------------------------------------------------------------------------

RATES = {"chat": 1.0, "skill": 0.0}


def trial_cell(folder: Path, tuned: dict[str, float], base: dict[str, float] = RATES) -> SweepCell:
    """A finished run of 100 items a benchmark; the rates are those of thinking, and non-thinking learns no skill."""
    for which, rates in (("base", base), ("tuned", tuned)):
        for mode in MODES:
            own = {**rates, "skill": base["skill"]} if mode == "non_thinking" else rates
            rows = [
                {"benchmark": name, "subset": "s", "index": i, "score": float(i < 100 * rate), "faithful": True}
                for name, rate in own.items()
                for i in range(100)
            ]
            write_jsonl(folder / "run" / "evaluation" / which / mode / "predictions.jsonl", rows)
    return SweepCell(0, "trial 0", 0, None, None, folder)  # type: ignore[arg-type]


def test_a_trial_that_learns_nothing_loses_against_one_that_learns_and_keeps(tmp_path: Path) -> None:
    nothing = measure_trial(trial_cell(tmp_path / "a", RATES))
    learns = measure_trial(trial_cell(tmp_path / "b", {"skill": 0.3, "chat": 0.8}))
    forgets = measure_trial(trial_cell(tmp_path / "c", {"skill": 0.9, "chat": 0.1}))
    # By the mean score, which a search once maximised, the order is the other way round.
    assert nothing["score"] > learns["score"]
    assert learns["balance"] == pytest.approx(0.3) and learns["ci95"][0] > 0.15
    assert nothing["balance"] == 0 == nothing["base"]["balance"] and nothing["kept"] == 1
    assert forgets["balance"] == pytest.approx(0.1) and forgets["learnt"] == pytest.approx(0.9)
    assert nothing["base"]["score"] == pytest.approx(0.5) and learns["mode_fidelity"] == [1.0, 1.0]


def test_what_was_learnt_is_a_part_of_the_room_above_the_base() -> None:
    names = ["thinking/a", "non_thinking/a", "thinking/b", "non_thinking/b"]
    base, tuned = np.array([0.2, 0.0, 0.4, 0.8]), np.array([0.6, 0.1, 0.4, 0.6])
    known = base >= 0.5
    # a: half of the room in thinking mode, its better one; b: nothing in the mode where it was not known
    assert trial_balance(names, base, tuned, known) == pytest.approx([0.25, 0.75, 0.25])
    assert trial_balance(names, base, base, known) == pytest.approx([0, 1, 0])
    assert trial_balance(names, base, base - 0.1, known)[0] == 0  # to fall is not to learn less than nothing
    everything = np.ones(4, bool)  # the base knows all: any rise counts
    high = np.array([0.8, 0.9, 1.0, 1.0])
    assert trial_balance(names, high, np.array([0.9, 0.9, 1.0, 1.0]), everything) == pytest.approx([0.25, 1, 0.25])


def finished_trials(losses: list[float], balances: list[float]) -> Any:
    pairs = zip(losses, balances, strict=True)
    return [{"state": "complete", "validation_loss": {"1": 9.0, "2": loss}, "balance": b} for loss, b in pairs]


def test_how_far_the_validation_loss_agrees_is_said_in_numbers() -> None:
    losses, balances = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.6, 0.4, 0.5, 0.3, 0.2, 0.1]
    found = loss_agreement(finished_trials(losses, balances))
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (6 * 35)) and found["n"] == 6
    low, high = found["ci95"] or []
    assert -0.2 < low < 0.6 < found["spearman"] < high < 1
    opposite = loss_agreement(finished_trials(losses, balances[::-1]))
    assert opposite["spearman"] == pytest.approx(-found["spearman"])
    perfect = loss_agreement(finished_trials(losses, losses[::-1]))
    assert perfect["spearman"] == pytest.approx(1) and perfect["ci95"][0] < 0.9  # type: ignore[index]
    pruned = [{"state": "pruned", "validation_loss": {"1": 9.0}, "balance": None}]
    assert loss_agreement([*finished_trials(losses, balances), *pruned]) == found  # type: ignore[list-item]
    for few in (finished_trials(losses[:3], balances[:3]), finished_trials(losses, [0.5] * 6), []):
        assert loss_agreement(few)["spearman"] is None


def test_the_table_says_how_far_the_loss_agrees(tmp_path: Path) -> None:
    result = summarised(*fabricated(tmp_path, [(b, [1.0, 1.0]) for b in (0.1, 0.2, 0.3, 0.4, 0.5)]))
    assert result["loss_agreement"]["n"] == 5 and result["loss_agreement"]["spearman"] == pytest.approx(1)
    assert "higher balance: +1.00 [" in search_table(result) and "5 finished trials" in search_table(result)


def test_a_search_does_not_change_the_base(tmp_path: Path) -> None:
    data = read_yaml(SPACE)
    data["space"]["model.load_in_4bit"] = {"choices": [True, False], "grid": [True], "source": "nowhere at all"}
    with pytest.raises(UserError, match="model.load_in_4bit would give trials different bases"):
        parse(SearchSpace, data, "space")


# --- bad input ----------------------------------------------------------------------------------------------------------


def test_storage_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [part for text in [*TINY, *ONE] for part in ("--set", text)]
    for url, words in (
        ("nonsense", "Give a URL that SQLAlchemy knows"),
        ("oddsql://host/name", "Give a URL that SQLAlchemy knows"),
        (f"sqlite:///{tmp_path}/none/study.db", "cannot be used"),
        ("postgresql://user:secret@localhost:1/name", ""),
    ):
        code = main(["search", "--storage", url, "--output-dir", str(tmp_path / "out"), *sets])
        error = capsys.readouterr().err
        assert code == 2 and words in error and "secret" not in error and "Traceback" not in error


def test_another_study_of_the_same_name_is_refused(tmp_path: Path) -> None:
    open_study(make_search("embedded", [*TINY, *ONE], tmp_path), StudySettings())
    with pytest.raises(UserError, match="tries other things"):
        open_study(make_search("embedded", [*TINY, *ONE, "seed=9"], tmp_path), StudySettings())
    with pytest.raises(UserError, match="tries other things"):
        open_study(make_search("embedded", [*TINY, *ONE], tmp_path), StudySettings(sampler="grid"))


def pretend(
    monkeypatch: pytest.MonkeyPatch, outcome: Callable[[SweepCell], float | str], at_once: bool = True
) -> list[list[str]]:
    """Runs that take no time and end with a balance, or fail with a reason; returns the batches that were run.

    Their validation losses go with the learning rate: the last of a batch has the lowest. They are seen at once and in order, or
    (``at_once=False``) in pieces, beginning with the last trial.
    """
    batches: list[list[str]] = []

    def run(cells: Any, where: Any, workers: int, watch: Any) -> None:
        batches.append([cell.value for cell in cells])
        losses = {c.number: {s: c.profile.training.learning_rate * 9 / s for s in (1, 2, 3)} for c in cells}
        for step in () if at_once else (1, 2):
            for cell in reversed(cells):
                watch(cell, {s: loss for s, loss in losses[cell.number].items() if s <= step})
        for cell in cells if at_once else reversed(cells):
            found = outcome(cell)
            if isinstance(found, str):
                note_failure(cell, 1, found)
            else:
                write_json(cell.report, {"balance": found})
            watch(cell, losses[cell.number])

    def measure(cell: SweepCell) -> dict[str, Any]:
        balance = read_json(cell.report)["balance"]
        measured = {"balance": balance, "learnt": balance, "kept": 1.0, "score": 0.5, "mode_fidelity": [1.0, 1.0]}
        return measured | {"ci95": [0.0, 1.0], "base": {"balance": 0.0, "score": 0.5, "mode_fidelity": [1.0, 1.0]}}

    monkeypatch.setattr(module, "run_cells", run)
    monkeypatch.setattr(module, "measure_trial", measure)
    return batches


def by_rate(cell: SweepCell) -> float:
    return cell.profile.training.learning_rate * 10


def trials_of(result: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in result["trials"]]


def test_storage_that_goes_away_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(_: SweepCell) -> float:
        (tmp_path / "study.db").write_bytes(b"no database any more" * 100)
        return 0.5

    pretend(monkeypatch, outcome)
    with pytest.raises(UserError, match="storage sqlite.* cannot be used .*run the same command again"):
        run_search("embedded", tmp_path, 3, [*TINY, *ONE])


def test_a_failed_trial_is_marked_and_the_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda cell: "The loss became nan at step 7." if cell.number == 1 else by_rate(cell))
    result = run_search("embedded", tmp_path, 4, [*TINY, *ONE], StudySettings(prune=False))
    assert [t["state"] for t in result["trials"]] == ["complete", "fail", "complete", "complete"]
    assert result["trials"][1]["reason"] == "The loss became nan at step 7." and "step 7" in search_table(result)
    again = run_search("embedded", tmp_path, 4, [*TINY, *ONE], StudySettings(prune=False))
    assert len(again["trials"]) == 4  # four were asked for, four are there
    more = run_search("embedded", tmp_path, 6, [*TINY, *ONE], StudySettings(prune=False))
    assert len(more["trials"]) == 6 and more["trials"][:4] == again["trials"]
    rates = [t["params"]["training.learning_rate"] for t in more["trials"]]
    assert len(set(rates)) == 6, "a study that goes on draws what it has tried before"


# --- batches ------------------------------------------------------------------------------------------------------------


def test_what_is_tried_and_pruned_does_not_depend_on_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("at once", "in pieces, the last first"):
        batches = pretend(monkeypatch, by_rate, name == "at once")
        found.append(run_search("embedded", tmp_path / name[:2], 9, [*TINY, *ONE], workers=2))
        assert [len(batch) for batch in batches] == [2, 2, 2, 2, 1]
    assert trials_of(found[0]) == trials_of(found[1])
    states = [trial["state"] for trial in found[0]["trials"]]
    assert states.count("pruned") >= 2 and states[:4] == ["complete"] * 4  # pruned only against earlier batches
    pruned = next(trial for trial in found[0]["trials"] if trial["state"] == "pruned")
    assert list(pruned["validation_loss"]) == ["1"] and pruned["balance"] is None


@pytest.mark.parametrize("died_at", [0, 1, 3, 4])
def test_a_study_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died_at: int
) -> None:
    pretend(monkeypatch, by_rate)
    whole = run_search("embedded", tmp_path / "whole", 7, [*TINY, *ONE], workers=2)

    def outcome(cell: SweepCell) -> float:
        if cell.number == died_at and not dead:
            dead.append(cell.number)
            raise KeyboardInterrupt
        return by_rate(cell)

    dead: list[int] = []
    pretend(monkeypatch, outcome)
    with pytest.raises(KeyboardInterrupt):
        run_search("embedded", tmp_path / "parts", 7, [*TINY, *ONE], workers=2)
    parts = run_search("embedded", tmp_path / "parts", 7, [*TINY, *ONE], workers=2)
    assert trials_of(parts) == trials_of(whole)


def test_a_batch_that_was_half_drawn_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, by_rate)
    whole = run_search("embedded", tmp_path / "whole", 5, [*TINY, *ONE], workers=2)
    suggest, drawn = Search.suggest, []

    def stop(search: Search, trial: Any, grid: bool) -> None:
        drawn.append(trial.number)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        suggest(search, trial, grid)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Search, "suggest", stop)
        run_search("embedded", tmp_path / "parts", 5, [*TINY, *ONE], workers=2)
    assert trials_of(run_search("embedded", tmp_path / "parts", 5, [*TINY, *ONE], workers=2)) == trials_of(whole)


def test_each_trial_has_draws_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, by_rate)
    rates = []
    for seed in (0, 1):
        found = run_search("embedded", tmp_path / str(seed), 5, [*TINY, *ONE], StudySettings(seed=seed, prune=False))
        rates += [trial["params"]["training.learning_rate"] for trial in found["trials"]]
    assert len(set(rates)) == 10


@pytest.mark.parametrize("engine", [StudyEngine(), StudyEngine("ray", address="127.0.0.1:1")])
def test_a_search_has_one_coordinator(tmp_path: Path, engine: StudyEngine) -> None:
    with only_coordinator(Storage(str(tmp_path))), pytest.raises(UserError, match="Another coordinator works on this"):
        run_search("embedded", tmp_path, 1, [*TINY, *ONE], engine=engine)
    assert not (tmp_path / "study.db").exists()


def test_a_ray_that_does_not_answer_is_said_before_anything_is_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", "--engine", "ray", "--address", "127.0.0.1:1", "--output-dir", str(tmp_path)]
    began = time.monotonic()
    assert main([*words, *(part for text in [*TINY, *ONE] for part in ("--set", text))]) == 2
    said = capsys.readouterr().err
    has_ray = importlib.util.find_spec("ray") is not None
    assert ("No Ray cluster answers at 127.0.0.1:1" if has_ray else "pip install") in said
    assert time.monotonic() - began < 10 and not (tmp_path / "study.db").exists()


# --- grids --------------------------------------------------------------------------------------------------------------


def test_one_and_two_workers_on_a_grid_give_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = []
    for workers in (1, 2):
        batches = pretend(monkeypatch, by_rate)
        result = run_search("embedded", tmp_path / str(workers), 99, [*TINY, *ONE], GRID, workers=workers)
        sets.append(sorted((t["params"]["training.learning_rate"], t["balance"]) for t in result["trials"]))
        assert [len(batch) for batch in batches] == ([1, 1, 1] if workers == 1 else [2, 1])
    assert sets[0] == sets[1] and len(sets[0]) == 3


def test_the_points_of_a_grid_are_not_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = pretend(monkeypatch, by_rate)
    result = run_search("embedded", tmp_path, 99, [*TINY, *ONE], GRID, workers=2)
    assert sum(map(len, batches)) == len(result["trials"]) == 3
    again = run_search("embedded", tmp_path, 99, [*TINY, *ONE], GRID, workers=2)
    assert again["trials"] == result["trials"] and sum(map(len, batches)) == 3


def test_a_point_whose_worker_was_killed_is_free_again() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))  # with one value to choose from
    first, second = study.ask(), study.ask()
    assert [trial.suggest_categorical("x", [1]) for trial in (first, second)] == [1, 1]
    assert take_point(second) is None  # whoever asks first, whatever its number
    assert take_point(first) == 1
    study.tell(second, state=optuna.trial.TrialState.FAIL)
    third = study.ask()
    third.suggest_categorical("x", [1])
    assert take_point(third) is None


def test_losses_are_read_from_checkpoints_and_from_the_record(tmp_path: Path) -> None:
    assert validation_losses(tmp_path) == {}
    for step in (9, 10):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        history = [{"step": s, "eval_loss": 1 / s} for s in range(9, step + 1)] + [{"step": step, "loss": 3.0}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}), encoding="utf-8")
    assert validation_losses(tmp_path) == {9: 1 / 9, 10: 1 / 10}
    (tmp_path / "checkpoints/checkpoint-10/trainer_state.json").write_text('{"log_hi', encoding="utf-8")
    assert validation_losses(tmp_path) == {9: 1 / 9}
    (tmp_path / "training.json").write_text(json.dumps({"eval_loss": [{"step": 12, "loss": 0.5}]}), encoding="utf-8")
    assert validation_losses(tmp_path) == {12: 0.5}


# --- for real -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_a_killed_worker_s_trial_is_run_again(
    warm_python: str, environment: dict[str, str], tmp_path: Path, shared: bool
) -> None:
    """Where the study lies in its folder, it is known that nobody else is at work, and the trial goes on under its number; in a
    storage that others may share, its heartbeat grows old, and it is given out again."""
    folder = tmp_path / "study"
    sets = [part for text in [*TINY, *ONE] for part in ("--set", text)]
    command = [warm_python, "-c", "import pipeline.studies.search_study as s, sys; s.HEARTBEAT_SECONDS, s.GRACE_SECONDS = 1, 3\n"
               "from pipeline.cli.main import main; sys.exit(main(sys.argv[1:]))"]  # fmt: skip
    command += ["search", "--trials", "2", "--output-dir", str(folder), "--json", *sets]
    command += ["--storage", f"sqlite:///{tmp_path / 'shared.db'}"] if shared else []
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(folder.glob("trials/*/pid")):  # the first trial's run has begun
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(4)  # its heartbeat grows old
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    again, *rest = sorted(result["trials"], key=lambda t: t["number"])
    if shared:
        killed, again, rest = again, rest[0], rest[1:]
        assert killed["state"] == "fail" and killed["reason"] is None
        assert again["params"] == killed["params"] and again["folder"] == killed["folder"]
    assert [t["state"] for t in [again, *rest]] == ["complete", "complete"]
    profile = yaml.safe_load((folder / again["folder"] / "profile.yaml").read_text(encoding="utf-8"))
    assert profile["training"]["learning_rate"] == again["params"]["training.learning_rate"]
    assert len(list(folder.glob("trials/base/*"))) == 1


def test_overrides_of_the_space_are_yaml(tmp_path: Path) -> None:
    search = make_search("embedded", [*TINY, *ONE], tmp_path)
    assert all("=" in text for text in search.settings)
    assert apply_overrides({}, search.settings)["training"]["early_stopping_patience"] is None
