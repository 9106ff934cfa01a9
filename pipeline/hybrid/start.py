"""The model to begin with: a pretrained one with the tokens and the chat template of a hybrid.

A new token's row in the embedding is the mean of all others. So its logit is the mean of all logits, which is never the
largest: a model with fresh think tokens cannot write them, however its other weights are trained. Their rows have to be
trained as well (``lora.trainable_token_indices``, or method ``full``).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.files import make_folder, read_json, write_json
from pipeline.core.modes import CLOSE, OPEN
from pipeline.core.place import ROOT
from pipeline.model.hub.check import check_folder
from pipeline.model.hub.fetch import stored
from pipeline.model.hub.known import default_folder, known_models

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = ROOT / "models" / "embedded" / "chat_template.jinja"  # Qwen3's, as the embedded model is shipped with it
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
TOKENS = (TURN_START, TURN_END, OPEN, CLOSE)  # that the template writes
PAD = "<|endoftext|>"
RECORD = "start.json"


def base_folder(base: str) -> Path:
    """The folder of the model to begin with, a short name or a folder; it is looked at, not loaded.

    Raises:
        UserError: it is not there (says how it is fetched), cannot be trained, or is hybrid already.
    """
    folder = default_folder(base) if base in known_models() else Path(base).expanduser()
    if base in known_models() and stored(folder) is None:
        raise UserError(f"{base} is not at {folder}. Fetch it first: python -m pipeline models fetch {base}")
    found = check_folder(folder)
    if found.hybrid:
        raise UserError(
            f"{folder} has both modes already ({found.switch}); it needs no hybridise. Give it as model.name of a profile."
        )
    # Without a template it gets one here, and with another template this one takes its place.
    lasting = [problem for problem in found.problems if "chat template" not in problem]
    if lasting:
        raise UserError(f"{folder} cannot be trained here: {'; '.join(lasting)}. {' '.join(found.advice)}")
    if found.quantised:
        raise UserError(f"{folder} is quantised ({found.quantised}); new tokens need its 16-bit original.")
    return folder


def make_start(base: Path, folder: Path) -> dict[str, Any]:
    """Write the model with its new tokens, unless it is there; returns the record.

    Returns:
        ``tokens``: the ids of the tokens that are new to the model; ``added``: those tokens; ``end``: the end token.
    """
    if (folder / RECORD).exists():
        return dict(read_json(folder / RECORD))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    added = _add_tokens(tokenizer)
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in added]
    tables = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings:
        tables.append(model.get_output_embeddings())
    known = [i for i in range(tables[0].weight.shape[0]) if i not in ids]
    means = [table.weight.data[known].mean(dim=0) for table in tables]
    if len(tokenizer) > tables[0].weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        tables = [model.get_input_embeddings(), model.get_output_embeddings()][: len(tables)]
    for table, mean in zip(tables, means, strict=True):
        table.weight.data[ids] = mean
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.to(torch.bfloat16).config.dtype = "bfloat16"
    record = {"tokens": ids, "added": added, "end": str(tokenizer.eos_token)}
    make_folder(folder.parent)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / RECORD, record)
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record


def _add_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Give the tokenizer what the template writes, an end token and a padding token; returns what is new."""
    from transformers import AddedToken

    vocabulary = tokenizer.get_vocab()
    added = [token for token in TOKENS if token not in vocabulary]
    if tokenizer.pad_token in (None, TURN_END) and PAD not in vocabulary:
        added.append(PAD)  # padding that is the end token would hide the ends of answers
    # Think tags are no special tokens in Qwen3 either: a decoded reply shows them.
    tokenizer.add_tokens([AddedToken(t, special=t not in (OPEN, CLOSE), normalized=False) for t in added])
    tokenizer.eos_token = TURN_END
    if tokenizer.pad_token in (None, TURN_END):
        tokenizer.pad_token = PAD
    return added
