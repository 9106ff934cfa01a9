"""Second stages: pairs and rewards."""

from __future__ import annotations

import argparse
from typing import Any

from pipeline.cli.shared import command, folder, quiet, show, word
from pipeline.core.errors import UserError


def register(group: Any) -> None:
    """Add the commands of this module."""
    for name, help in (
        ("preference", "train on pairs of a preferred and a rejected answer: DPO, ORPO or KTO"),
        ("grpo", "train on the model's own replies to questions with a known answer"),
    ):
        second = command(group, name, help)
        second.set_defaults(profile=None, do=_second_stage)
        second.add_argument(
            "--run",
            type=folder,
            metavar="RUN",
            help="start from this run's adapter, with its profile (default: the base)",
        )
        second.add_argument(
            "--resume", action="store_true", help="go on with an unfinished training of the same settings"
        )
        second.add_argument("--dry-run", action="store_true", help="say what would be done: rows, steps, replies, time")
        if name == "preference":
            second.add_argument("--method", choices=["dpo", "orpo", "kto"], help="short for --set preference.method=…")
            second.add_argument(
                "--arms",
                type=word,
                metavar="FILE",
                help="named lists of settings, one training each, e.g. ablations/preference.yaml",
            )


def _second_stage(args: argparse.Namespace) -> int:
    """``preference`` and ``grpo``."""
    from pipeline.second import grpo, preference
    from pipeline.second.stage import stage_profile

    overrides = list(args.set)
    if getattr(args, "method", None):
        overrides.append(f"preference.method={args.method}")
    arms = getattr(args, "arms", None)
    if arms and (args.dry_run or args.method):
        raise UserError(
            "--arms says itself which methods are trained; leave --method out, and try an arm alone by --set."
        )
    profile = stage_profile(args.profile, args.run, overrides)
    quiet()
    if args.dry_run:
        result: Any = preference.preference_plan(profile) if args.command == "preference" else grpo.grpo_plan(profile)
        text = preference.preference_plan_text(result) if args.command == "preference" else grpo.grpo_plan_text(result)
        show(args, result, text)
        return 0
    if arms:
        result = preference.run_arms(arms, args.profile, overrides, args.output_dir, args.run, args.resume)
    elif args.command == "preference":
        result = preference.run_preference(profile, args.output_dir, args.run, args.resume)
    else:
        result = grpo.run_grpo(profile, args.output_dir, args.run, args.resume)
    text = preference.preference_table(result) if args.command == "preference" else grpo.grpo_table(result)
    show(args, result, f"{text}\n\npicture: {args.output_dir / (args.command + '.png')}")
    return 0
