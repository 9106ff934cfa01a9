"""Batches of similar length against batches in random order: what grouping saves, and what it costs.

    python benchmarks/length_grouping.py --output length_grouping.json

Both sides train the profile's model by QLoRA for one epoch over the same rows in the same batch size from the same seed, through
``pipeline.training.train.make_sft_trainer``; only ``training.group_by_length`` differs. So both see the same tokens; the sides
take turns in one process, each turn on a fresh model, the order of the sides changing from round to round.

* ``recipe``: the mix of the profile's own recipe, half of its rows chat.
* ``long``: lengths as in real mixes, chat of 20 to 200 tokens and reasoning of 500 to 2,000, half and half. Such a row is rows of
  the recipe's mix of one kind, joined end to end with their masks until the length is reached.

Reported: loss-bearing tokens a second, the share of padding, and, so that the price shows, the loss on held-out rows after the
epoch, the mean loss of the last quarter of the steps, and its spread from step to step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIDES = ("grouped", "random")
WANTED = 1.4
CHAT, REASONING = (20, 200), (500, 2000)  # tokens of a row of ``long``


def joined(rows: list[dict[str, Any]], target: int, generator: random.Random) -> dict[str, Any]:
    """Rows drawn and joined until there are ``target`` tokens; the last one is cut there."""
    ids: list[int] = []
    labels: list[int] = []
    while len(ids) < target:
        row = generator.choice(rows)
        ids += row["input_ids"]
        labels += row["labels"]
    return {"input_ids": ids[:target], "labels": labels[:target]}


def long_rows(rows: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """So many rows, alternately chat and reasoning, lengths drawn evenly from the kind's range."""
    generator = random.Random(seed)
    kinds = {mode: [row for row in rows if row["mode"] == mode] for mode in ("non_thinking", "thinking")}
    ranges = {"non_thinking": CHAT, "thinking": REASONING}
    order = [("non_thinking", "thinking")[number % 2] for number in range(count)]
    return [joined(kinds[mode], generator.randint(*ranges[mode]), generator) for mode in order]


def data(case: str, profile: Any, rows: int) -> Any:
    """Training and held-out rows of a case, as a mix has them."""
    from types import SimpleNamespace

    from datasets import Dataset

    from pipeline.data.describe import build_profile_mix

    mix = build_profile_mix(profile)
    if case == "recipe":
        return mix
    train = long_rows(list(mix.train), rows, seed=profile.seed)
    validation = long_rows(list(mix.validation), max(2, rows // 12), seed=profile.seed + 1)
    return SimpleNamespace(train=Dataset.from_list(train), validation=Dataset.from_list(validation))


class Padding:
    """Counts the places that the model computes, padding included."""

    def __init__(self, model: Any):
        self.places = 0
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if model.training:
            self.places += kwargs["input_ids"].numel()

    def close(self) -> None:
        self._hook.remove()


def turn(side: str, profile: Any, mix: Any) -> dict[str, Any]:
    """One epoch on a fresh model; the time is that of the training alone."""
    from pipeline.model.load import load_model
    from pipeline.training.measure import TokenCounter
    from pipeline.training.train import add_adapter, make_sft_trainer

    profile = profile.model_copy(deep=True)
    profile.training.group_by_length = side == "grouped"
    model, tokenizer = load_model(profile.model, profile.seed)
    model = add_adapter(model, profile.lora, profile.training, profile.seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_sft_trainer(model, tokenizer, profile, mix, Path(folder))
        trainer.args.eval_strategy = trainer.args.save_strategy = "no"
        counter, padding = TokenCounter(model), Padding(model)
        started, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        counter.close()
        padding.close()
        held_out = trainer.evaluate()["eval_loss"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    last = losses[-max(2, len(losses) // 4) :]
    return {
        "side": side,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "steps": trainer.state.global_step,
        "tokens": counter.tokens,
        "loss_tokens": counter.loss_tokens,
        "places": padding.places,
        "held_out_loss": held_out,
        "last_loss": statistics.mean(last),
        "last_loss_deviation": statistics.stdev(last),
    }


def measure(case: str, profile: Any, rows: int, rounds: int) -> dict[str, Any]:
    """All turns of a case and what they come to."""
    mix = data(case, profile, rows)
    turns = []
    for number in range(rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            turns.append(turn(side, profile, mix) | {"round": number, "load": os.getloadavg()[0]})
            print(f"{case}, round {number + 1}, {side}: {turns[-1]['seconds']:.1f} s", file=sys.stderr)
    if len({(t["tokens"], t["loss_tokens"], t["steps"]) for t in turns}) > 1:
        raise SystemExit(f"{case}: the sides did not train on the same tokens: {turns}")
    sides = {side: summary([t for t in turns if t["side"] == side]) for side in SIDES}
    by_round = [
        [t["seconds"] for side in ("random", "grouped") for t in turns if t["round"] == n and t["side"] == side]
        for n in range(rounds)
    ]
    lengths = sorted(len(ids) for ids in mix.train["input_ids"])
    return {
        "rows": len(lengths),
        "lengths": {"shortest": lengths[0], "median": lengths[len(lengths) // 2], "longest": lengths[-1]},
        "sides": sides,
        "ratio": sides["grouped"]["loss_tokens_per_second"] / sides["random"]["loss_tokens_per_second"],
        "ratio_rounds": [random_s / grouped_s for random_s, grouped_s in by_round],
        "turns": turns,
    }


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """A side's medians; losses are the same in every round, as the seed is."""
    seconds = statistics.median(t["seconds"] for t in turns)
    first = turns[0]
    return {
        "seconds": seconds,
        "loss_tokens_per_second": first["loss_tokens"] / seconds,
        "tokens_per_second": first["tokens"] / seconds,
        "padding": 1 - first["tokens"] / first["places"],
        **{
            key: first[key]
            for key in ("steps", "tokens", "loss_tokens", "held_out_loss", "last_loss", "last_loss_deviation")
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        "| mix | batches | padding | seconds | loss-bearing tokens/s | held-out loss | last quarter: mean loss (deviation) |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    notes = []
    for name, case in result["cases"].items():
        for side in SIDES:
            s = case["sides"][side]
            cells = [name, side, f"{s['padding']:.1%}", f"{s['seconds']:.1f}", f"{s['loss_tokens_per_second']:,.0f}"]
            cells += [f"{s['held_out_loss']:.4f}", f"{s['last_loss']:.4f} ({s['last_loss_deviation']:.4f})"]
            lines.append("| " + " | ".join(cells) + " |")
        spread = f"{min(case['ratio_rounds']):.2f} to {max(case['ratio_rounds']):.2f}"
        notes.append(
            f"`{name}`: grouped batches train {case['ratio']:.2f} times as many loss-bearing tokens a second (rounds: {spread}), "
            f"{case['rows']:,} rows of {case['lengths']['shortest']} to {case['lengths']['longest']:,} tokens."
        )
    return "\n".join([*lines, "", *notes])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="embedded", help="default: embedded")
    parser.add_argument("--cases", nargs="+", choices=["recipe", "long"], default=["recipe", "long"])
    parser.add_argument("--total", type=int, default=3000, help="rows of the recipe's mix (default: 3000)")
    parser.add_argument("--rows", type=int, default=192, help="rows of `long` (default: 192)")
    parser.add_argument("--batch", type=int, default=8, help="rows a step (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of both sides")
    parser.add_argument("--output", type=Path, help="write the numbers here, as JSON")
    args = parser.parse_args(argv)
    from pipeline.core.files import write_json
    from pipeline.core.versions import import_unsloth, version_of
    from pipeline.settings import load_profile

    import_unsloth()
    import pipeline.training.trainer  # noqa: F401  (imports TRL, before any clock runs)
    from pipeline.cli.shared import quiet

    quiet()
    fixed = ["training.max_steps=-1", "training.num_train_epochs=1", "training.logging_steps=1"]
    fixed += [f"training.per_device_train_batch_size={args.batch}", f"mix.total={args.total}"]
    profile = load_profile(args.profile, [*fixed, *args.set])
    result = {
        "profile": args.profile,
        "batch": args.batch,
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "settings": args.set,
        "versions": {name: version_of(name) for name in ("unsloth", "transformers", "trl", "torch")},
        "cases": {case: measure(case, profile, args.rows, args.rounds) for case in args.cases},
    }
    print(table(result))
    if args.output:
        write_json(args.output, json.loads(json.dumps(result)))
    return 0 if all(case["ratio"] >= WANTED for case in result["cases"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
