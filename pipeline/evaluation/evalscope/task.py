"""One benchmark in one mode through EvalScope: asked in batches, resumed from what is stored, read back as rows.

In: a ``Benchmark``, a mode, and what answers. Out: one row a reply, with EvalScope's score and our judgement of its form.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import Bar
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.modes import THINK, Mode, Tags
from pipeline.data.conversations import Message
from pipeline.evaluation.evalscope.contain import cut_torn_lines
from pipeline.evaluation.evalscope.items import Benchmark
from pipeline.model.form import judge
from pipeline.settings import EvaluationSettings

if TYPE_CHECKING:
    from pipeline.model.engines.base import Engine

TaskRow = dict[str, Any]

log = logging.getLogger(__name__)


def work_dir_of(folder: Path, identity: dict[str, Any]) -> Path:
    """EvalScope's folder; emptied first where it holds results of something else, which EvalScope would not notice."""
    # EvalScope refuses its own stored replies after a move, as it compares absolute paths.
    wanted = {**identity, "folder": str(folder.resolve())}
    note = folder / "identity.json"
    if not note.exists() or read_json(note) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(note, wanted)
    return folder


def run_benchmark(
    benchmark: Benchmark,
    mode: Mode,
    model_id: str,
    settings: EvaluationSettings,
    work_dir: Path,
    engine: Engine,
    progress: bool,
) -> list[TaskRow]:
    """Run one benchmark in one mode; what ``work_dir`` holds already is not asked again.

    EvalScope works in a thread of its own and stores every reply when it has it, the replies are made here.
    """
    from evalscope.config import TaskConfig
    from evalscope.run import run_task

    from pipeline.evaluation.evalscope.bridge import BatchingModel

    sampling = getattr(settings.sampling, mode)
    total = sum(benchmark.sizes.values())
    name = re.sub(r"[^\w.-]+", "_", f"{model_id}-{mode}")
    cut_torn_lines(work_dir)
    stored = len(_stored(work_dir, "predictions", name, benchmark))
    window = 2 * engine.window if engine.one_by_one else engine.window  # so that there is always one that waits
    model = BatchingModel(name, window, total - stored)
    config = TaskConfig(
        **benchmark.task,
        model=model,
        model_id=name,
        eval_batch_size=window,  # its threads, each with one request open
        generation_config={
            **sampling.model_dump(exclude={"max_new_tokens", "min_p"}),
            "max_tokens": sampling.max_new_tokens,
            "extra_body": {"chat_template_kwargs": {"enable_thinking": mode == "thinking"}},
        },
        work_dir=str(work_dir.resolve()),
        no_timestamp=True,
        use_cache=str(work_dir.resolve()) if (work_dir / "configs" / "task_config.yaml").exists() else None,
        collect_perf=False,
    )
    what = f"{benchmark.name} (thinking)" if mode == "thinking" else f"{benchmark.name} (non-thinking)"
    bar = Bar(what, total, stored) if progress else None
    with bar or contextlib.nullcontext(), ThreadPoolExecutor(1, thread_name_prefix="evalscope") as executor:
        task = executor.submit(run_task, config)
        try:
            model.serve(engine, settings, task, bar.update if bar else None)
        finally:
            model.close()
    report = task.result()[benchmark.name]
    return _rows(benchmark, mode, name, work_dir, report.score)


def _stored(work_dir: Path, kind: str, name: str, benchmark: Benchmark) -> dict[tuple[str, int], Any]:
    """Rows that EvalScope wrote, by (subset, index); the last of several."""
    rows = {}
    for subset, size in benchmark.sizes.items():
        path = work_dir / kind / name / f"{benchmark.name}_{subset}.jsonl"
        if path.exists():
            for line in path.read_text(encoding="utf-8").split("\n"):  # a reply may hold other line separators
                row = json.loads(line) if line else {"index": size}
                if row["index"] < size:
                    rows[subset, int(row["index"])] = row
    return rows


def _rows(benchmark: Benchmark, mode: Mode, name: str, work_dir: Path, score: float | None) -> list[TaskRow]:
    """One row a reply: what EvalScope stored of it, its form, and its score.

    Raises:
        UserError: EvalScope left items out of its score.
    """
    predictions = _stored(work_dir, "predictions", name, benchmark)
    reviews = _stored(work_dir, "reviews", name, benchmark)
    rows = []
    for subset, index in ((subset, index) for subset, size in benchmark.sizes.items() for index in range(size)):
        prediction, review = predictions.get((subset, index)), reviews.get((subset, index))
        if not prediction or not review or not review["sample_score"]["score"]["value"]:
            continue
        scored = review["sample_score"]["score"]
        output = prediction["model_output"]["metadata"]
        prompt = [m for m in prediction["messages"] if m["source"] != "generate"]
        rows.append(
            {
                "benchmark": benchmark.name,
                "subset": subset,
                "index": index,
                "messages": [_message(message) for message in prompt],
                "reply": output["reply"],
                **{f"{part}_tokens": output[f"{part}_tokens"] for part in ("prompt", "output", "reasoning", "answer")},
                "truncated": output["truncated"],
                **judge(output["reply"], output["truncated"], mode, Tags(*output.get("tags", THINK))),
                "score": float(scored["value"][scored.get("main_score_name") or next(iter(scored["value"]))]),
                "reference": (review["target"] or [""])[0],
            }
        )
    total = sum(benchmark.sizes.values())
    if len(rows) < total:
        shutil.rmtree(work_dir / "reviews", ignore_errors=True)  # the replies are kept, the next run scores them again
        raise UserError(
            f"EvalScope scored {len(rows)} of {total} items of {benchmark.name} ({mode}); a score over those alone "
            f"would be wrong. {work_dir / 'logs' / 'eval_log.log'} says why; running again keeps the replies."
        )
    mean = sum(row["score"] for row in rows) / len(rows)
    if score is not None and abs(mean - score) > 1e-3:
        log.warning("%s: EvalScope reports %.4f, the mean of its item scores is %.4f.", benchmark.name, score, mean)
    return rows


def _message(message: dict[str, Any]) -> Message:
    content = message["content"]
    text = content if isinstance(content, str) else "\n".join(p["text"] for p in content if p["type"] == "text")
    return {"role": message["role"], "content": text}
