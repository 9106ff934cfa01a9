"""Settings against settings: by dotted keys, in which they differ, and what a difference changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from pipeline.core.redact import MASK
from pipeline.settings.profile import Profile
from pipeline.settings.section import AffectedResult, Affects, Section


def affected_by(key: str) -> frozenset[AffectedResult]:
    """What a setting changes: ``training.learning_rate`` → {training}; a key below ``recipe.`` counts as the recipe.

    Raises:
        KeyError: there is no such setting, or neither it nor a section around it says what it changes.
    """
    section: type[Section] | None = Profile
    results: frozenset[AffectedResult] | None = None
    for part in key.split("."):
        if section is None:
            break  # inside a value: a mapping, the recipe
        field = section.model_fields[part]
        results = next((mark.results for mark in field.metadata if isinstance(mark, Affects)), results)
        types = (field.annotation, *get_args(field.annotation))
        section = next((t for t in types if isinstance(t, type) and issubclass(t, Section)), None)
    if results is None:
        raise KeyError(key)
    return results


def affects(key: str, *results: AffectedResult) -> bool:
    """Whether a setting changes one of these; one that this version does not know may change anything."""
    try:
        return bool(affected_by(key) & set(results))
    except KeyError:
        return True


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; an empty mapping has none."""
    if not isinstance(data, dict):
        return {prefix.rstrip("."): data}
    return {key: value for name, inner in data.items() for key, value in flat(inner, f"{prefix}{name}.").items()}


def differing(theirs: Any, mine: Any, prefix: str = "") -> dict[str, str]:
    """{dotted key: what differs, in words that begin with the key} of two nested settings."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        keys = dict.fromkeys([*theirs, *mine])
        return {k: v for key in keys for k, v in differing(theirs.get(key), mine.get(key), f"{prefix}{key}.").items()}
    name = prefix.rstrip(".")
    return {} if theirs == mine else {name: f"{name} is {theirs!r} there and {mine!r} here"}


def shortened(differences: Iterable[str]) -> str:
    """The first three differences, and how many more there are."""
    parts = list(differences)
    return ("; ".join(parts[:3]) or "its settings") + (f"; and {len(parts) - 3} more" if len(parts) > 3 else "")


def masked_keys(data: Any) -> list[str]:
    """Dotted keys of the settings in which a secret was masked when they were written."""
    return [key for key, value in flat(data).items() if MASK in str(value)]
