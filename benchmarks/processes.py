"""Tokens per second of one process against two with the same global batch, in one run.

    python benchmarks/processes.py --output processes.json

Both sides are ``python -m pipeline train`` of the embedded profile, with ``--steps`` steps; the second is started by torchrun
with half the batch size a process. Sides take turns, ``--rounds`` times; rates are medians, as training reports them (without
starting, loading and validation). One thread a process, so that two processes have twice the threads: on two idle cores two
processes can be faster, on one core they cannot. The losses of both are compared step by step.

Needs a machine without other work: about 40 s a side and round on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def command(processes: int, batch: int, steps: int, rows: int, folder: Path) -> list[str]:
    """The command of a side: ``batch`` rows a step over all processes."""
    launch: list[str] = []
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        launch += ["--master-addr", "127.0.0.1", "--master-port", port]
    settings = {
        "training.per_device_train_batch_size": batch // processes,
        "training.max_steps": steps,
        "training.save_steps": steps,
        "training.eval_steps": steps,
        "training.logging_steps": 1,
        "mix.total": rows,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, *launch, "-m", "pipeline", "train", "--json", "--output-dir", str(folder), *overrides]


def measure(processes: int, batch: int, steps: int, rows: int, folder: Path) -> dict[str, Any]:
    """The report's training section of one run of a side."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command(processes, batch, steps, rows, folder),
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"{processes} process(es): {result.stderr[-2000:]}")
    section: dict[str, Any] = json.loads(result.stdout)
    return section


def compare(batch: int, steps: int, rows: int, rounds: int) -> dict[str, Any]:
    """All rounds of both sides."""
    sides: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as place:
        for number in range(rounds):
            for processes in (1, 2) if number % 2 == 0 else (2, 1):
                folder = Path(place) / f"{number}-{processes}"
                sides[processes].append(measure(processes, batch, steps, rows, folder))
                rate = sides[processes][-1]["tokens_per_second"]
                print(f"round {number + 1}, {processes} process(es): {rate:,.0f} tokens/s", file=sys.stderr, flush=True)
    result: dict[str, Any] = {
        "global_batch": batch,
        "steps": steps,
        "rounds": rounds,
        "cores": os.cpu_count(),
        "sides": [],
    }
    for processes, runs in sides.items():
        rates = [run["tokens_per_second"] for run in runs]
        result["sides"].append(
            {
                "processes": processes,
                "tokens_per_second": statistics.median(rates),
                "lowest": min(rates),
                "highest": max(rates),
                "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
            }
        )
    one, two = (result["sides"][i]["tokens_per_second"] for i in (0, 1))
    pairs = list(zip(sides[1][0]["loss"], sides[2][0]["loss"], strict=True))
    result["ratio"] = two / one
    result["largest_loss_difference"] = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
    result["mean_loss"] = statistics.mean(a["loss"] for a, _ in pairs)
    return result


def table(result: Mapping[str, Any]) -> str:
    """The JSON as Markdown."""
    lines = ["| processes | tokens/s | lowest to highest | peak memory of one |", "|--:|--:|--:|--:|"]
    for side in result["sides"]:
        span = f"{side['lowest']:,.0f} to {side['highest']:,.0f}"
        memory = f"{side['peak_memory_bytes'] / 2**20:,.0f} MiB"
        lines.append(f"| {side['processes']} | {side['tokens_per_second']:,.0f} | {span} | {memory} |")
    lines += [
        "",
        f"Two processes against one: {result['ratio']:.2f} times the tokens per second, {result['global_batch']} rows a step, "
        f"{result['rounds']} rounds of {result['steps']} steps, {result['cores']} cores. Largest difference of the loss at a "
        f"step: {result['largest_loss_difference']:.4f}, where the loss is {result['mean_loss']:.3f} on average.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--batch", type=int, default=8, help="rows a step over all processes, even (default: 8)")
    parser.add_argument("--steps", type=int, default=100, help="default: 100")
    parser.add_argument("--rows", type=int, default=2000, help="of the mix (default: 2000)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    args = parser.parse_args(argv)
    if args.batch < 2 or args.batch % 2:
        parser.error("--batch must be even, so that two processes can share it")
    from pipeline.core.files import write_json

    result = compare(args.batch, args.steps, args.rows, args.rounds)
    write_json(args.output, result)
    print(table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
