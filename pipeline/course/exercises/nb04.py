"""Exercises of notebook 04: the size of an adapter, the size of a step, the size of a 4-bit layer."""

from __future__ import annotations

import math
from typing import Any

from pipeline.course.exercises import exercise
from pipeline.course.lab import lesson, teach


@exercise("04.1")
def lora_parameters(answer: Any) -> None:
    """``answer(shapes, rank)``: parameters of A (rank × inputs) and B (outputs × rank), over all layers."""
    assert callable(answer), "The answer should be a function of the shapes (a list of pairs) and the rank."
    qwen3_8b = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 12288), (4096, 12288), (12288, 4096)]
    for shapes, rank in (
        ([(10, 30)], 2),
        ([(128, 512), (512, 128)], 16),
        ([(64, 64)], 1),
        (qwen3_8b * 36, 32),
        ([], 8),
    ):
        count = 0
        for inputs, outputs in shapes:
            count += math.prod((rank, inputs)) + math.prod((outputs, rank))
        given = answer(list(shapes), rank)
        shown = shapes if len(shapes) < 3 else f"{len(shapes)} layers"
        full = sum(math.prod(shape) for shape in shapes)
        assert given != full or full == count, "Those are the frozen weights of the layers. Count A and B instead."
        assert given == count, f"For {shown} and rank {rank}, {given!r} is not right. What shapes do A and B have?"


@exercise("04.2")
def steps_of_an_epoch(answer: Any) -> None:
    """(examples a step, steps an epoch) for 7,000 examples, 4 a device, 8 accumulated, 2 devices."""
    assert isinstance(answer, tuple | list) and len(answer) == 2, "The answer should be a pair: (examples, steps)."
    batch, steps = answer
    seen = 0
    for _device in range(2):
        for _accumulated in range(8):
            seen += 4
    assert batch == seen, "Before one step, every GPU collects several batches. Multiply all three numbers."
    assert steps != 7_000 / seen, "The last batch is smaller, but it is a step too: give a whole number."
    assert steps == len(range(0, 7_000, seen)), "Divide the examples by the batch. What happens to the rest?"


@exercise("04.3")
def bytes_of_a_layer(answer: Any) -> None:
    """Bytes of a 4096 × 4096 layer in NF4: half a byte a weight, and 4 bytes for each 64 weights."""
    assert isinstance(answer, int | float), "The answer should be a number of bytes."
    weights = 4096 * 4096
    packed, scales = weights // 2, weights // 64 * 4
    assert answer != weights * 2, "That is the layer in 16 bit."
    assert answer != packed, "Those are the packed weights alone. The scales need room too."
    assert answer != packed + weights // 64, "A scale is a float32: how many bytes is that?"
    assert answer == packed + scales, "Add two parts: the weights at 4 bit each, and the scales of all blocks."


@exercise("04.4")
def rate_that_learns(answer: Any) -> None:
    """A learning rate with which 20 steps bring the loss below 0.7."""
    assert isinstance(answer, int | float) and not isinstance(answer, bool), "The answer should be a number."
    assert 1e-5 <= answer <= 1, "The answer should lie between 1e-5 and 1."
    loss = teach(lesson(0.0, 200), steps=20, rate=answer, rank=4)["loss"]
    last = sum(loss[-5:]) / 5
    assert last < 0.7, (
        f"With {answer:g} the loss goes from {loss[0]:.2f} to {last:.2f}. Did it hardly move, or jump? Try other powers of ten."
    )
