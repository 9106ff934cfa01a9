"""``python -m pipeline``: each step of the story as a command, and ``run`` for all of them.

Heavy libraries are imported by the command that needs them, so ``--help`` answers at once. A ``UserError`` is printed as
one sentence; the exit code is 2 then, 1 where ``doctor`` finds that the main job could not run or a notebook fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.core.errors import UserError
from pipeline.core.files import FULL, require_folder
from pipeline.core.processes import first, is_first, label, require_one, together


def _positive(text: str) -> int:
    """An argparse type: how many of something."""
    with contextlib.suppress(ValueError):
        if 1 <= int(text) <= 10**9:
            return int(text)
    raise argparse.ArgumentTypeError(f"needs a whole number from 1 on, given: {text!r}")


def _rate(text: str) -> float:
    """An argparse type: a rate above 0."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"needs a number above 0, given: {text!r}")


def _word(text: str) -> str:
    """An argparse type: an option left empty (often an unset variable) is a mistake, not the default."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a value, or leave the option out")
    return text


def _folder(text: str) -> Path:
    return Path(_word(text))


def _values(text: str) -> list[str]:
    """An argparse type: values separated by commas."""
    values = [value.strip() for value in text.split(",") if value.strip()]
    if not values:
        raise argparse.ArgumentTypeError("needs at least one value, e.g. 0,0.25,0.5")
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Fine-tune a hybrid reasoning model so that it keeps both of its modes, and measure it.",
        epilog="Start with: python -m pipeline run --profile embedded --output-dir runs/first",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, group: Any = commands, output: bool = True, profile: bool = True) -> Any:
        sub = group.add_parser(name, help=help, description=help)
        if profile:
            sub.add_argument(
                "--profile", default="embedded", help="name of a profile, or a YAML file (default: embedded)"
            )
            sub.add_argument(
                "--set",
                action="append",
                default=[],
                metavar="KEY=VALUE",
                help="override a setting, e.g. training.max_steps=100",
            )
        if output:
            sub.add_argument(
                "--output-dir", type=_folder, required=True, metavar="DIR", help="where results are written"
            )
        sub.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        return sub

    doctor = command(
        "doctor", "what this machine can do, and what to do about what it cannot", output=False, profile=False
    )
    doctor.add_argument("--no-network", action="store_true", help="do not try to reach the hubs")

    data = commands.add_parser("data", help="build and look at mixes").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    build = command("build", "build the mix of a recipe", data)
    build.add_argument("--dry-run", action="store_true", help="say what the mix would be and write nothing")
    inspect = command("inspect", "print examples with their loss-bearing tokens coloured", data, output=False)
    inspect.add_argument("--rows", type=_positive, default=3, help="examples a source (default: 3)")
    inspect.add_argument(
        "--rejected", action="store_true", help="print rows that were left out instead, each with its reason"
    )
    inspect.add_argument("--reason", type=_word, metavar="WORD", help="only rows that were left out for this reason")
    stats = command("stats", "lengths by source and mode, and what each limit would cost", data, output=False)
    for sub in (build, inspect, stats):
        sub.add_argument("--recipe", type=_word, metavar="FILE", help="recipe file (default: the profile's)")
    for sub in (inspect, stats):
        sub.add_argument("--source", type=_word, metavar="NAME", help="only this source of the recipe")
    diff = command("diff", "what changed between two mixes", data, output=False, profile=False)
    for name in ("a", "b"):
        diff.add_argument(name, type=Path, metavar=name.upper(), help="folder of a mix, as data build or run writes it")

    for name, help in (
        ("train", "build the mix and fine-tune"),
        ("evaluate", "benchmark base and tuned model in both modes"),
        ("run", "all of it: mix, base evaluation, training, tuned evaluation, report"),
    ):
        sub = command(name, help)
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
        sub.add_argument("--tflops", type=_rate, metavar="X", help="with --dry-run: 10^12 operations/s of your device")
        if name == "evaluate":
            sub.add_argument(
                "--which", choices=["base", "tuned", "both"], default="both", help="which model (default: both)"
            )
    command("report", "write report.json, report.html and model_card.md of a finished run", profile=False)

    sweep = command("sweep", "one setting, several values and seeds: a curve, and which values to take")
    sweep.add_argument(
        "--axis", default="chat_share", help="any setting, e.g. training.learning_rate (default: chat_share)"
    )
    sweep.add_argument(
        "--values", type=_values, nargs="+", default=[], metavar="A,B,…", help="values, separated by commas"
    )
    sweep.add_argument(
        "--arms",
        type=_word,
        metavar="FILE",
        help="instead: named lists of settings, e.g. ablations/empty_think.yaml, or presets",
    )
    sweep.add_argument(
        "--cells", type=_folder, metavar="DIR", help="keep cells here by their settings; sweeps share what is done"
    )
    sweep.add_argument("--seeds", type=_positive, default=1, help="runs a value, with successive seeds (default: 1)")
    sweep.add_argument("--workers", type=_positive, metavar="N", help="runs at a time (default: what the cores allow)")

    methods = command("methods", "fine-tuning methods side by side: what each costs and what it reaches")
    methods.add_argument(
        "--methods", type=_values, metavar="A,B,…", help="names of arms, e.g. lora,full (default: all)"
    )
    methods.add_argument(
        "--arms", type=_word, metavar="FILE", help="other arms, one a method (default: ablations/methods.yaml)"
    )
    methods.add_argument(
        "--cells", type=_folder, metavar="DIR", help="keep cells here by their settings; studies share what is done"
    )
    methods.add_argument("--seeds", type=_positive, default=1, help="runs a method, with successive seeds (default: 1)")
    methods.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="runs at a time; more than 1 blurs times (default: 1)"
    )

    power = command("power", "how many items show a difference between two rates", output=False, profile=False)
    power.add_argument("--difference", type=float, default=0.03, metavar="D", help="default: 0.03")
    power.add_argument(
        "--rate", type=float, action="append", metavar="X", help="the first of the two rates (default: 0.5 to 0.95)"
    )
    power.add_argument(
        "--discordant",
        type=float,
        action="append",
        metavar="X",
        help="share of items that one setting gets right and the other wrong (default: 0.05, 0.1, 0.2)",
    )

    diagnosis = command("diagnose", "what went wrong in a run, and what to change", output=False, profile=False)
    diagnosis.add_argument("run", type=Path, metavar="RUN", help="run directory")

    for name, help in (
        ("preference", "train on pairs of a preferred and a rejected answer: DPO, ORPO or KTO"),
        ("grpo", "train on the model's own replies to questions with a known answer"),
    ):
        second = command(name, help)
        second.set_defaults(profile=None)
        second.add_argument(
            "--run",
            type=_folder,
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
                type=_word,
                metavar="FILE",
                help="named lists of settings, one training each, e.g. ablations/preference.yaml",
            )

    for name, help in (
        ("sampling", "a run's model at several temperatures: accuracy, fidelity, truncation, repetition"),
        ("switches", "does a run's model obey /think and /no_think, before and after tuning"),
    ):
        study = command(name, help, profile=False)
        study.add_argument("--run", type=_folder, required=True, metavar="RUN", help="directory of a finished run")
        study.add_argument("--limit", type=_positive, metavar="N", help="items a benchmark, or prompts a case")
        if name == "sampling":
            study.add_argument(
                "--temperatures", type=float, nargs="+", metavar="T", help="default: 0.1 0.3 0.5 0.7 0.9 1.1 1.3"
            )
            study.add_argument("--which", choices=["base", "tuned"], default="tuned", help="default: tuned")

    search = command("search", "hyper-parameters by an Optuna study, under a floor of mode fidelity")
    search.add_argument("--trials", type=_positive, default=12, help="finished trials in all (default: 12)")
    search.add_argument("--sampler", choices=["tpe", "grid"], default="tpe", help="default: tpe")
    search.add_argument("--workers", type=_positive, default=1, help="trials at a time (default: 1)")
    search.add_argument(
        "--no-pruning", action="store_true", help="run every trial to its end, whatever its validation loss"
    )
    search.add_argument(
        "--storage",
        type=_word,
        metavar="URL",
        help="where the study is kept, for workers elsewhere (default: SQLite in DIR)",
    )
    search.add_argument(
        "--study", type=_word, default="search", metavar="NAME", help="name of the study in its storage"
    )
    search.add_argument("--seed", type=int, default=0, help="of the sampler (default: 0)")
    search.add_argument(
        "--fidelity-floor",
        type=float,
        default=0.95,
        metavar="X",
        help="mode fidelity that a trial must reach (default: 0.95)",
    )

    costs = command("estimate", "memory and time of training before it starts, for every size and method", output=False)
    costs.add_argument("--tokens", type=_positive, metavar="N", help="of the whole training (default: a million)")
    costs.add_argument(
        "--tflops",
        type=_rate,
        metavar="X",
        help="10^12 operations/s that your device reaches in training, for the time",
    )

    course = command("course", "execute the notebooks in order with papermill")
    course.add_argument(
        "--only", type=_word, action="append", metavar="NN", help="only these notebooks, e.g. --only 01"
    )
    course.add_argument("--chat-share", type=float, metavar="X", help="passed to the notebooks")

    embedded = commands.add_parser("embedded", help="the small model that this project ships").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    base = command("build", "train the embedded model from scratch (about 15 minutes)", embedded, profile=False)
    base.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another size or training, e.g. --set hidden_size=320 --set heads=6 --set intermediate_size=1408",
    )
    command("quantise", "write a 4-bit copy of a profile's base model", embedded)
    check = command("check", "measure the shipped model against what it must reach", embedded)
    check.add_argument(
        "--items", type=_positive, default=500, help="held-out prompts a benchmark and mode (default: 500)"
    )
    return parser


def _profile(args: argparse.Namespace) -> Any:
    from pipeline.settings import load_profile

    overrides = list(args.set)
    if getattr(args, "chat_share", None) is not None:
        overrides.append(f"mix.chat_share={args.chat_share}")
    if getattr(args, "recipe", None) is not None:
        overrides.append(f"recipe={json.dumps(args.recipe)}")
    return load_profile(args.profile, overrides)


def _show(args: argparse.Namespace, data: Any, text: str) -> None:
    if not is_first():
        return
    try:
        print(json.dumps(data, ensure_ascii=False, indent=2) if args.json else text, file=args.output, flush=True)
    except BrokenPipeError:
        # Who reads has seen enough (`| head`). Python flushes what is left at exit, so it must have somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), args.output.fileno())
        raise SystemExit(141) from None  # 128 + SIGPIPE, as other programs end then


def _doctor(args: argparse.Namespace) -> int:
    from pipeline.core.doctor import examine, render

    findings = examine(check_network=not args.no_network)
    _show(args, findings, render(findings))
    return 0 if findings["ok"] else 1


def _data(args: argparse.Namespace) -> int:
    if args.action == "diff":
        from pipeline.data.lengths import difference, difference_text

        found = difference(args.a, args.b)
        _show(args, found, difference_text(found))
        return 0
    from pipeline.data.describe import build_profile_mix, describe_mix

    profile = _profile(args)
    if args.action in ("inspect", "stats"):
        return _look(args, profile)
    from pipeline.data.mix import save_mix

    stored = None if args.dry_run else _stored_manifest(args.output_dir)
    mix = build_profile_mix(profile)
    if stored is not None and stored != mix.manifest:
        raise UserError(f"{args.output_dir} holds another mix. Choose another --output-dir; nothing was changed.")
    if stored is None and not args.dry_run:
        save_mix(mix, args.output_dir)
    _show(args, mix.manifest, describe_mix(mix.manifest))
    return 0


def _stored_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of the whole and undamaged mix in a folder; None where a mix may be written."""
    from pipeline.data.mix import load_mix

    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / "manifest.json").exists():
        raise UserError(f"{folder} is not empty and holds no mix. Choose another --output-dir; nothing was changed.")
    try:
        return load_mix(folder).manifest
    except UserError as error:
        raise UserError(f"{error} Nothing was changed: remove {folder}, or choose another --output-dir.") from error


def _look(args: argparse.Namespace, profile: Any) -> int:
    """``data inspect`` and ``data stats``: from the pools, so that nothing need be drawn."""
    from pipeline.core.errors import nearest
    from pipeline.data.chat_format import ChatFormat, coloured
    from pipeline.data.lengths import lengths, lengths_text
    from pipeline.data.pools import build_pools
    from pipeline.data.screen import screen
    from pipeline.data.sources import cache_dir
    from pipeline.model.load import load_tokenizer
    from pipeline.settings import load_recipe

    recipe = load_recipe(profile.recipe, profile.mix)
    names = [source.name for source in recipe.sources]
    if args.source and args.source not in names:
        raise UserError(
            f"The recipe has no source {args.source!r}.{nearest(args.source, names)} Known: {', '.join(names)}."
        )
    tokenizer = load_tokenizer(profile.model)
    data, limit = profile.data, profile.length_limit
    masks = ChatFormat(tokenizer, data.empty_think, data.loss_on)
    pools = build_pools(recipe, masks, limit, data.turns, data.workers, cache_dir(), data.too_long)
    chosen = [pool for pool in pools if args.source in (None, pool.source.name)]
    if args.action == "stats":
        entries = lengths(chosen, limit)
        _show(args, entries, lengths_text(entries, limit))
        return 0
    if args.rejected or args.reason:
        shown = []
        for pool, screened in zip(pools, screen(recipe, pools, cache_dir()), strict=True):
            if pool in chosen:
                left_out = (r for r in chain(pool.iter_rejected(), screened.iter_rejected()))
                shown += list(islice((r for r in left_out if args.reason in (None, r["reason"])), args.rows))
        lines = [
            f"--- {r['source']}, {r['file']}:{r['line']}, {r['step']}, {r['reason']}: {r['detail']}\n"
            + json.dumps(r["row"], ensure_ascii=False)[:2000]
            for r in shown
        ]
        _show(args, shown, "\n".join(lines) or "no such rows")
        return 0
    rows = [pool.some_examples(args.rows) for pool in chosen]
    form = "ansi" if args.output.isatty() else "plain"
    lines = []
    for row in chain.from_iterable(rows):
        loss = sum(label != -100 for label in row["labels"])
        lines.append(f"--- {row['source']}, {row['mode']}, {len(row['input_ids'])} tokens, {loss} with loss")
        lines.append(coloured(tokenizer, row, form))
    _show(args, list(chain.from_iterable(rows)), "\n".join(lines))
    return 0


def _plan(args: argparse.Namespace, profile: Any) -> int:
    from pipeline.data.describe import describe_mix
    from pipeline.training.estimate import duration, text
    from pipeline.training.plan import plan

    result: dict[str, Any] = first("plan", lambda: plan(profile, args.tflops), dict)
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
    _show(args, result, "\n".join([*lines, text(result["estimate"])]))
    return 0


def _estimate(args: argparse.Namespace) -> int:
    from pipeline.training.estimate import estimate, text

    result = estimate(_profile(args), args.tokens, args.tflops)
    _show(args, result, text(result))
    return 0


def _stages(args: argparse.Namespace) -> int:
    from pipeline.run import Run

    profile = _profile(args)
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
        _show(
            args,
            section,
            f"{section['steps']} steps, last loss {last:.4f}, {speed}; adapter in {run.folder / 'adapter'}",
        )
    elif args.command == "evaluate":
        which = ["base", "tuned"] if args.which == "both" else [args.which]
        cells = {name: run.evaluate(name) for name in which}
        _show(args, cells, _cells_text(cells))
    else:
        _print_report(args, run.all(), run.folder)
    return 0


def _cells_text(cells: dict[str, Any]) -> str:
    lines = []
    for which, modes in cells.items():
        for mode, cell in modes.items():
            scores = ", ".join(f"{n} {b['score']:.3f} (n={b['n']})" for n, b in cell["benchmarks"].items())
            lines.append(
                f"{which}, {mode}: {scores}; mode fidelity {cell['mode_fidelity']:.3f}; cut {cell['truncated']:.3f}"
            )
    return "\n".join(lines)


def _print_report(args: argparse.Namespace, report: dict[str, Any], folder: Path) -> None:
    from pipeline.evaluation.report.words import table

    _show(args, report, f"{table(report)}\n\nreport: {folder / 'report.html'}")


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


def _sweep(args: argparse.Namespace) -> int:
    from pipeline.studies.curve import table
    from pipeline.studies.sweep import run_sweep

    values = list(chain.from_iterable(args.values))
    if bool(values) == bool(args.arms):
        raise UserError("sweep needs --values (with --axis), or --arms FILE; one of the two.")
    path = Path(args.profile)
    name = str(path.resolve()) if path.suffix and path.exists() else args.profile
    cells = args.cells.resolve() if args.cells else None
    folder = args.output_dir.resolve()
    result = run_sweep(name, args.axis, values, args.seeds, folder, list(args.set), args.workers, args.arms, cells)
    _show(args, result, f"{table(result)}\n\npicture: {args.output_dir / 'sweep.png'}")
    return 1 if result["failed"] else 0


def _methods(args: argparse.Namespace) -> int:
    from pipeline.studies.methods import ARMS, run_methods, table

    quiet()
    path = Path(args.profile)
    name = str(path.resolve()) if path.suffix and path.exists() else args.profile
    result = run_methods(
        name,
        args.output_dir.resolve(),
        args.methods or (),
        args.seeds,
        list(args.set),
        args.workers,
        args.arms or ARMS,
        args.cells.resolve() if args.cells else None,
    )
    _show(args, result, f"{table(result)}\n\npicture: {args.output_dir / 'methods.png'}")
    return 1 if result["sweep"]["failed"] else 0


def _power(args: argparse.Namespace) -> int:
    from pipeline.core.statistics import DISCORDANT, RATES, power_table, power_text

    rows = power_table(args.difference, args.rate or RATES, args.discordant or DISCORDANT)
    _show(args, rows, power_text(rows))
    return 0


def _diagnose(args: argparse.Namespace) -> int:
    from pipeline.evaluation.diagnose import diagnose, text

    result = diagnose(args.run)
    _show(args, result, text(result))
    return 1 if result["findings"] else 0


def _sampling(args: argparse.Namespace) -> int:
    from pipeline.studies.sampling import TEMPERATURES, run_sampling, text

    quiet()
    temperatures = args.temperatures or TEMPERATURES
    result = run_sampling(args.run, args.output_dir, temperatures, args.which, args.limit)
    _show(args, result, f"{text(result)}\n\npicture: {args.output_dir / 'sampling.png'}")
    return 0


def _switches(args: argparse.Namespace) -> int:
    from pipeline.studies.switches import run_switches, text

    quiet()
    result = run_switches(args.run, args.output_dir, args.limit or 150)
    _show(args, result, text(result))
    return 0


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
        _show(args, result, text)
        return 0
    if arms:
        result = preference.run_arms(arms, args.profile, overrides, args.output_dir, args.run, args.resume)
    elif args.command == "preference":
        result = preference.run_preference(profile, args.output_dir, args.run, args.resume)
    else:
        result = grpo.run_grpo(profile, args.output_dir, args.run, args.resume)
    text = preference.preference_table(result) if args.command == "preference" else grpo.grpo_table(result)
    _show(args, result, f"{text}\n\npicture: {args.output_dir / (args.command + '.png')}")
    return 0


def _search(args: argparse.Namespace) -> int:
    from pipeline.studies.search import run_search, table

    path = Path(args.profile)
    name = str(path.resolve()) if path.suffix and path.exists() else args.profile
    result = run_search(
        name,
        args.output_dir.resolve(),
        args.trials,
        list(args.set),
        storage=args.storage,
        name=args.study,
        sampler=args.sampler,
        seed=args.seed,
        workers=args.workers,
        floor=args.fidelity_floor,
        prune=not args.no_pruning,
    )
    _show(args, result, f"{table(result)}\n\npicture: {args.output_dir / 'search.png'}")
    return 0 if result["best"] else 1


def _course(args: argparse.Namespace) -> int:
    from pipeline.course.execute import execute_course

    profile = _profile(args)
    path = Path(args.profile)
    name = str(path.resolve()) if path.suffix and path.exists() else args.profile  # the notebooks run in another folder
    result = execute_course(
        name, args.output_dir, chat_share=profile.mix.chat_share, overrides=args.set, only=args.only
    )
    _show(args, result, "\n".join(f"{n['name']}: {n['status']} ({n['seconds']:.0f} s)" for n in result["notebooks"]))
    return 0 if result["ok"] else 1


def _embedded(args: argparse.Namespace) -> int:
    quiet()
    if args.action == "build":
        from pipeline.training.embedded import build_settings, train_base

        record = train_base(build_settings(args.set), args.output_dir)
        _show(
            args,
            record,
            f"{record['parameters']:,} parameters, {record['seconds']} s, final loss {record['final_loss']}",
        )
        return 0
    profile = _profile(args)
    if args.action == "quantise":
        from pipeline.model.save import prequantise

        prequantise(profile.model, args.output_dir)
        _show(args, {"output_dir": str(args.output_dir)}, f"4-bit model in {args.output_dir}")
        return 0
    from pipeline.run import Run
    from pipeline.training.embedded import acceptance

    profile.evaluation.limit = args.items
    run = Run.open(profile, args.output_dir, resume=True)
    cells = run.evaluate("base")
    failed = acceptance(cells)
    _show(
        args, {"cells": cells, "failed": failed}, "\n".join([_cells_text({"base": cells}), *(failed or ["accepted"])])
    )
    return 1 if failed else 0


def quiet() -> None:
    """Keep the libraries' own progress bars and notices out of the way of ours."""
    import logging
    import warnings

    import datasets

    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, run the command; returns the exit code."""
    args = _parser().parse_args(argv)
    commands = {
        "doctor": _doctor,
        "data": _data,
        "train": _stages,
        "evaluate": _stages,
        "run": _stages,
        "report": _report,
        "sweep": _sweep,
        "methods": _methods,
        "search": _search,
        "preference": _second_stage,
        "grpo": _second_stage,
        "diagnose": _diagnose,
        "sampling": _sampling,
        "switches": _switches,
        "power": _power,
        "estimate": _estimate,
        "course": _course,
        "embedded": _embedded,
    }
    args.output = sys.stdout
    if isinstance(args.output, io.TextIOWrapper):
        args.output.reconfigure(errors="backslashreplace")  # a terminal or pipe that cannot say "…" or "中"
    again = "run the same command again" + (" with --resume" if hasattr(args, "resume") else "")
    try:
        if hasattr(args, "output_dir"):
            require_folder(args.output_dir)
        if args.command not in ("train", "run"):
            require_one(args.command)
        # What libraries print must not get into the result.
        with contextlib.redirect_stdout(sys.stderr), together():
            return commands[args.command](args)
    except UserError as error:
        print(f"error{label()}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"error: The disk is full. Free some space and {again}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; {again} to go on", file=sys.stderr)
        return 130
