"""Trackers: what they write is read back with their own readers; their failures stay theirs; no secret reaches them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import pipeline.training.trackers
from pipeline.core.files import read_json
from pipeline.training.trackers import TRACKERS, Trackers, evaluation_values, trainer_values

ROOT = Path(__file__).resolve().parents[2]
ALL = ["wandb", "swanlab", "tensorboard"]
MANIFEST = {
    "unit": "rows",
    "fingerprint": "ab" * 32,
    "sources": [
        {"name": name, "requested": 0.5, "achieved": {"rows": 0.5, "tokens": t, "loss_tokens": t / 2}, "rows": 10}
        for name, t in (("chat", 0.25), ("math", 0.75))
    ],
}
SETTINGS = {"profile": {"name": "embedded", "training": {"learning_rate": 0.003}}, "recipe": {"name": "mine"}}


def cell(score: float) -> dict[str, Any]:
    benchmarks = {"chat": {"score": score, "n": 6, "ci95": [0.1, 0.9]}}
    return {
        "benchmarks": benchmarks,
        "n": 6,
        "mode_fidelity": score,
        "mode_fidelity_ci95": [0.1, 1.0],
        "truncated": 0.0,
    }


def cells(score: float) -> dict[str, Any]:
    return {"thinking": cell(score), "non_thinking": cell(score / 2)}


# --- the trackers' own readers ------------------------------------------------------------------------------------------

Curves = dict[str, list[tuple[int, float]]]


def read_wandb(folder: Path) -> tuple[Curves, dict[str, Any]]:
    """wandb's records (its own protobuf messages), over all segments; the framing is read by SwanLab's reader of wandb files."""
    from swanlab.converter.wb.wbdatastore import WBDataStoreReader
    from wandb.proto.wandb_internal_pb2 import Record

    curves: Curves = {}
    config: dict[str, Any] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        with WBDataStoreReader() as reader:
            reader.open(str(path))
            records = [Record.FromString(data) for data in iter(reader.scan, None)]
        for record in records:
            for item in [*record.run.config.update, *record.config.update]:
                config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            entry = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            for key, value in entry.items():
                if isinstance(value, (int, float)):
                    curves.setdefault(key, []).append((int(entry.get("train/global_step", -1)), value))
    return curves, config


def read_swanlab(folder: Path) -> tuple[Curves, dict[str, Any]]:
    """The newest SwanLab run folder."""
    import yaml
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    newest = sorted(folder.glob("swanlab/run-*"))[-1]
    (path,) = newest.glob("*.swanlab")
    reader = DataStoreReader()
    reader.open(str(path))
    records = [Record.FromString(data) for data in reader]
    reader.close()
    curves: Curves = {}
    for record in records:
        if record.HasField("scalar"):
            curves.setdefault(record.scalar.key, []).append((record.scalar.step, record.scalar.value.number))
    stored = yaml.safe_load((newest / "files" / "config.yaml").read_text(encoding="utf-8"))
    return curves, {key: entry.get("value", entry) for key, entry in stored.items()}


def read_tensorboard(folder: Path) -> tuple[Curves, dict[str, Any]]:
    import yaml
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    text = events.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    return curves, yaml.safe_load("\n".join(line[4:] for line in text.splitlines()))


READERS = {"wandb": read_wandb, "swanlab": read_swanlab, "tensorboard": read_tensorboard}


# --- without a training -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of its own, to see what is written there; no setting of trackers from outside."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "SWANLAB_")):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    return home


def near(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> bool:
    return [s for s, _ in found] == [s for s, _ in wanted] and [v for _, v in found] == pytest.approx(
        [v for _, v in wanted]
    )


@pytest.mark.slow
def test_what_is_logged_is_read_back_and_a_resumed_run_goes_on_in_the_same_one(tmp_path: Path, elsewhere: Path) -> None:
    notes: list[str] = []
    trackers = Trackers(ALL, tmp_path / "run" / "trackers", notes.append)
    trackers.describe(SETTINGS, MANIFEST)
    trackers.evaluation("base", cells(0.5), 0, wait=True)
    assert not (tmp_path / "run").exists()
    trackers.begin(0, [])
    history = [
        {"loss": 3.0 - step / 10, "learning_rate": 0.001 * step, "grad_norm": 1.5, "step": step} for step in range(1, 7)
    ]
    history.append({"eval_loss": 2.5, "eval_runtime": 0.1, "step": 6})
    for entry in history:
        trackers.log(trainer_values(entry), entry["step"])
    trackers.close()
    # Another process goes on from the checkpoint at step 4: steps 5 and 6 are done again.
    again = Trackers(ALL, tmp_path / "run" / "trackers", notes.append)
    again.describe(SETTINGS, MANIFEST)
    again.evaluation("base", cells(0.5), 0, wait=True)
    again.begin(4, history[:4])
    for entry in history[4:]:
        again.log(trainer_values(entry), entry["step"])
    again.evaluation("tuned", cells(0.8), 6)
    again.evaluation("tuned", cells(0.8), 6)  # said again by a later command: nothing new
    again.close()
    import wandb

    wandb.teardown()  # its service writes behind; at the end of a process it is waited for
    assert notes == []
    for name, reader in READERS.items():
        curves, config = reader(tmp_path / "run" / "trackers")
        loss = [(step, 3.0 - step / 10) for step in range(1, 7)]
        if name == "wandb":
            loss = loss + loss[4:]  # two segments of one run; step is the axis
        assert near(curves["train/loss"], loss), name
        assert near(curves["train/learning_rate"][:4], [(step, 0.001 * step) for step in range(1, 5)]), name
        assert len(curves["train/grad_norm"]) == len(loss) and curves["eval/loss"][-1] == (6, 2.5)
        for which, score, step in (("base", 0.5, 0), ("tuned", 0.8, 6)):
            for mode, value in (("thinking", score), ("non_thinking", score / 2)):
                for key in ("mode_fidelity", "chat/score"):
                    assert near(curves[f"evaluation/{which}/{mode}/{key}"][:1], [(step, value)]), (name, key)
                    assert len(curves[f"evaluation/{which}/{mode}/{key}"]) == 1
        assert near(curves["mix/chat/requested"], [(0, 0.5)]), name
        shares = [curves[f"mix/math/achieved/{unit}"][0][1] for unit in ("rows", "tokens", "loss_tokens")]
        assert shares == [0.5, 0.75, 0.375]
        assert config["profile"]["training"]["learning_rate"] == 0.003 and config["recipe"]["name"] == "mine"
        assert config["mix"]["sources"]["chat"]["achieved"]["tokens"] == 0.25
    ids = {path.name.rpartition("-")[2] for path in (tmp_path / "run" / "trackers" / "wandb").glob("offline-run-*")}
    assert ids == {read_json(tmp_path / "run" / "trackers" / "state.json")["wandb"]["id"]}
    assert not [path for path in elsewhere.rglob("*") if path.is_file()]


class Broken:
    """A tracker that starts and then raises."""

    def __init__(self, *args: Any):
        pass

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step >= 2:
            raise ConnectionResetError("sent to https://bob:pa55word@host with planted-0123456789")

    def close(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_tracker_that_raises_is_left_out_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-0123456789")
    monkeypatch.setitem(TRACKERS, "swanlab", Broken)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    notes: list[str] = []
    trackers = Trackers(ALL, tmp_path / "trackers", notes.append)
    trackers.describe(SETTINGS, MANIFEST)
    trackers.begin(0, [])
    for step in range(1, 5):
        trackers.log({"train/loss": float(step)}, step)
    trackers.evaluation("tuned", cells(0.5), 4)
    trackers.close()
    assert len(notes) == 2
    assert "the tracker wandb could not start: ModuleNotFoundError" in notes[0]
    assert "the tracker swanlab could not log: ConnectionResetError: sent to https://***@host with ***" in notes[1]
    curves, _ = read_tensorboard(tmp_path / "trackers")
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4]


def test_a_disk_that_takes_nothing_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "trackers").mkdir()
    for name in ALL:
        (tmp_path / "trackers" / name).write_text("a file in the way", encoding="utf-8")
    notes: list[str] = []
    trackers = Trackers(ALL, tmp_path / "trackers", notes.append)
    trackers.describe(SETTINGS, MANIFEST)
    trackers.begin(0, [])
    trackers.log({"train/loss": 1.0}, 1)
    trackers.close()
    assert [note.split()[2] for note in notes] == ALL


@pytest.mark.slow
def test_online_without_a_network_is_noted_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.training.trackers, "START_TIMEOUT", 3)
    monkeypatch.setattr(pipeline.training.trackers, "FINISH_TIMEOUT", 3)
    for name in ("WANDB", "SWANLAB"):
        monkeypatch.setenv(f"{name}_MODE", "online")
        monkeypatch.setenv(f"{name}_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the port "discard": nobody listens
    monkeypatch.setenv("SWANLAB_API_HOST", "http://127.0.0.1:9")
    notes: list[str] = []
    trackers = Trackers(["wandb", "swanlab"], tmp_path / "trackers", notes.append)
    trackers.describe(SETTINGS, MANIFEST)
    began = time.monotonic()
    trackers.begin(0, [])
    trackers.log({"train/loss": 1.0}, 1)
    trackers.close()
    assert time.monotonic() - began < 60
    assert [note.split()[2] for note in notes] == ["wandb", "swanlab"] and "0000000" not in "".join(notes)


def test_none_does_nothing(tmp_path: Path) -> None:
    trackers = Trackers(["none"], tmp_path / "trackers")
    assert trackers.names == []
    trackers.describe(SETTINGS, MANIFEST)
    trackers.begin(0, [])
    trackers.evaluation("tuned", cells(0.5), 4)
    trackers.close()
    assert not list(tmp_path.iterdir())


def test_only_the_first_of_several_processes_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert Trackers(ALL, tmp_path).names == []


def test_names_of_values() -> None:
    entry = {"loss": 1, "eval_loss": 2.0, "epoch": 0.5, "step": 3, "note": "text", "flag": True}
    assert trainer_values(entry) == {"train/loss": 1.0, "eval/loss": 2.0, "train/epoch": 0.5}
    assert evaluation_values(cell(0.5)) == {
        "n": 6,
        "mode_fidelity": 0.5,
        "truncated": 0.0,
        "chat": {"score": 0.5, "n": 6},
    }


# --- with a run ---------------------------------------------------------------------------------------------------------

TINY = {
    "mix.total": 60,
    "training.max_steps": 6,
    "training.eval_steps": 3,
    "training.save_steps": 3,
    "training.logging_steps": 1,
    "evaluation.benchmarks": "[embedded_chat]",
    "evaluation.limit": 4,
}
PLANTED = {
    "WANDB_API_KEY": "planted-wandb-0123456789",
    "SWANLAB_API_KEY": "planted-swanlab-0123456789",
    "HF_TOKEN": "planted-hf-0123456789",
    "OPENAI_API_KEY": "planted-openai-0123456789",
}


@pytest.mark.slow
def test_a_whole_run_with_all_trackers_and_planted_secrets(
    pipeline_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    import yaml

    recipe = yaml.safe_load((ROOT / "data_recipes" / "embedded.yaml").read_text(encoding="utf-8"))
    recipe["sources"][0]["licence"] = "https://bob:planted-password@host/licence?token=planted-in-query"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    folder, plain = tmp_path / "run", tmp_path / "plain"
    own = [*(f"{key}={value}" for key, value in TINY.items()), f"recipe={path}"]
    tracked = [*own, f"training.report_to=[{','.join(ALL)}]"]
    done = pipeline_command("run", "--output-dir", str(folder), sets=tracked, environment=PLANTED)
    assert not [value for value in PLANTED.values() if value in done.stdout + done.stderr]
    pipeline_command("train", "--output-dir", str(plain), sets=own)
    adapters = [(f / "adapter" / "adapter_model.safetensors").read_bytes() for f in (folder, plain)]
    assert adapters[0] == adapters[1]  # trackers change nothing
    assert not (plain / "trackers").exists()
    report = read_json(folder / "report.json")
    assert report["run"]["notes"] == []
    for name, reader in READERS.items():
        curves, config = reader(folder / "trackers")
        assert near(curves["train/loss"], [(e["step"], e["loss"]) for e in report["training"]["loss"]]), name
        assert [step for step, _ in curves["train/learning_rate"]] == [step for step, _ in curves["train/grad_norm"]]
        assert near(curves["eval/loss"], [(e["step"], e["loss"]) for e in report["training"]["eval_loss"]]), name
        for which, step in (("base", 0), ("tuned", 6)):
            for mode in ("thinking", "non_thinking"):
                stored = report["evaluation"][which][mode]
                key = f"evaluation/{which}/{mode}"
                assert near(curves[f"{key}/mode_fidelity"], [(step, stored["mode_fidelity"])]), name
                score = stored["benchmarks"]["embedded_chat"]["score"]
                assert near(curves[f"{key}/embedded_chat/score"], [(step, score)]), name
        for source in report["mix"]["sources"]:
            for unit, share in source["achieved"].items():
                assert curves[f"mix/{source['name']}/achieved/{unit}"][0][1] == pytest.approx(share)
        assert (
            config["profile"]["training"]["max_steps"] == 6 and config["profile"]["model"]["name"] == "models/embedded"
        )
    for file in (p for p in folder.rglob("*") if p.is_file()):
        content = file.read_bytes()
        assert b"planted" not in content, file

    # The masked settings are still those of this run.
    pipeline_command("report", "--output-dir", str(folder))
