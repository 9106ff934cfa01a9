"""Kill a run with SIGKILL at random moments, go on with it, and compare: the same adapter and replies, byte for byte?

    python benchmarks/resume.py --kills 10 --output docs/results/resume.json

One tiny run is left alone. Each of the others is killed once, at a moment drawn from: before step 1 is done, after each step,
while each checkpoint is written, between training and evaluation, in the evaluation of the tuned model. Then the same command
is given again with ``--resume``. The settings make it hard: gradient accumulation, dropout, several epochs, batches grouped
by length. ``--set "training.report_to=[wandb,swanlab,tensorboard]"`` does it with trackers.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STEPS, EVERY = 12, 4
SETTINGS = [
    "mix.total=60",
    f"training.max_steps={STEPS}",
    f"training.eval_steps={EVERY}",
    f"training.save_steps={EVERY}",
    "training.logging_steps=1",
    "training.per_device_train_batch_size=4",
    "training.gradient_accumulation_steps=2",
    "lora.dropout=0.05",
    "evaluation.benchmarks=[embedded_chat]",
    "evaluation.limit=4",
]
SLOWEST = 600  # seconds that a process may take on a busy machine


def command(folder: Path, settings: list[str], resume: bool = False) -> list[str]:
    """The run's command line."""
    sets = [part for text in settings for part in ("--set", text)]
    return [
        sys.executable,
        "-m",
        "pipeline",
        "run",
        "--output-dir",
        str(folder),
        *sets,
        *(["--resume"] if resume else []),
    ]


def moments() -> list[str]:
    """All moments at which a run can be killed."""
    steps = [f"step {n}" for n in range(STEPS)]
    writes = [f"writing checkpoint {n}" for n in range(EVERY, STEPS + 1, EVERY)]
    return [*steps, *writes, "before the evaluation", "in the evaluation"]


def reached(moment: str, folder: Path, log: str) -> bool:
    """Whether a run has come to a moment, as its directory and its log tell."""
    kind, _, number = moment.rpartition(" ")
    if kind == "step":
        return f"| {number}/{STEPS} [" in log
    if kind == "writing checkpoint":
        return (folder / "checkpoints" / f"checkpoint-{number}").exists()
    if moment == "before the evaluation":
        return (folder / "adapter").exists()
    return "[4/5]" in log and re.search(r"embedded_chat \(\w+\): +[1-9]\d*%", log.split("[4/5]")[1]) is not None


def killed(folder: Path, settings: list[str], moment: str, delay: float) -> str | None:
    """Start a run and kill it ``delay`` seconds after a moment; says what lay on the disk then. None: it had ended already."""
    path = folder.with_suffix(".log")
    with path.open("wb") as log:
        process = subprocess.Popen(command(folder, settings), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + SLOWEST
    while not reached(moment, folder, path.read_text(encoding="utf-8", errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(
                f"the run never came to the moment {moment!r}: {path.read_text(errors='replace')[-2000:]}"
            )
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    left = sorted((p.name for p in folder.glob("checkpoints/checkpoint-*")), key=lambda n: int(n.rpartition("-")[2]))
    whole = [name for name in left if (folder / "checkpoints" / name / "manifest.json").exists()]
    return f"{len(left)} checkpoints, {len(whole)} of them whole" if code == -signal.SIGKILL else None


def outcome(folder: Path) -> list[bytes]:
    """What has to be the same: the adapter, and the replies of the tuned model."""
    replies = sorted(folder.glob("evaluation/tuned/*/predictions.jsonl"))
    return [(folder / "adapter" / "adapter_model.safetensors").read_bytes(), *(path.read_bytes() for path in replies)]


def run(arguments: list[str]) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=SLOWEST)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])


def measure(kills: int, settings: list[str], seed: int, folder: Path) -> dict[str, Any]:
    """One run left alone, and ``kills`` runs that are killed and resumed."""
    drawn = random.Random(seed)
    everywhere = moments()
    chosen = drawn.sample(everywhere, min(kills, len(everywhere)))
    chosen += drawn.choices(everywhere, k=kills - len(chosen))
    run(command(folder / "alone", settings))
    wanted = outcome(folder / "alone")
    entries = []
    for number, moment in enumerate(chosen):
        at = folder / f"killed{number}"
        delay = drawn.uniform(0, 0.05 if moment.startswith("writing") else 0.3)
        left = killed(at, settings, moment, delay)
        run(command(at, settings, resume=True))
        found = outcome(at)
        entry = {
            "moment": moment,
            "delay_seconds": round(delay, 3),
            "killed": left is not None,
            "left": left,
            "adapter_identical": found[0] == wanted[0],
            "replies_identical": found[1:] == wanted[1:],
        }
        entries.append(entry)
        print(f"[{number + 1}/{kills}] {entry}", file=sys.stderr, flush=True)
    counted = [e for e in entries if e["killed"]]
    return {
        "kills": len(counted),
        "identical": sum(e["adapter_identical"] and e["replies_identical"] for e in counted),
        "settings": settings,
        "seed": seed,
        "runs": entries,
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"{result['identical']} of {result['kills']} killed runs end with the same bytes as the run that was left alone.",
        "",
        "| killed (SIGKILL) | seconds later | what lay on the disk | adapter | replies of the tuned model |",
        "|---|--:|---|---|---|",
    ]
    for e in result["runs"]:
        same = ["identical" if e[f"{part}_identical"] else "DIFFERENT" for part in ("adapter", "replies")]
        left = e["left"] or "it had ended already"
        lines.append(f"| {e['moment']} | {e['delay_seconds']:.3f} | {left} | {' | '.join(same)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="default: 10")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="more settings of the runs")
    parser.add_argument("--output", type=Path, help="write the numbers here, as JSON")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from pipeline.core.files import write_json
    from pipeline.core.versions import version_of

    began = os.times()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args.kills, [*SETTINGS, *args.set], args.seed, Path(folder))
    ended = os.times()
    result["cpu_seconds"] = round(
        ended.children_user + ended.children_system - began.children_user - began.children_system
    )
    result["versions"] = {name: version_of(name) for name in ("torch", "transformers", "trl", "peft", "unsloth")}
    print(table(result))
    if args.output:
        write_json(args.output, result)
    return 0 if result["identical"] == result["kills"] else 1


if __name__ == "__main__":
    sys.exit(main())
