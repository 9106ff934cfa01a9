"""The two modes of a hybrid model, and the tags around its reasoning."""

from __future__ import annotations

from typing import Literal, NamedTuple

Mode = Literal["thinking", "non_thinking"]
MODES: tuple[Mode, Mode] = ("thinking", "non_thinking")


class Tags(NamedTuple):
    """What a model writes before and behind its reasoning, without the white space around it."""

    open: str
    close: str


OPEN, CLOSE = THINK = Tags("<think>", "</think>")  # of most models, and of data sets that hold reasoning
