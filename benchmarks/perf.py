"""EvalScope's own measurement of a server, ``evalscope perf``, at 1, 4 and 16 clients: a table and a picture.

    python benchmarks/perf.py --url http://127.0.0.1:8000/v1 --tokenizer RUN/adapter --output perf.json --picture perf.png

The server runs already, with room for as many requests (``serve RUN --parallel 16``). ``evalscope perf`` needs packages that are
not in the pinned list, so it runs in an environment of its own: ``uv run --with`` makes it, or ``--evalscope`` names a program.
Different sums are asked greedily in thinking mode, streaming. ``--folder`` reads what such a run wrote, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CLIENTS = (1, 4, 16)
PACKAGE = "evalscope[perf]"
NUMBERS = (60, 60, 240)  # requests, for each number of clients
WARM_UP = 4


def executable(given: str | None) -> list[str]:
    """The words that ``evalscope`` begins with."""
    if given:
        return [given]
    from importlib.metadata import version

    uv = Path(sys.executable).with_name("uv")
    with_it = ["--with", f"{PACKAGE}=={version('evalscope')}"]
    return [str(uv) if uv.exists() else "uv", "run", "--isolated", "--no-project", *with_it, "evalscope"]


def measure(args: argparse.Namespace, folder: Path) -> Path:
    """Run it; returns the folder with its results."""
    from serving import LIMIT, questions

    prompts = folder / "questions.txt"
    prompts.write_text("\n".join(questions(max(NUMBERS))) + "\n", encoding="utf-8")
    extra = json.dumps({"chat_template_kwargs": {"enable_thinking": True}})
    words = [
        *executable(args.evalscope),
        "perf",
        "--api",
        "openai",
        "--url",
        f"{args.url.rstrip('/')}/chat/completions",
    ]
    words += ["--model", args.model, "--tokenizer-path", str(args.tokenizer.resolve()), "--stream"]
    words += ["--dataset", "line_by_line", "--dataset-path", str(prompts), "--min-prompt-length", "1"]
    words += ["--parallel", *map(str, CLIENTS), "--number", *map(str, NUMBERS), "--warmup-num", str(WARM_UP)]
    words += ["--max-tokens", str(LIMIT), "--temperature", "0", "--extra-args", extra]
    words += ["--outputs-dir", str(folder), "--no-timestamp", "--name", "serve", "--sleep-interval", "1"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"evalscope perf failed: {' '.join((done.stdout + done.stderr).split())[-500:]}")
    return folder / "serve"


def read(folder: Path) -> dict[str, Any]:
    """Rows, one a number of clients; times in seconds."""
    rows = []
    for place in sorted(folder.glob("parallel_*_number_*"), key=lambda path: int(path.name.split("_")[1])):
        summary = json.loads((place / "benchmark_summary.json").read_text(encoding="utf-8"))
        table = json.loads((place / "benchmark_percentile.json").read_text(encoding="utf-8"))
        at = {row["Percentiles"]: row for row in table}
        row = {
            "clients": summary["Concurrency"],
            "requests": summary["Total Requests"],
            "failed": summary["Failed Requests"],
            "requests_per_second": summary["Req Throughput (req/s)"],
            "tokens_per_second": summary["Output Throughput (tok/s)"],
        }
        for name, key in (("50%", "p50"), ("95%", "p95")):
            row[f"first_token_{key}"] = at[name]["TTFT (ms)"] / 1000
            row[f"reply_{key}"] = at[name]["Latency (s)"]
        rows.append(row)
    if not rows:
        raise SystemExit(f"{folder} holds nothing that evalscope perf wrote")
    return {"rows": rows}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    heads = [
        "clients",
        "requests",
        "failed",
        "requests/s",
        "tokens/s",
        "first token p50, p95 (s)",
        "reply p50, p95 (s)",
    ]
    lines = [f"| {' | '.join(heads)} |", "|--:" * len(heads) + "|"]
    for row in result["rows"]:
        times = [f"{row[f'{name}_p50']:.3f}, {row[f'{name}_p95']:.3f}" for name in ("first_token", "reply")]
        rates = [f"{row['requests_per_second']:.1f}", f"{row['tokens_per_second']:,.0f}"]
        cells = [str(row["clients"]), str(row["requests"]), str(row["failed"]), *rates, *times]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Throughput, and the time to the first token and to the whole reply, by the number of clients."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from pipeline.evaluation.report.pictures import COLOURS

    rows = result["rows"]
    clients = [row["clients"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    left.plot(clients, [row["tokens_per_second"] for row in rows], "o-", color=COLOURS[0])
    left.set(title="throughput", ylabel="tokens a second")
    for name, label, colour in (("first_token", "first token", COLOURS[0]), ("reply", "whole reply", COLOURS[1])):
        right.plot(clients, [row[f"{name}_p50"] for row in rows], "o-", color=colour, label=f"{label}, median")
        right.plot(clients, [row[f"{name}_p95"] for row in rows], "o:", color=colour, label=f"{label}, p95")
    right.set(title="time of a request", ylabel="seconds")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set(xlabel="clients", xscale="log", xticks=clients, xticklabels=clients)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    """Measure or read, print the table, draw; 1 where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a server that runs, ending in /v1")
    parser.add_argument("--model", default="tuned", help="what it calls the model")
    parser.add_argument("--tokenizer", type=Path, help="a folder with the model's tokenizer, e.g. RUN/adapter")
    parser.add_argument("--evalscope", metavar="EXECUTABLE", help="of an environment that has evalscope[perf]")
    parser.add_argument("--folder", type=Path, help="what evalscope perf wrote, instead of measuring")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    if bool(args.folder) == bool(args.url) or (args.url and not args.tokenizer):
        parser.error("give --url and --tokenizer, or --folder")
    if args.folder:
        result = read(args.folder)
    else:
        with tempfile.TemporaryDirectory() as place:
            result = read(measure(args, Path(place)))
    print(table(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.picture:
        draw(result, args.picture)
    return 1 if any(row["failed"] for row in result["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
