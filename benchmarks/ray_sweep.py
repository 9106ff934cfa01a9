"""A sweep on two nodes of Ray against one and against the local pool; a node killed in the middle.

    python benchmarks/ray_sweep.py --output-dir DIR [--output FILE]          # needs Ray: pip install "ray[client]"

All nodes are on this machine (``ray.cluster_utils``), each a raylet of its own with one core; the first is the head. Parts, each
into a folder of its own but from the same pools, which are made before anything is timed:

* ``local``: the local pool, one cell at a time;
* ``one``, ``two``: one node, two nodes;
* ``killed``: two nodes, one of them killed (SIGKILL) when a cell has trained on each for a while; the other does the rest;
* ``resumed``: begun on Ray, whose head is killed when the first cell is done; the local pool does the rest.

``same`` says whether ``sweep.json`` is the same as that of the local pool, but for ``price`` (seconds and memory).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("training.max_steps=30", "training.eval_steps=30", "training.save_steps=30", "evaluation.limit=6")
RATES = [f"{1 + number / 2:.1f}e-3" for number in range(8)]  # a learning rate a cell
PARTS = ("local", "one", "two", "killed", "resumed")


def command(folder: Path, cells: int, *more: str) -> list[str]:
    """The sweep's command line."""
    sets = [part for text in SETTINGS for part in ("--set", text)]
    values = ",".join(RATES[:cells])
    words = ["sweep", "--axis", "training.learning_rate", "--values", values, "--output-dir", str(folder), *sets]
    return [sys.executable, "-m", "pipeline", *words, *more]


def environment() -> dict[str, str]:
    """What commands and nodes need to find this checkout."""
    patience = {"RAY_worker_niceness": "0", "RAY_agent_register_timeout_ms": "120000"}  # Ray's workers stand back by 15
    return {**os.environ, **patience, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def nodes(number: int) -> Iterator[Any]:
    """A cluster of so many nodes with a core each, and a head without."""
    os.environ.update(environment())
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
    try:
        for _ in range(number - 1):
            cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def finished(folder: Path) -> int:
    """How many cells have a report."""
    return len(list(folder.glob("cells/*/run/report.json")))


def training_cells() -> int:
    """How many cells are at work on this machine's nodes, by their scratch folders."""
    import tempfile

    return len(list((Path(tempfile.gettempdir()) / "hybrid-course-cells").glob("*/run/mix/manifest.json")))


def wait_until(process: subprocess.Popen[bytes], condition: Any) -> None:
    """Poll; a sweep that ends before is an error."""
    while not condition():
        if process.poll() is not None:
            raise SystemExit(f"the sweep ended early with {process.returncode}")
        time.sleep(0.1)


def run_part(part: str, folder: Path, cells: int) -> float:
    """Seconds of one part."""
    if part == "local":
        began = time.monotonic()
        subprocess.run(
            command(folder, cells, "--workers", "1"), cwd=ROOT, env=environment(), check=True, stdout=sys.stderr
        )
        return time.monotonic() - began
    with nodes(1 if part == "one" else 2) as cluster:
        began = time.monotonic()
        on_ray = command(folder, cells, "--engine", "ray", "--address", cluster.address)
        process = subprocess.Popen(on_ray, cwd=ROOT, env=environment(), stdout=sys.stderr)
        if part == "killed":
            wait_until(process, lambda: training_cells() == 2)
            time.sleep(5)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        if part == "resumed":
            wait_until(process, lambda: finished(folder) >= 1)
            cluster.head_node.kill_gcs_server()
            process.send_signal(signal.SIGKILL)
        code = process.wait()
        seconds = time.monotonic() - began
    if part != "resumed":
        if code:
            raise SystemExit(f"{part}: the sweep ended with {code}")
        return seconds
    print(f"resumed: {finished(folder)} cells done by Ray when its head and its driver were killed", file=sys.stderr)
    subprocess.run(command(folder, cells, "--workers", "1"), cwd=ROOT, env=environment(), check=True, stdout=sys.stderr)
    return time.monotonic() - began


def without_times(folder: Path) -> Any:
    """``sweep.json`` but for seconds and memory."""
    result = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    for point in result["points"]:
        del point["price"]
    return result


TOLD = {
    "local": "this machine's own pool, one cell at a time",
    "one": "Ray, one node of one core",
    "two": "Ray, two nodes of one core",
    "killed": "two nodes, one killed in the middle",
    "resumed": "head and coordinator killed; the local pool ends it",
}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown: a line a part."""
    parts = result["parts"]
    lines = ["| where | seconds | cells an hour | cells done | same `sweep.json` |", "|---|--:|--:|--:|---|"]
    for name, entry in parts.items():
        same = "" if name == "local" else "yes" if entry["same"] else "no"
        cells = f"{entry['seconds']:.0f} | {entry['cells_an_hour']:.0f} | {entry['reports']} of {result['cells']}"
        lines.append(f"| {TOLD[name]} | {cells} | {same} |")
    if {"one", "two"} <= set(parts):
        ratio = parts["two"]["cells_an_hour"] / parts["one"]["cells_an_hour"]
        lines += ["", f"Two nodes against one: {ratio:.2f} times the cells an hour, {result['cells']} cells."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    from pipeline.core.files import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--parts", default=",".join(PARTS), metavar="A,B,…", help=f"of {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--cells", type=int, default=2, choices=range(2, len(RATES) + 1), help="default: 2")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    args = parser.parse_args(argv)
    base = args.output_dir.resolve()
    pools = command(base / "pools", 1, "--workers", "1")
    pools[pools.index("--values") + 1] = "1e-4"  # a cell of no part
    subprocess.run(pools, cwd=ROOT, env=environment(), check=True, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = {"cells": args.cells, "cores": os.cpu_count(), "parts": {}}
    for part in args.parts.split(","):
        shutil.rmtree(base / part, ignore_errors=True)
        load = os.getloadavg()[0]
        seconds = run_part(part, base / part, args.cells)
        entry = {"seconds": round(seconds, 1), "cells_an_hour": round(3600 * result["cells"] / seconds, 1)}
        entry |= {"reports": finished(base / part), "load_before": round(load, 2)}
        if (base / "local" / "sweep.json").exists():
            entry["same"] = without_times(base / part) == without_times(base / "local")
        result["parts"][part] = entry
        print(json.dumps({part: entry}), file=sys.stderr, flush=True)
    print(table(result))
    if args.output:
        write_json(args.output, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
