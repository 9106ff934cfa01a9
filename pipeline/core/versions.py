"""Which versions are installed, which are wanted, and the one place that imports Unsloth.

In: requirements.txt. Out: a comparison, or one sentence that says how to mend it. Nothing is imported to compare.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.place import DISTRIBUTION, IN_CHECKOUT, ROOT

REQUIREMENTS = ROOT / "requirements.txt"
# What has to fit together before Unsloth may patch it.
UNSLOTH_STACK = (
    "unsloth",
    "unsloth_zoo",
    "transformers",
    "trl",
    "peft",
    "torch",
    "bitsandbytes",
    "datasets",
    "accelerate",
)

_PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+]+)")
_log = logging.getLogger(__name__)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def same(found: str | None, wanted: str) -> bool:
    """Whether ``found`` is the version ``wanted``; a build label does not count (``2.13.0+cpu`` is ``2.13.0``)."""
    return found is not None and found.split("+")[0] == wanted.split("+")[0]


def pinned() -> dict[str, str]:
    """Return the direct dependencies with their wanted versions, in the order and spelling of requirements.txt.

    Raises:
        UserError: requirements.txt is missing, or one of its lines is not ``name==version``.
    """
    try:
        if not IN_CHECKOUT:  # an installed package carries them in its metadata
            needed = importlib.metadata.requires(DISTRIBUTION) or []
            return dict(_pins((line for line in needed if "extra ==" not in line), DISTRIBUTION))
        lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(
            f"{REQUIREMENTS} does not exist, so the wanted versions are not known; run from a complete checkout."
        ) from error
    return dict(_pins(lines, str(REQUIREMENTS)))


def _pins(lines: Iterable[str], where: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        match = _PIN.fullmatch(text)
        if match is None:
            raise UserError(f"{where}:{number} is not of the form name==version: {text!r}.")
        yield match["name"], match["version"]


def installed() -> dict[str, str | None]:
    """Return the installed version of each direct dependency, or None where it is not installed."""
    return {name: version_of(name) for name in pinned()}


def versions_here() -> dict[str, str]:
    """What a record says it was made with: Python, and the direct dependencies that are installed."""
    return {"python": platform.python_version(), **{name: version for name, version in installed().items() if version}}


def version_of(name: str) -> str | None:
    """Return the installed version of ``name``, or None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check(*packages: str) -> None:
    """Compare the installed versions of ``packages`` (none named: all direct dependencies) with the wanted ones.

    Raises:
        UserError: one or more are missing or of another version; it names each and the command that mends it.
        ValueError: a name is not a direct dependency.
    """
    pins = {_canonical(name): (name, version) for name, version in pinned().items()}
    unknown = [name for name in packages if _canonical(name) not in pins]
    if unknown:
        raise ValueError(f"not in {REQUIREMENTS.name}: {', '.join(unknown)}")
    wrong = []
    for key in [_canonical(name) for name in packages] or list(pins):
        name, wanted = pins[key]
        found = version_of(name)
        if found is None:
            wrong.append(f"{name} is not installed ({wanted} is needed)")
        elif not same(found, wanted):
            wrong.append(f"{name} is {found} where {wanted} is needed")
    if wrong and os.environ.get("PIPELINE_ANY_VERSIONS") == "1" and all(map(version_of, packages or pins)):
        _log.warning("%s; PIPELINE_ANY_VERSIONS=1 goes on all the same", "; ".join(wrong))
        return
    if wrong:
        raise UserError(
            f"{'; '.join(wrong)}: run `make setup`, and start the program with .venv/bin/python. (PIPELINE_ANY_VERSIONS=1 "
            "tries other versions, untested.)"
        )


class _Tap:
    """A text stream that keeps what is written while it is closed, and passes it on once it is open.

    Libraries keep the stream that they find while being imported (logging handlers do), so what replaces ``sys.stderr``
    during an import must go on working afterwards.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._before = getattr(sys, name)
        self._open = False
        self.kept: list[str] = []

    def _target(self) -> Any:
        # Closed, the current stream is this one or a wrapper that a library put around it (Unsloth does).
        return getattr(sys, self._name) if self._open else self._before

    def write(self, text: str) -> int:
        if not self._open:
            self.kept.append(text)
            return len(text)
        return int(self._target().write(text))

    def flush(self) -> None:
        if self._open:
            self._target().flush()

    def open(self) -> None:
        self._open = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target(), name)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what is printed to stdout and stderr inside the block off the screen; it goes to the log at debug level.

    Meant for imports: a logging handler made inside the block prints again after it.
    """
    before = sys.stdout, sys.stderr
    taps = _Tap("stdout"), _Tap("stderr")
    sys.stdout, sys.stderr = taps
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for tap in taps:
            tap.open()
            for line in "".join(tap.kept).splitlines():
                if line.strip():
                    _log.debug("%s", line)


def import_unsloth() -> ModuleType:
    """Import Unsloth, which has to come before transformers, TRL and PEFT, without its banner; returns the module.

    Raises:
        UserError: a version of the stack is wrong, torchvision does not fit torch, or Unsloth does not import.
    """
    check(*UNSLOTH_STACK)
    try:
        with quiet():
            return importlib.import_module("unsloth")
    except (ImportError, NotImplementedError, RuntimeError, OSError) as error:
        # OSError: a shared library of torch or bitsandbytes that does not load.
        reason = _reason(error)
        vision = version_of("torchvision")
        if vision is not None and "torchvision" in reason:
            raise UserError(
                f"torchvision {vision} does not work beside torch {version_of('torch')}, and Unsloth fails with it; "
                f"text models do not need it: run `{sys.executable} -m pip uninstall --yes torchvision`."
            ) from error
        if isinstance(error, NotImplementedError) and os.environ.get("UNSLOTH_DISABLE_CPU_FALLBACK") == "1":
            raise UserError(
                "Unsloth finds no GPU, and UNSLOTH_DISABLE_CPU_FALLBACK=1 in the environment forbids the CPU: unset it."
            ) from error
        raise UserError(
            f"Unsloth cannot be imported ({reason}); run `make setup`, then `python -m pipeline doctor`."
        ) from error


def _reason(error: BaseException) -> str:
    """Return the error and what it came from, the latter only while it adds a new text, in one line."""
    texts: list[str] = []
    link: BaseException | None = error
    while link is not None:
        text = " ".join(str(link).split()).rstrip(".") or type(link).__name__
        if not any(text in known for known in texts):
            texts.append(text)
        link = link.__cause__
    return "; ".join(texts)
