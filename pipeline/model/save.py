"""Save what was trained, as a whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.model.dtype import as_stored, is_base_matrix, stored_type
from pipeline.model.load import load_model
from pipeline.model.methods import describe, method_of
from pipeline.settings import WHOLE_MATRICES, ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_adapter(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict[str, Any] | None = None
) -> None:
    """Save adapter and tokenizer as a whole: written beside the folder first, then renamed.

    Args:
        weights: name → tensor, where the model itself does not hold all of them; None: the model's own.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    whole = method_of(model) in WHOLE_MATRICES
    if weights and whole:
        weights = {name: as_stored(tensor) if is_base_matrix(name) else tensor for name, tensor in weights.items()}
    try:
        with stored_type(model) if whole else contextlib.nullcontext():
            model.save_pretrained(str(temporary), **({"state_dict": weights} if weights else {}))
        tokenizer.save_pretrained(str(temporary))
        describe(model, temporary)
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prequantise(settings: ModelSettings, output_dir: Path) -> None:
    """Save the base as it stands after 4-bit quantisation, so that later runs load NF4 weights and quantise nothing."""
    model, tokenizer = load_model(settings.model_copy(update={"load_in_4bit": True}), seed=0)
    save_adapter(model, tokenizer, output_dir)
