"""What an evaluation by a server costs beside one in this process, and whether the scores agree.

    python benchmarks/server.py --url http://127.0.0.1:8000/v1 --kind vllm --base-model base --limit 200 --output server.json
    python benchmarks/server.py --vllm ~/vllm/bin/vllm --limit 200 --output server.json

The embedded benchmarks (three of them, so 200 are 600 items) in both modes, with the sampling of the profile: once decoded here,
once by the server, each from an empty folder to the scores. Loading a model and starting a server are not counted.
Both have the base in the precision that ``--set`` says (default: 16 bit or 32, not quantised). Greedy with ``--greedy``: then the
replies themselves are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WARM_UP = 2  # items a benchmark, before the clock starts


@contextlib.contextmanager
def here(profile: Any) -> Iterator[Any]:
    """The engine of this process."""
    from pipeline.data.chat_format import ChatFormat
    from pipeline.model.engines.local import local_engine
    from pipeline.model.load import load_model

    model, tokenizer = load_model(profile.model, profile.seed)
    with local_engine(model, tokenizer, ChatFormat(tokenizer).prompt_ids, profile.evaluation) as engine:
        yield engine


@contextlib.contextmanager
def there(profile: Any, folder: Path) -> Iterator[Any]:
    """The engine of the server."""
    from pipeline.evaluation.engine import open_engine

    def never() -> Any:
        raise AssertionError("a server needs no model here")

    with open_engine(profile, "base", never, None, folder / "vllm.log") as engine:
        yield engine


def measure(engine: Any, profile: Any, folder: Path) -> dict[str, Any]:
    """Seconds, scores and replies of one side."""
    from pipeline.core.files import read_jsonl
    from pipeline.core.modes import MODES
    from pipeline.evaluation.evaluate import evaluate_engine

    few = profile.evaluation.model_copy(update={"limit": WARM_UP})
    evaluate_engine(engine, "warm up", few, folder / "warm", progress=False)
    started = time.perf_counter()
    cells = evaluate_engine(engine, "benchmark", profile.evaluation, folder / "run", progress=True)
    seconds = time.perf_counter() - started
    rows = {mode: read_jsonl(folder / "run" / mode / "predictions.jsonl") for mode in MODES}
    return {
        "seconds": seconds,
        "replies": sum(len(part) for part in rows.values()),
        "tokens": sum(row["output_tokens"] for part in rows.values() for row in part),
        "cells": cells,
        "texts": [row["reply"] for mode in MODES for row in rows[mode]],
    }


def main() -> int:
    """Measure both sides in turn and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--url")
    parser.add_argument("--kind", default="vllm")
    parser.add_argument("--base-model", default="base")
    parser.add_argument("--vllm", metavar="EXECUTABLE", help="start it, in place of --url")
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if bool(args.url) == bool(args.vllm):
        parser.error("give --url of a server that runs, or --vllm to start one")
    from pipeline.cli.shared import quiet
    from pipeline.core.modes import MODES
    from pipeline.core.versions import import_unsloth
    from pipeline.settings import load_profile

    import_unsloth()
    quiet()
    sets = ["model.load_in_4bit=false", f"evaluation.limit={args.limit}", *args.set]
    sets += [f"evaluation.sampling.{mode}.temperature=0" for mode in MODES if args.greedy]
    if args.vllm:
        server = ["evaluation.engine=vllm", f"evaluation.vllm.executable={args.vllm}"]
    else:
        names = {"url": args.url, "kind": args.kind, "base_model": args.base_model}
        server = ["evaluation.engine=server", *(f"evaluation.server.{key}={value}" for key, value in names.items())]
    result: dict[str, Any] = {"settings": sets}
    with tempfile.TemporaryDirectory() as place:
        for name, profile in (
            ("here", load_profile(args.profile, sets)),
            ("there", load_profile(args.profile, sets + server)),
        ):
            with here(profile) if name == "here" else there(profile, Path(place)) as engine:
                result[name] = measure(engine, profile, Path(place) / name)
    texts = [result[name].pop("texts") for name in ("here", "there")]
    result["same_replies"] = sum(a == b for a, b in zip(*texts, strict=True)) / len(texts[0])
    result["times"] = result["there"]["seconds"] / result["here"]["seconds"]
    for mode in MODES:
        for benchmark in result["here"]["cells"][mode]["benchmarks"]:
            scores = [result[name]["cells"][mode]["benchmarks"][benchmark] for name in ("here", "there")]
            ours, theirs = (f"{s['score']:.3f} {s['ci95'][0]:.3f}..{s['ci95'][1]:.3f}" for s in scores)
            print(f"{mode:13} {benchmark:22} here {ours}   there {theirs}")
    print(
        f"here {result['here']['seconds']:.1f} s, there {result['there']['seconds']:.1f} s: × {result['times']:.2f} (wanted: 1.5)"
    )
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
