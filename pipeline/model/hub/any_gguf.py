"""A GGUF file of any architecture that transformers reads becomes a model folder.

The weights and sizes are read by transformers, the tokenizer is rebuilt here: what transformers makes of some files cuts text in
another way than the model was trained with (Gemma 3, transformers 5.17: 14 tokens where there are 7). Neither is believed
before it was compared with llama.cpp on the same file; that is the caller's part (``fetch.fetch``, ``verify``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.model.hub.pieces import opened, tokenizer, value

SCALED = ("rope_freqs.", "rope_factors_")  # tables of factors, beside the weights
BYTES_A_WEIGHT = 10  # in memory at the fullest; 9.3 were seen (Gemma 3 270M)


def described(file: Path) -> dict[str, Any]:
    """Name, licence, architecture and number of weights, as the file states them.

    Raises:
        UserError: it is no whole GGUF file.
    """
    reader = opened(file)
    return {
        "title": value(reader, "general.name", file.stem),
        "licence": value(reader, "general.license", "not stated in the file"),
        "architecture": value(reader, "general.architecture"),
        "parameters": sum(int(tensor.n_elements) for tensor in reader.tensors),
    }


def convert_file(file: Path, folder: Path) -> None:
    """Write 16-bit safetensors, config and tokenizer of a GGUF file into a folder.

    Raises:
        UserError: an architecture or tokenizer that cannot be read, or weights that are missing.
    """
    reader = opened(file)
    _require_plain_rotation(reader, file)
    found = tokenizer(reader)
    found.save_pretrained(folder)
    model = _model(reader, file)
    ids = {f"{name}_token_id": getattr(found, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    for name, number in ids.items():
        setattr(model.config, name, number)
        setattr(model.generation_config, name, number)
    model.save_pretrained(folder)


def _require_plain_rotation(reader: Any, file: Path) -> None:
    """transformers reads no scaling of the rotation from GGUF, but for gpt-oss. Short texts, which are compared, hardly show it.

    Raises:
        UserError: the file has one.
    """
    architecture = value(reader, "general.architecture")
    kind = value(reader, f"{architecture}.rope.scaling.type", "none")
    tables = [tensor.name for tensor in reader.tensors if tensor.name.startswith(SCALED)]
    if architecture != "gpt-oss" and (kind != "none" or tables):
        raise UserError(
            f"{file} scales its rotation for long texts ({', '.join(tables) or kind}), which transformers does not read from "
            "GGUF: the model would be another one. Take its safetensors from a hub."
        )


def _model(reader: Any, file: Path) -> Any:
    """The model in bfloat16, as if it had never been quantised."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    try:
        config = AutoConfig.from_pretrained(**where)
        size = value(reader, f"{value(reader, 'general.architecture')}.attention.key_length")
        if size is not None and hasattr(config, "head_dim"):
            config.head_dim = size  # of Qwen3, transformers takes 128 whatever the file says
        read, report = AutoModelForCausalLM.from_pretrained(
            **where, config=config, dtype=torch.bfloat16, output_loading_info=True
        )
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"transformers cannot read {file}: {' '.join(str(error).split())[:300]}") from error
    if lacking := sorted(report["missing_keys"]):
        raise UserError(f"{file} lacks weights that its architecture has: {', '.join(lacking[:3])}.")
    del read.config.quantization_config  # transformers saves no model that was read from GGUF
    with torch.device("meta"):
        model = type(read)(read.config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model
