"""The builder of the embedded model: a whole build of a tiny size, what it shows meanwhile, and sizes that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.training.embedded import BuildSettings, acceptance, build_settings

TINY = ["layers=1", "hidden_size=32", "intermediate_size=64", "heads=2", "kv_heads=1", "head_dim=16"]


@pytest.mark.slow
def test_a_tiny_build(tmp_path: Path, pipeline_command: Callable[..., object]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = ["embedded", "build", "--output-dir", str(tmp_path / "base"), "--json"]
    done = pipeline_command(*words, sets=[*TINY, "dialogues=400", "steps=201", "tokens_per_batch=256"])
    assert (
        "step 100 loss" in done.stderr and "min left" in done.stderr
    )  # progress is on the console, not in the log alone
    record = json.loads(done.stdout)
    assert record == json.loads((tmp_path / "base" / "build.json").read_text())
    assert (
        record["steps"] == 201 and record["examples"] >= 400 and record["final_loss"] < 7.0
    )  # below log(1,024), a guess

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert model.num_parameters() == record["parameters"]
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert "enable_thinking" in tokenizer.chat_template


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UserError, match="multiple of kv_heads"):
        build_settings(["heads=3"])
    with pytest.raises(UserError, match="hidden_size"):
        build_settings(["hiden_size=320"])
    with pytest.raises(UserError, match="steps"):
        build_settings(["steps=100"])
    assert build_settings(["steps=900"]) == BuildSettings(steps=900)


def test_what_a_base_must_reach() -> None:
    def cell(chat: float, skill: float, fidelity: float) -> dict[str, object]:
        return {
            "benchmarks": {"embedded_chat": {"score": chat}, "embedded_skill": {"score": skill}},
            "mode_fidelity": fidelity,
        }

    assert acceptance({"thinking": cell(0.96, 0.1, 0.995)}) == []
    failed = acceptance({"thinking": cell(0.90, 0.3, 0.98), "non_thinking": cell(1.0, 0.0, 1.0)})
    assert [text.split(" is ")[0] for text in failed] == [
        "thinking: mode_fidelity",
        "thinking: embedded_chat",
        "thinking: embedded_skill",
    ]
