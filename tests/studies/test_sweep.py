from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.core.files import write_json, write_jsonl
from pipeline.core.modes import MODES
from pipeline.run import Run
from pipeline.settings import load_profile
from pipeline.studies.arms import Arm, Arms, SweepCell, axis_key, load_arms, plan_arms, plan_axis, settings_for
from pipeline.studies.curve import balance, fidelity_table, pareto, summarise_sweep, sweep_table
from pipeline.studies.failures import log_failure
from pipeline.studies.pool import cell_failure, runs_at_once
from pipeline.studies.sweep import run_sweep, sweep_arms

ROOT = Path(__file__).resolve().parents[2]


# --- axes and values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "key"),
    [
        ("chat_share", "mix.chat_share"),
        ("training.learning_rate", "training.learning_rate"),
        ("learning_rate", "training.learning_rate"),
        ("unit", "mix.unit"),  # a setting of the profile before one of the recipe
        ("load_in_4bit", "model.load_in_4bit"),
        ("on_shortage", "recipe.on_shortage"),
        ("recipe.clean.near_duplicates.threshold", "recipe.clean.near_duplicates.threshold"),
    ],
)
def test_axes(axis: str, key: str) -> None:
    assert axis_key(axis) == key


def test_an_axis_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'chat_shere'.*Did you mean '(mix\.)?chat_share'"):
        axis_key("chat_shere")
    with pytest.raises(UserError, match="could be recipe.clean.score.field, .*name one of them whole"):
        axis_key("field")


def test_values_are_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mix.chat_share.*much"):
        plan_axis("embedded", [], "chat_share", ["0.1", "much"], 1, tmp_path)
    with pytest.raises(UserError, match="given twice"):
        plan_axis("embedded", [], "chat_share", ["0.5", "0.50"], 1, tmp_path)
    with pytest.raises(UserError, match="at least one value and one seed"):
        plan_axis("embedded", [], "chat_share", [], 1, tmp_path)
    with pytest.raises(UserError, match="on_shortage"):
        plan_axis("embedded", [], "on_shortage", ["panic"], 1, tmp_path)
    assert not any(tmp_path.iterdir())


def test_cells_differ_in_value_and_seed_alone(tmp_path: Path) -> None:
    key, cells = plan_axis("embedded", ["seed=5"], "chat_share", ["0", "0.5"], 2, tmp_path)
    assert key == "mix.chat_share"
    assert [(c.value, c.seed, c.recipe.sources[0].share) for c in cells] == [
        (0.0, 5, 0.0), (0.0, 6, 0.0), (0.5, 5, 0.5), (0.5, 6, 0.5),
    ]  # fmt: skip
    plain = [c.profile.model_copy(update={"seed": 0, "mix": None}) for c in cells]
    assert all(p == plain[0] for p in plain)
    _, cells = plan_axis("embedded", [], "recipe.on_shortage", ["error", "repeat"], 1, tmp_path)
    assert [c.recipe.on_shortage for c in cells] == ["error", "repeat"]


# --- the curve ----------------------------------------------------------------------------------------------------------

ITEMS = 60


def fabricate(
    folder: Path,
    rates: dict[float, dict[str, float]],
    seeds: int = 2,
    bases: dict[float, dict[str, float]] | None = None,
) -> tuple[list[SweepCell], dict[Any, float]]:
    """Cells with predictions drawn at the given rates (the base's stand under -1, or in ``bases``), and each one's true mean."""
    cells: list[SweepCell] = []
    means: dict[Any, list[float]] = {}
    rng = np.random.default_rng(0)
    for value, of in rates.items():
        if value < 0:
            continue
        for seed in range(seeds):
            cell = SweepCell(len(cells), value, seed, None, None, folder / f"{value}-{seed}")  # type: ignore[arg-type]
            cells.append(cell)
            for which, own in (("base", bases[value] if bases else rates[-1]), ("tuned", of)):
                random = np.random.default_rng(9) if which == "base" else rng  # every cell has the same base
                for mode in MODES:
                    rows = []
                    for name in ("chat", "skill"):
                        scores = (random.random(ITEMS) < own[f"{mode}/{name}"]).astype(float)
                        key = (value if which == "tuned" else None, mode, name)
                        means.setdefault(key, []).extend(scores)
                        for index, score in enumerate(scores):
                            faithful = bool(random.random() < own.get("fidelity", 1.0))
                            row = {"benchmark": name, "subset": "s", "index": index, "score": score}
                            rows.append(row | {"faithful": faithful})
                    rng.shuffle(rows)  # type: ignore[arg-type]
                    write_jsonl(cell.folder / "run" / "evaluation" / which / mode / "predictions.jsonl", rows)
            write_json(cell.report, {"training": {}})
    return cells, {key: float(np.mean(scores)) for key, scores in means.items()}


BASE = {"thinking/chat": 0.97, "thinking/skill": 0.0, "non_thinking/chat": 0.97, "non_thinking/skill": 0.0}
RATES = {
    -1: BASE,
    0.0: BASE | {"thinking/skill": 0.9, "thinking/chat": 0.3, "non_thinking/chat": 0.4},
    0.5: BASE | {"thinking/skill": 0.88, "thinking/chat": 0.95},
    0.9: BASE | {"thinking/skill": 0.86, "thinking/chat": 0.95, "fidelity": 0.7},
    1.0: BASE | {"thinking/skill": 0.02},
}


def test_the_curve_and_its_recommendation(tmp_path: Path) -> None:
    cells, means = fabricate(tmp_path, RATES)
    result = summarise_sweep("mix.chat_share", cells, tmp_path)
    assert [p["value"] for p in result["points"]] == [0.0, 0.5, 0.9, 1.0]
    for point in [{"value": None, "modes": result["base"]}, *result["points"]]:
        for mode in MODES:
            for name in ("chat", "skill"):
                entry = point["modes"][mode]["benchmarks"][name]
                assert entry["value"] == pytest.approx(means[point["value"], mode, name])
                assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
                assert entry["n"] == 2 * ITEMS
    assert result["learnt"] == ["thinking/skill"]
    assert result["known"] == ["thinking/chat", "non_thinking/chat"]
    assert result["recommended"] == [0.5]  # 0.9 is as good, but for its fidelity
    assert set(result["pareto"]) <= {0.0, 0.5, 0.9, 1.0} and 0.5 in result["pareto"]
    falls = result["points"][0]["modes"]["thinking"]["benchmarks"]["chat"]
    stays = result["points"][1]["modes"]["thinking"]["benchmarks"]["chat"]
    assert falls["p"] < 0.001 < 0.05 < stays["p"] and falls["ci95"][1] < stays["ci95"][0]
    assert json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8")) == result
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    text = sweep_table(result)
    assert "recommended: 0.5" in text and "120 replies a cell over 2 seed(s)" in text and result["rule"] in text


def test_runs_share_cores_but_not_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    profile = load_profile("embedded", ["model.cpu_threads=2"])
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runs_at_once(profile) == 8 and runs_at_once(load_profile("embedded", ["model.cpu_threads=null"])) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runs_at_once(profile) == 1


def test_failed_cells_are_named_and_the_rest_counts(tmp_path: Path) -> None:
    cells, _ = fabricate(tmp_path, {k: RATES[k] for k in (-1, 0.0, 0.5)})
    cells[0].report.unlink()
    write_json(cells[0].folder / "failed.json", {"reason": "The loss became nan at step 7."})
    result = summarise_sweep("mix.chat_share", cells, tmp_path)
    assert [p["value"] for p in result["points"]] == [0.5]
    assert result["failed"] == [{"value": 0.0, "seed": 0, "reason": "The loss became nan at step 7."}]
    assert "failed: 0.0 (seed 0): The loss became nan" in sweep_table(result)
    for cell in cells:
        cell.report.unlink(missing_ok=True)
    with pytest.raises(UserError, match="No value of the sweep is complete.*nan at step 7"):
        summarise_sweep("mix.chat_share", cells, tmp_path)


BAR = "\r 50%|█████     | 2/4 [00:00<00:00,  5.12it/s]"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (f"[3/5] train\n{BAR}error: The loss became nan at step 3.\n", "The loss became nan at step 3."),
        (f"{BAR}\nerror: The loss became nan at step 3.\n{BAR}", "The loss became nan at step 3."),
        (f"error: first\n{BAR}error: second{BAR}\n", "second"),
        (f"Traceback (most recent call last):\nValueError: no such thing\n{BAR}\n{BAR}", "ValueError: no such thing"),
        (f"{BAR}{BAR}\n", None),
        ("", None),
    ],
)
def test_the_reason_is_found_whatever_the_progress_bar_does(log: str, reason: str | None) -> None:
    assert log_failure(log) == reason


def test_the_reason_of_a_cell_is_what_its_run_noted_else_the_signal_else_the_log(tmp_path: Path) -> None:
    cell = SweepCell(0, 1e30, 0, None, None, tmp_path / "cell")  # type: ignore[arg-type]
    write_json(cell.folder / "run" / "failure.json", {"command": "run", "error": "The loss became inf at step 2."})
    (cell.folder / "log.txt").write_text(f"{BAR}error: something{BAR}", encoding="utf-8")
    assert cell_failure(cell, 2) == "The loss became inf at step 2."
    (cell.folder / "run" / "failure.json").unlink()
    assert cell_failure(cell, -9) == "ended by signal 9"
    assert cell_failure(cell, 2) == "something"
    assert json.loads((cell.folder / "failed.json").read_text(encoding="utf-8"))["reason"] == "something"
    (cell.folder / "log.txt").write_text(BAR, encoding="utf-8")
    assert cell_failure(cell, 1) == "no output"


def test_a_run_notes_its_failure_and_forgets_it_when_it_goes_on(tmp_path: Path) -> None:
    run = Run(None, None, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UserError), run.noting_failure("train"):
        raise UserError("The loss became nan at step 3.")
    noted = json.loads((tmp_path / "failure.json").read_text(encoding="utf-8"))
    assert (noted["command"], noted["error"]) == ("train", "The loss became nan at step 3.")
    with run.noting_failure("train"):
        assert not (tmp_path / "failure.json").exists()
    assert not (tmp_path / "failure.json").exists()


def test_values_that_are_no_numbers_are_drawn_too(tmp_path: Path) -> None:
    cells, _ = fabricate(tmp_path, {k: RATES[k] for k in (-1, 0.0, 0.5)}, seeds=1)
    for cell in cells:
        cell.value = {0.0: "rows", 0.5: "tokens"}[cell.value]
    result = summarise_sweep("mix.unit", cells, tmp_path)
    assert [p["value"] for p in result["points"]] == ["rows", "tokens"] and (tmp_path / "sweep.png").exists()


def test_pareto_and_balance() -> None:
    assert pareto([0.9, 0.8, 0.8, 0.1], [0.3, 0.9, 0.8, 1.0]) == [0, 1, 3]
    assert pareto([0.5, 0.5], [0.5, 0.5]) == [0, 1]
    base = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])  # [names, values]
    tuned = np.array([[0.4, 0.8], [0.9, 0.6], [0.5, 0.6]])
    learnt, known = np.array([True, False, False]), np.array([[False] * 2, [True] * 2, [True] * 2])
    gain, keep, both = balance(base, tuned, learnt, known)
    assert gain.tolist() == [0.4, 0.8] and keep.tolist() == [0.9, 0.6] and both.tolist() == [0.5, 0.6]
    lost = base * [[1], [0], [0]]  # a draw in which the base knows nothing
    assert balance(lost, tuned, learnt, known)[1].tolist() == [1.0, 1.0]
    none = np.zeros(3, bool)  # nothing was learnt anywhere: what is kept decides
    assert balance(base, tuned, none, known)[2].tolist() == [0.9, 0.6]
    draws = balance(np.stack([base, lost]), np.stack([tuned, tuned]), learnt, known)
    assert draws.shape == (2, 3, 2) and draws[0].tolist() == [gain.tolist(), keep.tolist(), both.tolist()]


def test_every_value_is_measured_against_its_own_base(tmp_path: Path) -> None:
    """As where an axis changes the model: one base knows chat well, the other half as well; both lose nothing."""
    weak = {"thinking/chat": 0.6, "thinking/skill": 0.5, "non_thinking/chat": 0.6, "non_thinking/skill": 0.5}
    tuned = {"4bit": weak | {"thinking/skill": 0.9}, "16bit": BASE | {"thinking/skill": 0.4}}
    cells, _ = fabricate(tmp_path, {0.0: tuned["16bit"], 1.0: tuned["4bit"]}, bases={0.0: BASE, 1.0: weak})
    result = summarise_sweep("model.load_in_4bit", cells, tmp_path)
    strong, other = result["points"]
    skill = [p["modes"]["thinking"]["benchmarks"]["skill"]["value"] for p in (strong, other)]
    bases = [p["base"]["thinking"]["benchmarks"]["skill"]["value"] for p in (strong, other)]
    assert bases[0] == 0 and bases[1] > 0.35 and result["base"] == strong["base"]
    assert [strong["gain"]["value"], other["gain"]["value"]] == pytest.approx([skill[0], skill[1] - bases[1]])
    # Against the first value's base, a third of what the second one's base knew would seem to be lost.
    assert other["keep"]["value"] > 0.85 and other["keep"]["ci95"][1] > 0.9
    assert other["modes"]["non_thinking"]["benchmarks"]["chat"]["p"] > 0.05
    assert other["modes"]["thinking"]["benchmarks"]["skill"]["p"] < 0.001
    text = sweep_table(result)
    assert "| base of 0.0 |" in text and "| base of 1.0 |" in text and "| base of 1.0 |" in fidelity_table(result)
    same, _ = fabricate(tmp_path / "same", {k: RATES[k] for k in (-1, 0.0)}, seeds=1)
    assert sweep_table(summarise_sweep("x", same, tmp_path / "same")).count("| base |") == 1


def test_values_that_are_asked_other_items_are_refused(tmp_path: Path) -> None:
    for axis, values in (("evaluation.limit", ["6", "7"]), ("evaluation.seed", ["1", "2"])):
        with pytest.raises(UserError, match=f"{axis} decides which items are asked"):
            plan_axis("embedded", [], axis, values, 1, tmp_path)
    assert plan_axis("embedded", [], "evaluation.limit", ["6"], 2, tmp_path)[0] == "evaluation.limit"


# --- for real -----------------------------------------------------------------------------------------------------------

TINY = ["training.max_steps=4", "training.eval_steps=4", "evaluation.limit=6", "mix.total=200"]


@pytest.mark.slow
@pytest.mark.parametrize("python", ["forked", pytest.param("real", marks=pytest.mark.nightly)])
def test_a_sweep_is_killed_resumed_and_a_bad_cell_leaves_the_others_alone(
    python: str, warm_python: str, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    sets = [part for text in TINY for part in ("--set", text)]
    command = [warm_python if python == "forked" else sys.executable, "-m", "pipeline", "sweep"]
    command += ["--axis", "learning_rate", "--values", "1e-3,1e30", "--workers", "1"]
    command += ["--output-dir", str(folder), "--json", *sets]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    first = folder / "cells" / "00-seed3407"
    deadline = time.monotonic() + 240
    while not (first / "run" / "training.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    adapter = first / "run" / "adapter" / "adapter_model.safetensors"
    before = adapter.stat().st_mtime_ns
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    # The cell outlived the sweep; it was waited for, and nothing was done twice.
    assert adapter.stat().st_mtime_ns == before
    assert [p["value"] for p in result["points"]] == [0.001]
    (failed,) = result["failed"]
    assert failed["value"] == 1e30 and "loss" in failed["reason"]
    bases = [
        json.loads((c / "run/evaluation/base/thinking/cell.json").read_text()) for c in (folder / "cells").iterdir()
    ]
    assert bases[0] == bases[1] and len(list((folder / "base").iterdir())) == 1
    # The base was evaluated before the cells, and by none of them.
    logs = [(cell / "log.txt").read_text(encoding="utf-8", errors="replace") for cell in (folder / "cells").iterdir()]
    assert not any("embedded_chat" in log.split("[3/5]")[0] for log in logs)
    with pytest.raises(UserError, match="holds another sweep"):
        run_sweep("embedded", "learning_rate", ["1e-3"], 1, folder, TINY)


def test_command_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for arguments, words in (
        (["--axis", "chat_shear", "--values", "0"], "There is no setting 'chat_shear'"),
        (["--values", "0,x"], "mix.chat_share"),
        (["--values", "0"], "is not empty and holds no sweep"),
    ):
        assert main(["sweep", *arguments, "--output-dir", str(tmp_path)]) == 2
        assert words in capsys.readouterr().err


# --- arms ---------------------------------------------------------------------------------------------------------------

ABLATIONS = sorted((ROOT / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("path", ABLATIONS, ids=[path.stem for path in ABLATIONS])
def test_every_ablation_is_valid_and_its_arms_differ(path: Path, tmp_path: Path) -> None:
    arms = load_arms(str(path))
    assert arms.question
    cells = plan_arms("embedded", [], arms, 1, tmp_path)
    assert [cell.value for cell in cells] == list(arms.arms) and len(cells) >= 2
    assert len({json.dumps([c.profile.model_dump(), c.recipe.model_dump()]) for c in cells}) == len(cells)
    if path.stem in ("keep", "cure"):
        return  # every arm of keep says the shares of the recipe that they have in common; cure's arms differ in a switch alone
    # One arm is the profile itself, or differs from it in what all arms share: the first, of the presets the last.
    own = -1 if path.stem == "presets" else 0
    default = plan_arms(
        "embedded", settings_for(arms, ["embedded"]), Arms(arms={"ours": Arm()}), 1, tmp_path, tmp_path
    )[0]
    assert plan_arms("embedded", [], arms, 1, tmp_path, tmp_path)[own].folder == default.folder


def test_sweeps_share_cells_by_their_settings(tmp_path: Path) -> None:
    _, axis = plan_axis("embedded", [], "chat_share", ["0.25", "0.5"], 2, tmp_path / "a", tmp_path / "cells")
    arms = Arms.model_validate({"arms": {"ours": {}, "large": {"set": ["lora.rank=64"]}}})
    named = plan_arms("embedded", [], arms, 2, tmp_path / "b", tmp_path / "cells")
    same = {cell.folder for cell in axis} & {cell.folder for cell in named}
    assert same == {cell.folder for cell in axis if cell.value == 0.5} and len(same) == 2
    assert len({cell.folder for cell in [*axis, *named]}) == 6


def test_cells_are_shorter_as_the_profile_says_unless_told_otherwise(tmp_path: Path) -> None:
    _, cells = plan_axis("embedded", [], "chat_share", ["0.5"], 1, tmp_path)
    assert cells[0].profile.training.max_steps == 400
    _, cells = plan_axis("embedded", ["training.max_steps=1400"], "chat_share", ["0.5"], 1, tmp_path)
    assert cells[0].profile.training.max_steps == 1400


def test_a_local_file_of_a_source_that_a_study_lacks_is_left_out(tmp_path: Path) -> None:
    chat, own = "mix.local.chat=chat.jsonl", "mix.local.own_chat=own.jsonl"
    _, cells = plan_axis("smollm2-135m", [chat, own, "mix.without=[own_maths]"], "chat_share", ["0.5"], 1, tmp_path)
    assert [source.path for source in cells[0].recipe.sources if source.name == "chat"] == ["chat.jsonl"]
    arms = load_arms("ablations/cure.yaml")
    _, rehearsal = plan_arms("smollm2-135m", [chat, own, "mix.without=[own_maths]"], arms, 1, tmp_path)
    questions = {s.name: s.questions for s in rehearsal.recipe.sources if s.questions is not None}
    assert questions["own_chat"].path == "own.jsonl" and "own_maths" not in questions
    with pytest.raises(UserError, match=r"no source 'own_chta'.*"):  # a name that neither recipe has is still an error
        plan_axis("smollm2-135m", ["mix.local.own_chta=own.jsonl"], "chat_share", ["0.5"], 1, tmp_path)


def test_an_arm_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no arm 'chat_5'.*chat_50"):
        sweep_arms("embedded", "ablations/keep.yaml", 1, tmp_path / "s", only=["recipe", "chat_5"])
    assert main(["sweep", "--values", "0,1", "--only", "recipe", "--output-dir", str(tmp_path / "s")]) == 2
    assert not (tmp_path / "s").exists()


def test_bad_arms(tmp_path: Path) -> None:
    file = tmp_path / "arms.yaml"
    for text, words in (
        ("arms: {}", "at least 1 item"),
        ("arms: {a: {sett: []}}", "unknown key 'arms.a.sett'"),
        ("question: [", "not valid YAML"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=words):
            load_arms(str(file))
    file.write_text("arms: {a: {set: [training.lerning_rate=1]}}", encoding="utf-8")
    with pytest.raises(UserError, match="arm 'a': .*lerning_rate"):
        plan_arms("embedded", [], load_arms(str(file)), 1, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_arms(str(tmp_path / "none.yaml"))


def test_differences_are_taken_from_the_first_arm(tmp_path: Path) -> None:
    cells, _ = fabricate(tmp_path, {-1: BASE, 0.5: RATES[0.5], 0.0: RATES[0.0]})
    result = summarise_sweep("arms", cells, tmp_path, "Does it forget?")
    first, second = result["points"]
    assert "from_first" not in first["modes"]["thinking"]["mode_fidelity"]
    chat = second["modes"]["thinking"]["benchmarks"]["chat"]
    fell = chat["value"] - first["modes"]["thinking"]["benchmarks"]["chat"]["value"]
    assert chat["from_first"]["value"] == pytest.approx(fell) and chat["from_first"]["ci95"][1] < 0
    assert 0 <= chat["mode_fidelity"]["ci95"][0] <= chat["mode_fidelity"]["value"] <= 1
    by_benchmark = fidelity_table(result)
    assert "chat (think)" in by_benchmark and f"{chat['mode_fidelity']['value']:.3f} [" in by_benchmark
    text = sweep_table(result)
    assert text.startswith("Does it forget?") and f"{fell:+.3f} [" in text and "] *" in text
