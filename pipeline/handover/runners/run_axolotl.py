"""axolotl: its configuration, its prompt strategy, its loader, its collator (see runner_io)."""

from __future__ import annotations

import os

os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")  # it sends what it is used for elsewhere
os.environ.setdefault(
    "AXOLOTL_DATASET_NUM_PROC", "1"
)  # of processes that save what it prepared; each imports everything again

import json
import shlex
from pathlib import Path
from typing import Any

import yaml
from axolotl.cli.config import load_cfg
from axolotl.loaders import load_tokenizer
from axolotl.utils.collators import DataCollatorForSeq2Seq
from axolotl.utils.data import prepare_datasets
from runner_io import as_json, as_one_process, run, unpadded, with_text_arguments, write_lines


def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The row as OpenAI's messages, which its chat_template type reads."""
    kept = ("role", "content", "reasoning_content", "tool_calls")
    return [{k: v for k, v in m.items() if k in kept} for m in with_text_arguments(row["messages"])]


def write_config(settings: dict[str, Any], job: dict[str, Any], folder: Path) -> str:
    """The settings, with those of every run, as a file; returns its path."""
    # 0: in this process; with 1 it starts another, which imports everything again.
    settings |= {"base_model": job["model"], "output_dir": str(folder / "out"), "dataset_num_proc": 0}
    settings |= {"dataset_prepared_path": str(folder / "prepared")}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(config)


def divide(job: dict[str, Any], task: dict[str, Any]) -> int:
    """By its own configuration; as that drops unknown keys of FSDP in silence, what it has is compared with what was given."""
    os.chdir(task["data"])
    config = write_config(dict(task["settings"]), job, Path(task["folder"]))
    words = shlex.split(task["command"])
    if "--deepspeed" in words:
        as_one_process()
        os.environ["AXOLOTL_IS_PREPROCESS"] = "1"  # as for its command preprocess: else it opens a connection of GPUs
        load_cfg(config, deepspeed=words[words.index("--deepspeed") + 1])
        read = json.loads(Path(os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).read_text(encoding="utf-8"))
        return int(read["zero_optimization"]["stage"])
    cfg = load_cfg(config)
    given = task["settings"]["fsdp_config"]
    if lost := [key for key, value in given.items() if cfg.fsdp_config.get(key) != value]:
        raise ValueError(f"fsdp_config has no {', '.join(lost)}")
    return int(cfg.fsdp_version)


def prepare(job: dict[str, Any], task: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of token ids and labels."""
    folder = Path(task["folder"])
    settings = dict(task["settings"])
    dataset = settings.pop("dataset", {})
    if task["data"] is None:
        rows = [
            {"messages": messages(row), **({"tools": as_json(row["tools"])} if row["tools"] else {})}
            for row in task["rows"]
        ]
        if mark := dataset.get("message_field_training"):
            for row in rows:
                row["messages"] = [m | {mark: m is row["messages"][-1]} for m in row["messages"]]
        path = write_lines(folder / "rows.jsonl", rows)
        files = {"path": path, "ds_type": "json", "split": "train", "type": "chat_template"}
        settings |= {"datasets": [files | dataset], "sequence_len": job["max_length"]}
        settings |= {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_modules": ["q_proj"]}
        settings |= {"learning_rate": 1e-4, "num_epochs": 1, "micro_batch_size": 1, "gradient_accumulation_steps": 1}
        settings |= {"shuffle_merged_datasets": False, "val_set_size": 0}
    else:
        os.chdir(task["data"])
    cfg = load_cfg(write_config(settings, job, folder))
    tokenizer = load_tokenizer(cfg)
    train, _, _, _ = prepare_datasets(cfg, tokenizer)
    collate = DataCollatorForSeq2Seq(tokenizer, return_tensors="pt")
    wanted = ("input_ids", "attention_mask", "labels")
    made: list[Any] = []
    for row in train:
        made += unpadded(collate([{name: row[name] for name in wanted}]))
    return made


if __name__ == "__main__":
    run(["axolotl", "transformers", "datasets"], prepare, divide)
