"""Loading the base through Unsloth, in a process of its own: Unsloth has to be imported before transformers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pipeline.model import config, load, methods
from pipeline.model.memory import release
from pipeline.run import Run
from pipeline.settings import load_profile

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
    prompts = [ChatFormat(tokenizer).prompt_ids([{"role": "user", "content": f"What is {a} + 5?"}], "thinking") for a in (7, 81)]
    model.generation_config.eos_token_id = tokenizer.eos_token_id = 1000  # so that replies go on beyond their end
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


# --- what is loaded is what was named -------------------------------------------------------------------------------


def source(package: str, *parts: str) -> str:
    """A file of an installed package, read and not imported."""
    spec = importlib.util.find_spec(package)
    assert spec and spec.origin
    return Path(spec.origin).parent.joinpath(*parts).read_text(encoding="utf-8")


def test_what_unsloth_does_with_a_name_on_a_gpu() -> None:
    """Contracts: the reasons for what this project says in its calls. Where one fails, look whether it is still needed."""
    loader = source("unsloth", "models", "loader.py")
    assert "use_exact_model_name" in loader and "Ignoring revision" in loader
    trainer = source("unsloth", "trainer.py")
    assert 'return getattr(config, "padding_free", None) is None' in trainer  # left open, it is switched on
    llama = source("unsloth", "models", "llama.py")
    replaced = llama.partition("def PeftModel_fast_forward(")[2].partition("\ndef ")[0]
    assert (
        "virtual" not in replaced and "past_key_values" not in replaced
    )  # nor does it get what stands before the prompt
    assert "PeftModelForCausalLM.forward = PeftModel_fast_forward" in source("unsloth", "models", "qwen3.py")
    assert "def patch_peft_model(model, use_gradient_checkpointing" in llama


def test_the_repository_that_is_named_is_the_one_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Fast:
        @staticmethod
        def from_pretrained(**options: Any) -> Any:
            asked.update(options)
            return SimpleNamespace(device=torch.device("cuda")), "tokenizer"

    fake = ModuleType("unsloth")
    fake.FastLanguageModel = Fast  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth", fake)
    monkeypatch.setattr(load, "import_unsloth", lambda: fake)
    monkeypatch.setattr(load, "require_hub", lambda *_: None)
    profile = load_profile("qwen3-0.6b", ["model.revision=0123abc"])
    load.load_model(profile.model, 0)
    assert asked["model_name"] == "Qwen/Qwen3-0.6B" and asked["load_in_4bit"]
    assert asked["use_exact_model_name"] is True and asked["revision"] == "0123abc"


def test_a_run_stays_with_the_commit_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "hub" / "models--Qwen--Qwen3-0.6B" / "snapshots" / "c1899de289a04d12100db370d81485cdf75e47ca"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(config, "_from_huggingface", lambda settings: snapshot / "config.json")
    run = Run(load_profile("qwen3-0.6b"), cast(Any, None), tmp_path)
    assert run.identity("base").startswith("Qwen3-0.6B-c1899de289a0-4bit_")
    (tmp_path / "run.json").write_text(json.dumps({"commit": "f" * 40}), encoding="utf-8")  # the hub has moved on since
    assert run.model_settings().revision == "f" * 40 and f"-{'f' * 12}-" in run.identity("base")
    assert config.commit_of(load_profile("embedded").model) is None


def test_virtual_tokens_are_refused_behind_unsloths_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftModelForCausalLM

    from pipeline.core.errors import UserError

    def forward(self: Any) -> None: ...

    forward.__module__ = "unsloth.models.llama"
    monkeypatch.setattr(PeftModelForCausalLM, "forward", forward)
    monkeypatch.setattr(load, "import_unsloth", lambda: None)
    with pytest.raises(UserError, match=r"Method prompt .* PEFT.*restart"):
        load.load_model(load_profile("embedded").model, 0, "prompt")


# --- further training, memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "checkpointing", "expected"),
    [("cuda", True, "unsloth"), ("cuda", False, False), ("cpu", True, None)],
)
def test_an_adapter_that_is_trained_further_gets_the_kernels_of_a_new_one(
    device: str, checkpointing: bool, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def patch_peft_model(model: Any, use_gradient_checkpointing: Any) -> Any:
        given.append(use_gradient_checkpointing)
        return model

    fake = ModuleType("unsloth")
    fake.FastLanguageModel = SimpleNamespace(patch_peft_model=patch_peft_model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth", fake)
    lora = SimpleNamespace(peft_type="LORA", modules_to_save=None, use_dora=False, use_rslora=False)
    model = SimpleNamespace(
        device=torch.device(device), peft_config={"default": lora}, modules=lambda: [], parameters=lambda: []
    )
    assert methods.with_fused_kernels(cast(Any, model), checkpointing) is model
    assert given == ([] if expected is None else [expected])


def test_the_model_before_is_gone_when_the_next_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and what is patched into it hold each other, so dropping it is not enough."""
    import weakref

    class Model:
        def __init__(self) -> None:
            self.patched = self.forward  # a circle

        def forward(self) -> None: ...

    alive: list[weakref.ref[Model]] = []

    def loads(*_: Any) -> Any:
        assert not any(model() for model in alive)
        made = Model()
        alive.append(weakref.ref(made))
        return made, "tokenizer"

    monkeypatch.setattr("pipeline.run.load_model", loads)
    monkeypatch.setattr("pipeline.training.train.load_adapter", lambda model, folder: model)
    import gc

    gc.disable()  # what is not freed on purpose would otherwise be freed by chance
    try:
        run = Run(load_profile("embedded"), cast(Any, None), tmp_path)
        for which in ("base", "tuned", "base"):
            run.model(which)
    finally:
        gc.enable()
    assert len(alive) == 2


def test_memory_of_the_device_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    release()
    assert emptied == [True]
