"""Jinja templates of the package, all under the same rules: a name that is not given is an error, tags leave no blank lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2


def environment(folder: Path, escape: bool, **filters: Callable[..., object]) -> jinja2.Environment:
    """Templates of a folder.

    Args:
        escape: for HTML; false for Markdown.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(filters)
    return made
