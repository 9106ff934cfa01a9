"""Write the reference of a profile from finished runs that differ in their seed alone:

    python docs/make_reference.py --machine "two cores of …" RUN RUN RUN

``python -m pipeline report`` compares a run of the same settings with it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.core.files import read_json, write_json  # noqa: E402
from pipeline.core.modes import MODES  # noqa: E402
from pipeline.evaluation.report.reference import REFERENCES, Reference, ReferenceRun, rates  # noqa: E402
from pipeline.settings import read_yaml  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--machine", required=True, help="what they ran on, in words")
    args = parser.parse_args()
    settings = [{n: read_yaml(run / f"{n}.yaml") for n in ("profile", "recipe")} for run in args.runs]
    for run, found in zip(args.runs, settings, strict=True):
        if {**found["profile"], "seed": 0} != {**settings[0]["profile"], "seed": 0}:
            print(f"{run} has other settings than {args.runs[0]}", file=sys.stderr)
            return 1
    runs = []
    for run in args.runs:
        report = read_json(run / "report.json")
        tuned = {
            mode: {name: rate for name, (rate, _) in rates(report["evaluation"]["tuned"][mode]).items()}
            for mode in MODES
        }
        runs.append(ReferenceRun(seed=report["run"]["seed"], tuned=tuned))
    name = settings[0]["profile"]["name"]
    command = f"python -m pipeline run --profile {name} --set seed=SEED --output-dir DIR"
    reference = Reference(command=command, machine=args.machine, runs=runs, **settings[0])
    write_json(REFERENCES / f"{name}.json", reference.model_dump())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
