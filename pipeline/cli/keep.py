"""What keeps the rest of a model: its own answers as rows, and less of the adapter."""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.cli.shared import command, folder, load, positive, quiet, show, values, word
from pipeline.core.errors import UserError
from pipeline.core.modes import MODES


def register(group: Any) -> None:
    """Add the commands of this module."""
    rehearse = command(group, "rehearse", "let the untuned model answer questions, and keep the answers as rows")
    rehearse.add_argument("--recipe", type=word, metavar="FILE", help="recipe file (default: the profile's)")
    rehearse.add_argument("--source", type=word, metavar="NAME", help="only this source of the recipe")
    rehearse.add_argument(
        "--questions", type=word, metavar="PATH", help="instead of a recipe: a file or folder of questions"
    )
    rehearse.add_argument("--mode", choices=MODES, help="with --questions: the mode to ask in")
    rehearse.add_argument(
        "--samples", type=positive, metavar="N", help="with --questions: replies a question (default: 1)"
    )
    rehearse.add_argument(
        "--rows", type=positive, metavar="N", help="with --questions: only the first N questions (default: all)"
    )
    rehearse.add_argument(
        "--conditions",
        nargs="?",
        const="",
        type=str,
        metavar="FILE",
        help="with --questions: each is asked again with one to three conditions, of this file or of those that come along",
    )
    rehearse.add_argument(
        "--plan", action="store_true", help="also ask for plans: chat with reasoning from a model without thinking mode"
    )
    rehearse.set_defaults(do=_rehearse)

    scale = command(
        group, "scale", "a run's model with less of its adapter, from the base to the tuned model", profile=False
    )
    scale.add_argument("--run", type=folder, required=True, metavar="RUN", help="directory of a finished run")
    scale.add_argument(
        "--values", type=values, nargs="+", default=[], metavar="A,B,…", help="from 0 to 1 (default: 0.25,0.5,0.75,1)"
    )
    scale.add_argument("--limit", type=positive, metavar="N", help="items a benchmark")
    scale.set_defaults(do=_scale)


def _recipe_of_questions(args: argparse.Namespace) -> Any:
    """A recipe of one source: the questions that the command names."""
    from pipeline.data.rehearsal.conditions import SHIPPED
    from pipeline.settings import Recipe, parse

    if args.mode is None:
        raise UserError(f"--questions needs --mode: {' or '.join(MODES)}.")
    if args.recipe or args.source:
        raise UserError("--questions stands instead of a recipe; leave --recipe and --source out.")
    name = Path(args.questions).stem
    conditions = None if args.conditions is None else args.conditions or str(SHIPPED)
    source = {"name": name, "source": "base", "mode": args.mode, "samples": args.samples, "share": 1.0}
    source["questions"] = {"source": "local", "path": args.questions, "rows": args.rows, "conditions": conditions}
    return parse(Recipe, {"name": name, "sources": [source]}, "--questions")


def _plans(args: argparse.Namespace, rehearsal: Any, source: Any) -> dict[str, Any]:
    """Ask for a plan of each answer; write ``NAME.plan`` and, with answer and plan, ``NAME.thinking``; the plans' account."""
    from pipeline.data.rehearsal.plan import plan_questions, rows_of, with_plans, write
    from pipeline.data.rehearsal.rehearse import copy_to

    answers = rows_of(args.output_dir / source.name / "rows.jsonl")
    name = f"{source.name}.plan"
    asked = args.output_dir / f"{name}.questions.jsonl"
    write(asked, plan_questions(answers))
    own = source.model_copy(
        update={
            "name": name,
            "questions": source.questions.model_copy(
                update={"path": str(asked.resolve()), "rows": None, "conditions": None}
            ),
        }
    )
    rows, record = rehearsal.source(own)
    copy_to(args.output_dir / name, rows)
    made = with_plans(answers, rows_of(args.output_dir / name / "rows.jsonl"))
    write(args.output_dir / f"{source.name}.thinking" / "rows.jsonl", made)
    return {**record, "source": name, "with_plan": len(made)}


def _rehearse(args: argparse.Namespace) -> int:
    from pipeline.core.place import cache_dir
    from pipeline.data.describe import loader
    from pipeline.data.pools import require_sources
    from pipeline.data.rehearsal.rehearse import Rehearsal, chosen, copy_to, describe_rehearsal
    from pipeline.evaluation.engine import other_answers
    from pipeline.model.load import load_tokenizer
    from pipeline.settings import load_recipe

    if not args.questions and (args.mode or args.samples or args.rows or args.conditions is not None):
        raise UserError(
            "--mode, --samples, --rows and --conditions belong to --questions; a recipe says them for each of its sources."
        )
    if args.plan and (args.mode != "non_thinking" or (args.samples or 1) > 1):
        raise UserError(
            "--plan takes --questions with --mode non_thinking and one sample: the plan is the thought of it."
        )
    profile = load(args)
    recipe = _recipe_of_questions(args) if args.questions else load_recipe(profile.recipe, profile.mix)
    sources = chosen(recipe, args.source)
    require_sources(recipe)
    quiet()
    records = {}
    with (
        other_answers(profile, args.output_dir / "vllm.log") as other,
        Rehearsal(profile, recipe, load_tokenizer(profile.model), loader(profile), cache_dir(), other) as rehearsal,
    ):
        for source in sources:
            rows, records[source.name] = rehearsal.source(source)
            copy_to(args.output_dir / source.name, rows)
            if args.plan:
                records[f"{source.name}.plan"] = _plans(args, rehearsal, source)
    show(args, records, f"{describe_rehearsal(records)}\n\nrows: {args.output_dir}/*/rows.jsonl")
    return 0


def _scale(args: argparse.Namespace) -> int:
    from pipeline.studies.scale import VALUES, run_scale, scale_text

    words = list(chain.from_iterable(args.values))
    try:
        chosen = [float(text) for text in words] or list(VALUES)
    except ValueError as error:
        raise UserError(f"--values are numbers from 0 to 1, given: {', '.join(words)}.") from error
    quiet()
    result = run_scale(args.run, args.output_dir, chosen, args.limit)
    show(args, result, f"{scale_text(result)}\n\npicture: {args.output_dir / 'scale.png'}")
    return 0
