"""What was trained, used: export, serve, chat, ask."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
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
    sub.add_argument(
        "--push", choices=["huggingface", "modelscope"], help="to a hub; without --confirm only says what it would"
    )
    sub.add_argument("--repo", type=word, metavar="OWNER/NAME", help="with --push: the repository, made private")
    sub.add_argument("--confirm", action="store_true", help="with --push: really send it")
    sub.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    sub.set_defaults(do=_export)

    help = "start an OpenAI-compatible server on what a run trained"
    sub = group.add_parser("serve", help=help, description=help)
    sub.add_argument("run", type=Path, metavar="RUN", help="directory of a finished run")
    sub.add_argument(
        "--engine", choices=["transformers", "vllm", "llama.cpp"], default="llama.cpp", help="default: llama.cpp"
    )
    sub.add_argument("--vllm", type=word, metavar="PATH", help="vllm: its executable, in an environment of its own")
    sub.add_argument("--host", type=word, default="127.0.0.1", help="default: this machine alone; others need a key")
    sub.add_argument("--port", type=positive, default=8000, metavar="N", help="default: 8000")
    sub.add_argument("--gguf", choices=["f16", "q8_0", "q4_k_m"], default="q8_0", help="for llama.cpp (default: q8_0)")
    sub.add_argument(
        "--context", type=positive, metavar="N", help="tokens of prompt and reply (default: the model's, to 4,096)"
    )
    sub.add_argument(
        "--also",
        type=word,
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="vllm: the adapter of another run on the same base, asked for by this name; several times",
    )
    sub.add_argument("--parallel", type=positive, default=4, metavar="N", help="requests at a time (default: 4)")
    sub.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="llama.cpp: that compute (default: one for a small file, else all cores)",
    )
    sub.add_argument(
        "--export-dir", type=folder, metavar="DIR", help="where the run was exported (default: RUN/export)"
    )
    sub.set_defaults(do=_serve)

    help = "talk to what a run trained, or to its base, in either mode"
    sub = group.add_parser("chat", help=help, description=help)
    sub.add_argument("run", type=Path, metavar="RUN", help="directory of a finished run")
    _add_which_and_mode(sub, "begin with the base", "begin in the non-thinking mode")
    sub.add_argument("--seed", type=positive, metavar="N", help="of the sampling (default: another each time)")
    sub.add_argument(
        "--thinking-budget",
        type=int,
        metavar="N",
        help="tokens of reasoning at most (default: as the run's profile says)",
    )
    sub.add_argument("--web", action="store_true", help="a page on this machine: base and tuned side by side")
    sub.add_argument("--port", type=positive, metavar="N", help="of the page (default: 7860)")
    sub.set_defaults(do=_chat)

    help = "answer a question with what stands in a folder: retrieval beside fine-tuning"
    sub = group.add_parser("ask", help=help, description=help)
    sub.add_argument("run", type=Path, metavar="RUN", help="directory of a finished run")
    sub.add_argument("question", type=word, metavar="QUESTION")
    sub.add_argument("--folder", type=folder, required=True, metavar="DIR", help="with text files (UTF-8)")
    sub.add_argument("--passages", type=positive, metavar="N", help="in the prompt, at most (default: 3)")
    _add_which_and_mode(sub, "ask the base", "in the non-thinking mode")
    sub.add_argument(
        "--compare",
        action="store_true",
        help="base and tuned, both modes, with the passages and without: eight replies",
    )
    sub.add_argument("--seed", type=positive, metavar="N", help="of the sampling (default: another each time)")
    sub.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    sub.set_defaults(do=_ask)


def _export(args: argparse.Namespace) -> int:
    from pipeline.export.export import Options, export
    from pipeline.export.gguf import TYPES
    from pipeline.export.measure import PROMPTS_A_MODE
    from pipeline.export.parity import parity_text

    kinds = tuple(args.gguf or TYPES)
    if set(kinds) - set(TYPES):
        raise UserError(f"--gguf: there is no {', '.join(sorted(set(kinds) - set(TYPES)))}; types: {', '.join(TYPES)}.")
    if bool(args.push) != bool(args.repo) or (args.confirm and not args.push):
        raise UserError("--push HUB and --repo OWNER/NAME go together, and --confirm with them.")
    if args.no_check and args.prompts:
        raise UserError("--no-check and --prompts contradict each other.")
    options = Options(
        dtype=args.dtype,
        base=args.base,
        dequantise=args.dequantise,
        gguf_types=kinds,
        prompts=0 if args.no_check else args.prompts or PROMPTS_A_MODE,
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
    broken = parity is not None and parity["verdict"] == "broken"
    if args.push:
        from pipeline.export.push import plan_push, plan_text, push

        entries = plan_push(
            {name: Path(entry["path"]) for name, entry in result["targets"].items()}, args.push, args.repo
        )
        if args.confirm and broken:
            lines.append("nothing was sent: the check failed")
        else:
            if args.confirm:
                push(entries)
            lines += ["", plan_text(entries, sent=args.confirm)]
    show(args, result, "\n".join(lines))
    return 1 if broken else 0


def _serve(args: argparse.Namespace) -> int:
    from pipeline.export.serve import Serving, serve

    quiet()
    also = tuple((name.strip(), Path(run)) for name, _, run in (text.partition("=") for text in args.also))
    if not all(name and str(run) != "." for name, run in also):
        raise UserError(f"--also needs NAME=RUN; given: {', '.join(args.also)}.")
    if args.threads and args.engine != "llama.cpp":
        raise UserError(f"--threads is of llama.cpp; {args.engine} has settings of its own for that.")
    if args.vllm and args.engine != "vllm":
        raise UserError(f"--vllm is the program of --engine vllm; given: --engine {args.engine}.")
    serving = Serving(
        args.engine, args.host, args.port, args.gguf, args.context, args.parallel, args.threads, args.vllm, also
    )

    def ready(address: str, name: str) -> None:
        body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "What is 17 + 25?"}]}
        body["chat_template_kwargs"] = {"enable_thinking": False}
        more = "".join(f", {other}" for other, _ in also) + (", base" if also else "")
        text = f"{args.engine} serves {args.run} at {address}, model {name}{more}; Ctrl-C stops it\n"
        text += f"curl {address}/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
        print(text, file=args.output, flush=True)

    return serve(args.run, serving, args.export_dir or args.run / "export", ready)


def _add_which_and_mode(sub: argparse.ArgumentParser, base: str, direct: str) -> None:
    """Which model answers, and in which mode. ``base``, ``direct``: what the options are said to do."""
    sub.add_argument("--base", dest="which", action="store_const", const="base", default="tuned", help=base)
    sub.add_argument(
        "--no-think", dest="mode", action="store_const", const="non_thinking", default="thinking", help=direct
    )


def _chat(args: argparse.Namespace) -> int:
    from pipeline.export.chat import Chat
    from pipeline.export.source import open_source
    from pipeline.export.talk import Talker
    from pipeline.export.web import PORT, Server, serve_page

    if args.port is not None and not args.web:
        raise UserError("--port is the page's; give --web too.")
    if args.web and args.which == "base":
        raise UserError("--web shows base and tuned side by side; leave --base out.")
    quiet()
    source = open_source(args.run)
    budget = source.profile.evaluation.thinking_budget if args.thinking_budget is None else args.thinking_budget
    if budget is not None and budget < 0:
        raise UserError(f"--thinking-budget is a number of tokens from 0 on; given: {budget}.")
    if args.web:

        def ready(address: str) -> None:
            print(f"{address} (this machine alone); Ctrl-C ends it", file=args.output, flush=True)

        serve_page(Server(Talker(source), args.port or PORT, args.mode, args.seed, budget), ready)
    else:
        Chat(source, args.output, args.which, args.mode, seed=args.seed, budget=budget).run(sys.stdin)
    return 0


def _ask(args: argparse.Namespace) -> int:
    from pipeline.core.modes import MODES
    from pipeline.export.ask import COUNT, ask, asked_data, asked_text, open_index
    from pipeline.export.source import open_source
    from pipeline.export.talk import WHICH, Talker

    if args.compare and (args.which == "base" or args.mode == "non_thinking"):
        raise UserError("--compare asks both models in both modes; leave --base and --no-think out.")
    quiet()
    talker = Talker(open_source(args.run))
    with contextlib.closing(open_index(args.folder, talker.source, talker.count_tokens)) as index:
        which, modes = (WHICH, MODES) if args.compare else ((args.which,), (args.mode,))
        count = args.passages or COUNT
        asked = ask(talker, index, args.question, which, modes, args.compare, count, args.seed)
    show(args, asked_data(asked), asked_text(asked))
    return 0
