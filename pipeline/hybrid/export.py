"""What was trained becomes one model folder, in 16 bit, that needs no adapter."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pipeline.core.files import read_json
from pipeline.model.methods import load_adapter


def export_hybrid(start: Path, adapter: Path, folder: Path) -> None:
    """Merge an adapter into the model that it was trained on, and write both as one folder, unless it is there.

    Args:
        start: the model's folder. adapter: what ``save_adapter`` wrote: LoRA, or all matrices (method ``full``).
    """
    if folder.exists():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    if (adapter / "adapter_config.json").exists():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    else:
        assert read_json(adapter / "method.json")["method"] == "full"
        model = load_adapter(model, adapter)
    model.to(torch.bfloat16).config.dtype = "bfloat16"
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(start).save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(candidate: Path, folder: Path) -> None:
    """Move a model's files into ``folder``; ``config.json`` last, so that it is a model's folder when it is whole."""
    for path in sorted(candidate.iterdir(), key=lambda p: p.name == "config.json"):
        path.replace(folder / path.name)
    candidate.rmdir()
