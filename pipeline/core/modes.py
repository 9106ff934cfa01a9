"""The two modes of a hybrid model, and the tags around its reasoning."""

from __future__ import annotations

from typing import Literal

Mode = Literal["thinking", "non_thinking"]
MODES: tuple[Mode, Mode] = ("thinking", "non_thinking")
OPEN, CLOSE = "<think>", "</think>"
