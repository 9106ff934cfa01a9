"""Which dose has nine tenths of the effect: by hand, at the edges, and under the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.studies.arms import load_arms
from pipeline.studies.dose import dose_response, dose_text, enough

DOSES = np.array([0, 0.05, 0.1, 0.4])


@pytest.mark.parametrize(
    ("effects", "expected"),
    [
        ([0, 0.05, 0.10, 0.10], 0.09),  # four fifths of the way between the second and the third
        ([0, 0.09, 0.10, 0.10], 0.05),  # exactly there
        ([0, 0.20, 0.10, 0.10], 0.0225),  # more than the largest dose: on the way to it
        ([0, 0.00, 0.00, 0.10], 0.37),
        ([0, 0.05, 0.10, 0.00], 0.4),  # the largest has no effect: nothing says that less would do
        ([0, 0.05, 0.10, -0.1], 0.4),
        ([0, 0.06, 0.02, 0.10], 0.325),  # a fall between two doses is no reason to take less
    ],
)
def test_enough(effects: list[float], expected: float) -> None:
    assert enough(DOSES, np.array(effects)) == pytest.approx(expected)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_enough_lies_between_the_doses_and_more_effect_needs_no_larger_one(effects: list[float]) -> None:
    found = float(enough(DOSES, np.array([0.0, *effects])))
    assert 0 <= found <= 0.4
    first, second, last = effects
    if last > 0:
        assert float(enough(DOSES, np.array([0.0, first, max(second, last), last]))) <= found + 1e-12


def test_response_of_arms() -> None:
    values = ["none", "other", "little", "much"]
    means = np.array([0.80, 0.10, 0.85, 0.90])
    draws = means + np.random.default_rng(0).normal(0, 0.005, (2000, 4))
    found = dose_response(values, [0.0, None, 0.1, 0.4], means, draws)
    assert found is not None
    assert [(e["value"], e["dose"]) for e in found["effects"]] == [("none", 0), ("little", 0.1), ("much", 0.4)]
    assert found["effects"][2]["effect"]["value"] == pytest.approx(0.1)
    low, high = found["effects"][2]["effect"]["ci95"]
    assert 0.08 < low < 0.1 < high < 0.12
    assert found["enough"]["value"] == pytest.approx(0.34)
    assert found["enough"]["ci95"][0] < 0.34 < found["enough"]["ci95"][1]
    text = dose_text(found)
    assert "90% of the effect of much" in text and "other" not in text


@pytest.mark.parametrize("doses", [[0.0, 0.1, None], [0.1, 0.2, 0.3], [None, None, None]])
def test_too_few_doses_or_none_without_the_remedy(doses: list[float | None]) -> None:
    assert dose_response(["a", "b", "c"], doses, np.zeros(3), np.zeros((10, 3))) is None


def test_the_doses_of_the_study_are_the_shares_that_its_arms_set() -> None:
    arms = load_arms("keep").arms
    doses = {name: arm.dose for name, arm in arms.items() if arm.dose is not None}
    assert doses == {"chat_50": 0, "recipe": 0.3, **{f"rehearsal_{n:02d}": n / 100 for n in (1, 5, 10, 20, 40)}}
    for name, dose in doses.items():
        shares = arms[name].set[0].partition("=")[2].strip("{}").split(", ")
        own = {key: float(value) for key, value in (text.split(": ") for text in shares) if key.startswith("own_")}
        assert sum(own.values()) == pytest.approx(dose, abs=1e-3)
        if dose:  # of each dose, half is chat, a third sums with thinking, a sixth sums without
            assert [own[k] / dose for k in ("own_chat", "own_sums", "own_sums_direct")] == pytest.approx(
                [1 / 2, 1 / 3, 1 / 6], abs=5e-3
            )
