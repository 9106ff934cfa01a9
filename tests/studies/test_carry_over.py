"""Verdicts on the course's claims from three sweeps, and the whole command once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipeline.core.errors import UserError
from pipeline.studies.carry_over import CarryOver, carry_over_text, claims_of, run_carry_over, verdict

rate = st.floats(0, 1)


def estimate(value: float, half: float = 0.05) -> Any:
    return {"value": value, "ci95": [value - half, value + half]}


@given(rate, rate, rate, rate)
def test_a_verdict_needs_intervals_that_do_not_touch(a: float, b: float, c: float, d: float) -> None:
    low = {"value": (a + b) / 2, "ci95": sorted([a, b])}
    high = {"value": (c + d) / 2, "ci95": sorted([c, d])}
    said = verdict(low, high)  # type: ignore[arg-type]
    assert (said == "holds") == (min(c, d) > max(a, b))
    assert (said == "contrary") == (max(c, d) < min(a, b))
    assert verdict(high, low) == {"holds": "contrary", "contrary": "holds"}.get(said, said)  # type: ignore[arg-type]
    assert verdict(None, high) == "cannot be said"  # type: ignore[arg-type]


def sweep(points: dict[Any, tuple[float, float, float]], known: bool = True) -> Any:
    """Value → gain, keep, fidelity in thinking mode."""
    return {
        "known": ["thinking/chat"] if known else [],
        "learnt": ["thinking/skill"],
        "points": [
            {
                "value": value,
                "gain": estimate(gain),
                "keep": estimate(keep),
                "modes": {"thinking": {"mode_fidelity": estimate(fidelity, 0.01)}},
            }
            for value, (gain, keep, fidelity) in points.items()
        ],
    }


RATIO = {0.0: (0.9, 0.5, 1.0), 0.25: (0.85, 0.7, 1.0), 0.5: (0.8, 0.8, 1.0), 1.0: (0.1, 0.8, 1.0)}


def test_the_claims_are_read_from_the_right_places() -> None:
    studies = {
        "ratio": sweep(RATIO),
        "mask": sweep({"masked": (0.9, 0.9, 0.99), "trained": (0.9, 0.9, 0.6)}),
        "cure": sweep({"plain": (0.9, 0.85, 1.0), "rehearsal": (0.9, 0.86, 1.0)}),
    }
    found = claims_of(studies)
    unmeasured = "cannot be said"
    assert [claim["verdict"] for claim in found] == ["holds", unmeasured, "holds", "holds", "not shown", unmeasured]
    assert found[0]["values"] == {"share 0": estimate(0.5), "share 0.25 or 0.5": estimate(0.8)}
    assert found[2]["values"]["share 0.25 or 0.5"] == estimate(0.85)
    assert carry_over_text({"claims": found}).count("**holds**") == 3  # type: ignore[typeddict-item]
    studies["mask"] = sweep({"masked": (0.9, 0.9, 0.6), "trained": (0.9, 0.9, 0.99)})
    studies["ratio"] = sweep(RATIO, known=False)
    assert [claim["verdict"] for claim in claims_of(studies)][:4] == [
        "cannot be said",
        "cannot be said",
        "holds",
        "contrary",
    ]


def test_the_distance_is_that_of_what_was_not_learnt() -> None:
    def at(kl: float) -> Any:
        modes = {
            "thinking": {"skill": estimate(9.0), "chat": estimate(kl)},
            "non_thinking": {"chat": estimate(kl + 0.2)},
        }
        return {"distance": modes}

    ratio = sweep(RATIO, known=False)
    for point, kl in zip(ratio["points"], [0.5, 0.1, 0.3, 0.2], strict=True):
        point.update(at(kl))
    cure = sweep({"plain": (0.9, 0.85, 1.0), "rehearsal": (0.9, 0.86, 1.0)}, known=False)
    for point in cure["points"]:
        point.update(at(0.1))
    found = claims_of({"ratio": ratio, "mask": sweep({}), "cure": cure})
    away, own = found[1], found[5]
    assert away["verdict"] == "holds"
    assert away["values"]["share 0"]["value"] == pytest.approx(0.6)
    assert away["values"]["share 0.25 or 0.5"]["ci95"] == pytest.approx([0.15, 0.25])
    assert own["verdict"] == "not shown"


def test_a_value_that_failed_gives_no_verdict() -> None:
    studies = {"ratio": sweep({0.0: (0.9, 0.5, 1.0)}), "mask": sweep({}), "cure": sweep({})}
    assert {claim["verdict"] for claim in claims_of(studies)} == {"cannot be said"}


def test_one_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seeds 1"):
        run_carry_over("embedded", "m", tmp_path / "out", seeds=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.nightly
def test_the_command(pipeline_command: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    few = [
        "mix.total=200",
        "training.max_steps=2",
        "training.eval_steps=2",
        "training.save_steps=2",
        "evaluation.limit=4",
    ]
    few.append("evaluation.kl_items=0")
    pipeline_command("carry-over", "--output-dir", str(tmp_path / "out"), "--workers", "1", sets=few)
    result = json.loads((tmp_path / "out" / "carry_over.json").read_text(encoding="utf-8"))
    TypeAdapter(CarryOver).validate_python(result)
    assert len(result["claims"]) == 6 and set(result["studies"]) == {"ratio", "mask", "cure"}
    page = (tmp_path / "out" / "carry_over.md").read_text(encoding="utf-8")
    assert "## cure" in page and result["claims"][0]["claim"] in page
