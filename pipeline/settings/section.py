"""Where settings lie, and what all of them have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from pipeline.core.place import PACKAGE

PROFILES = PACKAGE / "profiles"


class Section(BaseModel):
    """Base of all settings: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())
