"""Bottleneck adapters (Houlsby et al. 2019): a small network after the attention and after the MLP of every layer.

In: a model whose layers end in ``o_proj`` and ``down_proj``. Out: the same model with an adapter behind each of them, before
its output is added to the residual stream; the weights of the adapters alone as a safetensors file.

PEFT has no such method, and the ``adapters`` library, which has, does not import beside this transformers (docs/methods.md).
Import this module after unsloth, as it imports torch.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.core.errors import UserError

PLACES = ("o_proj", "down_proj")
WEIGHTS = "adapter_model.safetensors"
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "silu": nn.functional.silu,
}


class Bottleneck(nn.Module):
    """A linear layer and its adapter: ``y = base(x)``, then ``y + up(activation(down(y)))``.

    ``up`` starts at zero, so the model starts as the base (Houlsby et al. start near zero, for the same reason). The adapter
    is float32 and computes in float32, whatever the base's precision.
    """

    def __init__(self, base: nn.Linear, width: int, activation: str):
        super().__init__()
        size, device = base.out_features, base.weight.device
        self.base_layer, self.activation, self.enabled = base, activation, True
        self.down = nn.Linear(size, width, device=device, dtype=torch.float32)
        self.up = nn.Linear(width, size, device=device, dtype=torch.float32)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(…, inputs)`` → ``(…, outputs)``, as the layer it stands for."""
        y = self.base_layer(x)
        if not self.enabled:
            return y
        hidden = _ACTIVATIONS[self.activation](self.down(y.to(self.down.weight.dtype)))
        return y + self.up(hidden).to(y.dtype)


def add_bottlenecks(model: Any, reduction: float, activation: str) -> Any:
    """Freeze the model and put an adapter behind every ``o_proj`` and ``down_proj``; changes the model and returns it.

    ``model.save_pretrained`` writes the adapters alone from now on, as it does for a PEFT model.

    Args:
        reduction: hidden size ÷ width of the bottleneck.

    Raises:
        UserError: the model has no such layers, or they are quantised.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in PLACES]
    if not found:
        raise UserError(f"Method adapter needs layers named {' and '.join(PLACES)}, and this model has none.")
    for name in found:
        parent, _, leaf = name.rpartition(".")
        base = model.get_submodule(name)
        if type(base) is not nn.Linear:
            raise UserError(f"Method adapter needs a 16-bit base, but {name} is {type(base).__name__}.")
        width = max(1, round(base.out_features / reduction))
        setattr(model.get_submodule(parent), leaf, Bottleneck(base, width, activation))
    model.save_pretrained = types.MethodType(_save, model)
    return model


def has_bottlenecks(model: nn.Module) -> bool:
    """Whether ``add_bottlenecks`` was here."""
    return any(isinstance(module, Bottleneck) for module in model.modules())


@contextlib.contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within it the model is its base."""
    inside = [module for module in model.modules() if isinstance(module, Bottleneck)]
    for module in inside:
        module.enabled = False
    try:
        yield
    finally:
        for module in inside:
            module.enabled = True


def _names(model: nn.Module) -> list[str]:
    inside = [name for name, module in model.named_modules() if isinstance(module, Bottleneck)]
    return [f"{name}.{part}.{what}" for name in inside for part in ("down", "up") for what in ("weight", "bias")]


def _save(model: nn.Module, save_directory: str, state_dict: dict[str, torch.Tensor] | None = None, **_: Any) -> None:
    """Stands for ``save_pretrained``: the adapters alone, in float32."""
    state = model.state_dict() if state_dict is None else state_dict
    Path(save_directory).mkdir(parents=True, exist_ok=True)
    weights = {name: state[name].detach().cpu().contiguous() for name in _names(model)}
    save_file(weights, str(Path(save_directory) / WEIGHTS), metadata={"format": "pt"})


def load_bottlenecks(model: nn.Module, folder: Path) -> None:
    """Read adapters that ``add_bottlenecks`` has put on the model from a folder.

    Raises:
        UserError: the file is missing or holds adapters of other places or another size.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise UserError(f"{folder} holds no adapter (no {WEIGHTS}).")
    state, own = load_file(str(path)), model.state_dict()
    wrong = sorted(set(state) ^ set(_names(model)))
    wrong = wrong or [name for name, tensor in state.items() if tensor.shape != own[name].shape]
    if wrong:
        raise UserError(f"{path} does not fit this model or these settings of adapter: {wrong[0]} is another.")
    model.load_state_dict(state, strict=False)
