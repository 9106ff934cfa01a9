"""A GGUF file of the llama architecture becomes a model folder: 16-bit safetensors, config, tokenizer, chat template.

The weights are read and dequantised by the ``gguf`` package, tensor by tensor, so that memory holds little more than the
16-bit model. Names come from the table that llama.cpp's own converter uses. What has to be undone is one thing: the rows
of the query and key matrices, which llama.cpp orders for its way to rotate them.

The tokenizer is rebuilt from the file's pieces and merges; it is right only if it agrees with known encodings
(``require_encodings``).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import Bar
from pipeline.core.errors import UserError
from pipeline.model.hub.known import Encoding, SpecialTokens

if TYPE_CHECKING:
    import numpy as np
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, PreTrainedTokenizerBase

CONTROL, USER_DEFINED = 3, 4  # kinds of tokens in a GGUF file that are no pieces of text
BYTES_A_WEIGHT = (
    2 + 1
)  # in memory while it is converted: 16 bit, and room for one dequantised matrix and the mapped file


def read(path: Path) -> Any:
    """A ``gguf.GGUFReader``, its tensors mapped and not yet read.

    Raises:
        UserError: it is no GGUF file, is cut short, or is of another architecture than llama.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise UserError(f"{path} is no whole GGUF file: {' '.join(str(error).split())[:200]}.") from error
    found = value(reader, "general.architecture")
    if found != "llama":
        raise UserError(f"{path} holds a model of architecture {found!r}; from GGUF, only llama can be converted here.")
    return reader


def value(reader: Any, key: str, default: Any = None) -> Any:
    """A metadata value of the file."""
    field = reader.fields.get(key)
    return default if field is None else field.contents()


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


# --- the tokenizer ------------------------------------------------------------------------------------------------------


def _pre_tokenizer(kind: str) -> Any:
    """How text is cut before merges, by llama.cpp's name for it."""
    from tokenizers import pre_tokenizers

    if kind != "smollm":
        raise UserError(f"The GGUF file's tokenizer cuts text in the way {kind!r}; only 'smollm' can be rebuilt here.")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _rebuilt(reader: Any) -> Tokenizer:
    """The byte-level BPE tokenizer of the file's pieces and merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    pieces, kinds = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in value(reader, "tokenizer.ggml.merges")]
    if value(reader, "tokenizer.ggml.model") != "gpt2":
        raise UserError("The GGUF file's tokenizer is no byte-level BPE; only that kind can be rebuilt here.")
    known = set(pieces)
    if missing := next((merge for merge in merges if "".join(merge) not in known), None):
        raise UserError(f"The GGUF file's pieces do not match its merges: {''.join(missing)!r} is no piece.")
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(value(reader, "tokenizer.ggml.pre", ""))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(piece, special=kind == CONTROL, normalized=False)
            for piece, kind in zip(pieces, kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    return tokenizer


def tokenizer(reader: Any, tokens: SpecialTokens) -> PreTrainedTokenizerBase:
    """The file's tokenizer with its chat template.

    Raises:
        UserError: its kind is not known, or its pieces and merges do not match.
    """
    from transformers import PreTrainedTokenizerFast

    found = PreTrainedTokenizerFast(
        tokenizer_object=_rebuilt(reader),
        bos_token=tokens.bos,
        eos_token=tokens.eos,
        pad_token=tokens.pad,
        unk_token=tokens.unk,
        model_max_length=value(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,  # it would eat blanks
    )
    found.chat_template = value(reader, "tokenizer.chat_template")
    return found


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
