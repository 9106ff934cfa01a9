"""Ask an engine the benchmark's questions in both modes, greedily, and score the replies as the evaluation does.

In: an ``ExportEngine`` and the evaluation settings of the run. Out: ``Measured``: prompts, replies with log-probabilities, scores
and form of each mode. EvalScope scores, so accuracy and fidelity mean here what they mean in the report.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.console import say
from pipeline.core.files import read_jsonl
from pipeline.core.modes import MODES, Mode
from pipeline.data.conversations import Message
from pipeline.evaluation.evaluate import evaluate_replies
from pipeline.export.engines import Answer, ExportEngine
from pipeline.model.decode import Reply
from pipeline.settings import EvaluationSettings

PROMPTS_A_MODE = 200  # in each mode


@dataclass(frozen=True)
class Item:
    """One question, as an engine asked and answered it."""

    messages: list[Message]
    prompt: str
    prompt_ids: list[int]
    answer: Answer
    score: float
    faithful: bool


@dataclass(frozen=True)
class Measured:
    """All questions of both modes, always in the same order, and the end tokens of the engine."""

    items: dict[Mode, list[Item]]
    ends: list[int]


def greedy(settings: EvaluationSettings, prompts: int) -> EvaluationSettings:
    """The settings of the run with about ``prompts`` questions a mode, shared out among its benchmarks, decoded greedily."""
    plain = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    table = settings.sampling.model_copy(
        update={mode: getattr(settings.sampling, mode).model_copy(update=plain) for mode in MODES}
    )
    limit = math.ceil(prompts / len(settings.benchmarks))
    return settings.model_copy(update={"limit": limit, "sampling": table})


def measure(engine: ExportEngine, name: str, settings: EvaluationSettings) -> Measured:
    """Ask and score.

    Args:
        name: of the target, for what is said meanwhile. settings: from ``greedy``.

    Raises:
        UserError: see ``evaluate_replies``; what keeps the engine from answering.
    """
    asked: dict[tuple[str, str], list[tuple[str, list[int], Answer]]] = {}

    def reply_to(conversations: Sequence[Sequence[Message]], mode: Mode) -> list[Reply]:
        answers = engine.answers(conversations, mode, getattr(settings.sampling, mode))
        for messages, answer in zip(conversations, answers, strict=True):
            asked.setdefault((mode, _key(messages)), []).append((*engine.prompt(messages, mode), answer))
        return [answer.reply for answer in answers]

    say(f"checking {name}: {settings.limit} questions of each of {len(settings.benchmarks)} benchmarks, in both modes")
    items: dict[Mode, list[Item]] = {}
    with tempfile.TemporaryDirectory(prefix="parity") as folder:
        evaluate_replies(reply_to, name, settings, Path(folder), progress=False, at_once=settings.limit)
        for mode in MODES:
            rows = read_jsonl(Path(folder) / mode / "predictions.jsonl")
            items[mode] = [_item(row, asked[mode, _key(row["messages"])]) for row in rows]
    return Measured(items, engine.ends())


def _key(messages: Sequence[Message]) -> str:
    return json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)


def _item(row: dict[str, Any], asked: list[tuple[str, list[int], Answer]]) -> Item:
    prompt, ids, answer = asked[0] if len(asked) == 1 else asked.pop(0)
    return Item(row["messages"], prompt, ids, answer, float(row["score"]), bool(row["faithful"]))
