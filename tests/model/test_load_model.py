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


BEYOND = """
from pipeline.settings import load_profile
from pipeline.data.chat_format import ChatFormat
from pipeline.model.decode import generate
from pipeline.model.load import load_model

replies = []
for length in (64, 512):
    profile = load_profile("embedded", [f"model.max_seq_length={length}"])
    model, tokenizer = load_model(profile.model, profile.seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id = 1000  # so that replies go on beyond their end
    prompts = [ChatFormat(tokenizer).prompt_ids([{"role": "user", "content": f"What is {a} + 5?"}], "thinking") for a in (7, 81)]
    sampling = profile.evaluation.sampling.thinking.model_copy(update={"max_new_tokens": 90})
    replies.append([reply.token_ids for reply in generate(model, tokenizer, prompts, sampling, 2, 1)])
print(model.config.max_position_embeddings, max(map(len, replies[0])), replies[0] == replies[1])
"""


def test_a_reply_may_go_beyond_max_seq_length(warm_python: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [warm_python, "-c", BEYOND], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "1024 90 True"
