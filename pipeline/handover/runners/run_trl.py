"""TRL: its SFTTrainer up to the first batch (see runner_io)."""

from __future__ import annotations

import json
import os
import shlex
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, load_dataset
from runner_io import launched, run, unpadded, with_text_arguments
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser
from trl.cli import accelerate_launcher
from trl.cli.commands.base import CommandContext
from trl.cli.commands.training import TrainingCommand


def as_dataset(rows: list[dict[str, Any]], form: str) -> Dataset:
    """The rows as ``messages``, or as ``prompt`` and ``completion`` with the keywords of their mode."""
    table = []
    for row in rows:
        messages = with_text_arguments(row["messages"])
        entry: dict[str, Any] = {"tools": json.dumps(row["tools"], ensure_ascii=False) if row["tools"] else None}
        if form == "answers":
            entry |= {"prompt": messages[:-1], "completion": messages[-1:]}
            entry["chat_template_kwargs"] = {"enable_thinking": row["mode"] == "thinking"}
        else:
            entry["messages"] = messages
        table.append(entry)
    return Dataset.from_list(table)


def tiny_model(tokenizer: Any) -> Any:
    """A model that is never asked anything: the trainer wants one."""
    config = Qwen3Config(
        vocab_size=max(len(tokenizer), 16),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
    )
    return Qwen3ForCausalLM(config)


def write_config(task: dict[str, Any]) -> Path:
    """The settings as a file for its command line, which from now on is in the folder that was handed over."""
    os.chdir(task["data"])
    config = Path(task["folder"]) / "config.yaml"
    config.write_text(yaml.safe_dump(task["settings"] | {"output_dir": str(config.with_name("out"))}), encoding="utf-8")
    return config


def divide(job: dict[str, Any], task: dict[str, Any]) -> int:
    """What ``trl sft`` and accelerate make of the command line, up to the start of the processes."""
    config = write_config(task)
    words = [str(config) if word == "train.yaml" else word for word in shlex.split(task["command"])[1:]]
    seen: list[Namespace] = []
    start = accelerate_launcher.launch_training_script
    accelerate_launcher.launch_training_script = partial(start, launch_command_fn=seen.append)
    try:
        TrainingCommand("sft").run(Namespace(), CommandContext(argv=words))
    finally:
        accelerate_launcher.launch_training_script = start
    return launched(seen[0])


def handed_over(task: dict[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """What ``trl sft --config`` trains on: its own parser, its own loading."""
    config = write_config(task)
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    script, arguments, _, _ = parser.parse_args_and_config(["--config", str(config)])
    dataset = load_dataset(script.dataset_name)
    train, validation = dataset[script.dataset_train_split], dataset[script.dataset_test_split]
    model = tiny_model(tokenizer)
    return batches(
        SFTTrainer(model, args=arguments, train_dataset=train, eval_dataset=validation, processing_class=tokenizer)
    )


def batches(trainer: Any) -> list[dict[str, Any]]:
    """The trainer's rows through its collator."""
    made: list[Any] = []
    for row in trainer.train_dataset:
        made += unpadded(trainer.data_collator([{name: row[name] for name in ("input_ids", "labels")}]))
    return made


def prepare(job: dict[str, Any], task: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of token ids and labels."""
    folder = Path(task["folder"])
    settings = dict(task["settings"])
    form = settings.pop("form", "messages")
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if task["data"] is None:
        dataset = as_dataset(task["rows"], form)
        settings["max_length"] = job["max_length"]
    else:
        return handed_over(task, tokenizer)
    config = SFTConfig(
        output_dir=str(folder / "out"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=8,
        **settings,
    )
    return batches(SFTTrainer(tiny_model(tokenizer), args=config, train_dataset=dataset, processing_class=tokenizer))


if __name__ == "__main__":
    run(["trl", "transformers", "datasets"], prepare, divide)
