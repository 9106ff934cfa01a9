"""Pack the course into one file for machines without network: packages, project, the embedded model, prepared outputs.

In: a checkout, the list of packages, and, where there is one, the ``--output-dir`` of a ``course``. Out: one ``.tar`` with

- ``wheels/``, a wheel for each package of the list that this system, processor and Python minor version need;
- ``project/``, the checkout without caches and outputs; what was prepared lies in its ``outputs/course``, where notebooks look;
- ``install.py`` (checks, installs, asks the doctor), ``README.txt``, ``requirements.txt``, ``SHA256SUMS``, ``bundle.json``.

Downloaded wheels are kept in the cache, so a command that was stopped goes on where it was. The file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, make_folder, now, require_folder
from pipeline.core.place import IN_CHECKOUT, PACKAGE, ROOT, cache_dir

KIT = PACKAGE / "course" / "kit"
TOP = "hybrid-course"  # the folder in the file
FOLDERS = (
    "ablations",
    "benchmarks",
    "data_recipes",
    "docs",
    "examples",
    "launch",
    "models",
    "notebooks",
    "pipeline",
    "tests",
)
FILES = ("*.md", "*.toml", "requirements*.txt", "LICENSE", "Makefile")
NOT = ("__pycache__", ".ipynb_checkpoints", ".venv", "unsloth_compiled_cache")
PREPARED = ("main", "notebooks", "course.json", "index.html")  # of a course's output directory
TORCH_CPU = "https://download.pytorch.org/whl/cpu"
AT_ONCE = 25  # packages a call of pip, so that what is done is kept when the command is stopped


@dataclass(frozen=True)
class Wanted:
    """A package of the list that this machine needs."""

    line: str  # as pip takes it, without marker
    name: str  # as wheels spell it: lower case, hyphens
    version: str


def wanted(requirements: Path) -> list[Wanted]:
    """The packages of a list of exact versions, without those whose markers are for other machines.

    Raises:
        UserError: the list cannot be read, or a line names no exact version.
    """
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        lines = requirements.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list of packages {requirements} cannot be read: {error}.") from error
    found = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise UserError(
                f"{requirements}:{number}: {text!r} is no package with a version. A bundle wants a complete list such as "
                "requirements-cpu.txt."
            ) from error
        exact = [s.version for s in requirement.specifier if s.operator == "==" and "*" not in s.version]
        if len(exact) != 1:
            raise UserError(f"{requirements}:{number}: {text!r} has no exact version (NAME==VERSION).")
        if requirement.marker is None or requirement.marker.evaluate():
            name = requirement.name
            found.append(Wanted(f"{name}=={exact[0]}", canonicalize_name(name), exact[0]))
    return found


def chosen_wheels(packages: Sequence[Wanted], folder: Path) -> tuple[list[Path], list[Wanted]]:
    """For each package a wheel of the folder that this Python can install; and the packages that have none.

    Of several wheels of a package the one that fits this machine best is taken, as pip would.
    """
    from packaging.specifiers import SpecifierSet
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    rank = {tag: place for place, tag in enumerate(sys_tags())}
    there: dict[str, list[tuple[int, Any, Path]]] = {}
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue  # pip would not take it either
        if fitting := [rank[tag] for tag in tags if tag in rank]:
            there.setdefault(name, []).append((min(fitting), version, path))
    chosen, missing = [], []
    for package in packages:
        exact = SpecifierSet(f"=={package.version}")
        fits = [(place, path) for place, version, path in there.get(package.name, []) if exact.contains(version, True)]
        if fits:
            chosen.append(min(fits)[1])
        else:
            missing.append(package)
    return chosen, missing


def _pip(folder: Path, packages: Sequence[Wanted], *more: str) -> subprocess.CompletedProcess[str]:
    own = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    return subprocess.run([*own, *more, *(p.line for p in packages)], capture_output=True, text=True)


def fetch(packages: Sequence[Wanted], folder: Path) -> None:
    """Download what the folder lacks through pip, in the CPU build of torch; a package without a wheel is built.

    Raises:
        UserError: pip cannot get one, with its message. What is there stays for the next time.
    """
    make_folder(folder, "PIPELINE_CACHE")
    _, missing = chosen_wheels(packages, folder)
    torch = [package for package in missing if package.name == "torch"]
    if torch:
        quick = ("--retries", "0", "--timeout", "5", "--index-url", TORCH_CPU)
        if not _pip(folder, torch, *quick).returncode:
            missing.remove(torch[0])
    for start in range(0, len(missing), AT_ONCE):
        part = missing[start : start + AT_ONCE]
        say(f"packages {start + 1} to {start + len(part)} of {len(missing)}")
        done = _pip(folder, part)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise UserError(
                f"pip cannot get all of {', '.join(p.line for p in part)}: {(errors or ['no message'])[-1]}. What was "
                "downloaded is kept: run the same command again, or give a folder of wheels with --wheels."
            )


def project_files(root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """Each file of the checkout and its place under ``project/``: no caches, outputs or links to elsewhere."""
    paths = [path for pattern in FILES for path in sorted(root.glob(pattern))]
    for folder in FOLDERS:
        paths += sorted((root / folder).rglob("*"))
    for path in paths:
        inside = path.relative_to(root)
        if path.is_file() and not path.is_symlink() and not any(part in NOT for part in inside.parts):
            yield path, f"project/{inside.as_posix()}"


def prepared_files(folder: Path) -> list[tuple[Path, str]]:
    """Each file of a course's output directory that a learner can use, and its place: run, executed notebooks, their list.

    Raises:
        UserError: the directory holds neither a run nor executed notebooks.
    """
    if not (folder / "main" / "report.json").is_file() and not (folder / "notebooks").is_dir():
        raise UserError(
            f"{folder} holds neither a finished run (main/report.json) nor executed notebooks. --prepared takes the "
            "--output-dir of a course: make course OUTPUT_DIR=FOLDER."
        )
    found = []
    for name in PREPARED:
        top = folder / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and not path.is_symlink() and not any(part in NOT for part in path.parts):
                found.append((path, f"project/outputs/course/{path.relative_to(folder).as_posix()}"))
    return found


def _readme(made: dict[str, Any], prepared: bool) -> str:
    text = (KIT / "README.txt").read_text(encoding="utf-8")
    words = {"PYTHON": f"Python {made['python']}", "SYSTEM": made["system"], "MACHINE": made["machine"]}
    words["PREPARED"] = (
        "project/outputs/course holds a finished run and executed notebooks: 04 and 05 load it instead of training.\n"
        if prepared
        else ""
    )
    for name, word in words.items():
        text = text.replace(f"@{name}@", word)
    return text


class _Packer:
    """Files go into the archive one after the other; what went in is remembered with its digest."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self.archive = archive
        self.sums: list[str] = []

    def add(self, path: Path, place: str) -> None:
        with path.open("rb") as file:
            self.sums.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {place}")
        self.archive.add(path, f"{TOP}/{place}", recursive=False, filter=_plain)

    def write(self, text: str, place: str) -> None:
        data = text.encode()
        self.sums.append(f"{hashlib.sha256(data).hexdigest()}  {place}")
        entry = tarfile.TarInfo(f"{TOP}/{place}")
        entry.size = len(data)
        self.archive.addfile(_plain(entry), io.BytesIO(data))


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nobody's file, readable by all, of no particular time: the same content gives the same bytes."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o644
    entry.mtime = 0
    return entry


def pack(
    output: Path,
    requirements: Path = ROOT / "requirements-cpu.txt",
    wheels: Path | None = None,
    prepared: Path | None = None,
    download: Callable[[Sequence[Wanted], Path], None] = fetch,
) -> dict[str, Any]:
    """Write the bundle.

    Args:
        output: the file, which must not exist; ``.tar``.
        wheels: a folder that holds all wheels; None: they are downloaded, and kept in the cache.
        prepared: ``--output-dir`` of a course.

    Returns:
        What ``bundle.json`` holds, and the size of the file in bytes.

    Raises:
        UserError: no checkout, the file exists, a wheel is missing, the disk is too small.
    """
    if not IN_CHECKOUT:
        raise UserError(
            "A bundle holds the whole project, so it is packed from a checkout, not from an installed package."
        )
    if output.suffix != ".tar":
        raise UserError(f"--output names a file that ends in .tar, not {output.name!r}: wheels are compressed already.")
    if output.exists():
        raise UserError(f"{output} exists already. Remove it, or choose another --output; nothing was changed.")
    require_folder(output.parent, "--output")
    packages = wanted(requirements)
    extra = prepared_files(prepared) if prepared else []
    if wheels is None:
        folder = cache_dir() / "wheels"
        download(packages, folder)
    elif wheels.is_dir():
        folder = wheels
    else:
        raise UserError(f"--wheels: there is no folder {wheels}.")
    chosen, missing = chosen_wheels(packages, folder)
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise UserError(
            f"{folder} has no wheel for {', '.join(p.line for p in missing[:8])}{more} that this Python can install. "
            "Put it there, or leave --wheels out: then what is missing is downloaded."
        )
    files = [*((path, f"wheels/{path.name}") for path in chosen), *project_files(), *extra]
    _require_room(output, sum(path.stat().st_size + 1024 for path, _ in files))
    made: dict[str, Any] = {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "system": platform.system(),
        "machine": platform.machine(),
        "made": now(),
        "wheels": len(chosen),
        "prepared": len(extra),
        "files": len(files) + 4,
    }
    with atomic_path(output) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
        packer = _Packer(archive)
        packer.write(_readme(made, bool(extra)), "README.txt")
        packer.add(KIT / "install.py", "install.py")
        packer.write("".join(f"{package.line}\n" for package in packages), "requirements.txt")
        packer.write(json.dumps(made, indent=2) + "\n", "bundle.json")
        for path, place in files:
            packer.add(path, place)
        packer.write("".join(f"{line}\n" for line in packer.sums), "SHA256SUMS")
    return made | {"bytes": output.stat().st_size, "output": str(output)}


def _require_room(output: Path, size: int) -> None:
    place = next(folder for folder in output.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        raise UserError(
            f"The bundle takes {size / 2**20:,.0f} MiB, and {place} has {free / 2**20:,.0f} MiB free. Free some space, or "
            "choose another --output."
        )
