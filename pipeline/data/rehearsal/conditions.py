"""Questions with conditions: how long, in which layout, with which words. Many instructions have some, many sets have none.

In: the messages of a question. Out: the same with one to three conditions behind the last user turn, drawn from a file of lists,
at most one of each list. The question's text decides which, so that an order or a number of processes changes nothing.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint
from pipeline.data.conversations import Message
from pipeline.settings import locate, read_yaml

SHIPPED = Path(__file__).resolve().parent / "conditions.yaml"
MOST = 3
Conditions = tuple[tuple[str, ...], ...]  # lists, of each of which a question gets at most one
_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")


def read_conditions(path: str) -> Conditions:
    """The lists of a file, ``{name: [condition, …]}``.

    Raises:
        UserError: no such file, or it is not of that shape.
    """
    file = locate(path)
    data = read_yaml(file)
    lists = list(data.values()) if isinstance(data, dict) else []
    if not lists or not all(
        isinstance(own, list) and own and all(isinstance(line, str) and line.strip() for line in own) for own in lists
    ):
        raise UserError(
            f"{file} should hold lists of conditions by name, each condition a text: 'length: [Be brief., …]'. "
            f"{SHIPPED} is one."
        )
    return tuple(tuple(own) for own in lists)


def conditioned(messages: list[Message], lists: Conditions) -> list[Message]:
    """The messages with conditions behind the last user turn; without a user turn, as they are."""
    last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "user"), None)
    if last is None:
        return messages
    question = messages[last]["content"]
    draw = random.Random(fingerprint(question))
    wanted = min(draw.randint(1, MOST), len(lists))
    drawn = [draw.choice(own) for own in draw.sample(lists, wanted)]
    spelt = [_CHOICE.sub(lambda found: draw.choice(found[1].split("|")), condition) for condition in drawn]
    behind = draw.choice(["\n\n", "\n", " "]) + " ".join(spelt)
    return [*messages[:last], {**messages[last], "content": question.rstrip() + behind}, *messages[last + 1 :]]
