"""QLoRA on a GPU: Unsloth beside transformers + PEFT + bitsandbytes, tokens per second and peak memory, and the embedded run.

    python benchmarks/gpu/qlora.py --output-dir outputs/qlora --dry-run                 # what would be done, anywhere
    python benchmarks/gpu/qlora.py --output-dir outputs/qlora --minutes 9               # needs a CUDA device
    python benchmarks/gpu/qlora.py --output-dir outputs/qlora --shapes 8b --rounds 1

Not run yet: no GPU was at hand. On a CPU only the shape ``tiny`` can be run (``--device cpu``), to see that the code works.

Models of Qwen3-0.6B's and Qwen3-8B's published shapes with random weights, made on the spot: nothing is downloaded. Each linear
layer is quantised to NF4 (double quantisation, blocks of 64) as it is made and written as a pre-quantised checkpoint, which both
sides load. A case is one side, one shape, packing on or off, in a fresh process:

* ``unsloth``: ``FastLanguageModel``, its own gradient checkpointing;
* ``transformers``: ``AutoModelForCausalLM`` with PyTorch's attention (sdpa), PEFT's LoRA, gradient checkpointing.

Both train with TRL's SFTTrainer on the same rows: random token ids, 64 to ``--length`` of them a row, all with loss;
bfloat16, LoRA of rank 16 on the seven matrices, 8-bit AdamW, same batch. Tokens per second counts tokens without padding,
from after the warm-up steps. Peak memory is what the device had reserved at most while training.

Rounds alternate the order of the sides. ``qlora.json`` is written after each case; the same command goes on from there. No
case is started that would probably end after ``--minutes``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("unsloth", "transformers")
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGET = {"speed": 1.8, "memory": 0.6}  # wanted on an H200: at least, at most; of unsloth ÷ transformers
FIRST_CASE_SECONDS = 120.0  # assumed of a case before one has been measured
SHARD_BYTES = 2 * 2**30

# Published shapes (config.json of Qwen/Qwen3-0.6B and Qwen/Qwen3-8B).
SHAPES: dict[str, dict[str, Any]] = {
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "vocab_size": 1024,
        "tie_word_embeddings": True,
    },
}


# --- the model ----------------------------------------------------------------------------------------------------------


def config_of(shape: str) -> Any:
    """The shape's ``Qwen3Config``."""
    from transformers import Qwen3Config

    common = {
        "vocab_size": 151_936,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    }
    return Qwen3Config(**(common | SHAPES[shape]), dtype="bfloat16")


def parameter_shapes(shape: str) -> dict[str, tuple[int, ...]]:
    """Name → shape of every parameter that a checkpoint holds; nothing is allocated."""
    import torch
    from transformers import Qwen3ForCausalLM

    config = config_of(shape)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def count_parameters(shape: str) -> int:
    """Parameters of the model; shared embeddings count once."""
    return sum(_product(size) for size in parameter_shapes(shape).values())


def _product(sizes: Iterable[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


def tensors_of(name: str, size: tuple[int, ...], device: str, generator: Any) -> dict[str, Any]:
    """A parameter's random values as a pre-quantised checkpoint holds them: packed NF4 and its statistics, or bfloat16."""
    import torch
    from bitsandbytes.functional import quantize_4bit

    if len(size) == 1:  # a norm's weight
        return {name: torch.ones(size, dtype=torch.bfloat16)}
    weight = torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator)
    if name.split(".")[-2] not in MODULES:  # embeddings and the output layer stay in 16 bit
        return {name: weight.cpu()}
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    parts = {name: packed.cpu()}
    return parts | {f"{name}.{key}": value.cpu() for key, value in state.as_dict(packed=True).items()}


def make_model(shape: str, folder: Path, device: str) -> None:
    """Write the shape's random-weight model, in 4 bit, with the embedded model's tokenizer. One that is whole is kept."""
    import shutil

    import torch
    from safetensors.torch import save_file

    from pipeline.core.files import write_json

    if (folder / "config.json").exists():  # written last
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator(device).manual_seed(0)
    index: dict[str, str] = {}
    shard: dict[str, Any] = {}
    total = held = 0

    def flush() -> None:
        nonlocal held, shard
        name = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard, held = {}, 0

    for name, size in parameter_shapes(shape).items():
        tensors = tensors_of(name, size, device, generator)
        shard |= tensors
        added = sum(t.numel() * t.element_size() for t in tensors.values())
        held, total = held + added, total + added
        if held >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    for file in (ROOT / "models" / "embedded").glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    config = config_of(shape).to_dict() | {
        "architectures": ["Qwen3ForCausalLM"],
        "quantization_config": {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": ["lm_head"],
        },
    }
    write_json(folder / "config.json", config)


def make_rows(count: int, length: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Random token ids; lengths evenly spread over 64 (or less, where ``length`` is less) to ``length``."""
    import numpy as np

    random = np.random.default_rng(seed)
    lengths = random.integers(min(64, length), length, size=count, endpoint=True)
    return [random.integers(3, vocabulary, size=int(n)).tolist() for n in lengths]


# --- one case, in its own process ---------------------------------------------------------------------------------------


def load_unsloth(folder: Path, length: int, device: str) -> tuple[Any, Any]:
    """Model with LoRA and tokenizer, the way of Unsloth's notebooks."""
    from pipeline.core.versions import import_unsloth

    import_unsloth()
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(folder), max_seq_length=length, load_in_4bit=True, dtype=None, random_state=0
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules=MODULES,
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=0,
    )
    return model, tokenizer


def load_transformers(folder: Path, length: int, device: str) -> tuple[Any, Any]:
    """The same with transformers and PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa", device_map={"": device}
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=MODULES, bias="none", task_type="CAUSAL_LM")
    model.config.use_cache = False
    model.enable_input_require_grads()
    return get_peft_model(model, lora), tokenizer


LOADERS = {"unsloth": load_unsloth, "transformers": load_transformers}


def measure(side: str, packing: bool, folder: Path, output: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Train for a few steps and say how fast it was; the first ``warm_up`` steps are not counted.

    Args:
        options: ``device``, ``steps``, ``warm_up``, ``batch_size``, ``accumulation``, ``length``.
    """
    started = time.monotonic()
    model, tokenizer = LOADERS[side](folder, options["length"], options["device"])
    import torch
    from datasets import Dataset
    from transformers import Trainer
    from trl import SFTConfig, SFTTrainer

    cuda = options["device"] == "cuda"
    steps, warm_up, accumulation = options["steps"], options["warm_up"], options["accumulation"]
    count = (steps + warm_up) * options["batch_size"] * accumulation
    # Packed rows hold several of these: with so many, no row is seen twice.
    rows = make_rows(count * (3 if packing else 1), options["length"], model.config.vocab_size)

    def synchronise() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    class Timed(SFTTrainer):  # type: ignore[misc]
        calls = tokens = padded = 0
        begun = 0.0

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self.calls == warm_up * accumulation:
                self.tokens = self.padded = 0
                self.begun = synchronise()
            self.calls += 1
            mask = inputs.get("attention_mask")
            self.padded += inputs["input_ids"].numel()
            self.tokens += int(inputs["input_ids"].numel() if mask is None else (mask != 0).sum())
            return super().training_step(model, inputs, *args, **kwargs)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            # TRL's own loss is a Triton kernel, which a CPU has not; Unsloth replaces it.
            plain = not cuda and side == "transformers"
            return Trainer.compute_loss(self, *args, **kwargs) if plain else super().compute_loss(*args, **kwargs)

    trainer = Timed(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        args=SFTConfig(
            output_dir=str(output / "trainer"),
            max_length=options["length"],
            packing=packing,
            max_steps=steps + warm_up,
            per_device_train_batch_size=options["batch_size"],
            gradient_accumulation_steps=accumulation,
            learning_rate=2e-4,
            lr_scheduler_type="constant",
            optim="adamw_8bit" if cuda else "adamw_torch",
            bf16=cuda,
            use_cpu=not cuda,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False} if side == "transformers" else None,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            seed=0,
            dataloader_pin_memory=cuda,
        ),
    )
    loaded = time.monotonic() - started
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    seconds = synchronise() - trainer.begun
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens_per_second": trainer.tokens / seconds,
        "tokens": trainer.tokens,
        "padded_tokens": trainer.padded,
        "seconds": seconds,
        "load_seconds": loaded,
        "peak_memory_bytes": _peak(cuda),
        "peak_allocated_bytes": int(torch.cuda.max_memory_allocated()) if cuda else None,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "losses": losses,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def _peak(cuda: bool) -> int:
    """Bytes: reserved on the device, or the resident set of this process."""
    if cuda:
        import torch

        return int(torch.cuda.max_memory_reserved())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- all cases ----------------------------------------------------------------------------------------------------------


def cases(shapes: Iterable[str], packings: Iterable[str], rounds: int) -> list[dict[str, Any]]:
    """In the order in which they run; who comes first changes from round to round."""
    found = []
    for number in range(rounds):
        sides = SIDES if number % 2 == 0 else SIDES[::-1]
        found += [
            {"name": f"{shape}-packing_{packing}-{side}-{number}", "shape": shape, "packing": packing, "side": side}
            for shape in shapes
            for packing in packings
            for side in sides
        ]
    return found


def command_of(case: Mapping[str, Any], folder: Path, args: argparse.Namespace) -> list[str]:
    """The command line of a case (``side``) or of making a model (no side)."""
    own = [sys.executable, str(Path(__file__).resolve()), "--output-dir", str(folder), "--device", args.device]
    if "side" not in case:
        return [*own, "--make", case["shape"]]
    own += ["--case", json.dumps(dict(case)), "--steps", str(args.steps), "--warm-up", str(args.warm_up)]
    own += [
        "--batch-size",
        str(args.batch_size),
        "--accumulation",
        str(args.accumulation),
        "--length",
        str(args.length),
    ]
    return own


def embedded_command(folder: Path) -> list[str]:
    """The whole embedded run: mix, evaluation, training, evaluation, report."""
    where = ["--output-dir", str(folder / "embedded"), "--profile", "embedded", "--resume"]
    return [sys.executable, "-m", "pipeline", "run", *where]


def _timed(command: list[str], log: Path, seconds: float | None) -> dict[str, Any]:
    """Run a command with its output in a file; says exit code, seconds and, of a failure, the last lines."""
    print(shlex.join(command), file=sys.stderr, flush=True)
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    result: dict[str, Any] = {"code": code, "seconds": time.monotonic() - started}
    if code:
        result["error"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    return result


def run(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run what is not done, as far as the time goes; ``qlora.json`` is written after every step."""
    from pipeline.core.files import read_json, write_json
    from pipeline.core.versions import version_of

    begun = time.monotonic()
    path = folder / "qlora.json"
    options = {k: getattr(args, k) for k in ("device", "steps", "warm_up", "batch_size", "accumulation", "length")}
    record: dict[str, Any] = read_json(path) if path.exists() else {"options": options, "cases": {}, "stages": {}}
    if record["options"] != options:
        from pipeline.core.errors import UserError

        raise UserError(f"{path} was measured with {record['options']}, not {options}. Choose another --output-dir.")
    names = ("unsloth", "unsloth_zoo", "transformers", "trl", "peft", "bitsandbytes", "torch")
    record["versions"] = {name: version_of(name) for name in names}

    def left() -> float | None:
        return None if args.minutes is None else args.minutes * 60 - (time.monotonic() - begun)

    def fits(estimate: float) -> bool:
        remaining = left()
        return remaining is None or remaining >= estimate

    for case in cases(args.shapes, args.packing, args.rounds):
        name, shape = case["name"], case["shape"]
        if record["cases"].get(name, {}).get("code") == 0:
            continue
        longest = max(
            (c["seconds"] for c in record["cases"].values() if c["shape"] == shape), default=FIRST_CASE_SECONDS
        )
        if not fits(longest):
            continue
        made = folder / "models" / shape / "config.json"
        if not made.exists():
            stage = _timed(command_of({"shape": shape}, folder, args), folder / "logs" / f"make-{shape}.txt", left())
            record["stages"][f"make {shape}"] = stage
            write_json(path, record)
            if stage["code"]:
                continue
        result = folder / "results" / f"{name}.json"
        result.unlink(missing_ok=True)
        outcome = _timed(command_of(case, folder, args), folder / "logs" / f"{name}.txt", left())
        record["cases"][name] = case | outcome | ({"result": read_json(result)} if result.exists() else {})
        record["summary"] = summarise(record["cases"].values())
        write_json(path, record)
    if args.embedded and record["stages"].get("embedded run", {}).get("code") != 0 and fits(FIRST_CASE_SECONDS):
        stage = _timed(embedded_command(folder), folder / "logs" / "embedded.txt", left())
        report = folder / "embedded" / "report.json"
        if report.exists():
            stage["training"] = {
                k: v for k, v in read_json(report)["training"].items() if k not in ("loss", "eval_loss")
            }
        record["stages"]["embedded run"] = stage
        write_json(path, record)
    record["missing"] = missing(record, args)
    write_json(path, record)
    return record


def missing(record: Mapping[str, Any], args: argparse.Namespace) -> list[str]:
    """Names of what is not done yet, or failed."""
    wanted = [case["name"] for case in cases(args.shapes, args.packing, args.rounds)]
    names = [name for name in wanted if record["cases"].get(name, {}).get("code") != 0]
    if args.embedded and record["stages"].get("embedded run", {}).get("code") != 0:
        names.append("embedded run")
    return names


def summarise(done: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a shape and packing: medians over the rounds of both sides, and the ratios where both are there."""
    groups: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for case in done:
        if case["code"] == 0:
            sides = groups.setdefault((case["shape"], case["packing"]), {side: [] for side in SIDES})
            sides[case["side"]].append(case["result"])
    rows = []
    for (shape, packing), sides in groups.items():
        row: dict[str, Any] = {"shape": shape, "packing": packing}
        for side, results in sides.items():
            if results:
                row[side] = {
                    "rounds": len(results),
                    "tokens_per_second": statistics.median(r["tokens_per_second"] for r in results),
                    "peak_memory_bytes": statistics.median(r["peak_memory_bytes"] for r in results),
                }
        if all(side in row for side in SIDES):
            row["speed"] = row["unsloth"]["tokens_per_second"] / row["transformers"]["tokens_per_second"]
            row["memory"] = row["unsloth"]["peak_memory_bytes"] / row["transformers"]["peak_memory_bytes"]
        rows.append(row)
    return rows


def table(result: Mapping[str, Any]) -> str:
    """``qlora.json`` as Markdown."""
    heads = ["shape", "packing", "side", "rounds", "tokens/s", "peak memory", "speed", "memory"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---|--:|--:|--:|--:|--:|"]
    for row in result.get("summary", []):
        for side in SIDES:
            if side in row:
                own = row[side]
                ratios = [f"{row[k]:.2f}" if side == "unsloth" and k in row else "" for k in ("speed", "memory")]
                figures = [
                    str(own["rounds"]),
                    f"{own['tokens_per_second']:,.0f}",
                    f"{own['peak_memory_bytes'] / 2**30:.2f} GiB",
                ]
                lines.append("| " + " | ".join([row["shape"], row["packing"], side, *figures, *ratios]) + " |")
    wanted = f"wanted of unsloth ÷ transformers on an H200: speed ≥ {TARGET['speed']}, memory ≤ {TARGET['memory']}"
    return "\n".join([*lines, "", wanted])


def describe(folder: Path, args: argparse.Namespace) -> str:
    """What would be done: parameters and every command."""
    lines = []
    for shape in args.shapes:
        lines.append(f"{shape}: {count_parameters(shape):,} parameters")
        lines.append(f"  {shlex.join(command_of({'shape': shape}, folder, args))}")
    lines += [
        f"{c['name']}\n  {shlex.join(command_of(c, folder, args))}"
        for c in cases(args.shapes, args.packing, args.rounds)
    ]
    if args.embedded:
        lines.append(f"embedded run\n  {shlex.join(embedded_command(folder))}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["0.6b", "8b"], help="default: 0.6b 8b")
    parser.add_argument("--packing", nargs="+", choices=["off", "on"], default=["off", "on"], help="default: off on")
    parser.add_argument("--rounds", type=int, default=2, help="of every case (default: 2)")
    parser.add_argument("--minutes", type=float, help="start no case that would probably end later; default: no limit")
    parser.add_argument("--steps", type=int, default=10, help="measured optimizer steps a case (default: 10)")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them (default: 3)")
    parser.add_argument("--batch-size", type=int, default=4, help="rows of a forward pass (default: 4)")
    parser.add_argument("--accumulation", type=int, default=2, help="forward passes a step (default: 2)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of the longest row (default: 2048)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: the shape tiny only")
    parser.add_argument("--no-embedded", dest="embedded", action="store_false", help="leave out the embedded run")
    parser.add_argument("--dry-run", action="store_true", help="print parameters and commands, and do nothing")
    parser.add_argument("--make", choices=list(SHAPES), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = _parser().parse_args(argv)
    folder = args.output_dir.resolve()
    if args.dry_run:
        print(describe(folder, args))
        return 0
    if args.case:
        from pipeline.core.files import write_json

        case = json.loads(args.case)
        options = {k: getattr(args, k) for k in ("device", "steps", "warm_up", "batch_size", "accumulation", "length")}
        model = folder / "models" / case["shape"]
        result = measure(case["side"], case["packing"] == "on", model, folder / "scratch" / case["name"], options)
        write_json(folder / "results" / f"{case['name']}.json", result)
        return 0
    if args.make:
        make_model(args.make, folder / "models" / args.make, args.device)
        return 0
    from pipeline.core.errors import UserError

    if args.device == "cpu" and set(args.shapes) != {"tiny"}:
        print("error: --device cpu is for --shapes tiny; the others need a GPU.", file=sys.stderr)
        return 2
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(
                "error: This needs a CUDA device; torch finds none. --dry-run shows what would be done; "
                "`python -m pipeline doctor` says what this machine can do.",
                file=sys.stderr,
            )
            return 2
    try:
        record = run(folder, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(record))
    for name in record["missing"]:
        what = record["cases"].get(name) or record["stages"].get(name)
        reason = f"failed: {' '.join(what['error'][-1:])}" if what else "not run"
        print(f"{name}: {reason}", file=sys.stderr)
    if record["missing"]:
        print("Run the same command again to go on.", file=sys.stderr)
    print(folder / "qlora.json")
    return 1 if record["missing"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
