"""Measure a model in both modes with EvalScope: accuracy, and whether it keeps the form of its mode.

In: a loaded model and the evaluation settings. Out, for each mode, a cell of the report: the score of every benchmark
with its interval, and the form of the replies. On disk, below ``output_dir/<mode>/``:

* ``predictions.jsonl``: one row a reply, raw text and counts, score and reference;
* ``cell.json``: the cell and the fingerprint of what it measures; written last, so its presence says "finished";
* ``evalscope/<benchmark>/``: EvalScope's own working folder, with its report and its log.

A finished cell is taken as it is; an unfinished one goes on from the replies that EvalScope has stored.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.metadata
import json
import logging
import math
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import Bar
from pipeline.core.errors import UserError, nearest
from pipeline.core.files import file_sha256, fingerprint, read_json, write_json, write_jsonl
from pipeline.core.hubs import require_hub
from pipeline.core.modes import MODES, Mode
from pipeline.core.statistics import wilson
from pipeline.data import corpora
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Message
from pipeline.evaluation.form import judge
from pipeline.model.decode import Reply
from pipeline.model.decoders import decoders
from pipeline.settings import EvaluationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ReplyTo = Callable[[list[list[Message]], Mode], list[Reply]]
Row = dict[str, Any]
Cell = dict[str, Any]

EMBEDDED = {f"embedded_{name}": name for name in corpora.TEST_SETS}
EMBEDDED_ITEMS = 1_000  # of an embedded benchmark, where the settings give no limit
AHEAD = 4  # batches whose prompts are collected before decoding, to be sorted by length together
_FORM = ("opened", "closed", "leaked", "truncated")

log = logging.getLogger(__name__)


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
        One cell a mode; see ``evaluate_replies``.

    Raises:
        UserError: see ``evaluate_replies`` and ``generate``.
    """
    chat_format = ChatFormat(tokenizer)

    with decoders(model, tokenizer, settings.workers) as decoding:

        def reply_to(conversations: list[list[Message]], mode: Mode) -> list[Reply]:
            prompts = [chat_format.prompt_ids(messages, mode) for messages in conversations]
            sampling = getattr(settings.sampling, mode)
            return decoding.generate(prompts, sampling, settings.batch_size, settings.seed)

        return evaluate_replies(
            reply_to, model_id, settings, output_dir, modes, progress, at_once=AHEAD * settings.batch_size
        )


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

    ``evaluate_model`` is this with a model behind ``reply_to``; a server, or a file of stored replies, fits as well. It
    is called in the thread of the caller, with at most ``at_once`` conversations (None: ``settings.batch_size``). What has
    been answered is stored after each call.

    Returns:
        ``{mode: {"benchmarks": {name: {"score", "n", "ci95": [lo, hi]}}, "n", "mode_fidelity", "mode_fidelity_ci95",
        "opened", "closed", "leaked", "truncated", "mean_reasoning_tokens", "mean_answer_tokens"}}``. Rates are 0..1
        over all ``n`` replies of the mode, weighted equally; intervals are 95 %.

    Raises:
        UserError: an unknown benchmark or key in ``dataset_args``, data that cannot be found or read, a hub that cannot
            be reached, or a benchmark of which EvalScope scored fewer items than it asked.
    """
    repeated = {name for name in settings.benchmarks if settings.benchmarks.count(name) > 1}
    if repeated:
        raise UserError(f"evaluation.benchmarks names {', '.join(sorted(repeated))} more than once.")
    data = {name: _data_identity(name, settings) for name in settings.benchmarks}
    identities = {mode: {n: _identity(n, mode, model_id, settings, data[n]) for n in data} for mode in modes}
    cells: dict[str, Cell] = {}
    for mode in modes:
        stored = _stored_cell(output_dir / mode, fingerprint(identities[mode]))
        if stored is not None:
            cells[mode] = stored
    missing = [mode for mode in modes if mode not in cells]
    if missing:
        with _contained(output_dir, settings.benchmarks) as notes:
            benchmarks = [_prepare(name, settings, output_dir) for name in settings.benchmarks]
            for mode in missing:
                rows = []
                for benchmark in benchmarks:
                    folder = output_dir / mode / "evalscope" / benchmark.name
                    work_dir = _work_dir(folder, identities[mode][benchmark.name])
                    window = at_once or settings.batch_size
                    rows += _run(benchmark, mode, model_id, settings, work_dir, reply_to, progress, window)
                cells[mode] = _cell(rows)
                write_jsonl(output_dir / mode / "predictions.jsonl", rows)
                record = {
                    "fingerprint": fingerprint(identities[mode]),
                    "model_id": model_id,
                    "mode": mode,
                    "notes": notes,
                    "cell": cells[mode],
                }
                write_json(output_dir / mode / "cell.json", record)
    return {mode: cells[mode] for mode in modes}


# --- what has been done already ---------------------------------------------------------------------------------------


def _data_identity(name: str, settings: EvaluationSettings) -> Any:
    """What decides the items of a benchmark, by content where the content is at hand."""
    arguments = dict(settings.dataset_args.get(name, {}))
    local = arguments.pop("local_path", None)
    content: Any = None
    if name in EMBEDDED:
        content = fingerprint(_embedded_items(name, settings))
    elif local is not None:
        folder = _local_folder(name, local)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        content = [[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files]
    return [arguments, content]


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
    }


def _stored_cell(folder: Path, identity: str) -> Cell | None:
    if not (folder / "cell.json").exists() or not (folder / "predictions.jsonl").exists():
        return None
    record = read_json(folder / "cell.json")
    return record["cell"] if record["fingerprint"] == identity else None


def _work_dir(folder: Path, identity: dict[str, Any]) -> Path:
    """EvalScope's folder; emptied first where it holds results of something else, which EvalScope would not notice."""
    # EvalScope refuses its own stored replies after a move, as it compares absolute paths.
    wanted = {**identity, "folder": str(folder.resolve())}
    note = folder / "identity.json"
    if not note.exists() or read_json(note) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(note, wanted)
    return folder


# --- the data of a benchmark ------------------------------------------------------------------------------------------


@dataclass
class _Benchmark:
    """A benchmark whose items have been read once, so that data errors come before the first reply."""

    name: str
    task: dict[str, Any]  # for EvalScope's TaskConfig: datasets, dataset_args, dataset_hub, limit
    sizes: dict[str, int]  # items of each subset, as EvalScope will ask them


def _embedded_items(name: str, settings: EvaluationSettings) -> list[dict[str, Any]]:
    return corpora.test_items(EMBEDDED[name], settings.limit or EMBEDDED_ITEMS, settings.seed)


def _local_folder(name: str, local: Any) -> Path:
    folder = Path(str(local)).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(
            f"evaluation.dataset_args.{name}.local_path: {folder} {what}. "
            "Give the folder that holds the benchmark's files."
        )
    return folder


def _prepare(name: str, settings: EvaluationSettings, output_dir: Path) -> _Benchmark:
    """Find and read the items of a benchmark.

    Raises:
        UserError: what is wrong with its name, its arguments or its data.
    """
    from datasets.exceptions import DatasetsError
    from evalscope.api.registry import get_benchmark
    from evalscope.config import TaskConfig

    _check_name(name)
    arguments = dict(settings.dataset_args.get(name, {}))
    task: dict[str, Any] = {"datasets": [name], "limit": settings.limit, "seed": settings.seed}
    if "dataset_hub" in arguments:
        task["dataset_hub"] = arguments.pop("dataset_hub")
    local = arguments.pop("local_path", None)
    _check_arguments(name, arguments)
    where = f"evaluation.dataset_args.{name}"
    try:
        adapter = get_benchmark(name, TaskConfig(**task, dataset_args={name: arguments}))
        adapter.validate_judge_strategy()
    except (ValueError, KeyError, ImportError) as error:
        raise UserError(f"{where}: EvalScope cannot set {name} up: {error}") from error

    folder = _data_dir(output_dir) / name
    shutil.rmtree(folder, ignore_errors=True)
    if name in EMBEDDED:
        write_jsonl(folder / "test.jsonl", _embedded_items(name, settings))
        arguments["local_path"] = str(folder.resolve())
    elif local is not None:
        arguments |= _private_copy(name, _local_folder(name, local), adapter, arguments, folder)
        arguments["local_path"] = str(folder.resolve())
    else:
        _check_hub(name, adapter)
    subsets = len(arguments.get("subset_list") or adapter.subset_list)
    if settings.limit is not None and subsets > 1:
        task["limit"] = math.ceil(settings.limit / subsets)  # EvalScope counts a limit for each subset
    task["dataset_args"] = {name: arguments}
    try:
        loaded = get_benchmark(name, TaskConfig(**task)).load_dataset()
    except (DatasetsError, OSError, ValueError, LookupError, TypeError, AssertionError, ImportError) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise UserError(
            f"The items of {name} could not be read from {local or 'the hub'}: {type(error).__name__}: {cause}"
        ) from error
    sizes = {subset: len(items) for subset, items in loaded.items() if len(items)}
    if not sizes:
        raise UserError(f"{name}: no item was found in {local or 'the dataset'}; see {where}.subset_list.")
    return _Benchmark(name, task, sizes)


def _check_name(name: str) -> None:
    import evalscope.benchmarks
    from evalscope.api.registry import BENCHMARK_REGISTRY

    # The names without importing every benchmark: EvalScope's index of its own, and what is registered already.
    index = Path(str(evalscope.benchmarks.__file__)).with_name("_index.json")
    known = {*json.loads(index.read_text(encoding="utf-8")), *dict.keys(BENCHMARK_REGISTRY)}
    if name not in known:
        raise UserError(
            f"evaluation.benchmarks: there is no benchmark {name!r}.{nearest(name, sorted(known))} "
            f"Embedded ones: {', '.join(EMBEDDED)}; EvalScope has {len(known) - len(EMBEDDED)} more, such as gsm8k."
        )


def _check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """EvalScope passes over a key that it does not know, so a misspelt one would do nothing at all."""
    from evalscope.api.benchmark import BenchmarkMeta

    known = [*BenchmarkMeta.__dataclass_fields__, "local_path", "dataset_hub"]
    for key in arguments:
        if key not in known:
            raise UserError(f"evaluation.dataset_args.{name}: unknown key {key!r}.{nearest(key, known)}")


_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


def _split_file(name: str, folder: Path, split: str) -> Path | None:
    """The file of a split that lies flat in the folder, under one of the names in use for it."""
    stems = [f"{name}_{split}", split]
    if name == "ifeval":
        stems += ["ifeval_input_data", "input_data"]  # as Google publishes it
    paths = (folder / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _private_copy(name: str, folder: Path, adapter: Any, arguments: dict[str, Any], target: Path) -> dict[str, Any]:
    """Lay out links to a user's files as EvalScope looks for them; the user's folder itself is never touched.

    EvalScope deletes a ``dataset_infos.json`` in the folder that it is given, hence the copy.

    Returns:
        Arguments that the layout needs: ``subset_list`` for files that lie flat.

    Raises:
        UserError: the folder holds no file of the split that is scored, or none for the few-shot examples.
    """
    splits = [adapter.eval_split]
    if adapter.few_shot_num > 0 and adapter.few_shot_mode == "auto":
        splits.append(adapter.train_split)
    found = {split: _split_file(name, folder, split) for split in splits if split}
    target.mkdir(parents=True)
    if found.get(adapter.eval_split) is None:
        entries = [path for path in folder.iterdir() if path.name != "dataset_infos.json"]
        if not any(path.suffix in _SUFFIXES for path in folder.rglob("*")):
            raise UserError(
                f"evaluation.dataset_args.{name}.local_path: {folder} has no {adapter.eval_split}.jsonl "
                f"(nor {name}_{adapter.eval_split}.jsonl, nor .parquet or .csv), and no other data file."
            )
        for entry in entries:
            _link(entry, target / entry.name)
        return {}
    for split, path in found.items():
        if path is None:
            raise UserError(
                f"evaluation.dataset_args.{name}: {name} shows {adapter.few_shot_num} examples from its split "
                f"{split!r}, but {folder} has no {split}.jsonl. Add the file, or set few_shot_num: 0."
            )
        _link(path, target / f"{split}{path.suffix}")
    flat = not adapter.reformat_subset and not adapter.split_as_subset and len(adapter.subset_list) == 1
    return {"subset_list": ["default"]} if flat and "subset_list" not in arguments else {}


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    except OSError:  # a file system or an account without symbolic links
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def _check_hub(name: str, adapter: Any) -> None:
    """See that the hub of a benchmark can be reached, or that EvalScope has its data in store.

    Raises:
        UserError: neither; within five seconds, where the libraries themselves would retry for half a minute.
    """
    from evalscope.constants import DEFAULT_EVALSCOPE_CACHE_DIR
    from evalscope.utils.io_utils import safe_filename

    stored = Path(DEFAULT_EVALSCOPE_CACHE_DIR).expanduser() / "datasets"
    if any(path.is_dir() for path in stored.glob(f"{safe_filename(adapter.dataset_id)}-*")):
        return
    require_hub(
        str(adapter.dataset_hub),
        f"{name} ({adapter.dataset_id})",
        f"give a folder with its files as evaluation.dataset_args.{name}.local_path, or leave {name} out of "
        "evaluation.benchmarks.",
    )


# --- running EvalScope ------------------------------------------------------------------------------------------------


def _data_dir(output_dir: Path) -> Path:
    return output_dir / ".evaluation_data"


@contextmanager
def _replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        setattr(thing, name, before)


@contextmanager
def _random_states() -> Iterator[None]:
    """Give the global random states back as they were: EvalScope seeds all of them."""
    import numpy
    import torch

    cudnn = torch.backends.cudnn
    python, array, cpu = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    flags = cudnn.deterministic, cudnn.benchmark
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        cudnn.deterministic, cudnn.benchmark = flags


@contextmanager
def _contained(output_dir: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """Everything that EvalScope changes outside its working folder, kept or given back.

    Root log handlers, random states, its console output (its log file stays), progress bars, and the copies that
    ``datasets`` makes of local files, which would pile up in the user's cache.

    Yields:
        What a reader of the scores should know about how they came about.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    data = _data_dir(output_dir)
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        stack.enter_context(_random_states())
        root.handlers = []  # importing EvalScope closes whatever handlers the root logger has
        try:
            import datasets
            import evalscope.api.dataset.utils as records
            import evalscope.report as reports
            import evalscope.utils.tqdm_utils.tqdm_logging as bars

            import pipeline.evaluation.evalscope.bridge  # noqa: F401  (registers the embedded benchmarks)
        finally:
            root.handlers = handlers
            root.setLevel(level)
        logger = logging.getLogger("evalscope")
        console = logger.handlers[:]
        logger.handlers = []
        stack.callback(_close_log, logger, console)
        silent = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        quiet_bar = functools.partialmethod(bars.TqdmLogging.__init__, file=silent)
        stack.enter_context(_replaced(bars.TqdmLogging, "__init__", quiet_bar))
        stack.enter_context(_replaced(records, "tqdm", functools.partial(records.tqdm, file=silent)))
        stack.enter_context(_replaced(bars, "logging_redirect_tqdm", lambda loggers=None: contextlib.nullcontext()))
        # EvalScope draws an HTML report after each benchmark (report.html is ours), and collects garbage, for which Python
        # walks through everything that the libraries hold. Together they took a third of the time of a small model.
        stack.enter_context(_replaced(reports, "gen_html_report_file", lambda *args, **options: "none"))
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        stack.enter_context(_replaced(datasets.config, "HF_DATASETS_CACHE", data.resolve() / "cache"))
        yield stack.enter_context(_sentence_model()) if "ifeval" in names else []


def _close_log(logger: logging.Logger, handlers: list[logging.Handler]) -> None:
    for handler in logger.handlers:
        handler.close()
    logger.handlers = handlers


def _run(
    benchmark: _Benchmark,
    mode: Mode,
    model_id: str,
    settings: EvaluationSettings,
    work_dir: Path,
    reply_to: ReplyTo,
    progress: bool,
    window: int,
) -> list[Row]:
    """Run one benchmark in one mode; what ``work_dir`` holds already is not asked again.

    EvalScope works in a thread of its own, the replies are made here.
    """
    from evalscope.config import TaskConfig
    from evalscope.run import run_task

    from pipeline.evaluation.evalscope.bridge import BatchingModel

    sampling = getattr(settings.sampling, mode)
    total = sum(benchmark.sizes.values())
    name = re.sub(r"[^\w.-]+", "_", f"{model_id}-{mode}")
    _cut_torn_lines(work_dir)
    stored = len(_stored(work_dir, "predictions", name, benchmark))
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
    bar = Bar(f"{benchmark.name} ({mode.replace('_', '-')})", total, stored) if progress else None
    with bar or contextlib.nullcontext(), ThreadPoolExecutor(1, thread_name_prefix="evalscope") as executor:
        task = executor.submit(run_task, config)
        try:
            model.serve(reply_to, task, bar.update if bar else None)
        finally:
            model.close()
    report = task.result()[benchmark.name]
    return _rows(benchmark, mode, name, work_dir, report.score)


def _cut_torn_lines(work_dir: Path) -> None:
    """Drop the half-written last line that a kill leaves; EvalScope would append its next row to it and lose both."""
    for path in [*work_dir.glob("predictions/*/*.jsonl"), *work_dir.glob("reviews/*/*.jsonl")]:
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)


def _stored(work_dir: Path, kind: str, name: str, benchmark: _Benchmark) -> dict[tuple[str, int], Any]:
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


def _rows(benchmark: _Benchmark, mode: Mode, name: str, work_dir: Path, score: float | None) -> list[Row]:
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
                **judge(output["reply"], output["truncated"], mode),
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


# --- cells ------------------------------------------------------------------------------------------------------------


def interval(scores: Sequence[float], z: float = 1.959964) -> list[float]:
    """95 % interval of a mean: Wilson's where every score is 0 or 1, else the normal approximation.

    Scores that all lie in 0..1 keep their interval in 0..1.
    """
    n, total = len(scores), sum(scores)
    if all(score in (0.0, 1.0) for score in scores):
        return wilson(total, n, z)
    mean = total / n
    half = z * math.sqrt(sum((score - mean) ** 2 for score in scores) / max(n - 1, 1) / n)
    inside = all(0 <= score <= 1 for score in scores)
    return [max(0.0, mean - half), min(1.0, mean + half)] if inside else [mean - half, mean + half]


def _cell(rows: list[Row]) -> Cell:
    by_name: dict[str, list[float]] = {}
    for row in rows:
        by_name.setdefault(row["benchmark"], []).append(row["score"])
    faithful = sum(row["faithful"] for row in rows)
    return {
        "benchmarks": {
            name: {"score": sum(scores) / len(scores), "n": len(scores), "ci95": interval(scores)}
            for name, scores in by_name.items()
        },
        "n": len(rows),
        "mode_fidelity": faithful / len(rows),
        "mode_fidelity_ci95": wilson(faithful, len(rows)),
        **{key: sum(row[key] for row in rows) / len(rows) for key in _FORM},
        "mean_reasoning_tokens": sum(row["reasoning_tokens"] for row in rows) / len(rows),
        "mean_answer_tokens": sum(row["answer_tokens"] for row in rows) / len(rows),
    }


# --- IFEval's sentences -----------------------------------------------------------------------------------------------

# IFEval counts sentences with nltk's model "punkt_tab", a download of its own. Without it EvalScope drops every item
# that counts sentences or words in capitals, and the score of the rest still looks complete. Where it is missing, nltk
# is given a Punkt model that knows these abbreviations and has learnt nothing else: a sentence ends at . ! or ?
# followed by a blank, unless the full stop belongs to one of them.
ABBREVIATIONS = """
    mr mrs ms dr prof sr jr st gen col capt lt sgt rev hon messrs gov sen rep pres inc ltd co corp bros dept univ assn
    est nos vol vols ed eds pp fig figs sec ch approx etc vs cf al ca e.g i.e viz a.m p.m a.d b.c u.s u.k u.s.a d.c ph.d
    m.d b.a m.a jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri ave blvd rd mt ft oz lb lbs hr hrs
"""


def _punkt_installed() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


@contextmanager
def _sentence_model() -> Iterator[list[str]]:
    """Make sentences countable for IFEval, and its guess of a text's language repeatable.

    Yields:
        A note, where nltk lacks its own model.
    """
    import langdetect
    import nltk
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    with _replaced(langdetect.DetectorFactory, "seed", 0), contextlib.ExitStack() as stack:
        notes = []
        if not _punkt_installed():
            notes.append("IFEval: nltk's punkt_tab is not installed; sentences were split by a list of abbreviations.")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nltk_data_")))
            nltk.data.path.append(str(folder))
            stack.callback(nltk.data.path.remove, str(folder))
            english = folder
            for part in ("tokenizers", "punkt_tab", "english"):  # nltk reads from folders of the user alone
                english = english / part
                english.mkdir(mode=0o700)
            parameters = PunktParameters()
            parameters.abbrev_types = set(ABBREVIATIONS.split())
            save_punkt_params(parameters, str(english))
        yield notes
