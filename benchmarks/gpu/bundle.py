"""Wheels for a GPU machine without network, in one folder of at most 64 MiB.

    python benchmarks/gpu/bundle.py --output-dir outputs/bundle
    python benchmarks/gpu/bundle.py --output-dir outputs/bundle --present-from freeze.txt     # `pip freeze` of that machine
    pip install --no-deps --no-index outputs/bundle/*.whl                                     # there

Starts from the packages that a GPU run needs (``--roots``), follows what their metadata requires, takes the versions pinned in
requirements.txt and requirements-cpu.txt, and leaves out what the machine has (``--present``) and what text models do without
(``LEFT_OUT``). Everything is downloaded for x86-64 Linux and the Python version named. Wheels with much that is of no use
there are repacked without it (``CUTS``): a build tag in the file name says so, and RECORD is written anew.

``bundle.json`` lists what came out, with sizes, and what was left out, with the reason. The exit code is 1 above the limit.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from email.parser import HeaderParser
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 64 * 2**20
ROOTS = ("unsloth", "unsloth_zoo", "bitsandbytes", "trl", "peft", "datasets", "orjson", "pydantic", "pyyaml", "rich")
# What an image with torch for CUDA usually holds. Not there? `--roots pyarrow pandas pillow` makes a second bundle of them.
PRESENT = ("torch", "triton", "numpy", "pandas", "pyarrow", "pillow", "transformers", "accelerate", "peft")
# What these packages ask for and a text model does not use.
LEFT_OUT = {
    "torchvision": "pictures",
    "xformers": "attention kernels; torch's own are taken where it is missing",
    "hf-transfer": "downloads",
    "hf-xet": "downloads",
    "diffusers": "pictures; unsloth imports it where it is there",
    "triton-windows": "another system",
}
# Package → (build tag of the repacked wheel, the files that go). The tag starts with a digit, as the format demands.
CUTS: dict[str, tuple[str, Callable[[str], bool]]] = {}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _bitsandbytes(path: str) -> bool:
    """Libraries for anything but CUDA 13 and the CPU."""
    name = path.rpartition("/")[2]
    return (
        fnmatch(name, "libbitsandbytes_*.so")
        and not fnmatch(name, "libbitsandbytes_cuda13[0-9].so")
        and "cpu" not in name
    )


def _unsloth(path: str) -> bool:
    """The web application, the command that starts it, and the lists that name them."""
    return path.startswith(("studio/", "unsloth_cli/")) or bool(
        re.fullmatch(r"[^/]+\.dist-info/(entry_points|top_level)\.txt", path)
    )


def _pyarrow(path: str) -> bool:
    """Headers, sources, tests, and the libraries of remote procedure calls (flight), which nothing else in it links to."""
    return path.startswith(("pyarrow/include/", "pyarrow/tests/", "pyarrow/src/")) or bool(
        re.search(r"flight[^/]*\.(so|py|pyx|pxd|pyi)[.\d]*$", path)
    )


CUTS |= {"bitsandbytes": ("1cu13", _bitsandbytes), "unsloth": ("1core", _unsloth), "pyarrow": ("1core", _pyarrow)}


# --- repacking ----------------------------------------------------------------------------------------------------------


def _row(path: str, data: bytes) -> tuple[str, str, str]:
    """A line of RECORD: path, digest, bytes (Binary distribution format, PyPA specifications)."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return path, f"sha256={digest}", str(len(data))


def repack(wheel: Path, folder: Path, tag: str, drop: Callable[[str], bool]) -> Path:
    """Copy a wheel without the files for which ``drop`` is true; its WHEEL and RECORD say what it is then.

    Raises:
        UserError: it is no wheel; or there is nothing to drop, so the package looks different from what was expected.
    """
    from pipeline.core.errors import UserError

    parts = wheel.stem.split("-")
    if wheel.suffix != ".whl" or len(parts) not in (5, 6):
        raise UserError(f"{wheel.name} is no wheel's name.")
    name, version, *_, python, abi, platform = parts
    target = folder / f"{name}-{version}-{tag}-{python}-{abi}-{platform}.whl"
    rows: list[tuple[str, str, str]] = []
    dropped = 0
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        metadata = next((n.partition("/")[0] for n in source.namelist() if n.endswith(".dist-info/WHEEL")), None)
        if metadata is None:
            raise UserError(f"{wheel.name} holds no WHEEL file.")
        for info in source.infolist():
            path = info.filename
            if path.endswith("/") or re.fullmatch(r"RECORD(\.jws|\.p7s)?", path.removeprefix(f"{metadata}/")):
                continue
            if drop(path):
                dropped += 1
                continue
            data = source.read(info)
            if path == f"{metadata}/WHEEL":
                lines = [line for line in data.decode().splitlines() if line and not line.startswith("Build:")]
                data = ("\n".join([*lines, f"Build: {tag}"]) + "\n").encode()
            copy = zipfile.ZipInfo(path, info.date_time)
            copy.external_attr, copy.compress_type = info.external_attr, zipfile.ZIP_DEFLATED
            out.writestr(copy, data)
            rows.append(_row(path, data))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*rows, (f"{metadata}/RECORD", "", "")])
        out.writestr(f"{metadata}/RECORD", text.getvalue())
    if not dropped:
        target.unlink()
        raise UserError(
            f"{wheel.name} has none of the files that the cut leaves out; look at CUTS in {Path(__file__).name}."
        )
    return target


# --- what is needed -----------------------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    """Canonical name → pinned version, from requirements-cpu.txt and, before it, requirements.txt."""
    found: dict[str, str] = {}
    environment = _environment("3.11")
    from packaging.requirements import Requirement

    for file in ("requirements-cpu.txt", "requirements.txt"):
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            text = line.partition("#")[0].strip()
            if not text:
                continue
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                found[_canonical(requirement.name)] = next(iter(requirement.specifier)).version
    return found


def _environment(python: str) -> dict[str, str]:
    """The target, as markers see it."""
    return {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "python_version": python,
        "python_full_version": f"{python}.0",
        "extra": "",
    }


def requires(wheel: Path, python: str) -> list[str]:
    """Canonical names of what a wheel asks for on the target, extras left out."""
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    parsed = [Requirement(line) for line in lines]
    return [_canonical(r.name) for r in parsed if r.marker is None or r.marker.evaluate(_environment(python))]


def fetch(name: str, version: str | None, folder: Path, python: str) -> Path:
    """Download one wheel for the target through pip; a package without one is built, if it is pure Python.

    Raises:
        UserError: pip finds none (with its last line), or what it builds fits only this machine.
    """
    from pipeline.core.errors import UserError

    wanted = f"{name}=={version}" if version else name
    with tempfile.TemporaryDirectory(dir=folder) as place:
        platforms = [p for n in (34, 28, 27, 24, 17) for p in ("--platform", f"manylinux_2_{n}_x86_64")]
        common = ["--no-deps", "--quiet", "--disable-pip-version-check", wanted]
        pip = [sys.executable, "-m", "pip"]
        target = [
            "--only-binary",
            ":all:",
            "--python-version",
            python,
            *platforms,
            "--platform",
            "manylinux2014_x86_64",
        ]
        result = subprocess.run([*pip, "download", "--dest", place, *target, *common], capture_output=True, text=True)
        if result.returncode:
            result = subprocess.run([*pip, "wheel", "--wheel-dir", place, *common], capture_output=True, text=True)
        found = sorted(Path(place).glob("*.whl"))
        if result.returncode or not found:
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            raise UserError(
                f"{wanted}: {(errors or ['pip found nothing'])[-1]}. Name it in --present if the machine has it."
            )
        if result.args[3] == "wheel" and not found[0].name.endswith("-none-any.whl"):
            raise UserError(f"{wanted} has no wheel for the target, and is no pure Python. Name it in --present.")
        return found[0].replace(folder / found[0].name)


def collect(
    roots: Iterable[str], present: Iterable[str], folder: Path, python: str, known: Mapping[str, str]
) -> tuple[list[Path], dict[str, str]]:
    """Download roots and what they need; returns the wheels and, of what was left out, the reason."""
    there = {_canonical(name) for name in present}
    waiting = [_canonical(name) for name in roots]
    seen: set[str] = set()
    wheels, left = [], {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in there or name in LEFT_OUT:
            left[name] = "present" if name in there else LEFT_OUT[name]
            continue
        wheel = fetch(name, known.get(name), folder, python)
        waiting += requires(wheel, python)
        if name in CUTS:
            tag, drop = CUTS[name]
            whole, wheel = wheel, repack(wheel, folder, tag, drop)
            whole.unlink()
        print(f"{wheel.stat().st_size / 2**20:7.2f} MiB  {wheel.name}", file=sys.stderr, flush=True)
        wheels.append(wheel)
    return sorted(wheels), left


def freeze_names(text: str) -> list[str]:
    """Names in the output of ``pip freeze`` or ``pip list --format freeze``."""
    found = [re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(==|@|$)", line) for line in text.splitlines()]
    return [match[1] for match in found if match]


def table(result: Mapping[str, Any]) -> str:
    """``bundle.json`` as Markdown."""
    lines = ["| wheel | MiB |", "|---|--:|"]
    lines += [
        f"| {name} | {size / 2**20:.2f} |" for name, size in sorted(result["wheels"].items(), key=lambda x: -x[1])
    ]
    return "\n".join([*lines, f"| all, of at most {result['limit'] / 2**20:.0f} | {result['total'] / 2**20:.2f} |"])


def main(argv: list[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--roots", nargs="+", default=list(ROOTS), metavar="NAME", help=f"default: {' '.join(ROOTS)}")
    parser.add_argument(
        "--present", nargs="*", default=list(PRESENT), metavar="NAME", help="default: " + " ".join(PRESENT)
    )
    parser.add_argument(
        "--present-from", type=Path, metavar="FILE", help="the output of `pip freeze` there, beside --present"
    )
    parser.add_argument("--python", default="3.12", help="the machine's Python (default: 3.12)")
    parser.add_argument("--limit-mib", type=float, default=LIMIT / 2**20)
    args = parser.parse_args(argv)
    from pipeline.core.errors import UserError
    from pipeline.core.files import make_folder, require_folder, write_json

    present = list(args.present)
    try:
        require_folder(args.output_dir)
        make_folder(args.output_dir)
        if any(args.output_dir.iterdir()):
            raise UserError(f"{args.output_dir} is not empty. Choose another --output-dir; nothing was changed.")
        if args.present_from:
            if not args.present_from.is_file():
                raise UserError(
                    f"{args.present_from} does not exist; write `pip freeze > {args.present_from}` on the machine."
                )
            present += freeze_names(args.present_from.read_text(encoding="utf-8"))
        wheels, left = collect(args.roots, present, args.output_dir, args.python, pins())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    limit = int(args.limit_mib * 2**20)
    sizes = {wheel.name: wheel.stat().st_size for wheel in wheels}
    total = sum(sizes.values())
    result = {"wheels": sizes, "total": total, "limit": limit, "fits": total <= limit, "left_out": left}
    write_json(args.output_dir / "bundle.json", result)
    print(table(result))
    if total > limit:
        print(
            f"error: {total / 2**20:.1f} MiB are more than {args.limit_mib:g}; name more in --present.", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
