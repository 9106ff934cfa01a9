"""Conversations at random, of all shapes that the Modelfile's template has to render: systems, tools, calls, several turns."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

WORDS = 'sum "quote" {{ .Role }} $x \\ back|slash naïve 数学 是 ½ <b> & \' tab\there\nline\n\nend 🙂'.split(" ")
Message = dict[str, Any]


def conversations(count: int, seed: int) -> Iterator[tuple[list[Message], list[dict[str, Any]] | None]]:
    """Messages that end with a question or a tool's result, and their tools; half of them with tools, half with a system."""
    for number in range(count):
        r = random.Random(f"{seed}:{number}")
        tools = [_tool(r, place) for place in range(r.randint(1, 3))] if number % 2 else None
        messages: list[Message] = [{"role": "system", "content": _text(r)}] if number // 2 % 2 else []
        for turn in range(r.randint(1, 4)):
            if turn and r.random() < 0.1:
                messages.append({"role": "system", "content": _text(r)})
            messages.append({"role": "user", "content": _text(r)})
            while tools and r.random() < 0.5:
                calls = [_call(r, tools, place) for place in range(r.randint(1, 2))]
                content = _text(r) if r.random() < 0.5 else ""
                messages.append({"role": "assistant", "content": content, "tool_calls": calls, **_reasoning(r)})
                messages += [{"role": "tool", "content": _text(r), "tool_call_id": call["id"]} for call in calls]
            if r.random() < 0.7:
                messages.append({"role": "assistant", "content": _text(r), **_reasoning(r)})
                continue
            break
        if messages[-1]["role"] == "assistant":
            messages.append({"role": "user", "content": _text(r)})
        yield messages, tools


def _text(r: random.Random) -> str:
    return " ".join(r.choices(WORDS, k=r.randint(1, 12))).strip()


def _reasoning(r: random.Random) -> dict[str, str]:
    return {"reasoning_content": _text(r)} if r.random() < 0.5 else {}


def _tool(r: random.Random, place: int) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name in sorted(r.sample(["city", "count", "from", "unit", "when"], r.randint(0, 4))):
        properties[name] = {"type": r.choice(["string", "integer", "number", "boolean"])}
        if r.random() < 0.3:
            properties[name] |= {"type": "string", "enum": [_text(r) for _ in range(r.randint(1, 3))]}
        if r.random() < 0.8:
            properties[name]["description"] = _text(r)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if properties and r.random() < 0.7:
        parameters["required"] = [next(iter(properties))]
    return {
        "type": "function",
        "function": {"name": f"tool_{place}", "description": _text(r), "parameters": parameters},
    }


def _call(r: random.Random, tools: list[dict[str, Any]], place: int) -> dict[str, Any]:
    function = r.choice(tools)["function"]
    values = {
        "string": _text(r),
        "integer": r.randint(-5, 99),
        "number": r.randint(1, 9) + 0.5,
        "boolean": r.random() < 0.5,
    }
    arguments = {name: values[entry["type"]] for name, entry in function["parameters"]["properties"].items()}
    return {"id": f"call{place}", "type": "function", "function": {"name": function["name"], "arguments": arguments}}
