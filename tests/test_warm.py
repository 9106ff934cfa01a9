"""The warm Python of the tests: what it runs sees, says and ends as what the real one runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SHOW = """
import os, sys
print(sys.argv, sys.path[0], __name__, os.getcwd(), os.environ["SAID"], os.environ.get("UNSAID"), file=sys.stderr)
print(sys.stdin.read(), end="")
sys.exit(int(sys.argv[-1]) if sys.argv[-1].isdigit() else sys.argv[-1])
"""


@pytest.mark.parametrize("how", ["-c", "-m", "script"])
@pytest.mark.parametrize("end", ["0", "3", "a message"])
def test_a_program_sees_what_it_would_see(
    warm_python: str, environment: dict[str, str], how: str, end: str, tmp_path: Path
) -> None:
    (tmp_path / "show.py").write_text(SHOW, encoding="utf-8")
    program = {"-c": ["-c", SHOW], "-m": ["-m", "show"], "script": [str(tmp_path / "show.py")]}[how]
    own = environment | {"SAID": "x", "PYTHONPATH": str(tmp_path)}
    ends = [
        subprocess.run(
            [python, *program, "word", end], cwd=tmp_path, env=own, input="in\n", capture_output=True, text=True
        )
        for python in (warm_python, sys.executable)
    ]
    for name in ("returncode", "stdout", "stderr"):
        assert getattr(ends[0], name) == getattr(ends[1], name)


def test_it_is_a_fork_unless_the_program_must_not_be_one(warm_python: str, environment: dict[str, str]) -> None:
    if warm_python == sys.executable:
        pytest.skip("nothing is forked here")
    code = "import sys; print('unsloth' in sys.modules)"
    for changes, options, forked in (
        ({}, [], True),
        ({"UNSLOTH_DISABLE_CPU_FALLBACK": "1"}, [], False),
        ({"PYTHONHASHSEED": "1"}, [], False),
        ({}, ["-I"], False),
    ):
        command, own = [warm_python, *options, "-c", code], environment | changes
        done = subprocess.run(command, env=own, capture_output=True, text=True)
        assert done.stdout == f"{forked}\n", (changes, options, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program(warm_python: str, number: signal.Signals, tmp_path: Path) -> None:
    # The file is closed each time: an interrupt while an open one is taken down would be swallowed, as any error there.
    code = (
        "import pathlib, sys, time\n"
        "for i in range(10000): pathlib.Path(sys.argv[1]).write_text(str(i)); time.sleep(0.01)"
    )
    process = subprocess.Popen([warm_python, "-c", code, str(tmp_path / "beat")], stderr=subprocess.DEVNULL)
    while not (tmp_path / "beat").exists():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) in (-number, 1)
    time.sleep(0.1)
    beat = (tmp_path / "beat").read_text()
    time.sleep(0.2)
    assert (tmp_path / "beat").read_text() == beat
