"""Load a base and its tokenizer, through Unsloth where the method allows it; where they lie is checked before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint, known_sha256
from pipeline.core.hubs import require_hub
from pipeline.core.versions import import_unsloth
from pipeline.model.config import model_config
from pipeline.model.dtype import computing_dtype, precision
from pipeline.model.template_defaults import with_defaults
from pipeline.model.tokenizer import FastTokenizer, reads
from pipeline.settings import Method, ModelSettings, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VIRTUAL: tuple[Method, ...] = ("prefix", "prompt")  # methods that put something before the prompt


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


def base_identity(settings: ModelSettings) -> str:
    """Names a base as it is loaded: by its files' content (on a hub by name and revision), and its precision."""
    if settings.source == "local":
        files = sorted(Path(model_location(settings)).glob("*.safetensors"))
        content = fingerprint([known_sha256(file) for file in files])[:12]
    else:
        content = (settings.revision or "main")[:12]
    return f"{Path(settings.name).name}-{content}-{precision(settings)}"


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer alone; a folder that holds nothing else will do."""
    location = model_location(settings, weights=False)
    if settings.source == "modelscope":
        from modelscope import snapshot_download

        no_weights = ["*.safetensors", "*.bin"]
        location = snapshot_download(settings.name, revision=settings.revision, ignore_patterns=no_weights)
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(location, revision=settings.revision)
    return with_defaults(found, settings.chat_template_kwargs)


def load_data_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer for data alone, of a local folder without loading transformers where that can be: same ids, same text."""
    if settings.source == "local":
        folder = Path(model_location(settings, weights=False))
        if reads(folder):
            return with_defaults(FastTokenizer(folder), settings.chat_template_kwargs)
    return load_tokenizer(settings)


def load_model(
    settings: ModelSettings, seed: int, method: Method = "qlora"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Base model and tokenizer, quantised to NF4 where ``load_in_4bit``, through what ``method`` is trained with.

    A 16-bit checkpoint is quantised on the fly, a pre-quantised one (``…-bnb-4bit``) is taken as it is. The repository is the
    one that is named: Unsloth would otherwise load another, pre-quantised one in its place, and drop the revision.

    Args:
        method: ``prefix`` and ``prompt`` are loaded through transformers alone. On a GPU Unsloth's forward passes take neither
            virtual tokens nor a prefix: the one trains nothing, without a word, and the other crashes. For ``full``, Unsloth
            takes other code on a GPU.

    Raises:
        UserError: wrong versions, missing folder, or no way to the hub; or a method of the former kind, where Unsloth has loaded
            a model into this process before.
    """
    location = model_location(settings)
    import_unsloth()
    import torch

    if settings.cpu_threads:
        torch.set_num_threads(settings.cpu_threads)
    if method in VIRTUAL:
        model, tokenizer = _through_transformers(settings, location, method)
    else:
        model, tokenizer = _through_unsloth(settings, location, seed, method == "full")
    if settings.load_in_4bit and model.device.type == "cpu":
        let_go_of_file(model)
    return model, with_defaults(tokenizer, settings.chat_template_kwargs)


def _through_unsloth(settings: ModelSettings, location: str, seed: int, full: bool) -> Any:
    import torch
    from unsloth import FastLanguageModel

    return FastLanguageModel.from_pretrained(
        model_name=location,
        use_exact_model_name=True,
        max_seq_length=settings.max_seq_length,
        load_in_4bit=settings.load_in_4bit,
        load_in_16bit=not settings.load_in_4bit,
        dtype=getattr(torch, computing_dtype(settings)),
        revision=settings.revision,
        random_state=seed,
        # Checkpointing is the trainer's business; with full_finetuning alone the loader would switch it on by itself.
        **({"full_finetuning": True, "use_gradient_checkpointing": False} if full else {}),
    )


def _through_transformers(settings: ModelSettings, location: str, method: Method) -> Any:
    """The same base, with the same quantisation, and with the forward passes of transformers and PEFT."""
    import torch
    from peft import PeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    if PeftModelForCausalLM.forward.__module__.startswith("unsloth"):
        raise UserError(
            f"Method {method} needs the forward pass of PEFT, and Unsloth has loaded a model into this process and put its own "
            "in that place. Start a new process, or restart the notebook's kernel, and load the model for this method first."
        )
    if settings.source == "modelscope":
        from modelscope import snapshot_download

        location = snapshot_download(settings.name, revision=settings.revision)
    dtype = getattr(torch, computing_dtype(settings))
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    options = {"quantization_config": four_bit} if settings.load_in_4bit and not _is_quantised(settings) else {}
    model = AutoModelForCausalLM.from_pretrained(
        location,
        revision=settings.revision,
        dtype=dtype,
        attn_implementation="sdpa",
        device_map={"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"},
        **options,
    )
    model.max_seq_length = settings.max_seq_length
    for module in model.modules():
        # bitsandbytes would repack the weights, and they could not be saved.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    tokenizer = AutoTokenizer.from_pretrained(location, revision=settings.revision)
    return model, tokenizer


def _is_quantised(settings: ModelSettings) -> bool:
    """Whether the checkpoint says itself how it is quantised."""
    return "quantization_config" in (model_config(settings) or {})


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
