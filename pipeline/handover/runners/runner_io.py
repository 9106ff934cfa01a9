"""What the runners have in common. A runner is a script that imports one framework and nothing of this project.

    PYTHON run_NAME.py JOB.json RESULT.json

JOB.json: ``model`` (folder with tokenizer and config.json), ``max_length`` (tokens) and ``tasks``, a list: ``name``, ``folder``
(to work in), ``rows`` (``id``, ``messages``, ``tools``, ``mode``, ``ours``: tokens and labels of its last answer), ``settings``
(under the framework's own names), ``data`` (null, or a folder that was handed over: its files are read in the place of ``rows``),
``command`` (empty, or a command line for several GPUs: what it names is read up to the start of the processes, and no rows are).
RESULT.json: ``versions`` and ``tasks``: name → ``rows`` (``input_ids`` and ``labels``, in the framework's order); of a command
``divided``, the stage of ZeRO or the version of FSDP that was read. It is written anew after each task, so where one fails, those
before it are there.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPEN, CLOSE = "<think>\n", "\n</think>\n\n"


Job = dict[str, Any]


def run(
    packages: list[str],
    prepare: Callable[[Job, Job], list[dict[str, Any]]],
    divide: Callable[[Job, Job], int] | None = None,
) -> None:
    """Do the job that the command line names.

    Args:
        packages: whose versions are said. prepare: job and task → rows of ``input_ids`` and ``labels``.
        divide: job and task with a command → the stage of ZeRO, or the version of FSDP.
    """
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result: dict[str, Any] = {"versions": {name: importlib.metadata.version(name) for name in packages}, "tasks": {}}
    for task in job["tasks"]:
        Path(task["folder"]).mkdir(parents=True, exist_ok=True)
        if task["command"]:
            assert divide is not None
            result["tasks"][task["name"]] = {"rows": [], "divided": divide(job, task)}
        else:
            rows = prepare(job, task)
            made = [{name: [int(i) for i in row[name]] for name in ("input_ids", "labels")} for row in rows]
            result["tasks"][task["name"]] = {"rows": made}
        Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def as_one_process() -> None:
    """Make this process the only one of a distributed training on the processor, as DeepSpeed's configuration asks for one.

    What DeepSpeed sets up stays in the process, so a task that needs it has a process to itself.
    """
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ |= {"DS_ACCELERATOR": "cpu"}


def launched(arguments: Any) -> int:
    """The stage of ZeRO or the version of FSDP that ``accelerate launch`` takes from its arguments and their file."""
    from accelerate.commands.launch import _validate_launch_command

    read, _, _ = _validate_launch_command(arguments)
    return int(read.zero_stage if read.use_deepspeed else read.fsdp_version if read.use_fsdp else 0)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON lines; returns the path as text."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def unpadded(batch: Any) -> list[dict[str, list[int]]]:
    """The rows of a collated batch without their padding."""
    rows = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        kept = [i for i, seen in enumerate(mask.tolist()) if seen]
        rows.append({"input_ids": ids[kept].tolist(), "labels": labels[kept].tolist()})
    return rows


def in_content(message: dict[str, Any]) -> str:
    """An answer as one text, its reasoning in think tags before it, as the documentation of most frameworks asks for."""
    reasoning = message.get("reasoning_content")
    text = message.get("content") or ""
    return f"{OPEN}{reasoning.strip(chr(10))}{CLOSE}{text}" if reasoning else text


def with_text_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the arguments of calls as JSON text, so that calls of different tools fit into one table."""
    result = []
    for message in messages:
        if message.get("tool_calls"):
            calls = [
                {
                    "type": "function",
                    "function": call["function"] | {"arguments": as_json(call["function"]["arguments"])},
                }
                for call in message["tool_calls"]
            ]
            message = message | {"tool_calls": calls}
        result.append(message)
    return result


def as_json(value: Any) -> str:
    """JSON text; text stays."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
