"""How torch and Python say that memory does not suffice, and how what nobody holds is given back."""

from __future__ import annotations

import gc
import sys

# How torch's allocators, CPU and GPU, and the GPU's libraries say it, besides by their own types.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means that memory did not suffice."""
    import torch

    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def release() -> None:
    """Free what nobody holds any more, models among it, and give back to the device what torch keeps of it for later.

    A model and what was patched into it hold each other, so only the collector finds that nobody else does.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
