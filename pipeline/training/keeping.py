"""Which rows are held to the base, and which come first: what the switches against forgetting ask of the rows of a mix."""

from __future__ import annotations

from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.processes import size
from pipeline.data.mix import Mix
from pipeline.settings import Profile


def require_one_process(weight: float) -> None:
    """The distance is computed past the wrapper that several processes put around a model.

    Raises:
        UserError: there are several.
    """
    if size() > 1:
        raise UserError(
            f"training.kl_to_base={weight:g} works in one process; start it without torchrun, or set it to 0."
        )


def _recipe_of(mix: Mix) -> list[dict[str, Any]]:
    return list(mix.manifest["recipe"]["sources"])


def held_to_base(profile: Profile, mix: Mix) -> list[bool]:
    """Of each training row, whether training.kl_to_base holds it.

    Raises:
        UserError: only rows of the base were wanted, and the mix has none.
    """
    if profile.training.kl_rows == "all":
        return [True] * len(mix.train)
    own = {source["name"] for source in _recipe_of(mix) if source["source"] == "base"}
    flags = [name in own for name in mix.train["source"]]
    if not any(flags):
        raise UserError(
            "training.kl_rows=rehearsal, and no row of the mix was written by the base. Take a recipe with source: base, or set "
            "training.kl_rows=all."
        )
    return flags


def reasoning_rows(profile: Profile, mix: Mix) -> list[int]:
    """Numbers of the training rows that come first under training.reasoning_first: of sources of kind reasoning, by the seed.

    Raises:
        UserError: there are too few of them.
    """
    import numpy as np

    part = profile.training.reasoning_first
    if not part:
        return []
    own = {source["name"] for source in _recipe_of(mix) if source["kind"] == "reasoning"}
    rows = [number for number, name in enumerate(mix.train["source"]) if name in own]
    count = round(part * len(mix.train))
    if count > len(rows):
        raise UserError(
            f"training.reasoning_first={part:g} asks for {count:,} rows of kind reasoning, and the mix has {len(rows):,}; set it "
            f"to at most {len(rows) / len(mix.train):.2f}."
        )
    return sorted(np.random.default_rng(profile.seed).choice(rows, count, replace=False).tolist())
