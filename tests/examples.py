"""How many examples hypothesis tries: few, and the same ones each time, in ``make test``; many in ``make test-all``."""

from __future__ import annotations

import os

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")  # or nightly


def examples(number: int) -> int:
    """Of a test that needs another number than the profile's: ``number`` by ``make test``, ten times as many otherwise."""
    return number if PROFILE == "ci" else 10 * number
