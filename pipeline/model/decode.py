"""Prompts become replies: batched decoding, and what form a reply has.

In: a model, its tokenizer, prompts as token ids, the sampling of a mode. Out: ``Reply`` rows in the order of the
prompts, with true token counts; ``judge`` says whether a reply has the form that its mode asks for.

Decoding is ``model.generate`` with one thing of our own: how the next token is drawn (``draw``). transformers draws a whole batch
from one global stream of random numbers, so the reply to one prompt depends on which others happen to share its batch.
Here every prompt has a stream of its own, derived from the seed and the prompt, and a token is drawn by inverting the
cumulative distribution after temperature, top-k, top-p and min-p. The distribution is the same; the reply does not
depend on the batch size, the order or the company, beyond floating-point rounding.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.modes import THINK, Tags
from pipeline.model.attention import written_out_attention
from pipeline.model.batch import Batch, decode_batch, rows_join, virtual_tokens
from pipeline.model.draw import stream
from pipeline.model.memory import out_of_memory
from pipeline.model.packed import packed_weights
from pipeline.model.room import cache_room, positions_of, require_length, rows_that_fit
from pipeline.model.thinking_budget import Budget
from pipeline.model.thinking_style import ThinkingStyle, style_or_none
from pipeline.settings import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ONE_THREAD_BELOW = 30_000_000  # parameters
_TAIL = 16  # tokens at the end of a prompt, among which an opening tag would be


@dataclass(frozen=True)
class Reply:
    """One reply. Counts are in tokens that the model really generated; padding is in none of them."""

    text: str  # decoded with its think tags, without the end token; with the opening tag that the prompt ended with
    token_ids: list[int]  # with the end token, where there is one
    prompt_tokens: int
    output_tokens: int  # = len(token_ids)
    reasoning_tokens: int  # up to and with </think>; all of them where the thought was opened and never closed
    answer_tokens: int  # after </think>, without the end token
    truncated: bool  # stopped by max_new_tokens, not by an end token
    tags: Tags = THINK  # those around the reasoning in ``text``

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", Tags(*self.tags))  # a reply that was JSON on its way has a list


# --- decoding ---------------------------------------------------------------------------------------------------------


@contextmanager
def inference_mode_of(model: PreTrainedModel, parts: int = 1) -> Iterator[None]:
    """Put a model into inference and afterwards back into the state it was in, gradient checkpointing included.

    An Unsloth model is switched with its own ``for_inference`` and ``for_training``, any other with ``eval()``.

    On a CPU three more things hold meanwhile. Attention is written out (``written_out_attention``). Weights are laid out for the
    products (``packed_weights``). And a small model decodes on one thread: its operations are too short to share, and
    two threads that wait for each other on a busy machine wait very long. (Measured with the embedded model, batch 100, one
    core: 42 → 17 ms a token; on two busy cores, two threads against one: 850 → 23 ms.) So does each of several processes.

    Args:
        parts: processes at this work.
    """
    import torch

    modules = list(model.modules())
    training = [module.training for module in modules]
    checkpointing = [getattr(module, "gradient_checkpointing", False) for module in modules]
    for_inference: Any = getattr(model, "for_inference", None)
    if callable(for_inference):
        for_inference()
    else:
        model.eval()
    threads = torch.get_num_threads()
    small = sum(p.numel() for p in model.parameters()) < _ONE_THREAD_BELOW
    if model.device.type == "cpu" and (small or parts > 1):
        torch.set_num_threads(1)
    try:
        with written_out_attention(model), _contiguous_head(model), packed_weights(model):
            yield
    finally:
        torch.set_num_threads(threads)
        for_training: Any = getattr(model, "for_training", None)
        if callable(for_inference) and callable(for_training) and training[0]:
            # The kind of checkpointing ("unsloth" or plain) is a value, not a flag; Unsloth restores it the same way.
            for_training(use_gradient_checkpointing=next((c for c in checkpointing if c), False))
        for module, flag in zip(modules, training, strict=True):
            module.training = flag


@contextmanager
def _contiguous_head(model: PreTrainedModel) -> Iterator[None]:
    """Hand the output layer the last position of a prompt as memory of its own, not as a cut of all positions.

    torch takes such a cut for one matrix product a row, and copies the frozen weights for each: with an adapter, for 40 rows
    and a vocabulary of 49,154 by 576 numbers of 2 bytes that is 2.3 GB. (A weight that requires a gradient is not copied.)
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]) if given else None)
    try:
        yield
    finally:
        hook.remove()


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a reply: the tokenizer's end token, those of the model's generation config and of its chat template.

    Returns:
        They are sorted.

    Raises:
        UserError: there is none, so no reply could ever end.
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id} - {None}
    style = style_or_none(tokenizer)
    if style is not None:  # some models end a turn by opening the next one
        ids |= {tokenizer.convert_tokens_to_ids(end) for end in style.ends()}
    if not ids:
        raise UserError("Neither the tokenizer nor the model's generation config names an end token (eos_token_id).")
    return sorted(int(i) for i in ids)


@dataclass(frozen=True)
class Request:
    """Prompts that want a reply, and how they are to be answered; see ``generate``.

    Args:
        parts: processes that share this machine's memory for the same work.
    """

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    batch_size: int
    seed: int
    thinking_budget: int | None = None
    parts: int = 1


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    batch_size: int,
    seed: int,
    arrived: Callable[[int, Reply], object] | None = None,
    thinking_budget: int | None = None,
) -> list[Reply]:
    """Reply to every prompt.

    Prompts are sorted by length and padded on the left. As many are decoded at a time as the free memory holds with the longest
    reply to each, ``batch_size`` at most; those that have ended leave the batch, and where the cache allows it others take their
    place. Temperature 0 is greedy; otherwise a reply is drawn from a random stream that only the seed, the prompt and its
    occurrence among ``prompts`` decide (so n copies of a prompt get n different replies). torch's, numpy's and Python's own
    random states are neither used nor changed.

    Args:
        prompts: token ids, none empty, e.g. from ``ChatFormat.prompt_ids``.
        batch_size: prompts decoded at a time, at most.
        arrived: called with each reply as soon as it has ended, and its place among ``prompts``.
        thinking_budget: tokens of reasoning after which the thought is closed (see ``pipeline.model.thinking_budget``); for
            prompts of the thinking mode. What closes it counts among ``max_new_tokens``.

    Returns:
        One ``Reply`` a prompt, in the order given.

    Raises:
        UserError: a prompt is empty, or longer than ``max_seq_length``, or it and ``max_new_tokens`` together exceed the model's
            positions; the budget leaves no room for an answer; memory does not suffice for a single reply. Where it does not
            for a batch, the batch is halved, and that is said.
    """
    return answered(model, tokenizer, Request(prompts, sampling, batch_size, seed, thinking_budget), arrived)


def answered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Request,
    arrived: Callable[[int, Reply], object] | None = None,
) -> list[Reply]:
    """``generate``, where other processes may be at the same work."""
    prompts, sampling, batch_size = request.prompts, request.sampling, request.batch_size
    _require_lengths(model, prompts, sampling.max_new_tokens)
    ends = end_tokens(model, tokenizer)
    style = style_or_none(tokenizer)
    budget = None if request.thinking_budget is None else Budget(tokenizer, request.thinking_budget)
    if budget is not None:
        budget.require_room(sampling.max_new_tokens)
    numbered = _numbered(prompts)
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: list[Reply | None] = [None] * len(prompts)

    def ended(place: int, ids: list[int]) -> None:
        reply = replies[place] = _reply(tokenizer, prompts[place], ids, ends, style)
        if arrived is not None:
            arrived(place, reply)

    def draws_of(places: list[int], row: int) -> Any:
        place = places[row]
        return stream(request.seed, prompts[place], numbered[place], sampling.max_new_tokens)

    with inference_mode_of(model, request.parts):
        joins = rows_join(model)
        while waiting:
            room = cache_room(model, request.parts)
            lengths = [len(prompts[i]) for i in waiting]
            if joins:  # a row may be as long as the longest
                lengths = [lengths[-1]] * len(lengths)
            count = rows_that_fit(lengths, sampling.max_new_tokens, room, batch_size)
            places = waiting if joins else waiting[:count]
            draws = partial(draws_of, places) if sampling.temperature > 0 else None
            batch = Batch([prompts[i] for i in places], sampling, ends, draws, room, budget, count)
            if not _has_memory_for(model, tokenizer, batch, places, ended):
                batch_size = max(1, count // 2)  # of the following batches too: they are longer
                say(f"memory does not suffice for {count} replies at a time; going on with {batch_size}")
            waiting = [i for i in waiting if replies[i] is None]
    return [reply for reply in replies if reply is not None]


def _numbered(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Of each prompt, how many equal ones stand before it."""
    before: Counter[tuple[int, ...]] = Counter()
    numbers = []
    for prompt in prompts:
        numbers.append(before[tuple(prompt)])
        before[tuple(prompt)] += 1
    return numbers


def _require_lengths(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """Raises: UserError: a prompt is empty, or too long for the model; see ``require_length``."""
    positions = positions_of(model.config.to_dict())
    if positions is not None:
        positions -= virtual_tokens(
            model
        )  # they take positions, but none of max_seq_length, which counts a row's own tokens
    longest = getattr(model, "max_seq_length", None)
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"Prompt {index} is empty.")
        limit = longest if isinstance(longest, int) and longest > 0 else None
        require_length(len(prompt), new_tokens, limit, positions, f"Prompt {index}")


def seconds_a_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], tokens: int
) -> float:
    """Seconds a token of greedy decoding, one prompt, exactly ``tokens`` tokens; the prompt's own pass is in it."""
    sampling = Sampling.model_validate({"temperature": 0, "top_p": 1, "top_k": 0, "max_new_tokens": tokens})
    never = [int(model.config.vocab_size)]  # an end token that cannot come
    with inference_mode_of(model):
        started = time.perf_counter()
        decode_batch(model, tokenizer, Batch([prompt], sampling, never), lambda row, ids: None)
        return (time.perf_counter() - started) / tokens


def _has_memory_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Batch,
    places: Sequence[int],
    ended: Callable[[int, list[int]], None],
) -> bool:
    """Decode a batch; False where memory does not suffice and there is more than one prompt. What has ended until then stays.

    Args:
        places: of the batch's prompts among all; ``ended`` is told of them.

    Raises:
        UserError: memory does not suffice for one prompt.
    """
    import torch

    try:
        decode_batch(model, tokenizer, batch, lambda row, ids: ended(places[row], ids))
        return True
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        if (batch.at_once or len(batch.prompts)) == 1:
            raise UserError(
                f"Memory does not suffice for one reply to a prompt of {max(map(len, batch.prompts))} tokens with up to "
                f"{batch.sampling.max_new_tokens} new ones. Lower evaluation.sampling.….max_new_tokens, or free memory."
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


def _reply(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    ids: list[int],
    ends: list[int],
    style: ThinkingStyle | None,
) -> Reply:
    """``style``: None where the tokenizer has no chat template that is known."""
    truncated = ids[-1] not in ends
    content = ids if truncated else ids[:-1]

    # Nothing is skipped: think tags are ordinary added tokens in Qwen3, special ones elsewhere, and a stray special
    # token in a reply is a fault that should be seen.
    def text_of(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    opening = style.opened(text_of(prompt[-_TAIL:])) if style is not None else ""
    text = opening + text_of(content)
    tags = style.tags if style is not None else THINK
    reasoning = _reasoning_tokens(text, content, tags, tokenizer, text_of)
    return Reply(
        text=text,
        token_ids=ids,
        prompt_tokens=len(prompt),
        output_tokens=len(ids),
        reasoning_tokens=reasoning,
        answer_tokens=len(content) - reasoning,
        truncated=truncated,
        tags=tags,
    )


def _reasoning_tokens(
    text: str, content: list[int], tags: Tags, tokenizer: PreTrainedTokenizerBase, text_of: Callable[[list[int]], str]
) -> int:
    """How many tokens of a reply are reasoning, the closing tag with it."""
    close = tokenizer.convert_tokens_to_ids(tags.close)
    if close in content:
        return content.index(close) + 1
    if close in (None, tokenizer.unk_token_id) and tags.close in text_of(content):  # written in several tokens
        return next(n for n in range(1, len(content) + 1) if tags.close in text_of(content[:n]))
    return len(content) if text.lstrip().startswith(tags.open) else 0
