"""What only a GPU shows, in minutes: one stage a call, its findings in ``OUTPUT/STAGE.json``.

    python benchmarks/gpu/smoke/smoke.py train --output-dir outputs/smoke --steps 40
    python benchmarks/gpu/smoke/smoke.py method-prompt --output-dir outputs/smoke --steps 4
    python benchmarks/gpu/smoke/smoke.py second --output-dir outputs/smoke
    python benchmarks/gpu/smoke/smoke.py shape-8b --output-dir outputs/smoke
    python benchmarks/gpu/smoke/smoke.py compare --output-dir outputs/smoke      # train on the GPU with train on the CPU

``smoke.sh`` calls them in order of value. On a CPU all of them run, ``shape-tiny`` in place of the large shapes.

* ``train``, ``method-NAME``: the embedded run for some steps. Were all trained weights given a gradient and changed? Are
  batches padded, not joined? Does the adapter read from disk reply as the one in memory? Does decoding with a cache agree
  with one plain forward pass over prompt and reply?
* ``second``: DPO and GRPO, two steps each, from the adapter of ``train``.
* ``shape-NAME``: random weights of a published shape, a real profile's batch, length and checkpointing: memory and speed of
  training and of decoding.

A finding that is not as it must be is listed under ``failed``, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
AGREE = 0.97  # of the tokens; the others are ties within rounding
PROFILES = {"0.6b": "qwen3-0.6b", "8b": "qwen3-8b", "tiny": "qwen3-0.6b"}
CARD = 22 * 2**30  # bytes that a 24 GB card leaves


def replies(model: Any, tokenizer: Any, new_tokens: int = 48) -> tuple[list[list[int]], list[list[int]]]:
    """Greedy replies to questions in both modes: (prompts, replies), token ids."""
    from pipeline.data import corpora
    from pipeline.data.chat_format import ChatFormat
    from pipeline.model.decode import generate

    form = ChatFormat(tokenizer)
    items = corpora.test_items("chat", 8, seed=42)
    prompts = [form.prompt_ids(item["messages"], mode) for mode in ("thinking", "non_thinking") for item in items]
    made = generate(model, tokenizer, prompts, greedy(new_tokens), 16, 0)
    return prompts, [reply.token_ids for reply in made]


def greedy(new_tokens: int) -> Any:
    from pipeline.settings import Sampling

    return Sampling.model_validate({"temperature": 0, "top_p": 1, "top_k": 0, "max_new_tokens": new_tokens})


def equal(left: Sequence[Any], right: Sequence[Any]) -> float:
    """Share of entries that are the same."""
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)


def agreement(model: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> float:
    """Share of the tokens decoded with a cache that one forward pass over prompt and reply finds most probable, too."""
    import torch

    from pipeline.model.decode import inference_mode_of

    same: list[bool] = []
    with inference_mode_of(model), torch.inference_mode():
        for prompt, answer in zip(prompts[::4], answers[::4], strict=True):
            ids = torch.tensor([prompt + answer], device=model.device)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
            best = logits[-len(answer) - 1 : -1].argmax(-1).tolist()
            same += [a == b for a, b in zip(best, answer, strict=True)]
    return sum(same) / len(same)


def look() -> Any:
    """A callback that sees what is trained and on what."""
    from transformers import TrainerCallback

    class Look(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.found: dict[str, Any] = {}

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            loader, model = given["train_dataloader"], given["model"]
            self.start = {n: p.detach().float().cpu().clone() for n, p in model.named_parameters() if p.requires_grad}
            self.found["padding_free"] = getattr(args, "padding_free", None)
            self.found["batch"] = sorted(loader.collate_fn([loader.dataset[i] for i in (0, 1)]))
            self.found["forward"] = f"{type(model).forward.__module__}.{type(model).forward.__qualname__}"

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            now = dict(given["model"].named_parameters())
            unchanged = [n for n, p in self.start.items() if (now[n].detach().float().cpu() == p).all()]
            self.found |= {"trained": len(self.start), "unchanged": unchanged[:5]}

    return Look()


def train(folder: Path, steps: int, *changes: str) -> dict[str, Any]:
    """Some steps of the embedded run, from rows to the adapter that was read again."""
    from pipeline.core.versions import import_unsloth
    from pipeline.run import Run
    from pipeline.settings import load_profile

    every = max(1, steps // 2)
    sets = [f"training.{name}={every}" for name in ("eval_steps", "save_steps")]
    sets += [f"training.max_steps={steps}", "training.logging_steps=1", "evaluation.limit=8", *changes]
    profile = load_profile("embedded", sets)
    import_unsloth()
    seen, run = look(), Run.open(profile, folder, resume=True)
    base = replies(*run.model("base"))[1]
    section = run.train([seen])
    tuned, tokenizer = run.model("tuned")
    prompts, answers = replies(tuned, tokenizer)
    result = seen.found | {
        "loss": [entry["loss"] for entry in section["loss"]],
        "eval_loss": [entry["loss"] for entry in section["eval_loss"]],
        **{key: section[key] for key in ("tokens_per_second", "peak_memory_bytes", "memory_above_base_bytes")},
        "decode_like_forward": agreement(tuned, prompts, answers),
        "like_base": equal(base, answers),
        "base": base,
    }
    del tuned
    run = Run.open(profile, folder, resume=True)
    result["reloaded_like_tuned"] = equal(answers, replies(*run.model("tuned"))[1])
    return result


def judged(found: dict[str, Any]) -> list[str]:
    """What is not as it must be, in words."""
    must = {
        "padding_free is off": not found["padding_free"],
        "a batch has its attention_mask": "attention_mask" in found["batch"],
        "every trained weight changed": not found["unchanged"],
        "the loss is finite": all(value == value and abs(value) < 1e4 for value in found["loss"]),
        "the adapter from disk replies as the one in memory": found["reloaded_like_tuned"] == 1,
        f"decoding agrees with a forward pass in {AGREE:.0%} of the tokens": found["decode_like_forward"] >= AGREE,
    }
    return [words for words, good in must.items() if not good]


def second(scratch: Path) -> dict[str, Any]:
    """Two steps of DPO and of GRPO, the latter with a reference, from the adapter of ``train``."""
    from pipeline.second.grpo import run_grpo
    from pipeline.second.preference import run_preference
    from pipeline.settings import load_profile

    few = [f"{kind}.{name}=2" for kind in ("preference", "grpo") for name in ("max_steps", "save_steps")]
    few += ["evaluation.limit=8", "preference.eval_steps=2", "preference.logging_steps=1", "preference.pairs.rows=64"]
    few += ["preference.held_out.rows=16", "grpo.prompts.rows=16", "grpo.beta=0.01"]
    profile = load_profile("embedded", few)
    start = scratch / "train"
    return {
        "dpo": run_preference(profile, scratch / "dpo", start)["training"],
        "grpo": run_grpo(profile, scratch / "grpo", start)["training"],
    }


def shape(name: str, scratch: Path) -> dict[str, Any]:
    """Memory and speed of a real profile on random weights of a published shape: decoding, then four steps of training."""
    import torch

    sys.path.insert(0, str(ROOT / "benchmarks" / "gpu"))
    import qlora

    from pipeline.model.decode import generate
    from pipeline.model.load import load_model
    from pipeline.settings import load_profile
    from pipeline.training.loop import Session
    from pipeline.training.train import train as fine_tune

    gpu, folder = torch.cuda.is_available(), scratch / "models" / name
    qlora.make_model(name, folder, "cuda" if gpu else "cpu")
    sets = ["model.source=local", f"model.name={folder}", "training.max_steps=4", "training.eval_steps=4"]
    sets += ["training.save_steps=4", "training.early_stopping_patience=null", "data.validation_fraction=0"]
    length, new_tokens, batches = (4096, 256, (8, 32)) if gpu else (256, 16, (2,))
    profile = load_profile(PROFILES[name], [*sets, f"model.max_seq_length={length}"])
    model, tokenizer = load_model(profile.model, 0)
    vocabulary = int(model.config.vocab_size)
    result: dict[str, Any] = {"loaded_bytes": memory(gpu)}
    model.generation_config.eos_token_id = tokenizer.eos_token_id = vocabulary  # a token that cannot come
    for count in batches:
        reset(gpu)
        begun = time.monotonic()
        generate(model, tokenizer, [[7 + i] * (length // 4) for i in range(count)], greedy(new_tokens), count, 0)
        milliseconds = 1000 * (time.monotonic() - begun) / new_tokens
        result[f"decode_{count}"] = {"milliseconds_a_step": milliseconds, "peak_bytes": memory(gpu)}
    reset(gpu)
    rows = qlora.make_rows(64, length, vocabulary - 1)
    _, section = fine_tune(model, tokenizer, profile, mix_of(rows), Session(scratch / f"train-{name}"))
    kept = ("tokens_per_second", "peak_memory_bytes", "memory_above_base_bytes")
    return result | {key: section[key] for key in kept}  # type: ignore[literal-required]


def mix_of(rows: Sequence[list[int]]) -> Any:
    """A mix of rows of token ids with loss on nearly all of them, and none for validation."""
    from datasets import Dataset

    from pipeline.data.mix import Mix, Part

    table = Dataset.from_dict({"input_ids": rows, "labels": [[-100] * 9 + row[9:] for row in rows]}).data.table
    none = Part(0, lambda: [table.slice(0, 0)])
    return Mix(Part(len(rows), lambda: [table]), none, list, {"fingerprint": "smoke"})


def memory(gpu: bool) -> int | None:
    import torch

    return int(torch.cuda.max_memory_allocated()) if gpu else None


def reset(gpu: bool) -> None:
    import torch

    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def compare(output: Path) -> dict[str, Any]:
    """The same steps on both: how far the losses are apart, and how many of the base's replies are the same."""
    sides = [
        json.loads((output / f"{name}.json").read_text(encoding="utf-8"))["found"] for name in ("train", "train-cpu")
    ]
    apart = [abs(a - b) for a, b in zip(sides[0]["loss"], sides[1]["loss"], strict=False)]
    return {"first": apart[0], "largest": max(apart), "base_replies": equal(sides[0]["base"], sides[1]["base"])}


def run_stage(stage: str, output: Path, scratch: Path, steps: int) -> dict[str, Any]:
    """Do a stage. A process that dies in it leaves a file that says so; the reason is on stderr."""
    import torch

    from pipeline.core.files import write_json
    from pipeline.core.versions import installed

    kind, _, name = stage.partition("-")
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "train": lambda: train(scratch / stage, steps),
        "method": lambda: train(
            scratch / stage, steps, f"method={name}", "training.learning_rate=1e-2", "data.validation_fraction=0"
        ),
        "second": lambda: second(scratch),
        "shape": lambda: shape(name, scratch),
        "compare": lambda: compare(output),
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    record: dict[str, Any] = {"stage": stage, "device": device, "versions": installed(), "failed": ["it ends"]}
    write_json(output / f"{stage}.json", record)
    begun = time.monotonic()
    found = record["found"] = stages[kind]()
    record["failed"] = judged(found) if kind in ("train", "method") else []
    if kind == "shape" and device != "cpu" and found["peak_memory_bytes"] > CARD:
        record["failed"] = ["training fits on a card of 24 GB"]
    record["seconds"] = round(time.monotonic() - begun, 1)
    write_json(output / f"{stage}.json", record)
    return record


def main(argv: list[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PIPELINE_ANY_VERSIONS", "1")  # such a machine has its own torch
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "stage", help="train, train-cpu, method-NAME, second, shape-0.6b, shape-8b, shape-tiny, compare"
    )
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="runs and models (default: DIR/scratch)")
    parser.add_argument("--steps", type=int, default=40, help="of training (default: 40)")
    args = parser.parse_args(argv)
    kind, _, name = args.stage.partition("-")
    if kind not in ("train", "method", "second", "shape", "compare") or (kind == "shape" and name not in PROFILES):
        parser.error(f"there is no stage {args.stage!r}")
    output = args.output_dir.resolve()
    scratch = (args.scratch or output / "scratch").resolve()
    output.mkdir(parents=True, exist_ok=True)
    record = run_stage(args.stage, output, scratch, args.steps)
    print(
        f"{args.stage}: {'; '.join(record['failed']) or 'as it must be'} ({record['seconds']:.0f} s, {record['device']})"
    )
    return 1 if record["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
