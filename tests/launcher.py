"""Two real processes that meet on the loopback device, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def torchrun(
    *arguments: str, timeout: int = 120, python: str = sys.executable, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Two processes, of ``python``, that meet on the loopback device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        port,
    ]
    environment = {**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHON_EXEC": python}
    return subprocess.run(
        [sys.executable, *launch, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
    )
