"""Which build of torch the NVIDIA driver here can run, read from ``nvidia-smi`` before anything is installed.

    python -m pipeline.core.driver        # cu126, or nothing where the build that pip takes by itself will do

A build of torch belongs to a version of CUDA, and a driver runs those up to its own. Standard library alone: ``make setup`` asks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader")
# Oldest driver branch for a major version of CUDA (CUDA Toolkit release notes, minor version compatibility).
CUDA_13, CUDA_12 = 580, 525
OLDER_BUILD = "cu126"  # what PyTorch builds beside CUDA 13 (its CUDA support matrix of 2.12 to 2.14)
TURING, BLACKWELL = (7, 5), (10, 0)  # CUDA 13 knows no card before the former, the older build none from the latter on


@dataclass(frozen=True)
class Card:
    """What ``nvidia-smi`` says of a GPU."""

    name: str
    driver: str
    capability: tuple[int, int] | None  # compute capability; None: old drivers do not say

    @property
    def branch(self) -> int | None:
        """The driver's branch, such as 580; None: not to be read."""
        number = self.driver.split(".")[0]
        return int(number) if number.isdecimal() else None


@dataclass(frozen=True)
class Build:
    """The build of torch for a machine.

    ``label`` as in PyTorch's index: ``""``: pip's own; None: there is none, and ``advice`` says what helps.
    """

    label: str | None
    advice: str = ""


def cards() -> list[Card]:
    """The GPUs that the driver shows, with its version.

    Raises:
        OSError: there is no ``nvidia-smi``, or it fails (with what it printed).
    """
    done = subprocess.run(QUERY, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise OSError(" ".join((done.stdout + done.stderr).split()) or f"nvidia-smi ended with {done.returncode}")
    return parse(done.stdout)


def parse(text: str) -> list[Card]:
    """Lines ``name, driver version, compute capability``; others are left out."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 2)]
        if len(parts) == 3 and parts[0]:
            numbers = parts[2].split(".")
            known = len(numbers) == 2 and all(number.isdecimal() for number in numbers)
            found.append(Card(parts[0], parts[1], (int(numbers[0]), int(numbers[1])) if known else None))
    return found


def build_for(found: list[Card]) -> Build:
    """The build of torch that runs on all of these cards with their driver."""
    if not found:
        return Build("")
    branches = [card.branch for card in found if card.branch is not None]
    driver = found[0].driver
    update = f"update the NVIDIA driver to {CUDA_13} or later (here: {driver})"
    if not branches:
        return Build("")  # nothing is known of it, so the usual one is tried
    new = [card.name for card in found if card.capability and card.capability >= BLACKWELL]
    old = [card.name for card in found if card.capability and card.capability < TURING]
    if min(branches) < CUDA_12:
        return Build(None, f"No build of torch runs with this driver: {update}.")
    if min(branches) >= CUDA_13 and not old:
        return Build("")
    if new:
        reason = f"beside {old[0]}, which CUDA 13 no longer knows" if old else "with this driver"
        helps = "choose one of them by CUDA_VISIBLE_DEVICES" if old else update
        return Build(None, f"No build of torch runs on {new[0]} {reason}: {helps}.")
    return Build(OLDER_BUILD)


def compiler() -> str | None:
    """What Triton would compile with: ``$CC``, or gcc, clang, cc; None: there is none."""
    own = os.environ.get("CC")
    if own:
        return shutil.which(own.split()[0])
    return next((path for path in map(shutil.which, ("gcc", "clang", "cc")) if path), None)


def headers() -> Path | None:
    """Python.h of this interpreter, which what Triton compiles includes; None: it is not there."""
    paths = sysconfig.get_paths()
    places = (Path(paths[name]) / "Python.h" for name in ("include", "platinclude"))
    return next((path for path in places if path.is_file()), None)


def why_not(torch_version: str, cuda: str | None) -> tuple[str, str]:
    """Why torch uses no GPU although ``nvidia-smi`` is there, and what helps.

    Args:
        cuda: the version that torch was built for; None: it is a build for the CPU.

    Returns:
        (detail, advice)
    """
    what = f"none that torch {torch_version} can use"
    try:
        found = cards()
    except (OSError, subprocess.TimeoutExpired) as error:
        return (
            f"{what}: nvidia-smi fails ({error})",
            "Mend the driver first (install it anew, or start the machine anew).",
        )
    if not found:
        return f"{what}: nvidia-smi shows no GPU", "Give the machine or the container one (docker run --gpus all)."
    build, seen = build_for(found), f"{found[0].name}, driver {found[0].driver}"
    if build.label is None:
        return f"{what}: {seen}", build.advice
    again = "Remove .venv and run `make setup`"
    if cuda is None:
        return f"{what}, a build for the CPU: {seen}", f"{again}, which takes a build for this driver."
    if build.label and cuda.split(".")[0] != build.label[2:4]:
        advice = f"{again}, which takes the build {build.label}; or update the driver to {CUDA_13} or later."
        return f"{what}, built for CUDA {cuda}: {seen}", advice
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"{what}: CUDA_VISIBLE_DEVICES={hidden!r} hides {seen}", "Unset CUDA_VISIBLE_DEVICES."
    advice = "Look what `python -c 'import torch; torch.cuda.init()'` says; often a restart of the machine helps."
    return f"{what}, though driver and build fit: {seen}", advice


def main() -> int:
    try:
        build = build_for(cards())
    except (OSError, subprocess.TimeoutExpired) as error:
        print(
            f"nvidia-smi does not say which driver this is ({error}); pip's own build of torch is taken.",
            file=sys.stderr,
        )
        return 0
    if build.label is None:
        print(f"error: {build.advice}", file=sys.stderr)
        return 1
    if build.label:
        print(build.label)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
