"""Load a base and its tokenizer through Unsloth; where they lie is checked before any library tries."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError
from pipeline.core.hubs import require_hub
from pipeline.core.versions import import_unsloth
from pipeline.model.dtype import computing_dtype
from pipeline.settings import ModelSettings, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def model_location(settings: ModelSettings, weights: bool = True) -> str:
    """The folder or hub name to load, checked before any library tries.

    Args:
        weights: whether the folder has to hold a whole model; its tokenizer is enough to build data.

    Raises:
        UserError: the folder is missing or holds no model; the hub cannot be reached.
    """
    if settings.source != "local":
        require_hub(
            settings.source,
            f"model {settings.name!r}",
            "put the model's folder here and give it as model.name with model.source=local, or use the embedded profile.",
        )
        if settings.source == "modelscope":
            os.environ["UNSLOTH_USE_MODELSCOPE"] = "1"
        return settings.name
    folder = locate(settings.name)
    if not folder.is_dir():
        raise UserError(
            f"There is no model folder {settings.name!r}. Give a folder with model.name, or set model.source=huggingface "
            "(or modelscope) to load that name from a hub."
        )
    needed = ("config.json", "tokenizer_config.json") if weights else ("tokenizer_config.json",)
    lacking = [what for what in needed if not (folder / what).exists()]
    if weights and not any(folder.glob("*.safetensors")):
        lacking.append("*.safetensors")
    if lacking:
        kind = "model" if weights else "tokenizer"
        raise UserError(f"{settings.name!r} is no {kind} folder: it has no {', no '.join(lacking)}.")
    return str(folder)


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer alone; a folder that holds nothing else will do."""
    location = model_location(settings, weights=False)
    if settings.source == "modelscope":
        from modelscope import snapshot_download

        location = snapshot_download(
            settings.name, revision=settings.revision, ignore_patterns=["*.safetensors", "*.bin"]
        )
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(location, revision=settings.revision)


def load_data_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer for data alone, of a local folder without loading transformers where that can be: same ids, same text."""
    if settings.source == "local":
        from pathlib import Path

        from pipeline.model.tokenizer import FastTokenizer, reads

        folder = Path(model_location(settings, weights=False))
        if reads(folder):
            return FastTokenizer(folder)
    return load_tokenizer(settings)


def load_model(
    settings: ModelSettings, seed: int, full_finetuning: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Base model and tokenizer through ``FastLanguageModel``, quantised to NF4 where ``load_in_4bit``.

    A 16-bit checkpoint is quantised on the fly, a pre-quantised one (``…-bnb-4bit``) is taken as it is.

    Args:
        full_finetuning: load for method ``full``: on a GPU Unsloth then takes other code.

    Raises:
        UserError: wrong versions, missing folder, or no way to the hub.
    """
    location = model_location(settings)
    import_unsloth()
    import torch
    from unsloth import FastLanguageModel

    if settings.cpu_threads:
        torch.set_num_threads(settings.cpu_threads)
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=location,
        max_seq_length=settings.max_seq_length,
        load_in_4bit=settings.load_in_4bit,
        load_in_16bit=not settings.load_in_4bit,
        dtype=getattr(torch, computing_dtype(settings)),
        revision=settings.revision,
        random_state=seed,
        # Checkpointing is the trainer's business; with full_finetuning alone the loader would switch it on by itself.
        **({"full_finetuning": True, "use_gradient_checkpointing": False} if full_finetuning else {}),
    )
    if settings.load_in_4bit and model.device.type == "cpu":
        let_go_of_file(model)
    return model, tokenizer


def let_go_of_file(model: PreTrainedModel) -> None:
    """Copy the weights that were not quantised, so that nothing holds the checkpoint's file in memory any more.

    They are views of the mapped file, and as long as one is, the pages of all that was read from it stay resident: the 16-bit
    weights beside their 4-bit copies, 840 MiB in the shape of Qwen3-0.6B.
    """
    for parameter in model.parameters():
        if getattr(parameter, "quant_state", None) is None:
            parameter.data = parameter.data.clone()


def name_base(model: PreTrainedModel, name: str) -> None:
    """Have the adapter name its base as the profile does, not by the folder that it was loaded from on this machine."""
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = name
