"""The items of a benchmark: found, checked, and laid out as EvalScope looks for them.

In: a benchmark's name and its settings. Out: a ``Benchmark``, whose items EvalScope has read once, so that a mistake in them
comes before the first reply; and an identity of those items, by content where the content is at hand.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError, nearest
from pipeline.core.files import file_sha256, fingerprint, write_jsonl
from pipeline.core.hubs import require_hub
from pipeline.data import corpora
from pipeline.data.conversations import Message
from pipeline.evaluation.evalscope.contain import data_dir
from pipeline.settings import EvaluationSettings

EMBEDDED = {f"embedded_{name}": name for name in corpora.TEST_SETS}  # EvalScope's name → that of ``corpora.test_items``
EMBEDDED_ITEMS = 1_000  # of an embedded benchmark, where the settings give no limit
_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


@dataclass
class Benchmark:
    """A benchmark whose items have been read once, so that data errors come before the first reply."""

    name: str
    task: dict[str, Any]  # for EvalScope's TaskConfig: datasets, dataset_args, dataset_hub, limit
    sizes: dict[str, int]  # items of each subset, as EvalScope will ask them
    prompts: list[list[Message]]  # of all items: the conversations that EvalScope will send


def embedded_items(name: str, settings: EvaluationSettings) -> list[dict[str, Any]]:
    return corpora.test_items(EMBEDDED[name], settings.limit or EMBEDDED_ITEMS, settings.seed)


def data_identity(name: str, settings: EvaluationSettings) -> Any:
    """What decides the items of a benchmark, by content where the content is at hand."""
    arguments = dict(settings.dataset_args.get(name, {}))
    local = arguments.pop("local_path", None)
    content: Any = None
    if name in EMBEDDED:
        content = fingerprint(embedded_items(name, settings))
    elif local is not None:
        folder = local_folder(name, local)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        content = [[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files]
    return [arguments, content]


def local_folder(name: str, local: Any) -> Path:
    folder = Path(str(local)).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(
            f"evaluation.dataset_args.{name}.local_path: {folder} {what}. "
            "Give the folder that holds the benchmark's files."
        )
    return folder


def prepare(name: str, settings: EvaluationSettings, output_dir: Path) -> Benchmark:
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

    folder = data_dir(output_dir) / name
    shutil.rmtree(folder, ignore_errors=True)
    if name in EMBEDDED:
        write_jsonl(folder / "test.jsonl", embedded_items(name, settings))
        arguments["local_path"] = str(folder.resolve())
    elif local is not None:
        arguments |= private_copy(name, local_folder(name, local), adapter, arguments, folder)
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
    return Benchmark(name, task, sizes, [_messages(sample.input) for items in loaded.values() for sample in items])


def _messages(prompt: Any) -> list[Message]:
    """A sample's input, in text; what else it holds is refused when it is asked."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": message.role, "content": message.text} for message in prompt]


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


# --- a user's files -----------------------------------------------------------------------------------------------------


def _split_file(name: str, folder: Path, split: str) -> Path | None:
    """The file of a split that lies flat in the folder, under one of the names in use for it."""
    stems = [f"{name}_{split}", split]
    if name == "ifeval":
        stems += ["ifeval_input_data", "input_data"]  # as Google publishes it
    paths = (folder / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def private_copy(name: str, folder: Path, adapter: Any, arguments: dict[str, Any], target: Path) -> dict[str, Any]:
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
