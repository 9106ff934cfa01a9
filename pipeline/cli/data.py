"""Build mixes and look at them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.shared import command, folder, load, positive, quiet, show, values, word
from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from pipeline.data.rehearsal.ask import Answers
    from pipeline.settings import Profile


def register(group: Any) -> None:
    """Add the commands of this module."""
    data = group.add_parser("data", help="build and look at mixes").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    build = command(data, "build", "build the mix of a recipe")
    build.add_argument("--dry-run", action="store_true", help="say what the mix would be and write nothing")
    inspect = command(data, "inspect", "print examples with their loss-bearing tokens coloured", output=False)
    inspect.add_argument("--rows", type=positive, default=3, help="examples a source (default: 3)")
    inspect.add_argument(
        "--rejected", action="store_true", help="print rows that were left out instead, each with its reason"
    )
    inspect.add_argument("--reason", type=word, metavar="WORD", help="only rows that were left out for this reason")
    stats = command(data, "stats", "lengths by source and mode, and what each limit would cost", output=False)
    for sub in (build, inspect, stats):
        sub.add_argument("--recipe", type=word, metavar="FILE", help="recipe file (default: the profile's)")
    for sub in (inspect, stats):
        sub.add_argument("--source", type=word, metavar="NAME", help="only this source of the recipe")
    audit = command(data, "audit", "what another framework trains on, token by token beside this one", output=False)
    audit.add_argument("--recipe", type=word, metavar="FILE", help="recipe file (default: the profile's)")
    audit.add_argument("--cases", action="store_true", help="built-in conversations in the place of the recipe's rows")
    audit.add_argument(
        "--framework",
        type=values,
        action="append",
        default=[],
        metavar="NAME[:SETTING]",
        help="unsloth, trl, llama-factory, ms-swift, axolotl, all; several with commas (default: all settings of each)",
    )
    audit.add_argument(
        "--tokens",
        type=Path,
        metavar="FILE",
        help="what any other program made of the rows, to compare: JSON lines of input_ids and labels, in the order of the rows",
    )
    audit.add_argument("--rows", type=positive, default=4, help="rows a source (default: 4)")
    _environment(audit)
    audit.add_argument(
        "--output-dir",
        type=folder,
        metavar="DIR",
        help="write audit.json and audit.html there, and the rows for another program (rows.jsonl, rows_answers.jsonl)",
    )
    audit.set_defaults(do=_audit)
    handed = command(data, "handover", "write the mix and the training for another framework")
    handed.add_argument("--recipe", type=word, metavar="FILE", help="recipe file (default: the profile's)")
    handed.add_argument(
        "--to",
        type=values,
        action="append",
        required=True,
        metavar="TARGET",
        help="trl, llama-factory, ms-swift, axolotl; several with commas, each in a folder of its own",
    )
    handed.add_argument("--gpus", type=positive, default=1, metavar="N", help="GPUs to train on (default: 1)")
    handed.add_argument("--check", action="store_true", help="let the framework itself load it, and compare every row")
    _environment(handed)
    handed.set_defaults(do=_handover)
    diff = command(data, "diff", "what changed between two mixes", output=False, profile=False)
    for name in ("a", "b"):
        diff.add_argument(name, type=Path, metavar=name.upper(), help="folder of a mix, as data build or run writes it")
    for sub in (build, inspect, stats, diff):
        sub.set_defaults(do=_data)


def _environment(sub: Any) -> None:
    sub.add_argument(
        "--environment",
        type=word,
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help="the interpreter of an environment of your own for a framework (default: one is made, with pinned versions)",
    )


def _pythons(args: argparse.Namespace) -> dict[str, Path]:
    """Framework → interpreter."""
    found = {}
    for text in args.environment:
        name, _, path = text.partition("=")
        if not path:
            raise UserError(f"--environment takes NAME=PYTHON, given: {text!r}.")
        found[name] = Path(path)
    return found


def _data(args: argparse.Namespace) -> int:
    if args.action == "diff":
        from pipeline.data.lengths import difference, difference_text

        found = difference(args.a, args.b)
        show(args, found, difference_text(found))
        return 0
    from pipeline.data.describe import build_profile_mix, counted_mix, describe_mix

    profile = load(args)
    if args.action in ("inspect", "stats"):
        return _look(args, profile)
    from pipeline.data.stored_mix import save_mix

    stored = None if args.dry_run else _stored_manifest(args.output_dir)
    if args.dry_run:
        mix, _ = counted_mix(profile)
    else:
        with _answers(profile) as other:
            mix = build_profile_mix(profile, other=other)
    if stored is not None and stored != mix.manifest:
        raise UserError(f"{args.output_dir} holds another mix. Choose another --output-dir; nothing was changed.")
    if stored is None and not args.dry_run:
        save_mix(mix, args.output_dir)
    show(args, mix.manifest, describe_mix(mix.manifest))
    return 0


@contextmanager
def _answers(profile: Profile) -> Iterator[Answers | None]:
    """What answers a rehearsal: the profile's server or vLLM; None: a model in this process, and no engine is loaded."""
    if profile.evaluation.engine == "transformers":
        yield None
        return
    from pipeline.core.place import cache_dir
    from pipeline.evaluation.engine import other_answers

    with other_answers(profile, cache_dir() / "vllm.log") as other:
        yield other


def _stored_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of the whole and undamaged mix in a folder; None where a mix may be written."""
    from pipeline.data.stored_mix import load_mix

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
    from pipeline.core.place import cache_dir
    from pipeline.data.chat_format import ChatFormat, coloured
    from pipeline.data.describe import loader
    from pipeline.data.lengths import lengths, lengths_text
    from pipeline.data.pools import build_pools
    from pipeline.data.rehearsal.rehearse import rehearsed
    from pipeline.data.screen import screen
    from pipeline.model.load import load_data_tokenizer
    from pipeline.settings import load_recipe

    recipe = load_recipe(profile.recipe, profile.mix)
    names = [source.name for source in recipe.sources]
    if args.source and args.source not in names:
        raise UserError(
            f"The recipe has no source {args.source!r}.{nearest(args.source, names)} Known: {', '.join(names)}."
        )
    tokenizer = load_data_tokenizer(profile.model)
    data, limit = profile.data, profile.length_limit
    masks = ChatFormat(tokenizer, data.empty_think, data.loss_on)
    with _answers(profile) as other:
        recipe, _ = rehearsed(profile, recipe, tokenizer, loader(profile), cache_dir(), other)
    pools = build_pools(recipe, masks, limit, data.turns, data.workers, cache_dir(), data.too_long)
    chosen = [pool for pool in pools if args.source in (None, pool.source.name)]
    if args.action == "stats":
        entries = lengths(chosen, limit)
        show(args, entries, lengths_text(entries, limit))
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
        show(args, shown, "\n".join(lines) or "no such rows")
        return 0
    rows = [pool.some_examples(args.rows) for pool in chosen]
    form = "ansi" if args.output.isatty() else "plain"
    lines = []
    for row in chain.from_iterable(rows):
        loss = sum(label != -100 for label in row["labels"])
        lines.append(f"--- {row['source']}, {row['mode']}, {len(row['input_ids'])} tokens, {loss} with loss")
        lines.append(coloured(tokenizer, row, form))
    show(args, list(chain.from_iterable(rows)), "\n".join(lines))
    return 0


def _audit(args: argparse.Namespace) -> int:
    from pipeline.core.files import write_text
    from pipeline.handover.audit import Asked, audit, json_text, parse_names
    from pipeline.handover.words import audit_page, audit_text

    pythons = _pythons(args)
    if args.cases and args.recipe:
        raise UserError("--cases and --recipe contradict each other.")
    if not args.framework and args.tokens is None and args.output_dir is None:
        raise UserError(
            "Name what to compare: --framework NAME or --tokens FILE; or --output-dir DIR, to have the rows written."
        )
    profile = load(args)
    quiet()
    names = parse_names([name for names in args.framework for name in names])
    found = audit(profile, Asked(names, args.cases, args.rows, pythons, args.tokens, args.output_dir))
    text = audit_text(found, args.output.isatty())
    if args.output_dir is not None:
        write_text(args.output_dir / "audit.json", json_text(found))
        write_text(args.output_dir / "audit.html", audit_page(found))
        text += f"\n\n{args.output_dir / 'audit.html'}"
    show(args, found.model_dump(), text)
    return 1 if any(setting.error for setting in found.settings) else 0


def _handover(args: argparse.Namespace) -> int:
    from pipeline.data.chat_format import ChatFormat
    from pipeline.data.describe import build_profile_mix
    from pipeline.handover.audit import require_qwen3
    from pipeline.handover.check import check
    from pipeline.handover.plan import require_expressible
    from pipeline.handover.write import handover, handover_text, require_target
    from pipeline.model.load import load_data_tokenizer

    targets = [name for names in args.to for name in names]
    for name in targets:
        require_target(name)
    pythons = _pythons(args)
    profile = load(args)
    require_expressible(profile)
    form = ChatFormat(load_data_tokenizer(profile.model), profile.data.empty_think, profile.data.loss_on)
    require_qwen3(form)
    quiet()
    with _answers(profile) as other:
        mix = build_profile_mix(profile, other=other)
    records = []
    for name in targets:
        folder = args.output_dir / name
        record = handover(profile, mix, form, name, folder, args.gpus)
        if args.check:
            record["check"] = check(profile, mix.train, name, folder, pythons.get(name))
        records.append((record, folder))
    show(args, [record for record, _ in records], "\n\n".join(handover_text(*entry) for entry in records))
    checks = [record["check"] for record, _ in records if "check" in record]
    return 1 if any(found["error"] or found["different"] for found in checks) else 0
