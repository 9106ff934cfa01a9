"""A model in two parts, body and head, so that logits are made for as many positions at a time as memory holds.

In: a model, with an adapter or without. Out: its body (token ids to hidden states) and its head (hidden states to logits).
Families differ in what comes after the output layer: some cap the logits (Gemma), some scale them (Granite, Cohere, Falcon-H1).
``has_own_logits`` compares with the model's own forward pass, so that a family which does something else is not measured wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.model.decode import inference_mode_of

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

PROBE = 8  # tokens of the sequence that both ways are compared on
NEAR = 0.02  # of the largest logit; a cap or a factor that is left out changes far more than rounding to bfloat16 does


def parts_of(model: PreTrainedModel) -> tuple[Any, Callable[[torch.Tensor], torch.Tensor]]:
    """(body, head): from token ids to hidden states, and from those to logits."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    layer, config = base.get_output_embeddings(), base.config.get_text_config()
    factor, cap = _factor(config), getattr(config, "final_logit_softcapping", None)

    def head(states: torch.Tensor) -> torch.Tensor:
        import torch

        logits: torch.Tensor = layer(states) if factor == 1 else layer(states) * factor
        return torch.tanh(logits / cap) * cap if cap else logits

    return base.base_model, head


def _factor(config: PretrainedConfig) -> float:
    """What the family multiplies its logits by."""
    scaling = getattr(config, "logits_scaling", None)
    if scaling:
        return float(scaling) if config.model_type == "hyperclovax" else 1 / scaling
    return float(getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1)


def hidden_states(body: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(batch, length, hidden size); rows are padded on the right, where causal attention leaves what comes before alone."""
    states: torch.Tensor = body(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    return states


def has_own_logits(model: PreTrainedModel) -> bool:
    """Whether body and head give the logits that the model itself gives, on a few tokens.

    The model itself is what stands inside PEFT's: around that, a training leaves mixed precision, which rounds otherwise.
    """
    import torch

    ids = torch.arange(1, 1 + PROBE, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    itself: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    with inference_mode_of(model), torch.no_grad():  # without dropout
        body, head = parts_of(model)
        mask = torch.ones_like(ids)
        own, made = (
            itself(input_ids=ids, attention_mask=mask).logits.float(),
            head(hidden_states(body, ids, mask)).float(),
        )
    if own.shape != made.shape:
        return True  # Unsloth was told to give hidden states in their place, as for GRPO; there is nothing to compare
    return bool((own - made).abs().max() <= NEAR * own.abs().max())
