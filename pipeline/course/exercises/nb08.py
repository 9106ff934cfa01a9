"""Exercises of notebook 08: parameters of an adapter, the weight that rsLoRA gives it, what a shared base saves."""

from __future__ import annotations

import math
from typing import Any

from pipeline.course.exercises import exercise
from pipeline.course.lab import lesson, teach


@exercise("08.1")
def bottleneck_parameters(answer: Any) -> None:
    """``answer(hidden, reduction, layers)``: parameters of two bottleneck adapters a layer, biases counted."""
    assert callable(answer), "The answer should be a function of three whole numbers."
    for hidden, reduction, layers in ((128, 16, 4), (128, 2, 4), (1024, 16, 28), (4096, 64, 36)):
        given, width = answer(hidden, reduction, layers), hidden // reduction
        one = 2 * hidden * width
        assert given != layers * 2 * one, (
            "Both matrices have a bias: one of the bottleneck's width, one of the hidden size."
        )
        assert given != layers * (one + width + hidden), (
            "Every layer has two adapters, one after attention, one after the MLP."
        )
        assert given == layers * 2 * (one + width + hidden), (
            f"hidden {hidden}, reduction {reduction}: the bottleneck is {width} wide. Count a matrix down, a matrix up, and "
            "their biases, twice a layer."
        )


@exercise("08.2")
def equal_strength(answer: Any) -> None:
    """``answer(alpha, rank)``: the alpha that gives rsLoRA the strength that LoRA has with ``alpha`` at that rank."""
    assert callable(answer), "The answer should be a function of two numbers."
    for alpha, rank in ((64, 32), (16, 16), (32, 256), (10, 4)):
        given = answer(alpha, rank)
        assert isinstance(given, int | float), "The function should return a number."
        assert not math.isclose(given, alpha * math.sqrt(rank)) or rank == 1, (
            "The other way round: rsLoRA is the stronger."
        )
        assert math.isclose(given, alpha / math.sqrt(rank), rel_tol=1e-6), (
            f"At rank {rank}, LoRA with alpha {alpha} has the strength {alpha / rank:g}. rsLoRA divides by {math.sqrt(rank):g}: "
            "which alpha gives the same?"
        )


@exercise("08.3")
def megabytes_for_tenants(answer: Any) -> None:
    """Megabytes on a server for 100 tenants: one base of 16,000 MB and a LoRA of 175 MB each."""
    assert isinstance(answer, int | float) and not isinstance(answer, bool), (
        "The answer should be a number of megabytes."
    )
    assert answer != 1_617_500, "A shared base stands there once, not once a tenant."
    assert answer != 1_600_000, "That is full fine-tuning: a whole model for each tenant."
    assert answer == 33_500, "One base, and an adapter for each of the hundred."


@exercise("08.4")
def what_a_rank_buys(answer: Any) -> None:
    """Loss of rank 1 ÷ loss of rank 32 after 20 steps."""
    assert isinstance(answer, int | float) and not isinstance(answer, bool), "The answer should be a number."
    losses = [teach(lesson(0.0, 200), steps=20, rate=1e-2, rank=rank)["loss"] for rank in (1, 32)]
    one, many = (sum(loss[-5:]) for loss in losses)
    assert answer > 0.7 * one / many, "That is too low. Train both, and divide the means of the last five losses."
    assert answer < 1.4 * one / many, (
        "That is too high: more numbers do not help in proportion. Train both, and divide."
    )
