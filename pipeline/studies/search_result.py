"""What a search optimises, and what came out of it: ``search.json``, its table and its picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from pipeline.core.files import atomic_path, write_json
from pipeline.core.statistics import Z95, interval95, ranks
from pipeline.studies.arms import SweepCell
from pipeline.studies.curve import BASE, KNOWN, TUNED, kept_part, load_scores, mode_fidelity
from pipeline.studies.results import Agreement, BaseRow, BestTrial, SearchResult, Trial

if TYPE_CHECKING:
    import optuna
    from pydantic import BaseModel


OBJECTIVE = (
    "The objective is the balance: the smaller of what was learnt and what was kept. Learnt: of each benchmark that the base "
    "solves less than half of the time, the rise above the base as a part of the room above it (1 − base), in the mode where "
    "that part is largest; the mean over these benchmarks (over all of them if the base knows every one). Kept: the tuned "
    "score as a part of the base's, at most 1, of the benchmark and mode that was kept worst among those that the base knew. "
    "The untouched base has balance 0."
)
CONSTRAINT = "A trial may be taken only if its mode fidelity is at least {floor} in each mode. {pruning}"
PRUNING = "A trial is pruned when its validation loss is above the median of the trials before it at the same step."


# --- the objective ------------------------------------------------------------------------------------------------------


class MeasuredTrial(TypedDict):
    """What a finished trial reached; kept as attributes of Optuna's trial."""

    balance: float
    learnt: float
    kept: float
    score: float  # mean over all benchmarks and modes
    mode_fidelity: list[float]
    ci95: list[float]  # of the balance, over items
    base: BaseRow


def trial_balance(names: Sequence[str], base: np.ndarray, tuned: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[..., 3]: learnt part, kept part and balance of one tuned model against its base; see ``OBJECTIVE``.

    Unlike the balance of a sweep it needs no other trial to compare with, so that it does not change as trials are added.

    Args:
        names: "mode/benchmark".
        base, tuned: mean scores, [..., names].
        known: which of them the base knew, [names].
    """
    counted = ~known if not known.all() else np.ones_like(known)
    room = 1 - base
    rise = np.where(room > 0, np.clip((tuned - base) / np.where(room > 0, room, 1), 0, 1), 0)
    benchmarks = np.array([name.partition("/")[2] for name in names])
    each = [rise[..., counted & (benchmarks == b)].max(axis=-1) for b in dict.fromkeys(benchmarks[counted])]
    learnt, kept = np.mean(each, axis=0), kept_part(base, tuned, known).min(axis=-1)
    return np.stack([learnt, kept, np.minimum(learnt, kept)], axis=-1)


def measure_trial(cell: SweepCell) -> MeasuredTrial:
    """Balance, its parts and its interval from the predictions of a finished run, and the base measured in the same way."""
    score, faithful = load_scores([cell.value], [cell])
    names, means, draws = list(score.items), score.means[..., 0], score.drawn_means[..., 0]
    known = means[BASE] >= KNOWN
    learnt, kept, both = trial_balance(names, means[BASE], means[TUNED], known).tolist()
    fidelity = mode_fidelity(faithful).means[..., 0].tolist()
    return {
        "balance": both,
        "learnt": learnt,
        "kept": kept,
        "score": float(means[TUNED].mean()),
        "mode_fidelity": fidelity[TUNED],
        "ci95": interval95(trial_balance(names, draws[BASE], draws[TUNED], known)[:, 2]),
        "base": {"balance": 0.0, "score": float(means[BASE].mean()), "mode_fidelity": fidelity[BASE]},
    }


# --- what came out ------------------------------------------------------------------------------------------------------


def summarise_search(
    study: optuna.Study, space: Mapping[str, BaseModel], floor: float, folder: Path, prune: bool = True
) -> SearchResult:
    """Write ``search.json`` and ``search.png``."""
    trials = [t for t in study.get_trials(deepcopy=False) if "duplicate_of" not in t.user_attrs]
    entries = [_trial_entry(trial, floor) for trial in trials]
    finished = [(e, t.user_attrs) for e, t in zip(entries, trials, strict=True) if e["state"] == "complete"]
    feasible = [(e, attributes) for e, attributes in finished if e["feasible"]]
    best: BestTrial | None = None
    if feasible:
        entry, attributes = max(feasible, key=lambda pair: pair[0]["balance"] or 0)
        best = {**entry, "ci95": attributes["ci95"]}
    result: SearchResult = {
        "study": study.study_name,
        "objective": f"{OBJECTIVE} {CONSTRAINT.format(floor=floor, pruning=PRUNING if prune else 'No trial is pruned.')}",
        "space": {name: dimension.model_dump() for name, dimension in space.items()},
        "base": finished[0][1]["base"] if finished else None,
        "trials": entries,
        "best": best,
        "loss_agreement": loss_agreement(entries),
        "importance": _importance(study, [e for e, _ in finished]),
    }
    write_json(folder / "search.json", result)
    draw_search(result, folder / "search.png")
    return result


def _trial_entry(trial: optuna.trial.FrozenTrial, floor: float) -> Trial:
    got = trial.user_attrs.get
    fidelity: list[float] | None = got("mode_fidelity")
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "params": trial.params,
        "balance": trial.value if trial.state.name == "COMPLETE" else None,
        "learnt": got("learnt"),
        "kept": got("kept"),
        "score": got("score"),
        "mode_fidelity": fidelity,
        "seconds": got("seconds"),
        "folder": got("folder"),
        "reason": got("reason"),
        "validation_loss": {str(step): -value for step, value in trial.intermediate_values.items()},
        "feasible": fidelity is not None and min(fidelity) >= floor,
    }


def _importance(study: optuna.Study, finished: Sequence[Trial]) -> dict[str, float]:
    """Each setting's share of the variance of the balance, by fANOVA; empty for few trials, or where all are alike."""
    import optuna

    if len(finished) < 8 or len({trial["balance"] for trial in finished}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def loss_agreement(trials: Sequence[Trial]) -> Agreement:
    """Spearman's rank correlation of the last validation loss, negated, with the balance, over finished trials.

    Trials are pruned by that loss, so this says how far pruning serves the objective. A pruned trial has no balance and does
    not count. The interval is Fisher's with the standard error of Bonett and Wright (2000); a perfect order of so few trials
    counts as half a step from it, since otherwise the interval would have no width.
    """
    pairs = [
        (-list(t["validation_loss"].values())[-1], t["balance"])
        for t in trials
        if t["state"] == "complete" and t["validation_loss"] and t.get("balance") is not None
    ]
    n = len(pairs)
    if n < 4 or any(len(set(column)) < 2 for column in zip(*pairs, strict=True)):
        return {"spearman": None, "n": n, "ci95": None}
    rho = float(np.corrcoef([ranks(np.array(column)) for column in zip(*pairs, strict=True)])[0, 1])
    limit = 1 - 6 / (n**3 - n)
    inner = min(max(rho, -limit), limit)
    half = Z95 * math.sqrt((1 + inner**2 / 2) / (n - 3))
    return {"spearman": rho, "n": n, "ci95": [math.tanh(math.atanh(inner) + side * half) for side in (-1, 1)]}


# --- showing ------------------------------------------------------------------------------------------------------------

Aim = Literal["balance", "score"]
BEFORE = (
    "This study was made when the objective was the mean score over all benchmarks and modes, by which a trial that learns "
    "nothing can win. It has to be run again."
)


def search_table(result: SearchResult) -> str:
    """``search.json`` for a terminal: the base, then one line a trial, the best first."""
    names = list(result["space"])
    aim = _aim(result)
    heads = ["trial", *(name.rpartition(".")[2] for name in names), "balance", "learnt", "kept", "mean score"]
    heads += ["fidelity (think, direct)", "outcome"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    base = result.get("base")
    if base:
        shown = ["base", *("" for _ in names), _rate(base["balance"]), _rate(0), _rate(1), _rate(base["score"])]
        lines.append(f"| {' | '.join([*shown, _fidelity(base['mode_fidelity']), 'not tuned'])} |")
    for t in sorted(result["trials"], key=lambda t: (not t["feasible"], -(t.get(aim) or 0), t["number"])):
        parts = [_rate(part) for part in (t.get("balance"), t.get("learnt"), t.get("kept"), t["score"])]
        params = [_number(t["params"].get(name)) for name in names]
        cells = [str(t["number"]), *params, *parts, _fidelity(t["mode_fidelity"]), _outcome(t)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_conclusions(result, aim)])


def _aim(result: SearchResult) -> Aim:
    return "balance" if "base" in result else "score"  # documents of before hold no base and no balance


def _conclusions(result: SearchResult, aim: Aim) -> list[str]:
    lines = []
    best = result["best"]
    if best:
        low, high = best["ci95"]
        reached = f"{aim} {best[aim]:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(f"best: trial {best['number']}, {reached} (95 % over items)")
        lines.append("  " + " ".join(f"--set {name}={value}" for name, value in best["params"].items()))
        if not best[aim]:
            lines.append(
                "no trial learnt anything that it kept: the base is as good; train longer, or change the ranges"
            )
    else:
        lines.append("no trial keeps both modes; nothing can be recommended")
    if result["importance"]:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in result["importance"].items())
        lines.append(f"importance (fANOVA): {shares}")
    agreement = result.get("loss_agreement")
    if agreement:
        lines.append(_agreement_text(agreement))
    lines.append(result["objective"])
    return lines if "base" in result else [*lines, BEFORE]


def _agreement_text(agreement: Agreement) -> str:
    rho, ends = agreement["spearman"], agreement["ci95"]
    if rho is None or ends is None:
        return (
            f"{agreement['n']} finished trial(s) do not show whether a lower validation loss goes with a higher balance"
        )
    return (
        f"rank correlation of a lower validation loss with a higher balance: {rho:+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}] "
        f"(Spearman, {agreement['n']} finished trials; pruned ones have no balance)"
    )


def _outcome(trial: Trial) -> str:
    outcome = trial["state"]
    if outcome == "complete":
        outcome = "feasible" if trial["feasible"] else "below the floor"
    losses = list(trial["validation_loss"].items())
    if outcome == "pruned" and losses:
        outcome += f" at step {losses[-1][0]}, validation loss {losses[-1][1]:.3f}"
    return f"{outcome}: {trial['reason']}" if trial["reason"] else outcome


def _fidelity(rates: Sequence[float] | None) -> str:
    return ", ".join(f"{rate:.3f}" for rate in rates or [])


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw_search(result: SearchResult, path: Path) -> None:
    """Balance (of documents of before: mean score) and lowest mode fidelity of each finished trial."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    aim = _aim(result)
    done = [t for t in result["trials"] if t.get(aim) is not None]
    for feasible, colour, label in ((True, "#0072b2", aim), (False, "#d55e00", f"{aim}, below the floor")):
        own = [t for t in done if t["feasible"] == feasible]
        axes.plot([t["number"] for t in own], [t.get(aim) or 0.0 for t in own], "o", color=colour, label=label)
    lowest = [min(t["mode_fidelity"] or [0.0]) for t in done]
    axes.plot([t["number"] for t in done], lowest, "x", color="#999999", label="fidelity")
    axes.set(xlabel="trial", ylabel="balance; part of the replies", ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
