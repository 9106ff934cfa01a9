"""What a sweep and a study cost, beside running their cells by hand.

    python benchmarks/sweep.py cells --sweep DIR [--cells DIR]     # its cells beside their own work
    python benchmarks/sweep.py workers --output-dir DIR     # one worker against two on the same study, in turn

``cells`` reads times from the files that a cell writes, so it measures what really ran. A cell's own work is what nobody
could leave out: loading the model (and the libraries), training, evaluating the tuned model. The rest is overhead:
starting Python, drawing the mix from the pools, the copied evaluation of the base, the report.

``workers`` runs a grid of three learning rates and two schedules without pruning, first with one worker and then with two, each
into a folder of its own but from the same pools, and compares the results trial by trial.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (
    *("training.max_steps=150", "training.eval_steps=150", "training.save_steps=150", "evaluation.limit=30"),
    *("training.warmup_steps=0.05", "training.weight_decay=0.01", "lora.dropout=0"),
)  # short trials; three learning rates and two schedules are left to search


def cell_times(run: Path, begun: float) -> dict[str, float]:
    """Seconds of a finished cell, by the times at which its files were written.

    Args:
        run: the cell's run directory.
        begun: when its process was started, seconds since the epoch.
    """

    def written(*parts: str) -> float:
        return run.joinpath(*parts).stat().st_mtime

    done = written("report.json")
    mixed = written("mix", "manifest.json")
    evaluated = max(written("evaluation", "tuned", mode, "cell.json") for mode in ("thinking", "non_thinking"))
    own = evaluated - mixed
    return {"seconds": done - begun, "own_work": own, "ratio": (done - begun) / own}


def cells(sweep: Path, folder: Path) -> dict[str, Any]:
    """Cells of a sweep: every ``pid`` file is written when the cell's process starts."""
    from pipeline.core.files import read_json

    plan = read_json(sweep / "plan.json")
    entries = [
        cell_times(pid.parent / "run", pid.stat().st_mtime)
        for pid in sorted(folder.glob("*/pid"))
        if (pid.parent / "run" / "report.json").exists()
    ]
    if not entries:
        raise SystemExit(f"{folder} holds no finished cell; where the sweep was given --cells, give the same here.")
    ratios = [entry["ratio"] for entry in entries]
    return {
        "values": plan["values"],
        "seeds": plan["seeds"],
        "cells": entries,
        "median_seconds": statistics.median(entry["seconds"] for entry in entries),
        "median_ratio": statistics.median(ratios),
        "largest_ratio": max(ratios),
    }


def study(folder: Path, workers: int) -> tuple[float, dict[str, Any]]:
    """(seconds, ``search.json``) of one grid."""
    sets = [part for text in SETTINGS for part in ("--set", text)]
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "search",
        "--sampler",
        "grid",
        "--no-pruning",
        "--trials",
        "99",
        "--json",
    ]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--workers", str(workers), "--output-dir", str(folder), *sets],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    return time.monotonic() - started, json.loads(done.stdout)


def workers(folder: Path) -> dict[str, Any]:
    """One worker and two on the same grid; the pools are made before either is timed."""
    subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "--dry-run", "--output-dir", str(folder / "none")],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seconds, results = {}, {}
    for number in (1, 2):
        seconds[number], found = study(folder / f"workers-{number}", number)
        results[number] = sorted(
            (json.dumps(t["params"], sort_keys=True), t["score"], t["mode_fidelity"]) for t in found["trials"]
        )
    trials = len(results[1])
    return {
        "trials": trials,
        "seconds": {str(n): round(s, 1) for n, s in seconds.items()},
        "trials_an_hour": {str(n): round(3600 * trials / s, 1) for n, s in seconds.items()},
        "ratio": round(seconds[1] / seconds[2], 3),
        "same_results": results[1] == results[2],
    }


def table(result: dict[str, Any]) -> str:
    """Either result as Markdown."""
    if "same_results" in result:
        lines = ["| workers | seconds | trials an hour |", "| --: | --: | --: |"]
        lines += [f"| {n} | {s:,.0f} | {result['trials_an_hour'][n]:,.0f} |" for n, s in result["seconds"].items()]
        same = "the same results" if result["same_results"] else "different results"
        return "\n".join(
            [*lines, "", f"{result['trials']} trials; {result['ratio']:.2f} times as many an hour; {same}"]
        )
    heads = "| cells | median seconds of a cell | of its own work | median ratio | largest ratio |"
    own = statistics.median(cell["own_work"] for cell in result["cells"])
    row = f"| {len(result['cells'])} | {result['median_seconds']:.0f} | {own:.0f} "
    row += f"| {result['median_ratio']:.3f} | {result['largest_ratio']:.3f} |"
    return "\n".join([heads, "| --: | --: | --: | --: | --: |", row])


def main(argv: list[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    from pipeline.core.files import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("cells")
    one.add_argument("--sweep", type=Path, required=True, metavar="DIR")
    one.add_argument("--cells", type=Path, metavar="DIR", help="where the sweep kept its cells (default: DIR/cells)")
    two = parts.add_parser("workers")
    two.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    for part in (one, two):
        part.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    args = parser.parse_args(argv)
    parts_of = {
        "cells": lambda: cells(args.sweep, args.cells or args.sweep / "cells"),
        "workers": lambda: workers(args.output_dir.resolve()),
    }
    result = parts_of[args.part]()
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
