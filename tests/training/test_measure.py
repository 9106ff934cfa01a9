from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.training import measure
from pipeline.training.measure import MemoryMeter, peak_memory_bytes


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the mark of the highest can be set back on Linux alone"
)
def test_the_peak_is_that_of_the_training() -> None:
    """What was needed before, for an evaluation say, is no part of it."""
    before = torch.ones(40_000_000)  # 160 MB
    del before
    meter = MemoryMeter()
    base = peak_memory_bytes()
    training = torch.ones(10_000_000)
    assert 30e6 < peak_memory_bytes() - base < 80e6
    assert 30e6 < (meter.read() or 0) < 80e6
    del training


def test_on_a_gpu_the_marks_are_set_back_after_freeing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(measure, "release", lambda: calls.append("free"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 12)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 20)
    assert MemoryMeter().read() == 7 and peak_memory_bytes() == 20
    assert calls == ["free", "reset"]
