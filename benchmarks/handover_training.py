"""One short training here and the same one in TRL, from the files that `data handover --to trl` writes: are the curves alike?

    python benchmarks/handover_training.py --output-dir DIR [--output FILE]       # some minutes on a CPU

Both train LoRA on the embedded model in float32, on the same rows, with the same schedule and seed. Order of rows and first
values of the adapter are each framework's own, so losses of single steps differ; what is compared is the loss on the
validation rows, which are the same, and the mean of the training loss between two of them. TRL runs without Unsloth, from
``train.yaml`` as it was written, but for what a machine without a GPU needs (``use_cpu``).

Exit status 1 where a validation loss differs by more than ``TOLERANCE`` of itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 0.05
EVERY = 10
SETTINGS = (
    "recipe=data_recipes/embedded.yaml", "mix.total=600", "training.max_steps=30", f"training.eval_steps={EVERY}",
    "training.save_steps=30", "training.logging_steps=1", "training.group_by_length=false", "model.load_in_4bit=false",
)  # fmt: skip


def pipeline(*words: str) -> None:
    """A command of this project, with the settings."""
    sets = [part for text in SETTINGS for part in ("--set", text)]
    subprocess.run([sys.executable, "-m", "pipeline", *words, *sets], cwd=ROOT, check=True, stdout=sys.stderr)


def curves(log: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Validation loss by step, and the mean of the training loss up to each of these steps from the one before."""
    validation = {str(e["step"]): e["eval_loss"] for e in log if "eval_loss" in e}
    training = {}
    for step in validation:
        own = [e["loss"] for e in log if "loss" in e and int(step) - EVERY < e["step"] <= int(step)]
        training[step] = sum(own) / len(own)
    return {"validation": validation, "training": training}


def log_of(folder: Path) -> list[dict[str, Any]]:
    """What the trainer noted, from its last checkpoint."""
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda p: int(p.parent.name[11:]))
    history: list[dict[str, Any]] = json.loads(states[-1].read_text(encoding="utf-8"))["log_history"]
    return history


def main(argv: list[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    from pipeline.core.files import write_json
    from pipeline.core.versions import version_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    args = parser.parse_args(argv)
    folder = args.output_dir.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    pipeline("data", "handover", "--to", "trl", "--profile", "embedded", "--output-dir", str(folder / "handed"))
    (handed,) = (path.parent for path in (folder / "handed").rglob("train.yaml"))
    config = yaml.safe_load((handed / "train.yaml").read_text(encoding="utf-8"))
    here = {"use_cpu": True, "model_name_or_path": str(ROOT / config["model_name_or_path"])}
    (handed / "here.yaml").write_text(yaml.safe_dump(config | here), encoding="utf-8")
    command = [sys.executable, "-m", "trl.scripts.sft", "--config", "here.yaml"]
    subprocess.run(command, cwd=handed, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True, stdout=sys.stderr)
    pipeline("train", "--profile", "embedded", "--output-dir", str(folder / "ours"))
    found = {"ours": curves(log_of(folder / "ours" / "checkpoints")), "trl": curves(log_of(handed / "out"))}
    ours, theirs = found["ours"]["validation"], found["trl"]["validation"]
    apart = {step: abs(theirs[step] - ours[step]) / ours[step] for step in ours}
    result = {
        "trl": version_of("trl"), "settings": list(SETTINGS), "curves": found,
        "validation_apart": apart, "tolerance": TOLERANCE, "within": max(apart.values()) <= TOLERANCE,
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)
    return 0 if result["within"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
