"""How torch and Python say that memory does not suffice. Import it where torch is loaded already."""

from __future__ import annotations

import torch

# How torch's allocators, CPU and GPU, and the GPU's libraries say it, besides by their own types.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means that memory did not suffice."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)
