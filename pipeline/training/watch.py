"""Losses, gradient norms and counts of a training, kept where they arise until somebody looks.

To ask a GPU for a number is to wait until it has done all that was asked of it before. So what every batch gives stays on the
device, and is fetched together: at a step that logs, saves or validates. On a CPU a look costs nothing, and comes at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SHOWN = 60  # tokens of a batch's first row that are kept to be shown
# A gradient scaler starts at 2^16 and halves at each step it skips; after so many it is below any that helps.
SETTLING = 24


@dataclass(frozen=True)
class Seen:
    """A value of a step, with what is needed to speak of it."""

    what: str  # the beginning of a sentence
    step: int
    value: torch.Tensor
    rate: float  # learning rate
    rows: int | None  # of the batch; None: not known
    tokens: int
    first: torch.Tensor | None  # ids of the first row's beginning


@dataclass
class Watch:
    """What was seen since the last look.

    Args:
        at_once: whether a look costs nothing here.
    """

    at_once: bool
    seen: list[Seen] = field(default_factory=list)

    def add(self, what: str, step: int, value: torch.Tensor, rate: float, ids: torch.Tensor | None) -> None:
        """Keep a value, [] or [n]; ``ids``: the batch, [rows, tokens]."""
        first = None if ids is None else ids[0][:SHOWN].detach().clone()
        rows, tokens = (None, 0) if ids is None else (len(ids), int(ids.shape[1]))
        self.seen.append(Seen(what, step, value.detach(), rate, rows, tokens, first))

    def look(self) -> Seen | None:
        """The first value since the last look that is NaN or infinite; None: there is none. One wait for the device."""
        import torch

        seen, self.seen = self.seen, []
        if not seen:
            return None
        fine = torch.stack([torch.isfinite(s.value).all() for s in seen]).tolist()
        return next((s for s, good in zip(seen, fine, strict=True) if not good), None)


@dataclass
class Scaled:
    """Gradients of float16 are scaled up, and a step whose gradients overflow is skipped until the scale has settled.

    So an infinite norm is normal, but not for ever.
    """

    skipped: int = 0  # one after the other

    def fine(self, norm: float) -> bool:
        """Take a step's norm; False: so many were skipped that the scale is not what is wrong."""
        self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
        return self.skipped <= SETTLING


def without_gradient(model: Any) -> tuple[list[str], int]:
    """Names of the trained parameters that the first step gave no gradient, and how many are trained.

    Experts of a mixture may have had no token yet, and do not count.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [name for name, p in trained if p.grad is None and ".experts." not in name], len(trained)
