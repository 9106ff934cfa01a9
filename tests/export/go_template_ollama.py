"""Ollama's way from a request to a prompt: its own steps before the template here, the template by Go's text/template itself.

``py-go-template`` is Go's engine behind ctypes. It gets plain data, so structs are maps here; of Ollama's functions for templates
``json`` is called ``toJson`` there. What Ollama does before (``template.Execute``: messages of one role in a row become one,
properties and arguments become maps, whose keys Go sorts) is done here in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import go_template

Message = dict[str, Any]


def render(template: Path, messages: Sequence[Message], tools: Any, think: bool | None, folder: Path) -> str:
    """The prompt of ``/api/chat`` with these messages in OpenAI's form."""
    text = re.sub(r"\bjson \$", "toJson $", template.read_text(encoding="utf-8").rstrip())
    path = folder / "template"
    path.write_text(text, encoding="utf-8")
    values = {
        "System": "\n\n".join(m["content"] for m in messages if m["role"] == "system"),
        "Messages": collated([_message(message) for message in messages]),
        "Tools": [_tool(tool["function"]) for tool in tools] if tools else None,
        "Response": "",
        "Think": bool(think),
        "ThinkLevel": "",
        "IsThinkSet": think is not None,
    }
    return go_template.render(path, values).decode()


def collated(messages: Sequence[Message]) -> list[Message]:
    """Messages of one role in a row are one, but for those of tools."""
    found: list[Message] = []
    for message in messages:
        if found and found[-1]["Role"] == message["Role"] != "tool":
            found[-1]["Content"] += "\n\n" + message["Content"]
        else:
            found.append(dict(message))
    return found


def _message(message: Mapping[str, Any]) -> Message:
    calls = [
        {"ID": call["id"], "Function": {"Name": call["function"]["name"], "Arguments": call["function"]["arguments"]}}
        for call in message.get("tool_calls", [])
    ]
    thinking = message.get("reasoning_content", "")
    return {"Role": message["role"], "Content": message["content"], "Thinking": thinking, "ToolCalls": calls}


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = function["parameters"]
    properties = {
        name: {
            "AnyOf": None,
            "Type": [entry["type"]],
            "Items": None,
            "Description": entry.get("description", ""),
            "Enum": entry.get("enum"),
            "Properties": None,
        }
        for name, entry in parameters["properties"].items()
    }
    described = {"Type": parameters["type"], "Required": parameters.get("required"), "Properties": properties}
    name, description = function["name"], function.get("description", "")
    return {"Type": "function", "Function": {"Name": name, "Description": description, "Parameters": described}}
