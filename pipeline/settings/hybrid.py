"""Settings of the step that makes a hybrid of a pretrained model."""

from __future__ import annotations

from pydantic import Field

from pipeline.settings.section import Section


class HybridSettings(Section):
    """``python -m pipeline hybridise``: from which model, on what, and what has to hold of the result."""

    base: str  # a short name (models list) or a folder
    recipe: str
    # How this training differs from a run of the profile, as --set takes it; what the command line sets counts more.
    overrides: list[str] = []
    fidelity: float = Field(0.95, ge=0, le=1)  # of the replies in each mode, over all benchmarks of the evaluation
    keep: str | None = "ifeval"  # a benchmark: its non-thinking score must stay near the base's own; null: none
    within: float = Field(0.03, ge=0)  # how far below the base's it may be
