"""Stand-ins: the shape of a real run with nothing of its weight.

A random Qwen3 with the context of the real ones (40,960 positions) and a tiny width, rows in the exact columns of
FineTome-100k and OpenMathReasoning, and a few items of each benchmark in its own layout. A real profile is run on them with
its own limits, batches, sampling and schedule; ``settings`` names all that is changed.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = 40_960
REPLY_TOKENS = (
    40  # that a reply has on average: a random model would go on to the limit, so that nothing but waiting is tested
)
BENCHMARKS = ("gsm8k", "math_500", "ifeval")


def make_model(folder: Path, tokenizer: Path, seed: int = 0, **changes: Any) -> None:
    """Write a random model in 16 bit that ends its replies, with a tokenizer.

    The first entry of the hidden state is large and the same for every token, so what the output layer has there for the end
    token raises its logit by a constant: the end comes once in ``REPLY_TOKENS`` tokens.
    """
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    shape: dict[str, Any] = {
        "vocab_size": math.ceil(len(loaded) / 64) * 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "eos_token_id": loaded.eos_token_id,
        "pad_token_id": loaded.pad_token_id,
        "bos_token_id": None,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**(shape | changes)))
    width = model.config.hidden_size
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 4.0
        model.lm_head.weight[:, 0] = 0.0
        # The norm leaves √width in the first entry, for the others are small; 0.6 is the lower of the two temperatures.
        boost = 0.6 * math.log(len(loaded) / REPLY_TOKENS)
        model.lm_head.weight[loaded.eos_token_id, 0] = boost / math.sqrt(width)
    model.to(torch.bfloat16).save_pretrained(folder)
    loaded.save_pretrained(folder)


def make_trained(folder: Path) -> None:
    """The embedded model with the context of the real ones: it keeps to both modes, as a random one cannot."""
    shutil.copytree(ROOT / "models" / "embedded", folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}), encoding="utf-8")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _square(n: int) -> dict[str, Any]:
    return {
        "problem": f"What is ${n}^2$?",
        "solution": f"It is {n * n}.",
        "answer": str(n * n),
        "subject": "Algebra",
        "level": 1,
        "unique_id": f"own/{n}.json",
    }


def make_data(folder: Path, rows: int = 400) -> None:
    """Write rows and benchmark items: ``finetome/``, ``openmath/``, ``pairs/``, and a folder for each of ``BENCHMARKS``."""
    from pipeline.data.corpora import finetome_like, openmath_like, preference_like

    _write(folder / "finetome" / "train.jsonl", list(finetome_like(rows, seed=1)))
    _write(folder / "openmath" / "cot.jsonl", list(openmath_like(rows, seed=1)))
    _write(folder / "pairs" / "train.jsonl", list(itertools.islice(preference_like(40, seed=1), 40)))
    sums = [
        {"question": f"What is {n} plus {n}?", "answer": f"{n} + {n} = {2 * n}.\n#### {2 * n}"} for n in range(3, 15)
    ]
    _write(folder / "gsm8k" / "test.jsonl", sums[:4])
    _write(folder / "gsm8k" / "train.jsonl", sums[4:])
    _write(folder / "math_500" / "test.jsonl", [_square(n) for n in range(2, 6)])
    ask = {"prompt": "Say hello without a comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    _write(folder / "ifeval" / "train.jsonl", [{"key": n, **ask, "prompt": f"{n}. {ask['prompt']}"} for n in range(3)])


def make(folder: Path, tokenizer: Path = ROOT / "models" / "embedded", **changes: Any) -> None:
    """Everything: ``model/``, the data, and each recipe of the real profiles with its paths changed."""
    make_model(folder / "model", tokenizer, **changes)
    make_data(folder)
    for name in ("finetome_openmath_first", "finetome_openmath_mini"):
        recipe = yaml.safe_load((ROOT / "data_recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
        where = {"chat": "finetome", "own_chat": "finetome", "math": "openmath"}
        for entry in [*recipe["sources"], *recipe["decontaminate"]["benchmarks"]]:
            place = folder / where.get(entry["name"], entry["name"])
            changed = entry.get("questions", entry)  # of a source that is the base itself
            for key in ("subset", "split", "streaming", "rows"):
                changed.pop(key, None)
            changed |= {"source": "local", "path": str(place)}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def settings(folder: Path, profile: str) -> list[str]:
    """What a run of a real profile on the stand-ins changes: names, places, and how many rows, steps and items."""
    from pipeline.settings import load_profile

    own = load_profile(profile)
    return [
        f"model.name={folder / 'model'}",
        "model.source=local",
        f"recipe={folder / Path(own.recipe).name}",
        "mix.total=300",
        "mix.rehearsal=false",  # random weights have nothing to rehearse; ``test_a_real_recipe_rehearses`` has others
        "data.workers=1",
        "training.max_steps=2",
        "training.eval_steps=1",
        "training.save_steps=1",
        "training.logging_steps=1",
        "evaluation.limit=2",
        *(f"evaluation.dataset_args.{name}.local_path={folder / name}" for name in BENCHMARKS),
    ]


def copy(folder: Path, target: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(folder, target))
