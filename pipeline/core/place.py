"""Where the project's own files lie: in a checkout beside the package, in an installed package among its assets."""

from __future__ import annotations

import os
from pathlib import Path

DISTRIBUTION = "hybrid-reasoning-course"
PACKAGE = Path(__file__).resolve().parents[1]
IN_CHECKOUT = (PACKAGE.parent / "data_recipes").is_dir()
# Holds data_recipes/, ablations/, models/ and notebooks/; of a checkout, its root.
ROOT = PACKAGE.parent if IN_CHECKOUT else PACKAGE / "assets"


def cache_dir() -> Path:
    """Where tokenised pools are kept: ``PIPELINE_CACHE``, else in the checkout, else in the user's cache folder."""
    if chosen := os.environ.get("PIPELINE_CACHE"):
        return Path(chosen)
    if IN_CHECKOUT:
        return ROOT / "outputs" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / DISTRIBUTION
