"""Turns whose content is a list of blocks, as Anthropic's API writes calls of tools and their results.

In: the turns of a row. Out: the same as OpenAI's API would write them: calls in ``tool_calls``, a turn a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.data.formats import Rejected

CACHE = "cache_control"  # of blocks and schemas: for the API, nothing that a model sees
_CALL, _RESULT = "tool_use", "tool_result"


def unblocked(turns: Sequence[Any], name: str) -> Iterator[tuple[str, Any]]:
    """(where it stands, turn), without blocks of calls and results; any other turn as it is.

    Raises:
        Rejected: ``bad_tool_call``, for anything behind a call: what was said after it has no place in the template;
            ``bad_tool_result``, for a result behind other blocks, or one that names no call.
    """
    for index, turn in enumerate(turns):
        where = f"{name}[{index}]"
        content = turn.get("content") if isinstance(turn, Mapping) else None
        for part in _parted(turn, content, where) if isinstance(content, list) else (turn,):
            yield where, part


def _parted(turn: Mapping[str, Any], content: list[Any], where: str) -> list[Any]:
    kinds = [block.get("type") if isinstance(block, Mapping) else None for block in content]
    if _CALL in kinds and _RESULT in kinds:
        raise Rejected("bad_tool_result", f"{where} calls a tool and holds a result")
    if _CALL in kinds:
        first = kinds.index(_CALL)
        if others := [kind for kind in kinds[first:] if kind != _CALL]:
            raise Rejected("bad_tool_call", f"{where} holds a block of type {str(others[0])[:30]!r} behind a call")
        if turn.get("tool_calls"):
            raise Rejected("bad_tool_call", f"{where} has calls both in its content and beside it")
        calls = [{key: value for key, value in block.items() if key != CACHE} for block in content[first:]]
        return [{**turn, "content": content[:first], "tool_calls": calls}]
    if _RESULT in kinds:
        results = kinds.count(_RESULT)
        if any(kind != _RESULT for kind in kinds[:results]):
            raise Rejected("bad_tool_result", f"{where} holds a result behind other blocks")
        made: list[Any] = [_result(block, f"{where}.content[{i}]") for i, block in enumerate(content[:results])]
        return made + ([{**turn, "content": content[results:]}] if results < len(content) else [])
    return [turn]


def _result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A result as a turn; one without content (a tool that returns nothing) is empty text."""
    if not isinstance(block.get("tool_use_id"), str):
        raise Rejected("bad_tool_result", f"{where} has no 'tool_use_id'")
    content = block.get("content")
    return {"role": "tool", "tool_call_id": block["tool_use_id"], "content": "" if content is None else content}
