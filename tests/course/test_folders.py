"""Which folder a notebook works in: its own for its settings; no model is loaded here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.course.folders import folder_for
from pipeline.run import Run
from pipeline.settings import load_profile


def found(folder: Path, *overrides: str) -> Path:
    return folder_for(folder, load_profile("embedded", list(overrides)))


def opened(folder: Path, *overrides: str) -> Path:
    return Run.open(load_profile("embedded", list(overrides)), found(folder, *overrides), resume=True).folder


def test_a_new_folder_and_the_same_run_keep_their_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "main"
    assert found(folder) == folder and not folder.exists()
    opened(folder)
    assert found(folder) == found(folder, "evaluation.workers=3", "name=other") == folder
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("override", ["training.learning_rate=3e-3", "mix.chat_share=0.4", "evaluation.limit=3"])
def test_other_settings_get_a_folder_beside_it_and_find_it_again(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "main"
    opened(folder)
    own = opened(folder, override)
    assert own.parent == tmp_path and re.fullmatch(r"main-[0-9a-f]{6}", own.name)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{folder} holds a run of other settings" in said and str(own) in said
    assert opened(folder, override) == opened(folder, override, "evaluation.workers=3") == own
    assert opened(folder, override, "seed=7") not in (own, folder)
    assert opened(folder) == folder


def test_a_folder_that_is_no_run_is_left_to_the_run_to_refuse(tmp_path: Path) -> None:
    folder = tmp_path / "main"
    folder.mkdir()
    (folder / "letter.txt").write_text("mine", encoding="utf-8")
    assert found(folder) == folder
    with pytest.raises(UserError, match="is no run directory"):
        opened(folder)


def test_a_path_may_be_a_text(tmp_path: Path) -> None:
    assert folder_for(str(tmp_path / "main"), load_profile("embedded")) == tmp_path / "main"


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "main"
    opened(folder)
    (folder / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json"):
        found(folder)
