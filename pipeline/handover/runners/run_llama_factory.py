"""LLaMA-Factory: its arguments, its template, its loader, its collator (see runner_io)."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from accelerate.commands.launch import launch_command_parser
from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
from runner_io import as_json, as_one_process, in_content, launched, run, unpadded, write_lines


def turns(row: dict[str, Any]) -> list[dict[str, str]]:
    """The row in the layout of its data/README.md: reasoning in the content, calls as JSON under a role of their own."""
    result: list[dict[str, str]] = []
    for message in row["messages"]:
        role, text = message["role"], in_content(message)
        if message.get("tool_calls"):
            calls = [
                {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
                for call in message["tool_calls"]
            ]
            role, text = "function_call", text + json.dumps(calls, ensure_ascii=False)
        elif role == "tool":
            role = "observation"
            if result and result[-1]["role"] == role:  # roles have to take turns
                result[-1]["content"] += "\n</tool_response>\n<tool_response>\n" + text
                continue
        result.append({"role": role, "content": text})
    return result


def always(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings of every run."""
    found = {"model_name_or_path": job["model"], "output_dir": str(folder / "out"), "overwrite_cache": True}
    return found | {"stage": "sft", "do_train": True, "report_to": "none"}


def divide(job: dict[str, Any], task: dict[str, Any]) -> int:
    """By accelerate where the command is accelerate's, else by its own arguments, which are those of transformers."""
    os.chdir(task["data"])
    words = shlex.split(task["command"])
    if "accelerate" in words:
        return launched(launch_command_parser().parse_args(words[words.index("launch") + 1 :]))
    as_one_process()
    settings = task["settings"] | dict([words[-1].split("=")]) | always(job, Path(task["folder"]))
    _, _, training_args, _, _ = get_train_args(settings)
    return int(training_args.hf_deepspeed_config.config["zero_optimization"]["stage"])


def prepare(job: dict[str, Any], task: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of token ids and labels."""
    folder = Path(task["folder"])
    settings = dict(task["settings"])
    if task["data"] is None:
        rows = [
            {"messages": turns(row), "tools": as_json(row["tools"]) if row["tools"] else ""} for row in task["rows"]
        ]
        write_lines(folder / "rows.json", rows)
        columns = {"messages": "messages", "tools": "tools"}
        tags = {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
            "function_tag": "function_call",
            "observation_tag": "observation",
        }
        info = {"rows": {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns, "tags": tags}}
        (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
        settings |= {"dataset": "rows", "dataset_dir": str(folder), "cutoff_len": job["max_length"]}
    else:
        os.chdir(task["data"])
    model_args, data_args, training_args, _, _ = get_train_args(settings | always(job, folder))
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    dataset = get_dataset(template, model_args, data_args, training_args, stage="sft", tokenizer=tokenizer)
    collate = SFTDataCollatorWith4DAttentionMask(template=template, tokenizer=tokenizer, label_pad_token_id=-100)
    made: list[Any] = []
    wanted = ("input_ids", "attention_mask", "labels", "images", "videos", "audios")
    for row in dataset["train_dataset"]:
        made += unpadded(collate([{name: row[name] for name in wanted if name in row}]))
    return made


if __name__ == "__main__":
    run(["llamafactory", "transformers", "datasets"], prepare, divide)
