"""Looks at this machine and says what works here, what does not, and what to do about it.

In: nothing but the machine. Out: findings (plain data), and the same as text. Each check stands alone: a library that
is missing or broken makes its own check fail, not the others.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import textwrap
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from pipeline.core import driver, versions
from pipeline.core.errors import UserError
from pipeline.core.hubs import HUBS, hub_address, offline
from pipeline.core.place import ROOT

EMBEDDED_MODEL = ROOT / "models" / "embedded"
CPU_INFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
LEAST_MEMORY = 2_000_000_000
LEAST_DISK = 1_000_000_000
NETWORK_TIMEOUT = 2.0  # seconds, for both hubs together
# NF4 on normally distributed numbers loses about a tenth; far more means a kernel that computes nonsense.
WORST_NF4_ERROR = 0.2

TRACKERS = ("wandb", "swanlab", "tensorboard")

# What a broken library raises while it is being imported or first used (a CUDA error is a RuntimeError).
BROKEN = (ImportError, OSError, RuntimeError, AttributeError, NotImplementedError)

Check = dict[str, Any]


def _check(name: str, ok: bool, detail: str, advice: str = "", required: bool = True) -> Check:
    return {"name": name, "ok": ok, "required": required, "detail": detail, "advice": "" if ok else advice}


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def examine(check_network: bool = True) -> dict[str, Any]:
    """Examine this machine; takes about ten seconds, most of it the import of Unsloth.

    Args:
        check_network: also see whether the two hubs can be reached.

    Returns:
        JSON-able findings. ``checks`` holds ``{name, ok, required, detail, advice}`` in reading order, ``ok`` whether
        all required ones passed; the other keys hold the facts behind them.
    """
    # Unsloth first, since it patches what the later checks import; the hubs meanwhile.
    hub_answers = _Reach(_hub_addresses()) if check_network else None
    unsloth = _unsloth()
    accelerator, accelerator_check = _accelerator()
    bf16 = _bf16(accelerator)
    four_bit = _four_bit(accelerator)
    memory, memory_check = _memory()
    disk, disk_check = _disk()
    compared, versions_check = _versions()
    model = _embedded_model()
    trackers, tracker_checks = _trackers()
    hubs, hub_checks = _hubs(hub_answers)
    checks = [
        _python(),
        versions_check,
        memory_check,
        disk_check,
        unsloth,
        four_bit,
        model,
        accelerator_check,
        *_compiler(accelerator),
        bf16,
        *tracker_checks,
        *hub_checks,
    ]
    return {
        "ok": all(check["ok"] for check in checks if check["required"]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": _cpu_count(),
        "memory": memory,
        "disk_free_bytes": disk,
        "accelerator": accelerator,
        "versions": compared,
        "works": {check["name"]: check["ok"] for check in (bf16, four_bit, unsloth, model)},
        "trackers": trackers,
        "hubs": hubs,
        "checks": checks,
    }


def _python() -> Check:
    found = sys.version_info[:2]
    span = f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} to {NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}"
    return _check(
        "python",
        OLDEST_PYTHON <= found <= NEWEST_PYTHON,
        f"{platform.python_version()} ({span} work)",
        "Remove .venv and run `make setup PYTHON=python3.11` with a Python that works.",
    )


def _cpu_count() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions() -> tuple[dict[str, Any], Check]:
    try:
        pins = versions.pinned()
        found = versions.installed()
    except UserError as error:
        return {}, _check("versions", False, str(error), "Take a complete checkout of the project.")
    compared = {
        name: {"installed": found[name], "pinned": wanted, "ok": versions.same(found[name], wanted)}
        for name, wanted in pins.items()
    }
    wrong = [
        f"{name} is {entry['installed'] or 'missing'}, wanted {entry['pinned']}"
        for name, entry in compared.items()
        if not entry["ok"]
    ]
    detail = "; ".join(wrong) if wrong else f"all {len(compared)} direct dependencies as pinned"
    return compared, _check(
        "versions", not wrong, detail, "Run `make setup`, and start the program with .venv/bin/python."
    )


def _cgroup_limit() -> tuple[int, int] | None:
    """Return the container's memory limit and use in bytes, or None where there is no limit to be read."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = (CGROUP / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return (int(limit), int(used)) if limit.isdigit() and used.isdigit() else None


def _memory() -> tuple[dict[str, int] | None, Check]:
    try:
        import psutil
    except ImportError as error:
        return None, _check("memory", False, f"unknown ({_one_line(error)})", "Run `make setup`.")
    seen = psutil.virtual_memory()
    total, available = int(seen.total), int(seen.available)
    limit = _cgroup_limit()
    if limit is not None:
        total = min(total, limit[0])
        available = min(available, max(limit[0] - limit[1], 0))
    return {"total_bytes": total, "available_bytes": available}, _check(
        "memory",
        available >= LEAST_MEMORY,
        f"{_gigabytes(available)} of {_gigabytes(total)} available ({_gigabytes(LEAST_MEMORY)} needed)",
        "Close other programs, or give the container or virtual machine more memory.",
    )


def _disk() -> tuple[int | None, Check]:
    try:
        free = shutil.disk_usage(os.getcwd()).free
    except OSError as error:
        return None, _check("disk", False, f"unknown ({_one_line(error)})", "Change to a folder that exists.")
    return free, _check(
        "disk",
        free >= LEAST_DISK,
        f"{_gigabytes(free)} free in the current folder ({_gigabytes(LEAST_DISK)} needed)",
        "Free some space, or run from a folder on another disk.",
    )


def _accelerator() -> tuple[dict[str, Any], Check]:
    none: dict[str, Any] = {"kind": "none", "name": None, "memory_bytes": None}
    advice = "The embedded profile needs none; the real ones need an NVIDIA GPU."
    try:
        with versions.quiet():
            import torch

            if torch.cuda.is_available():
                properties = torch.cuda.get_device_properties(0)
                size = int(properties.total_memory)
                return {"kind": "cuda", "name": properties.name, "memory_bytes": size}, _check(
                    "accelerator", True, f"{properties.name}, {_gigabytes(size)}", required=False
                )
    except BROKEN as error:
        return none, _check(
            "accelerator", False, f"torch does not work ({_one_line(error)})", "Run `make setup`.", False
        )
    if shutil.which("nvidia-smi") is not None:
        return none, _check(
            "accelerator", False, *driver.why_not(torch.__version__, torch.version.cuda), required=False
        )
    return none, _check("accelerator", False, "none: everything runs on the CPU", advice, False)


def _compiler(accelerator: dict[str, Any]) -> list[Check]:
    """Unsloth's kernels are Triton's, which compiles a few lines of C for each when it is first used. None without a GPU."""
    if accelerator["kind"] != "cuda":
        return []
    compiler, headers = driver.compiler(), driver.headers()
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    lacking = [] if compiler else ["a C compiler (gcc or clang; CC names another)"]
    advice = [] if compiler else ["install gcc"]
    if headers is None:
        lacking.append(f"Python.h of Python {python}")
        advice.append(f"the headers of this Python (python{python}-dev on Debian and Ubuntu, python3-devel on Fedora)")
    detail = f"missing: {', '.join(lacking)}" if lacking else f"{compiler}, {headers}"
    return [_check("compiler", not lacking, detail, f"Triton needs it: {' and '.join(advice)}.")]


def cpu_flags() -> set[str]:
    """Return the features that Linux names for this CPU, or what torch finds elsewhere."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        try:
            import torch

            return {name for name, there in torch.cpu.get_capabilities().items() if there is True}
        except BROKEN:
            return set()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _bf16(accelerator: dict[str, Any]) -> Check:
    advice = "Training works, only slower; nothing needs to be done."
    if accelerator["kind"] == "cuda":
        try:
            import torch

            native = torch.cuda.is_bf16_supported(including_emulation=False)
        except BROKEN as error:
            return _check("bf16", False, f"unknown ({_one_line(error)})", "Run `make setup`.", False)
        return _check("bf16", native, "native on the GPU" if native else "emulated on the GPU", advice, False)
    units = sorted(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    if units:
        return _check(
            "bf16", True, f"native on the CPU ({', '.join(units)}); model.dtype=auto computes in it", required=False
        )
    return _check("bf16", False, "emulated on the CPU; model.dtype=auto computes in float32", advice, False)


def _four_bit(accelerator: dict[str, Any]) -> Check:
    """Quantise one small tensor to NF4 and back on the device that training would use, and compare."""
    advice = "Run `make setup`; if it stays, use a profile with `load_in_4bit: false`."
    try:
        with versions.quiet():
            import torch
            from bitsandbytes import functional

            device = "cuda" if accelerator["kind"] == "cuda" else "cpu"
            plain = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(device)
            packed, state = functional.quantize_4bit(plain, blocksize=64, quant_type="nf4")
            back = functional.dequantize_4bit(packed, state)
            error_share = float((plain - back).norm() / plain.norm())
    except BROKEN as error:
        return _check("four_bit", False, f"NF4 does not work ({_one_line(error)})", advice)
    # Written so that NaN fails, and an error of exactly nought, which would mean that nothing was quantised.
    return _check(
        "four_bit",
        0 < error_share < WORST_NF4_ERROR,
        f"NF4 by bitsandbytes on {device}, there and back within {error_share:.1%}",
        advice,
    )


def _unsloth() -> Check:
    started = time.monotonic()
    try:
        module = versions.import_unsloth()
    except UserError as error:
        return _check("unsloth", False, str(error), "Mend that, then look again.")
    return _check("unsloth", True, f"{module.__version__} imported in {time.monotonic() - started:.0f} s")


def _embedded_model() -> Check:
    missing = [
        name
        for name in ("config.json", "model.safetensors")
        if not (EMBEDDED_MODEL / name).is_file() or (EMBEDDED_MODEL / name).stat().st_size == 0
    ]
    return _check(
        "embedded_model",
        not missing,
        f"{', '.join(missing)} missing in {EMBEDDED_MODEL}" if missing else str(EMBEDDED_MODEL),
        "Take a complete checkout of the project, or train the model: "
        "`python -m pipeline embedded build --output-dir models/embedded`.",
    )


def _trackers() -> tuple[dict[str, Any], list[Check]]:
    found: dict[str, Any] = {"none": {"installed": None, "usable": True}}
    checks = [_check("tracker none", True, "always works: the run directory has every number", required=False)]
    for name in TRACKERS:
        version = versions.version_of(name)
        found[name] = {"installed": version, "usable": version is not None}
        checks.append(
            _check(
                f"tracker {name}",
                version is not None,
                "not installed" if version is None else f"{version}, works offline too",
                f"Only if you want it: `{sys.executable} -m pip install {name}`.",
                False,
            )
        )
    return found, checks


def _hub_addresses() -> dict[str, tuple[str, int]]:
    """Return host and port of each hub by its name in words."""
    return {name: hub_address(hub) for hub, name in HUBS.items()}


def _offline(hub: str) -> bool:
    return hub == HUBS["huggingface"] and offline("huggingface")


class _Reach:
    """Connects to all addresses at once in the background; ``wait`` returns what each answered within the timeout.

    Daemon threads, because looking a name up cannot be given a time limit.
    """

    def __init__(self, addresses: dict[str, tuple[str, int]]) -> None:
        self.addresses = addresses
        self._answers: dict[str, str] = {}
        self._deadline = time.monotonic() + NETWORK_TIMEOUT
        self._threads = [
            threading.Thread(target=self._connect, args=(name,), daemon=True)
            for name in addresses
            if not _offline(name)
        ]
        for thread in self._threads:
            thread.start()

    def _connect(self, name: str) -> None:
        try:
            socket.create_connection(self.addresses[name], timeout=NETWORK_TIMEOUT).close()
        except (OSError, UnicodeError, OverflowError) as error:  # the latter two: a host or port that cannot be one
            self._answers[name] = _one_line(error)
        else:
            self._answers[name] = ""

    def wait(self) -> dict[str, str | None]:
        """Return for each hub "" (reached), the reason why not, or None (not tried: told to stay offline)."""
        for thread in self._threads:
            thread.join(max(0.0, self._deadline + 0.2 - time.monotonic()))
        return {
            name: None if _offline(name) else self._answers.get(name, f"no answer in {NETWORK_TIMEOUT:.0f} s")
            for name in self.addresses
        }


def _hubs(reach: _Reach | None) -> tuple[dict[str, Any], list[Check]]:
    if reach is None:
        return {name: {"host": host, "reachable": None} for name, (host, _) in _hub_addresses().items()}, []
    found: dict[str, Any] = {}
    checks = []
    proxy = "" if not urllib.request.getproxies().get("https") else " (a proxy is set; this is the direct connection)"
    for name, answer in reach.wait().items():
        host, port = reach.addresses[name]
        found[name] = {"host": host, "reachable": answer == ""}
        if answer is None:
            detail, advice = "not tried: HF_HUB_OFFLINE is set", "Unset HF_HUB_OFFLINE to download from it."
        else:
            detail = f"{host}:{port} {'reached' if answer == '' else f'not reached: {answer}'}{proxy}"
            advice = "The embedded profile needs no network; for the others use the other hub or a local folder."
        checks.append(_check(f"hub {name}", answer == "", detail, advice, False))
    return found, checks


def render(findings: dict[str, Any], width: int = 110) -> str:
    """Return the findings as text: a line a check, with the advice under each one that did not pass."""
    names = max(len(check["name"]) for check in findings["checks"])
    indent = " " * (6 + names + 2)
    lines = [f"{findings['platform']}, {findings['cpu_count']} CPU cores", ""]
    for check in findings["checks"]:
        mark = "ok" if check["ok"] else "FAIL" if check["required"] else "-"
        lines += textwrap.wrap(
            check["detail"],
            width,
            initial_indent=f"{mark:<6}{check['name']:<{names}}  ",
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        if check["advice"]:
            lines += textwrap.wrap(
                check["advice"],
                width,
                initial_indent=f"{indent}> ",
                subsequent_indent=f"{indent}  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    failed = [check["name"] for check in findings["checks"] if check["required"] and not check["ok"]]
    lines += ["", f"Not ready: {', '.join(failed)}." if failed else "Ready: everything that is required works."]
    return "\n".join(lines)
