"""Merged weights as GGUF, the format of llama.cpp and Ollama.

f16 and q8_0 are made by llama.cpp's converter, q4_k_m by ``llama-quantize``.

The converter and the quantiser run in processes of their own: what they print goes to a log, and a crash in C++ is an error here.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import FULL
from pipeline.export.folders import require_room, size_of
from pipeline.export.requirements import require_packages

TYPES = ("f16", "q8_0", "q4_k_m")
_SHARE = {"f16": 1.0, "q8_0": 0.55, "q4_k_m": 0.4}  # of the 16-bit weights' size, at most
QUANTISER = "llama-quantize"


def require_tools() -> None:
    """Raise ``UserError`` where the converter or the quantiser is not installed."""
    modules = ["gguf", "conversion", "xllamacpp"]
    require_packages("GGUF", *modules, *([] if shutil.which(QUANTISER) else ["ik_llama_cpp"]))


def quantiser() -> str:
    """llama.cpp's own program where it is installed, else the one that a package brings."""
    own = shutil.which(QUANTISER)
    if own:
        return own
    spec = importlib.util.find_spec("ik_llama_cpp")
    assert spec is not None and spec.submodule_search_locations is not None  # require_tools
    program = Path(spec.submodule_search_locations[0]) / "bin" / QUANTISER
    if not os.access(program, os.X_OK):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)  # an installer may drop the bit
    return str(program)


def write_gguf(merged: Path, folder: Path, name: str, log: Path, kinds: tuple[str, ...] = TYPES) -> dict[str, Path]:
    """Write ``NAME-TYPE.gguf`` for each type.

    Args:
        merged: a folder with merged 16-bit weights. log: a file for what the programs say. kinds: of ``TYPES``.

    Returns:
        Type → file.

    Raises:
        UserError: no room on the disk, or the model is none that llama.cpp knows.
    """
    require_tools()
    require_room(folder, int(size_of(merged) * sum(_SHARE[kind] for kind in {"f16", *kinds})), "the GGUF files")
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"{name}-{kind}.gguf" for kind in TYPES}
    whole = "f16" if "f16" in kinds or "q4_k_m" in kinds else None
    made: dict[str, Path] = {}
    try:
        for kind in TYPES:
            if kind == whole or (kind == "q8_0" and kind in kinds):
                module = [sys.executable, "-m", "pipeline.export.convert"]
                part = paths[kind].with_suffix(".part")
                _call([*module, str(merged), "--outtype", kind, "--outfile", str(part)], log, part)
            elif kind == "q4_k_m" and kind in kinds:
                part = paths[kind].with_suffix(".part")
                _call([quantiser(), str(paths["f16"]), str(part), "Q4_K_M"], log, part)
            else:
                continue
            part.replace(paths[kind])
            made[kind] = paths[kind]
    finally:
        for path in paths.values():
            path.with_suffix(".part").unlink(missing_ok=True)
    if "f16" not in kinds and "f16" in made:
        made.pop("f16").unlink()
    return made


def _call(command: list[str], log: Path, made: Path) -> None:
    """Run a program; its words go to a log.

    Raises:
        UserError: it failed; with its last words.
    """
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    text = done.stdout + done.stderr
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n{text}\n")
    if done.returncode == 0 and made.exists():
        return
    if any(os.strerror(number) in text for number in FULL):
        raise UserError(f"The disk is full: {made.stem} could not be written, and nothing half-written was left.")
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no word of why")
    raise UserError(f"llama.cpp could not make {made.stem}: {last[:300]} (all of it: {log})")
