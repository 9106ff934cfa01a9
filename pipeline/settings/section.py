"""Where settings lie, and what all of them have in common."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

ROOT = Path(__file__).resolve().parents[2]
PROFILES = Path(__file__).resolve().parents[1] / "profiles"


class Section(BaseModel):
    """Base of all settings: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())
