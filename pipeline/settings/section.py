"""Where settings lie, what all of them have in common, and how a setting says what it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.core.place import PACKAGE

PROFILES = PACKAGE / "profiles"

AffectedResult = Literal["mix", "training", "evaluation", "preference", "grpo"]


@dataclass(frozen=True)
class Affects:
    """Marks a setting, or a section and with it all its settings that have no mark of their own: what it changes.

    ``training`` is any training, ``preference`` and ``grpo`` those alone. None at all: what is made is the same with any
    value. See ``pipeline.settings.compare.affected_by``.
    """

    results: frozenset[AffectedResult]

    def __init__(self, *results: AffectedResult):
        object.__setattr__(self, "results", frozenset(results))


NOTHING = Affects()


class Section(BaseModel):
    """Base of all settings: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())
