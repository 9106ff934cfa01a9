"""What ``evalscope perf`` wrote becomes a table and a picture."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def perf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("perf_benchmark", ROOT / "benchmarks" / "perf.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(folder: Path, clients: int, failed: int = 0) -> None:
    place = folder / f"parallel_{clients}_number_8"
    place.mkdir(parents=True)
    summary = {"Concurrency": clients, "Total Requests": 8, "Failed Requests": failed}
    summary |= {"Req Throughput (req/s)": 2.0 * clients, "Output Throughput (tok/s)": 1200.0 * clients}
    rows = [
        {"Percentiles": name, "TTFT (ms)": value, "Latency (s)": value / 100}
        for name, value in (("50%", 40), ("95%", 90))
    ]
    (place / "benchmark_summary.json").write_text(json.dumps(summary))
    (place / "benchmark_percentile.json").write_text(json.dumps(rows))


def test_the_table_and_the_picture(perf: ModuleType, tmp_path: Path) -> None:
    for clients in (16, 1, 4):
        written(tmp_path / "in", clients)
    command = [
        sys.executable,
        "benchmarks/perf.py",
        "--folder",
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "o.json"),
    ]
    done = subprocess.run([*command, "--picture", str(tmp_path / "p.png")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "o.json").read_text())
    assert [row["clients"] for row in result["rows"]] == [1, 4, 16]
    assert "| 4 | 8 | 0 | 8.0 | 4,800 | 0.040, 0.090 | 0.400, 0.900 |" in done.stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_failed_requests_and_folders_that_hold_nothing(perf: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds nothing"):
        perf.read(tmp_path)
    written(tmp_path, 4, failed=1)
    assert perf.read(tmp_path)["rows"][0]["failed"] == 1
    command = [sys.executable, "benchmarks/perf.py", "--folder", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 1
