"""Whether a framework reads from a folder that was handed over the very tokens and masks of the mix.

In: the folder, its mix. Out: how many rows are equal, and each that is not, with the reason. The framework's own parser reads the
configuration, also that for several GPUs, its own loader and collator the data; no weights are needed.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import say
from pipeline.core.files import read_json, read_jsonl
from pipeline.data.chat_format import IGNORE_INDEX
from pipeline.handover.audit import FrameworkTask, Made, run_framework, write_model
from pipeline.handover.compare import Tokens
from pipeline.handover.environments import interpreter
from pipeline.handover.frameworks import framework
from pipeline.handover.write import CONFIG, CONFIG_FSDP2, LEFT_OUT, RECORD
from pipeline.settings import Profile, read_yaml

if TYPE_CHECKING:
    from datasets import Dataset

Key = tuple[tuple[int, ...], tuple[int, ...]]
# What a machine without a GPU, and a folder without weights, make necessary; nothing of it touches tokens or masks.
HERE: dict[str, dict[str, Any]] = {
    "trl": {"bf16": False, "use_cpu": True, "load_in_4bit": None},
    "llama-factory": {"bf16": False, "use_cpu": True, "quantization_bit": None, "quantization_method": None},
    "ms-swift": {"bf16": False, "quant_method": None, "quant_bits": None, "bnb_4bit_quant_type": None},
    "axolotl": {"bf16": False, "load_in_4bit": False, "adapter": "lora"},
}
DIVIDED = {"ZeRO-2": 2, "ZeRO-3": 3, "FSDP2": 2}  # the stage or version that each command for several GPUs asks for
READ, LACKING = "read", "not read: DeepSpeed is not installed in its environment"
MODEL = {
    "trl": "model_name_or_path",
    "llama-factory": "model_name_or_path",
    "ms-swift": "model",
    "axolotl": "base_model",
}


def check(profile: Profile, train: Dataset, target: str, folder: Path, python: Path | None = None) -> dict[str, Any]:
    """Let the framework load the folder.

    Args:
        train: the mix's training rows. python: an interpreter that has the framework; None: one is made.

    Returns:
        ``{"rows", "equal", "different": [{"row", "source", "reason"}], "version", "error", "several_gpus"}``; the last one: title
        of each command for several GPUs → ``READ`` or ``LACKING``. One that is refused is an error.
    """
    one = framework(target)
    left_out = {entry["row"]: entry for entry in read_jsonl(folder / LEFT_OUT) if entry["part"] == "train"}
    with tempfile.TemporaryDirectory(prefix="handover") as temporary:
        work = Path(temporary)
        model = write_model(profile.model, work / "model")
        here = HERE[target] | {MODEL[target]: str(model)}
        tasks = [FrameworkTask("handed_over", _values(folder / CONFIG, here), [], folder)]
        for title, line in read_json(folder / RECORD)["commands"].items():
            if title in DIVIDED:
                file = next(word for word in [*line.split(), CONFIG] if word in (CONFIG, CONFIG_FSDP2))
                tasks.append(FrameworkTask(title, _values(folder / file, here), [], folder, line))
        say(f"{target} reads what was handed over")
        alone = [task for task in tasks if "deepspeed" in task.command]  # which leaves its marks in a process
        together = [task for task in tasks if task not in alone]
        made, *others = run_framework(one, together, model, profile.length_limit, work / "run", python)
        if made.error:
            nothing = {"rows": len(train), "equal": 0, "different": [], "version": ""}
            return nothing | {"error": made.error, "several_gpus": {}}
        several = {task.name: _said(task.name, found) for task, found in zip(together[1:], others, strict=True)}
        has_deepspeed = bool(alone) and _has_deepspeed(python or interpreter(one))
        for task in alone:
            if has_deepspeed:
                (found,) = run_framework(one, [task], model, profile.length_limit, work / task.name, python)
                several[task.name] = _said(task.name, found)
            else:
                several[task.name] = LACKING
    refused = [f"{title}: {text}" for title, text in several.items() if text not in (READ, LACKING)]
    counts = Counter(key_of(tokens) for tokens in made.rows)
    different, equal = [], 0
    for number, row in enumerate(train):
        key = key_of(Tokens(row["input_ids"], row["labels"]))
        if counts[key]:
            counts[key] -= 1
            equal += 1
        else:
            reason = left_out[number]["reason"] if number in left_out else "the framework has no such row"
            different.append({"row": number, "source": row["source"], "reason": reason})
    version = made.versions[one.package]
    result = {"rows": len(train), "equal": equal, "different": different, "version": version}
    return result | {"error": "; ".join(refused), "several_gpus": several}


def _values(file: Path, here: dict[str, Any]) -> dict[str, Any]:
    config = dict(read_yaml(file)) | here
    return {key: value for key, value in config.items() if value is not None}


def _said(title: str, made: Made) -> str:
    if made.error:
        return made.error
    if made.divided != DIVIDED[title]:
        return f"its parser reads stage or version {made.divided}"
    return READ


def _has_deepspeed(python: Path) -> bool:
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('deepspeed') is None)"
    return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0


def key_of(tokens: Tokens) -> Key:
    """What a training learns from a row: its tokens up to the last with loss, and which of them carry it."""
    ids, labels = list(tokens.input_ids), list(tokens.labels)
    last = max((i for i, label in enumerate(labels) if label != IGNORE_INDEX), default=-1) + 1
    return tuple(ids[:last]), tuple(labels[:last])
