"""An instruct-only model: the embedded one without its think tokens, under a template that has no switch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

EMBEDDED = Path(__file__).parents[2] / "models/embedded"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; nothing in it is to be changed."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("instruct") / "base"
    shutil.copytree(EMBEDDED, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    think = {token["id"] for token in tokenizer["added_tokens"] if "think" in token["content"]}
    size = min(think)
    assert think == {size, size + 1}  # the last of the vocabulary, so that they can be cut off
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < size]
    tokenizer["model"]["vocab"] = {k: v for k, v in tokenizer["model"]["vocab"].items() if v < size}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(CHATML)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:size].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": size}))
    return folder


@pytest.fixture
def profile(instruct: Path, tmp_path: Path) -> Path:
    """A profile that makes a hybrid of it, from generated rows. No row shows chat with reasoning, so chat is not measured."""
    recipe = {
        "name": "both_modes",
        "total": 2000,
        "group_near_duplicates": False,
        "sources": [
            {"name": "chat", "kind": "chat", "path": "finetome_like", "format": "sharegpt", "seed": 1},
            {"name": "math", "kind": "reasoning", "path": "openmath_like", "format": "openmathreasoning", "seed": 2},
        ],
    }
    for source in recipe["sources"]:  # type: ignore[attr-defined]
        source |= {"source": "generated", "rows": 2000, "share": 0.5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    settings = yaml.safe_load((Path(__file__).parents[2] / "pipeline/profiles/embedded.yaml").read_text())
    settings |= {"name": "tiny-hybrid", "method": "lora", "model": settings["model"] | {"load_in_4bit": False}}
    settings["evaluation"] |= {"benchmarks": ["embedded_arithmetic"], "limit": 20, "workers": 1}
    # A rate of its own: so few steps teach the form only at a high one.
    settings["training"] |= {"max_steps": 120, "eval_steps": 120, "save_steps": 40, "learning_rate": 3e-3}
    settings["hybrid"] = {
        "base": str(instruct),
        "recipe": str(tmp_path / "recipe.yaml"),
        "keep": "embedded_arithmetic",
        "within": 1.0,
        "fidelity": 0.5,
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
