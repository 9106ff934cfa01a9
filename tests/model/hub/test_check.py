"""What is said of a folder, good and bad."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import TOKENS, Tiny

from pipeline.core.errors import UserError
from pipeline.model.hub import convert
from pipeline.model.hub.check import check_folder, checked_text
from pipeline.model.hub.compare import compare_models

EMBEDDED = Path(__file__).parents[3] / "models/embedded"


@pytest.fixture(scope="module")
def instruct(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("instruct")
    convert.convert(tiny.file, folder, TOKENS, tiny.package.encodings)
    return folder


@pytest.fixture
def model(instruct: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(instruct, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_hybrid_model() -> None:
    found = check_folder(EMBEDDED)
    assert found.hybrid and found.trainable and not found.problems and not found.advice
    assert found.modes == ["thinking", "non_thinking"] and found.end_tokens == ["<|im_end|>"]
    assert found.switch["non_thinking"] == {"enable_thinking": False}
    assert (found.architecture, found.context, found.vocabulary) == ("Qwen3ForCausalLM", 1024, 1024)
    assert "trainable     yes" in checked_text(found)


def test_an_instruct_model_can_be_trained_in_its_mode_and_hybridise_is_named(instruct: Path, tiny: Tiny) -> None:
    found = check_folder(instruct)
    assert found.trainable and not found.hybrid and found.modes == ["non_thinking"] and not found.switch
    assert found.parameters == tiny.known.parameters and found.dtypes == ["BF16"]
    assert "has its non-thinking mode alone" in checked_text(found) and "hybridise" in checked_text(found)


def test_a_family_whose_matrices_have_other_names(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")  # Phi-3 has one matrix for queries, keys and values
    fused = {name.replace("q_proj", "qkv_proj"): w.clone() for name, w in weights.items() if "k_proj" not in name}
    save_file(fused, model / "model.safetensors")
    advice = check_folder(model).advice[0]
    assert "has no q_proj, k_proj, which LoRA is put on by default" in advice
    assert "lora.target_modules=[down_proj, gate_proj, up_proj, o_proj, qkv_proj, v_proj]" in advice


def test_a_thinking_only_model(model: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n"
        "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    (model / "chat_template.jinja").write_text(template)
    found = check_folder(model)
    assert found.modes == ["thinking"] and not found.hybrid
    assert "has its thinking mode alone" in checked_text(found)


def test_no_chat_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    found = check_folder(model)
    assert not found.trainable and not found.template
    assert "no chat template" in found.problems[0] and "hybridise" in found.advice[0]


@pytest.mark.parametrize(
    ("present", "words"),
    [
        ("pytorch_model.bin", "in pickle files alone.*are refused"),
        ("model-Q4_K_M.gguf", "GGUF files alone"),
        ("notes.txt", "has no weights"),
    ],
)
def test_weights_that_are_not_safe_to_read(model: Path, present: str, words: str) -> None:
    (model / "model.safetensors").rename(model / present)
    with pytest.raises(UserError, match=words):
        check_folder(model)


def test_weights_cut_short(model: Path) -> None:
    file = model / "model.safetensors"
    data = file.read_bytes()
    for size in (len(data) - 1, 100, 4, 0):
        file.write_bytes(data[:size])
        with pytest.raises(UserError, match="is cut short|is no safetensors file"):
            check_folder(model)


def test_code_of_its_own_is_never_run(model: Path) -> None:
    change(model / "config.json", model_type="brand_new", auto_map={"AutoConfig": "config.New"})
    shutil.copy(EMBEDDED / "tokenizer.json", model)
    found = check_folder(model)
    assert not found.trainable and "brings code of its own, which is never run" in found.problems[0]


def test_a_quantised_model_that_cannot_be_trained(model: Path) -> None:
    change(model / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantised by gptq" in check_folder(model).problems[0]
    change(model / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert check_folder(model).trainable


def test_a_tokenizer_of_another_model(model: Path) -> None:
    change(model / "config.json", vocab_size=100)
    assert "its tokenizer has 288 tokens, the model 100" in check_folder(model).problems[0]


def test_no_tokenizer(model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    assert "has no tokenizer" in check_folder(model).problems[0]


@pytest.mark.parametrize("name", ["none", "file"])
def test_no_model_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="There is no folder"):
        check_folder(tmp_path / name)
    with pytest.raises(UserError, match=r"no config.json"):
        check_folder(tmp_path)


def test_a_fetched_file_that_was_changed(model: Path) -> None:
    record = {
        "model": "tiny",
        "from": "package",
        "licence": "MIT",
        "files": {"config.json": {"bytes": 1, "sha256": "0" * 64}},
    }
    (model / "fetched.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"config.json is not what was fetched.*models fetch tiny"):
        check_folder(model)


def test_two_folders_of_one_model(instruct: Path, model: Path) -> None:
    from safetensors.torch import load_file, save_file

    same = compare_models(instruct, model)
    assert same["mean_difference"] == same["kl"] == 0 and same["same_top"] == 1
    weights = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    weights[name] = weights[name] * 1.5
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    other = compare_models(instruct, model)
    assert 0 < other["mean_difference"] < other["max_difference"] and other["kl"] > 0
    assert other["loss"]["first"] == same["loss"]["first"]
    with pytest.raises(UserError, match="different tokens; they are not one model"):
        compare_models(instruct, EMBEDDED)
