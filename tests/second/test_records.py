"""Results of earlier versions still have the form that this one writes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.second.records import GRPOResult, PreferenceArms
from pipeline.training.records import StageTrainingRecord, read_record, require_form, write_record

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.mark.parametrize(("name", "form"), [("preference", PreferenceArms), ("grpo", GRPOResult)])
def test_measured_results_still_load(name: str, form: type[Any]) -> None:
    document = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert require_form(document, form, name) is document
    broken = copy.deepcopy(document)
    training = broken["arms"][0]["training"] if name == "preference" else broken["training"]
    training["steps"] = "many"
    with pytest.raises(UserError, match=r"training\.steps"):
        require_form(broken, form, name)


def test_a_record_without_its_curve_is_refused() -> None:
    with pytest.raises(UserError, match=r"training\.json .* a StageTrainingRecord: curve"):
        require_form({"steps": 1}, StageTrainingRecord, "training.json")


def test_what_has_not_the_form_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "training.json"
    with pytest.raises(UserError, match=r"training\.json .* curve"):
        write_record(path, {"steps": 1}, StageTrainingRecord)
    assert not path.exists()
    names = ("steps", "seconds", "resumed_from", "peak_memory_bytes", "trainable_parameters", "total_parameters")
    record = dict.fromkeys(names, 1) | {"curve": [], "eval_curve": []}
    assert write_record(path, record, StageTrainingRecord) == read_record(path, StageTrainingRecord) == record
