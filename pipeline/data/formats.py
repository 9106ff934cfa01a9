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


LONG_DETAIL = 4000  # characters, of a detail that lists the columns of a row in full


class Rejected(Exception):
    """A row that is left out. ``reason`` is a short snake_case word to count by, ``detail`` says what was seen.

    ``step`` names the cleaning step that left it out; "" where it could not become a conversation. The detail is one
    line of at most 200 characters (``limit``, where it lists a row's columns) and can always be written as UTF-8.
    """

    def __init__(self, reason: str, detail: str = "", step: str = "", limit: int = 200):
        detail = " ".join(detail.encode("utf-8", "backslashreplace").decode().split())
        if len(detail) > limit:
            detail = detail[: limit - 1] + "…"
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.step = step


def is_missing(value: Any) -> bool:
    """None, or NaN: what pandas and Arrow put where a row has no such column."""
    return value is None or (isinstance(value, float) and value != value)


def is_empty(value: Any) -> bool:
    """Missing, blank text, or an empty list: no reason to overlook another column of the same meaning."""
    if isinstance(value, str):
        return not value or value.isspace()
    return is_missing(value) or (isinstance(value, list) and not value)


# --- flags --------------------------------------------------------------------------------------------------------------

_ON = {"on", "yes", "true", "enabled", "thinking", "think", "/think", "with_thinking", "with reasoning"}
_OFF = {
    *("off", "no", "false", "disabled", "none", "no_think", "/no_think", "no_thinking", "non_thinking", "non-thinking"),
    *("nothink", "nothinking", "without_thinking", "without reasoning", "non-reasoning", "non_reasoning"),
}


def flag_of(value: Any) -> bool | None:
    """Whether the value says that a row has reasoning (True) or has none (False); None where it is no such flag."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and len(value) < 24:
        word = value.strip().lower()
        return True if word in _ON else False if word in _OFF else None
    return None


# --- the formats and their columns --------------------------------------------------------------------------------------

# Where several names mean the same, the first that the row has is read. ``problem`` and ``solution`` come before what is
# often a bare final value beside them.
TURNS = ("conversations", "conversation")
PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input")
ANSWERS = ("completion", "response", "output", "solution", "answer", "model_answer", "model_response")
REASONING = (
    *("reasoning", "reasoning_content", "thinking_content", "think", "thinking", "thoughts", "cot", "chain_of_thought"),
    *(
        "thought",
        "deepseek_reasoning",
        "r1_reasoning",
        "model_reasoning",
        "reasoning_trace",
        "reasoning_text",
        "rationale",
    ),
    *("thinking_trajectories", "deepseek_thinking_trajectory", "gemini_thinking_trajectory", "thinking_trajectory"),
    *("complex_cot", "long_cot", "thought_process", "thinking_process", "thinking_trace", "reasoning_process"),
    *("model_thinking", "reasoning_chain", "reasoning_steps", "think_content", "scratchpad"),
)
# In a message. ``reasoning_details`` and ``thinking_blocks`` are lists of parts, as OpenRouter and LiteLLM write them.
REASONING_FIELDS = (
    *(
        "reasoning_content",
        "reasoning",
        "thinking",
        "thinking_content",
        "thought",
        "thoughts",
        "think",
        "cot",
        "rationale",
    ),
    *("reasoning_text", "reasoning_trace", "reasoning_details", "thinking_blocks"),
)
# Columns that say whether a row has reasoning; a column of reasoning that holds such a word is one too.
FLAGS = ("enable_thinking", "thinking_mode", "reasoning_mode", "think_mode", "use_reasoning", "has_reasoning", "mode")
EXTRAS = ("input", "context")  # what a prompt is about; goes under it
NO_INPUT = ("<noinput>", "<no input>", "<no_input>", "<nan>")  # how Alpaca's generators say that there is none
SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# Of a row with a single answer: whether that answer is a good one (unpaired preference data).
LABELS = ("label", "kto_tag", "is_correct", "correct")
EXPECTED = "expected_answer"  # read by the step check_answer
_REASONING_NAMES = frozenset((*REASONING, *REASONING_FIELDS))
_FLAG_NAMES = frozenset((*REASONING, *FLAGS))


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
    "tool_calls": Layout((("query",), ("answers",), ("tools",)), SYSTEM),
    "reasoning": Layout((PROMPTS, REASONING, ANSWERS), (*EXTRAS, *SYSTEM, *TOOLS, "history")),
    "alpaca": Layout((("instruction",), ("output",)), (*EXTRAS, *SYSTEM, *TOOLS, "history")),
    "prompt_completion": Layout((PROMPTS, ANSWERS), (*EXTRAS, *SYSTEM, *TOOLS, "history")),
}


def filled(row: Row, names: Iterable[str]) -> str | None:
    """The first of these columns that holds something."""
    for name in names:
        value = row.get(name)
        if value is not None and ((value and not value.isspace()) if value.__class__ is str else not is_empty(value)):
            return name
    return None


def column(row: Row, names: Iterable[str]) -> str | None:
    """The first of these columns that holds something, else the first that is there at all."""
    return filled(row, names) or next((name for name in names if name in row), None)


def reasoning_column(row: Mapping[str, Any], names: Iterable[str] = REASONING) -> str | None:
    """As ``column``, of the columns with reasoning in them: one that holds a flag (``on``) is none."""
    if _REASONING_NAMES.isdisjoint(row):  # most rows: asked of each
        return None
    there = [name for name in names if name in row and flag_of(row[name]) is None]
    return next((name for name in there if not is_empty(row[name])), there[0] if there else None)


def answer_columns(reasoning: str) -> tuple[str, ...]:
    """The columns of an answer, first those of the same maker: with ``deepseek_reasoning`` goes ``deepseek_solution``."""
    maker, _, rest = reasoning.rpartition("_")
    first: tuple[str, ...] = ()
    if "trajector" in rest:
        first = (maker.removesuffix("thinking") + "attempt",)
    elif maker and rest in ("reasoning", "thinking"):
        first = tuple(f"{maker}_{name}" for name in ANSWERS if "_" not in name)
    return (*first, *ANSWERS)


def columns_used(row: Row, name: str) -> set[str]:
    """The columns of a row that are read if it is in that format; flags, labels and media are looked at in any."""
    layout = LAYOUTS[name]
    used = {column_name for column_name in row if column_name in _LOOKED_AT[name]}
    for group in layout.required:
        if group is REASONING:
            used.update(filter(None, (reasoning_column(row),)))
        elif group is ANSWERS and name == "reasoning":
            used.update(filter(None, (column(row, answer_columns(reasoning_column(row) or "")),)))
        else:
            used.update(filter(None, (column(row, group),)))
    used.update(column_name for column_name, _ in flags_of(row))
    return used


def flags_of(row: Row) -> list[tuple[str, bool]]:
    """The flags of a row: (column, whether it says that the row has reasoning)."""
    found: list[tuple[str, bool]] = []
    if _FLAG_NAMES.isdisjoint(row):
        return found
    for name in (*REASONING, *FLAGS):
        if name not in row or (flag := flag_of(row[name])) is None:
            continue
        if name != "mode" or "think" in str(row[name]).lower():  # a column of that name may say anything
            found.append((name, flag))
    return found


def columns_of(row: Mapping[str, Any]) -> str:
    """The row's columns, as a person would want to read them."""
    return ", ".join(repr(str(name)[:60]) for name in row) or "nothing"


# --- names that are spelt otherwise -------------------------------------------------------------------------------------


def _folded(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def respelt(names: tuple[str, ...], known: Iterable[str]) -> dict[str, str]:
    """Names that are known ones in other case (or with a blank, a hyphen or nothing for ``_``) → the known ones.

    A name that is there as it should be is not replaced, and two names that come to the same are left alone.
    """
    ours = {_folded(name): name for name in reversed(list(known))}
    found = [(name, ours[folded]) for name in names if (folded := _folded(name)) in ours]
    taken = [target for _, target in found]
    return {name: target for name, target in found if name != target and taken.count(target) == 1}


@lru_cache(maxsize=1024)
def respelt_columns(names: tuple[str, ...]) -> dict[str, str]:
    """``respelt`` for the columns that any format reads."""
    return respelt(names, KNOWN)


# --- detection ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detection:
    """A format (a key of ``LAYOUTS``) and, in words, what in the row decided for it."""

    format: str
    because: str


_LOOKED_AT = {name: frozenset((*layout.optional, *MEDIA, *FLAGS, "history")) for name, layout in LAYOUTS.items()}
KNOWN = tuple(
    dict.fromkeys(
        [*(c for layout in LAYOUTS.values() for c in layout.columns), *FLAGS, *MEDIA, "kto_tag", EXPECTED]
        + [answer for name in REASONING for answer in answer_columns(name)]
    )
)


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
    if has(row, ("query",)) and has(row, ("answers",)) and has(row, ("tools",)):
        return "tool_calls", ("query", "answers", "tools")
    # An empty reasoning column counts: a row must not change its mode because its reasoning was lost. Unless it says so.
    reasoning = reasoning_column(row)
    if reasoning and is_empty(row[reasoning]) and (flags := flags_of(row)) and not any(on for _, on in flags):
        reasoning = None
    prompt, answer = has(row, PROMPTS), has(row, answer_columns(reasoning) if reasoning else ANSWERS)
    if not prompt or not answer:
        return None
    if reasoning:
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
        raise Rejected("unknown_format", _unknown(tuple(map(str, row))), limit=LONG_DETAIL)
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
    room = LONG_DETAIL - len("columns ") - len(tail)
    return f"columns {seen if len(seen) <= room else seen[: room - 1] + '…'}{tail}"


_GOLD = ("expected_answer", "ground_truth", "gtruth_answer", "gold_answer", "final_answer", "reference_answer", "gold")


def nearest_columns(names: Iterable[str]) -> str | None:
    """Of these columns the one that is most likely the expected answer."""
    there = {_folded(name): name for name in names}
    for known in map(_folded, _GOLD):
        if found := difflib.get_close_matches(known, there, 1, 0.75):
            return there[found[0]]
    return next((name for name in there.values() if "answer" in name.lower() or "truth" in name.lower()), None)


# --- other names for the columns ----------------------------------------------------------------------------------------


def check_columns(name: str, columns: Mapping[str, str]) -> None:
    """Check a recipe's ``columns``: each key must be a column that the format (or, for ``auto``, any format) reads.

    Raises:
        UserError: it is not, with the nearest one that is.
    """
    layouts = LAYOUTS.values() if name == "auto" else [LAYOUTS[name]]
    known = list(dict.fromkeys([*(c for layout in layouts for c in layout.columns), *FLAGS, EXPECTED]))
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
