"""Unsloth against transformers and PEFT, training the same LoRA on a CPU: tokens a second and peak memory, as measured.

    python benchmarks/unsloth_cpu.py --config FILE --tokenizer DIR --output unsloth_cpu.json

FILE is a published ``config.json``, DIR a folder with its tokenizer; the weights are random, the same for both sides.

* ``unsloth``: ``FastLanguageModel.from_pretrained`` and ``get_peft_model``;
* ``transformers + PEFT``: ``AutoModelForCausalLM.from_pretrained`` and ``peft.get_peft_model``.

Both give their model to TRL's SFTTrainer with the same arguments, rows of random tokens that all bear loss, batch, rank, number
of threads and dtype, and LoRA weights in float32. Each turn is a fresh process; the sides take turns and change their order.
The first steps of a turn warm up and are not timed; memory is the highest resident set of the whole turn after the imports.

TRL's SFTTrainer by itself computes its loss through a Triton kernel that a CPU does not have; Unsloth puts a chunked loss in its
place. The other side therefore has transformers' own loss (``Trainer.compute_loss``), with whole logits. What TRL says without
that is written down as ``stock_trl``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIDES = ("unsloth", "transformers + PEFT")
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# --- one turn, in its own process ---------------------------------------------------------------------------------------


def load(side: str, job: dict[str, Any], dtype: Any) -> tuple[Any, Any, Any]:
    """(model with LoRA, tokenizer, trainer class) of a side."""
    if side == "unsloth":
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=job["folder"], max_seq_length=job["length"], load_in_4bit=False, load_in_16bit=True, dtype=dtype
        )
        model = FastLanguageModel.get_peft_model(
            model,
            r=job["rank"],
            lora_alpha=job["rank"],
            lora_dropout=0.0,
            target_modules=MODULES,
            use_gradient_checkpointing=False,
        )
        from trl import SFTTrainer

        return model, tokenizer, SFTTrainer
    import transformers
    from peft import LoraConfig, get_peft_model
    from trl import SFTTrainer

    class Plain(SFTTrainer):
        compute_loss = transformers.Trainer.compute_loss

    model = transformers.AutoModelForCausalLM.from_pretrained(job["folder"], dtype=dtype)
    lora = LoraConfig(r=job["rank"], lora_alpha=job["rank"], target_modules=MODULES, task_type="CAUSAL_LM")
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["folder"])
    return get_peft_model(model, lora), tokenizer, SFTTrainer if job.get("stock") else Plain


def turn(job: dict[str, Any]) -> dict[str, Any]:
    """Train the warm-up steps and the timed ones; returns seconds, tokens, memory and the losses."""
    import resource

    side = job["side"]
    if side == "unsloth":
        import unsloth  # noqa: F401  (before transformers)
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig

    torch.set_num_threads(job["threads"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model, tokenizer, trainer_class = load(side, job, getattr(torch, job["dtype"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    generator = torch.Generator().manual_seed(0)
    steps = job["warm_up"] + job["steps"]
    rows = [
        {"input_ids": ids, "labels": ids}
        for ids in torch.randint(0, 1000, (steps * job["batch"], job["length"]), generator=generator).tolist()
    ]
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            args=SFTConfig(
                output_dir=folder,
                max_length=None,
                max_steps=steps,
                per_device_train_batch_size=job["batch"],
                learning_rate=1e-4,
                optim="adamw_torch_fused",
                gradient_checkpointing=False,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                bf16=False,
                packing=False,
                dataloader_pin_memory=False,
                seed=0,
            ),
            callbacks=[Clock()],
        )
        trainer.train()
    seconds = times[-1] - times[job["warm_up"]]
    return {
        "side": side,
        "seconds": seconds,
        "tokens": job["steps"] * job["batch"] * job["length"],
        "tokens_per_second": job["steps"] * job["batch"] * job["length"] / seconds,
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
        "libraries_bytes": before,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "base_dtype": str(next(p.dtype for p in model.parameters() if not p.requires_grad)).removeprefix("torch."),
        "attention": model.config._attn_implementation,
    }


# --- all of them --------------------------------------------------------------------------------------------------------


def run_turn(job: dict[str, Any]) -> tuple[int, str, str]:
    """A turn in a fresh process: exit code, answer, log."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(job)]
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log, tempfile.TemporaryDirectory() as here:
        done = subprocess.run(
            command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, check=False
        )
        log.seek(0)
        return done.returncode, done.stdout, log.read()


def measure(job: dict[str, Any], rounds: int) -> dict[str, Any]:
    """All turns and what they come to."""
    code, _, log = run_turn(job | {"side": SIDES[1], "stock": True, "length": 16, "batch": 1, "warm_up": 0, "steps": 1})
    stock = "works" if code == 0 else last_error(log)
    turns = []
    for number in range(rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            code, answer, log = run_turn(job | {"side": side})
            if code:
                raise SystemExit(f"{side} ended with code {code}:\n{log[-3000:]}")
            turns.append(json.loads(answer) | {"round": number, "load": os.getloadavg()[0]})
            one = turns[-1]
            print(
                f"round {number + 1}, {side}: {one['tokens_per_second']:.1f} tokens/s, {one['memory_bytes'] / 2**20:,.0f} MiB",
                file=sys.stderr,
            )
    sides = {}
    for side in SIDES:
        own = [t for t in turns if t["side"] == side]
        sides[side] = {
            "tokens_per_second": statistics.median(t["tokens_per_second"] for t in own),
            "tokens_per_second_rounds": [t["tokens_per_second"] for t in own],
            "memory_bytes": max(t["memory_bytes"] for t in own),
            "libraries_bytes": max(t["libraries_bytes"] for t in own),
            "first_loss": own[0]["losses"][0],
            "last_loss": own[0]["losses"][-1],
        }
    ours, theirs = (sides[side] for side in SIDES)
    return {
        "job": {key: value for key, value in job.items() if key != "folder"},
        "stock_trl": stock,
        "sides": sides,
        "speed_ratio": ours["tokens_per_second"] / theirs["tokens_per_second"],
        "memory_ratio": ours["memory_bytes"] / theirs["memory_bytes"],
        "turns": turns,
    }


def last_error(log: str) -> str:
    """The last line of a log that names an exception; progress bars may stand after it."""
    lines = log.strip().splitlines()
    return next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)), lines[-1])


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        "| side | tokens/s, median | rounds | memory above the libraries | libraries | loss, first and last step |",
        "|---|--:|---|--:|--:|---|",
    ]
    for side, found in result["sides"].items():
        rounds = ", ".join(f"{rate:.1f}" for rate in found["tokens_per_second_rounds"])
        cells = [side, f"{found['tokens_per_second']:.1f}", rounds]
        cells += [f"{found[key] / 2**20:,.0f} MiB" for key in ("memory_bytes", "libraries_bytes")]
        lines.append("| " + " | ".join([*cells, f"{found['first_loss']:.3f}, {found['last_loss']:.3f}"]) + " |")
    job = result["job"]
    return "\n".join(
        [
            *lines,
            "",
            f"Unsloth ÷ transformers + PEFT: {result['speed_ratio']:.2f} of the tokens a second, {result['memory_ratio']:.2f} of "
            f"the memory; LoRA of rank {job['rank']}, {job['dtype']}, {job['batch']} × {job['length']} tokens a step, "
            f"{job['steps']} steps timed, {job['threads']} threads.",
            "",
            f"TRL's SFTTrainer with its own loss, without Unsloth: {result['stock_trl']}",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, metavar="FILE", help="config.json of the model")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder with its tokenizer")
    parser.add_argument("--batch", type=int, default=2, help="rows a step (default: 2)")
    parser.add_argument("--length", type=int, default=128, help="tokens a row (default: 128)")
    parser.add_argument("--rank", type=int, default=16, help="default: 16")
    parser.add_argument("--steps", type=int, default=4, help="timed steps a turn (default: 4)")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them (default: 1)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: as many as there are cores")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: bfloat16 where the CPU has it")
    parser.add_argument("--output", type=Path, help="write the numbers here, as JSON")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        answer = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes to the log
        print(json.dumps(turn(args.worker)), file=answer, flush=True)
        return 0
    if not args.config or not args.tokenizer:
        parser.error("--config and --tokenizer are needed")
    from benchmarks.random_model import make_apart
    from pipeline.core.files import write_json
    from pipeline.core.versions import version_of
    from pipeline.model.dtype import cpu_has_bfloat16

    dtype = args.dtype or ("bfloat16" if cpu_has_bfloat16() else "float32")
    keys = ("batch", "length", "rank", "steps", "warm_up", "threads")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make_apart(args.config, args.tokenizer, folder)
        job = {key: getattr(args, key) for key in keys} | {"dtype": dtype, "folder": str(folder)}
        result = measure(job, args.rounds)
    result["cores"] = os.cpu_count()
    result["versions"] = {name: version_of(name) for name in ("unsloth", "transformers", "peft", "trl", "torch")}
    print(table(result))
    if args.output:
        write_json(args.output, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
