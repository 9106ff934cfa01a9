"""A tiny Gemma 3 with a SentencePiece tokenizer, as the GGUF file that llama.cpp's converter makes of it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece

CORPUS = (
    "the sun is warm and the rain is wet, return the thing in the sun",
    "12345 + 67 = 90",
    "a aa aaa b bb",
)
CONTROL = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")


@dataclass(repr=False)
class TinyGemma:
    """The original, its tokenizer by SentencePiece itself, and the file."""

    model: Any
    original: sentencepiece.SentencePieceProcessor
    file: Path


def sentencepiece_model(prefix: bool) -> sentencepiece.SentencePieceProcessor:
    """A BPE model of a few sentences; ``prefix``: with a blank before each text, as Llama 2 has it."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_writer=made,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["\n", *CONTROL[3:]],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece=CONTROL[0],
        eos_piece=CONTROL[1],
        bos_piece=CONTROL[2],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


def tiny_gemma(vocabulary: int) -> Any:
    """Random weights that bfloat16 holds exactly."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=256,  # transformers takes the factor of the logits of attention from it; no GGUF file states it
        sliding_window=64,
        max_position_embeddings=512,
        initializer_range=0.1,
    )
    model = Gemma3ForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


def _kind(original: sentencepiece.SentencePieceProcessor, number: int) -> gguf.TokenType:
    piece = original.id_to_piece(number)
    if piece in CONTROL:
        return gguf.TokenType.CONTROL
    if original.is_unknown(number):
        return gguf.TokenType.UNKNOWN
    return (
        gguf.TokenType.BYTE
        if original.is_byte(number)
        else gguf.TokenType.USER_DEFINED
        if piece == "\n"
        else gguf.TokenType.NORMAL
    )


def add_tokenizer(writer: gguf.GGUFWriter, original: sentencepiece.SentencePieceProcessor, prefix: bool) -> None:
    """Pieces, scores and kinds as llama.cpp's converter writes them."""
    numbers = range(original.get_piece_size())
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([original.id_to_piece(i) for i in numbers])
    writer.add_token_scores([original.get_score(i) for i in numbers])
    writer.add_token_types([_kind(original, i) for i in numbers])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(prefix)


def write_gguf(path: Path, model: Any, original: sentencepiece.SentencePieceProcessor, **changes: Any) -> Path:
    """The model in float32; Gemma's norms are stored with one added."""
    sizes = model.config
    writer = gguf.GGUFWriter(path, changes.get("architecture", "gemma3"))
    writer.add_name("Tiny Gemma")
    writer.add_license("gemma")
    writer.add_context_length(sizes.max_position_embeddings)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_block_count(sizes.num_hidden_layers)
    writer.add_feed_forward_length(sizes.intermediate_size)
    writer.add_head_count(sizes.num_attention_heads)
    writer.add_head_count_kv(sizes.num_key_value_heads)
    writer.add_layer_norm_rms_eps(sizes.rms_norm_eps)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_sliding_window(sizes.sliding_window)
    if "scaling" in changes:
        writer.add_rope_scaling_type(changes["scaling"])
    add_tokenizer(writer, original, prefix=False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, sizes.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" or name in changes.get("without", ()):
            continue
        values = tensor.float().numpy()
        if name.endswith("norm.weight") and not changes.get("norms_as_they_are"):
            values = values + 1
        writer.add_tensor(names.get_name(name, (".weight",)), values)
    for name in changes.get("tables", ()):
        writer.add_tensor(name, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make(folder: Path) -> TinyGemma:
    """Everything, in a folder."""
    original = sentencepiece_model(prefix=False)
    model = tiny_gemma(original.get_piece_size())
    return TinyGemma(model, original, write_gguf(folder / "tiny.gguf", model, original))
