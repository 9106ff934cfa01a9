"""How fast, and in how much memory, rows become tokens and masks: beside what a user would do otherwise.

    python benchmarks/data_path.py speed   --tokenizer DIR --data FILE [FILE …] --rows 20000
    python benchmarks/data_path.py memory  --tokenizer DIR --data FILE [FILE …] --rows 100000 1000000
    python benchmarks/data_path.py rebuild --tokenizer DIR --data FILE [FILE …] --rows 50000
    python benchmarks/data_path.py everything --tokenizer DIR --data FILE [FILE …] --math GSM8K_TRAIN --benchmarks GSM8K_TEST \
        --rows 20000

``speed`` runs three things on the same JSONL file, one after the other, and repeats the round: this pipeline (read, convert,
render, tokenise, mask, write the pool); the way of the public notebooks (``standardize_sharegpt``, ``apply_chat_template`` to
text, SFTTrainer's tokenisation, ``train_on_responses_only``); and the tokenizer alone on the same text, which is the limit.
``memory`` builds a mix from so many rows, cleaned, in a process of its own and reports its peak. ``rebuild`` builds a mix, then
another at another share from the same cache.

The files of --data are in any layout that the pipeline reads. They are repeated, each time with another number in the question,
until there are enough rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CLEAN = {
    "normalise": True,
    "broken_reasoning": True,
    "length": {"max_answer": 40_000},
    "repetition": {"at_most": 0.5},
    "refusals": True,
    "personal_data": {"action": "mask"},
    "exact_duplicates": True,
    "near_duplicates": {"threshold": 0.8},
}


def sharegpt_rows(files: list[str], rows: int) -> Iterator[dict[str, Any]]:
    """Rows of the files in FineTome's layout, one question and answer each, made unlike one another by a number."""
    from pipeline.data.conversations import Rejected, converter
    from pipeline.data.sources import read_rows
    from pipeline.settings import SourceSettings

    pairs = []
    convert = converter("auto")
    for file in files:
        source = SourceSettings(name="f", kind="chat", source="local", path=file, share=1.0)
        for row in read_rows(source):
            try:
                messages = convert(row.data or {}).messages
            except Rejected:
                continue
            texts = {m["role"]: m["content"] for m in messages[-2:]}
            if set(texts) == {"user", "assistant"} and all(t.strip() for t in texts.values()):
                pairs.append((texts["user"], texts["assistant"]))
    for number in range(rows):
        user, answer = pairs[number % len(pairs)]
        turns = [{"from": "human", "value": f"({number}) {user}"}, {"from": "gpt", "value": answer.strip()}]
        yield {"conversations": turns}


def write_rows(path: Path, files: list[str], rows: int) -> None:
    """The rows as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        for row in sharegpt_rows(files, rows):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds (wall clock) and what came of it."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


# --- the three ways -----------------------------------------------------------------------------------------------------


def ours(path: Path, tokenizer: Any) -> int:
    """Read, convert, render, tokenise, mask, write. Returns the number of loss-bearing tokens."""
    from pipeline.data.chat_format import ChatFormat
    from pipeline.data.pools import build_pool
    from pipeline.data.prepare import Preparation
    from pipeline.settings import SourceSettings

    source = SourceSettings(name="chat", kind="chat", source="local", path=str(path), format="sharegpt", share=1.0)
    pool = build_pool(Preparation(source, ChatFormat(tokenizer), 4096))
    return int(pool.rows["loss_tokens"].sum())


def notebooks_way(path: Path, tokenizer: Any, folder: Path) -> int:
    """As the public notebooks do it. Returns the number of loss-bearing tokens."""
    from datasets import load_dataset
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.chat_template_utils import _compile_jinja_template
    from trl import SFTConfig, SFTTrainer
    from unsloth.chat_templates import standardize_sharegpt, train_on_responses_only

    _compile_jinja_template.cache_clear()  # the sandbox as transformers makes it, without what ChatFormat puts into it
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder))
    rows = standardize_sharegpt(rows)

    def to_text(batch: dict[str, Any]) -> dict[str, Any]:
        return {"text": [tokenizer.apply_chat_template(c, tokenize=False) for c in batch["conversations"]]}

    rows = rows.map(to_text, batched=True)
    tiny = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=Qwen3ForCausalLM(tiny),
        processing_class=tokenizer,
        train_dataset=rows,
        args=SFTConfig(dataset_text_field="text", max_length=4096, output_dir=str(folder / "out"), report_to="none"),
    )
    trainer = train_on_responses_only(
        trainer, instruction_part="<|im_start|>user\n", response_part="<|im_start|>assistant\n"
    )
    return sum(label != -100 for row in trainer.train_dataset["labels"] for label in row)


def tokenizer_alone(texts: list[str], tokenizer: Any) -> int:
    """The limit: nothing but token ids, in batches as ``datasets.map`` would make them."""
    return sum(
        len(ids)
        for start in range(0, len(texts), 1000)
        for ids in tokenizer(texts[start : start + 1000], add_special_tokens=False)["input_ids"]
    )


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Medians of the rounds, in seconds, and ratios."""
    import unsloth  # noqa: F401  must come first
    from datasets import disable_progress_bars
    from transformers import AutoTokenizer

    from pipeline.data.chat_format import ChatFormat
    from pipeline.data.conversations import converter

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "rows.jsonl"
        write_rows(path, args.data, args.rows)
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        form = ChatFormat(tokenizer)
        lines = map(json.loads, path.open(encoding="utf-8"))
        texts = [p + t for row in lines for p, t, _, _ in form.render(converter("sharegpt")(row))]
        seconds: dict[str, list[float]] = {"ours": [], "notebooks": [], "tokenizer": []}
        for number in range(args.rounds):
            took, loss = timed(lambda: ours(path, tokenizer))
            seconds["ours"].append(took)
            seconds["tokenizer"].append(timed(lambda: tokenizer_alone(texts, tokenizer))[0])
            cache = folder / f"round-{number}"
            took, theirs = timed(lambda cache=cache: notebooks_way(path, tokenizer, cache))  # type: ignore[misc]
            seconds["notebooks"].append(took)
        median = {way: statistics.median(values) for way, values in seconds.items()}
        return {
            "rows": args.rows,
            "tokens": tokenizer_alone(texts, tokenizer),
            "loss_tokens": {"ours": loss, "notebooks": theirs},
            "seconds": {way: [round(v, 2) for v in values] for way, values in seconds.items()},
            "times_faster_than_notebooks": round(median["notebooks"] / median["ours"], 2),
            "times_the_tokenizer_alone": round(median["ours"] / median["tokenizer"], 2),
        }


# --- memory and rebuilding ----------------------------------------------------------------------------------------------


def _recipe(path: Path, share: float = 0.5, clean: bool = True) -> Any:
    from pipeline.settings import Recipe

    common = {"kind": "chat", "source": "local", "path": str(path), "format": "sharegpt"}
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "clean": CLEAN if clean else {},
            "group_near_duplicates": clean,
            "on_shortage": "repeat",
            "sources": [
                common | {"name": "one", "share": share},
                {"name": "two", "kind": "reasoning", "source": "generated", "path": "openmath_like", "rows": 5000,
                 "format": "openmathreasoning", "share": 1 - share},
            ],
        }
    )  # fmt: skip


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Build and save one mix in this process; its peak memory in bytes and its time."""
    from transformers import AutoTokenizer

    from pipeline.data.chat_format import ChatFormat
    from pipeline.data.mix import mix_from_recipe
    from pipeline.data.stored_mix import save_mix

    form = ChatFormat(AutoTokenizer.from_pretrained(args.tokenizer))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with tempfile.TemporaryDirectory() as name:
        recipe = _recipe(Path(args.data[0]), 0.99)
        recipe.total = round(args.rows[0] * 0.5)
        recipe.on_shortage = "repeat"
        seconds, mix = timed(
            lambda: mix_from_recipe(recipe, form, max_seq_length=4096, seed=1, cache=Path(name) / "cache")
        )
        saving, _ = timed(lambda: save_mix(mix, Path(name) / "mix"))
        source = mix.manifest["sources"][0]
    return {
        "rows": source["read"],
        "kept": source["kept"],
        "tokens": mix.manifest["total"]["tokens"],
        "seconds": round(seconds + saving, 1),
        "bytes_after_imports": before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    """``build`` for each number of rows, each in a process of its own."""
    results = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "rows.jsonl"
            write_rows(path, args.data, rows)
            command = [sys.executable, __file__, "build", "--tokenizer", args.tokenizer, "--data", str(path)]
            done = subprocess.run([*command, "--rows", str(rows)], check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout))
    return results


def rebuild(args: argparse.Namespace) -> dict[str, Any]:
    """A first build, then the same at another share; both to files on disk."""
    from transformers import AutoTokenizer

    from pipeline.data.chat_format import ChatFormat
    from pipeline.data.mix import mix_from_recipe
    from pipeline.data.stored_mix import save_mix

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "rows.jsonl"
        write_rows(path, args.data, args.rows[0])
        seconds = []
        for share in (0.5, 0.8):
            recipe = _recipe(path, share)
            recipe.total = args.rows[0] // 2

            def work(recipe: Any = recipe, share: float = share) -> None:
                form = ChatFormat(tokenizer)
                mix = mix_from_recipe(recipe, form, max_seq_length=4096, seed=1, cache=folder / "cache")
                save_mix(mix, folder / str(share))

            seconds.append(timed(work)[0])
    first, again = seconds
    return {
        "rows": args.rows[0],
        "first_seconds": round(first, 2),
        "another_share_seconds": round(again, 2),
        "times_faster": round(first / again, 1),
    }


# --- everything on ------------------------------------------------------------------------------------------------------


def math_rows(file: str, rows: int) -> Iterator[dict[str, Any]]:
    """GSM8K's rows in OpenMathReasoning's columns, the solution as reasoning, made unlike one another by a number."""
    items = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    for number in range(rows):
        item = items[number % len(items)]
        solution, _, gold = item["answer"].rpartition("####")
        told = f"<think>\n{solution.strip()}\n</think>\n\nThe answer is \\boxed{{{gold.strip()}}}."
        yield {
            "problem": f"({number}) {item['question']}",
            "generated_solution": told,
            "expected_answer": gold.strip(),
        }


def everything(args: argparse.Namespace) -> dict[str, Any]:
    """Rows a second with every step on, and the part of the time that each step takes. Seconds of the fastest round."""
    from transformers import AutoTokenizer

    from pipeline.data.chat_format import ChatFormat
    from pipeline.data.mix import mix_from_recipe
    from pipeline.settings import Recipe

    steps = CLEAN | {"languages": ["en", "zh"], "check_answer": True}
    half = args.rows[0] // 2
    form = ChatFormat(AutoTokenizer.from_pretrained(args.tokenizer))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "chat.jsonl", args.data, half)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in math_rows(args.math, half))
        (folder / "math.jsonl").write_text("".join(lines), encoding="utf-8")
        local = {"source": "local", "share": 0.5}
        items = [{"name": Path(f).stem, "source": "local", "path": str(Path(f).resolve())} for f in args.benchmarks]

        def built(without: str | None, number: int) -> float:
            clean = {step: how for step, how in steps.items() if step != without}
            recipe = Recipe.model_validate(
                {
                    "name": "everything",
                    "clean": clean,
                    "decontaminate": None if without == "decontaminate" else {"benchmarks": items},
                    "on_shortage": "repeat",
                    "total": half,
                    "sources": [
                        local | {"name": "chat", "kind": "chat", "path": str(folder / "chat.jsonl")},
                        local | {"name": "math", "kind": "reasoning", "path": str(folder / "math.jsonl"),
                                 "format": "openmathreasoning"},
                    ],
                }
            )  # fmt: skip
            cache = folder / f"cache-{without}-{number}"
            return timed(
                lambda: mix_from_recipe(recipe, form, max_seq_length=4096, seed=1, cache=cache, workers=args.workers)
            )[0]

        ways = [None, *steps, "decontaminate"]
        seconds = {str(way or "everything"): min(built(way, n) for n in range(args.rounds)) for way in ways}
    whole = seconds["everything"]
    return {
        "rows": half * 2,
        "workers": args.workers,
        "rows_a_second": round(2 * half / whole),
        "seconds": {way: round(took, 2) for way, took in seconds.items()},
        "part_of_the_time": {way: round(1 - took / whole, 3) for way, took in seconds.items() if way != "everything"},
    }


def main() -> None:
    """Run one benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "rebuild", "build", "everything"])
    parser.add_argument("--tokenizer", default=str(ROOT / "models" / "embedded"), help="folder of a tokenizer")
    parser.add_argument("--data", nargs="+", required=True, help="files with rows to repeat")
    parser.add_argument("--rows", nargs="+", type=int, default=[20_000])
    parser.add_argument("--math", help="everything: GSM8K's rows, JSONL with question and answer")
    parser.add_argument("--benchmarks", nargs="+", default=[], help="everything: files that no row may overlap")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.what == "speed":
        args.rows = args.rows[0]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(ROOT))
    work = {"speed": speed, "memory": memory, "rebuild": rebuild, "build": build, "everything": everything}[args.what]
    print(json.dumps(work(args), indent=2))


if __name__ == "__main__":
    main()
