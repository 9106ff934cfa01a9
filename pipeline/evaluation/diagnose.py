"""Read a run and say what went wrong in it, with evidence, and which setting to change.

In: a run directory (see ``pipeline.run``). Out: findings, each with its rule, the numbers that speak for it, and changes as
``--set`` takes them. What the run holds too little of to be judged is said, not guessed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.modes import MODES
from pipeline.core.statistics import wilson
from pipeline.evaluation.cells import finished_cells
from pipeline.settings import Profile, Recipe, parse, read_yaml

FEWEST_POINTS = 12  # logged losses; below it a trend cannot be told from noise
OSCILLATING = 0.35  # spread around the trend, as a part of the loss itself; noise of batches is about half of it
SETTLED = 0.5  # the part of the run, from its middle on, in which a loss ought to be calm
RISE = 0.1  # of the validation loss above its lowest, as a part of it
STILL_FALLING = 0.1  # of the whole fall, in the last third of the run by its trend
BARELY_MOVED = 0.1  # of the loss over the whole run
DIVERGED = 1.5  # times the lowest smoothed loss, at the end
MEMORY = 0.9  # of what there is
CUT = 0.05  # of the replies of a mode


@dataclass
class Finding:
    """One thing that is wrong: the rule in words, the numbers, and settings to change."""

    name: str
    evidence: str
    rule: str
    numbers: dict[str, float]
    change: list[str] = field(default_factory=list)


def _trend(values: np.ndarray) -> np.ndarray:
    """The course of a loss without its noise: a running median, so that single batches do not count, smoothed."""
    width = max(3, len(values) // 6) | 1
    padded = np.pad(values, width // 2, mode="edge")
    medians = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
    # The median of an odd number of values that go up and down in turn goes up and down itself.
    return np.convolve(np.pad(medians, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")


def _pairs(entries: list[dict[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([e["step"] for e in entries], float), np.array([e["loss"] for e in entries], float)


def oscillating(entries: list[dict[str, float]], profile: Profile) -> Finding | None:
    """The loss swings around its trend in the second half of the run."""
    steps, loss = _pairs(entries)
    late = slice(int(len(loss) * (1 - SETTLED)), None)
    trend = _trend(loss)
    noise = (loss - trend)[late]
    level = float(np.median(trend[late]))
    # 1.4826 × the median distance is the standard deviation of normal noise, whatever a few outliers do.
    spread = 1.4826 * float(np.median(np.abs(noise - np.median(noise))))
    part = spread / level if level > 0 else 0.0
    if part < OSCILLATING:
        return None
    rate = profile.training.learning_rate
    return Finding(
        "oscillating loss",
        f"from step {int(steps[late][0])} on the loss lies {part:.0%} off its trend ({level:.3g}) on the average",
        f"the spread around a running median in the second half is at least {OSCILLATING:.0%} of the loss",
        {"spread": spread, "level": level, "part": part},
        [f"training.learning_rate={rate / 2:g}", f"training.gradient_accumulation_steps={2 * _accumulation(profile)}"],
    )


def _accumulation(profile: Profile) -> int:
    return profile.training.gradient_accumulation_steps


def diverged(entries: list[dict[str, float]], profile: Profile) -> Finding | None:
    """The loss ends far above where it has been."""
    steps, loss = _pairs(entries)
    trend = _trend(loss)
    lowest = int(np.argmin(trend))
    times = float(trend[-1] / trend[lowest]) if trend[lowest] > 0 else 1.0
    if times < DIVERGED or lowest > len(loss) * 0.8:
        return None
    return Finding(
        "diverging loss",
        f"the loss was {trend[lowest]:.3g} at step {int(steps[lowest])} and ends at {trend[-1]:.3g}",
        f"the smoothed loss ends at {DIVERGED} times its lowest value or more",
        {"lowest": float(trend[lowest]), "last": float(trend[-1]), "step": float(steps[lowest])},
        [f"training.learning_rate={profile.training.learning_rate / 3:g}", "training.warmup_steps=0.1"],
    )


def over_fitting(training: dict[str, Any], profile: Profile) -> Finding | None:
    """The validation loss rises while the training loss falls."""
    if len(training["eval_loss"]) < 3 or not training["loss"]:
        return None
    steps, validation = _pairs(training["eval_loss"])
    lowest = int(np.argmin(validation))
    rise = float(validation[-1] / validation[lowest] - 1) if validation[lowest] > 0 else 0.0
    train_steps, loss = _pairs(training["loss"])
    trend = _trend(loss)
    then = float(trend[int(np.searchsorted(train_steps, steps[lowest]).clip(0, len(trend) - 1))])
    if rise < RISE or trend[-1] > then:
        return None
    share = float(steps[lowest] / steps[-1])
    change = ["training.early_stopping_patience=3", f"lora.dropout={max(0.05, profile.lora.dropout)}"]
    change.insert(0, f"training.max_steps={int(steps[lowest])}")
    return Finding(
        "over-fitting",
        f"the validation loss was lowest at step {int(steps[lowest])} ({validation[lowest]:.3g}, {share:.0%} of the run) and "
        f"ends {rise:.0%} above it, while the training loss went from {then:.3g} to {trend[-1]:.3g}",
        f"the validation loss ends {RISE:.0%} above its lowest or more, and the training loss does not rise with it",
        {
            "lowest": float(validation[lowest]),
            "last": float(validation[-1]),
            "rise": rise,
            "step": float(steps[lowest]),
        },
        change,
    )


def too_slow(entries: list[dict[str, float]], profile: Profile) -> Finding | None:
    """The loss still falls at the end, or has hardly moved."""
    steps, loss = _pairs(entries)
    third = slice(-max(4, len(loss) // 3), None)
    x, y = steps[third] - steps[third].mean(), loss[third]
    slope = float((x * (y - y.mean())).sum() / (x * x).sum())
    residual = y - y.mean() - slope * x
    error = float(np.sqrt((residual**2).sum() / max(1, len(y) - 2) / (x * x).sum()))
    start, end = float(_trend(loss)[0]), float(_trend(loss)[-1])
    fall = -slope * float(steps[third][-1] - steps[third][0])
    falling = slope + 1.96 * error < 0 and fall > STILL_FALLING * max(start - end, 1e-12)
    stuck = start > 0 and 1 - end / start < BARELY_MOVED
    if not falling and not stuck:
        return None
    rate, total = profile.training.learning_rate, int(steps[-1])
    if stuck:
        evidence = f"the loss went from {start:.3g} to {end:.3g} in {total} steps: {1 - end / start:.0%}"
        change = [f"training.learning_rate={rate * 5:g}"]
    else:
        evidence = f"in the last third of the run the loss still fell by {fall:.3g}, to {end:.3g}"
        change = [f"training.max_steps={total * 2}"]
    return Finding(
        "too slow to converge",
        evidence,
        f"the trend of the last third is below 0 with 95 % confidence and brought {STILL_FALLING:.0%} of the whole fall, or the "
        f"whole run brought less than {BARELY_MOVED:.0%} of the loss",
        {"start": start, "end": end, "fall": fall, "slope": slope},
        change,
    )


def out_of_memory(training: dict[str, Any], profile: Profile, available: int | None = None) -> Finding | None:
    """The peak is close to what the device has."""
    peak, total = training["peak_memory_bytes"], available or memory_bytes()
    if peak < MEMORY * total:
        return None
    batch = profile.training.per_device_train_batch_size
    change = ["training.gradient_checkpointing=true"]
    if batch > 1:
        change = [
            f"training.per_device_train_batch_size={batch // 2}",
            f"training.gradient_accumulation_steps={2 * _accumulation(profile)}",
            *change,
        ]
    return Finding(
        "out of memory risk",
        f"the peak was {peak / 2**30:.2f} of {total / 2**30:.2f} GiB",
        f"the peak is at least {MEMORY:.0%} of the memory of this machine's device",
        {"peak": float(peak), "available": float(total)},
        change,
    )


def memory_bytes() -> int:
    """Memory of the GPU where there is one, else of the machine."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)


def modes(cells: dict[str, dict[str, Any]], profile: Profile) -> list[Finding]:
    """What became of the two modes: lost thinking, thinking where none was asked for, replies that do not end, forgetting."""
    found = []
    for mode in (mode for mode in MODES if mode in cells["base"]):
        base, tuned = cells["base"][mode], cells["tuned"][mode]
        n = sum(b["n"] for b in tuned["benchmarks"].values())
        before, after = (wilson(cell["mode_fidelity"] * n, n) for cell in (base, tuned))
        numbers = {"base": base["mode_fidelity"], "tuned": tuned["mode_fidelity"], "n": float(n)}
        spoken = f"mode fidelity ({mode}) went from {numbers['base']:.3f} to {numbers['tuned']:.3f} (n = {n})"
        if after[1] < before[0]:
            name = "lost thinking" if mode == "thinking" else "does not stop thinking"
            change = ["data.empty_think=masked"] if profile.data.empty_think != "masked" else []
            share = profile.mix.chat_share
            if mode == "non_thinking" and share is not None:
                change.append(f"mix.chat_share={round(min(0.9, share + 0.25), 2):g}")
            change.append(f"training.learning_rate={profile.training.learning_rate / 2:g}")
            rule = "the 95 % interval of the tuned model's mode fidelity lies below the base's"
            found.append(Finding(name, spoken, rule, numbers, change))
        if tuned["truncated"] > CUT:
            limit = getattr(profile.evaluation.sampling, mode).max_new_tokens
            found.append(
                Finding(
                    "replies are cut",
                    f"{tuned['truncated']:.1%} of the {mode} replies reached the limit of {limit} tokens, and count as wrong",
                    f"more than {CUT:.0%} of the replies of a mode are cut by the token limit",
                    {"truncated": tuned["truncated"], "limit": float(limit)},
                    [f"evaluation.sampling.{mode}.max_new_tokens={2 * limit}"],
                )
            )
        for benchmark, result in tuned["benchmarks"].items():
            first = base["benchmarks"][benchmark]
            if result["ci95"][1] < first["ci95"][0]:
                found.append(_forgetting(mode, benchmark, first, result, profile))
    return found


def _forgetting(mode: str, benchmark: str, base: dict[str, Any], tuned: dict[str, Any], profile: Profile) -> Finding:
    share = profile.mix.chat_share
    change = [f"mix.chat_share={round(min(0.9, share + 0.25), 2):g}"] if share is not None else []
    change.append(f"training.learning_rate={profile.training.learning_rate / 2:g}")
    low, high = tuned["ci95"]
    return Finding(
        "forgetting",
        f"{benchmark} ({mode}) went from {base['score']:.3f} to {tuned['score']:.3f} [{low:.3f}, {high:.3f}] (n = {tuned['n']})",
        "the 95 % interval of the tuned model's score lies below the base's",
        {"base": base["score"], "tuned": tuned["score"], "n": float(tuned["n"])},
        change,
    )


def diagnose(run: Path) -> dict[str, Any]:
    """Judge a run.

    Returns:
        ``{"findings": [...], "not_judged": [sentences]}``; no finding and nothing left unjudged means healthy.

    Raises:
        UserError: no run directory, training not finished, or a damaged file.
    """
    if not (run / "run.json").exists() or not (run / "profile.yaml").exists():
        raise UserError(f"{run} is no run directory (it has no run.json and profile.yaml).")
    if not (run / "training.json").exists():
        raise UserError(f"{run} holds no finished training; run that first: python -m pipeline train --resume.")
    profile = parse(Profile, read_yaml(run / "profile.yaml"), str(run / "profile.yaml"))
    if profile.mix.chat_share is None and (run / "recipe.yaml").exists():
        recipe = parse(Recipe, read_yaml(run / "recipe.yaml"), str(run / "recipe.yaml"))
        profile.mix.chat_share = sum(source.share for source in recipe.sources if source.kind == "chat")
    training = read_json(run / "training.json")
    if not isinstance(training, dict) or not {"loss", "eval_loss", "peak_memory_bytes"} <= training.keys():
        raise UserError(f"{run / 'training.json'} is damaged: it lacks loss, eval_loss or peak_memory_bytes.")
    findings: list[Finding | None] = []
    not_judged = []
    if len(training["loss"]) < FEWEST_POINTS:
        not_judged.append(
            f"the course of the loss: {len(training['loss'])} values were logged, {FEWEST_POINTS} are needed; lower "
            "training.logging_steps"
        )
    else:
        for judge in (diverged, oscillating, too_slow):
            findings.append(judge(training["loss"], profile))
    if len(training["eval_loss"]) < 3:
        not_judged.append("over-fitting: fewer than 3 validations; lower training.eval_steps")
    findings += [over_fitting(training, profile), out_of_memory(training, profile)]
    stored = {which: finished_cells(run / "evaluation" / which) for which in ("base", "tuned")}
    if all(stored.values()):
        cells: dict[str, dict[str, Any]] = {
            which: {mode: record["cell"] for mode, record in (own or {}).items()} for which, own in stored.items()
        }
        findings += modes(cells, profile)
    else:
        not_judged.append("the modes: base or tuned model is not evaluated; run: python -m pipeline evaluate")
    return {"findings": [asdict(f) for f in findings if f], "not_judged": not_judged}


def text(result: dict[str, Any]) -> str:
    """The findings for a terminal."""
    lines = []
    for finding in result["findings"]:
        lines += [f"{finding['name']}: {finding['evidence']}", f"  rule: {finding['rule']}"]
        lines += [f"  try: --set {change}" for change in finding["change"]]
    lines += [f"not judged: {what}" for what in result["not_judged"]]
    return "\n".join(lines or ["healthy: nothing was found"])
