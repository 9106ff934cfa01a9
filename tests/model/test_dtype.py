"""What a model computes in is a setting, said wherever numbers stand; what is written to disk does not depend on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.files import read_json
from pipeline.model import dtype
from pipeline.model.methods import disk_bytes
from pipeline.settings import ModelSettings, load_profile


def settings(**changes: object) -> ModelSettings:
    return ModelSettings.model_validate({"name": "x", "max_seq_length": 8, **changes})


def test_auto_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(dtype, "cpu_flags", lambda: {"avx2", "fma"})
    assert dtype.computing_dtype(settings()) == "float32"
    assert dtype.precision(settings(load_in_4bit=False)) == "32bit_float32"
    monkeypatch.setattr(dtype, "cpu_flags", lambda: {"avx2", "avx512_bf16"})
    assert dtype.computing_dtype(settings()) == "bfloat16"
    assert dtype.computing_dtype(settings(dtype="float32")) == "float32"
    assert dtype.precision(settings()) == "4bit_bfloat16"


@pytest.mark.parametrize(
    ("flags", "wanted", "bf16"),
    [
        ({"avx2"}, "auto", False),
        ({"avx512_bf16"}, "auto", True),
        ({"avx512_bf16"}, "float32", False),  # as the embedded profile: the same numbers everywhere
        ({"avx2"}, "bfloat16", True),  # asked for
    ],
)
def test_a_processor_trains_in_what_it_computes_in(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], wanted: str, bf16: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(dtype, "cpu_flags", lambda: flags)
    assert dtype.mixed_precision(settings(dtype=wanted)) == {"bf16": bf16, "fp16": False}


def test_the_embedded_profile_computes_alike_everywhere() -> None:
    assert load_profile("embedded").model.dtype == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("forced", ["float32", "bfloat16"])
def test_trained_matrices_of_the_base_are_written_in_16_bit(pipeline_command, tmp_path: Path, forced: str) -> None:
    """Both types are forced, so that a processor without bfloat16 instructions shows both too."""
    sets = [
        "method=full",
        f"model.dtype={forced}",
        "training.max_steps=2",
        "training.per_device_train_batch_size=2",
        "data.validation_fraction=0",
        "recipe=data_recipes/embedded.yaml",
        "mix.total=40",
    ]
    pipeline_command("train", "--profile", "embedded", "--output-dir", str(tmp_path / "run"), sets=sets)
    from safetensors.torch import load_file

    adapter = tmp_path / "run" / "adapter"
    types = {str(tensor.dtype) for tensor in load_file(adapter / "model.safetensors").values()}
    assert types == {"torch.bfloat16"}
    assert disk_bytes(adapter) < 2_700_000  # 1.31 M parameters of two bytes
    assert read_json(tmp_path / "run" / "run.json")["dtype"] == forced
