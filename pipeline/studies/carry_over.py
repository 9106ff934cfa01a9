"""Do the claims of this course hold on another model? Three studies that were made on the embedded one, and a verdict each.

In: a profile. Out: a directory with the three sweeps (``ratio/``, ``mask/``, ``cure/``, cells shared in ``cells/``), and
``carry_over.json`` and ``carry_over.md``, to be sent back. A verdict goes by intervals: *holds* where they are apart in the
claimed direction, *contrary* where they are apart in the other, else *not shown*. What is lost shows in scores only where the
base solves at least half of a benchmark; the distance to the base on what was not learnt is said for every model.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from typing_extensions import TypedDict

from pipeline.core.errors import UserError
from pipeline.core.files import write_json, write_text
from pipeline.core.versions import installed
from pipeline.studies.curve import sweep_table
from pipeline.studies.engine import LOCAL, CellPlace, StudyEngine
from pipeline.studies.results import Estimate, Point, Sweep
from pipeline.studies.sweep import run_sweep, sweep_arms

SHARES = ["0", "0.1", "0.25", "0.5", "1"]
MASKS, MASK_ARMS = "ablations/empty_think.yaml", ("masked", "trained")
CURE = "ablations/cure.yaml"
MIDDLE = ("0.25", "0.5")  # where the course says that both are kept
Verdict = Literal["holds", "contrary", "not shown", "cannot be said"]


class ClaimResult(TypedDict):
    """A claim of the course, what was measured for it, and what follows."""

    claim: str
    study: str  # ratio, mask or cure
    values: dict[str, Estimate]  # what is compared, by arm or share
    verdict: Verdict


class CarryOver(TypedDict):
    """``carry_over.json``."""

    profile: str
    model: str
    machine: str
    versions: dict[str, str | None]
    claims: list[ClaimResult]
    studies: dict[str, Sweep]


def verdict(lower: Estimate | None, higher: Estimate | None) -> Verdict:
    """Whether the second is above the first, by 95 % intervals that do not touch."""
    if lower is None or higher is None:
        return "cannot be said"
    if higher["ci95"][0] > lower["ci95"][1]:
        return "holds"
    return "contrary" if higher["ci95"][1] < lower["ci95"][0] else "not shown"


def _point(sweep: Sweep, value: str) -> Point | None:
    return next((point for point in sweep["points"] if str(point["value"]) in (value, f"{value}.0")), None)


def _best(sweep: Sweep, values: Sequence[str], part: Literal["gain", "keep"]) -> Estimate | None:
    found = [point[part] for point in (_point(sweep, value) for value in values) if point is not None]
    return max(found, key=lambda estimate: estimate["value"]) if found else None


def _part(sweep: Sweep, value: str, part: Literal["gain", "keep"]) -> Estimate | None:
    point = _point(sweep, value)
    return None if point is None else point[part]


def _distance(sweep: Sweep, value: str) -> Estimate | None:
    """KL(base ‖ tuned), nats a token, mean over what no value learnt, in both modes; None: it was not measured.

    The interval is the mean of theirs, which is wider than that of the mean.
    """
    point = _point(sweep, value)
    if point is None or "distance" not in point:
        return None
    new = {name.partition("/")[2] for name in sweep["learnt"]}
    own = [e for rates in point["distance"].values() for name, e in rates.items() if name not in new]
    if not own:
        return None
    low, high = (sum(e["ci95"][side] for e in own) / len(own) for side in (0, 1))
    return {"value": sum(e["value"] for e in own) / len(own), "ci95": [low, high]}


def _nearest(sweep: Sweep, values: Sequence[str]) -> Estimate | None:
    found = [estimate for value in values if (estimate := _distance(sweep, value)) is not None]
    return min(found, key=lambda estimate: estimate["value"]) if found else None


def _fidelity(sweep: Sweep, value: str) -> Estimate | None:
    point = _point(sweep, value)
    if point is None or "thinking" not in point["modes"]:
        return None
    rate = point["modes"]["thinking"]["mode_fidelity"]
    return {"value": rate["value"], "ci95": rate["ci95"]}


def claims_of(studies: dict[str, Sweep]) -> list[ClaimResult]:
    """A line for each claim, from the three sweeps."""
    ratio, mask, cure = studies["ratio"], studies["mask"], studies["cure"]
    known, learnt = bool(ratio["known"]), bool(ratio["learnt"])
    lines: list[tuple[str, str, tuple[str, Estimate | None], tuple[str, Estimate | None], bool]] = [
        (
            "Without chat, more of what the base knew is lost than with a quarter to a half of it.",
            "ratio",
            ("share 0", _part(ratio, "0", "keep")),
            ("share 0.25 or 0.5", _best(ratio, MIDDLE, "keep")),
            known,
        ),
        (
            "Without chat, the model moves further from the base on what it was not taught.",
            "ratio",
            ("share 0.25 or 0.5", _nearest(ratio, MIDDLE)),
            ("share 0", _distance(ratio, "0")),
            True,
        ),
        (
            "With chat alone, less of the new is learnt than with a quarter to a half of chat.",
            "ratio",
            ("share 1", _part(ratio, "1", "gain")),
            ("share 0.25 or 0.5", _best(ratio, MIDDLE, "gain")),
            learnt,
        ),
        (
            "Loss on the empty think block makes a model stop thinking where it should.",
            "mask",
            ("trained", _fidelity(mask, "trained")),
            ("masked", _fidelity(mask, "masked")),
            True,
        ),
        (
            "The base's own answers in the mix keep what the plain mix loses.",
            "cure",
            ("plain", _part(cure, "plain", "keep")),
            ("rehearsal", _part(cure, "rehearsal", "keep")),
            bool(cure["known"]),
        ),
        (
            "With the base's own answers in the mix it stays nearer to the base on what it was not taught.",
            "cure",
            ("rehearsal", _distance(cure, "rehearsal")),
            ("plain", _distance(cure, "plain")),
            True,
        ),
    ]
    return [
        {
            "claim": claim,
            "study": study,
            "values": {name: estimate for name, estimate in (low, high) if estimate is not None},
            "verdict": verdict(low[1], high[1]) if said else "cannot be said",
        }
        for claim, study, low, high, said in lines
    ]


def carry_over_text(result: CarryOver) -> str:
    """The verdicts as a table."""
    lines = ["| claim | measured (95 %) | verdict |", "|---|---|---|"]
    for claim in result["claims"]:
        measured = "; ".join(
            f"{name} {e['value']:.3f} [{e['ci95'][0]:.3f}, {e['ci95'][1]:.3f}]" for name, e in claim["values"].items()
        )
        lines.append(f"| {claim['claim']} | {measured or '–'} | **{claim['verdict']}** |")
    return "\n".join(lines)


def _machine() -> str:
    """The card, or the processor, in words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    return f"{os.cpu_count()} cores, {platform.machine()}, no GPU"


def _page(result: CarryOver) -> str:
    parts = [
        f"# Do the claims carry over? {result['profile']} ({result['model']})",
        f"{result['machine']}; {', '.join(f'{name} {number}' for name, number in result['versions'].items())}",
        carry_over_text(result),
    ]
    parts += [f"## {name}\n\n{sweep['question']}\n\n{sweep_table(sweep)}" for name, sweep in result["studies"].items()]
    return "\n\n".join(parts) + "\n"


def run_carry_over(
    profile: str,
    model: str,
    folder: Path,
    overrides: Sequence[str] = (),
    seeds: int = 2,
    workers: int | None = None,
    engine: StudyEngine = LOCAL,
) -> CarryOver:
    """Run what is missing of the three studies, and write the verdicts.

    Args:
        profile: name or file. model: its model's name, for the page.
        seeds: runs of each value, at least two.
        engine: where cells run.

    Raises:
        UserError: fewer than two seeds, or as ``run_sweep``.
    """
    if seeds < 2:
        raise UserError(
            f"--seeds {seeds}: a claim about a method needs two seeds at least; one run says what one run did."
        )
    place, own = CellPlace(folder / "cells", engine), list(overrides)
    plain = [*own, "mix.rehearsal=false"]  # what the claims of the first two were made on
    studies: dict[str, Sweep] = {
        "mask": sweep_arms(profile, MASKS, seeds, folder / "mask", plain, workers, place, MASK_ARMS),
        "cure": sweep_arms(profile, CURE, seeds, folder / "cure", own, workers, place),
        "ratio": run_sweep(profile, "chat_share", SHARES, seeds, folder / "ratio", plain, workers, place),
    }
    result: CarryOver = {
        "profile": profile,
        "model": model,
        "machine": _machine(),
        "versions": installed(),
        "claims": claims_of(studies),
        "studies": studies,
    }
    write_json(folder / "carry_over.json", result)
    write_text(folder / "carry_over.md", _page(result))
    return result
