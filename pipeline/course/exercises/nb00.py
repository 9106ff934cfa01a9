"""Exercises of notebook 00: overrides, parameter counts, the doctor's findings."""

from __future__ import annotations

from typing import Any

from pipeline.core.modes import MODES
from pipeline.course.exercises import exercise
from pipeline.course.lab import question, teach
from pipeline.settings import load_profile


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


@exercise("00.1")
def overrides_for_a_trial(answer: Any) -> None:
    """``answer``: overrides that make the embedded profile a short trial."""
    wanted = {"training.max_steps": 50, "training.learning_rate": 1e-3, "data.validation_fraction": 0.0}
    assert isinstance(answer, list) and all(isinstance(text, str) for text in answer), (
        "The answer should be a list of texts, each of the form key=value."
    )
    before, after = (_flat(load_profile("embedded", given).model_dump()) for given in ([], answer))
    for key, value in wanted.items():
        assert after[key] == value, f"{key} is {after[key]!r} with these overrides, {value!r} was asked for."
    changed = [key for key in after if after[key] != before.get(key) and key not in wanted]
    assert not changed, f"These were to stay as they are: {', '.join(changed)}."


@exercise("00.2")
def count_parameters(answer: Any) -> None:
    """``answer(header)``: the number of parameters that a safetensors header describes."""
    assert callable(answer), "The answer should be a function that takes a header (a dict)."
    first = {
        "a.weight": {"dtype": "BF16", "shape": [4, 3], "data_offsets": [0, 24]},
        "b.weight": {"dtype": "F32", "shape": [5], "data_offsets": [24, 44]},
    }
    assert answer(first) == 17, "Two tensors, 4 × 3 and 5 numbers. Count numbers, not bytes and not tensors."
    second = {"__metadata__": {"format": "pt"}, **first}
    assert answer(second) == 17, "A header may have the entry __metadata__, which is no tensor."
    third = {**second, "scale": {"dtype": "F32", "shape": [], "data_offsets": [44, 48]}}
    assert answer(third) == 18, "A tensor with an empty shape is a single number."


@exercise("00.3")
def what_blocks(answer: Any) -> None:
    """``answer(findings)``: names of the checks that have to be mended first, in their order."""
    assert callable(answer), "The answer should be a function that takes findings (a dict with the key 'checks')."

    def findings(*checks: tuple[str, bool, bool]) -> dict[str, Any]:
        return {"checks": [{"name": name, "ok": ok, "required": required} for name, ok, required in checks]}

    healthy = findings(("python", True, True), ("accelerator", True, False))
    assert list(answer(healthy)) == [], "Where everything passed, nothing blocks: the list is empty."
    no_gpu = findings(("python", True, True), ("accelerator", False, False))
    assert list(answer(no_gpu)) == [], "The embedded profile runs without a GPU. Look at the key 'required'."
    broken = findings(("memory", False, True), ("disk", True, True), ("bf16", False, False), ("unsloth", False, True))
    assert list(answer(broken)) == ["memory", "unsloth"], (
        "Return the names of the checks that are required and did not pass, in the order of the findings."
    )


@exercise("00.4")
def a_sum_that_needs_thinking(answer: Any) -> None:
    """``answer``: two numbers whose sum the model gets right with thinking and wrong without."""
    assert isinstance(answer, tuple | list) and len(answer) == 2, (
        "The answer should be a pair of numbers such as (58, 67)."
    )
    assert all(isinstance(n, int) and 0 < n < 1000 for n in answer), "Both should be whole numbers from 1 to 999."
    a, b = answer
    asked = [question(f"What is {a} + {b}?", mode, str(a + b)) for mode in MODES]
    thinking, direct = teach([], asked, steps=0)["replies"]
    assert thinking["right"], (
        f"With thinking the model said {thinking['text']!r}, which is wrong too. Take numbers of another length."
    )
    assert not direct["right"], "The model got it right without thinking as well. Where is it harder to add at once?"
