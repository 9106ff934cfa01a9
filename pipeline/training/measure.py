"""What a training costs: tokens, memory, parameters."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.processes import size
from pipeline.model.memory import release

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from trl import SFTTrainer


class TokenCounter:
    """Counts the tokens that training really sees: all of them without padding, and those with loss.

    It hooks the model's forward pass, so it holds for every sampler, schedule and resumed run. What is counted stays on the
    device until somebody asks: to fetch it means to wait for all that the device was given before.

    Args:
        tokens, loss_tokens: counted before, where a run is resumed.
    """

    def __init__(self, model: PreTrainedModel, tokens: int = 0, loss_tokens: int = 0):
        self._tokens: int | torch.Tensor = tokens
        self._loss_tokens: int | torch.Tensor = loss_tokens
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if model.training and kwargs.get("labels") is not None:
            self.count(kwargs)

    def count(self, inputs: Mapping[str, Any]) -> None:
        """Count a batch, for a trainer that passes by the model's own forward pass."""
        mask = inputs.get("attention_mask")
        self._tokens = self._tokens + (inputs["input_ids"].numel() if mask is None else mask.sum())
        self._loss_tokens = self._loss_tokens + (inputs["labels"] != -100).sum()

    @property
    def tokens(self) -> int:
        return int(self._tokens)

    @property
    def loss_tokens(self) -> int:
        return int(self._loss_tokens)

    def close(self) -> None:
        self._hook.remove()


def peak_memory_bytes() -> int:
    """Peak memory in bytes, since a ``MemoryMeter`` was last made where it can set the mark back, else so far.

    Reserved on the GPU where there is one, else of this process (resident set).
    """
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    try:
        return _resident("VmHWM")
    except OSError:
        if sys.platform == "win32":
            import psutil

            return int(psutil.Process().memory_info().peak_wset)
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak if sys.platform == "darwin" else peak * 1024)


class MemoryMeter:
    """The most memory in use from now on, above what is in use now: of training, above the base that was loaded before it.

    What nobody holds is freed first, and the marks of the highest are set back, those of ``peak_memory_bytes`` among them. On a
    GPU: allocated bytes. On Linux: the resident set (``/proc/self/clear_refs``, see proc(5)). Elsewhere nothing is measured.
    """

    def __init__(self) -> None:
        import torch

        release()
        self._before = None
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return
        return_freed()  # it would otherwise be used again unseen
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _resident("VmRSS")
        except OSError:
            pass

    def read(self) -> int | None:
        """Bytes; None where it is not measured."""
        import torch

        if self._before is None:
            return None
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM")
        return max(0, int(peak - self._before))


def return_freed() -> None:
    """Have glibc give freed memory back to the system; elsewhere nothing is done."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident(field: str) -> int:
    """Bytes, from Linux' own account of this process: ``VmRSS`` now, ``VmHWM`` the highest since it was set back."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def over_processes(trainer: SFTTrainer, counter: TokenCounter) -> tuple[int, int, int]:
    """(tokens, loss-bearing tokens) of all processes together, and the peak memory in bytes of the one with most."""
    own = (counter.tokens, counter.loss_tokens, peak_memory_bytes())
    if size() == 1:
        return own
    import torch

    rows = trainer.accelerator.gather(torch.tensor([own], device=trainer.accelerator.device)).tolist()
    return sum(row[0] for row in rows), sum(row[1] for row in rows), max(row[2] for row in rows)


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """(trainable, all) parameters. A 4-bit weight counts as the parameters it stands for, not as its packed bytes."""
    trainable = total = 0
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue  # PEFT keeps the matrix of which it trains a copy
        state = getattr(parameter, "quant_state", None)
        size = int(state.shape.numel()) if state is not None else parameter.numel()
        total += size
        trainable += size if parameter.requires_grad else 0
    return trainable, total
