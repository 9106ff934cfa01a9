"""Every study kept in docs/results has the form that its reader expects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.studies.budget import budget_text, draw_budget
from pipeline.studies.curve import draw_sweep, fidelity_table, sweep_table
from pipeline.studies.methods import draw_methods, methods_table
from pipeline.studies.results import (
    KINDS,
    BudgetStudy,
    Methods,
    SamplingStudy,
    SearchResult,
    Sweep,
    Switches,
    load_result,
)
from pipeline.studies.sampling import draw_sampling, sampling_text
from pipeline.studies.search_result import draw_search, search_table
from pipeline.studies.switches import switches_text

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
SHOW = {
    Sweep: (sweep_table, draw_sweep),
    Methods: (methods_table, draw_methods),
    SearchResult: (search_table, draw_search),
    SamplingStudy: (sampling_text, draw_sampling),
    Switches: (switches_text, None),
    BudgetStudy: (budget_text, draw_budget),
}


def studies() -> list[Path]:
    """The named ones, and every document that is a sweep's."""
    paths = sorted(RESULTS.glob("*.json"))
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    return [p for p, d in found.items() if p.stem in KINDS or (isinstance(d, dict) and {"axis", "points"} <= set(d))]


@pytest.mark.parametrize("path", studies(), ids=lambda path: path.stem)
def test_every_kept_document_loads_whole_and_is_shown(path: Path, tmp_path: Path) -> None:
    kind: Any = KINDS.get(path.stem, Sweep)
    document = load_result(path, kind)
    assert document == json.loads(path.read_text(encoding="utf-8"))  # no key is unknown to the type
    table, draw = SHOW[kind]
    assert table(document)  # type: ignore[operator]
    if kind is Sweep:
        assert fidelity_table(document)
    if draw:
        draw(document, tmp_path / "study.png")  # type: ignore[operator]
        assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_search_of_before_says_that_it_has_to_be_run_again(tmp_path: Path) -> None:
    trial = {"number": 0, "state": "complete", "params": {"a": 1}, "score": 0.5, "mode_fidelity": [1.0, 1.0]}
    trial |= {"seconds": 1.0, "folder": "f", "reason": None, "validation_loss": {}, "feasible": True}
    before = {"study": "s", "objective": "The mean.", "space": {"a": {}}, "trials": [trial], "importance": {}}
    before["best"] = trial | {"ci95": [0.4, 0.6]}
    (tmp_path / "search.json").write_text(json.dumps(before), encoding="utf-8")
    text = search_table(load_result(tmp_path / "search.json", SearchResult))
    assert "best: trial 0, score 0.500 [0.400, 0.600]" in text and "has to be run again" in text


def test_another_document_is_refused_with_its_first_wrong_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="search.json: axis: Field required .*form of Sweep"):
        load_result(RESULTS / "search.json", Sweep)
    document = json.loads((RESULTS / "chat_share.json").read_text(encoding="utf-8"))
    document["points"][0]["gain"]["value"] = "much"
    (tmp_path / "sweep.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UserError, match="points.0.gain.value"):
        load_result(tmp_path / "sweep.json", Sweep)
