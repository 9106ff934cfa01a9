"""A GGUF file of the llama architecture becomes a model folder: 16-bit safetensors, config, tokenizer, chat template.

The weights are read and dequantised by the ``gguf`` package, tensor by tensor, so that memory holds little more than the
16-bit model. Names come from the table that llama.cpp's own converter uses. What has to be undone is one thing: the rows
of the query and key matrices, which llama.cpp orders for its way to rotate them.

The tokenizer (``pieces``) is right only if it agrees with known encodings (``require_encodings``).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import Bar
from pipeline.core.errors import UserError
from pipeline.model.hub.known import Encoding, SpecialTokens
from pipeline.model.hub.pieces import opened, tokenizer, value

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import LlamaConfig, PreTrainedTokenizerBase

BYTES_A_WEIGHT = (
    2 + 1
)  # in memory while it is converted: 16 bit, and room for one dequantised matrix and the mapped file


def read(path: Path) -> Any:
    """A ``gguf.GGUFReader``, its tensors mapped and not yet read.

    Raises:
        UserError: it is no GGUF file, is cut short, or is of another architecture than llama.
    """
    reader = opened(path)
    found = value(reader, "general.architecture")
    if found != "llama":
        raise UserError(f"{path} holds a model of architecture {found!r}, not llama.")
    return reader


def config(reader: Any, tokens: SpecialTokens) -> LlamaConfig:
    """The model's sizes. The end token is the one that the table of known models names, not the file's."""
    from transformers import LlamaConfig

    def of(key: str, default: Any = None) -> Any:
        return value(reader, f"llama.{key}", default)

    pieces = value(reader, "tokenizer.ggml.tokens")
    heads, hidden = of("attention.head_count"), of("embedding_length")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(pieces),
        hidden_size=hidden,
        intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=of("attention.head_count_kv", heads),
        head_dim=of("rope.dimension_count", hidden // heads),
        max_position_embeddings=of("context_length"),
        rms_norm_eps=float(f"{of('attention.layer_norm_rms_epsilon'):.6g}"),  # a float32 that was 1e-05
        rope_parameters={"rope_type": "default", "rope_theta": float(of("rope.freq_base", 10_000.0))},
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        bos_token_id=pieces.index(tokens.bos),
        eos_token_id=pieces.index(tokens.eos),
        pad_token_id=pieces.index(tokens.pad),
        dtype="bfloat16",
    )


def unpermute(matrix: np.ndarray, heads: int) -> np.ndarray:
    """(rows, columns) of a query or key matrix from llama.cpp's order, pairs side by side, to halves one behind the other."""
    halves = matrix.shape[0] // heads // 2
    return matrix.reshape(heads, halves, 2, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def weights(reader: Any, sizes: LlamaConfig) -> dict[str, torch.Tensor]:
    """All weights in bfloat16 by transformers' names.

    Raises:
        UserError: the file lacks a weight, has one too many, or one of another shape.
    """
    import gguf
    import numpy as np
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(sizes).state_dict().items()}
    if sizes.tie_word_embeddings:
        wanted.pop("lm_head.weight")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, sizes.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    heads = {"q_proj": sizes.num_attention_heads, "k_proj": sizes.num_key_value_heads}
    result: dict[str, torch.Tensor] = {}
    with Bar("convert the weights", len(wanted)) as bar:
        for name, shape in wanted.items():
            tensor = stored.pop(names.get_name(name, (".weight",)) or "", None)
            if tensor is None:
                raise UserError(f"The GGUF file has no weight {name}.")
            matrix = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            if matrix.shape != shape:
                raise UserError(f"The GGUF file's weight {name} has the shape {matrix.shape}, expected is {shape}.")
            count = heads.get(name.split(".")[-2])
            matrix = unpermute(matrix, count) if count else matrix
            result[name] = torch.from_numpy(np.array(matrix, np.float32)).to(torch.bfloat16)
            bar.update(1)
    stored.pop("rope_freqs.weight", None)  # a table that transformers computes
    if stored:
        raise UserError(f"The GGUF file holds weights that a llama model has not: {', '.join(list(stored)[:3])}.")
    return result


def require_encodings(tokenizer: PreTrainedTokenizerBase, encodings: Iterable[Encoding]) -> int:
    """Compare a tokenizer with known encodings, token by token and back; returns how many tokens agreed.

    Raises:
        UserError: the first token that differs, with its text.
    """
    count = 0
    for known in encodings:
        ids = list(tokenizer(known.text, add_special_tokens=False)["input_ids"])
        if ids != known.ids:
            shorter = min(len(ids), len(known.ids))
            place = next((i for i in range(shorter) if ids[i] != known.ids[i]), shorter)
            ours, theirs = (str(tokenizer.decode(tokens[place : place + 1])) for tokens in (ids, known.ids))
            raise UserError(
                f"The tokenizer does not match what is known of this model: of {known.text!r}, token {place} is {ours!r} "
                f"and should be {theirs!r}. Its pieces are damaged, or belong to another model; fetch it again."
            )
        if (text := str(tokenizer.decode(ids))) != known.text:
            raise UserError(f"The tokenizer turns the tokens of {known.text!r} into {text!r}; fetch the model again.")
        count += len(ids)
    return count


def convert(gguf_file: Path, folder: Path, tokens: SpecialTokens, encodings: Iterable[Encoding]) -> int:
    """Write a model folder; returns how many known tokens the tokenizer agreed in, as it is read back from there.

    Raises:
        UserError: see the functions above.
    """
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, GenerationConfig

    encodings = list(encodings)
    reader = read(gguf_file)
    rebuilt = tokenizer(reader, tokens)
    require_encodings(rebuilt, encodings)
    rebuilt.save_pretrained(folder)
    agreed = require_encodings(AutoTokenizer.from_pretrained(folder), encodings)
    sizes = config(reader, tokens)
    save_file(weights(reader, sizes), folder / "model.safetensors", metadata={"format": "pt"})
    ids = {name: getattr(sizes, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(folder)
    sizes.save_pretrained(folder)
    return agreed
