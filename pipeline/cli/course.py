"""The notebooks, and the model that the project ships."""

from __future__ import annotations

import argparse
from typing import Any

from pipeline.cli.shared import cells_text, command, folder, load, positive, profile_path, quiet, show, word
from pipeline.core.language import LANGUAGES, language


def register(group: Any) -> None:
    """Add the commands of this module."""
    course = command(group, "course", "execute the notebooks in order with papermill")
    course.add_argument("--only", type=word, action="append", metavar="NN", help="only these notebooks, e.g. --only 01")
    course.add_argument("--workers", type=positive, default=2, metavar="N", help="notebooks at a time (default: 2)")
    course.add_argument("--chat-share", type=float, metavar="X", help="passed to the notebooks")
    course.add_argument("--lang", choices=LANGUAGES, help="language of the notebooks (default: that of the messages)")
    course.add_argument(
        "--slides",
        type=folder,
        metavar="DIR",
        help="execute nothing: write slides of the notebooks that were executed, 00, 01, 03, 04 and 05 or those of --only",
    )
    course.set_defaults(do=_course)

    bundle = command(
        group, "bundle", "pack the course into one file for machines without network", output=False, profile=False
    )
    bundle.add_argument(
        "--output", dest="file", type=folder, required=True, metavar="FILE", help="the file to write, e.g. course.tar"
    )
    bundle.add_argument(
        "--wheels", type=folder, metavar="DIR", help="take the packages from this folder; nothing is downloaded"
    )
    bundle.add_argument("--prepared", type=folder, metavar="DIR", help="the --output-dir of a course, to pack along")
    bundle.add_argument(
        "--requirements",
        type=folder,
        metavar="FILE",
        help="another complete list of packages than requirements-cpu.txt",
    )
    bundle.set_defaults(do=_bundle)

    embedded = group.add_parser("embedded", help="the small model that this project ships").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    base = command(embedded, "build", "train the embedded model from scratch (about 15 minutes)", profile=False)
    base.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another size or training, e.g. --set hidden_size=320 --set heads=6 --set intermediate_size=1408",
    )
    quantise = command(embedded, "quantise", "write a 4-bit copy of a profile's base model")
    check = command(embedded, "check", "measure the shipped model against what it must reach")
    check.add_argument(
        "--items", type=positive, default=500, help="held-out prompts a benchmark and mode (default: 500)"
    )
    for sub in (base, quantise, check):
        sub.set_defaults(do=_embedded)


def _course(args: argparse.Namespace) -> int:
    from pipeline.course.execute import execute_course

    spoken = args.lang or language()
    if args.slides is not None:
        from pipeline.course.slides import make_slides

        made = make_slides(args.output_dir, args.slides, args.only, spoken)
        show(args, made, f"{made['slides']} slides: {', '.join(made['files'])}")
        return 0
    profile = load(args)
    name = profile_path(args)
    result = execute_course(
        name,
        args.output_dir,
        chat_share=profile.mix.chat_share,
        overrides=args.set,
        only=args.only,
        workers=args.workers,
        language=spoken,
    )
    show(args, result, "\n".join(f"{n['name']}: {n['status']} ({n['seconds']:.0f} s)" for n in result["notebooks"]))
    return 0 if result["ok"] else 1


def _bundle(args: argparse.Namespace) -> int:
    from pipeline.core.place import ROOT
    from pipeline.course.bundle import pack

    made = pack(args.file, args.requirements or ROOT / "requirements-cpu.txt", args.wheels, args.prepared)
    show(
        args,
        made,
        f"{args.file}: {made['bytes'] / 2**20:,.0f} MiB, {made['wheels']} packages, {made['files']} files, for Python "
        f"{made['python']} on {made['system']} ({made['machine']}). There: tar xf, then python3 install.py",
    )
    return 0


def _embedded(args: argparse.Namespace) -> int:
    quiet()
    if args.action == "build":
        from pipeline.training.embedded import build_settings, train_base

        record = train_base(build_settings(args.set), args.output_dir)
        show(
            args,
            record,
            f"{record['parameters']:,} parameters, {record['seconds']} s, final loss {record['final_loss']}",
        )
        return 0
    profile = load(args)
    if args.action == "quantise":
        from pipeline.model.save import prequantise

        prequantise(profile.model, args.output_dir)
        show(args, {"output_dir": str(args.output_dir)}, f"4-bit model in {args.output_dir}")
        return 0
    from pipeline.run import Run
    from pipeline.training.embedded import acceptance

    profile.evaluation.limit = args.items
    run = Run.open(profile, args.output_dir, resume=True)
    cells = run.evaluate("base")
    failed = acceptance(cells)
    show(args, {"cells": cells, "failed": failed}, "\n".join([cells_text({"base": cells}), *(failed or ["accepted"])]))
    return 1 if failed else 0
