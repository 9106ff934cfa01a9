"""A finished run as the export sees it: its settings, its report, its adapter, and the base that they belong to.

In: a run directory, which is only read. Out: a ``Source``; and the base in 16 or 32 bit, or in 4 bit as it was trained, with
plain transformers: what is exported has to work without Unsloth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.model.load import model_location
from pipeline.model.methods import METHOD_RECORD, model_identity, require_same_base, weights_files
from pipeline.settings import Method, ModelSettings, Profile, parse, read_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MERGEABLE = ("lora", "qlora", "dora", "rslora", "lora_attention_full", "ia3", "full")
OF_PEFT = ("lora", "qlora", "dora", "rslora", "lora_attention_full", "ia3", "prefix", "prompt")


@dataclass(frozen=True)
class Source:
    """A finished run."""

    folder: Path
    profile: Profile
    report: dict[str, Any]
    manifest: dict[str, Any]  # of the mix
    method: Method
    record: dict[str, Any]  # the adapter's method.json

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def in_4bit(self) -> bool:
        """Whether the base was in 4 bit when it was trained and measured."""
        return self.profile.model.load_in_4bit

    def tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.adapter)


def open_source(folder: Path) -> Source:
    """Read a run directory.

    Raises:
        UserError: it is none, or the run is not finished.
    """
    paths = folder / "profile.yaml", folder / "run.json"
    if not all(path.exists() for path in paths):
        raise UserError(f"{folder} is no run directory (it has no profile.yaml and run.json).")
    lacking = [
        name
        for name, path in (
            ("training", folder / "training.json"),
            ("adapter", folder / "adapter" / METHOD_RECORD),
            ("report", folder / "report.json"),
        )
        if not path.exists()
    ]
    if lacking or not weights_files(folder / "adapter"):
        raise UserError(
            f"The run in {folder} is not finished: it has no {', no '.join(lacking or ['weights in adapter/'])}. Go on with it "
            "first: run --resume with its settings."
        )
    record = read_json(folder / "adapter" / METHOD_RECORD)
    return Source(
        folder=folder,
        profile=parse(Profile, read_yaml(paths[0]), str(paths[0])),
        report=read_json(folder / "report.json"),
        manifest=read_json(folder / "mix" / "manifest.json"),
        method=record["method"],
        record=record,
    )


# --- the base ---------------------------------------------------------------------------------------------------------


def base_location(settings: ModelSettings) -> str:
    """A folder, or a name on the Hugging Face hub; what lies on ModelScope is fetched.

    Raises:
        UserError: see ``model_location``.
    """
    location = model_location(settings)
    if settings.source == "modelscope":
        from modelscope import snapshot_download

        return str(snapshot_download(settings.name, revision=settings.revision))
    return location


def is_prequantised(source: Source) -> bool:
    """Whether the base itself is a 4-bit checkpoint, so that there is no 16-bit one to merge into."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base_location(source.profile.model), revision=source.profile.model.revision)
    return getattr(config, "quantization_config", None) is not None


def load_base(
    source: Source, dtype: str, in_4bit: bool = False, base: str | None = None, dequantise: bool = False
) -> PreTrainedModel:
    """The base that the adapter belongs to.

    Args:
        dtype: of the weights; with ``in_4bit``, what is computed in.
        in_4bit: quantised to NF4 as Unsloth does it.
        base: a folder with the 16-bit original, where the run's base is a 4-bit checkpoint.
        dequantise: take a 4-bit checkpoint and turn its weights back into ``dtype``.

    Raises:
        UserError: it is not the base of this adapter; or it exists in 4 bit only, and ``dequantise`` is off.
    """
    import torch
    from transformers import AutoModelForCausalLM

    settings = source.profile.model
    if base is not None:
        settings = settings.model_copy(update={"name": base, "source": "local", "revision": None})
    location, revision = base_location(settings), settings.revision
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "revision": revision}
    quantised = base is None and is_prequantised(source)
    if quantised and not in_4bit and not dequantise:
        raise UserError(
            f"The base {settings.name} is a 4-bit checkpoint. Give the folder of its 16-bit original with --base, or merge into "
            "the 4-bit weights turned back to 16 bit with --dequantise (those have the quantisation's error for good)."
        )
    if in_4bit and not quantised:
        options["quantization_config"] = four_bit(dtype)
    model = AutoModelForCausalLM.from_pretrained(location, **options)
    require_same_base(source.record["base"], model_identity(model), source.adapter)
    if quantised and not in_4bit:
        model = model.dequantize()
    return model.eval()


def four_bit(dtype: str) -> Any:
    """NF4 with double quantisation, the parameters of Unsloth's ``load_in_4bit``."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
