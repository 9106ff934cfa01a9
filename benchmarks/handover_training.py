"""One short training in each framework beside ours, from the folder that `data handover` writes: the loss of every step.

    python benchmarks/handover_training.py --output-dir DIR [--output FILE]     # uv makes an environment for each (2 GB each)

Every step sees all rows, in micro-batches (4 × 8 rows), so that the order of the rows, which each framework draws by its own
generator, changes nothing but the order of a sum. All weights are trained (``full``), in float32: nothing is drawn at random,
and what is left is rows, masks, loss, optimizer and schedule. ``lora`` draws the adapter's first matrices; there the spread of
our own seeds stands beside the difference. Each framework is started by its own command line, on the processor.

What the processor makes necessary, and nothing else, is changed in ``train.yaml`` (``HERE``). TRL's loss and axolotl need Triton
even there: it is put into DIR/triton, and TRL's kernel runs in Triton's interpreter, which is slow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ROWS, BATCH, STEPS = 32, 8, 12
METHODS = {"full": "1.0e-3", "lora": "3.0e-3"}  # and their rates
SEEDS = (3407, 1, 2)  # of ours, where a method draws something
HERE: dict[str, dict[str, Any]] = {
    "trl": {"use_cpu": True},
    "llama-factory": {"use_cpu": True},
    "ms-swift": {"use_cpu": True, "dataloader_num_workers": 0},
    "axolotl": {"lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False},
}


def settings(method: str, accumulation: int, seed: int = SEEDS[0]) -> list[str]:
    """The embedded profile, short, and with all rows in every step."""
    return [
        f"seed={seed}",
        f"method={method}",
        f"training.learning_rate={METHODS[method]}",
        "recipe=data_recipes/embedded.yaml",
        f"mix.total={2 * ROWS}",
        "model.load_in_4bit=false",
        "model.dtype=float32",
        f"training.max_steps={STEPS}",
        f"training.save_steps={STEPS}",
        f"training.eval_steps={STEPS}",
        "training.warmup_steps=2",
        "training.logging_steps=1",
        f"training.per_device_train_batch_size={ROWS // accumulation}",
        f"training.gradient_accumulation_steps={accumulation}",
        "training.group_by_length=false",
    ]


def few(mix: Any) -> Any:
    """The mix with its first rows alone."""
    from types import SimpleNamespace

    return replace(mix, train_part=SimpleNamespace(dataset=mix.train.select(range(ROWS))))


def ours(profile: Any, mix: Any, folder: Path) -> list[float]:
    """The losses of this pipeline's own trainer."""
    from pipeline.model.load import load_model
    from pipeline.model.methods import add_method
    from pipeline.training.train import make_sft_trainer

    model, tokenizer = load_model(profile.model, profile.seed, profile.chosen_method)
    trainer = make_sft_trainer(add_method(model, profile), tokenizer, profile, mix, folder)
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.train()
    return losses(trainer.state.log_history)


def losses(history: list[dict[str, Any]]) -> list[float]:
    """The loss of each step."""
    return [entry["loss"] for entry in history if "loss" in entry]


def theirs(target: str, folder: Path, triton: Path, python: Path) -> list[float]:
    """The losses of a framework's own command in the folder that was handed over."""
    import yaml

    from pipeline.handover.audit import last_words
    from pipeline.handover.write import CONFIG, RECORD
    from pipeline.settings import read_yaml

    config = dict(read_yaml(folder / CONFIG)) | HERE[target]
    text = yaml.safe_dump(config, sort_keys=False)
    written = folder / "here.yaml"
    if written.exists() and written.read_text(encoding="utf-8") == text and (done_before := curve_of(folder)):
        return done_before  # of a call that was stopped
    shutil.rmtree(folder / "out", ignore_errors=True)
    written.write_text(text, encoding="utf-8")
    (line,) = json.loads((folder / RECORD).read_text(encoding="utf-8"))["commands"].values()
    words = [word if word != CONFIG else "here.yaml" for word in line.split()]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "MODELSCOPE_CACHE": str(folder / "modelscope")}
    if target in ("trl", "axolotl"):
        environment["PYTHONPATH"] = str(triton)
    if target == "trl":
        environment["TRITON_INTERPRET"] = "1"
    log = folder / "log.txt"
    with log.open("wb") as said:
        done = subprocess.run(words, cwd=folder, env=environment, stdout=said, stderr=said, timeout=1800)
    curve = curve_of(folder)
    if done.returncode or curve is None:
        raise SystemExit(f"{target} failed: {last_words(log)}")
    return curve


def curve_of(folder: Path) -> list[float] | None:
    """The losses that a framework wrote into its last checkpoint; None where there is none."""
    states = sorted(folder.glob(f"out/**/checkpoint-{STEPS}/trainer_state.json"))
    return losses(json.loads(states[0].read_text(encoding="utf-8"))["log_history"]) if states else None


def distance(a: list[float], b: list[float]) -> float:
    """The largest difference of two curves at a step, as a part of the loss there."""
    if len(a) != STEPS or len(b) != STEPS:
        raise SystemExit(f"{len(a)} and {len(b)} losses, of {STEPS} steps")
    return max(abs(x - y) / y for x, y in zip(a, b, strict=True))


def measure(method: str, accumulation: int, targets: list[str], base: Path, triton: Path) -> dict[str, Any]:
    """One method: our curve, that of each framework, and how far apart they are."""
    from pipeline.core.versions import version_of
    from pipeline.data.chat_format import ChatFormat
    from pipeline.data.describe import build_profile_mix
    from pipeline.handover.environments import interpreter
    from pipeline.handover.frameworks import framework
    from pipeline.handover.write import handover
    from pipeline.model.load import load_data_tokenizer
    from pipeline.settings import load_profile

    profile = load_profile("embedded", settings(method, accumulation))
    mix = few(build_profile_mix(profile))
    form = ChatFormat(load_data_tokenizer(profile.model), profile.data.empty_think, profile.data.loss_on)
    base = base / f"{method}-{accumulation}"
    own = {
        seed: ours(load_profile("embedded", settings(method, accumulation, seed)), mix, base / f"ours-{seed}")
        for seed in (SEEDS if method != "full" else SEEDS[:1])
    }
    first = own[SEEDS[0]]
    spread = max((distance(curve, first) for seed, curve in own.items() if seed != SEEDS[0]), default=0.0)
    found: dict[str, Any] = {"method": method, "accumulation": accumulation, "ours": first, "our_spread": spread}
    found["frameworks"] = {}
    for target in targets:
        handover(profile, mix, form, target, base / target)
        curve = theirs(target, base / target, triton, interpreter(framework(target)))
        version = framework(target).version or version_of(target)
        entry = {"version": version, "losses": curve, "difference": distance(curve, first)}
        found["frameworks"][target] = entry
        print(f"{method}, {accumulation} micro-batches, {target}: {entry['difference']:.5f}", file=sys.stderr)
    return found


def table(result: dict[str, Any]) -> str:
    """The result in Markdown: a line a framework, a column a case."""
    cases = result["cases"]
    names = [f"{case['method']}, micro-batches a step: {case['accumulation']}" for case in cases]
    lines = [f"| framework | {' | '.join(names)} |", f"|---|{'--:|' * len(cases)}"]
    for target in cases[0]["frameworks"]:
        cells = [f"{case['frameworks'][target]['difference']:.5f}" for case in cases]
        version = cases[0]["frameworks"][target]["version"]
        lines.append(f"| {target} {version} | {' | '.join(cells)} |")
    spreads = [f"{case['our_spread']:.5f}" if case["our_spread"] else "" for case in cases]
    lines.append(f"| this pipeline, {len(SEEDS)} seeds | {' | '.join(spreads)} |")
    ours = ", ".join(f"{case['ours'][0]:.3f} to {case['ours'][-1]:.3f}" for case in cases)
    said = "Largest difference from our loss at a step, as a part of it."
    return "\n".join(
        [*lines, "", f"{said} {result['steps']} steps, {result['rows']} rows in each. Our loss falls from {ours}."]
    )


def get_triton(folder: Path) -> Path:
    """Triton alone, in a folder of its own."""
    from pipeline.handover.environments import uv

    if not (folder / "triton").is_dir():
        words = [uv(), "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "triton"]
        subprocess.run([*words, "--python", sys.executable], check=True)
    return folder


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--targets", default=",".join(HERE), metavar="A,B,…", help="default: all four")
    parser.add_argument("--cases", default="full:4,full:1,lora:4", metavar="METHOD:N,…", help="N micro-batches a step")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers here, as JSON")
    args = parser.parse_args(argv)
    from pipeline.core.files import write_json
    from pipeline.core.versions import import_unsloth

    import_unsloth()
    from pipeline.cli.shared import quiet

    quiet()
    base, targets = args.output_dir.resolve(), args.targets.split(",")
    triton = get_triton(base / "triton") if {"trl", "axolotl"} & set(targets) else base
    cases = []
    for case in args.cases.split(","):
        method, number = case.split(":")
        cases.append(measure(method, int(number), targets, base, triton))
    result = {"rows": ROWS, "steps": STEPS, "cases": cases}
    print(table(result))
    if args.output:
        write_json(args.output, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
