"""Rows from where they live: local files and folders, Hugging Face, ModelScope, generators, the base's own answers.

In: a ``SourceSettings`` (or a ``BenchmarkSettings``). Out: an iterator of ``SourceRow``: the row with the file and line
it came from, or why that place holds no row. Everything is streamed, so memory does not grow with the file.

Readable are JSONL (also ``.ndjson`` and ``.jsonlines``), JSON, CSV and TSV, each also as ``.gz``, ``.zst``, ``.bz2``, ``.xz`` or
in a ``.zip``, Parquet, Arrow (as ``datasets`` saves it), and folders of them.
Two kinds of trouble are told apart: a *row* that is broken comes out as a ``SourceRow`` without data and reading goes on;
a *file or hub* that cannot be read at all is a ``UserError``. Blank lines of JSONL and CSV are neither rows nor errors.
"""

from __future__ import annotations

import errno
import functools
import itertools
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError, nearest
from pipeline.core.files import file_sha256, fingerprint
from pipeline.core.hubs import HUBS, hub_url, require_hub
from pipeline.data import corpora
from pipeline.data.rows.files import DataFile, Place, SourceRow, first_line, local_files
from pipeline.data.rows.json_files import rows_of_json, rows_of_jsonl
from pipeline.data.rows.table_files import read_arrow, read_csv, read_parquet
from pipeline.settings import BenchmarkSettings, SourceSettings

Source = SourceSettings | BenchmarkSettings

# --- local files -------------------------------------------------------------------------------------------------------

_READERS = {
    ".jsonl": rows_of_jsonl,
    ".jsonlines": rows_of_jsonl,
    ".ndjson": rows_of_jsonl,
    ".json": rows_of_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def _read_file(file: DataFile, place: Place) -> Iterator[SourceRow]:
    place.line = 0
    try:
        yield from _READERS[file.kind](file, place)
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{file.path} cannot be read after line {place.line}: {error.strerror}.") from error
        raise UserError(
            f"{file.path} is cut short or damaged: after line {place.line} it cannot be decompressed "
            f"({first_line(error)}). Download it again."
        ) from error


# --- hubs ---------------------------------------------------------------------------------------------------------------

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNRESOLVED = os.urandom(16).hex()  # differs from process to process, so that a key made of it is never met again


def _require_hub(source: SourceSettings) -> None:
    what = f"source {source.name!r} ({source.path})"
    if not _HUB_NAME.fullmatch(source.path) or ".." in source.path:
        raise UserError(
            f"{what}: {source.path!r} is no name of a dataset (owner/name). For a file or folder: source: local."
        )
    if Path(source.path).exists():  # both libraries would read that instead of the hub, past the recipe's root
        raise UserError(
            f"{what} should come from {HUBS[source.source]}, but a folder of that name lies in the working directory, which "
            "would be read instead. Use source: local for it, or start elsewhere."
        )
    require_hub(
        source.source,
        what,
        "download it on another machine, put the files here, and give their folder as path with source: local.",
    )


def _library_errors() -> tuple[type[Exception], ...]:
    """What the hubs' libraries raise. Only called when they are loaded anyway."""
    import httpx
    import pyarrow
    from datasets.exceptions import DatasetsError

    plain = (OSError, ValueError, RuntimeError, TypeError, LookupError, ImportError)
    return (*plain, DatasetsError, httpx.HTTPError, pyarrow.ArrowException)


def _hub_problem(source: SourceSettings, error: BaseException) -> UserError:
    """Say which of name, subset, split and revision a library's complaint is about, with its own list of known ones."""
    what = f"source {source.name!r} ({source.path} from {HUBS[source.source]})"
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    names = {type(e).__name__ for e in chain}
    text = " ".join(str(error).split())[:400] or type(error).__name__
    known = match[1] if (match := re.search(r"(\[[^\]]*\])", text)) else "see the dataset's page"
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in chain):
        return UserError(f"{what}: the disk is full. Free some space, point HF_HOME elsewhere, or set streaming: true.")
    if "GatedRepoError" in names or "is a gated dataset" in text:
        return UserError(f"{what} is gated: accept its terms on its page, then log in (hf auth login), and try again.")
    if "RevisionNotFoundError" in names or text.startswith("Revision "):
        return UserError(
            f"{what} has no revision {source.revision!r}. Give a commit, branch or tag that its page lists."
        )
    if "BuilderConfig" in text and "not found" in text:
        return UserError(f"{what} has no subset {source.subset!r}. Known: {known}.")
    if "Config name is missing" in text:
        return UserError(f"{what} has several subsets; name one as subset. Known: {known}.")
    if "Unknown split" in text or "Bad split" in text:
        return UserError(f"{what} has no split {source.split!r}. Known: {known}.")
    if names & {"DatasetNotFoundError", "RepositoryNotFoundError", "NotExistError"}:
        return UserError(
            f"{what} does not exist there, or is private. Check the name; log in if it is yours (hf auth login)."
        )
    return UserError(f"{what} cannot be read: {type(error).__name__}: {text}")


def _require_not_redirected(source: SourceSettings) -> None:
    """After streaming from ModelScope, its library leaves ``datasets`` redirected there for the rest of the process."""
    from huggingface_hub import HfApi

    if HfApi.dataset_info.__module__.startswith("modelscope"):
        raise UserError(
            f"source {source.name!r}: after a ModelScope source with streaming: true the libraries ask ModelScope for every "
            "dataset. Set streaming: false there."
        )


@functools.cache
def _commit(path: str, revision: str | None, endpoint: str) -> str:
    """The commit that a Hugging Face revision stands for now; one question a process, so that key and rows agree."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint).dataset_info(path, revision=revision, timeout=10).sha or ""


def _hub_commit(source: SourceSettings) -> str:
    if _COMMIT.fullmatch(source.revision or ""):
        return str(source.revision)
    _require_hub(source)
    _require_not_redirected(source)
    try:
        return _commit(source.path, source.revision, hub_url(source.source))
    except _library_errors() as error:
        raise _hub_problem(source, error) from error


def _load_hub(source: SourceSettings) -> Any:
    if source.source == "huggingface":
        from datasets import load_dataset

        _require_not_redirected(source)
        return load_dataset(
            source.path,
            name=source.subset,
            split=source.split,
            revision=_hub_commit(source),
            streaming=source.streaming,
        )
    from modelscope.msdatasets import MsDataset

    loaded = MsDataset.load(
        source.path,
        subset_name=source.subset,
        split=source.split,
        version=source.revision or "master",
        use_streaming=source.streaming,
    )
    return loaded.to_hf_dataset() if hasattr(loaded, "to_hf_dataset") else loaded


def _read_hub(source: SourceSettings, skip: int) -> Iterator[SourceRow]:
    _require_hub(source)
    try:
        rows = _load_hub(source)
        rows = rows.skip(skip) if hasattr(rows, "skip") else itertools.islice(rows, skip, None)
        for number, row in enumerate(rows, skip + 1):
            yield SourceRow(source.path, number, dict(row))
    except _library_errors() as error:
        raise _hub_problem(source, error) from error


# --- what others call ---------------------------------------------------------------------------------------------------


def benchmark_source(settings: BenchmarkSettings) -> SourceSettings:
    """A benchmark as a source, so that its rows are read as any others are."""
    shared = {key: getattr(settings, key) for key in ("name", "source", "path", "subset", "split", "revision")}
    return SourceSettings.model_validate({**shared, "kind": "other", "share": 0})


def question_source(source: SourceSettings) -> SourceSettings:
    """The questions of a ``source: base`` as a source of their own."""
    assert source.questions is not None
    return SourceSettings.model_validate(
        {
            **source.questions.model_dump(exclude={"conditions"}),
            "name": f"{source.name}.questions",
            "kind": "other",
            "share": 0,
        }
    )


def _answers_of_base(source: SourceSettings) -> DataFile:
    if source.rows_at is None:
        raise UserError(
            f"source {source.name!r}: the base has not been asked yet. Use `run`, `data build` or `rehearse`, or "
            "pipeline.data.rehearsal.rehearse.rehearsed on the recipe."
        )
    return DataFile(source.rows_at, source.rows_at.name, ".jsonl", "")


def _as_source(source: Source) -> SourceSettings:
    return benchmark_source(source) if isinstance(source, BenchmarkSettings) else source


def _generator(source: SourceSettings) -> tuple[Any, int]:
    if source.path not in corpora.GENERATORS:
        known = ", ".join(corpora.GENERATORS)
        hint = nearest(source.path, corpora.GENERATORS)
        raise UserError(f"source {source.name!r}: unknown generator {source.path!r}.{hint} Known: {known}.")
    if source.rows is None:
        raise UserError(f"source {source.name!r}: a generated source needs rows: how many to generate.")
    return corpora.GENERATORS[source.path], source.rows


def require_source(source: Source, root: str | None = None) -> None:
    """Check that a source can be read at all: files are there and readable, the hub answers, the generator exists.

    Args:
        root: folder that local paths must stay in, links followed; None: any path.

    Raises:
        UserError: it cannot; within five seconds.
    """
    source = _as_source(source)
    if source.source == "generated":
        _generator(source)
    elif source.source == "base":
        require_source(question_source(source), root)
    elif source.source == "local":
        local_files(source.path, root)
    else:
        _require_hub(source)


def _all_rows(source: SourceSettings, root: str | None, skip: int) -> Iterator[SourceRow]:
    if source.source == "generated":
        generate, rows = _generator(source)
        for number, row in enumerate(itertools.islice(generate(rows, source.seed), skip, None), skip + 1):
            yield SourceRow(source.path, number, row)
    elif source.source == "local":
        place = Place(skip)
        for file in local_files(source.path, root):
            yield from _read_file(file, place)
    elif source.source == "base":
        yield from _read_file(_answers_of_base(source), Place(skip))
    else:
        yield from _read_hub(source, skip)


def read_rows(source: Source, root: str | None = None, skip: int = 0) -> Iterator[SourceRow]:
    """The rows of a source in order, good and bad, at most ``source.rows`` of them together.

    Args:
        root: folder that local paths must stay in, links followed; None: any path.
        skip: so many rows at the start are left out unparsed; they count towards ``source.rows``.

    Raises:
        UserError: unknown generator; missing, unreadable, damaged or empty file; hub out of reach; no row at all.
    """
    source = _as_source(source)
    stop = None if source.rows is None else max(0, source.rows - skip)
    empty = True
    for row in itertools.islice(_all_rows(source, root, skip), stop):
        empty = False
        yield row
    if empty and not skip:
        raise UserError(f"source {source.name!r} ({source.path}) holds no rows. Give it another file, or take it out.")


def _code_of_corpora() -> list[str]:
    """Hashes of the files that write generated rows, by name."""
    folder = Path(str(corpora.__file__)).parent
    return [file_sha256(path) for path in sorted(folder.glob("*.py"))]


def content_key(source: Source, root: str | None = None) -> str:
    """A hash (hex) of what ``read_rows`` will yield: by content and by the files' relative names; not by path.

    A Hugging Face dataset counts by the commit that its revision stands for now, asked once a process; ``read_rows``
    reads that commit. ModelScope tells none: there a revision is taken at its word, and without one the key differs from
    process to process, so that nothing stale is ever taken for it.

    Raises:
        UserError: as ``require_source``; or the hub does not know the dataset or revision.
    """
    source = _as_source(source)
    identity: dict[str, Any] = {"source": source.source, "rows": source.rows}
    if source.source == "generated":
        identity |= {"generator": source.path, "seed": source.seed, "code": _code_of_corpora()}
    elif source.source in ("local", "base"):
        files = local_files(source.path, root) if source.source == "local" else [_answers_of_base(source)]
        try:
            identity |= {"files": [[file.name, file_sha256(file.path)] for file in files]}  # the account names them
        except OSError as error:
            raise UserError(f"{error.filename or source.path} cannot be read: {error.strerror}.") from error
    else:
        commit = _hub_commit(source) if source.source == "huggingface" else source.revision or _UNRESOLVED
        identity |= {"path": source.path, "subset": source.subset, "split": source.split, "commit": commit}
    return fingerprint(identity)
