"""pipeline/core/doctor.py: what it finds on a sound machine, and what it says about one that is not."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import doctor, versions
from pipeline.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NO_ACCELERATOR = {"kind": "none", "name": None, "memory_bytes": None}
CHECK_KEYS = {"name", "ok", "required", "detail", "advice"}


@pytest.fixture
def sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which all required checks pass, without the two that load torch; returns the model folder."""
    model = tmp_path / "embedded"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("{}", encoding="utf-8")
    monkeypatch.setattr(doctor, "EMBEDDED_MODEL", model)
    monkeypatch.setattr(doctor, "_unsloth", lambda: doctor._check("unsloth", True, "imported"))
    monkeypatch.setattr(doctor, "_four_bit", lambda accelerator: doctor._check("four_bit", True, "works"))
    monkeypatch.setattr(
        doctor,
        "_accelerator",
        lambda: (NO_ACCELERATOR, doctor._check("accelerator", False, "none", "none needed", False)),
    )
    return model


def _named(findings: dict[str, Any], name: str) -> dict[str, Any]:
    (check,) = [check for check in findings["checks"] if check["name"] == name]
    return check


def _low_memory(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    import psutil

    memory = namedtuple("memory", "total available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(8_000_000_000, available))


def test_a_sound_machine_is_ready(sound: Path) -> None:
    findings = doctor.examine(check_network=False)
    assert findings["ok"] is True
    assert json.loads(json.dumps(findings)) == findings
    assert all(set(check) == CHECK_KEYS for check in findings["checks"])
    assert all(bool(check["advice"]) != check["ok"] for check in findings["checks"])
    assert findings["cpu_count"] >= 1
    assert 0 < findings["memory"]["available_bytes"] <= findings["memory"]["total_bytes"]
    assert findings["versions"]["torch"]["ok"] is True
    assert set(findings["works"]) == {"bf16", "four_bit", "unsloth", "embedded_model"}
    assert {hub["reachable"] for hub in findings["hubs"].values()} == {None}
    assert not [check for check in findings["checks"] if check["name"].startswith("hub")]
    assert doctor.render(findings).endswith("Ready: everything that is required works.")


def test_low_memory_is_not_ready(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _low_memory(monkeypatch, 1_999_999_999)
    findings = doctor.examine(check_network=False)
    assert findings["ok"] is False
    memory = _named(findings, "memory")
    assert memory["required"] and not memory["ok"]
    assert "Close other programs" in memory["advice"]
    text = doctor.render(findings)
    assert "FAIL  memory" in text
    assert "Close other programs" in text
    assert text.endswith("Not ready: memory.")


def test_two_gigabytes_are_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    _low_memory(monkeypatch, 2_000_000_000)
    assert doctor._memory()[1]["ok"]


def test_a_containers_memory_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    _low_memory(monkeypatch, 7_000_000_000)
    (tmp_path / "memory.max").write_text("3000000000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("1500000000\n", encoding="ascii")
    memory, check = doctor._memory()
    assert memory == {"total_bytes": 3_000_000_000, "available_bytes": 1_500_000_000}
    assert not check["ok"]
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    memory, check = doctor._memory()
    assert memory == {"total_bytes": 8_000_000_000, "available_bytes": 7_000_000_000}
    assert check["ok"]


def test_full_disk_is_not_ready(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**6, 10**6))
    findings = doctor.examine(check_network=False)
    assert findings["ok"] is False
    assert findings["disk_free_bytes"] == 10**6
    assert "Free some space" in _named(findings, "disk")["advice"]


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_model_is_not_ready(missing: str, sound: Path) -> None:
    (sound / missing).unlink()
    findings = doctor.examine(check_network=False)
    assert findings["ok"] is False
    assert findings["works"]["embedded_model"] is False
    model = _named(findings, "embedded_model")
    assert missing in model["detail"]
    assert "embedded build" in model["advice"]


def test_no_model_folder_is_not_ready(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EMBEDDED_MODEL", sound / "nowhere")
    findings = doctor.examine(check_network=False)
    assert findings["ok"] is False
    assert "config.json, model.safetensors missing" in _named(findings, "embedded_model")["detail"]


def test_an_empty_weight_file_is_not_ready(sound: Path) -> None:
    (sound / "model.safetensors").write_bytes(b"")
    assert not doctor._embedded_model()["ok"]


@pytest.mark.parametrize(("version", "ok"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)])
def test_python_versions(version: tuple[int, int], ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (*version, 0, "final", 0))
    check = doctor._python()
    assert check["ok"] is ok
    assert check["required"]


def test_a_wrong_version_is_not_ready(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, str | None] = {**versions.pinned(), "trl": "0.1", "peft": None}
    monkeypatch.setattr(versions, "installed", lambda: found)
    findings = doctor.examine(check_network=False)
    assert findings["ok"] is False
    assert findings["versions"]["trl"] == {"installed": "0.1", "pinned": versions.pinned()["trl"], "ok": False}
    detail = _named(findings, "versions")["detail"]
    assert "trl is 0.1" in detail
    assert "peft is missing" in detail
    assert "make setup" in _named(findings, "versions")["advice"]


def test_unreadable_requirements_fail_one_check_only(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "REQUIREMENTS", sound / "nowhere.txt")
    findings = doctor.examine(check_network=False)
    assert [check["name"] for check in findings["checks"] if check["required"] and not check["ok"]] == ["versions"]


def test_unsloth_that_fails_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UserError("Unsloth cannot be imported (some reason).")

    monkeypatch.setattr(versions, "import_unsloth", fail)
    check = doctor._unsloth()
    assert check["required"] and not check["ok"]
    assert "some reason" in check["detail"]


@pytest.mark.parametrize("name", ["torch", "bitsandbytes"])
def test_a_library_that_does_not_import_fails_its_own_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # makes `import name` fail
    check = doctor._four_bit(NO_ACCELERATOR)
    assert check["required"] and not check["ok"]
    assert name in check["detail"]
    if name == "torch":
        accelerator, check = doctor._accelerator()
        assert accelerator == NO_ACCELERATOR
        assert not check["required"] and not check["ok"]


def test_missing_psutil_fails_the_memory_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    memory, check = doctor._memory()
    assert memory is None
    assert check["required"] and not check["ok"]


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.0, math.nan])
def test_a_four_bit_kernel_that_computes_nonsense_is_found(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes import functional

    plain: list[Any] = []
    monkeypatch.setattr(functional, "quantize_4bit", lambda tensor, **_: (plain.append(tensor), None))
    monkeypatch.setattr(functional, "dequantize_4bit", lambda packed, state: plain[-1] * factor)
    assert not doctor._four_bit(NO_ACCELERATOR)["ok"]


def test_four_bit_works_here() -> None:
    check = doctor._four_bit(NO_ACCELERATOR)
    assert check["ok"], check["detail"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16 sse\n", "native"),
        ("flags : fpu amx_bf16\n", "native"),
        ("Features\t: fp asimd bf16\n", "native"),
        ("flags : fpu avx512f sse\n", "emulated"),
        ("", "emulated"),
    ],
)
def test_bf16_on_the_cpu(text: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(doctor, "CPU_INFO", path)
    check = doctor._bf16(NO_ACCELERATOR)
    assert check["detail"].startswith(word)
    assert check["ok"] is (word == "native")
    assert not check["required"]


def test_bf16_where_linux_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor, "CPU_INFO", tmp_path / "nowhere")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "cpu_name": "x", "avx": False})
    assert "native" in doctor._bf16(NO_ACCELERATOR)["detail"]


def test_trackers_never_decide(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version_of", lambda name: None)
    found, checks = doctor._trackers()
    assert found["none"]["usable"] is True
    assert [found[name]["usable"] for name in doctor.TRACKERS] == [False] * 3
    assert not any(check["required"] for check in checks)


def test_no_network_is_quick_and_not_required(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")  # a network that is reserved and never routed
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "192.0.2.2")
    started = time.monotonic()
    findings = doctor.examine()
    assert time.monotonic() - started < 5
    assert findings["ok"] is True
    assert findings["hubs"] == {
        "Hugging Face": {"host": "192.0.2.1", "reachable": False},
        "ModelScope": {"host": "192.0.2.2", "reachable": False},
    }
    assert "local folder" in _named(findings, "hub Hugging Face")["advice"]


def test_name_lookups_that_hang_do_not_hold_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(doctor, "NETWORK_TIMEOUT", 0.2)
    release = threading.Event()

    def hang(*arguments: object, **options: object) -> None:
        release.wait(30)
        raise OSError("released")

    monkeypatch.setattr(socket, "create_connection", hang)
    started = time.monotonic()
    reach = doctor._Reach(doctor._hub_addresses())
    try:
        hubs, checks = doctor._hubs(reach)
        assert time.monotonic() - started < 2
    finally:
        release.set()
        for thread in reach._threads:
            thread.join()
    assert {hub["reachable"] for hub in hubs.values()} == {False}
    assert all("no answer" in check["detail"] for check in checks)


def test_a_hub_that_answers_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("MODELSCOPE_DOMAIN", f"127.0.0.1:{port}")
        hubs, checks = doctor._hubs(doctor._Reach(doctor._hub_addresses()))
    assert {hub["reachable"] for hub in hubs.values()} == {True}
    assert all(check["ok"] for check in checks)


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_told_to_stay_offline_it_does_not_try(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setattr(doctor._Reach, "_connect", lambda self, name: tried.append(name))
    hubs, checks = doctor._hubs(doctor._Reach(doctor._hub_addresses()))
    assert tried == ["ModelScope"]
    assert hubs["Hugging Face"]["reachable"] is False
    assert "HF_HUB_OFFLINE" in checks[0]["detail"]


@pytest.mark.parametrize("endpoint", ["https://", "http://host:99999999", "http://" + "x" * 300, "not a host"])
def test_a_senseless_endpoint_is_unreachable(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "127.0.0.1:9")
    hubs, _ = doctor._hubs(doctor._Reach(doctor._hub_addresses()))
    assert hubs["Hugging Face"]["reachable"] is False


def test_the_text_names_every_check_and_all_advice(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _low_memory(monkeypatch, 1)
    (sound / "config.json").unlink()
    findings = doctor.examine(check_network=False)
    text = doctor.render(findings, width=80)
    flat = " ".join(text.split())
    for check in findings["checks"]:
        assert check["name"] in text
        assert check["advice"] in flat
    assert text.endswith("Not ready: memory, embedded_model.")


@pytest.mark.slow
def test_the_whole_examination_on_this_machine(tmp_path: Path) -> None:
    """Nothing replaced: a process of its own, as the command line runs it, and nothing else on its screen."""
    done = subprocess.run(
        [sys.executable, "-c", "import json; from pipeline.core import doctor; print(json.dumps(doctor.examine()))"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert done.stderr == ""
    findings = json.loads(done.stdout)
    assert findings["works"]["unsloth"] is True
    assert findings["works"]["four_bit"] is True
    assert findings["accelerator"]["kind"] in ("none", "cuda")
