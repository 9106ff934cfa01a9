"""Which format a row is in, told by its columns.

In: a row (a dict). Out: a ``Detection``: the name of the format and what in the row decided for it. The table
``LAYOUTS`` is the one home of the column names; ``pipeline.data.conversations`` reads the rows that are named here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.core.errors import UserError, nearest

Row = dict[str, Any]


class Rejected(Exception):
    """A row that is left out. ``reason`` is a short snake_case word to count by, ``detail`` says what was seen.

    ``step`` names the cleaning step that left it out; "" where it could not become a conversation. The detail is one
    line of at most 200 characters and can always be written as UTF-8.
    """

    def __init__(self, reason: str, detail: str = "", step: str = ""):
        detail = " ".join(detail.encode("utf-8", "backslashreplace").decode().split())
        if len(detail) > 200:
            detail = detail[:199] + "…"
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.step = step


def is_missing(value: Any) -> bool:
    """None, or NaN: what pandas and Arrow put where a row has no such column."""
    return value is None or (isinstance(value, float) and value != value)


# --- the formats and their columns --------------------------------------------------------------------------------------

# Where several names mean the same, the first that the row has is read. ``problem`` and ``solution`` come before what is
# often a bare final value beside them.
TURNS = ("conversations", "conversation")
PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input")
ANSWERS = ("completion", "response", "output", "solution", "answer")
REASONING = ("reasoning", "reasoning_content", "think", "thinking", "cot", "chain_of_thought", "thought")
EXTRAS = ("input", "context")  # what a prompt is about; goes under it
SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")


@dataclass(frozen=True)
class Layout:
    """``required``: of each group one column must be there. ``optional``: columns that are read where they are."""

    required: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(name for group in self.required for name in group), *self.optional)


LAYOUTS: dict[str, Layout] = {
    "preference": Layout((("chosen",), ("rejected",)), (*TURNS, "messages", *PROMPTS, "context", *SYSTEM, *TOOLS)),
    "messages": Layout((("messages",),), (*SYSTEM, *TOOLS)),
    "sharegpt": Layout((TURNS,), (*SYSTEM, *TOOLS)),
    "openmathreasoning": Layout((("problem",), ("generated_solution",)), ()),
    "reasoning": Layout((PROMPTS, REASONING, ANSWERS), (*EXTRAS, *SYSTEM, *TOOLS, "history")),
    "alpaca": Layout((("instruction",), ("output",)), (*EXTRAS, *SYSTEM, *TOOLS, "history")),
    "prompt_completion": Layout((PROMPTS, ANSWERS), (*EXTRAS, *SYSTEM, *TOOLS, "history")),
}


def filled(row: Row, names: Iterable[str]) -> str | None:
    """The first of these columns that holds something."""
    for name in names:
        if name in row and not is_missing(row[name]):
            return name
    return None


def column(row: Row, names: Iterable[str]) -> str | None:
    """The first of these columns that holds something, else the first that is there at all."""
    return filled(row, names) or next((name for name in names if name in row), None)


def columns_of(row: Row) -> str:
    """The row's columns, as a person would want to read them."""
    return ", ".join(repr(str(name)[:30]) for name in row) or "nothing"


# --- detection ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detection:
    """A format (a key of ``LAYOUTS``) and, in words, what in the row decided for it."""

    format: str
    because: str


def _turns(row: Row, name: str) -> str:
    """What stands in a column of turns."""
    value = row[name]
    if isinstance(value, str) and value.strip():
        return f"has {name!r}, turns as JSON text"
    if not isinstance(value, list) or not value:
        seen = "nothing" if is_missing(value) or value == [] else type(value).__name__
        return f"has {name!r} (here with {seen} in it)"
    first = value[0]
    keys = [k for k in ("role", "content", "from", "value") if k in first] if isinstance(first, dict) else []
    return f"has {name!r}, a list of turns" + (f" with {' and '.join(map(repr, keys))}" if keys else "")


def _match(row: Row, has: Callable[[Row, Iterable[str]], str | None]) -> tuple[str, tuple[str, ...]] | None:
    """(format, the columns that decided), by the first rule that holds. The order is from the special to the general."""
    if has(row, ("chosen",)) and has(row, ("rejected",)):
        return "preference", ("chosen", "rejected")
    if has(row, ("messages",)):
        return "messages", ("messages",)
    if turns := has(row, TURNS):
        return "sharegpt", (turns,)
    if has(row, ("problem",)) and has(row, ("generated_solution",)):
        return "openmathreasoning", ("problem", "generated_solution")
    prompt, answer = has(row, PROMPTS), has(row, ANSWERS)
    if not prompt or not answer:
        return None
    # An empty reasoning column counts: a row must not change its mode because its reasoning was lost.
    if reasoning := column(row, REASONING):
        return "reasoning", (prompt, reasoning, answer)
    if has(row, ("instruction",)) and has(row, ("output",)):
        return "alpaca", ("instruction", "output")
    return "prompt_completion", (prompt, answer)


def match(row: Row) -> tuple[str, tuple[str, ...]]:
    """(format, the columns that decided). Columns that hold something decide; if those do not, all that are there.

    Raises:
        Rejected: ``unknown_format``, with the columns seen, the nearest format and what it lacks.
    """
    found = _match(row, filled) or _match(row, column)
    if found is None:
        raise Rejected("unknown_format", _unknown(tuple(map(str, row))))
    return found


def explain(row: Row, name: str, columns: tuple[str, ...]) -> str:
    """In words, why ``match`` decided so."""
    if name in ("messages", "sharegpt"):
        return _turns(row, columns[0])
    return f"has {', '.join(map(repr, columns[:-1]))} and {columns[-1]!r}"


def detect(row: Row) -> Detection:
    """Which format a row is in, and why.

    Raises:
        Rejected: ``unknown_format``, with the columns seen, the nearest format and what it lacks.
    """
    name, columns = match(row)
    return Detection(name, explain(row, name, columns))


@lru_cache(maxsize=256)
def _unknown(columns: tuple[str, ...]) -> str:
    """What is said of a row with these columns, which are of no format. Remembered: a whole file may be like that."""
    lacks = {
        name: [group for group in layout.required if not any(c in columns for c in group)]
        for name, layout in LAYOUTS.items()
    }
    misspelt = {
        name: [c for group in lacks[name] for c in columns if difflib.get_close_matches(c, group, 1, 0.8)]
        for name in LAYOUTS
    }
    # Most of what it needs, a column that is spelt almost right counting half; then the one with the rarer names.
    share, common = {}, {}
    for name, layout in LAYOUTS.items():
        there = [group for group in layout.required if group not in lacks[name]]
        share[name] = (len(there) + 0.5 * bool(misspelt[name])) / len(layout.required)
        common[name] = min(map(len, there), default=0)
    best = max(share, key=lambda name: (share[name], -common[name]))
    words = [repr(g[0]) if len(g) == 1 else f"one of {', '.join(map(repr, g[:3]))}…" for g in lacks[best]]
    near = f"nearest is {best}, which lacks {' and '.join(words)}; " if share[best] else ""
    hint = f"(is it {misspelt[best][0][:30]!r}?) " if misspelt[best] else ""
    tail = f"; {near}{hint}set format: or columns: in the recipe"
    seen = columns_of(dict.fromkeys(columns))
    room = 200 - len("columns ") - len(tail)
    return f"columns {seen if len(seen) <= room else seen[: room - 1] + '…'}{tail}"


# --- other names for the columns ----------------------------------------------------------------------------------------


def check_columns(name: str, columns: Mapping[str, str]) -> None:
    """Check a recipe's ``columns``: each key must be a column that the format (or, for ``auto``, any format) reads.

    Raises:
        UserError: it is not, with the nearest one that is.
    """
    layouts = LAYOUTS.values() if name == "auto" else [LAYOUTS[name]]
    known = list(dict.fromkeys(c for layout in layouts for c in layout.columns))
    for key in columns:
        if key not in known:
            raise UserError(
                f"columns: format {name} reads no column {key!r}.{nearest(key, known)} It reads {', '.join(known)}. "
                "Write it as {name in the format: name in your file}."
            )


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with its columns under the format's names. A column named in the mapping is found nowhere else."""
    taken = set(columns) | set(columns.values())
    result = {name: value for name, value in row.items() if name not in taken}
    return result | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
