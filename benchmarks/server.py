"""What an evaluation by a server costs beside one in this process, and whether the scores agree.

    python benchmarks/server.py --llama --limit 200 --rounds 3 --output server.json
    python benchmarks/server.py --url http://127.0.0.1:8000/v1 --kind vllm --base-model base --limit 200 --output server.json
    python benchmarks/server.py --vllm ~/vllm/bin/vllm --limit 200 --output server.json

The embedded benchmarks (three of them, so 200 are 600 items) in both modes, with the sampling of the profile: once decoded here,
once by the server, each from an empty folder to the scores, the sides in turn, ``--rounds`` times; the medians count. Loading a
model and starting a server are not counted. ``--llama`` starts llama.cpp's server on the base (f16); with it, ``--single``
questions are also asked one by one, greedily: by ``generate`` of plain transformers, and by the server with one client.
Both have the base in the precision that ``--set`` says (default: 16 bit or 32, not quantised). Greedy with ``--greedy``: then the
replies themselves are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PLACES = 16  # of llama.cpp's server
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


@contextlib.contextmanager
def llama(profile: Any, folder: Path, places: int) -> Iterator[str]:
    """The address of llama.cpp's server on the profile's base."""
    from pipeline.export.gguf import write_gguf
    from pipeline.export.processes import llama_server
    from pipeline.export.source import base_location

    file = write_gguf(Path(base_location(profile.model)), folder / "gguf", "base", folder / "log.txt", ("f16",))["f16"]
    context = ["--context", str(profile.evaluation.sampling.thinking.max_new_tokens + profile.model.max_seq_length)]
    with llama_server(
        file, folder / "llama.txt", ["--name", "base", "--raw", "--parallel", str(places), *context]
    ) as address:
        yield f"{address}/v1"


def one_by_one(url: str, settings: Any, count: int, rounds: int) -> dict[str, Any]:
    """Seconds and tokens of ``count`` questions in both modes, each by itself: ``generate`` here, then the server, in turn."""
    import torch
    from openai import OpenAI
    from serving import LIMIT, questions
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.core.modes import MODES
    from pipeline.export.source import base_location

    place = base_location(settings)
    tokenizer: Any = AutoTokenizer.from_pretrained(place)
    model: Any = AutoModelForCausalLM.from_pretrained(place, dtype="float32").eval()
    client = OpenAI(base_url=url, api_key="none", max_retries=0)
    jobs = [(question, mode == "thinking") for question in questions(count) for mode in MODES]
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}

    def here(question: str, thinking: bool) -> int:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            enable_thinking=thinking,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            output = model.generate(**ids, do_sample=False, max_new_tokens=LIMIT, **ends)
        return int(output.shape[1] - ids["input_ids"].shape[1])

    def there(question: str, thinking: bool) -> int:
        answer = client.chat.completions.create(
            model="base",
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=LIMIT,
            extra_body={"chat_template_kwargs": {"enable_thinking": thinking}},
        )
        return answer.usage.completion_tokens if answer.usage else 0

    found: dict[str, Any] = {"questions": len(jobs), "here": [], "there": []}
    for ask in (here, there):
        ask(*jobs[0])
    for _ in range(rounds):
        for name, ask in (("here", here), ("there", there)):
            started = time.perf_counter()
            tokens = sum(ask(*job) for job in jobs)
            found[name].append({"seconds": time.perf_counter() - started, "tokens": tokens})
    found["times"] = ratios(found)
    return found


def ratios(found: dict[str, Any]) -> list[float]:
    """Seconds there ÷ here: the median round, the smallest, the largest."""
    each = [there["seconds"] / here["seconds"] for here, there in zip(found["here"], found["there"], strict=True)]
    return [statistics.median(each), min(each), max(each)]


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| mode | benchmark | in this process | by the server |", "|---|---|--:|--:|"]
    for mode, benchmarks in result["scores"].items():
        for benchmark, sides in benchmarks.items():
            ours, theirs = (f"{s['score']:.3f} [{s['ci95'][0]:.3f}, {s['ci95'][1]:.3f}]" for s in sides)
            lines.append(f"| {mode.replace('_', '-')} | {benchmark} | {ours} | {theirs} |")
    sides = [statistics.median(part["seconds"] for part in result[name]) for name in ("here", "there")]
    replies = result["here"][0]["replies"]
    lines += ["", _sentence(f"{replies:,} replies", "in this process", sides, result["times"], len(result["here"]))]
    if single := result.get("single"):
        sides = [statistics.median(part["seconds"] for part in single[name]) for name in ("here", "there")]
        what = f"{single['questions']} questions one by one"
        lines += ["", _sentence(what, "by `generate`", sides, single["times"], len(single["here"]))]
    return "\n".join(lines)


def _sentence(what: str, ours: str, sides: Sequence[float], times: Sequence[float], rounds: int) -> str:
    words = f"{what}: {sides[0]:.1f} s {ours}, {sides[1]:.1f} s by the server, {times[0]:.2f} times as long"
    return f"{words} (median of {rounds} rounds; {times[1]:.2f} to {times[2]:.2f})"


def main() -> int:
    """Measure both sides in turn and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--url")
    parser.add_argument("--kind", default="vllm")
    parser.add_argument("--base-model", default="base")
    parser.add_argument("--vllm", metavar="EXECUTABLE", help="start it, in place of --url")
    parser.add_argument("--llama", action="store_true", help="start llama.cpp's server, in place of --url")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--single", type=int, default=40, help="questions one by one, in both modes, with --llama")
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if sum(map(bool, (args.url, args.vllm, args.llama))) != 1:
        parser.error("give --url of a server that runs, or one of --vllm and --llama to start one")
    from pipeline.cli.shared import quiet
    from pipeline.core.modes import MODES
    from pipeline.core.versions import import_unsloth
    from pipeline.settings import load_profile

    import_unsloth()
    quiet()
    sets = ["model.load_in_4bit=false", f"evaluation.limit={args.limit}", *args.set]
    sets += [f"evaluation.sampling.{mode}.temperature=0" for mode in MODES if args.greedy]
    result: dict[str, Any] = {"settings": sets, "here": [], "there": []}
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = load_profile(args.profile, sets)
        if args.vllm:
            server = ["evaluation.engine=vllm", f"evaluation.vllm.executable={args.vllm}"]
        else:
            url = args.url or stack.enter_context(llama(ours, place, PLACES))
            names = {"url": url, "kind": "llamacpp" if args.llama else args.kind}
            names |= {"base_model": "base" if args.llama else args.base_model}
            server = ["evaluation.engine=server", *(f"evaluation.server.{key}={value}" for key, value in names.items())]
        theirs = load_profile(args.profile, sets + server)
        for turn in range(args.rounds):
            for name, profile in (("here", ours), ("there", theirs)):
                with here(profile) if name == "here" else there(profile, place) as engine:
                    result[name].append(measure(engine, profile, place / f"{name}{turn}"))
        if args.llama and args.single:
            result["single"] = one_by_one(url, ours.model, args.single, args.rounds)
    texts = [result[name][0]["texts"] for name in ("here", "there")]
    result["same_replies"] = sum(a == b for a, b in zip(*texts, strict=True)) / len(texts[0])
    result["times"] = ratios(result)
    result["scores"] = {
        mode: {
            benchmark: [result[name][0]["cells"][mode]["benchmarks"][benchmark] for name in ("here", "there")]
            for benchmark in result["here"][0]["cells"][mode]["benchmarks"]
        }
        for mode in MODES
    }
    for part in (*result["here"], *result["there"]):
        del part["texts"], part["cells"]
    print(table(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
