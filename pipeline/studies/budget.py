"""How long a model has to think: accuracy, fidelity and loops by thinking budget, on the same items.

In: a finished run and budgets in tokens. Out: ``budget.json`` and ``budget.png``, with the reply without a budget and the
non-thinking mode beside them. Up to the token where its budget is spent, a reply is the same in every row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, fingerprint, make_folder, read_json, read_jsonl, write_json
from pipeline.core.modes import Mode
from pipeline.core.statistics import wilson
from pipeline.evaluation.cells import Cell
from pipeline.evaluation.report.pictures import COLOURS
from pipeline.model.load import load_tokenizer
from pipeline.model.thinking_budget import Budget
from pipeline.run import open_run
from pipeline.settings import EvaluationSettings
from pipeline.studies.results import BudgetRow, BudgetStudy, CountedRate

BUDGETS = (0, 8, 16, 32, 64)
UNLIMITED = "unlimited"
NGRAM, ROUNDS = 8, 3  # a run of so many words that comes so often: a reply in a loop
Shown = Literal["accuracy", "mode_fidelity", "stopped", "loops"]
RATES: tuple[Shown, ...] = ("accuracy", "mode_fidelity", "stopped", "loops")


def loops(text: str) -> bool:
    """Whether some run of ``NGRAM`` words comes ``ROUNDS`` times or more; a number or a sign counts as a word."""
    words = re.findall(r"\w+|[^\w\s]", text)
    grams = Counter(tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1))
    return max(grams.values(), default=0) >= ROUNDS


def require_budgets(values: Sequence[int], closing: Budget, max_new_tokens: int) -> list[int]:
    """The budgets in order.

    Raises:
        UserError: one is negative, stands there twice, or leaves no room for an answer.
    """
    if not values or min(values) < 0 or len(set(values)) < len(values):
        raise UserError(
            f"Budgets are tokens from 0 on, each given once; found {', '.join(map(str, values)) or 'none'}."
        )
    Budget(closing.tokenizer, max(values)).require_room(max_new_tokens)
    return sorted(values)


def run_budget(
    run_folder: Path,
    folder: Path,
    budgets: Sequence[int] = BUDGETS,
    which: Literal["base", "tuned"] = "tuned",
    limit: int | None = None,
) -> BudgetStudy:
    """Evaluate the run's model under each budget; finished rows are read, not repeated.

    Args:
        limit: items a benchmark; None: as in the run.

    Raises:
        UserError: no run directory, no adapter, a bad budget, a model that does not think, or the folder holds another study.
    """
    from pipeline.evaluation.evaluate import evaluate_engine

    run = open_run(run_folder)
    table = run.profile.evaluation.model_copy(deep=True, update={"thinking_budget": None})
    table.limit = limit or table.limit
    closing = Budget(load_tokenizer(run.profile.model), 0)
    values = require_budgets(budgets, closing, table.sampling.thinking.max_new_tokens)
    make_folder(folder)
    identity = fingerprint([run.identity(which), table.model_dump()])
    record = folder / "study.json"
    if record.exists() and read_json(record)["identity"] != identity:
        raise UserError(f"{folder} holds a study of another model or other items. Choose another --output-dir.")
    write_json(record, {"identity": identity})
    rows: list[BudgetRow] = []
    direct: BudgetRow | None = None
    with run.engine(which) as engine:

        def measured(name: str, settings: EvaluationSettings, mode: Mode) -> BudgetRow:
            cells = evaluate_engine(
                engine, f"{run.identity(which)}-budget", settings, folder / name, (mode,), progress=False
            )
            return _row(cells[mode], folder / name / mode, settings.thinking_budget, closing.text)

        for value in (*values, None):
            settings = table.model_copy(update={"thinking_budget": value})
            rows.append(measured(UNLIMITED if value is None else str(value), settings, "thinking"))
        if "non_thinking" in closing.style.modes:
            direct = measured("direct", table, "non_thinking")
    result: BudgetStudy = {
        "model": which,
        "closing": closing.text,
        "closing_tokens": len(closing.closing),
        "max_new_tokens": table.sampling.thinking.max_new_tokens,
        "rows": rows,
        "direct": direct,
    }
    write_json(folder / "budget.json", result)
    draw_budget(result, folder / "budget.png")
    return result


def _row(cell: Cell, folder: Path, budget: int | None, closing: str) -> BudgetRow:
    replies = read_jsonl(folder / "predictions.jsonl")
    n = len(replies)

    def counted(rate: float) -> CountedRate:
        return {"value": rate, "ci95": wilson(rate * n, n), "n": n}

    return {
        "budget": budget,
        "accuracy": counted(sum(row["score"] for row in replies) / n),
        "mode_fidelity": counted(cell["mode_fidelity"]),
        "stopped": counted(sum(budget is not None and closing in row["reply"] for row in replies) / n),
        "truncated": counted(cell["truncated"]),
        "loops": counted(sum(row["truncated"] and loops(row["reply"]) for row in replies) / n),
        "mean_reasoning_tokens": cell["mean_reasoning_tokens"],
        "mean_answer_tokens": cell["mean_answer_tokens"],
        "benchmarks": cell["benchmarks"],
    }


def budget_text(result: BudgetStudy) -> str:
    """``budget.json`` for a terminal."""
    names = ("accuracy", "mode_fidelity", "stopped", "truncated", "loops")
    heads = ["budget", *(name.replace("_", " ") for name in names), "reasoning tokens", "answer tokens"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in (*result["rows"], *([result["direct"]] if result["direct"] else [])):
        limited = UNLIMITED if row["budget"] is None else str(row["budget"])
        name = "non-thinking" if row is result["direct"] else limited
        shown = ["{:.3f} [{:.3f}, {:.3f}]".format(row[n]["value"], *row[n]["ci95"]) for n in names]  # type: ignore[literal-required]
        tokens = [f"{row['mean_reasoning_tokens']:.1f}", f"{row['mean_answer_tokens']:.1f}"]
        lines.append(f"| {' | '.join([name, *shown, *tokens])} |")
    n = result["rows"][0]["accuracy"]["n"]
    lines += [
        "",
        f"{result['model']} model, n = {n} a row; {result['closing_tokens']} tokens close a thought, within the limit of "
        f"{result['max_new_tokens']}: {result['closing'].strip()!r}",
    ]
    return "\n".join(lines)


def draw_budget(result: BudgetStudy, path: Path) -> None:
    """Rates by budget; dashed, the accuracy of the non-thinking mode."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    rows = result["rows"]
    places = range(len(rows))
    for name, colour in zip(RATES, COLOURS, strict=False):
        axes.plot(places, [row[name]["value"] for row in rows], "o-", color=colour, label=name.replace("_", " "))
        low, high = zip(*(row[name]["ci95"] for row in rows), strict=True)
        axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    if result["direct"] is not None:
        axes.axhline(
            result["direct"]["accuracy"]["value"],
            color=COLOURS[0],
            linestyle="--",
            label="accuracy, non-thinking",
        )
    labels = [UNLIMITED if row["budget"] is None else str(row["budget"]) for row in rows]
    axes.set_xticks(places, labels)
    axes.set(xlabel="thinking budget, tokens", ylabel="part of the replies", ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
