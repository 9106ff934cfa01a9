"""What the commands have in common: their arguments, the settings they name, and how a result is printed."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import Any

from pipeline.core.language import translate
from pipeline.core.processes import is_first


def positive(text: str) -> int:
    """An argparse type: how many of something."""
    with contextlib.suppress(ValueError):
        if 1 <= int(text) <= 10**9:
            return int(text)
    raise argparse.ArgumentTypeError(f"needs a whole number from 1 on, given: {text!r}")


def rate(text: str) -> float:
    """An argparse type: a rate above 0."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"needs a number above 0, given: {text!r}")


def word(text: str) -> str:
    """An argparse type: an option left empty (often an unset variable) is a mistake, not the default."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a value, or leave the option out")
    return text


def folder(text: str) -> Path:
    """An argparse type: a folder, which need not exist."""
    return Path(word(text))


def values(text: str) -> list[str]:
    """An argparse type: values separated by commas."""
    values = [value.strip() for value in text.split(",") if value.strip()]
    if not values:
        raise argparse.ArgumentTypeError("needs at least one value, e.g. 0,0.25,0.5")
    return values


def command(group: Any, name: str, help: str, output: bool = True, profile: bool = True) -> Any:
    """Add a command with the arguments that most have.

    Args:
        group: what ``add_subparsers`` returned.
        output: with ``--output-dir``.
        profile: with ``--profile`` and ``--set``.
    """
    sub = group.add_parser(name, help=help, description=help)
    if profile:
        sub.add_argument("--profile", default="embedded", help="name of a profile, or a YAML file (default: embedded)")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override a setting, e.g. training.max_steps=100",
        )
    if output:
        sub.add_argument("--output-dir", type=folder, required=True, metavar="DIR", help="where results are written")
    sub.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    return sub


def load(args: argparse.Namespace) -> Any:
    """The profile that a command names, with its overrides."""
    from pipeline.settings import load_profile

    overrides = list(args.set)
    if getattr(args, "chat_share", None) is not None:
        overrides.append(f"mix.chat_share={args.chat_share}")
    if getattr(args, "recipe", None) is not None:
        overrides.append(f"recipe={json.dumps(args.recipe)}")
    return load_profile(args.profile, overrides)


def profile_path(args: argparse.Namespace) -> str:
    """The profile's name, or its file's whole path: what is started from here may work in another folder."""
    path = Path(args.profile)
    return str(path.resolve()) if path.suffix and path.exists() else args.profile


def show(args: argparse.Namespace, data: Any, text: str) -> None:
    """Print a result: as text in the reader's language, or with ``--json`` as data."""
    if not is_first():
        return
    try:
        shown = json.dumps(data, ensure_ascii=False, indent=2) if args.json else translate(text)
        print(shown, file=args.output, flush=True)
    except BrokenPipeError:
        # Who reads has seen enough (`| head`). Python flushes what is left at exit, so it must have somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), args.output.fileno())
        raise SystemExit(141) from None  # 128 + SIGPIPE, as other programs end then


def quiet() -> None:
    """Keep the libraries' own progress bars and notices out of the way of ours."""
    import logging
    import warnings

    import datasets

    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)


def cells_text(cells: dict[str, Any]) -> str:
    """An evaluation in a line a cell: {"base": {mode: cell}, …}."""
    lines = []
    for which, modes in cells.items():
        for mode, cell in modes.items():
            scores = ", ".join(f"{n} {b['score']:.3f} (n={b['n']})" for n, b in cell["benchmarks"].items())
            lines.append(
                f"{which}, {mode}: {scores}; mode fidelity {cell['mode_fidelity']:.3f}; cut {cell['truncated']:.3f}"
            )
    return "\n".join(lines)
