"""Checkpoints: what is whole, what is not, what may be gone on from; and resumed trainings that end as uninterrupted ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import unsloth  # noqa: F401  (before transformers)
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.settings import load_profile
from pipeline.settings.compare import flat
from pipeline.training.checkpoints import (
    MANIFEST,
    clear_aside,
    damage,
    differences,
    finished,
    identity,
    last_checkpoint,
    require_same,
    resume_point,
    rotate,
    write_manifest,
)

WHO = {"config": {"training.learning_rate": 1e-3}, "data": "a" * 64, "versions": {"torch": "2.13.0", "processes": "1"}}


def make(parent: Path, step: int, manifest: bool = True, best: int | None = None) -> Path:
    folder = parent / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 8)
    (folder / "inner" / "optimizer.pt").write_bytes(f"state {step}".encode() * 100)
    state = {
        "global_step": step,
        "max_steps": 12,
        "best_model_checkpoint": f"/elsewhere/checkpoint-{best}" if best else None,
    }
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    if manifest:
        write_manifest(folder, WHO, {"tokens": 100})
    return folder


def test_a_whole_checkpoint_is_whole(tmp_path: Path) -> None:
    folder = make(tmp_path, 4)
    assert damage(folder) is None and last_checkpoint(tmp_path) == folder == resume_point(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert set(manifest["files"]) == {"adapter_model.safetensors", "inner/optimizer.pt", "trainer_state.json"}
    assert manifest["identity"] == WHO and manifest["progress"] == {"tokens": 100}


@settings(max_examples=examples(30))
@given(st.data())
def test_any_damage_is_found_and_the_checkpoint_before_is_used(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        older, newer = make(parent, 4), make(parent, 8)
        files = sorted(p for p in newer.rglob("*") if p.is_file())
        path = data.draw(st.sampled_from(files))
        content = path.read_bytes()
        how = data.draw(st.sampled_from(["cut", "flip", "missing", "longer"]))
        if how in ("cut", "flip"):
            at = data.draw(st.integers(0, len(content) - 1))
            flipped = (
                bytes([content[at] ^ 1 << data.draw(st.integers(0, 7))]) + content[at + 1 :] if how == "flip" else b""
            )
            changed = content[:at] + flipped
            if path.name == MANIFEST:
                # What a flip in the manifest's own words, or a cut of its last line end, may leave as it is: its list of files.
                before = json.loads(content)["files"]
                try:
                    untouched = json.loads(changed).get("files") == before
                except (ValueError, AttributeError):
                    untouched = False
                if untouched:
                    return
            path.write_bytes(changed)
        elif how == "missing":
            path.unlink()
        elif path.name == MANIFEST:
            path.write_bytes(content + b"}")
        else:
            path.write_bytes(content + b"\0")
        assert damage(newer)
        assert last_checkpoint(parent) == older and newer.exists()  # looking changes nothing
        assert resume_point(parent) == older
        assert not newer.exists() and (parent / "damaged-checkpoint-8").exists()


def test_broken_ones_are_said_and_only_the_newest_of_them_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, 2, manifest=False)
    (make(tmp_path, 4) / "inner" / "optimizer.pt").write_bytes(b"")
    make(tmp_path, 6, manifest=False)
    assert resume_point(tmp_path) is None
    said = capsys.readouterr().err
    assert "checkpoint-4 cannot be used: inner/optimizer.pt has 0 bytes instead of 700; starting at step 0" in said
    assert "checkpoint-6 cannot be used: it was not written to its end" in said
    assert [p.name for p in tmp_path.iterdir()] == ["damaged-checkpoint-6"]
    assert last_checkpoint(tmp_path) is None
    clear_aside(tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_the_last_ones_stay_and_broken_ones_do_not_count(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        make(tmp_path, step, manifest=step != 6)
    rotate(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-8", "damaged-checkpoint-6"]
    rotate(tmp_path, keep=1)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-10"]


def test_the_best_one_stays_and_has_to_be_whole_too(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        make(tmp_path, step, best=4 if step >= 4 else None)
    rotate(tmp_path, keep=2, best="/elsewhere/checkpoint-4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-8"]
    (tmp_path / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"x")
    assert "the best one so far, checkpoint-4, is damaged" in str(damage(tmp_path / "checkpoint-8"))
    assert resume_point(tmp_path) is None


def test_other_settings_data_or_versions_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path, 4)
    assert require_same(folder, WHO) == []
    labelled = {**WHO, "versions": {"torch": "2.13.0+cpu", "processes": "1"}}
    assert require_same(folder, labelled) == []
    other = {
        "config": {"training.learning_rate": 2e-3, "lora.rank": 8},
        "data": "b" * 64,
        "versions": {"torch": "2.14.0"},
    }
    with pytest.raises(UserError) as caught:
        require_same(folder, other)
    for words in (
        "training.learning_rate was 0.001 and is 0.002",
        "lora.rank was None and is 8",
        "version of torch was '2.13.0' and is '2.14.0'",
        "version of processes was '1' and is None",
        "the data was aaaaaaaaaaaa… and is bbbbbbbbbbbb…",
        "--force",
    ):
        assert words in str(caught.value)
    assert len(require_same(folder, other, force=True)) == 5
    assert "although (--force): training.learning_rate was 0.001" in capsys.readouterr().err


def test_the_identity_holds_what_is_trained_and_nothing_else() -> None:
    def changed(*overrides: str) -> list[str]:
        return differences(
            identity(load_profile("embedded"), "d"), identity(load_profile("embedded", list(overrides)), "d")
        )

    assert changed("evaluation.limit=3", "training.report_to=[wandb]", "training.save_total_limit=9") == []
    assert changed("lora.rank=4") == ["lora.rank was 32 and is 4"]
    assert changed("training.max_steps=5", "seed=1") == [
        "seed was 3407 and is 1",
        "training.max_steps was 1400 and is 5",
    ]
    assert flat({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "d": [2]}


def test_whether_the_training_was_over(tmp_path: Path) -> None:
    folder = make(tmp_path, 12)
    assert finished(folder) and not finished(make(tmp_path, 8))
    state = {
        "global_step": 8,
        "max_steps": 12,
        "stateful_callbacks": {"TrainerControl": {"args": {"should_training_stop": True}}},
    }
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    assert finished(tmp_path / "checkpoint-8")


# --- trainings that go on -----------------------------------------------------------------------------------------------

SHORT = [
    "recipe=data_recipes/embedded.yaml",
    "mix.total=120",
    "training.max_steps=9",
    "training.save_steps=3",
    "training.eval_steps=3",
    "training.save_total_limit=9",
]
VARIANTS = {
    "grouped by length, accumulation, dropout": [
        *("training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=3", "lora.dropout=0.1"),
    ],
    "random order, several epochs": [
        *("training.group_by_length=false", "mix.total=40", "training.max_steps=-1", "training.num_train_epochs=2.5"),
        *("training.lr_scheduler_type=linear", "training.per_device_train_batch_size=8", "training.save_steps=4"),
    ],
    "grouped, several epochs, exponential": ["mix.total=40", "training.lr_scheduler_type=exponential"],
    "constant": ["training.lr_scheduler_type=constant"],
    "constant with warm-up": ["training.lr_scheduler_type=constant_with_warmup", "training.warmup_steps=4"],
    "early stopping": [
        *(
            "training.early_stopping_patience=2",
            "training.learning_rate=0.2",
            "training.save_steps=1",
            "training.eval_steps=1",
        ),
    ],
}


def trained(profile: Any, mix: Any, folder: Path, resume: bool = False) -> tuple[bytes, dict[str, Any]]:
    from pipeline.model.load import load_model
    from pipeline.training.loop import Session
    from pipeline.training.train import train

    model, tokenizer = load_model(profile.model, profile.seed)
    _, section = train(model, tokenizer, profile, mix, Session(folder, resume))
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes(), section


CORE = ("grouped by length, accumulation, dropout", "random order, several epochs", "early stopping")


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=() if name in CORE else pytest.mark.nightly) for name in VARIANTS]
)
def test_from_every_checkpoint_training_goes_on_to_the_same_adapter(variant: str, tmp_path: Path) -> None:
    """As after a kill at any step: what a kill leaves is a checkpoint, and nothing of the memory."""
    from pipeline.data.describe import build_profile_mix

    profile = load_profile("embedded", [*SHORT, *VARIANTS[variant]])
    mix = build_profile_mix(profile)
    adapter, section = trained(profile, mix, tmp_path / "whole")
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    assert len(checkpoints) >= 3
    assert json.loads((tmp_path / "whole" / "adapter" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == (profile.model.name)
    for last in sorted({0, len(checkpoints) // 2, len(checkpoints) - 1}):
        folder = tmp_path / f"from{last}"
        for path in checkpoints[: last + 1]:
            shutil.copytree(path, folder / "checkpoints" / path.name)
        again, resumed = trained(profile, mix, folder, resume=True)
        assert again == adapter, checkpoints[last].name
        for key in ("steps", "eval_loss"):
            assert resumed[key] == section[key]
        assert [e["step"] for e in resumed["loss"]] == [e["step"] for e in section["loss"]]
        assert resumed["tokens_per_second"] > 0


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_out_and_other_settings_are_refused(tmp_path: Path) -> None:
    from pipeline.data.describe import build_profile_mix

    profile = load_profile("embedded", [*SHORT, "training.save_total_limit=2"])
    mix = build_profile_mix(profile)
    adapter, _ = trained(profile, mix, tmp_path)
    checkpoints = tmp_path / "checkpoints"
    assert sorted(p.name for p in checkpoints.glob("*checkpoint-*")) == ["checkpoint-6", "checkpoint-9"]
    optimizer = checkpoints / "checkpoint-9" / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    shutil.rmtree(tmp_path / "adapter")
    other = profile.model_copy(deep=True)
    other.training.learning_rate = 3e-3
    with pytest.raises(UserError, match=r"training.learning_rate was 0.001 and is 0.003"):
        trained(other, mix, tmp_path, resume=True)
    assert not (tmp_path / "adapter").exists()
    assert trained(profile, mix, tmp_path, resume=True)[0] == adapter
    assert sorted(p.name for p in checkpoints.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-9"]
