"""Execute the notebooks in order with papermill, in batch, as a workshop leader or CI would.

In: a profile and an output directory. Out: executed notebooks and HTML pages in ``DIR/notebooks``, the run that they make
together in ``DIR/run``, and ``DIR/course.json`` with what was done. It stops at the first notebook that fails and says
which cell, with its error, on one screen. Called again, it goes on after the last notebook that succeeded.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, file_sha256, fingerprint, read_json, write_json, write_text
from pipeline.core.place import ROOT

if TYPE_CHECKING:
    from papermill.exceptions import PapermillExecutionError


NOTEBOOKS = ROOT / "notebooks"
ERROR_LINES = 18  # of source and of error, so that a failure fits on one screen


def course_notebooks(only: list[str] | None = None) -> list[Path]:
    """The course's notebooks in order, or those whose names begin with one of ``only``.

    Raises:
        UserError: nothing matches.
    """
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    chosen = [n for n in found if only is None or any(n.name.startswith(o) for o in only)]
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


def execute_course(
    profile: str,
    output_dir: Path,
    chat_share: float | None = None,
    overrides: list[str] | None = None,
    only: list[str] | None = None,
) -> dict[str, Any]:
    """Run the notebooks; see the module's docstring.

    Returns:
        ``{"ok": bool, "notebooks": [{"name", "status", "seconds"[, "error"]}]}`` with status ``done``, ``done before``,
        ``failed`` or ``not run``.

    Raises:
        UserError: the directory belongs to a course with other parameters.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    parameters = {
        "profile": profile,
        "output_dir": str((output_dir / "run").resolve()),
        "chat_share": chat_share,
        "overrides": list(overrides or []),
    }
    record_path = output_dir / "course.json"
    identity = fingerprint({k: v for k, v in parameters.items() if k != "output_dir"})
    record: dict[str, Any] = {"parameters": identity, "finished": {}}
    if record_path.exists():
        record = read_json(record_path)
        if record["parameters"] != identity:
            raise UserError(
                f"{output_dir} holds a course with other parameters. Choose another --output-dir; nothing was changed."
            )
    results: list[dict[str, Any]] = []
    failed = False
    for notebook in course_notebooks(only):
        if failed:
            results.append({"name": notebook.stem, "status": "not run", "seconds": 0.0})
            continue
        digest = file_sha256(notebook)
        if record["finished"].get(notebook.stem, {}).get("sha256") == digest:
            results.append(
                {
                    "name": notebook.stem,
                    "status": "done before",
                    "seconds": record["finished"][notebook.stem]["seconds"],
                }
            )
            continue
        console.print(f"executing {notebook.name}")
        executed = output_dir / "notebooks" / notebook.name
        started = time.monotonic()
        entry: dict[str, Any] = {"name": notebook.stem}
        with atomic_path(executed) as temporary, warnings.catch_warnings():
            # papermill's, of the name that the notebook has until it is whole
            warnings.filterwarnings("ignore", "The specified file .* does not end in")
            try:
                papermill.execute_notebook(
                    str(notebook),
                    str(temporary),
                    parameters=parameters,
                    kernel_name="python3",
                    cwd=str(NOTEBOOKS),
                    progress_bar=False,
                    autosave_cell_every=0,
                )
                entry["status"] = "done"
            except PapermillExecutionError as error:
                failed = True
                entry |= {"status": "failed", "error": failure_text(notebook, error)}
                console.print(entry["error"], markup=False)
        entry["seconds"] = round(time.monotonic() - started, 1)
        _to_html(executed)
        results.append(entry)
        if not failed:
            record["finished"][notebook.stem] = {"sha256": digest, "seconds": entry["seconds"]}
            write_json(record_path, record)
    return {"ok": not failed, "notebooks": results}
