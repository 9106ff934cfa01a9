"""Exercises of notebook 00: overrides, the parameters of a 4-bit checkpoint, the doctor's findings, a sum that needs thinking."""

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
    wanted = {"training.max_steps": 50, "training.learning_rate": 2e-3, "data.validation_fraction": 0.0}
    assert isinstance(answer, list) and all(isinstance(text, str) for text in answer), (
        "The answer should be a list of texts, each of the form key=value."
    )
    before, after = (_flat(load_profile("embedded", given).model_dump()) for given in ([], answer))
    for key, value in wanted.items():
        assert after[key] == value, f"{key} is {after[key]!r} with these overrides, {value!r} was asked for."
    changed = [key for key in after if after[key] != before.get(key) and key not in wanted]
    assert not changed, f"These were to stay as they are: {', '.join(changed)}."


def four_bit_header() -> dict[str, Any]:
    """The header of a small checkpoint as bitsandbytes writes it in 4 bit: a linear layer of 8 × 16, its bias, a norm."""
    layer = "model.layers.0.mlp.up_proj"
    tensors: dict[str, tuple[str, list[int]]] = {
        f"{layer}.bias": ("BF16", [8]),
        f"{layer}.weight": ("U8", [64, 1]),  # 128 parameters, two a byte
        f"{layer}.weight.absmax": ("U8", [2]),
        f"{layer}.weight.nested_absmax": ("F32", [1]),
        f"{layer}.weight.nested_quant_map": ("F32", [256]),
        f"{layer}.weight.quant_map": ("F32", [16]),
        f"{layer}.weight.quant_state.bitsandbytes__nf4": ("U8", [85]),
        "model.norm.weight": ("BF16", [16]),
    }
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    return header | {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in tensors.items()}


@exercise("00.2")
def parameters_in_four_bit(answer: Any) -> None:
    """``answer(header)``: the parameters of the model whose 4-bit checkpoint has this header."""
    assert callable(answer), "The answer should be a function that takes a header (a dict)."
    whole = {"__metadata__": {}, "model.norm.weight": {"dtype": "F32", "shape": [5]}}
    assert answer(whole) == 5, "A header whose only tensor is a norm of 5 numbers in F32 has 5 parameters."
    packed = whole | {"up_proj.weight": {"dtype": "U8", "shape": [6, 1]}}
    assert answer(packed) == 17, (
        "A weight of 6 bytes (dtype U8) holds two parameters a byte; the 5 of the norm come on top."
    )
    scaled = packed | {"up_proj.weight.absmax": {"dtype": "F32", "shape": [4]}}
    assert answer(scaled) == 17, "A scale is no parameter. How does its name end, and how does that of a weight?"
    assert answer(four_bit_header()) == 128 + 8 + 16, (
        "For the header of the cell above the number is not right. Which of its entries are weights or biases?"
    )


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
