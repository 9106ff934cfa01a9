"""Does the picture hold on larger models? Bases of about 10 and 100 million parameters, the ratio curve and the ablation on each.

    python benchmarks/gpu/two_sizes.py --output-dir outputs/two_sizes              # needs a CUDA device
    python benchmarks/gpu/two_sizes.py --output-dir outputs/two_sizes --dry-run    # prints the sizes and the commands

Not run yet: no GPU was at hand. Sizes and parameter counts are computed; the learning rates, batch sizes and numbers of steps of
the larger models are first guesses.

For each size, one after the other, each a command of its own:

1. ``build``: train the base from scratch by the embedded model's builder;
2. ``check``: what the embedded model must reach, this one must reach too; where it does not, the rest of the size is left out;
3. ``ratio``: sweep the share of chat;
4. ``empty_think``: the three ways to treat the empty think block.

``two_sizes.json`` in the output directory holds the device, the seconds of each command and what the sweeps found. The same
command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHARES = "0,0.1,0.25,0.5,0.75,1"

LONGER = {"training.max_steps": 800, "training.lr_scheduler_type": "cosine"}  # than the embedded model's own cells

# How each size differs from the embedded model's settings: of the base (BuildSettings) and of the fine-tuning (Profile).
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "10m": {
        "build": {
            "hidden_size": 320,
            "intermediate_size": 896,
            "layers": 8,
            "heads": 6,
            "kv_heads": 2,
            "learning_rate": 1e-3,
            "tokens_per_batch": 8_192,
            "steps": 6_000,
        },
        "tune": {"training.learning_rate": 1e-3, **LONGER},
    },
    "100m": {
        "build": {
            "hidden_size": 768,
            "intermediate_size": 2048,
            "layers": 16,
            "heads": 12,
            "kv_heads": 4,
            "learning_rate": 5e-4,
            "tokens_per_batch": 16_384,
            "steps": 4_000,
        },
        "tune": {"training.learning_rate": 5e-4, **LONGER},
    },
}


def overrides(settings: dict[str, Any]) -> list[str]:
    """Settings as the command line takes them."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def count_parameters(settings: Any) -> int:
    """How many parameters a base of these ``BuildSettings`` has, without making any of them."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.head_dim,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    return sum(parameter.numel() for parameter in model.parameters())


def commands(size: str, folder: Path, seeds: int, workers: int) -> dict[str, list[str]]:
    """Stage → command, in order. A stage's folder is ``folder/<size>/<stage>``."""
    own = folder / size
    base = own / "build"
    profile = ["--profile", "embedded", "--set", f"model.name={base}", *overrides(SIZES[size]["tune"])]
    runs = ["--cells", str(own / "cells"), "--seeds", str(seeds), "--workers", str(workers)]
    pipeline = [sys.executable, "-m", "pipeline"]

    def output(stage: str) -> list[str]:
        return ["--output-dir", str(own / stage)]

    return {
        "build": [*pipeline, "embedded", "build", *output("build"), *overrides(SIZES[size]["build"])],
        "check": [*pipeline, "embedded", "check", *output("check"), *profile],
        "ratio": [*pipeline, "sweep", "--axis", "chat_share", "--values", SHARES, *output("ratio"), *runs, *profile],
        "empty_think": [
            *[*pipeline, "sweep", "--axis", "data.empty_think", "--values", "masked,trained,soft_switch"],
            *[*output("empty_think"), *runs, *profile],
        ],
    }


def describe(sizes: list[str], folder: Path, seeds: int, workers: int) -> str:
    """What would be done: parameters of each base, and every command."""
    from pipeline.training.embedded import build_settings

    lines = []
    for size in sizes:
        settings = build_settings(overrides(SIZES[size]["build"])[1::2])
        lines.append(f"{size}: {count_parameters(settings):,} parameters")
        lines += [f"  {shlex.join(command)}" for command in commands(size, folder, seeds, workers).values()]
    return "\n".join(lines)


def run(sizes: list[str], folder: Path, seeds: int, workers: int) -> dict[str, Any]:
    """Run what is not done yet; ``two_sizes.json`` is written anew after each command."""
    import torch

    from pipeline.core.files import read_json, write_json
    from pipeline.core.versions import version_of

    record = folder / "two_sizes.json"
    report: dict[str, Any] = read_json(record) if record.exists() else {"sizes": {}}
    report["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    report["versions"] = {name: version_of(name) for name in ("unsloth", "transformers", "torch", "evalscope")}
    for size in sizes:
        stages = report["sizes"].setdefault(size, {})
        for stage, command in commands(size, folder, seeds, workers).items():
            if stages.get(stage, {}).get("code") == 0:
                continue
            print(f"{size}, {stage}: {shlex.join(command)}", file=sys.stderr, flush=True)
            started = time.monotonic()
            code = subprocess.run(command, cwd=ROOT, check=False).returncode
            seconds = stages.get(stage, {}).get("seconds", 0.0) + time.monotonic() - started
            stages[stage] = {
                "code": code,
                "seconds": seconds,
                "command": command,
                "result": result(folder, size, stage),
            }
            write_json(record, report)
            if code and stage in ("build", "check"):
                break  # there is nothing to compare on a base that does not know both modes
    return report


def result(folder: Path, size: str, stage: str) -> Any:
    """What a stage left: the record of the build, or the curve of a sweep."""
    from pipeline.core.files import read_json

    path = folder / size / stage / ("build.json" if stage == "build" else "sweep.json")
    return read_json(path) if path.exists() else None


def main(argv: list[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="runs a value (default: 3)")
    parser.add_argument("--workers", type=int, default=4, help="runs at a time on the device (default: 4)")
    parser.add_argument("--dry-run", action="store_true", help="print sizes and commands, and do nothing")
    args = parser.parse_args(argv)
    os.environ["PYTHONPATH"] = str(ROOT)
    folder = args.output_dir.resolve()
    if args.dry_run:
        print(describe(args.sizes, folder, args.seeds, args.workers))
        return 0
    import torch

    if not torch.cuda.is_available():
        print(
            "error: This needs a CUDA device; torch finds none. --dry-run shows what would be done; "
            "`python -m pipeline doctor` says what this machine can do.",
            file=sys.stderr,
        )
        return 2
    report = run(args.sizes, folder, args.seeds, args.workers)
    failed = [(size, stage) for size, stages in report["sizes"].items() for stage in stages if stages[stage]["code"]]
    for size, stage in failed:
        print(f"{size}, {stage}: failed", file=sys.stderr)
    print(folder / "two_sizes.json")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
