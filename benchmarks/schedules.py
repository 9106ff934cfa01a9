"""Schedules of the learning rate, weight decay and dropout, on the bench of the exercises:

    python benchmarks/schedules.py --output docs/results/schedules.json

Every arm trains the embedded model on the same rows (mathematics alone) in the same order, with the same peak rate. ``loss`` is
the mean of the last ten steps, nats a token: few rows have been seen twice by then, so it is nearly that of unseen rows.
Differences are paired by seed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS, RATE, LAST = 40, 5e-3, 10
ARMS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "linear": {"schedule": "linear"},
    "constant": {"schedule": "constant"},
    "exponential": {"schedule": "exponential"},
    "no weight decay": {"weight_decay": 0.0},
    "weight decay 0.1": {"weight_decay": 0.1},
    "dropout 0.1": {"dropout": 0.1},
}


def measure(seeds: int) -> dict[str, Any]:
    """Losses of every arm and seed."""
    from pipeline.course.lab import lesson, teach

    arms = []
    for name, setting in ARMS.items():
        losses = []
        for seed in range(1, seeds + 1):
            loss = teach(lesson(0.0, 400, seed), steps=STEPS, rate=RATE, seed=seed, **setting)["loss"]
            losses.append(sum(loss[-LAST:]) / LAST)
            print(name, seed, f"{losses[-1]:.3f}", file=sys.stderr, flush=True)
        arms.append({"name": name, "setting": setting, "loss": losses})
    return {"steps": STEPS, "rate": RATE, "last": LAST, "seeds": seeds, "arms": arms}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown: mean loss of each arm, and its difference from the first one, seed by seed."""
    lines = [
        f"| arm | loss of the last {result['last']} of {result['steps']} steps | difference from the first, by seed |"
    ]
    lines.append("|---|--:|--:|")
    first = result["arms"][0]["loss"]
    for arm in result["arms"]:
        differences = ", ".join(f"{own - other:+.3f}" for own, other in zip(arm["loss"], first, strict=True))
        shown = differences if arm is not result["arms"][0] else ""
        lines.append(f"| {arm['name']} | {sum(arm['loss']) / len(arm['loss']):.3f} | {shown} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seeds", type=int, default=2, metavar="N")
    args = parser.parse_args(argv)
    from pipeline.core.files import write_json

    write_json(args.output, measure(args.seeds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
