from __future__ import annotations

import subprocess
import sys
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


def test_freed_memory_is_given_back_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.training import callbacks

    seconds = [0.0]
    returned: list[float] = []
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(callbacks, "return_freed", lambda: returned.append(seconds[0]))
    callback = callbacks.FreedMemory()
    for seconds[0] in (3.0, 9.9, 10.0, 12.0, 19.9, 20.5):
        callback.on_step_end(None, None, None)
    assert returned == [10.0, 20.5]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap and /proc")
def test_what_was_freed_goes_back_to_the_system() -> None:
    program = """
from pipeline.training.measure import _resident, return_freed
held = [bytearray(100_000) for _ in range(2_000)]
between = held[::20]  # blocks that stay keep the heap from shrinking by itself
del held
before = _resident("VmRSS")
return_freed()
print(before - _resident("VmRSS"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50 * 10**6
