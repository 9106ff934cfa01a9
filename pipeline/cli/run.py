"""The main job and its parts, on one run directory."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from pipeline.cli.shared import cells_text, command, load, quiet, rate, show
from pipeline.core.errors import UserError
from pipeline.core.language import translate
from pipeline.core.processes import first, is_first


def register(group: Any) -> None:
    """Add the commands of this module."""
    for name, help in (
        ("train", "build the mix and fine-tune"),
        ("evaluate", "benchmark base and tuned model in both modes"),
        ("run", "all of it: mix, base evaluation, training, tuned evaluation, report"),
    ):
        sub = command(group, name, help)
        sub.set_defaults(do=_stages)
        sub.add_argument("--chat-share", type=float, metavar="X", help="short for --set mix.chat_share=X")
        sub.add_argument("--resume", action="store_true", help="go on with an unfinished run of the same settings")
        sub.add_argument(
            "--force",
            action="store_true",
            help="with --resume: go on although settings, data or versions differ, and say what differs",
        )
        sub.add_argument(
            "--dry-run", action="store_true", help="say what would be done: rows, tokens, steps, time, memory"
        )
        sub.add_argument("--tflops", type=rate, metavar="X", help="with --dry-run: 10^12 operations/s of your device")
        if name == "evaluate":
            sub.add_argument(
                "--which", choices=["base", "tuned", "both"], default="both", help="which model (default: both)"
            )
    report = command(
        group, "report", "write report.json, report.html and model_card.md of a finished run", profile=False
    )
    report.set_defaults(do=_report)

    diagnosis = command(group, "diagnose", "what went wrong in a run, and what to change", output=False, profile=False)
    diagnosis.add_argument("run", type=Path, metavar="RUN", help="run directory")
    diagnosis.set_defaults(do=_diagnose)


def _stages(args: argparse.Namespace) -> int:
    from pipeline.run import Run

    profile = load(args)
    if args.dry_run:
        return _plan(args, profile)
    # `train` and `evaluate` are parts of one run: a directory that the other began is not "unfinished" for them.
    parts = args.command in ("train", "evaluate")
    if args.force and not args.resume:
        raise UserError("--force goes on with an unfinished run in spite of differences; it needs --resume.")
    run = Run.open(profile, args.output_dir, resume=args.resume or parts, force=args.force)
    run.resume = args.resume
    quiet()
    with run.noting_failure(args.command), contextlib.closing(run.trackers):
        return _stage(args, run)


def _stage(args: argparse.Namespace, run: Any) -> int:
    if args.command == "train":
        section = run.train()
        last = section["loss"][-1]["loss"] if section["loss"] else float("nan")
        speed = (
            f"{section['tokens_per_second']:,.0f} tokens/s, {section['loss_tokens_per_second']:,.0f} of them with loss"
        )
        show(
            args,
            section,
            f"{section['steps']} steps, last loss {last:.4f}, {speed}; adapter in {run.folder / 'adapter'}",
        )
    elif args.command == "evaluate":
        which = ["base", "tuned"] if args.which == "both" else [args.which]
        cells = {name: run.evaluate(name) for name in which}
        if "tuned" in which:
            run.distance()
        show(args, cells, cells_text(cells))
    else:
        _print_report(args, run.all(), run.folder)
    return 0


def _plan(args: argparse.Namespace, profile: Any) -> int:
    from pipeline.core.console import duration
    from pipeline.data.describe import describe_mix
    from pipeline.training.estimate import estimate_text
    from pipeline.training.estimate_replies import replies_text
    from pipeline.training.plan import plan_run

    result: dict[str, Any] = first("plan", lambda: plan_run(profile, args.tflops), dict)
    if not is_first():
        return 0
    lines = [
        describe_mix(result["mix"]),
        f"{result['steps']:,} training steps on {result['model']}, about {result['training_tokens']:,} tokens",
        f"{result['replies_to_generate'] or 'all'} replies to generate for the evaluation",
    ]
    if result["estimated_seconds"]:
        lines.append(
            f"time of the whole run: about {duration(result['estimated_seconds'])} on {result['estimate_measured_on']}"
        )
    lines += [
        estimate_text(result["estimate"]),
        "",
        replies_text(result["evaluation"], bool(result["estimated_seconds"])),
    ]
    show(args, result, "\n".join(lines))
    return 0


def _print_report(args: argparse.Namespace, report: dict[str, Any], folder: Path) -> None:
    from pipeline.evaluation.report.reference import compare_with_reference, reference_of
    from pipeline.evaluation.report.words import table

    reference = reference_of(folder)
    compared = compare_with_reference(report, reference) if reference else []
    show(args, report, "\n".join([table(report, word=translate), "", *compared, f"report: {folder / 'report.html'}"]))


def _report(args: argparse.Namespace) -> int:
    from pipeline.run import Run
    from pipeline.settings import Profile, Recipe, parse, read_yaml

    profile_path, recipe_path = (args.output_dir / name for name in ("profile.yaml", "recipe.yaml"))
    if not profile_path.exists() or not recipe_path.exists():
        raise UserError(f"{args.output_dir} is no run directory (it has no profile.yaml and recipe.yaml).")
    profile = parse(Profile, read_yaml(profile_path), str(profile_path))
    recipe = parse(Recipe, read_yaml(recipe_path), str(recipe_path))
    run = Run.open(profile, args.output_dir, resume=True, recipe=recipe)
    _print_report(args, run.report(), run.folder)
    return 0


def _diagnose(args: argparse.Namespace) -> int:
    from pipeline.evaluation.diagnose import diagnose, text

    result = diagnose(args.run)
    show(args, result, text(result))
    return 1 if result["findings"] else 0
