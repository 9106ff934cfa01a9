"""Loading the base through Unsloth, in a process of its own: Unsloth has to be imported before transformers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import gc, sys
from pathlib import Path
from pipeline.settings import load_profile
from pipeline.model.load import load_model

profile = load_profile("embedded")
model, _ = load_model(profile.model, profile.seed)
gc.collect()
head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
print("tied", head.data_ptr() == embedding.data_ptr())
print("mapped", "models/embedded/model.safetensors" in Path("/proc/self/maps").read_text())
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here to see what a process has mapped")
def test_the_checkpoint_is_not_held_beside_its_quantised_copy(warm_python: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [warm_python, "-c", LOAD], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == ["tied True", "mapped False"]
