"""Merged weights are read back, in families whose tensors have other names on the disk too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.export.weights import _require_written

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}


@pytest.mark.parametrize(
    ("kind", "options", "renamed"),
    [("qwen3", {}, False), ("gpt_neox", {"tie_word_embeddings": False}, True), ("qwen3_moe", EXPERTS, True)],
)
def test_what_was_written_is_read_back(kind: str, options: dict[str, Any], renamed: bool, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **options)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert bool(weights.keys() - model.state_dict().keys()) == renamed
    _require_written(model, tmp_path)
    spoilt = next(name for name in weights if "embed_out" in name or "down_proj" in name)
    for changed in ({**weights, spoilt: weights[spoilt] + 1}, {k: w for k, w in weights.items() if k != spoilt}):
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="does not hold the merged weights: (.* differs|they cannot be loaded)"):
            _require_written(model, tmp_path)
