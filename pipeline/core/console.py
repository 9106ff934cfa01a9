"""What is said on the console while work goes on."""

from __future__ import annotations

from pipeline.core.processes import is_first


def say(text: str) -> None:
    """Print a line of progress to standard error; of several processes, the first does."""
    from rich.console import Console

    if is_first():
        Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)
