"""The adapter as a folder of its own, merged into its base, and the merged weights in 8 bit.

In: a ``Source``. Out: folders that transformers and PEFT load by themselves: weights as safetensors, tokenizer, chat template,
generation config. Each is written as a whole or not at all.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.export.folders import require_room, whole_folder
from pipeline.export.source import MERGEABLE, OF_PEFT, Source, base_location, load_base
from pipeline.model.decode import end_tokens
from pipeline.model.methods import weights_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAPTER_FILES = ("adapter_config.json", "method.json")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")


# --- the adapter --------------------------------------------------------------------------------------------------------


def write_adapter(source: Source, folder: Path) -> None:
    """Copy what PEFT needs to load the adapter, and nothing else.

    Raises:
        UserError: the method is none of PEFT's.
    """
    if source.method not in OF_PEFT:
        instead = "--to merged" if source.method == "full" else "the pipeline's own loader (the model card shows it)"
        raise UserError(f"PEFT has no adapters of method {source.method}; take {instead}.")
    require_room(folder, sum(path.stat().st_size for path in weights_files(source.adapter)), "the adapter")
    with whole_folder(folder) as temporary:
        for pattern in (*ADAPTER_FILES, *TOKENIZER_FILES):
            for path in source.adapter.glob(pattern):
                shutil.copy2(path, temporary)
        for path in weights_files(source.adapter):
            shutil.copyfile(path, temporary / path.name)


def with_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A base with an exported adapter, as PEFT loads it."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder)).eval()


# --- merged -------------------------------------------------------------------------------------------------------------


def stored_dtype(source: Source) -> str:
    """The 16-bit type of merged weights: that of the base, bfloat16 where the base is in 32 bit."""
    from transformers import AutoConfig

    settings = source.profile.model
    config = AutoConfig.from_pretrained(base_location(settings), revision=settings.revision)
    dtype = str(getattr(config, "dtype", None) or "").removeprefix("torch.")
    return dtype if BYTES.get(dtype) == 2 else "bfloat16"


def write_merged(
    source: Source, folder: Path, dtype: str | None = None, base: str | None = None, dequantise: bool = False
) -> None:
    """Merge the adapter into its base, in 32 bit, and write the sum in ``dtype``: rounded once.

    Args:
        dtype: ``bfloat16``, ``float16`` or ``float32``; None: ``stored_dtype``.
        base, dequantise: see ``load_base``.

    Raises:
        UserError: see ``load_base``; the method cannot be merged; no room on the disk; what was written is not what was
            merged.
    """
    import torch
    from transformers import GenerationConfig

    if source.method not in MERGEABLE:
        raise UserError(
            f"Method {source.method} puts modules or virtual tokens beside the base that no plain checkpoint has; it cannot be "
            "merged. Use the adapter."
        )
    dtype = dtype or stored_dtype(source)
    require_room(folder, source.report["training"]["total_parameters"] * BYTES[dtype], "the merged model")
    model = load_base(source, "float32", base=base, dequantise=dequantise)
    tokenizer = source.tokenizer()
    if source.method == "full":
        _put_whole(model, source.adapter)
    else:
        model = with_adapter(model, source.adapter).merge_and_unload()
    model = model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    # What ends a reply here ends it elsewhere; a base model's own file often knows only <|endoftext|>.
    known = getattr(model, "generation_config", None) or GenerationConfig()
    known.eos_token_id = end_tokens(model, tokenizer)
    known.pad_token_id = tokenizer.pad_token_id
    model.generation_config = known
    with whole_folder(folder) as temporary:
        model.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))
        _require_written(model, temporary)


def _put_whole(model: PreTrainedModel, adapter: Path) -> None:
    from safetensors.torch import load_file

    for path in weights_files(adapter):
        unexpected = model.load_state_dict(load_file(str(path)), strict=False).unexpected_keys
        if unexpected:
            raise UserError(f"{path} does not fit its base, which has no {unexpected[0]}.")


def _require_written(model: PreTrainedModel, folder: Path) -> None:
    """Every tensor on the disk is the one in memory, bit for bit, and none is missing."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    wanted = model.state_dict()
    found: dict[str, torch.Tensor] = {}
    for path in weights_files(folder):
        found |= load_file(str(path))
    tied = {tensor.data_ptr() for name, tensor in wanted.items() if name in found}
    if any(name not in found and tensor.data_ptr() not in tied for name, tensor in wanted.items()):
        # Some families have other names on the disk (GPT-NeoX's embed_out, the experts of a mixture); loading turns them back.
        try:
            found = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).state_dict()
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{folder} does not hold the merged weights: they cannot be loaded. Export again."
            ) from error
    wrong = [
        name
        for name, tensor in wanted.items()
        if not (torch.equal(found[name], tensor) if name in found else tensor.data_ptr() in tied)
    ]
    if wrong:
        raise UserError(f"{folder} does not hold the merged weights: {wrong[0]} differs. Export again.")


def load_exported(folder: Path, dtype: str | None) -> PreTrainedModel:
    """A merged or quantised folder, as transformers loads it; ``dtype``: None keeps what it was written in."""
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    return AutoModelForCausalLM.from_pretrained(str(folder), **options).eval()


# --- 8 bit --------------------------------------------------------------------------------------------------------------


def write_int8(merged: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, dtype: str, dynamic: bool) -> None:
    """The linear layers of merged weights in 8 bit, with torchao.

    Args:
        dtype: what the layers compute in, and what is not quantised is kept in.
        dynamic: the inputs of the layers are quantised too, each token by its own scale.

    Raises:
        UserError: no room on the disk.
    """
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    weights = sum(path.stat().st_size for path in weights_files(merged))
    require_room(folder, weights, "the 8-bit model")
    # Version 2 is the kind of tensor that can be written as safetensors.
    kind = Int8DynamicActivationInt8WeightConfig if dynamic else Int8WeightOnlyConfig
    model = AutoModelForCausalLM.from_pretrained(
        str(merged), dtype=getattr(torch, dtype), quantization_config=TorchAoConfig(kind(version=2))
    )
    with whole_folder(folder) as temporary:
        model.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))
