"""Make a hybrid of a pretrained model."""

from __future__ import annotations

import argparse
from typing import Any

from pipeline.cli.shared import command, profile_path, quiet, show


def register(group: Any) -> None:
    """Add the commands of this module."""
    sub = command(group, "hybridise", "teach a pretrained model both modes; the result is a model folder")
    sub.add_argument("--resume", action="store_true", help="go on with an unfinished one of the same settings")
    sub.set_defaults(do=_hybridise)


def _hybridise(args: argparse.Namespace) -> int:
    from pipeline.hybrid.accept import hybrid_text
    from pipeline.hybrid.hybridise import hybridise

    quiet()
    record = hybridise(profile_path(args), args.set, args.output_dir, args.resume)
    advice = (
        f"model folder: {args.output_dir}"
        if record["accepted"]
        else f"the candidate and all replies are in {args.output_dir / 'hybridise'}; more steps (--set training.max_steps=…) "
        "in another --output-dir may do"
    )
    show(args, record, f"{hybrid_text(record)}\n{advice}")
    return 0 if record["accepted"] else 1
