"""A tiny llama model with a tokenizer of its own, the same as a GGUF file, and that in a wheel."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.core.files import file_sha256
from pipeline.model.hub.known import Encoding, KnownModel, Package, SpecialTokens

TOKENS = SpecialTokens(bos="<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>", unk="<|endoftext|>")
TEXTS = (
    "The sun is  warm.",
    "12345 + 67",
    "def f(x):\n    return x\n",
    "Grün ist 人工",
    "<|im_start|>user\nHi<|im_end|>",
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(repr=False)
class Tiny:
    """The original, the GGUF file that was made of it, and the package that carries it."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    file: Path
    wheel: Path
    package: Package
    known: KnownModel


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(["the sun is warm and the rain is wet, return the thing in the sun"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token=TOKENS.bos,
        eos_token=TOKENS.eos,
        pad_token=TOKENS.pad,
        unk_token=TOKENS.unk,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer: Any, **changes: Any) -> Path:
    """The model as llama.cpp's converter writes it: float32, rows of queries and keys in its order."""
    import json

    sizes = model.config
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pieces = sorted(state["vocab"], key=state["vocab"].__getitem__)
    special = {str(token) for token in tokenizer.get_added_vocab()}
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_block_count(sizes.num_hidden_layers)
    writer.add_context_length(sizes.max_position_embeddings)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_feed_forward_length(sizes.intermediate_size)
    writer.add_head_count(sizes.num_attention_heads)
    writer.add_head_count_kv(sizes.num_key_value_heads)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(changes.get("pieces", pieces))
    writer.add_token_types([3 if piece in special else 1 for piece in pieces])
    writer.add_token_merges([" ".join(merge) for merge in state["merges"]])
    writer.add_chat_template(tokenizer.chat_template)
    if "bos" in changes:
        writer.add_bos_token_id(changes["bos"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, sizes.num_hidden_layers)
    heads = {"q_proj": sizes.num_attention_heads, "k_proj": sizes.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" or name in changes.get("without", ()):
            continue
        matrix = tensor.float().numpy()
        if count := heads.get(name.split(".")[-2]):  # llama.cpp, LlamaModel.permute
            matrix = matrix.reshape(count, 2, -1, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_llama(vocabulary: int) -> LlamaForCausalLM:
    """Random weights that bfloat16 holds exactly."""
    import torch

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


def make(folder: Path) -> Tiny:
    """Everything, in a folder."""
    tokenizer = _tokenizer()
    model = tiny_llama(len(tokenizer))
    file = write_gguf(folder / "tiny.gguf", model, tokenizer)
    wheel = folder / "tiny_llama-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "tiny_llama/tiny.gguf")
        archive.writestr("tiny_llama-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-llama\nVersion: 1.0\n")
        archive.writestr("tiny_llama-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_llama-1.0.dist-info/RECORD", "")
    package = Package(
        name="tiny-llama",
        version="1.0",
        file=wheel.name,
        bytes=wheel.stat().st_size,
        sha256=file_sha256(wheel),
        gguf="tiny_llama/tiny.gguf",
        gguf_bytes=file.stat().st_size,
        gguf_sha256=file_sha256(file),
        tokens=TOKENS,
        encodings=[Encoding(text=t, ids=tokenizer(t, add_special_tokens=False)["input_ids"]) for t in TEXTS],
    )
    known = KnownModel(
        title="Tiny",
        parameters=sum(p.numel() for p in model.parameters()),
        licence="Apache-2.0",
        about="for tests",
        huggingface="someone/tiny",
        modelscope="someone/tiny",
        package=package,
    )
    return Tiny(model, tokenizer, file, wheel, package, known)
