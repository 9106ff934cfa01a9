from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.trainer import LOWEST, WINDOW, LengthGroupedSampler, exponential

LENGTHS = st.lists(st.integers(1, 300), max_size=700)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 16), st.integers(0, 5))
def test_every_example_comes_once_an_epoch(lengths: list[int], batch: int, seed: int) -> None:
    sampler = LengthGroupedSampler(lengths, batch, seed)
    assert sorted(sampler) == list(range(len(lengths))) and len(sampler) == len(lengths)
    assert list(sampler) == list(sampler)
    if len(lengths) >= batch:
        assert max(lengths) == max(lengths[i] for i in list(sampler)[:batch])  # what needs most memory comes first


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    lengths = [i % 50 for i in range(400)]
    sampler = LengthGroupedSampler(lengths, 8, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first != list(LengthGroupedSampler(lengths, 8, seed=2))
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_little_padding_and_the_mix_in_every_few_steps() -> None:
    """Half short chat, half long reasoning: padding as with sorted windows, but no long stretch of one kind."""
    lengths = [30 + i % 20 if i % 2 else 110 + i % 30 for i in range(8000)]
    batch = 8
    order = list(LengthGroupedSampler(lengths, batch, seed=0))
    batches = [[lengths[i] for i in order[b : b + batch]] for b in range(0, len(order), batch)]
    padded = sum(max(b) * len(b) for b in batches)
    assert padded < 1.05 * sum(lengths)
    long = [sum(length > 80 for length in b) / len(b) for b in batches]
    shares = [sum(long[i : i + 40]) / 40 for i in range(0, len(long) - 40)]
    assert min(shares) > 0.15 and max(shares) < 0.85  # sorted windows give 0 and 1
    runs = [sum(1 for _ in group) for group in _runs([share > 0.5 for share in long])]
    assert max(runs) < WINDOW / 2


def _runs(values: list[bool]) -> list[list[bool]]:
    result: list[list[bool]] = []
    for value in values:
        if not result or result[-1][0] != value:
            result.append([])
        result[-1].append(value)
    return result


def test_exponential_schedule() -> None:
    factor = exponential(10, 110)
    assert [factor(0), factor(5), factor(10)] == [0.0, 0.5, 1.0]
    assert factor(60) == pytest.approx(math.sqrt(LOWEST)) and factor(110) == pytest.approx(LOWEST)
    ratios = [factor(step + 1) / factor(step) for step in range(10, 109)]
    assert max(ratios) == pytest.approx(min(ratios))
