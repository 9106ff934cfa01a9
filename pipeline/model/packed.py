"""On a CPU, a matrix of weights is laid out once for its products, not anew for every token.

oneDNN reads weights in blocks of its own. In bfloat16 torch multiplies with it: given a plain matrix, it lays it out at every
call, which takes as long as the product while few rows are decoded. torch can do it beforehand ("prepacking", as its compiler
does); the products are the same to the last bit. In float32 torch multiplies with MKL. With weights laid out beforehand, oneDNN
is faster for matrices that are not small (benchmarks/README.md); the sums are taken in another order, so they differ by rounding.
An adapter of LoRA on such a matrix is computed as PEFT computes it, with fewer calls.

The operators are those that torch's own compiler calls; they are not documented. Where they are not there, nothing is packed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pipeline.model.room import free_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Forward = Callable[..., torch.Tensor]

_SHARE = 0.25  # of the free memory that the second layout of the weights may take
_ROWS = 32  # for which the layout is chosen
_FEW = 256  # rows up to which it is the faster one in bfloat16; in float32 it is for more too
_LARGE = 2**18  # numbers from which a matrix in float32 is laid out; smaller ones are no faster


@contextlib.contextmanager
def packed_weights(model: PreTrainedModel) -> Iterator[None]:
    """Decode with packed weights, and afterwards with the plain ones; see the module.

    The weights must not change meanwhile. Layers of another kind (4 bit, float16, DoRA) stay as they are, and all do
    where the packed weights would take more than a quarter of the free memory.
    """
    changed: list[Any] = []
    try:
        if _can_pack(model):
            for module in model.modules():
                forward = _packed(module) or _with_lora(module)
                if forward is not None:
                    module.forward = forward
                    changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _can_pack(model: PreTrainedModel) -> bool:
    import torch

    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not (hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
        return False
    wanted = sum(module.weight.nbytes for module in model.modules() if _is_plain(module))
    free = free_bytes(model.device)
    return free is None or wanted <= _SHARE * free


def _is_plain(module: Any) -> bool:
    """A linear layer that nobody has changed, in bfloat16 where oneDNN has it, or a large one in float32."""
    import torch

    if type(module) is not torch.nn.Linear or "forward" in vars(module):
        return False
    if module.weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return module.weight.dtype == torch.float32 and module.weight.numel() >= _LARGE


def _packed(module: Any) -> Forward | None:
    import torch

    if not _is_plain(module):
        return None
    with torch.no_grad():
        weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), _ROWS)
    product, bias, dtype = torch.ops.mkldnn._linear_pointwise, module.bias, module.weight.dtype
    limit = _FEW if dtype == torch.bfloat16 else float("inf")

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.shape[:-1].numel() > limit or x.dtype != dtype or torch.is_grad_enabled():
            return torch.nn.functional.linear(x, module.weight, bias)
        return product(x, weight, bias, "none", [], "")

    return forward


def _with_lora(module: Any) -> Forward | None:
    """PEFT's layer of LoRA with one plain adapter, in evaluation: Wx + s·BAx, the second part in the adapter's precision."""
    if not hasattr(module, "lora_A"):
        return None
    from peft.tuners.lora.layer import Linear

    if type(module) is not Linear or "forward" in vars(module) or module.disable_adapters or module.merged:
        return None
    active = list(module.active_adapters)
    names = [name for name in active if name in module.lora_A]
    if len(names) != 1 or names[0] in module.lora_variant or module.lora_bias[names[0]] or module.training:
        return None
    name, base = names[0], module.base_layer
    down, up = module.lora_A[name].weight, module.lora_B[name].weight

    def forward(x: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
        import torch.nn.functional as functional

        if module.disable_adapters or module.active_adapters != active or others or more:  # changed meanwhile
            return Linear.forward(module, x, *others, **more)
        result = base(x)
        low = functional.linear(functional.linear(x.to(down.dtype), down), up)
        return (result + low * module.scaling[name]).to(result.dtype)

    return forward
