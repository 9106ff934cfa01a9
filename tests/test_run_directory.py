"""Who may use a run directory, and under which settings; no model is loaded here."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.cli.main import main
from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint, read_json, write_json, write_text
from pipeline.run import Run
from pipeline.run.directory import begun
from pipeline.second.stage import Stage
from pipeline.settings import Profile as ProfileSettings
from pipeline.settings import load_profile, load_recipe, parse, read_yaml


def opened(folder: Path, *overrides: str, resume: bool = False, force: bool = False) -> Run:
    return Run.open(load_profile("embedded", list(overrides)), folder, resume=resume, force=force)


def fill(folder: Path, trained: bool = False) -> None:
    """What stages would have left."""
    write_json(folder / "mix" / "manifest.json", {})
    for which in ("base", "tuned"):
        for mode in ("thinking", "non_thinking"):
            write_json(folder / "evaluation" / which / mode / "cell.json", {"model_id": "other", "cell": {}})
    if trained:
        write_json(folder / "training.json", {"steps": 4})


def test_other_settings_are_refused_with_every_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    opened(folder)
    with pytest.raises(UserError, match=r"learning_rate is 0\.001 there .*--resume --force"):
        opened(folder, "training.learning_rate=3e-3", resume=True)
    with pytest.raises(UserError, match="belongs to another run"):
        opened(folder, "training.learning_rate=3e-3", force=True)  # --force alone is not enough
    assert read_yaml(folder / "profile.yaml")["training"]["learning_rate"] == 0.001


def test_a_run_and_a_second_stage_begin_with_the_same_record(tmp_path: Path) -> None:
    profile = load_profile("embedded")
    common = begun(profile, {"any": 1})
    assert common["settings_fingerprint"] == fingerprint({"any": 1})
    assert (common["profile"], common["finished"]) == ("embedded", None) and "python" in common["versions"]
    assert all(common["versions"].values())  # what is not installed is not named
    run = opened(tmp_path / "run")
    stage = Stage.open("preference", profile, tmp_path / "stage")
    kept = {name: read_json(tmp_path / name / f"{name}.json") for name in ("run", "stage")}
    assert set(kept["run"]) == {*common, "commit", "notes"} and set(kept["stage"]) == {*common, "kind", "start"}
    assert run.cells("base") is stage.cells("before") is None and run.history() == []
    fill(run.folder)
    assert run.cells("base") == {"thinking": {}, "non_thinking": {}}
    result = stage.finish({"steps": 1}, {"thinking": {}}, {})  # type: ignore[typeddict-item]
    assert (result["training"], result["evaluation"]) == ({"steps": 1}, {"before": {"thinking": {}}, "after": {}})
    assert result["finished"] == read_json(tmp_path / "stage" / "stage.json")["finished"] is not None


def test_a_directory_from_before_a_setting_existed_is_still_that_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    opened(folder)
    older = read_yaml(folder / "profile.yaml")
    del older["prefix"]
    write_text(folder / "profile.yaml", yaml.safe_dump(older, sort_keys=False))
    record = read_json(folder / "run.json")
    write_json(folder / "run.json", record | {"settings_fingerprint": "of a file that was not changed by hand"})
    with pytest.raises(UserError, match="prefix is None there"):
        opened(folder, resume=True)
    made_then = fingerprint({name: read_yaml(folder / f"{name}.yaml") for name in ("profile", "recipe")})
    write_json(folder / "run.json", record | {"settings_fingerprint": made_then})
    assert opened(folder, resume=True).folder == folder
    with pytest.raises(UserError, match="belongs to another run"):
        opened(folder, "prefix.virtual_tokens=3", "method=prefix", resume=True)


@pytest.mark.parametrize(
    ("override", "mix_stays", "evaluation_stays"),
    [
        ("training.learning_rate=3e-3", True, True),
        ("lora.rank=4", True, True),
        ("mix.total=300", False, True),
        ("data.validation_fraction=0.1", False, True),
        ("seed=7", False, True),
        ("evaluation.limit=3", True, False),
        ("model.load_in_4bit=false", True, False),
    ],
)
def test_force_takes_over_and_drops_what_the_old_settings_had_made(
    override: str, mix_stays: bool, evaluation_stays: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    opened(folder)
    fill(folder)
    run = opened(folder, override, resume=True, force=True)
    assert (folder / "mix").exists() == mix_stays
    assert (folder / "evaluation" / "base" / "thinking" / "cell.json").exists() == evaluation_stays
    (note,) = read_json(folder / "run.json")["notes"]
    assert override.partition("=")[0] in note and "--force" in note
    assert read_yaml(folder / "profile.yaml") == run.resolved()["profile"]
    assert opened(folder, override, resume=True).folder == folder  # it is theirs now
    with pytest.raises(UserError, match="belongs to another run"):
        opened(folder, resume=True)


@pytest.mark.parametrize(
    "override",
    [
        "grpo.beta=0.5",
        "preference.learning_rate=1e-3",
        "data.workers=2",
        "evaluation.workers=3",
        "evaluation.batch_size=8",
        "sweep.overrides=[training.max_steps=5]",
        "estimate=null",
        "name=other",
        "training.report_to=[tensorboard]",
    ],
)
def test_settings_that_change_nothing_of_a_run_make_no_other_one(override: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    opened(folder)
    fill(folder, trained=True)
    with pytest.raises(UserError, match="add --resume"):
        opened(folder, override)
    run = opened(folder, override, resume=True)
    assert read_yaml(folder / "profile.yaml") == run.resolved()["profile"]
    assert (folder / "mix").exists() and read_json(folder / "run.json")["notes"] == []
    with pytest.raises(UserError, match="belongs to another run"):
        opened(folder, override, "lora.rank=4", resume=True)


def test_force_cannot_change_a_finished_training(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    opened(folder)
    fill(folder, trained=True)
    with pytest.raises(UserError, match=r"--force cannot change .*lora\.rank is 32 there"):
        opened(folder, "lora.rank=4", resume=True, force=True)
    assert read_json(folder / "run.json")["notes"] == []
    opened(folder, "evaluation.limit=3", resume=True, force=True)
    assert (folder / "training.json").exists()


def test_force_needs_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--output-dir", str(tmp_path / "run"), "--force"]) == 2
    assert "needs --resume" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_secrets_are_in_no_file_and_make_no_other_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    profile = load_profile("embedded")
    profile.evaluation.dataset_args = {"gsm8k": {"api_key": "planted-key", "url": "https://bob:planted-pw@host/x"}}
    Run.open(profile, folder)
    assert "planted" not in "".join(path.read_text(encoding="utf-8") for path in folder.iterdir())
    profile.evaluation.dataset_args = {"gsm8k": {"api_key": "planted-other", "url": "https://eve:planted@host/x"}}
    Run.open(profile, folder, resume=True)
    stored = parse(ProfileSettings, read_yaml(folder / "profile.yaml"), "profile.yaml")
    Run.open(stored, folder, resume=True, recipe=load_recipe(profile.recipe, profile.mix))  # as report does


def test_a_report_of_an_exchanged_adapter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = opened(folder)
    fill(folder, trained=True)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"other weights than .*evaluate --which tuned"):
        run.report()


def test_a_note_is_kept_once(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    for _ in range(2):
        run.note("the tracker wandb could not start")
    assert read_json(tmp_path / "run" / "run.json")["notes"] == ["the tracker wandb could not start"]
