"""The one exception for mistakes that a user can mend.

The command line prints it as one sentence without a traceback and exits with 2; a notebook shows it as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong, where, and what to do about it, in that order, in words for the person who made the mistake."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known word closest to ``word``, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
