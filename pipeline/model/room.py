"""What a model has room for: how long prompt and reply may be, and how many replies fit into memory at a time.

In: a model's config and settings, or a loaded model. Out: a check of lengths, the bytes that a token takes in the cache of keys
and values, and how many tokens of it the free memory holds. Nothing heavy is imported before a loaded model is at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES
from pipeline.model.config import standard_names
from pipeline.settings import Profile

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHORTEST_PROMPT = 16  # tokens: a question of a few words in a chat template of Qwen3's kind

# Part of the free memory that the cache may take. On a GPU the rest is for the keys and values of one layer, repeated for every
# query head, for the logits, and for what the allocator cannot use; on a CPU other programs live beside this one.
CACHE_SHARE = {"cuda": 0.65, "cpu": 0.5}


def cache_bytes(config: Mapping[str, Any], number: int) -> int:
    """Bytes that one token takes in the cache: 2 × layers × key-value heads × head size × bytes of a number.

    Args:
        config: a ``config.json``, or ``PretrainedConfig.to_dict()``; of a model of text and images, the part ``text_config``.
        number: bytes of a number of the cache: 2 in bfloat16.
    """
    config = standard_names(config.get("text_config") or config)
    heads = config["num_attention_heads"]
    kinds = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
    layers = sum(kind != "linear_attention" for kind in kinds)  # those keep a state of fixed size
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return int(2 * layers * (config.get("num_key_value_heads") or heads) * head_dim * number)


def rows_that_fit(lengths: Sequence[int], new_tokens: int, room: int | None, at_most: int) -> int:
    """How many of the prompts, from the first on, can be decoded together; 1 at least.

    Args:
        lengths: tokens of the prompts, ascending: a batch is as wide as its last prompt.
        room: tokens that the cache has room for; None: without limit.
    """
    count = min(at_most, len(lengths))
    while room is not None and count > 1 and count * (lengths[count - 1] + new_tokens) > room:
        count -= 1
    return count


def free_bytes(device: Any) -> int | None:
    """Memory that this process can still take on a torch device; None: nobody says."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "cpu":
        import psutil

        return int(psutil.virtual_memory().available)
    return None


def cache_room(model: PreTrainedModel, parts: int = 1) -> int | None:
    """Tokens that the cache has room for in the memory that is free now; None: not known.

    Args:
        parts: processes that decode with this memory at the same time.
    """
    free = free_bytes(model.device)
    if free is None:
        return None
    number = model.get_input_embeddings().weight.element_size()
    return int(CACHE_SHARE[model.device.type] * free / cache_bytes(model.config.to_dict(), number) / parts)


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Tokens of prompt and reply together that a model has positions for; None: its config does not say."""
    found = standard_names(config.get("text_config") or config).get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


def require_length(prompt: int, new_tokens: int, longest_prompt: int | None, positions: int | None, what: str) -> None:
    """See that a prompt and the longest reply to it fit.

    Unsloth cuts a prompt at ``max_seq_length`` without an error, but a reply may go beyond; prompt and reply together have to fit
    into the positions of the model.

    Args:
        prompt: its tokens. longest_prompt: ``model.max_seq_length``; None: no limit.
        positions: of the model, without virtual tokens; None: not known.
        what: names the prompt, as the beginning of a sentence.

    Raises:
        UserError: what is too long, by how much, and what to change.
    """
    if longest_prompt is not None and prompt > longest_prompt:
        raise UserError(
            f"{what} has {prompt} tokens, more than model.max_seq_length={longest_prompt}, where it would be cut. "
            f"Set model.max_seq_length to at least {prompt}, or ask for fewer few-shot examples "
            "(evaluation.dataset_args.….few_shot_num)."
        )
    if positions is not None and prompt + new_tokens > positions:
        raise UserError(
            f"{what} has {prompt} tokens; with max_new_tokens={new_tokens} that is more than the model's context of "
            f"{positions}. Lower evaluation.sampling.….max_new_tokens to at most {max(positions - prompt, 0)}, or ask for "
            "fewer few-shot examples (evaluation.dataset_args.….few_shot_num)."
        )


def require_context(profile: Profile, config: Mapping[str, Any]) -> None:
    """Say before anything is loaded that the replies of the evaluation cannot fit into the model, whatever the prompt.

    Args:
        config: the model's ``config.json``.

    Raises:
        UserError: a mode's ``max_new_tokens`` leaves less than ``SHORTEST_PROMPT`` positions for the prompt.
    """
    positions = positions_of(config)
    if positions is None:
        return
    positions = max(positions, profile.model.max_seq_length)  # beyond the model's own, Unsloth stretches the positions
    taken = (
        getattr(profile, profile.chosen_method).virtual_tokens if profile.chosen_method in ("prefix", "prompt") else 0
    )
    most = positions - taken - SHORTEST_PROMPT
    for mode in MODES:
        new_tokens = getattr(profile.evaluation.sampling, mode).max_new_tokens
        if new_tokens > most:
            raise UserError(
                f"evaluation.sampling.{mode}.max_new_tokens={new_tokens} cannot fit: {profile.model.name} has {positions} "
                f"positions for prompt and reply together. Lower it to at most {most}, less what your prompts take "
                f"(up to model.max_seq_length={profile.model.max_seq_length} tokens)."
            )
