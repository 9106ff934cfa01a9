"""Decoding of a real model on a CPU: tokens a second of this pipeline, of plain transformers and of llama.cpp.

    python benchmarks/decoding.py --model outputs/models/smollm2-135m-hybrid --questions FILE --output decoding.json

FILE has one question a line, as JSON with ``prompt``. Each side writes exactly ``--tokens`` tokens to each of ``--count``
questions, greedily, ``--batch`` at a time; end tokens are ignored, so all do the same work. With ``--ends`` replies are drawn as
the profile says and end where they end, ``--tokens`` at most; padding is not counted. Prompts are in
non-thinking mode. A turn is a process of its own; the sides take turns, ``--rounds`` times. Loading, conversion and a first
short batch are not timed.

* ``pipeline``: ``pipeline.model.decode``, as every evaluation uses it, in the precision that the processor suits;
* only where ``--sides`` names them, the same without one or more of its parts: ``pipeline, eager``: transformers' own attention
  written out; ``pipeline, plain weights``: not packed; ``pipeline, copied cache``: transformers' own, so nothing joins a batch
  either; ``pipeline, neither``: without the last two; ``pipeline, two processes``: with a thread each, with ``--ends`` only;
* ``transformers``: ``generate`` of the plain model in the same precision, attention as it comes ("sdpa");
* ``llama.cpp f16``, ``llama.cpp q8_0``: its server with ``--batch`` places, each filled by a client of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LLAMA, EAGER = "llama.cpp ", "pipeline, eager"
PLAIN, COPIED, NEITHER = "pipeline, plain weights", "pipeline, copied cache", "pipeline, neither"
PROCESSES = "pipeline, two processes"
SIDES = ("pipeline", "transformers", "llama.cpp f16", "llama.cpp q8_0")


def turn(job: dict[str, Any]) -> dict[str, Any]:
    """One side once: seconds, tokens and the peak memory of the process (of llama.cpp: of its server)."""
    return by_llama(job) if job["side"].startswith(LLAMA) else by_torch(job)


def by_torch(job: dict[str, Any]) -> dict[str, Any]:
    import resource

    import unsloth  # noqa: F401  (before transformers, on both sides)

    from pipeline.model import attention, batch, packed
    from pipeline.model.batch import Batch, decode_batch
    from pipeline.model.decode import inference_mode_of
    from pipeline.model.decoders import decoders
    from pipeline.model.load import load_model
    from pipeline.settings import Sampling, load_profile

    profile = load_profile("smollm2-135m", [f"model.name={job['model']}", f"model.cpu_threads={job['threads']}"])
    model, tokenizer = load_model(profile.model, 1)
    never = [int(model.config.vocab_size)]  # an end token that cannot come
    sampling = profile.evaluation.sampling.non_thinking
    if not job["ends"]:
        model.generation_config.eos_token_id = None
    if job["side"] == EAGER:
        attention.PLAIN = frozenset()  # no family is taken for one that the groups suit
    if job["side"] in (COPIED, NEITHER):
        batch.growing_cache = lambda model: None  # type: ignore[assignment]
    if job["side"] in (PLAIN, NEITHER):
        packed.free_bytes = lambda device: 0  # never room for packed weights
    if job["side"] == "transformers":
        model = plain(job["model"], model.dtype)

    def ours(prompts: list[list[int]], tokens: int) -> int:
        if job["ends"]:
            drawn = sampling.model_copy(update={"max_new_tokens": tokens})
            with decoders(model, tokenizer, 2 if job["side"] == PROCESSES else 1) as decoding:
                replies = decoding.generate(prompts, drawn, job["batch"], seed=0)
            return sum(reply.output_tokens for reply in replies)
        own = Sampling.model_validate({"temperature": 0, "top_p": 1, "top_k": 0, "max_new_tokens": tokens})
        lengths: list[int] = []
        with inference_mode_of(model):
            for start in range(0, len(prompts), job["batch"]):
                part = Batch(prompts[start : start + job["batch"]], own, never)
                decode_batch(model, tokenizer, part, lambda row, ids: lengths.append(len(ids)))
        return sum(lengths)

    def theirs(prompts: list[list[int]], tokens: int) -> int:
        import torch

        tokenizer.padding_side, written = "left", 0
        for start in range(0, len(prompts), job["batch"]):
            batch = tokenizer.pad({"input_ids": prompts[start : start + job["batch"]]}, return_tensors="pt")
            how: dict[str, Any] = {"do_sample": False, "min_new_tokens": tokens}
            if job["ends"]:
                how = {"do_sample": True, **sampling.model_dump(exclude={"max_new_tokens"})}
            with torch.inference_mode():
                out = model.generate(**batch, **how, max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id)
            replies = out[:, batch["input_ids"].shape[1] :]
            padding = (replies == tokenizer.pad_token_id).sum() if job["ends"] else 0
            written += replies.numel() - int(padding)
        return written

    ask = theirs if job["side"] == "transformers" else ours
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in job["prompts"]]
    ask(prompts[:2], 4)
    started = time.perf_counter()
    tokens = ask(prompts, job["tokens"])
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "tokens": tokens,
        "dtype": str(model.dtype).removeprefix("torch."),
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def plain(folder: str, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def by_llama(job: dict[str, Any]) -> dict[str, Any]:
    import httpx

    from pipeline.export.processes import llama_server

    longest = max(len(text) for text in job["prompts"]) // 2 + job["tokens"]
    arguments = ["--name", "base", "--parallel", str(job["batch"]), "--context", str(max(512, longest))]
    arguments += ["--threads", str(job["threads"])]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with llama_server(Path(job["files"][job["side"].removeprefix(LLAMA)]), log, arguments) as address:

            def ask(prompt: str, tokens: int) -> int:
                body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": not job["ends"], "temperature": 0}
                reply = httpx.post(f"{address}/completion", json=body, timeout=600).raise_for_status().json()
                return int(reply["tokens_predicted"])

            with ThreadPoolExecutor(job["batch"]) as clients:
                list(clients.map(lambda text: ask(text, 4), job["prompts"][:2]))
                started = time.perf_counter()
                tokens = sum(clients.map(lambda text: ask(text, job["tokens"]), job["prompts"]))
                seconds = time.perf_counter() - started
            memory = servers_memory()
    return {"seconds": seconds, "tokens": tokens, "dtype": job["side"].removeprefix(LLAMA), "memory_bytes": memory}


def servers_memory() -> int | None:
    """Peak bytes of the largest child process; None where the system does not say."""
    try:
        import psutil
    except ImportError:
        return None
    peaks = []
    for child in psutil.Process().children(recursive=True):
        for line in Path(f"/proc/{child.pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                peaks.append(int(line.split()[1]) * 1024)
    return max(peaks, default=None)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| side | precision | tokens/s | of the pipeline's | peak memory |", "|---|---|--:|--:|--:|"]
    rate = {
        side: statistics.median(turn["tokens"] / turn["seconds"] for turn in turns)
        for side, turns in result["sides"].items()
    }
    for side, turns in result["sides"].items():
        peaks = [turn["memory_bytes"] for turn in turns if turn["memory_bytes"]]
        peak = f"{max(peaks) / 1e6:,.0f} MB" if peaks else "–"
        lines.append(
            f"| {side} | {turns[0]['dtype']} | {rate[side]:.0f} | {rate[side] / rate['pipeline']:.2f} | {peak} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure all sides in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FOLDER")
    parser.add_argument("--questions", required=True, type=Path, metavar="FILE")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ends", action="store_true", help="replies end where they end")
    parser.add_argument("--sides", default=";".join(SIDES), help="divided by semicolons")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        print(json.dumps(turn(json.loads(Path(args.turn).read_text(encoding="utf-8")))))
        return 0
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    rows = [json.loads(line) for line in args.questions.read_text(encoding="utf-8").splitlines()[: args.count]]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        for row in rows
    ]
    sides = [side.strip() for side in args.sides.split(";")]
    result: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(args).items()}, "sides": {}}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files: dict[str, str] = {}
        if any(side.startswith(LLAMA) for side in sides):
            from pipeline.export.gguf import write_gguf

            kinds = tuple(side.removeprefix(LLAMA) for side in sides if side.startswith(LLAMA))
            made = write_gguf(Path(args.model), place, "model", place / "convert.txt", kinds)
            files = {kind: str(path) for kind, path in made.items()}
        for _ in range(args.rounds):
            for side in sides:
                job = {"side": side, "model": str(args.model), "prompts": prompts, "files": files}
                job |= {"tokens": args.tokens, "batch": args.batch, "threads": args.threads}
                job["ends"] = args.ends
                (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
                command = [sys.executable, __file__, "--model", args.model, "--questions", str(args.questions)]
                done = subprocess.run(
                    [*command, "--turn", str(place / "job.json")],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                    cwd=ROOT,
                )
                result["sides"].setdefault(side, []).append(json.loads(done.stdout.splitlines()[-1]))
                if args.output:  # after every turn
                    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
