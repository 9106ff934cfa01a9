"""The type that a model computes in, and the one that trained matrices of a base are written in.

Unsloth computes in bfloat16 where the processor has instructions for it, and in float32 on a CPU without them. Speed, memory
and scores depend on it, so a run says which it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.core.doctor import cpu_flags
from pipeline.settings import ModelSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

STORED = "bfloat16"  # of trained matrices of a base, as published models have it, whatever was computed in
BFLOAT16_INSTRUCTIONS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})


def cpu_has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16 itself; emulated, it is many times slower."""
    return bool(cpu_flags() & BFLOAT16_INSTRUCTIONS)


def computing_dtype(settings: ModelSettings) -> str:
    """``float32``, ``bfloat16`` or ``float16``: what ``model.dtype`` comes to on this machine."""
    if settings.dtype != "auto":
        return settings.dtype
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if cpu_has_bfloat16() else "float32"


def mixed_precision(settings: ModelSettings) -> dict[str, bool]:
    """``bf16`` and ``fp16`` of a trainer: as the model computes. What is trained stays float32 and is cast for each product.

    float16 has so small a range that gradients are scaled up, and the first steps overflow until the scale has settled. A CPU
    trains in it not at all.
    """
    import torch

    gpu, dtype = torch.cuda.is_available(), computing_dtype(settings)
    native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else dtype == "bfloat16"
    return {"bf16": native and dtype != "float16", "fp16": gpu and dtype == "float16"}


def precision(settings: ModelSettings) -> str:
    """How a base is held and computed, in a word: ``4bit_float32``, ``16bit_bfloat16``, ``32bit_float32``, …"""
    dtype = computing_dtype(settings)
    held = 4 if settings.load_in_4bit else 32 if dtype == "float32" else 16
    return f"{held}bit_{dtype}"


def is_base_matrix(name: str) -> bool:
    """Whether a trained parameter belongs to the base itself, and not to what a method put beside it."""
    return "lora_" not in name


def as_stored(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in the type that matrices of a base are written in; numbers that are no floats stay."""
    import torch

    return tensor.to(getattr(torch, STORED)) if tensor.is_floating_point() else tensor


@contextlib.contextmanager
def stored_type(model: PreTrainedModel) -> Iterator[None]:
    """Within it, all matrices of the base stand in the type that they are written in; afterwards in the one before."""
    before = [(p, p.dtype) for name, p in model.named_parameters() if is_base_matrix(name)]
    for parameter, _ in before:
        parameter.data = as_stored(parameter.data)
    try:
        yield
    finally:
        for parameter, dtype in before:
            parameter.data = parameter.data.to(dtype)
