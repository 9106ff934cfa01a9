"""Studies: sweeps, searches, methods, sampling, switches."""

from __future__ import annotations

import argparse
from itertools import chain
from typing import Any

from pipeline.cli.shared import command, folder, positive, profile_path, quiet, show, values, word
from pipeline.core.errors import UserError


def register(group: Any) -> None:
    """Add the commands of this module."""
    sweep = command(group, "sweep", "one setting, several values and seeds: a curve, and which values to take")
    sweep.add_argument(
        "--axis", default="chat_share", help="any setting, e.g. training.learning_rate (default: chat_share)"
    )
    sweep.add_argument(
        "--values", type=values, nargs="+", default=[], metavar="A,B,…", help="values, separated by commas"
    )
    sweep.add_argument(
        "--arms",
        type=word,
        metavar="FILE",
        help="instead: named lists of settings, e.g. ablations/empty_think.yaml, or presets",
    )
    sweep.add_argument("--only", type=values, metavar="A,B,…", help="of --arms, these alone (default: all)")
    sweep.add_argument(
        "--cells", type=folder, metavar="DIR", help="keep cells here by their settings; sweeps share what is done"
    )
    sweep.add_argument("--seeds", type=positive, default=1, help="runs a value, with successive seeds (default: 1)")
    sweep.add_argument(
        "--workers", type=positive, metavar="N", help="runs at a time (default: what the cores allow; 1 on a GPU)"
    )
    _engine_arguments(sweep)
    sweep.set_defaults(do=_sweep)

    methods = command(group, "methods", "fine-tuning methods side by side: what each costs and what it reaches")
    methods.add_argument("--methods", type=values, metavar="A,B,…", help="names of arms, e.g. lora,full (default: all)")
    methods.add_argument(
        "--arms", type=word, metavar="FILE", help="other arms, one a method (default: ablations/methods.yaml)"
    )
    methods.add_argument(
        "--cells", type=folder, metavar="DIR", help="keep cells here by their settings; studies share what is done"
    )
    methods.add_argument("--seeds", type=positive, default=1, help="runs a method, with successive seeds (default: 1)")
    methods.add_argument(
        "--workers", type=positive, metavar="N", help="runs at a time; more than 1 a machine blurs times (default: 1)"
    )
    _engine_arguments(methods)
    methods.set_defaults(do=_methods)

    for name, help in (
        ("budget", "a run's model with a limit to its reasoning: accuracy, fidelity and loops by budget"),
        ("sampling", "a run's model at several temperatures: accuracy, fidelity, truncation, repetition"),
        ("switches", "does a run's model obey /think and /no_think, before and after tuning"),
    ):
        study = command(group, name, help, profile=False)
        study.set_defaults(do={"sampling": _sampling, "switches": _switches, "budget": _budget}[name])
        study.add_argument("--run", type=folder, required=True, metavar="RUN", help="directory of a finished run")
        study.add_argument("--limit", type=positive, metavar="N", help="items a benchmark, or prompts a case")
        if name == "budget":
            study.add_argument(
                "--values", type=values, metavar="N,N,…", help="tokens of reasoning (default: 0,8,16,32,64)"
            )
        if name == "sampling":
            study.add_argument(
                "--temperatures", type=float, nargs="+", metavar="T", help="default: 0.1 0.3 0.5 0.7 0.9 1.1 1.3"
            )
        if name != "switches":
            study.add_argument("--which", choices=["base", "tuned"], default="tuned", help="default: tuned")

    carry = command(
        group, "carry-over", "do the course's claims hold on this model: ratio, masks, rehearsal, a verdict each"
    )
    carry.add_argument("--seeds", type=positive, default=2, help="runs a value, two at least (default: 2)")
    carry.add_argument("--workers", type=positive, metavar="N", help="runs at a time (default: what the cores allow)")
    _engine_arguments(carry)
    carry.set_defaults(do=_carry_over)

    search = command(group, "search", "hyper-parameters by an Optuna study, under a floor of mode fidelity")
    search.add_argument("--trials", type=positive, default=12, help="finished trials in all (default: 12)")
    search.add_argument("--sampler", choices=["tpe", "grid"], default="tpe", help="default: tpe")
    search.add_argument(
        "--workers", type=positive, default=1, help="trials at a time, drawn together; also on Ray (default: 1)"
    )
    search.add_argument(
        "--no-pruning", action="store_true", help="run every trial to its end, whatever its validation loss"
    )
    search.add_argument(
        "--storage",
        type=word,
        metavar="URL",
        help="where the study is kept, not its runs; for commands elsewhere (default: SQLite in DIR)",
    )
    search.add_argument("--study", type=word, default="search", metavar="NAME", help="name of the study in its storage")
    search.add_argument("--seed", type=int, default=0, help="of the sampler (default: 0)")
    search.add_argument(
        "--fidelity-floor",
        type=float,
        default=0.95,
        metavar="X",
        help="mode fidelity that a trial must reach (default: 0.95)",
    )
    _engine_arguments(search)
    search.set_defaults(do=_search)


def _engine_arguments(sub: Any) -> None:
    """Where the cells of a study run."""
    sub.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="local: processes on this machine; ray: tasks of a Ray cluster (default: local)",
    )
    sub.add_argument(
        "--address",
        type=word,
        default="auto",
        metavar="HOST:PORT",
        help="of Ray's head (default: auto, this machine's)",
    )
    sub.add_argument(
        "--store",
        type=word,
        metavar="URL",
        help="where cells leave their results: a folder that all nodes see, s3://… (default: DIR)",
    )
    sub.add_argument("--cell-cpus", type=float, metavar="N", help="cores of a cell on Ray (default: its threads)")
    sub.add_argument(
        "--cell-gpus", type=float, metavar="X", help="GPUs of a cell on Ray (default: 1 where there are any)"
    )
    sub.add_argument(
        "--resume", dest="goes_on", action="store_true", help="go on with what is there; a study always does"
    )


def _engine(args: argparse.Namespace) -> Any:
    from pipeline.studies.engine import StudyEngine

    return StudyEngine(args.engine, args.address, args.store, args.cell_cpus, args.cell_gpus)


def _place(args: argparse.Namespace) -> Any:
    from pipeline.studies.engine import CellPlace

    return CellPlace(args.cells.resolve() if args.cells else None, _engine(args))


def _carry_over(args: argparse.Namespace) -> int:
    from pipeline.settings import load_profile
    from pipeline.studies.carry_over import carry_over_text, run_carry_over

    name, folder = profile_path(args), args.output_dir.resolve()
    model = load_profile(name, list(args.set)).model.name
    result = run_carry_over(name, model, folder, list(args.set), args.seeds, args.workers, _engine(args))
    show(args, result, f"{carry_over_text(result)}\n\npage: {args.output_dir / 'carry_over.md'}")
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from pipeline.studies.curve import sweep_table
    from pipeline.studies.sweep import run_sweep, sweep_arms

    values = list(chain.from_iterable(args.values))
    if bool(values) == bool(args.arms):
        raise UserError("sweep needs --values (with --axis), or --arms FILE; one of the two.")
    if args.only and not args.arms:
        raise UserError("--only names arms of --arms FILE; with --axis, leave values out of --values.")
    name, folder, place = profile_path(args), args.output_dir.resolve(), _place(args)
    sets, workers = list(args.set), args.workers
    if args.arms:
        result = sweep_arms(name, args.arms, args.seeds, folder, sets, workers, place, args.only or ())
    else:
        result = run_sweep(name, args.axis, values, args.seeds, folder, sets, workers, place)
    show(args, result, f"{sweep_table(result)}\n\npicture: {args.output_dir / 'sweep.png'}")
    return 1 if result["failed"] else 0


def _methods(args: argparse.Namespace) -> int:
    from pipeline.studies.methods import ARMS, methods_table, run_methods

    quiet()
    name = profile_path(args)
    result = run_methods(
        name,
        args.output_dir.resolve(),
        args.methods or (),
        args.seeds,
        list(args.set),
        args.workers or (1 if args.engine == "local" else None),
        args.arms or ARMS,
        _place(args),
    )
    show(args, result, f"{methods_table(result)}\n\npicture: {args.output_dir / 'methods.png'}")
    return 1 if result["sweep"]["failed"] else 0


def _sampling(args: argparse.Namespace) -> int:
    from pipeline.studies.sampling import TEMPERATURES, run_sampling, sampling_text

    quiet()
    temperatures = args.temperatures or TEMPERATURES
    result = run_sampling(args.run, args.output_dir, temperatures, args.which, args.limit)
    show(args, result, f"{sampling_text(result)}\n\npicture: {args.output_dir / 'sampling.png'}")
    return 0


def _budget(args: argparse.Namespace) -> int:
    from pipeline.studies.budget import BUDGETS, budget_text, run_budget

    quiet()
    try:
        budgets = [int(value) for value in args.values or BUDGETS]
    except ValueError:
        raise UserError(
            f"--values needs whole numbers from 0 on, e.g. 0,8,16; given: {','.join(args.values)}."
        ) from None
    result = run_budget(args.run, args.output_dir, budgets, args.which, args.limit)
    show(args, result, f"{budget_text(result)}\n\npicture: {args.output_dir / 'budget.png'}")
    return 0


def _switches(args: argparse.Namespace) -> int:
    from pipeline.studies.switches import run_switches, switches_text

    quiet()
    result = run_switches(args.run, args.output_dir, args.limit or 150)
    show(args, result, switches_text(result))
    return 0


def _search(args: argparse.Namespace) -> int:
    from pipeline.studies.search import run_search
    from pipeline.studies.search_result import search_table
    from pipeline.studies.search_study import StudySettings

    name = profile_path(args)
    result = run_search(
        name,
        args.output_dir.resolve(),
        args.trials,
        list(args.set),
        StudySettings(args.storage, args.study, args.sampler, args.seed, not args.no_pruning),
        args.workers,
        args.fidelity_floor,
        _engine(args),
    )
    show(args, result, f"{search_table(result)}\n\npicture: {args.output_dir / 'search.png'}")
    return 0 if result["best"] else 1
