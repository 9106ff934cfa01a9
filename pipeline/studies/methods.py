"""Fine-tuning methods side by side: what each costs and what it reaches, on the same mix and the same items.

In: a profile and a file of arms, one a method (``ablations/methods.yaml``). Out: the directory of a sweep over them
(``pipeline.studies.sweep``: a run a cell, resumed after a kill, failed cells named), and ``methods.json``, ``methods.png``:

* trained parameters, tokens a second, training time, peak memory of the process, and memory above the loaded base
  (``pipeline.training.measure.MemoryMeter``), each measured while the cell trained;
* size of the trained weights on disk;
* added latency: decoding with the method against the bare base, loaded a second time in the same process and precision;
* accuracy and mode fidelity in both modes, with n and intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.console import say
from pipeline.core.errors import UserError, nearest
from pipeline.core.files import atomic_path, file_sha256, fingerprint, read_json, write_json
from pipeline.core.modes import MODES
from pipeline.core.versions import import_unsloth
from pipeline.data.chat_format import ChatFormat
from pipeline.evaluation.report.pictures import COLOURS
from pipeline.model.decode import seconds_a_token
from pipeline.model.load import VIRTUAL, load_model
from pipeline.model.memory import release
from pipeline.model.methods import disk_bytes, load_adapter, weights_files
from pipeline.studies.arms import SweepCell, load_arms, plan_arms
from pipeline.studies.curve import sweep_table
from pipeline.studies.engine import HERE, CellPlace
from pipeline.studies.results import Latency, MethodCosts, Methods
from pipeline.studies.sweep import sweep_arms

ARMS = "ablations/methods.yaml"
ROUNDS = 11  # of decoding, base and tuned in turn; the first warms up and does not count
TOKENS = 48  # decoded a round, one prompt at a time, greedy
QUESTION = "What is the product of 47 and 6?"
HOW = (
    "Memory above the base: the highest use during training less the use just before it, with the base loaded (resident set "
    "on a CPU, allocated bytes on a GPU). Added latency: milliseconds a token of greedy decoding, one prompt at a time, with "
    "the method less without it, base and tuned model in turn in one process and at the same precision; median of the paired "
    "differences of {rounds} rounds of {tokens} tokens, with a bootstrap interval. LoRA is not merged."
)


def run_methods(
    profile: str,
    folder: Path,
    methods: Sequence[str] = (),
    seeds: int = 1,
    overrides: list[str] | None = None,
    workers: int | None = None,
    arms: str = ARMS,
    place: CellPlace = HERE,
) -> Methods:
    """Run what is not done, measure, summarise; see the module's docstring.

    Args:
        methods: names of arms; none: all of the file.
        overrides: as ``--set``; an arm's own settings count more.
        place: where cells lie and train; latency is measured on this machine.

    Returns:
        What ``methods.json`` holds; ``sweep.failed`` names cells without a result, with the reason.

    Raises:
        UserError: an unknown name; see also ``pipeline.studies.sweep.sweep_arms``.
    """
    compared = load_arms(arms)
    for name in methods:
        if name not in compared.arms:
            known = list(compared.arms)
            raise UserError(f"--methods: {arms} has no {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    chosen = list(dict.fromkeys(methods)) or list(compared.arms)
    compared.arms = {name: arm for name, arm in compared.arms.items() if name in chosen}
    cells = plan_arms(profile, overrides or [], compared, seeds, folder, place.shared)
    swept = sweep_arms(profile, arms, seeds, folder, overrides, workers, place, chosen)
    entries = []
    bases: dict[str, Any] = {}
    for point in swept["points"]:
        own = [cell for cell in cells if cell.value == point["value"]]
        entries.append(_entry(point["value"], own, compared.arms[point["value"]].why, bases))
    result: Methods = {"how": HOW.format(rounds=ROUNDS - 1, tokens=TOKENS), "methods": entries, "sweep": swept}
    write_json(folder / "methods.json", result)
    draw_methods(result, folder / "methods.png")
    return result


def _entry(name: str, cells: Sequence[SweepCell], why: str, bases: dict[str, Any]) -> MethodCosts:
    """The costs of one arm: means over its seeds; the latency is that of the first."""
    sections = [read_json(cell.folder / "run" / "training.json") for cell in cells]

    def mean(key: str) -> float:
        return float(np.mean([section[key] for section in sections]))

    def mean_if_measured(key: str) -> float | None:
        return None if any(section.get(key) is None for section in sections) else mean(key)

    first = cells[0]
    return {
        "name": name,
        "method": first.profile.chosen_method,
        "why": why,
        "learning_rate": first.profile.training.learning_rate,
        "steps": sections[0]["steps"],
        "precision": "4 bit" if first.profile.model.load_in_4bit else "16 bit",
        "trainable_parameters": sections[0]["trainable_parameters"],
        "total_parameters": sections[0]["total_parameters"],
        "tokens_per_second": mean("tokens_per_second"),
        "training_seconds": mean("training_seconds"),
        "peak_memory_bytes": mean_if_measured("peak_memory_bytes"),
        "memory_above_base_bytes": mean_if_measured("memory_above_base_bytes"),
        "disk_bytes": disk_bytes(first.folder / "run" / "adapter"),
        "latency": _latency(first, bases),
    }


# --- latency ------------------------------------------------------------------------------------------------------------


def _latency(cell: SweepCell, bases: dict[str, Any]) -> Latency:
    """Measure a cell's added latency, or read it where that is done. ``bases`` keeps the bare bases of this process."""

    adapter, record = cell.folder / "run" / "adapter", cell.folder / "latency.json"
    identity = fingerprint([ROUNDS, TOKENS, *(file_sha256(path) for path in weights_files(adapter))])
    if record.exists() and read_json(record)["identity"] == identity:
        known: Latency = read_json(record)["latency"]
        return known
    say(f"latency of {cell.name}")
    import_unsloth()  # before transformers

    settings, seed = cell.profile.model, cell.profile.seed
    method = cell.profile.chosen_method
    kind = fingerprint(settings.model_dump() | {"virtual": method in VIRTUAL})
    if kind not in bases:
        bases.clear()  # one bare base at a time
        release()
        bases[kind] = load_model(settings, seed, method)
    base, tokenizer = bases[kind]
    tuned = load_adapter(load_model(settings, seed, method)[0], adapter)
    form = ChatFormat(tokenizer)
    prompt = form.prompt_ids([{"role": "user", "content": QUESTION}], form.style.modes[0])
    result = compare_latency(base, tuned, tokenizer, prompt)
    write_json(record, {"identity": identity, "latency": result})
    return result


def compare_latency(base: Any, tuned: Any, tokenizer: Any, prompt: Sequence[int]) -> Latency:
    """Milliseconds a token of two models, decoded in turn, and of their paired difference with its 95 % interval."""

    times = np.array(
        [[1000 * seconds_a_token(m, tokenizer, prompt, TOKENS) for m in (base, tuned)] for _ in range(ROUNDS)]
    )[1:]
    added = times[:, 1] - times[:, 0]
    drawn = np.random.default_rng(0).integers(0, len(added), (2000, len(added)))
    low, high = np.quantile(np.median(added[drawn], axis=1), (0.025, 0.975))
    return {
        "base_ms": float(np.median(times[:, 0])),
        "tuned_ms": float(np.median(times[:, 1])),
        "added_ms": float(np.median(added)),
        "ci95": [float(low), float(high)],
        "rounds": len(added),
    }


# --- showing ------------------------------------------------------------------------------------------------------------


def methods_table(result: Methods, part: str | None = None) -> str:
    """``methods.json`` as Markdown.

    Args:
        part: ``cost``, ``quality``, or None for both.
    """
    texts = {"cost": _costs(result), "quality": sweep_table(result["sweep"])}
    return texts[part] if part else "\n\n".join(texts.values())


def _costs(result: Methods) -> str:
    heads = "method,base,learning rate,trained parameters,of all,above the base (MiB),whole process (MiB),tokens/s,"
    heads += "training (s),on disk (KiB),added latency (ms a token),of the base's"
    lines = ["| " + " | ".join(heads.split(",")) + " |", "|---|---|" + "--:|" * (heads.count(",") - 1)]
    for m in result["methods"]:
        latency = m["latency"]
        cells = [
            m["name"],
            m["precision"],
            f"{m['learning_rate']:g}",
            f"{m['trainable_parameters']:,}",
            f"{m['trainable_parameters'] / m['total_parameters']:.2%}",
            _mib(m["memory_above_base_bytes"]),
            _mib(m["peak_memory_bytes"]),
            f"{m['tokens_per_second']:,.0f}",
            f"{m['training_seconds']:.0f}",
            f"{m['disk_bytes'] / 2**10:,.0f}",
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(latency["added_ms"], *latency["ci95"]),
            f"{latency['added_ms'] / latency['base_ms']:+.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", result["how"]])


def _mib(size: float | None) -> str:
    return "not measured" if size is None else f"{size / 2**20:,.0f}"


def draw_methods(result: Methods, path: Path) -> None:
    """Scores by method in both modes with 95 % intervals, and parameters, memory, speed and latency as bars."""
    from matplotlib.figure import Figure

    names = [m["name"] for m in result["methods"]]
    y = np.arange(len(names))[::-1]
    figure = Figure(figsize=(15, 1.6 + 0.42 * len(names)), layout="constrained")
    panels = figure.subplots(1, 6, sharey=True, width_ratios=[2, 2, 1, 1, 1, 1])
    for axes, mode in zip(panels, MODES, strict=False):
        benchmarks = list(result["sweep"]["base"][mode]["benchmarks"])
        for i, name in enumerate([*benchmarks, None]):
            modes = [point["modes"][mode] for point in result["sweep"]["points"]]
            own = [m["benchmarks"][name] if name else m["mode_fidelity"] for m in modes]
            values = np.array([entry["value"] for entry in own])
            ends = np.array([entry["ci95"] for entry in own]).T
            label, marker = (name.removeprefix("embedded_"), "o") if name else ("mode fidelity", "|")
            at = y + 0.12 * (len(benchmarks) / 2 - i)
            errors = np.clip([values - ends[0], ends[1] - values], 0, None)
            axes.errorbar(values, at, xerr=errors, fmt=marker, color=COLOURS[i % len(COLOURS)], label=label, capsize=2)
        axes.set(title=mode.replace("_", "-"), xlabel="part of the items", xlim=(-0.03, 1.03))
        axes.legend(frameon=False, fontsize="x-small", loc="best")
    bars = (
        ("trained parameters", [m["trainable_parameters"] for m in result["methods"]]),
        ("MiB above the base", [(m["memory_above_base_bytes"] or 0) / 2**20 for m in result["methods"]]),
        ("tokens/s", [m["tokens_per_second"] for m in result["methods"]]),
        ("added ms a token", [m["latency"]["added_ms"] for m in result["methods"]]),
    )
    for axes, (title, lengths) in zip(panels[2:], bars, strict=True):
        axes.barh(y, lengths, color="#0072b2", height=0.6)
        axes.set_title(title, fontsize="medium")
    panels[2].set_xscale("log")
    panels[0].set_yticks(y, names)
    for axes in panels:
        axes.grid(alpha=0.3, axis="x")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
