"""A model folder with random weights: the real shape of a published model, where its weights are not at hand.

    python benchmarks/random_model.py --config config.json --tokenizer DIR --output-dir DIR

In: a ``config.json`` and a tokenizer's folder. Out: a folder as a hub would give it, weights drawn in bfloat16 from a seed. Speed
and memory of training do not depend on what the weights say; losses of such a model mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def make(config_file: Path, tokenizer: Path, folder: Path, seed: int = 0, changes: dict[str, Any] | None = None) -> int:
    """Write the model's folder; returns its number of parameters.

    Args:
        changes: keys of the config to replace, for a smaller model of the same kind.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

    config = Qwen3Config(**(json.loads(config_file.read_text(encoding="utf-8")) | (changes or {})))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def make_apart(config_file: Path, tokenizer: Path, folder: Path, **changes: Any) -> None:
    """``make`` in a process of its own, so that the caller stays small and imports nothing."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--config",
        str(config_file),
        "--tokenizer",
        str(tokenizer),
    ]
    command += ["--output-dir", str(folder), "--changes", json.dumps(changes)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={"HF_HUB_OFFLINE": "1", **os.environ})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="config.json of the model")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder with its tokenizer")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--changes", type=json.loads, default={}, metavar="JSON", help="keys of the config to replace")
    args = parser.parse_args()
    count = make(args.config, args.tokenizer, args.output_dir, args.seed, args.changes)
    print(f"{count:,} parameters in {args.output_dir}")


if __name__ == "__main__":
    main()
