"""Steps that take much of a source are said aloud, with rows of theirs: such a step is often meant for another kind of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MUCH = 0.1  # part of a source that one step may take without a word
SHOWN = 5  # of the rows that it took


def warnings_of_steps(sources: Sequence[dict[str, Any]]) -> list[str]:
    """One warning for each step that takes more than a tenth of a source, with the first five of its rows.

    Args:
        sources: the accounts of a manifest: ``name``, ``read`` and ``steps`` with their ``rejected`` and ``examples``.
    """
    result = []
    for source in sources:
        for step, entry in source["steps"].items():
            taken = sum(entry["rejected"].values())
            if taken > MUCH * source["read"]:
                rows = "".join(f"\n      {example}" for example in entry["examples"][:SHOWN])
                result.append(
                    f"{source['name']}: {step} takes {taken / source['read']:.0%} of the rows ({taken:,} of {source['read']:,}). "
                    f"If these should stay, switch it off or change it for this source (clean: under the source):{rows}"
                )
    return result
