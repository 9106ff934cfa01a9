"""Forest plots of ablations: what is drawn is what the study says, and the kept studies of the course can be drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.studies.forest import draw_forest, panels

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
ABLATIONS = ("empty_think", "share_unit", "loss_on", "precision", "rank", "length", "larger_empty_think")


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_kept_ablation_has_its_picture(name: str, tmp_path: Path) -> None:
    study = read_json(RESULTS / f"{name}.json")
    draw_forest(study, tmp_path / "forest.png")
    assert (tmp_path / "forest.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [path.name for path in tmp_path.iterdir()] == ["forest.png"]


def test_the_panels_are_the_study_s_own_numbers() -> None:
    study = read_json(RESULTS / "empty_think.json")
    found = dict(panels(study))
    assert list(found) == [
        "chat, thinking",
        "arithmetic, thinking",
        "skill, thinking",
        "mode fidelity, thinking",
        "mode fidelity, non-thinking",
    ]
    trained = found["mode fidelity, thinking"][1]
    assert trained["value"] == study["points"][1]["modes"]["thinking"]["mode_fidelity"]["value"]
    low, high = trained["from_first"]["ci95"]
    assert low < trained["from_first"]["value"] < high < 0  # with loss on the block it thinks less


def test_one_value_is_no_comparison(tmp_path: Path) -> None:
    study = read_json(RESULTS / "empty_think.json")
    with pytest.raises(UserError, match="one value only"):
        draw_forest(study | {"points": study["points"][:1]}, tmp_path / "forest.png")
    assert not list(tmp_path.iterdir())
