"""ms-swift: its arguments, its template, its loader, its collator (see runner_io)."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import torch
from runner_io import as_one_process, in_content, run, unpadded, with_text_arguments, write_lines
from swift.arguments import SftArguments
from swift.pipelines import SwiftSft


class Loader(SwiftSft):
    """``swift sft`` up to the dataset: everything but the weights and the trainer."""

    def __init__(self, arguments: list[str]):
        super(SwiftSft, self).__init__(arguments)
        self.train_msg: dict[str, Any] = {}
        self._prepare_model_tokenizer(load_model=False)
        self._prepare_template()


def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The row in the layout of its custom datasets: reasoning in the content."""
    kept = ("role", "content", "tool_calls")
    return [
        {k: v for k, v in (m | {"content": in_content(m)}).items() if k in kept}
        for m in with_text_arguments(row["messages"])
    ]


def prepare(job: dict[str, Any], task: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of token ids and labels."""
    folder = Path(task["folder"])
    settings = dict(task["settings"])
    if task["data"] is None:
        rows = [
            {"messages": messages(row), **({"tools": row["tools"]} if row["tools"] else {})} for row in task["rows"]
        ]
        settings |= {"dataset": write_lines(folder / "rows.jsonl", rows), "max_length": job["max_length"]}
    else:
        os.chdir(task["data"])
    loader = Loader(words_of(settings, job, folder))
    dataset, _ = loader._prepare_dataset()
    made: list[Any] = [unpadded(loader.template.data_collator([dataset[i]]))[0] for i in range(len(dataset))]
    return made


def divide(job: dict[str, Any], task: dict[str, Any]) -> int:
    """What its arguments make of the words behind train.yaml."""
    os.chdir(task["data"])
    words = shlex.split(task["command"])
    own = words[words.index("train.yaml") + 1 :]
    if "--deepspeed" in own:
        as_one_process()
    arguments = Loader([*words_of(dict(task["settings"]), job, Path(task["folder"])), *own]).args
    if "--deepspeed" in own:
        return int(arguments.training_args.hf_deepspeed_config.config["zero_optimization"]["stage"])
    return int(arguments.fsdp_config["fsdp_version"])


def words_of(settings: dict[str, Any], job: dict[str, Any], folder: Path) -> list[str]:
    """Settings as words of its command line, with those of every run."""
    settings |= {"model": job["model"], "output_dir": str(folder / "out"), "report_to": "none"}
    if not torch.cuda.is_available():
        settings |= {"use_cpu": True, "torch_dtype": "float32", "bf16": False}
    settings |= {"load_from_cache_file": False, "split_dataset_ratio": 0, "dataset_shuffle": False}
    arguments: list[str] = []
    for name, value in settings.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            arguments += [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]
    assert SwiftSft.args_class is SftArguments
    return arguments


if __name__ == "__main__":
    run(["ms-swift", "transformers", "datasets"], prepare, divide)
