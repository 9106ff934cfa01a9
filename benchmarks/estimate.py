"""The memory estimate against what a training really takes, case by case, each in a fresh process.

    python benchmarks/estimate.py --output estimate.json                                       # the embedded model
    python benchmarks/estimate.py --config FILE --tokenizer DIR --output estimate.json         # and a model of that shape

FILE is a published ``config.json``, DIR a folder with its tokenizer; the weights are random, which changes neither memory nor
time. Each case loads the model as a run does (Unsloth, ``pipeline.model.load``) and trains a few steps on rows of random
tokens, all with loss, the first of each batch as long as it says and the others one token shorter: there is padding, as in a
real batch.

On a CPU, memory is the resident set of the process:

* ``libraries``: after the imports and two steps of a model of negligible size, so that whatever is loaded late is loaded;
* ``loading``: the highest that it stood until the training began;
* ``peak``: the highest during the training (the kernel's own mark, set back before the first step);
* ``measured``: peak - libraries, which is what ``pipeline.training.estimate.memory`` counts; ``ratio``: estimated ÷ measured.

glibc keeps much of what is freed in its heap, and the resident set then says what the process holds rather than what it needs. So
the processes have it return blocks of 64 KiB and more (``MALLOC_MMAP_THRESHOLD_``), which also makes them slower;
``--default-malloc`` measures every case a second time as glibc comes (``held``), for what a run really holds on this machine.

On a GPU it is the allocator's own peak (``torch.cuda.max_memory_allocated``), and nothing has to be subtracted.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

EMBEDDED = ROOT / "models" / "embedded"
TOLERANCE = 0.15
STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
TINY = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
TINY |= {"num_key_value_heads": 1, "head_dim": 64, "layer_types": None}

# (method, rows, tokens, gradient checkpointing, bytes of a trained weight) of each model
EMBEDDED_CASES = (
    ("full", 8, 256, False, 4),
    ("lora", 8, 256, False, 4),
    ("qlora", 8, 256, False, 4),
    ("qlora", 32, 256, False, 4),
    ("qlora", 32, 256, True, 4),
)
LARGE_CASES = (
    ("full", 1, 256, False, 2),
    ("lora", 2, 256, False, 4),
    ("lora", 2, 512, True, 4),
    ("qlora", 2, 256, False, 4),
    ("qlora", 2, 512, True, 4),
)


# --- one case, in its own process ---------------------------------------------------------------------------------------


def resident(what: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (highest since the mark was set), in bytes."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"{STATUS} has no {what}; this needs Linux.")


def load(case: dict[str, Any], folder: Path, profile: Any) -> tuple[Any, Any]:
    """Model and tokenizer, ready to be trained by the case's method."""
    from pipeline.model.load import load_model
    from pipeline.model.methods import add_adapter

    if case["method"] != "full":
        model, tokenizer = load_model(profile.model, profile.seed)
        return add_adapter(model, profile.lora, profile.training, profile.seed), tokenizer
    import torch
    from unsloth import FastLanguageModel

    if profile.model.cpu_threads:
        torch.set_num_threads(profile.model.cpu_threads)
    return FastLanguageModel.from_pretrained(
        model_name=str(folder),
        max_seq_length=profile.model.max_seq_length,
        full_finetuning=True,
        load_in_4bit=False,
        use_gradient_checkpointing="unsloth" if case["gradient_checkpointing"] else False,
    )


def case_profile(case: dict[str, Any], folder: Path) -> Any:
    """The embedded profile with the case's settings."""
    from pipeline.settings import load_profile

    settings = {
        "model.name": json.dumps(str(folder)),
        "model.load_in_4bit": json.dumps(case["method"] == "qlora"),
        "model.max_seq_length": case["length"],
        "model.cpu_threads": case["threads"],
        "model.dtype": "auto",  # the embedded profile has float32
        "lora.rank": case["rank"],
        "training.max_steps": case["steps"],
        "training.per_device_train_batch_size": case["batch"],
        "training.gradient_checkpointing": json.dumps(case["gradient_checkpointing"]),
        "training.group_by_length": "false",
        "training.learning_rate": "1e-4",
        "training.logging_steps": 1,
        "training.save_steps": 10**6,
    }
    return load_profile("embedded", [f"{key}={value}" for key, value in settings.items()])


def prepare(case: dict[str, Any], folder: Path, output_dir: Path) -> Any:
    """A trainer of the case, and nothing else kept."""
    from types import SimpleNamespace

    import torch
    from datasets import Dataset

    from pipeline.training.train import make_sft_trainer

    profile = case_profile(case, folder)
    model, tokenizer = load(case, folder, profile)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(case["batch"] * case["steps"]):
        length = case["length"] - (number % case["batch"] > 0)
        ids = torch.randint(0, 256, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": ids})
    data = Dataset.from_list(rows)
    mix: Any = SimpleNamespace(train=data, validation=data.select([]))
    trainer = make_sft_trainer(model, tokenizer, profile, mix, output_dir)
    trainer.args.save_strategy = "no"
    if case["method"] == "full" and case["trainable_bytes"] == 2:
        for parameter in trainer.model.parameters():  # pure bfloat16, as Unsloth loads it
            parameter.data = parameter.data.bfloat16()
    return trainer


def measure(case: dict[str, Any], tiny: Path) -> dict[str, Any]:
    """Train the case's few steps; returns memory in bytes and seconds."""
    from pipeline.core.versions import import_unsloth

    import_unsloth()
    import torch

    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as temporary:
        small = case | {"batch": 1, "length": 16, "steps": 2}
        prepare(small, tiny, Path(temporary) / "tiny").train()
        gc.collect()
        libraries = 0 if cuda else resident("VmRSS")
        if not cuda:
            MARK.write_text("5", encoding="ascii")
        trainer = prepare(case, Path(case["folder"]), Path(temporary) / "case")
        gc.collect()
        if cuda:
            loading = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            loading = resident("VmHWM")
            MARK.write_text("5", encoding="ascii")
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "dtype": str(next(p.dtype for n, p in trainer.model.named_parameters() if "norm" in n)).removeprefix("torch."),
        "trainable": str(next(p.dtype for p in trainer.model.parameters() if p.requires_grad)).removeprefix("torch."),
        "libraries": libraries,
        "loading": loading,
        "peak": peak,
        "measured": peak - libraries,
        "seconds": seconds,
    }


def estimated(case: dict[str, Any], cuda: bool) -> dict[str, int]:
    """The count for the case, by part."""
    from pipeline.training.estimate import memory, profile_job, profile_sizes

    profile = case_profile(case, Path(case["folder"]))
    job = profile_job(profile, "cuda" if cuda else "cpu", case["method"])
    return memory(profile_sizes(profile), replace(job, trainable_bytes=case["trainable_bytes"]))


# --- all of them --------------------------------------------------------------------------------------------------------


def make_cases(name: str, folder: Path, cases: Any, rank: int, steps: int, threads: int) -> list[dict[str, Any]]:
    """Cases as plain data."""
    keys = ("method", "batch", "length", "gradient_checkpointing", "trainable_bytes")
    common = {"model": name, "folder": str(folder), "rank": rank, "steps": steps, "threads": threads}
    return [common | dict(zip(keys, case, strict=True)) for case in cases]


def run_case(case: dict[str, Any], tiny: Path, default_malloc: bool) -> dict[str, Any]:
    """Measure a case in a fresh process (or two), and count it."""
    found = in_process(case, tiny, RETURNING)
    held = in_process(case, tiny, {})["measured"] if default_malloc else None
    parts = estimated(case, found["device"] != "cpu")
    shown = {key: value for key, value in case.items() if key != "folder"} | found | {"held": held}
    return shown | {"parts": parts, "estimated": parts["total"], "ratio": parts["total"] / found["measured"]}


def in_process(case: dict[str, Any], tiny: Path, malloc: dict[str, str]) -> dict[str, Any]:
    """``measure`` in a fresh process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(case | {"tiny": str(tiny)})]
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ, "PYTHONPATH": str(ROOT)}
    environment |= malloc
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log, tempfile.TemporaryDirectory() as here:
        done = subprocess.run(command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=log, check=False)
        if done.returncode:
            log.seek(0)
            raise SystemExit(f"{case} ended with code {done.returncode}:\n{log.read()[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(result: dict[str, Any]) -> str:
    """The result in Markdown: sizes in MiB, and whether each ratio is within the tolerance."""
    lines = [
        "| model | method | rows × tokens | checkpointing | trained weights | estimated | measured | ratio | held by glibc |",
        "|---|---|---|---|---|--:|--:|--:|--:|",
    ]
    for case in result["cases"]:
        cells = [case["model"], case["method"], f"{case['batch']} × {case['length']}"]
        cells += ["yes" if case["gradient_checkpointing"] else "no", case["trainable"]]
        cells += [f"{case[key] / 2**20:,.0f} MiB" for key in ("estimated", "measured")]
        held = f"{case['held'] / 2**20:,.0f} MiB" if case["held"] else ""
        lines.append("| " + " | ".join([*cells, f"{case['ratio']:.2f}", held]) + " |")
    worst = max(result["cases"], key=lambda case: abs(case["ratio"] - 1))
    libraries = sorted(case["libraries"] / 2**20 for case in result["cases"])
    return "\n".join(
        [
            *lines,
            "",
            f"Furthest off: {worst['ratio']:.2f} ({worst['model']}, {worst['method']}). The libraries alone: "
            f"{libraries[0]:,.0f} to {libraries[-1]:,.0f} MiB, subtracted above.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="config.json of a model to measure with random weights"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder with that model's tokenizer")
    parser.add_argument("--name", default="Qwen3-0.6B's shape", help="what to call it (default: Qwen3-0.6B's shape)")
    parser.add_argument("--methods", nargs="+", choices=["full", "lora", "qlora"], default=["full", "lora", "qlora"])
    parser.add_argument("--models", nargs="+", choices=["embedded", "large"], default=["embedded", "large"])
    parser.add_argument("--full-float32", action="store_true", help="train the large model's weights in float32: 11 GB")
    parser.add_argument("--default-malloc", action="store_true", help="measure a second time with glibc's own settings")
    parser.add_argument("--rank", type=int, default=32, help="of LoRA (default: 32)")
    parser.add_argument("--steps", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    parser.add_argument("--output", type=Path, help="write the numbers here, as JSON")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        answer = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes to the log
        case = {key: value for key, value in args.worker.items() if key != "tiny"}
        print(json.dumps(measure(case, Path(args.worker["tiny"]))), file=answer, flush=True)
        return 0
    if bool(args.config) != bool(args.tokenizer):
        parser.error("--config and --tokenizer go together")
    from benchmarks.random_model import make_apart
    from pipeline.core.files import write_json
    from pipeline.core.versions import version_of

    settings = (args.rank, args.steps, args.threads)
    result: dict[str, Any] = {
        "cores": os.cpu_count(),
        "versions": {name: version_of(name) for name in ("unsloth", "transformers", "peft", "bitsandbytes", "torch")},
        "tolerance": TOLERANCE,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folders = {"embedded": EMBEDDED}
        cases = make_cases("embedded", EMBEDDED, EMBEDDED_CASES, *settings) if "embedded" in args.models else []
        if args.config and "large" in args.models:
            folders[args.name] = Path(temporary) / "large"
            make_apart(args.config, args.tokenizer, folders[args.name])
            cases += make_cases(args.name, folders[args.name], LARGE_CASES, *settings)
        for name, folder in folders.items():
            make_apart(folder / "config.json", folder, Path(temporary) / f"tiny {name}", **TINY)
        for case in (case for case in cases if case["method"] in args.methods):
            if args.full_float32:
                case["trainable_bytes"] = 4
            result["cases"].append(run_case(case, Path(temporary) / f"tiny {case['model']}", args.default_malloc))
            last = result["cases"][-1]
            print(
                f"{last['model']}, {last['method']}, {last['batch']} × {last['length']}: {last['ratio']:.3f} "
                f"({last['seconds']:.0f} s)",
                file=sys.stderr,
            )
    print(table(result))
    if args.output:
        write_json(args.output, result)
    return 0 if all(abs(case["ratio"] - 1) <= TOLERANCE for case in result["cases"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
