"""What was trained, used elsewhere: export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.cli.shared import folder, positive, quiet, show, values, word
from pipeline.core.errors import UserError


def register(group: Any) -> None:
    """Add the commands of this module."""
    help = "write what a run trained in the form that other tools load, and check that it answers as it was measured"
    sub = group.add_parser("export", help=help, description=help)
    sub.add_argument("run", type=Path, metavar="RUN", help="directory of a finished run")
    sub.add_argument(
        "--to",
        type=values,
        action="append",
        required=True,
        metavar="TARGET",
        help="adapter, merged, int8, int8_dynamic, gguf, ollama; several with commas",
    )
    sub.add_argument("--output-dir", type=folder, metavar="DIR", help="where they are written (default: RUN/export)")
    sub.add_argument(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        help="of the merged weights (default: 16 bit, as the base has it)",
    )
    sub.add_argument("--gguf", type=values, metavar="TYPES", help="f16, q8_0, q4_k_m (default: all three)")
    sub.add_argument(
        "--base", type=word, metavar="DIR", help="the 16-bit original, where the base is a 4-bit checkpoint"
    )
    sub.add_argument(
        "--dequantise", action="store_true", help="merge into a 4-bit checkpoint's weights, turned back to 16 bit"
    )
    sub.add_argument("--no-check", action="store_true", help="do not compare the targets with the run")
    sub.add_argument("--prompts", type=positive, metavar="N", help="of the check, in each mode (default: 200)")
    sub.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    sub.set_defaults(do=_export)


def _export(args: argparse.Namespace) -> int:
    from pipeline.export.export import Options, export
    from pipeline.export.gguf import TYPES
    from pipeline.export.measure import PROMPTS
    from pipeline.export.parity import parity_text

    kinds = tuple(args.gguf or TYPES)
    if set(kinds) - set(TYPES):
        raise UserError(f"--gguf: there is no {', '.join(sorted(set(kinds) - set(TYPES)))}; types: {', '.join(TYPES)}.")
    if args.no_check and args.prompts:
        raise UserError("--no-check and --prompts contradict each other.")
    options = Options(
        dtype=args.dtype,
        base=args.base,
        dequantise=args.dequantise,
        gguf_types=kinds,
        prompts=0 if args.no_check else args.prompts or PROMPTS,
    )
    targets = [name for names in args.to for name in names]
    quiet()
    result = export(args.run, targets, args.output_dir, options)
    lines = [
        f"{name}: {entry['path']} ({entry['bytes'] / 2**20:,.1f} MiB)" for name, entry in result["targets"].items()
    ]
    parity = result["parity"]
    if parity is not None:
        lines += ["", parity_text(parity), "", f"verdict: {parity['verdict']} ({args.output_dir / 'parity.json'})"]
    show(args, result, "\n".join(lines))
    return 1 if parity is not None and parity["verdict"] == "broken" else 0
