"""What a server of a run does with many clients: throughput, time to the first token, and whether every reply is its own.

    python benchmarks/serving.py --run RUN --output serving.json
    python benchmarks/serving.py --url http://127.0.0.1:8000/v1 --model tuned --output serving.json
    python benchmarks/serving.py --url http://127.0.0.1:8000/v1 --model A --also B --also BASE --output adapters.json

``serve`` starts the server (llama.cpp, q8_0, 16 places), or ``--url`` names one. First every question is asked by one client,
greedy, in both modes: those replies are the reference. Then the same work by 4 and by 16 clients, and at last ``--requests``
requests by 16 clients in a random order of questions and modes. A request is *lost* where no reply comes; *mixed up* where the
reply is that of another question or mode, or has the other mode's form; *another* where it is nobody's: batches of other sizes
round otherwise, and greedy decoding can then take another word. With ``--also``, requests go to several models of one server, by
name and in a random order, and *mixed up* is the reply of another model too; half of the questions are then products, which tell
tuned models from their base.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.modes import MODES, Mode

CLIENTS = (1, 4, 16)
LIMIT = 160  # tokens of a reply


class Job(NamedTuple):
    """One request."""

    question: str
    mode: Mode
    model: str = "tuned"


class Answer(NamedTuple):
    """What came of it; ``error``: why nothing did. Times are in seconds from the request."""

    reasoning: str = ""
    text: str = ""
    pieces: int = 0  # tokens as the server counts them, else pieces of the stream
    first: float = 0.0
    whole: float = 0.0
    error: str = ""


def questions(count: int, seed: int = 0) -> list[str]:
    """Different sums of two numbers of two digits."""
    pairs = [(a, b) for a in range(10, 90) for b in range(10, 100 - a)]
    return [f"What is {a} + {b}?" for a, b in random.Random(seed).sample(pairs, count)]


def products(count: int, seed: int = 0) -> list[str]:
    """Different products of a number of two digits and one of one."""
    pairs = [(a, b) for a in range(12, 100) for b in range(3, 10)]
    return [f"What is {a} times {b}?" for a, b in random.Random(seed).sample(pairs, count)]


async def ask(client: Any, job: Job) -> Answer:
    """One streamed request."""
    import openai

    started, first, pieces, counted = time.perf_counter(), 0.0, 0, 0
    parts = {"reasoning_content": "", "reasoning": "", "content": ""}  # the second is what vLLM calls the first
    try:
        stream = await client.chat.completions.create(
            model=job.model,
            messages=[{"role": "user", "content": job.question}],
            temperature=0,
            max_tokens=LIMIT,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"chat_template_kwargs": {"enable_thinking": job.mode == "thinking"}},
        )
        async for chunk in stream:
            counted = chunk.usage.completion_tokens if chunk.usage else counted
            delta = chunk.choices[0].delta.model_dump() if chunk.choices else {}
            for key in parts:
                if delta.get(key):
                    first = first or time.perf_counter() - started
                    parts[key] += delta[key]
                    pieces += 1
    except openai.OpenAIError as error:
        return Answer(error=f"{type(error).__name__}: {error}"[:200])
    whole = time.perf_counter() - started
    reasoning = parts["reasoning_content"] or parts["reasoning"]
    return Answer(reasoning.strip(), parts["content"].strip(), counted or pieces, first, whole)


async def round_of(url: str, jobs: Sequence[Job], clients: int) -> tuple[list[Answer], float]:
    """All jobs by so many clients, each with one request open; answers in the order of the jobs, and seconds."""
    import openai

    answers: list[Answer] = [Answer(error="not asked")] * len(jobs)
    waiting = iter(enumerate(jobs))

    async def work() -> None:
        for place, job in waiting:
            answers[place] = await ask(client, job)

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        return answers, time.perf_counter() - started


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that so great a part of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)] if ordered else float("nan")


def row_of(clients: int, answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """A line of the table."""
    good = [answer for answer in answers if not answer.error]
    firsts, wholes = [answer.first for answer in good], [answer.whole for answer in good]
    return {
        "clients": clients,
        "requests": len(answers),
        "seconds": seconds,
        "requests_per_second": len(good) / seconds,
        "tokens_per_second": sum(answer.pieces for answer in good) / seconds,
        "first_token_p50": percentile(firsts, 0.5),
        "first_token_p95": percentile(firsts, 0.95),
        "reply_p50": percentile(wholes, 0.5),
        "reply_p95": percentile(wholes, 0.95),
    }


def compared(jobs: Sequence[Job], answers: Sequence[Answer], reference: dict[Job, tuple[str, str]]) -> dict[str, int]:
    """How many replies are their own, nobody's, mixed up, lost."""
    owner: dict[tuple[str, str], set[Job]] = {}
    for job, reply in reference.items():
        owner.setdefault(reply, set()).add(job)
    found = {"requests": len(jobs), "own": 0, "another": 0, "mixed_up": 0, "lost": 0}
    for job, answer in zip(jobs, answers, strict=True):
        reply = (answer.reasoning, answer.text)
        if answer.error:
            found["lost"] += 1
        elif reply == reference[job]:
            found["own"] += 1
        elif reply in owner or bool(answer.reasoning) != (job.mode == "thinking"):
            found["mixed_up"] += 1
        else:
            found["another"] += 1
    return found


@contextlib.contextmanager
def served(run: Path, places: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Address and model of ``serve`` on a run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipeline", "serve", str(run), "--port", str(port), "--parallel", str(places)]
    command += ["--context", "512", "--export-dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if not any(" serves " in line for line in process.stdout):  # a line before it may tell of an export
            raise SystemExit("the server did not start")
        yield f"http://127.0.0.1:{port}/v1", "tuned"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        process.stdout.close()


def measure(
    url: str, models: Sequence[str], count: int, requests: int, clients: Sequence[int] = CLIENTS
) -> dict[str, Any]:
    """All rounds; see the module's docstring."""
    several = len(models) > 1
    asked = [*questions(count // 2), *products(count - count // 2)] if several else questions(count)
    jobs = [Job(question, mode, model) for question in asked for mode in MODES for model in models]
    asyncio.run(round_of(url, jobs[: 4 * len(models)], 1))  # warm
    rows, reference = [], {}
    for number in clients:
        answers, seconds = asyncio.run(round_of(url, jobs, number))
        rows.append(row_of(number, answers, seconds))
        if number == 1:
            reference = {job: (answer.reasoning, answer.text) for job, answer in zip(jobs, answers, strict=True)}
            if lost := [answer.error for answer in answers if answer.error]:
                raise SystemExit(f"{len(lost)} requests of one client failed: {lost[0]}")
    many = [jobs[place % len(jobs)] for place in range(requests)]
    random.Random(1).shuffle(many)
    answers, seconds = asyncio.run(round_of(url, many, clients[-1]))
    rows.append(row_of(clients[-1], answers, seconds))
    result = {"rows": rows, "replies": compared(many, answers, reference), "different": len(set(reference.values()))}
    if errors := Counter(answer.error for answer in answers if answer.error):
        result["errors"] = dict(errors)
    return result | ({"models": len(models), "told_apart": told_apart(reference)} if several else {})


def told_apart(reference: dict[Job, tuple[str, str]]) -> list[int]:
    """Of so many questions in a mode (the second number), those that no two models answer with the same text (the first)."""
    replies: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for job, reply in reference.items():
        replies.setdefault((job.question, job.mode), []).append(reply)
    return [sum(len(set(group)) == len(group) for group in replies.values()), len(replies)]


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    heads = ["clients", "requests", "requests/s", "tokens/s", "first token p50, p95 (s)", "reply p50, p95 (s)"]
    lines = [f"| {' | '.join(heads)} |", "|--:" * len(heads) + "|"]
    for row in result["rows"]:
        times = [f"{row[f'{name}_p50']:.3f}, {row[f'{name}_p95']:.3f}" for name in ("first_token", "reply")]
        rates = [f"{row['requests_per_second']:.1f}", f"{row['tokens_per_second']:,.0f}"]
        cells = [str(row["clients"]), f"{row['requests']:,}", *rates, *times]
        lines.append(f"| {' | '.join(cells)} |")
    found = result["replies"]
    lines.append("")
    lines.append(
        f"{found['requests']:,} requests by {result['rows'][-1]['clients']} clients, {result['different']} different replies: "
        f"{found['own']:,} their own, {found['another']} another wording, {found['mixed_up']} mixed up, {found['lost']} lost"
    )
    if "models" in result:
        apart, all_of_them = result["told_apart"]
        lines.append(f"{result['models']} models; no two give the same reply to {apart} of {all_of_them} questions")
    return "\n".join(lines)


def main() -> int:
    """Measure, print the table; 1 where a reply was lost or mixed up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="directory of a finished run, which is served")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--model", default="tuned", help="what that one calls the model")
    parser.add_argument(
        "--also", action="append", default=[], metavar="MODEL", help="another model of it; several times"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS), help="from 1 on; 1 is the reference")
    parser.add_argument("--questions", type=int, default=60, help="each in both modes")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if bool(args.url) == bool(args.run) or (args.also and not args.url) or args.clients[0] != 1:
        parser.error("give --run, or --url of a server that runs; --also goes with --url; --clients begins with 1")
    with contextlib.ExitStack() as stack:
        if args.url:
            url, model = args.url, args.model
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url, model = stack.enter_context(served(args.run, args.clients[-1], folder))
        result = measure(url, [model, *args.also], args.questions, args.requests, args.clients)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    return 1 if result["replies"]["lost"] or result["replies"]["mixed_up"] else 0


if __name__ == "__main__":
    sys.exit(main())
