"""Models of other families, with weights drawn at random, go the whole way: hybridise, run, export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.model.hub.check import check_folder

ROOT = Path(__file__).parents[2]
# Neither the turns nor the think tokens that hybridise brings: the embedded tokenizer under other names.
OTHER = {
    "<|im_start|>": "<start_of_turn>",
    "<|im_end|>": "<end_of_turn>",
    "<think>": "<spare_1>",
    "</think>": "<spare_2>",
}
TEMPLATE = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}
FAMILIES: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "gemma3_text",
        {"sliding_window": 64},
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ),
    ("gpt_neox", {"tie_word_embeddings": False}, ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
    ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 2048}, ["c_attn", "c_proj", "c_fc"]),
]


def base_of(kind: str, options: dict[str, Any], folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(ROOT / "models" / "embedded", folder)
    (folder / "model.safetensors").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        for old, new in OTHER.items():
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    sizes = {"vocab_size": 1024} if kind == "gpt2" else SIZES
    ends = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **ends, **options})).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options", "modules"), FAMILIES)
def test_another_family(
    kind: str,
    options: dict[str, Any],
    modules: list[str],
    tmp_path: Path,
    pipeline_command: Callable[..., Any],
) -> None:
    base_of(kind, options, tmp_path / "base")
    settings = yaml.safe_load((ROOT / "pipeline/profiles/smollm2-135m.yaml").read_text())
    recipe = yaml.safe_load((ROOT / "data_recipes/embedded.yaml").read_text()) | {"total": 200}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    settings |= {
        "name": "another",
        "recipe": str(tmp_path / "recipe.yaml"),
        "lora": {"rank": 8, "target_modules": modules},
    }
    settings["model"]["name"] = str(tmp_path / "hybrid")
    settings["training"] |= {"max_steps": 2, "eval_steps": 2, "save_steps": 2}
    settings["evaluation"] |= {"benchmarks": ["embedded_arithmetic"], "limit": 2, "dataset_args": {}}
    for sampling in settings["evaluation"]["sampling"].values():
        sampling["max_new_tokens"] = 40
    settings["hybrid"] = {
        "base": str(tmp_path / "base"),
        "recipe": str(tmp_path / "recipe.yaml"),
        "overrides": ["method=lora"],
    }
    settings["hybrid"] |= {"keep": "embedded_arithmetic", "within": 1.0, "fidelity": 0.0}
    profile, run = tmp_path / "profile.yaml", tmp_path / "run"
    profile.write_text(yaml.safe_dump(settings))
    pipeline_command("hybridise", "--profile", str(profile), "--output-dir", str(tmp_path / "hybrid"))
    assert check_folder(tmp_path / "hybrid").hybrid
    pipeline_command("run", "--profile", str(profile), "--output-dir", str(run))
    report = json.loads((run / "report.json").read_text())
    assert report["distance"]["thinking"]["embedded_arithmetic"]["kl"] >= 0
    pipeline_command("export", str(run), "--to", "adapter,merged", "--dtype", "float32", "--prompts", "2")
    parity = json.loads((run / "export" / "parity.json").read_text())
    assert {name: target["verdict"] for name, target in parity["targets"].items()} == {
        "adapter": "same",
        "merged": "same",
    }
