"""glibc's allocator between training and decoding.

``MALLOC_MMAP_THRESHOLD_`` in the environment makes glibc return what is freed: a training with many shapes then holds a third of
the memory. A decoder frees and asks for the same sizes at every token, and is half as fast so (docs/real_weights.md). Within
``keeping_freed_memory`` glibc keeps what is freed, afterwards it returns it as the environment says.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "MALLOC_MMAP_THRESHOLD_"
# mallopt's parameters and glibc's limits on 64 bit (malloc.h, mallopt(3)).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST, _TRIM_AT_FIRST = 32 * 2**20, 128 * 2**10


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Keep freed memory meanwhile, where ``MALLOC_MMAP_THRESHOLD_`` asks to return it; elsewhere, nothing changes."""
    wanted = os.environ.get(VARIABLE, "")
    libc = ctypes.CDLL(None) if sys.platform == "linux" and wanted.isdigit() else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
    libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, int(wanted))
        libc.mallopt(_TRIM_THRESHOLD, int(os.environ.get("MALLOC_TRIM_THRESHOLD_", _TRIM_AT_FIRST)))
        libc.malloc_trim(0)
