"""Whether glibc hands large blocks back, looked at by what it mapped."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from pipeline.core.allocator import VARIABLE

PROGRAM = """
import ctypes
from pipeline.core.allocator import keeping_freed_memory

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = type(
    "Info", (ctypes.Structure,), {"_fields_": [(f"f{i}", ctypes.c_size_t) for i in range(10)]}
)

def mapped():
    before = libc.mallinfo2().f3  # hblks: blocks that were mapped on their own
    held = [bytearray(2**20) for _ in range(10)]
    return libc.mallinfo2().f3 - before

outside = mapped()
with keeping_freed_memory():
    inside = mapped()
print(outside, inside, mapped())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="glibc 2.33 or later says what it maps",
)
def test_freed_memory_is_kept_meanwhile_and_returned_afterwards() -> None:
    environment = os.environ | {VARIABLE: "65536"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    outside, inside, after = map(int, done.stdout.split())
    assert outside >= 10 and inside == 0 and after >= 10
