"""Fine-tuning methods: put one on a loaded base, and load what it trained.

In: a base model (``pipeline.model.load.load_model``) and a ``Profile``. Out: the model with what the method trains in float32 and
everything else frozen; and, from a folder that ``pipeline.model.save.save_adapter`` wrote, the tuned model for evaluation.

LoRA and its kind go through Unsloth's ``get_peft_model`` and full fine-tuning through its ``full_finetuning``; prefix and
prompt tuning, (IA)³ and LoRA with the attention in full through PEFT; bottleneck adapters are ``pipeline.model.bottleneck``.
docs/methods.md says what each is and when to take it.

A saved adapter holds ``method.json`` beside its weights: the method, and which base it belongs to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.model.dtype import is_base_matrix, stored_type
from pipeline.settings import LORA_METHODS, WHOLE_MATRICES, LoraSettings, Method, Profile, TrainingSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
METHOD_RECORD = "method.json"
_ROWS = 256  # of the embedding that count for a base's identity


# --- do the options fit the model ---------------------------------------------------------------------------------------


def matrix_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the linear layers by name, from a config of Qwen3's kind; empty for other architectures."""
    try:
        h, inner, heads = (config[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads"))
    except KeyError:
        return {}
    head = config.get("head_dim") or h // heads
    q, kv = head * heads, head * config.get("num_key_value_heads", heads)
    attention = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
    return attention | {"gate_proj": (h, inner), "up_proj": (h, inner), "down_proj": (inner, h)}


def require_fit(profile: Profile, config: Mapping[str, Any]) -> None:
    """Say before anything is loaded that the options of the method do not fit the model.

    Args:
        config: the model's config.json.

    Raises:
        UserError: a rank larger than a matrix, a bottleneck of no width, or more virtual tokens than there are positions.
    """
    method = profile.chosen_method
    if method in LORA_METHODS:
        require_rank(profile.lora, matrix_shapes(config))
    if method == "adapter" and config.get("hidden_size", profile.adapter.reduction) < profile.adapter.reduction:
        raise UserError(
            f"adapter.reduction={profile.adapter.reduction:g} leaves a bottleneck of no width: the hidden size is "
            f"{config['hidden_size']}. Lower it; 16 is usual."
        )
    positions = config.get("max_position_embeddings")
    if method in ("prefix", "prompt") and positions:
        count = getattr(profile, method).virtual_tokens
        if count + profile.model.max_seq_length > positions:
            raise UserError(
                f"{method}.virtual_tokens={count} and model.max_seq_length={profile.model.max_seq_length} are together more "
                f"than the model's {positions} positions. Lower one of them."
            )


def require_rank(lora: LoraSettings, shapes: Mapping[str, tuple[int, int]]) -> None:
    """A LoRA of rank r on a matrix of a × b adds nothing beyond r = min(a, b), where it is the whole matrix.

    Raises:
        UserError: the rank is larger than that, with the matrix.
    """
    for name in lora.target_modules:
        if name in shapes and lora.rank > min(shapes[name]):
            inputs, outputs = shapes[name]
            raise UserError(
                f"lora.rank={lora.rank} is larger than {name}, a matrix of {inputs} × {outputs}: take at most "
                f"{min(inputs, outputs)}, leave {name} out of lora.target_modules, or set method=full."
            )


def _require_modules(model: PreTrainedModel, wanted: list[str], setting: str) -> None:
    names = {_last(name) for name, _ in model.named_modules()}
    unknown = [module for module in wanted if module not in names]
    if unknown:
        head = model.get_output_embeddings()
        own = dict.fromkeys(
            _last(name) for name, module in model.named_modules() if _is_linear(module) and module is not head
        )
        raise UserError(
            f"{setting}: the model has no module {', '.join(unknown)}. Its linear layers are {', '.join(own)}; name those that "
            f"are to be trained: --set '{setting}=[{', '.join(own)}]'."
        )


def _linear_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    return {
        _last(name): (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if _is_linear(module)
    }


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _is_linear(module: Any) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


# --- putting a method on a model ----------------------------------------------------------------------------------------


def add_method(model: PreTrainedModel, profile: Profile) -> PreTrainedModel:
    """Put the profile's method on a base; new weights are drawn from the profile's seed.

    Where the method trains matrices of the base (``full``, ``lora_attention_full``), the whole model becomes float32, as its
    small updates would be lost in 16 bit; ``finish`` takes that back.

    Args:
        model: from ``pipeline.model.load.load_model``, with ``full_finetuning`` for method ``full``.

    Raises:
        UserError: an option that does not fit the model.
    """
    from transformers import set_seed

    method, seed = profile.chosen_method, profile.seed
    identity = model_identity(model)
    if method in WHOLE_MATRICES:
        model = model.float()
    set_seed(seed)
    if method == "full":
        model.requires_grad_(True)
    elif method == "adapter":
        from pipeline.model.bottleneck import add_bottlenecks

        model = add_bottlenecks(model, profile.adapter.reduction, profile.adapter.activation)
    elif method in ("lora", "qlora", "dora", "rslora"):
        model = add_adapter(model, profile.lora, profile.training, seed, use_dora=method == "dora")
    else:
        from peft import get_peft_model

        model = get_peft_model(model, _peft_config(model, profile))
    model.trained_from = identity
    return model


def add_adapter(
    model: PreTrainedModel, lora: LoraSettings, training: TrainingSettings, seed: int, use_dora: bool = False
) -> PreTrainedModel:
    """Put LoRA on the model; its matrix A is drawn from ``seed``, its matrix B is zero.

    Raises:
        UserError: a target module that the model does not have, or a rank that is larger than one of them.
    """
    from transformers import set_seed
    from unsloth import FastLanguageModel

    _require_modules(model, lora.target_modules, "lora.target_modules")
    require_rank(lora, _linear_shapes(model))
    set_seed(seed)
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora.rank,
        lora_alpha=lora.scale_alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.use_rslora,
        bias="none",
        use_gradient_checkpointing="unsloth" if training.gradient_checkpointing else False,
        random_state=seed,
        **({"use_dora": True} if use_dora else {}),
        **({"trainable_token_indices": lora.trainable_token_indices} if lora.trainable_token_indices else {}),
    )
    head = model.get_output_embeddings()
    if lora.trainable_token_indices and not hasattr(head, "bias"):
        head.bias = None  # PEFT's wrapper around a tied head lacks it, and TRL's fused loss asks for it
    return model


def _peft_config(model: PreTrainedModel, profile: Profile) -> Any:
    """PEFT's configuration of the methods that Unsloth does not have."""
    from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig

    method = profile.chosen_method
    if method == "prefix":
        # Without the network that Li and Liang reparameterise the prefix with: it would not be saved, so no run could
        # resume; Liu et al. 2022 (P-Tuning v2) find no steady gain from it.
        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=profile.prefix.virtual_tokens)
    if method == "prompt":
        init = {"vocabulary": "SAMPLE_VOCAB", "random": "RANDOM"}[profile.prompt.init]
        count = profile.prompt.virtual_tokens
        return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count, prompt_tuning_init=init)
    if method == "ia3":
        _require_modules(model, profile.ia3.target_modules, "ia3.target_modules")
        return IA3Config(
            task_type="CAUSAL_LM",
            target_modules=profile.ia3.target_modules,
            feedforward_modules=profile.ia3.feedforward_modules,
        )
    lora = profile.lora
    _require_modules(model, [*lora.target_modules, *ATTENTION], "lora.target_modules")
    targets = [name for name in lora.target_modules if name not in ATTENTION]
    if not targets:
        raise UserError(
            "Method lora_attention_full puts LoRA on what is not attention, but lora.target_modules names attention alone; "
            "add gate_proj, up_proj or down_proj."
        )
    require_rank(lora.model_copy(update={"target_modules": targets}), _linear_shapes(model))
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.scale_alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=list(ATTENTION),
        use_rslora=lora.use_rslora,
        bias="none",
    )


def finish(model: PreTrainedModel, method: Method, precision: torch.dtype) -> None:
    """After training: matrices of the base that were trained take the values that are written to disk.

    So that what is evaluated is what is saved, in 16 bit (``dtype.STORED``) on every machine.

    Args:
        precision: the type of the base before training; the model computes in it again.
    """
    if method in WHOLE_MATRICES:
        with stored_type(model):
            pass  # rounded on the way out and back
        for name, parameter in model.named_parameters():
            if is_base_matrix(name):
                parameter.data = parameter.data.to(precision)


# --- which base, which method -------------------------------------------------------------------------------------------


def model_identity(model: PreTrainedModel) -> dict[str, Any]:
    """What tells a base from others: its vocabulary, hidden size and layers, and a hash of its weights.

    The hash is over the norms and the first rows of the embedding in float32. No quantisation touches them, so a base has
    the same identity in 16 bit, quantised on the fly, and pre-quantised.
    """
    known = model.__dict__.get("trained_from")
    if known:
        return dict(known)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    embedding = base.get_input_embeddings().weight
    tensors = {name: tensor for name, tensor in base.named_parameters() if name.rpartition(".")[0].endswith("norm")} | {
        "embedding": embedding[:_ROWS]
    }
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # of a model in parts
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return {
        "vocabulary": int(embedding.shape[0]),
        "hidden_size": int(embedding.shape[1]),
        "layers": int(base.config.num_hidden_layers),
        "fingerprint": digest.hexdigest(),
    }


def is_quantised(model: PreTrainedModel) -> bool:
    """Whether some weight is in 4 bit."""
    return any(getattr(parameter, "quant_state", None) is not None for parameter in model.parameters())


def method_of(model: PreTrainedModel) -> Method:
    """The method that a model was given, read off the model itself."""
    from pipeline.model.bottleneck import has_bottlenecks

    if has_bottlenecks(model):
        return "adapter"
    configs = getattr(model, "peft_config", None)
    if not configs:
        return "full"
    config = next(iter(configs.values()))
    kinds: dict[str, Method] = {"PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt", "IA3": "ia3"}
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind in kinds:
        return kinds[kind]
    if config.modules_to_save:
        return "lora_attention_full"
    if config.use_dora:
        return "dora"
    if config.use_rslora:
        return "rslora"
    return "qlora" if is_quantised(model) else "lora"


def describe(model: PreTrainedModel, folder: Path) -> None:
    """Write ``method.json`` into the folder of a saved adapter, and take the machine's path to the base out of its files."""
    from pipeline.model.bottleneck import Bottleneck

    record: dict[str, Any] = {"method": method_of(model), "base": model_identity(model)}
    bottleneck = next((m for m in model.modules() if isinstance(m, Bottleneck)), None)
    if bottleneck is not None:
        width = bottleneck.down.out_features
        record["options"] = {"reduction": bottleneck.up.out_features / width, "activation": bottleneck.activation}
    write_json(folder / METHOD_RECORD, record)
    location = str(getattr(model.config, "_name_or_path", "") or "")
    if not Path(location).is_absolute():
        return
    named = [str(config.base_model_name_or_path) for config in getattr(model, "peft_config", {}).values()]
    name = next((n for n in named if not Path(n).is_absolute()), Path(location).name)  # as the profile has it, if known
    for path in (folder / "adapter_config.json", folder / "README.md"):
        if path.exists():
            path.write_text(path.read_text(encoding="utf-8").replace(location, name), encoding="utf-8")


def weights_files(folder: Path) -> list[Path]:
    """The files with the weights of an adapter, or of a fully tuned model, in a folder."""
    return sorted([*folder.glob("adapter_model*.safetensors"), *folder.glob("model*.safetensors")])


def disk_bytes(folder: Path) -> int:
    """Size of the trained weights on disk, in bytes; the tokenizer beside them is the base's and does not count."""
    return sum(path.stat().st_size for path in weights_files(folder))


# --- loading ------------------------------------------------------------------------------------------------------------


def load_adapter(
    model: PreTrainedModel, folder: Path, trainable: bool = False, checkpointing: bool = False
) -> PreTrainedModel:
    """Put what a method trained on its base, for evaluation or, ``trainable``, to be trained further.

    Args:
        model: the base, as ``pipeline.model.load.load_model`` loads it. It is changed.
        trainable: of adapters that PEFT loads; the others always are.
        checkpointing: of gradients, where it is trained further.

    Raises:
        UserError: the folder holds no adapter, or one of another base, another vocabulary or another precision.
    """
    peft, record = (folder / "adapter_config.json").exists(), folder / METHOD_RECORD
    if not (peft or record.exists()) or not weights_files(folder):
        raise UserError(f"{folder} holds no adapter (no adapter_config.json); train one first, or give another folder.")
    saved: dict[str, Any] = read_json(record) if record.exists() else {"method": "lora", "base": None}
    if saved["base"]:
        require_same_base(saved["base"], model_identity(model), folder)
    if saved["method"] in (*WHOLE_MATRICES, "adapter") and is_quantised(model):
        raise UserError(
            f"The adapter in {folder} was trained by method {saved['method']} on a 16-bit base, and this base is in 4 bit; "
            "set model.load_in_4bit=false."
        )
    if peft:
        loaded = _load_peft(model, folder, trainable)
        return with_fused_kernels(loaded, checkpointing) if trainable else loaded
    if saved["method"] == "adapter":
        from pipeline.model.bottleneck import add_bottlenecks, load_bottlenecks

        model = add_bottlenecks(model, saved["options"]["reduction"], saved["options"]["activation"])
        load_bottlenecks(model, folder)
    else:
        _load_full(model, folder)
    model.trained_from = saved["base"]
    return model


def require_same_base(wanted: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> None:
    words = {"vocabulary": "a vocabulary of {}", "hidden_size": "a hidden size of {}", "layers": "{} layers"}
    for key, phrase in words.items():
        if wanted[key] != found[key]:
            raise UserError(
                f"The adapter in {folder} belongs to another base: one with {phrase.format(wanted[key])}; this one has "
                f"{phrase.format(found[key])}. Give the base that it was trained on as model.name."
            )
    if wanted["fingerprint"] != found["fingerprint"]:
        raise UserError(
            f"The adapter in {folder} belongs to another base of the same shape: its weights are not those that it was "
            "trained on. Give that base as model.name (and its model.revision)."
        )


def _load_peft(model: PreTrainedModel, folder: Path, trainable: bool) -> PreTrainedModel:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (RuntimeError, ValueError) as error:
        # An adapter from elsewhere, without method.json: PEFT finds modules or shapes that the base does not have.
        if "size mismatch" not in str(error) and "not found in the base model" not in str(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"The adapter in {folder} does not fit this base: {reason}") from error


def with_fused_kernels(model: PreTrainedModel, checkpointing: bool) -> PreTrainedModel:
    """Give a LoRA that PEFT loaded what Unsloth's ``get_peft_model`` gives a new one on a GPU: its kernels and checkpointing."""
    if model.device.type != "cuda" or method_of(model) not in ("lora", "qlora", "rslora"):
        return model
    from unsloth import FastLanguageModel

    return FastLanguageModel.patch_peft_model(model, use_gradient_checkpointing="unsloth" if checkpointing else False)


def _load_full(model: PreTrainedModel, folder: Path) -> None:
    """Put the weights of a fully tuned model, in one file or several, into its base."""
    from safetensors.torch import load_file

    for path in weights_files(folder):
        state = load_file(str(path))
        try:
            unexpected = model.load_state_dict(state, strict=False).unexpected_keys
        except RuntimeError as error:
            raise UserError(f"{path} does not fit this base: {' '.join(str(error).split())[:300]}") from error
        if unexpected:
            raise UserError(f"{path} does not fit this base, which has no {unexpected[0]}.")
