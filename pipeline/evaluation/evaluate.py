"""Measure a model in both modes with EvalScope: accuracy, and whether it keeps the form of its mode.

In: a loaded model and the evaluation settings. Out, for each mode, a cell of the report: the score of every benchmark
with its interval, and the form of the replies. On disk, below ``output_dir/<mode>/``:

* ``predictions.jsonl``: one row a reply, raw text and counts, score and reference;
* ``cell.json``: the cell and the fingerprint of what it measures; written last, so its presence says "finished";
* ``evalscope/<benchmark>/``: EvalScope's own working folder, with its report and its log.

A finished cell is taken as it is; an unfinished one goes on from the replies that EvalScope has stored: every reply as soon as
it has ended, so a kill loses those that were being written.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint, read_json, write_json, write_jsonl
from pipeline.core.modes import MODES, Mode
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Message
from pipeline.evaluation.cells import Cell, StoredCell, summarised, write_modes
from pipeline.evaluation.evalscope.contain import contained
from pipeline.evaluation.evalscope.items import data_identity, prepare
from pipeline.evaluation.evalscope.task import run_benchmark, work_dir_of
from pipeline.model.decode import Reply
from pipeline.model.engines.base import Arrived, Engine, Messages
from pipeline.model.engines.local import local_engine
from pipeline.model.thinking_style import modes_of, thinking_style
from pipeline.settings import EvaluationSettings, Sampling, budget_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ReplyTo = Callable[[list[list[Message]], Mode], list[Reply]]


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model_id: str,
    settings: EvaluationSettings,
    output_dir: Path,
    modes: Sequence[Mode] = MODES,
    progress: bool = True,
) -> dict[str, Cell]:
    """Evaluate a loaded model; the prompts are those that training used (``ChatFormat.prompt_ids``).

    Args:
        model_id: names the weights, e.g. the base and a hash of the adapter. Together with the settings it decides
            whether results on disk are those of this model; the weights themselves are not looked at.

    Returns:
        One cell for each of ``modes`` that the model has; see ``evaluate_engine``.

    Raises:
        UserError: see ``evaluate_engine`` and ``generate``.
    """
    modes = modes_of(tokenizer, modes)
    write_modes(output_dir, thinking_style(tokenizer).modes)
    with local_engine(model, tokenizer, ChatFormat(tokenizer).prompt_ids, settings) as engine:
        return evaluate_engine(engine, model_id, settings, output_dir, modes, progress)


@dataclass(frozen=True)
class _Function:
    """A function as an engine."""

    reply_to: ReplyTo
    window: int
    one_by_one: bool = False
    identity: dict[str, Any] = field(default_factory=dict)

    def require_room(self, conversations: Sequence[Messages], mode: Mode, sampling: Sampling) -> None:
        """Only the function knows."""

    def replies(
        self,
        conversations: Sequence[Messages],
        mode: Mode,
        sampling: Sampling,
        seed: int,
        arrived: Arrived | None = None,
        thinking_budget: int | None = None,
    ) -> list[Reply]:
        if thinking_budget is not None:
            raise UserError("evaluation.thinking_budget is for an engine; a function of replies decides by itself.")
        return self.reply_to([[dict(message) for message in messages] for messages in conversations], mode)


def evaluate_replies(
    reply_to: ReplyTo,
    model_id: str,
    settings: EvaluationSettings,
    output_dir: Path,
    modes: Sequence[Mode] = MODES,
    progress: bool = True,
    at_once: int | None = None,
) -> dict[str, Cell]:
    """Evaluate whatever answers: ``reply_to(conversations, mode)`` returns one ``Reply`` a conversation, in order.

    It is called in the thread of the caller, with at most ``at_once`` conversations (None: ``settings.batch_size``). What has
    been answered is stored after each call. Returns and raises as ``evaluate_engine``.
    """
    engine = _Function(reply_to, at_once or settings.batch_size)
    return evaluate_engine(engine, model_id, settings, output_dir, modes, progress)


def evaluate_engine(
    engine: Engine,
    model_id: str,
    settings: EvaluationSettings,
    output_dir: Path,
    modes: Sequence[Mode] = MODES,
    progress: bool = True,
) -> dict[str, Cell]:
    """Evaluate what an engine answers.

    Returns:
        ``{mode: {"benchmarks": {name: {"score", "n", "ci95": [lo, hi]}}, "n", "mode_fidelity", "mode_fidelity_ci95",
        "opened", "closed", "leaked", "truncated", "mean_reasoning_tokens", "mean_answer_tokens"}}``. Rates are 0..1
        over all ``n`` replies of the mode, weighted equally; intervals are 95 %.

    Raises:
        UserError: an unknown benchmark or key in ``dataset_args``, data that cannot be found or read, a hub that cannot
            be reached, a prompt for which there is no room (before the first reply), what keeps the engine from answering, or a
            benchmark of which EvalScope scored fewer items than it asked.
    """
    repeated = {name for name in settings.benchmarks if settings.benchmarks.count(name) > 1}
    if repeated:
        raise UserError(f"evaluation.benchmarks names {', '.join(sorted(repeated))} more than once.")
    data = {name: data_identity(name, settings) for name in settings.benchmarks}
    identities = {
        mode: {n: _identity(n, mode, model_id, settings, data[n]) | engine.identity for n in data} for mode in modes
    }
    cells: dict[str, Cell] = {}
    for mode in modes:
        stored = _stored_cell(output_dir / mode, fingerprint(identities[mode]))
        if stored is not None:
            cells[mode] = stored
    missing = [mode for mode in modes if mode not in cells]
    if missing:
        with contained(output_dir, settings.benchmarks) as notes:
            benchmarks = [prepare(name, settings, output_dir) for name in settings.benchmarks]
            prompts = [prompt for benchmark in benchmarks for prompt in benchmark.prompts]
            for mode in missing:
                engine.require_room(prompts, mode, getattr(settings.sampling, mode))
            for mode in missing:
                rows = []
                for benchmark in benchmarks:
                    folder = output_dir / mode / "evalscope" / benchmark.name
                    work_dir = work_dir_of(folder, identities[mode][benchmark.name])
                    rows += run_benchmark(benchmark, mode, model_id, settings, work_dir, engine, progress)
                cells[mode] = summarised(rows)
                write_jsonl(output_dir / mode / "predictions.jsonl", rows)
                record: StoredCell = {
                    "fingerprint": fingerprint(identities[mode]),
                    "model_id": model_id,
                    "mode": mode,
                    "notes": notes,
                    "cell": cells[mode],
                }
                write_json(output_dir / mode / "cell.json", record)
    return {mode: cells[mode] for mode in modes}


# --- what has been done already ---------------------------------------------------------------------------------------


def _identity(name: str, mode: Mode, model_id: str, settings: EvaluationSettings, data: Any) -> dict[str, Any]:
    """Everything on which the replies and scores of a benchmark depend. The batch size is not among it."""
    return {
        "benchmark": name,
        "mode": mode,
        "model_id": model_id,
        "limit": settings.limit,
        "seed": settings.seed,
        "sampling": getattr(settings.sampling, mode).model_dump(),
        "data": data,
        "evalscope": importlib.metadata.version("evalscope"),
        **({} if budget_of(settings, mode) is None else {"thinking_budget": settings.thinking_budget}),
    }


def _stored_cell(folder: Path, identity: str) -> Cell | None:
    if not (folder / "cell.json").exists() or not (folder / "predictions.jsonl").exists():
        return None
    record: StoredCell = read_json(folder / "cell.json")
    return record["cell"] if record["fingerprint"] == identity else None
