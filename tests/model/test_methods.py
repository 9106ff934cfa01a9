"""Fine-tuning methods: what they train, that saving and resuming loses nothing, and what is refused.

Everything that trains does so in one process of its own, as Unsloth has to be imported before transformers.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.model.methods import _require_modules, disk_bytes, load_adapter, matrix_shapes, require_fit
from pipeline.settings import METHODS, Method, load_profile

ROOT = Path(__file__).resolve().parents[2]
CONFIG = read_json(ROOT / "models" / "embedded" / "config.json")
LAYERS, HIDDEN, INNER, VOCABULARY = 4, 128, 512, 1024
SHAPES = {
    "q_proj": (128, 256), "k_proj": (128, 128), "v_proj": (128, 128), "o_proj": (256, 128),
    "gate_proj": (128, 512), "up_proj": (128, 512), "down_proj": (512, 128),
}  # fmt: skip
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
RANK = 32


def lora(names: Any) -> int:
    return LAYERS * RANK * sum(sum(SHAPES[name]) for name in names)


LINEAR = LAYERS * sum(a * b for a, b in SHAPES.values())
NORMS = LAYERS * (2 * HIDDEN + 2 * 64) + HIDDEN  # two a layer, those of queries and keys (head size 64), the last
TRAINED: dict[Method, int] = {
    "full": LINEAR + NORMS + VOCABULARY * HIDDEN,  # embedding and head are one
    "lora": lora(SHAPES),
    "qlora": lora(SHAPES),
    "dora": lora(SHAPES) + LAYERS * sum(b for _, b in SHAPES.values()),  # and a magnitude an output
    "rslora": lora(SHAPES),
    "lora_attention_full": lora(set(SHAPES) - set(ATTENTION))
    + LAYERS * sum(SHAPES[n][0] * SHAPES[n][1] for n in ATTENTION),
    "adapter": LAYERS * 2 * (2 * HIDDEN * 8 + HIDDEN + 8),  # reduction 16: width 8
    "prefix": 20 * LAYERS * 2 * 128,  # keys and values of two heads of 64
    "prompt": 20 * HIDDEN,
    "ia3": LAYERS * (SHAPES["k_proj"][1] + SHAPES["v_proj"][1] + INNER),
}


# --- settings against the model -----------------------------------------------------------------------------------------


def test_shapes_of_the_embedded_model() -> None:
    assert matrix_shapes(CONFIG) == SHAPES
    assert matrix_shapes({"model_type": "other"}) == {}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora.rank=129"], "lora.rank=129 is larger than q_proj, a matrix of 128 × 256: take at most 128"),
        (["method=dora", "lora.rank=500", "lora.target_modules=[down_proj]"], "down_proj, a matrix of 512 × 128"),
        (["method=adapter", "adapter.reduction=200"], "adapter.reduction=200 leaves a bottleneck of no width.*128"),
        (["method=prefix", "prefix.virtual_tokens=800"], "prefix.virtual_tokens=800 and .*256 .*1024 positions"),
        (["method=prompt", "prompt.virtual_tokens=1000"], "prompt.virtual_tokens=1000"),
    ],
)
def test_options_that_do_not_fit_the_model(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        require_fit(load_profile("embedded", overrides), CONFIG)


@pytest.mark.parametrize("method", METHODS)
def test_defaults_fit_the_model(method: Method) -> None:
    profile = load_profile("embedded", [f"method={method}"])
    assert require_fit(profile, CONFIG) is None and profile.chosen_method == method
    assert require_fit(load_profile("embedded", ["lora.rank=128"]), CONFIG) is None


def test_a_run_refuses_before_it_writes_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli.main import main

    assert main(["train", "--output-dir", str(tmp_path / "run"), "--set", "lora.rank=200"]) == 2
    assert "lora.rank=200 is larger than" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_module_that_the_model_lacks(tiny_qwen3: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="no module qkv_proj.*--set 'lora.target_modules=") as caught:
        _require_modules(tiny_qwen3(1), ["qkv_proj", "o_proj"], "lora.target_modules")
    assert "lm_head" not in str(caught.value) and "gate_proj" in str(caught.value)


def test_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no adapter"):
        load_adapter(None, tmp_path)  # type: ignore[arg-type]
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="holds no adapter"):
        load_adapter(None, tmp_path)  # type: ignore[arg-type]


# --- for real -----------------------------------------------------------------------------------------------------------

SCRIPT = """
import json, shutil, sys, time
from pathlib import Path
from pipeline.core.versions import import_unsloth

import_unsloth()
import torch
from pipeline.cli.shared import quiet
from pipeline.core.errors import UserError
from pipeline.core.files import file_sha256
from pipeline.model import batch
from pipeline.model.decode import generate
from pipeline.model.methods import add_method, model_identity, load_adapter, method_of, weights_files
from pipeline.data.describe import build_profile_mix
from pipeline.settings import METHODS, load_profile
from pipeline.model.load import load_model
from pipeline.training.loop import Session
from pipeline.training.train import make_sft_trainer, train

quiet()
batch.LOOK_EVERY = batch.WORTH_IT = 1  # replies this short would not be worth a smaller batch
folder, tiny = Path(sys.argv[1]), [
    "recipe=data_recipes/embedded.yaml",
    "training.max_steps=4", "training.eval_steps=4", "training.save_steps=2", "training.logging_steps=1", "mix.total=200",
    "training.learning_rate=0.01", "training.warmup_steps=0",
]
out, mix = {}, None
ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], list(range(20, 50))]


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids).logits[:, -len(ids[0]):].float()


for method in sys.argv[2:]:
    profile = load_profile("embedded", [f"method={method}", *tiny])
    mix = mix or build_profile_mix(profile)
    place = folder / method
    base, tokenizer = load_model(profile.model, profile.seed, method)
    before, identity = logits(base), model_identity(base)
    model, section = train(base, tokenizer, profile, mix, Session(place))
    loaded = load_adapter(load_model(profile.model, profile.seed, method)[0], place / "adapter")
    again = folder / f"{method}-resumed"
    shutil.copytree(place / "checkpoints" / "checkpoint-2", again / "checkpoints" / "checkpoint-2")
    base = load_model(profile.model, profile.seed, method)[0]
    resumed, _ = train(base, tokenizer, profile, mix, Session(again, resume=True))
    sampling = profile.evaluation.sampling.thinking.model_copy(update={"max_new_tokens": 60})
    ends, loaded.generation_config.eos_token_id = loaded.generation_config.eos_token_id, list(range(0, 1024, 6))
    replies = [[r.token_ids for r in generate(loaded, tokenizer, prompts, sampling, size, 1)] for size in (3, 1)]
    lengths = sorted(len(r) for r in replies[0])
    loaded.generation_config.eos_token_id = ends
    sampling = sampling.model_copy(update={"max_new_tokens": 12})
    greedy = sampling.model_copy(update={"temperature": 0.0})
    reply = generate(loaded, tokenizer, prompts[:1], greedy, 1, 1)[0].token_ids
    with torch.no_grad():
        whole = loaded(input_ids=torch.tensor([prompts[0] + reply])).logits[0, -len(reply) - 1:-1]
    out[method] = section | {
        "identity": identity == model_identity(load_model(profile.model, profile.seed)[0]) == model_identity(loaded),
        "method": method_of(model),
        "same": torch.equal(logits(model), logits(loaded)),
        "moved": float((logits(model) - before).abs().max()),
        "resumed": [file_sha256(p) for p in weights_files(again / "adapter")]
        == [file_sha256(p) for p in weights_files(place / "adapter")],
        "batches_agree": replies[0] == replies[1],
        "reply_lengths": lengths,
        "decoding_is_the_forward_pass": float((whole.max(-1).values - whole.gather(1, torch.tensor(reply)[:, None])[:, 0]).max()),
    }

"""

# An adapter on another base, LoRA+ and NEFTune: with the first script's names and what it has trained.
BESIDES = """
from transformers import AutoConfig, AutoModelForCausalLM

errors = {}
for name, changes in (("vocabulary", {"vocab_size": 1100}), ("weights", {}), ("layers", {"num_hidden_layers": 2})):
    config = AutoConfig.from_pretrained(str(Path("models/embedded")))
    for key, value in changes.items():
        setattr(config, key, value)
    if "num_hidden_layers" in changes:
        config.layer_types = config.layer_types[:2]
    torch.manual_seed(0)
    other = AutoModelForCausalLM.from_config(config)
    for method in ("lora", "full", "adapter"):
        try:
            load_adapter(other, folder / method / "adapter")
        except UserError as error:
            errors[f"{name}/{method}"] = str(error)
quantised = load_model(load_profile("embedded").model, 0)[0]
for method in ("full", "lora_attention_full", "adapter"):
    try:
        load_adapter(quantised, folder / method / "adapter")
    except UserError as error:
        errors[f"4bit/{method}"] = str(error)
foreign = shutil.copytree(folder / "lora" / "adapter", folder / "foreign")
(foreign / "method.json").unlink()
try:
    config.vocab_size, config.hidden_size = 1024, 64
    load_adapter(AutoModelForCausalLM.from_config(config), foreign)
except UserError as error:
    errors["foreign"] = str(error)


# LoRA+ and NEFTune.
def first_loss(*overrides):
    profile = load_profile("embedded", [*tiny, "training.max_steps=1", "method=lora", *overrides])
    model, tokenizer = load_model(profile.model, profile.seed)
    model = add_method(model, profile)
    trainer = make_sft_trainer(model, tokenizer, profile, mix, folder / "scratch")
    a, b = ({n: p.detach().clone() for n, p in model.named_parameters() if w in n} for w in ("lora_A", "lora_B"))
    trainer.train()
    now = dict(model.named_parameters())
    moved = [max(float((now[n].detach() - p).abs().max()) for n, p in part.items()) for part in (a, b)]
    groups = sorted({g["initial_lr"] for g in trainer.optimizer.param_groups if g["params"]})
    return {"loss": trainer.state.log_history[0]["loss"], "moved": moved, "rates": groups}


variants = {"plain": first_loss(), "plus": first_loss("lora.plus_lr_ratio=16"),
            "noise": first_loss("training.neftune_noise_alpha=15")}
out |= {"errors": errors, "variants": variants}
"""
END = """
print("RESULT" + json.dumps(out))
"""


CORE: tuple[Method, ...] = ("full", "lora", "lora_attention_full", "adapter")  # one of each kind; the others by night
ALL = [pytest.param(method, marks=() if method in CORE else pytest.mark.nightly) for method in METHODS]
Trained = Callable[[Method], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def trained(
    once: Callable[[str, Callable[[Path], object]], Path], warm_python: str, environment: dict[str, str]
) -> Trained:
    """Where a method was trained, with the others of its group, and what came of it."""

    def of(method: Method) -> tuple[Path, dict[str, Any]]:
        core = method in CORE

        def make(folder: Path) -> None:
            script, methods = (
                (SCRIPT + BESIDES + END, CORE) if core else (SCRIPT + END, [m for m in METHODS if m not in CORE])
            )
            command = [warm_python, "-c", script, str(folder), *methods]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
            assert done.returncode == 0, done.stderr[-3000:]
            (folder / "result.json").write_text(done.stdout.split("RESULT")[-1], encoding="utf-8")

        folder = once("methods_core" if core else "methods_others", make)
        return folder, read_json(folder / "result.json")

    return of


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL)
def test_a_method_trains_saves_resumes_and_loads(trained: Trained, method: Method) -> None:
    got = trained(method)[1][method]
    assert got["steps"] == 4 and got["method"] == method
    assert got["trainable_parameters"] == TRAINED[method]
    inside = method in ("full", "lora_attention_full")
    base = TRAINED["full"]
    extra = lora(set(SHAPES) - set(ATTENTION)) if method == "lora_attention_full" else 0
    assert got["total_parameters"] == (base + extra if inside else base + TRAINED[method])
    assert got["loss"][-1]["loss"] != got["loss"][0]["loss"] and got["moved"] > 1e-3
    assert got["same"], "what is loaded differs from what was trained"
    assert got["resumed"], "a resumed run ends with other weights"
    assert got["batches_agree"], "a reply depends on its batch"
    assert got["reply_lengths"][1] < got["reply_lengths"][2]  # so that the batch went on without two of its rows
    assert got["decoding_is_the_forward_pass"] < 0.1  # of a logit, in 16 bit
    assert got["identity"], "a base's identity depends on its precision or its adapter"
    assert got["training_seconds"] > 0
    assert got["memory_above_base_bytes"] is None or 0 < got["memory_above_base_bytes"] < got["peak_memory_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL)
def test_what_is_on_disk(trained: Trained, method: Method) -> None:
    adapter = trained(method)[0] / method / "adapter"
    # Trained matrices of the base are 16 bit on disk, everything else 32.
    base_part = {"full": TRAINED["full"], "lora_attention_full": TRAINED[method] - lora(set(SHAPES) - set(ATTENTION))}
    expected = 4 * TRAINED[method] - 2 * base_part.get(method, 0)
    assert expected <= disk_bytes(adapter) < 1.05 * expected + 16_000  # and the file's header
    for name in ("adapter_config.json", "method.json", "README.md", "config.json"):
        if (adapter / name).exists():
            assert str(ROOT) not in (adapter / name).read_text(encoding="utf-8"), name
    record = read_json(adapter / "method.json")
    assert record["method"] == method
    assert (record["base"]["vocabulary"], record["base"]["hidden_size"], record["base"]["layers"]) == (1024, 128, 4)


@pytest.mark.slow
def test_an_adapter_of_another_base_is_refused(trained: Trained) -> None:
    errors = trained("lora")[1]["errors"]
    for method in ("lora", "full", "adapter"):
        assert "with a vocabulary of 1024; this one has a vocabulary of 1100" in errors[f"vocabulary/{method}"]
        assert "another base of the same shape" in errors[f"weights/{method}"]
        assert "with 4 layers; this one has 2 layers" in errors[f"layers/{method}"]
    for method in ("full", "lora_attention_full", "adapter"):
        assert "set model.load_in_4bit=false" in errors[f"4bit/{method}"]
    assert "does not fit this base" in errors["foreign"]  # an adapter without method.json


@pytest.mark.slow
def test_lora_plus_and_neftune_act(trained: Trained) -> None:
    variants = trained("lora")[1]["variants"]
    assert variants["plain"]["rates"] == pytest.approx([0.01])
    assert variants["plus"]["rates"] == pytest.approx([0.01, 0.16])
    # Adam's first step moves a weight by the learning rate. B is zero, so A has no gradient yet.
    assert variants["plain"]["moved"][1] == pytest.approx(0.01, rel=0.05)
    assert variants["plus"]["moved"][1] == pytest.approx(0.16, rel=0.05)
    assert variants["plus"]["loss"] == variants["plain"]["loss"] != variants["noise"]["loss"]
