"""What our evaluation costs: beside plain batched decoding, and beside EvalScope's own checkpoint back end.

    python benchmarks/evaluation.py --limit 200 --output evaluation.json

Every side answers the same items, the embedded benchmarks in both modes, with the sampling and the batch size of the profile:

* ``ours``: ``evaluate_model``, from an empty folder to the scores (EvalScope in front, our batches behind it);
* ``batched``: the same prompts through ``pipeline.model.decode`` alone, no EvalScope;
* ``plain``: the same prompts through ``model.generate`` as its documentation shows it: padding on the left, ``do_sample``;
* ``checkpoint``: EvalScope is given the model's folder (``eval_type="llm_ckpt"``), in its default precision, float16;
* ``checkpoint_bf16``: the same in bfloat16, the precision of ``ours_16bit``;
* ``checkpoint_default``: the same as ``checkpoint`` with the default batch size, 1; on fewer items (``--default-items``).

``ours``, ``batched`` and ``plain`` have the model in 4 bit through Unsloth; those that end in ``_16bit`` in 16 bit. EvalScope's
back end loads the folder as it is. Each side is a process of its own that loads the model once, answers two items to warm up and
then takes its turn in every round. Loading and warming up are reported apart. All libraries have OMP_NUM_THREADS threads
(default: 1, best for a model of this size).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OURS = ("ours", "batched", "plain", "ours_16bit", "batched_16bit", "plain_16bit")
CHECKPOINT = ("checkpoint", "checkpoint_bf16", "checkpoint_default")
SIDES = (*OURS, *CHECKPOINT)
WARM_UP = 2  # items a benchmark and mode
# What is compared: (slower side expected, the other one, what is wanted of seconds a reply of the first ÷ of the second).
RATIOS = (
    ("ours", "batched", "at most 1.3"),
    ("ours", "plain", "at most 1.3"),
    ("ours_16bit", "batched_16bit", "at most 1.3"),
    ("ours_16bit", "plain_16bit", "at most 1.3"),
    ("checkpoint", "ours", "at least 3"),
    ("checkpoint", "ours_16bit", ""),
    ("checkpoint_bf16", "ours_16bit", "at least 3"),
    ("checkpoint_default", "ours", "at least 3"),
)


# --- one side, in its own process ---------------------------------------------------------------------------------------


def evaluation_settings(profile_name: str, limit: int) -> Any:
    """The profile's evaluation with so many items a benchmark."""
    from pipeline.settings import load_profile

    return load_profile(profile_name, [f"evaluation.limit={limit}"]).evaluation


class Unsloth:
    """Our sides: the model is loaded as a run loads it."""

    def __init__(self, side: str, profile_name: str):
        from pipeline.model.load import load_model
        from pipeline.settings import load_profile

        self.side, self.profile_name = side.removesuffix("_16bit"), profile_name
        bits = "true" if side == self.side else "false"
        profile = load_profile(profile_name, [f"model.load_in_4bit={bits}"])
        self.model, self.tokenizer = load_model(profile.model, profile.seed)

    def measure(self, limit: int) -> dict[str, Any]:
        """One round: seconds, replies, tokens; for ``ours`` the scores and the seconds inside of generation as well."""
        settings = evaluation_settings(self.profile_name, limit)
        return self._evaluate(settings) if self.side == "ours" else self._decode(settings)

    def _evaluate(self, settings: Any) -> dict[str, Any]:
        import pipeline.evaluation.evaluate as evaluate
        from pipeline.model import decoders

        replies: list[Any] = []
        inside = 0.0
        original = decoders.Decoders.generate

        def timed(*args: Any, **kwargs: Any) -> list[Any]:
            nonlocal inside
            started = time.perf_counter()
            new = original(*args, **kwargs)
            inside += time.perf_counter() - started
            replies.extend(new)
            return new

        with tempfile.TemporaryDirectory() as folder:
            decoders.Decoders.generate = timed  # type: ignore[method-assign]
            started = time.perf_counter()
            try:
                cells = evaluate.evaluate_model(
                    self.model, self.tokenizer, "benchmark", settings, Path(folder), progress=False
                )
            finally:
                decoders.Decoders.generate = original  # type: ignore[method-assign]
            seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "seconds_in_generate": inside,
            "replies": sum(cell["n"] for cell in cells.values()),
            "tokens": sum(reply.output_tokens for reply in replies),
            "scores": {
                f"{mode}/{name}": result["score"]
                for mode, cell in cells.items()
                for name, result in cell["benchmarks"].items()
            },
        }

    def _decode(self, settings: Any) -> dict[str, Any]:
        from pipeline.core.modes import MODES
        from pipeline.data.chat_format import ChatFormat
        from pipeline.model.decode import generate

        started = time.perf_counter()
        chat_format = ChatFormat(self.tokenizer)
        replies = tokens = 0
        for mode in MODES:
            sampling = getattr(settings.sampling, mode)
            for name in settings.benchmarks:
                prompts = [chat_format.prompt_ids(item["messages"], mode) for item in items(name, settings)]
                if self.side == "plain":
                    counts = self._plain(prompts, sampling, settings.batch_size)
                else:
                    found = generate(self.model, self.tokenizer, prompts, sampling, settings.batch_size, settings.seed)
                    counts = [reply.output_tokens for reply in found]
                replies, tokens = replies + len(counts), tokens + sum(counts)
        return {"seconds": time.perf_counter() - started, "replies": replies, "tokens": tokens}

    def _plain(self, prompts: list[list[int]], sampling: Any, batch_size: int) -> list[int]:
        import torch
        from unsloth import FastLanguageModel

        FastLanguageModel.for_inference(self.model)
        end = self.tokenizer.eos_token_id
        counts = []
        for start in range(0, len(prompts), batch_size):
            batch = {"input_ids": prompts[start : start + batch_size]}
            inputs = self.tokenizer.pad(batch, padding_side="left", return_tensors="pt").to(self.model.device)
            with torch.inference_mode():
                output = self.model.generate(
                    **inputs,
                    do_sample=True,
                    **sampling.model_dump(),
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            rows = output[:, inputs["input_ids"].shape[1] :].tolist()
            self.tokenizer.batch_decode(rows, skip_special_tokens=True)
            counts += [row.index(end) + 1 if end in row else len(row) for row in rows]
        return counts


def items(name: str, settings: Any) -> list[dict[str, Any]]:
    """The items that ``evaluate_model`` asks."""
    from pipeline.data import corpora
    from pipeline.evaluation.evalscope.items import EMBEDDED

    return corpora.test_items(EMBEDDED[name], settings.limit, settings.seed)


class Checkpoint:
    """EvalScope's own back end on the model's folder; only the benchmarks themselves are registered by us."""

    def __init__(self, side: str, profile_name: str):
        import evalscope.models.modelscope as back_end

        import pipeline.evaluation.evalscope.bridge  # noqa: F401  (registers the embedded benchmarks)
        from pipeline.settings import load_profile, locate

        self.side, self.profile_name = side, profile_name
        self.folder = str(locate(load_profile(profile_name).model.name))
        self.loading = 0.0
        self.texts: list[str] = []
        self.tokenizer: Any = None
        load, reply = back_end.ModelScopeAPI.__init__, back_end.batched_generate

        def timed(api: Any, *args: Any, **kwargs: Any) -> None:
            started = time.perf_counter()
            load(api, *args, **kwargs)
            self.loading += time.perf_counter() - started
            self.tokenizer = api.tokenizer

        def noted(question: Any) -> Any:
            found = reply(question)
            self.texts += [one.output for one in found]
            return found

        back_end.ModelScopeAPI.__init__ = timed
        back_end.batched_generate = noted

    def measure(self, limit: int) -> dict[str, Any]:
        """One round; the model is loaded in the first one, once a mode, which ``loading`` says."""
        from evalscope.config import TaskConfig
        from evalscope.run import run_task

        from pipeline.core.files import write_jsonl
        from pipeline.core.modes import MODES

        settings = evaluation_settings(self.profile_name, limit)
        precision = "torch.bfloat16" if self.side == "checkpoint_bf16" else "torch.float16"
        batch = {} if self.side == "checkpoint_default" else {"eval_batch_size": settings.batch_size}
        self.texts, self.loading, scores, replies = [], 0.0, {}, 0
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as temporary:
            arguments = {}
            for name in settings.benchmarks:
                folder = Path(temporary) / "data" / name
                write_jsonl(folder / "test.jsonl", items(name, settings))
                arguments[name] = {"local_path": str(folder)}
            for mode in MODES:
                sampling = getattr(settings.sampling, mode)
                reports = run_task(
                    TaskConfig(
                        model=self.folder,
                        eval_type="llm_ckpt",
                        model_args={"precision": precision, "enable_thinking": mode == "thinking"},
                        datasets=settings.benchmarks,
                        dataset_args=arguments,
                        generation_config={
                            "do_sample": True,
                            **sampling.model_dump(exclude={"max_new_tokens", "min_p"}),
                            "max_tokens": sampling.max_new_tokens,
                        },
                        work_dir=str(Path(temporary) / mode),
                        **batch,
                    )
                )
                for name, report in reports.items():
                    scores[f"{mode}/{name}"] = report.score
                    replies += report.num
        seconds = time.perf_counter() - started - self.loading
        # A reply's tokens without padding, which EvalScope counts along, and with the end token.
        tokens = sum(len(ids) + 1 for ids in self.tokenizer(self.texts, add_special_tokens=False)["input_ids"])
        return {"seconds": seconds, "loading": self.loading, "replies": replies, "tokens": tokens, "scores": scores}


def work(side: str, profile_name: str) -> None:
    """The side's process: load, say so, then one round for each number of items that is read."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    started = time.perf_counter()
    one = (Checkpoint if side in CHECKPOINT else Unsloth)(side, profile_name)
    loaded = time.perf_counter() - started
    first = one.measure(WARM_UP)
    ready = {"start": loaded + first.get("loading", 0.0), "warm_up": first["seconds"]}
    print(json.dumps(ready), file=answers, flush=True)
    from pipeline.training.measure import peak_memory_bytes

    for line in sys.stdin:
        before = os.times()
        result = one.measure(int(line))
        after = os.times()
        result |= {"cpu_seconds": after.user + after.system - before.user - before.system}
        print(json.dumps(result | {"peak_memory_bytes": peak_memory_bytes()}), file=answers, flush=True)


# --- all of them --------------------------------------------------------------------------------------------------------


class Worker:
    """A side's process, seen from outside."""

    def __init__(self, side: str, profile_name: str, log: Path):
        self.side, self.log = side, log
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", side, "--profile", profile_name]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, cwd=log.parent, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        self.ready = self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise SystemExit(f"{self.side} ended with code {self.process.wait()}:\n{tail}")
        result: dict[str, Any] = json.loads(line)
        return result

    def round(self, limit: int) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(f"{limit}\n".encode())
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(sides: list[str], profile_name: str, limit: int, default_items: int, rounds: int) -> dict[str, Any]:
    """All rounds of all sides, the sides taking turns."""
    results: dict[str, Any] = {side: {"rounds": []} for side in sides}
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for side in sides:
                workers.append(Worker(side, profile_name, Path(folder) / f"{side}.log"))
                results[side] |= workers[-1].ready
            for number in range(rounds):
                for worker in workers:
                    load = os.getloadavg()[0]
                    one = worker.round(default_items if worker.side == "checkpoint_default" else limit)
                    results[worker.side]["rounds"].append(one | {"load_before": load})
                    print(
                        f"round {number + 1}, {worker.side}: {one['seconds']:.2f} s, load {load:.1f}", file=sys.stderr
                    )
        finally:
            for worker in workers:
                worker.end()
    for result in results.values():
        turns = result["rounds"]
        result["seconds"] = statistics.median(turn["seconds"] for turn in turns)
        result["cpu_seconds"] = statistics.median(turn["cpu_seconds"] for turn in turns)
        result["replies"], result["tokens"] = turns[-1]["replies"], turns[-1]["tokens"]
        result["seconds_a_reply"] = result["seconds"] / result["replies"]
        result["peak_memory_bytes"] = max(turn["peak_memory_bytes"] for turn in turns)
    return results


def ratios(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds a reply of one side ÷ of another: the ratio of the medians, and the smallest and largest of a round."""
    found = []
    for first, second, wanted in RATIOS:
        if first in results and second in results:
            pairs = zip(results[first]["rounds"], results[second]["rounds"], strict=True)
            rounds = [a["seconds"] / a["replies"] / (b["seconds"] / b["replies"]) for a, b in pairs]
            found.append(
                {
                    "ratio": f"{first} ÷ {second}",
                    "median": results[first]["seconds_a_reply"] / results[second]["seconds_a_reply"],
                    "lowest": min(rounds),
                    "highest": max(rounds),
                    "wanted": wanted,
                }
            )
    return found


def table(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    lines = [
        "| side | replies | tokens a reply | seconds, median | each round | CPU seconds | ms a reply | peak MiB "
        "| loading, warming up (s) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for side, result in report["sides"].items():
        rounds = ", ".join(f"{turn['seconds']:.2f}" for turn in result["rounds"])
        cells = [side, str(result["replies"]), f"{result['tokens'] / result['replies']:.1f}"]
        cells += [f"{result['seconds']:.2f}", rounds, f"{result['cpu_seconds']:.2f}"]
        cells += [f"{1000 * result['seconds_a_reply']:.1f}", f"{result['peak_memory_bytes'] / 2**20:,.0f}"]
        lines.append("| " + " | ".join([*cells, f"{result['start']:.1f}, {result['warm_up']:.1f}"]) + " |")
    lines += ["", "| seconds a reply | median | rounds | wanted |", "|---|---|---|---|"]
    for entry in report["ratios"]:
        span = f"{entry['lowest']:.2f} to {entry['highest']:.2f}"
        lines.append(f"| {entry['ratio']} | {entry['median']:.2f} | {span} | {entry['wanted']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="embedded", help="default: embedded")
    parser.add_argument("--limit", type=int, default=200, help="items a benchmark and mode (default: 200)")
    parser.add_argument("--default-items", type=int, default=20, help="the same, of checkpoint_default (default: 20)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="default: all")
    parser.add_argument("--output", type=Path, help="write the numbers here, as JSON")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.profile)
        return
    sys.path.insert(0, str(ROOT))
    from pipeline.core.files import write_json
    from pipeline.core.versions import version_of

    before = os.getloadavg()
    results = measure(args.sides, args.profile, args.limit, args.default_items, args.rounds)
    report = {
        "profile": args.profile,
        "items": args.limit,
        "cores": os.cpu_count(),
        "load": {"before": before, "after": os.getloadavg()},
        "versions": {name: version_of(name) for name in ("evalscope", "unsloth", "transformers", "torch")},
        "sides": results,
        "ratios": ratios(results),
    }
    print(table(report))
    if args.output:
        write_json(args.output, report)


if __name__ == "__main__":
    main()
