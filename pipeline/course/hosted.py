"""The notebooks on Colab, Kaggle and ModelScope: the cell that fetches the course there, and what it calls then.

In: the project's public address (``project.urls.Repository`` of pyproject.toml, the one place that names it) and its version.
Out: a cell, the same in every notebook, which does nothing on other machines; and ``prepare``, which installs what is missing
there and leaves the service's own torch as it is. Standard library alone, as nothing may be installed there.

For authors, ``python -m pipeline.course.hosted``:

- ``write`` puts the cell, in its present words, behind the parameters of each notebook, and the links into docs/hosted.md and
  its Chinese copy;
- ``check`` names every notebook and page that is not so, and ends with 1 if there is one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_text
from pipeline.core.place import DISTRIBUTION, IN_CHECKOUT, ROOT
from pipeline.core.versions import UNSLOTH_STACK, pinned, same, version_of
from pipeline.course.translation import source_lines

NOTEBOOKS = ROOT / "notebooks"
PAGES = (ROOT / "docs" / "hosted.md", ROOT / "docs" / "hosted.zh.md")
BEGIN, END = "<!-- links -->", "<!-- end -->"
TAG = f"v{__version__}"
CELL = """import os
import subprocess
import sys
from importlib import import_module, util

hosted = {{"COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"}} & set(os.environ) or os.path.isdir("/mnt/workspace")
if hosted and not util.find_spec("pipeline"):  # Colab, Kaggle, ModelScope: fetch the course; elsewhere nothing is done
    subprocess.run("git clone -q --depth 1 -b {tag} {address} course".split())
    sys.path.insert(0, os.path.abspath("course"))
    import_module("pipeline.course.hosted").prepare("../")"""
# What the service has in another version stays, but for these, which have to fit together (torch fits them as it is).
NEEDED_AS_PINNED = tuple(name for name in UNSLOTH_STACK if name != "torch")
KEPT = ("torch", "torchvision", "torchaudio", "triton", "numpy")  # whatever version; pip is told so


def address() -> str:
    """The project's public address.

    Raises:
        UserError: pyproject.toml names none.
    """
    if not IN_CHECKOUT:
        urls_of_package = importlib.metadata.metadata(DISTRIBUTION).get_all("Project-URL") or []
        return next(text.partition(", ")[2] for text in urls_of_package)
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    if "Repository" not in urls:
        raise UserError("pyproject.toml has no project.urls.Repository, the address that hosted notebooks fetch.")
    return str(urls["Repository"])


def cell_text() -> str:
    """The cell's code, in its present words."""
    return CELL.format(tag=TAG, address=address())


# --- on the service ---------------------------------------------------------------------------------------------------------


def service(environment: dict[str, str] | None = None) -> str | None:
    """``Colab``, ``Kaggle`` or ``ModelScope``; None: another machine."""
    found = dict(os.environ) if environment is None else environment
    for name, variable in (("Colab", "COLAB_RELEASE_TAG"), ("Kaggle", "KAGGLE_KERNEL_RUN_TYPE")):
        if variable in found:
            return name
    return "ModelScope" if Path("/mnt/workspace").is_dir() else None


def missing() -> list[str]:
    """``name==version`` of what has to be installed: what is not there, and what has to fit Unsloth and does not."""
    wanted = []
    for name, version in pinned().items():
        found = version_of(name)
        if name not in KEPT and (found is None or (name in NEEDED_AS_PINNED and not same(found, version))):
            wanted.append(f"{name}=={version}")
    return wanted


def prepare(way: str) -> None:
    """Install what is missing, and go to the notebook's folder, where its relative paths mean what they say.

    Args:
        way: from the notebook to the project: ``../``, or one folder deeper ``../../``.

    Raises:
        UserError: there is no torch to keep; pip failed, with its last words; or the session has to be restarted, as it had
            loaded a package that was replaced.
    """
    say = f"{service() or 'this machine'}: the course lies in {ROOT}"
    wanted = missing()
    kept = {name: version for name in KEPT if (version := version_of(name))}
    if "torch" not in kept:
        raise UserError(
            "There is no torch here. Choose a runtime that has it (any with a GPU), or see README.md: make setup."
        )
    if wanted:
        print(f"{say}; installing {len(wanted)} packages, torch {kept['torch']} stays", flush=True)
        _install(wanted, kept)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.chdir(NOTEBOOKS if way.count("..") == 1 else NOTEBOOKS / "zh")
    loaded = [text.partition("==")[0] for text in wanted if text.partition("==")[0].replace("-", "_") in sys.modules]
    if loaded:
        raise UserError(f"{', '.join(loaded)} had been loaded before. Restart the session, and run this cell again.")
    print(f"{say}; ready")


def _install(wanted: list[str], kept: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "kept.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *wanted]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")] or [done.stderr[-300:]]
        raise UserError(
            f"pip could not install the course's packages beside torch {kept['torch']}: {lines[-1].removeprefix('ERROR: ')} "
            "Is the internet switched on for this notebook? Nothing was changed."
        )


# --- for authors ------------------------------------------------------------------------------------------------------------


def notebooks() -> list[Path]:
    """All lessons, in both languages."""
    return sorted([*NOTEBOOKS.glob("*.ipynb"), *(NOTEBOOKS / "zh").glob("*.ipynb")])


def is_hosted_cell(cell: dict[str, Any]) -> bool:
    """Whether it is the cell of this module, in whatever words."""
    return str(cell.get("id", "")).endswith("-hosted")


def with_cell(notebook: dict[str, Any], number: str, text: str) -> dict[str, Any]:
    """The notebook with the cell behind its parameters, in these words."""
    cells = [cell for cell in notebook["cells"] if not is_hosted_cell(cell)]
    at = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", [])) + 1
    own: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": None,
        "id": f"nb{number}-hosted",
        "metadata": {},
        "outputs": [],
        "source": source_lines(text),
    }
    return notebook | {"cells": [*cells[:at], own, *cells[at:]]}


def expected(path: Path) -> str:
    """A notebook's file as it should be."""
    text = cell_text()
    if path.parent.name == "zh":
        text = text.replace('"../', '"../../')
    content = with_cell(read_json(path), path.name.partition("_")[0], text)
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def links() -> str:
    """A table of the notebooks with a link to each service that opens one by its address."""
    where = address()
    path = where.partition("github.com/")[2]
    lines = ["| notebook | Colab | Kaggle |", "|---|---|---|"]
    for notebook in notebooks():
        name = notebook.relative_to(ROOT).as_posix()
        colab = f"https://colab.research.google.com/github/{path}/blob/{TAG}/{name}"
        kaggle = f"https://kaggle.com/kernels/welcome?src={where}/blob/{TAG}/{name}"
        lines.append(f"| `{name.removeprefix('notebooks/')}` | [open]({colab}) | [open]({kaggle}) |")
    return "\n".join(lines)


def page(path: Path) -> str:
    """One of ``PAGES`` with the links as they should be."""
    text = path.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{links()}\n\n{END}{rest.partition(END)[2]}"


def main(argv: list[str] | None = None) -> int:
    """``write`` or ``check``; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "check"])
    action = parser.parse_args(argv).action
    wrong = []
    for path, text in [*((path, expected(path)) for path in notebooks()), *((path, page(path)) for path in PAGES)]:
        if path.read_text(encoding="utf-8") != text:
            wrong.append(path)
            if action == "write":
                write_text(path, text)
    for path in wrong:
        print(f"{path.relative_to(ROOT)}: {'written' if action == 'write' else 'is not as `write` makes it'}")
    return 1 if wrong and action == "check" else 0


if __name__ == "__main__":
    raise SystemExit(main())
