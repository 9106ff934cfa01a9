"""``python -m pipeline``: each step of the story as a command, and ``run`` for all of them.

A module of this wing holds a group of commands, with their arguments. Heavy libraries are imported by the command that needs
them, so ``--help`` answers at once. A ``UserError`` is printed as one sentence; the exit code is 2 then, 1 where ``doctor`` finds
that the main job could not run or a notebook fails.
"""

from __future__ import annotations

import argparse
import io
import sys

from pipeline import __version__
from pipeline.cli import course, data, hybrid, keep, machine, models, run, schemas, second, studies, use
from pipeline.cli.help import Parser, asked_language
from pipeline.core.console import foreign
from pipeline.core.errors import UserError
from pipeline.core.files import FULL, require_folder
from pipeline.core.language import LANGUAGES, choose, translate
from pipeline.core.processes import label, require_one, together


def parser() -> argparse.ArgumentParser:
    """All commands, in the order of the story."""
    found = Parser(
        prog="python -m pipeline",
        description="Fine-tune a hybrid reasoning model so that it keeps both of its modes, and measure it.",
        epilog="Start with: python -m pipeline run --profile embedded --output-dir runs/first",
    )
    found.add_argument("--version", action="version", version=__version__)
    found.add_argument(
        "--lang", dest="language", choices=LANGUAGES, help="language of messages and hints (default: that of LANG)"
    )
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (machine, models, data, hybrid, run, keep, studies, second, use, course, schemas):
        module.register(commands)
    return found


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, run the command; returns the exit code."""
    if language := asked_language(sys.argv[1:] if argv is None else argv):
        choose(language)  # before the arguments are read: their --help speaks it
    args = parser().parse_args(argv)
    args.output = sys.stdout
    if isinstance(args.output, io.TextIOWrapper):
        args.output.reconfigure(errors="backslashreplace")  # a terminal or pipe that cannot say "…" or "中"
    again = "run the same command again with --resume" if hasattr(args, "resume") else "run the same command again"
    # Its default is a folder of the run that the command names.
    if getattr(args, "output_dir", ...) is None and hasattr(args, "run"):
        args.output_dir = args.run / args.command
    try:
        if getattr(args, "output_dir", None) is not None:
            require_folder(args.output_dir)
        if args.command not in ("train", "run"):
            require_one(args.command)
        # What libraries print must not get into the result.
        with foreign(getattr(args, "output_dir", None)), together():
            return int(args.do(args))
    except UserError as error:
        print(translate(f"error{label()}: {error}"), file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(translate(f"error: The disk is full. Free some space and {again}."), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(translate(f"stopped; {again} to go on"), file=sys.stderr)
        return 130
