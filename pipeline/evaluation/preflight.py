"""What an evaluation needs, looked at before anything is built: its benchmarks, their items, and room for every prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.modes import MODES
from pipeline.data.chat_format import ChatFormat
from pipeline.evaluation.evalscope.contain import contained
from pipeline.evaluation.evalscope.items import prepare
from pipeline.model.engines.local import require_prompts
from pipeline.model.room import positions_of
from pipeline.settings import Profile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def require_evaluation(
    profile: Profile, tokenizer: PreTrainedTokenizerBase, config: Mapping[str, Any] | None, folder: Path
) -> None:
    """Read the items of all benchmarks, and see that each prompt, and it with the longest reply, fits into the model.

    Args:
        config: the model's ``config.json``; None: not known, then its positions are not looked at.
        folder: where items may be laid out while they are read.

    Raises:
        UserError: as ``prepare``; a prompt for which there is no room.
    """
    settings, chat_format = profile.evaluation, ChatFormat(tokenizer)
    with contained(folder, settings.benchmarks):
        prompts = [prompt for name in settings.benchmarks for prompt in prepare(name, settings, folder).prompts]
    positions = None if config is None else positions_of(config)
    if positions is not None:
        taken = (
            getattr(profile, profile.chosen_method).virtual_tokens
            if profile.chosen_method in ("prefix", "prompt")
            else 0
        )
        positions = max(positions, profile.model.max_seq_length) - taken
    longest = profile.model.max_seq_length if settings.engine == "transformers" else None  # only Unsloth cuts there
    for mode in MODES:
        sampling = getattr(settings.sampling, mode)
        require_prompts(chat_format.prompt_ids, prompts, mode, sampling, longest, positions)
