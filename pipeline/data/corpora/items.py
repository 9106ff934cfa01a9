"""Held-out test items."""

from __future__ import annotations

import re
from typing import Any

from pipeline.core.errors import UserError
from pipeline.data.corpora.drawn import (
    draw_arithmetic,
    draw_chat,
    draw_reversal,
    draw_skill,
    draw_subtraction,
    generator,
)

STORY = ("chat", "arithmetic", "skill")  # what the course measures throughout
TEST_SETS = (*STORY, "subtraction", "reversal")


def test_items(name: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Held-out items, all different, none of whose prompts occurs in any training row.

    Args:
        name: ``chat``, ``arithmetic``, ``skill``, ``subtraction`` or ``reversal``.
        count: how many. There are enough for thousands of each.

    Returns:
        ``{"messages": prompt without the last answer, "answer": reference, "kind": "text" | "number"}`` each.
        Earlier assistant turns are in the prompt as plain content, without reasoning, as the chat template keeps them.

    Raises:
        UserError: unknown name, or fewer than ``count`` different items were found.
    """
    if name not in TEST_SETS:
        raise UserError(f"There is no embedded test set {name!r}; there are {', '.join(TEST_SETS)}.")
    items: dict[str, dict[str, Any]] = {}
    for index in range(count * 40):
        r = generator(seed, f"test-{name}", index)
        if name in ("skill", "subtraction"):
            problem, _, _, number = draw_skill(r, True) if name == "skill" else draw_subtraction(r, True)
            messages, answer = [{"role": "user", "content": problem}], str(number)
        else:
            draw = {"chat": draw_chat, "arithmetic": draw_arithmetic, "reversal": draw_reversal}[name]
            turns = draw(r, True)
            messages = [{"role": t["role"], "content": t["content"]} for t in turns[:-1]]
            answer = turns[-1]["content"]
            if name == "arithmetic":
                answer = re.findall(r"\d+", answer)[-1]
        kind = "text" if name in ("chat", "reversal") else "number"
        items.setdefault(str(messages), {"messages": messages, "answer": answer, "kind": kind})
        if len(items) == count:
            return list(items.values())
    if not count:
        return []
    raise UserError(
        f"Only {len(items)} different held-out {name} items exist, {count} were asked for; lower the limit."
    )
