"""Execute the notebooks with papermill, in batch, as a workshop leader or CI would.

In: a profile and an output directory. Out: executed notebooks and HTML pages in ``DIR/notebooks``, the run that they share in
``DIR/main`` (that of the main job, where it is there already), ``DIR/course.json`` with what was done, and ``DIR/index.html``,
the same with pictures, written anew after each notebook. Notebooks in another language than English lie in a folder of its name,
here and there; they share the run. Notebooks that do not need each other run at the same time. It stops at the first one that
fails and says which cell, with its error, on one screen. Called again, it goes on with what has not succeeded yet.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import duration, say
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, file_sha256, fingerprint, read_json, write_json, write_text
from pipeline.core.place import ROOT
from pipeline.course.index import write_index

if TYPE_CHECKING:
    from papermill.exceptions import PapermillExecutionError


NOTEBOOKS = ROOT / "notebooks"
ENGLISH = "en"
# What has to be done before a notebook: the mix of 03 is trained on in 04, evaluated in 05, and built upon from there. 12 looks
# back on all of them.
NEEDS = {"04": {"03"}, "05": {"04"}, "06": {"05"}, "07": {"05"}, "08": {"05"}, "09": {"05"}, "10": {"05"}}
NEEDS["12"] = {"00", "01", "02", "02b", "03", "03b", "04", "05", "06", "06b", "07", "08", "09", "10", "11"}
RECORD = "course.json"  # what was finished, with which parameters
ERROR_LINES = 18  # of source and of error, so that a failure fits on one screen


def number_of(name: str) -> str:
    """The number that a notebook's name begins with: ``03b`` of ``03b_by_hand.ipynb``."""
    return name.partition("_")[0]


def folder_of(language: str) -> Path:
    """Where the notebooks in a language lie.

    Raises:
        UserError: there are none.
    """
    folder = NOTEBOOKS if language == ENGLISH else NOTEBOOKS / language
    if not folder.is_dir():
        raise UserError(f"There are no notebooks in the language {language!r}; there are en and zh.")
    return folder


def course_notebooks(only: list[str] | None = None, language: str = ENGLISH) -> list[Path]:
    """The course's notebooks in order, or those whose names begin with one of ``only``.

    Args:
        language: ``en`` or ``zh``.

    Raises:
        UserError: nothing matches.
    """
    found = sorted(folder_of(language).glob("[0-9][0-9]*_*.ipynb"))
    numbers = {number_of(n.name) for n in found}

    def asked(name: str, wish: str) -> bool:
        return number_of(name) == wish if wish in numbers else name.startswith(wish)

    chosen = [n for n in found if only is None or any(asked(n.name, wish) for wish in only)]
    if not chosen:
        raise UserError(
            f"No notebook begins with {', '.join(only or [])}. There are {', '.join(n.stem for n in found)}."
        )
    return chosen


def failure_text(notebook: Path, error: PapermillExecutionError) -> str:
    """The failing cell and its error on one screen."""
    source = error.source.strip().splitlines()
    trace = str(error.evalue).strip().splitlines()
    lines = [
        f"{notebook.name} failed in code cell {error.exec_count}:",
        *(f"    {line}" for line in source[:ERROR_LINES]),
        *(["    …"] if len(source) > ERROR_LINES else []),
        f"{error.ename}: " + "\n".join(trace[:ERROR_LINES]),
    ]
    return "\n".join(lines)


def _to_html(executed: Path) -> None:
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(template_name="lab", embed_images=True).from_filename(str(executed))
    write_text(executed.with_suffix(".html"), body)


def ready(waiting: Sequence[Path], running: Collection[Path] = ()) -> list[Path]:
    """The notebooks whose needs are met: not among those that wait or run, so finished, or not asked for."""
    unfinished = {number_of(notebook.name) for notebook in (*waiting, *running)}
    return [notebook for notebook in waiting if not NEEDS.get(number_of(notebook.name), set()) & unfinished]


def _execute(notebook: Path, executed: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run one notebook; its entry in the result."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    started = time.monotonic()
    entry: dict[str, Any] = {"name": notebook.stem, "status": "done"}
    with atomic_path(executed) as temporary:
        try:
            papermill.execute_notebook(
                str(notebook),
                str(temporary),
                parameters=parameters,
                kernel_name="python3",
                progress_bar=False,
                autosave_cell_every=0,
                # It warns that it talks without encryption, on this machine, and calls it an error to be told to end. What goes
                # wrong in a cell comes as papermill's exception.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except PapermillExecutionError as error:
            entry |= {"status": "failed", "error": failure_text(notebook, error)}
    _to_html(executed)
    return entry | {"seconds": round(time.monotonic() - started, 1)}


@contextlib.contextmanager
def own_temporary_folder() -> Iterator[None]:
    """What is started meanwhile has its temporary files in a folder that goes at the end.

    Libraries clear theirs at the end of a process, but a notebook's kernel is killed.
    """
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="course-", ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


def _index(folder: Path, record: dict[str, Any], entries: dict[str, dict[str, Any]], prefix: str) -> None:
    """Write the page: what is known of this call, and what earlier ones finished."""
    known = {name: {"status": "done before", **before} for name, before in record["finished"].items()}
    known |= {prefix + name: entry for name, entry in entries.items()}
    write_index(folder, known, {name: NOTEBOOKS / f"{name}.ipynb" for name in known})


def execute_course(
    profile: str,
    output_dir: Path,
    chat_share: float | None = None,
    overrides: list[str] | None = None,
    only: list[str] | None = None,
    workers: int = 2,
    language: str = ENGLISH,
) -> dict[str, Any]:
    """Run the notebooks; see the module's docstring.

    Args:
        workers: notebooks at a time.
        language: of the prose, and of what the exercises say: ``en`` or ``zh``.

    Returns:
        ``{"ok": bool, "notebooks": [{"name", "status", "seconds"[, "error"]}]}`` with status ``done``, ``done before``,
        ``failed`` or ``not run``.

    Raises:
        UserError: the directory belongs to a course with other parameters.
    """
    output_dir = output_dir.resolve()
    parameters = {
        "profile": profile,
        "output_dir": str(output_dir / "main"),
        "chat_share": chat_share,
        "overrides": list(overrides or []),
    }
    record = _record(output_dir, fingerprint({k: v for k, v in parameters.items() if k != "output_dir"}))
    notebooks = course_notebooks(only, language)
    prefix = "" if language == ENGLISH else f"{language}/"
    digests = {notebook.stem: file_sha256(notebook) for notebook in notebooks}
    entries: dict[str, dict[str, Any]] = {}
    for name, digest in digests.items():
        before = record["finished"].get(prefix + name, {})
        if before.get("sha256") == digest:
            entries[name] = {"name": name, "status": "done before", "seconds": before["seconds"]}
    waiting = [notebook for notebook in notebooks if notebook.stem not in entries]
    not_run = {notebook.stem: {"name": notebook.stem, "status": "not run", "seconds": 0.0} for notebook in waiting}
    _index(output_dir, record, not_run | entries, prefix)

    def start(notebook: Path) -> dict[str, Any]:
        return _execute(notebook, output_dir / "notebooks" / f"{prefix}{notebook.name}", parameters)

    with own_temporary_folder(), warnings.catch_warnings():
        # papermill's, of the name that the notebook has until it is whole
        warnings.filterwarnings("ignore", "The specified file .* does not end in")
        for notebook, entry in _in_turn(waiting, folder_of(language), workers, start):
            entries[notebook.stem] = entry
            if entry["status"] == "done":
                finished = {"sha256": digests[notebook.stem], "seconds": entry["seconds"]}
                record["finished"][prefix + notebook.stem] = finished
                write_json(output_dir / RECORD, record)
            _index(output_dir, record, not_run | entries, prefix)
    result = [(not_run | entries)[notebook.stem] for notebook in notebooks]
    return {"ok": not any(entry["status"] == "failed" for entry in result), "notebooks": result}


def _record(folder: Path, identity: str) -> dict[str, Any]:
    """What the folder says was finished with the parameters of this identity; nothing yet, where it is new."""
    if not (folder / RECORD).exists():
        return {"parameters": identity, "finished": {}}
    record = read_json(folder / RECORD)
    if record["parameters"] != identity:
        raise UserError(
            f"{folder} holds a course with other parameters. Choose another --output-dir; nothing was changed."
        )
    return record


def _in_turn(
    notebooks: Sequence[Path], folder: Path, workers: int, start: Callable[[Path], dict[str, Any]]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each notebook with its entry, as it ends; ``workers`` at a time, once its needs are met. After a failure none is begun."""
    waiting, failed = list(notebooks), False
    running: dict[Future[dict[str, Any]], Path] = {}
    # The working folder belongs to the whole process: papermill, given one for each notebook, would mix them up.
    with contextlib.chdir(folder), ThreadPoolExecutor(workers, thread_name_prefix="notebook") as pool:
        while running or (waiting and not failed):
            free = [] if failed else ready(waiting, running.values())
            for notebook in free[: workers - len(running)]:
                waiting.remove(notebook)
                say(f"executing {notebook.name} ({len(notebooks) - len(waiting)} of {len(notebooks)})")
                running[pool.submit(start, notebook)] = notebook
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                notebook, entry = running.pop(future), future.result()
                failed = failed or entry["status"] == "failed"
                say(entry["error"] if entry["status"] == "failed" else f"{notebook.name}: {duration(entry['seconds'])}")
                yield notebook, entry
            if failed and running:
                say(f"waiting for {', '.join(other.name for other in running.values())} to end")
