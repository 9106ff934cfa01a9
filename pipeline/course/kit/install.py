"""Install the course from this folder, without network: check each file, make project/.venv, fill it, ask the doctor.

    python3 install.py [--check]

Needs nothing but the Python that it is started with. What was installed before is kept and completed. Exit code: 0 where
the main job can run, 1 where the doctor finds something, 2 where the folder is not whole or is made for another kind of machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def fail(text: str) -> int:
    """Print what is wrong and what to do."""
    print(f"error: {text}", file=sys.stderr)
    return 2


def damaged() -> list[str]:
    """What is missing or differs from SHA256SUMS, as paths with the reason."""
    found = []
    for line in (HERE / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = HERE / name
        if not path.is_file():
            found.append(f"{name} is missing")
            continue
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                found.append(f"{name} has changed")
    return found


def other_machine(made: dict[str, str]) -> str:
    """Why this machine cannot use the wheels, or nothing."""
    own = {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "system": platform.system(),
        "machine": platform.machine(),
    }
    return "; ".join(
        f"{name} is {own[name]}, it was packed for {made[name]}" for name in own if own[name] != made[name]
    )


def main() -> int:
    """Do it; returns the exit code."""
    parser = argparse.ArgumentParser(description="Install the course from this folder, without network.")
    parser.add_argument("--check", action="store_true", help="only check that every file is here and whole")
    args = parser.parse_args()
    made = json.loads((HERE / "bundle.json").read_text(encoding="utf-8"))
    if other := other_machine(made):
        return fail(f"{other}. Start it with such a Python, or pack a bundle on a machine like this one.")
    if problems := damaged():
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        return fail(f"{', '.join(problems[:5])}{more}. Unpack or copy the bundle again.")
    print(f"{made['files']} files are whole")
    if args.check:
        return 0
    place = HERE / "project" / ".venv"
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    # What this machine has set for pip (an index, a proxy) must not matter.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    env |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    wheels = ["--find-links", str(HERE / "wheels"), "-r", str(HERE / "requirements.txt")]
    steps = [
        ("making project/.venv", [] if python.exists() else [sys.executable, "-m", "venv", str(place)]),
        (f"installing {made['wheels']} packages", [*pip, *wheels]),
        ("installing the course", [*pip, "--no-build-isolation", "--editable", str(HERE / "project")]),
    ]
    for what, command in steps:
        print(what, flush=True)
        if command and subprocess.run(command, env=env).returncode:
            return fail(f"{what} failed; the lines above say why. Then start it again: it goes on from here.")
    print("asking the doctor", flush=True)
    done = subprocess.run([str(python), "-m", "pipeline", "doctor", "--no-network"], cwd=HERE / "project", env=env)
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
