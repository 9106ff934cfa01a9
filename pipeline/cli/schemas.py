"""JSON schemas of what one writes (profile, recipe) and of what the commands write, from the types that check them."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pipeline.cli.shared import command, folder, show

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def register(group: Any) -> None:
    """Add the command of this module."""
    sub = command(group, "schema", "the JSON schema of a profile, a recipe or a result", output=False, profile=False)
    sub.add_argument("name", nargs="?", help="which; without it, all of them are listed")
    sub.add_argument("--all", type=folder, metavar="DIR", help="write every schema to DIR/NAME.schema.json")
    sub.set_defaults(do=_schema)


def forms() -> dict[str, Any]:
    """Name of a document → its type."""
    from pipeline.evaluation.report.schema import Report
    from pipeline.export.records import Parity
    from pipeline.handover.records import Audit
    from pipeline.second.records import GRPOResult, PreferenceArms, PreferenceResult
    from pipeline.settings import Profile, Recipe
    from pipeline.studies.carry_over import CarryOver
    from pipeline.studies.results import KINDS, Sweep
    from pipeline.training.records import StageTrainingRecord, TrainingRecord

    return {
        "profile": Profile,
        "recipe": Recipe,
        "report": Report,
        "training": TrainingRecord,
        "stage_training": StageTrainingRecord,
        "sweep": Sweep,
        "carry_over": CarryOver,
        **KINDS,
        "preference": PreferenceResult,
        "preference_arms": PreferenceArms,
        "grpo": GRPOResult,
        "parity": Parity,
        "audit": Audit,
    }


def schema_of(name: str) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a document.

    Args:
        name: a key of ``forms``.

    Raises:
        UserError: there is none of that name; says the nearest.
    """
    from pydantic import TypeAdapter

    from pipeline.core.errors import UserError, nearest

    known = forms()
    if name not in known:
        raise UserError(f"There is no schema {name!r}.{nearest(name, known)} There are: {', '.join(known)}.")
    given = name in ("profile", "recipe")  # what has a default may be left out there
    return {"$schema": DRAFT, **TypeAdapter(known[name]).json_schema(mode="validation" if given else "serialization")}


def _schema(args: argparse.Namespace) -> int:
    from pipeline.core.files import write_text

    if args.all is not None:
        for name in forms():
            write_text(
                args.all / f"{name}.schema.json", json.dumps(schema_of(name), ensure_ascii=False, indent=1) + "\n"
            )
        show(args, sorted(forms()), f"{len(forms())} schemas in {args.all}")
    elif args.name is None:
        show(args, sorted(forms()), "\n".join(forms()))
    else:
        schema = schema_of(args.name)
        show(args, schema, json.dumps(schema, ensure_ascii=False, indent=2))
    return 0
