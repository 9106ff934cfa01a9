"""What a model's folder is good for: read from its files, without loading the weights.

In: any folder. Out: a ``CheckedFolder``: architecture and sizes, chat template and its switch, modes, end tokens, context, and
whether this pipeline can train it; where it cannot, or only in one mode, what would do.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import file_sha256, read_json
from pipeline.model.hub.fetch import RECORD
from pipeline.model.hub.online import require_weights
from pipeline.model.thinking_style import thinking_style
from pipeline.settings import LoraSettings

HYBRIDISE = "python -m pipeline hybridise"


@dataclass
class CheckedFolder:
    """What ``check`` found. ``trainable``: in its own modes, by this pipeline; ``advice`` says what to do about the rest."""

    folder: str
    architecture: str = ""  # the model's class
    parameters: int = 0
    dtypes: list[str] = field(default_factory=list)  # of the weights, as they are stored
    layers: int | None = None
    hidden_size: int | None = None
    vocabulary: int | None = None
    context: int | None = None  # tokens
    quantised: str | None = None
    template: bool = False
    switch: dict[str, dict[str, Any]] = field(default_factory=dict)  # mode → keywords of apply_chat_template
    modes: list[str] = field(default_factory=list)
    end_tokens: list[str] = field(default_factory=list)
    pad_token: str | None = None
    fetched: dict[str, Any] | None = None  # where from, of a folder that was fetched here
    trainable: bool = False
    hybrid: bool = False
    problems: list[str] = field(default_factory=list)  # that keep it from being trained
    advice: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def check_folder(folder: Path) -> CheckedFolder:
    """Look at a model's folder.

    Raises:
        UserError: it is no model's folder, has pickle files alone, needs code of its own, or holds damaged files.
    """
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {str(folder)!r}. Models that can be fetched: python -m pipeline models list."
        )
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is no model folder: it has no config.json.")
    require_weights([path.name for path in folder.iterdir()], str(folder))
    found = CheckedFolder(str(folder))
    _fetched(folder, found)
    _architecture(read_json(folder / "config.json"), folder, found)
    _weights(folder, found)
    _tokenizer(folder, found)
    found.trainable = not found.problems
    return found


def _fetched(folder: Path, found: CheckedFolder) -> None:
    """Compare the checksums of a folder that was fetched here."""
    if not (folder / RECORD).is_file():
        return
    record = read_json(folder / RECORD)
    for name, entry in record["files"].items():
        if not (folder / name).is_file() or file_sha256(folder / name) != entry["sha256"]:
            raise UserError(
                f"{folder / name} is not what was fetched (missing, or another checksum). Remove the folder and fetch it "
                f"again: python -m pipeline models fetch {record['model']}."
            )
    found.fetched = {key: value for key, value in record.items() if key != "files"}


def _architecture(config: dict[str, Any], folder: Path, found: CheckedFolder) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    kind = config.get("model_type", "")
    found.architecture = (config.get("architectures") or [KNOWN.get(kind, "")])[0] or kind
    if kind not in KNOWN:
        own = " and brings code of its own, which is never run" if config.get("auto_map") else ""
        found.problems.append(
            f"its architecture {kind!r} is no language model that the installed transformers knows{own}"
        )
        found.advice.append("Take a model of a known architecture (llama, qwen2, qwen3, gemma3_text, smollm3 …).")
    sizes = config.get("text_config") or config
    found.layers, found.hidden_size = sizes.get("num_hidden_layers"), sizes.get("hidden_size")
    found.vocabulary, found.context = sizes.get("vocab_size"), sizes.get("max_position_embeddings")
    quantisation = config.get("quantization_config")
    if quantisation:
        found.quantised = str(quantisation.get("quant_method", "unknown"))
        if found.quantised != "bitsandbytes":
            found.problems.append(f"its weights are quantised by {found.quantised}, which cannot be trained here")
            found.advice.append("Take its 16-bit original, or a -bnb-4bit version.")


def _weights(folder: Path, found: CheckedFolder) -> None:
    """Count weights from the headers of the safetensors files, and see whether LoRA finds the matrices that it is put on."""
    dtypes: set[str] = set()
    matrices: dict[str, None] = {}  # of the layers, by the last part of their names
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(path).items():
            found.parameters += math.prod(entry["shape"])
            dtypes.add(entry["dtype"])
            place, _, kind = name.rpartition(".")
            module = place.rpartition(".")[2]
            if kind == "weight" and len(entry["shape"]) == 2 and any(part.isdigit() for part in place.split(".")):
                matrices[module] = None
    found.dtypes = sorted(dtypes)
    if matrices and (
        missing := [name for name in LoraSettings.model_fields["target_modules"].default if name not in matrices]
    ):
        found.advice.append(
            f"It has no {', '.join(missing)}, which LoRA is put on by default; its matrices are {', '.join(matrices)}: "
            f"--set 'lora.target_modules=[{', '.join(matrices)}]'."
        )


def _header(path: Path) -> dict[str, Any]:
    """The tensors that a safetensors file lists; its length is compared with them.

    Raises:
        UserError: it is cut short, or is none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if not 0 < length <= size - 8:
                raise ValueError("the header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no safetensors file: {error}. Fetch it again.") from error
    if size != 8 + length + end:
        raise UserError(f"{path} is cut short: {size:,} of {8 + length + end:,} bytes. Fetch it again.")
    return header


def _tokenizer(folder: Path, found: CheckedFolder) -> None:
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        found.problems.append("it has no tokenizer (no tokenizer.json, no tokenizer_config.json)")
        found.advice.append("Copy the tokenizer's files of the same model into the folder.")
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError, KeyError, TypeError) as error:
        found.problems.append(f"its tokenizer cannot be read: {' '.join(str(error).split())[:200]}")
        found.advice.append("Fetch the tokenizer's files again.")
        return
    found.template = bool(getattr(tokenizer, "chat_template", None))
    found.pad_token = None if tokenizer.pad_token is None else str(tokenizer.pad_token)
    if found.vocabulary is not None and len(tokenizer) > found.vocabulary:
        found.problems.append(f"its tokenizer has {len(tokenizer):,} tokens, the model {found.vocabulary:,}")
        found.advice.append("They belong to different models; fetch both from one place.")
    if tokenizer.eos_token is None:
        found.problems.append("its tokenizer names no end token (eos_token)")
        found.advice.append("Set eos_token in tokenizer_config.json to the token that ends an answer.")
        return
    if not found.template:
        found.problems.append("it has no chat template: a base model, or a tokenizer saved without it")
        found.advice.append(f"{HYBRIDISE} gives it Qwen3's template and teaches both modes.")
        return
    try:
        style = thinking_style(tokenizer)
    except UserError as error:
        found.problems.append(str(error))
        found.advice.append(f"{HYBRIDISE} gives it Qwen3's template and teaches both modes.")
        return
    found.modes, found.switch = list(style.modes), {str(mode): keys for mode, keys in style.switch.items()}
    found.end_tokens = list(style.ends())
    found.hybrid = len(style.modes) == 2
    found.problems += [f"no example can be made in {mode} mode: {why}" for mode, why in style.untrainable.items()]
    if not found.hybrid:
        only = style.modes[0].replace("_", "-")
        found.advice.append(
            f"It has its {only} mode alone: it can be trained and measured in that one. What works for both: {HYBRIDISE} "
            "teaches it the other, or take a hybrid model (Qwen3-0.6B, SmolLM3-3B)."
        )


def checked_text(found: CheckedFolder) -> str:
    """A finding in lines."""
    lines = [
        f"{found.folder}",
        f"  architecture  {found.architecture}, {found.parameters / 1e6:,.1f} M parameters ({', '.join(found.dtypes)}), "
        f"{found.layers} layers, hidden {found.hidden_size}, vocabulary {found.vocabulary:,}"
        if found.vocabulary is not None
        else f"  architecture  {found.architecture}, {found.parameters / 1e6:,.1f} M parameters ({', '.join(found.dtypes)})",
        f"  context       {found.context:,} tokens" if found.context else "  context       not stated",
        f"  template      {'yes' if found.template else 'none'}"
        + (f"; switch {json.dumps(found.switch)}" if found.switch else "; no switch" if found.template else ""),
        f"  modes         {', '.join(found.modes) or 'none'}",
        f"  end tokens    {', '.join(found.end_tokens) or 'unknown'}; pad {found.pad_token}",
    ]
    if found.fetched:
        lines.append(f"  from          {found.fetched['from']}, licence {found.fetched['licence']}; checksums agree")
    verdict = "yes" if found.trainable else "no: " + "; ".join(found.problems)
    lines.append(f"  trainable     {verdict}")
    return "\n".join([*lines, *(f"  {line}" for line in found.advice)])
