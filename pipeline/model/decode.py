"""Prompts become replies: batched decoding, and what form a reply has.

In: a model, its tokenizer, prompts as token ids, the sampling of a mode. Out: ``Reply`` rows in the order of the
prompts, with true token counts; ``judge`` says whether a reply has the form that its mode asks for.

Decoding is ``model.generate`` with one thing of our own: how the next token is drawn. transformers draws a whole batch
from one global stream of random numbers, so the reply to one prompt depends on which others happen to share its batch.
Here every prompt has a stream of its own, derived from the seed and the prompt, and a token is drawn by inverting the
cumulative distribution after temperature, top-k, top-p and min-p. The distribution is the same; the reply does not
depend on the batch size, the order or the company, beyond floating-point rounding.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.modes import THINK, Tags
from pipeline.model.attention import written_out_attention
from pipeline.model.thinking_style import ThinkingStyle, style_or_none
from pipeline.settings import Sampling

if TYPE_CHECKING:
    import torch
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


# --- drawing tokens ---------------------------------------------------------------------------------------------------


class _Draw:
    """A logits processor that leaves exactly one token possible: the one drawn for each row.

    Temperature, top-k, top-p and min-p act in transformers' order and with its rules; the repetition penalty
    (Keskar et al. 2019, CTRL) counts the row's own prompt and reply, never its padding.
    """

    def __init__(self, sampling: Sampling, uniforms: torch.Tensor | None, attention_mask: torch.Tensor):
        self.sampling = sampling
        self.uniforms = uniforms  # (batch, max_new_tokens), float32 in [0, 1); None: greedy
        self.mask = attention_mask.bool()  # (batch, prompt width)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """(batch, length so far), (batch, vocabulary) → scores of the same shape."""
        import torch

        values = self._penalised(input_ids, scores.float())
        if self.uniforms is None:
            return values
        vocabulary = values.shape[-1]
        top_k = min(self.sampling.top_k or vocabulary, vocabulary)
        top, tokens = torch.topk(values / self.sampling.temperature, top_k, dim=-1)  # sorted, largest first
        weights = torch.softmax(top, dim=-1)
        if self.sampling.top_p < 1:  # the fewest tokens whose probabilities reach top_p; always the first
            before = weights.cumsum(dim=-1) - weights
            weights = weights.masked_fill(before >= self.sampling.top_p, 0.0)
        if self.sampling.min_p > 0:
            weights = weights.masked_fill(weights < self.sampling.min_p * weights[:, :1], 0.0)
        cumulative = weights.cumsum(dim=-1)
        step = input_ids.shape[1] - self.mask.shape[1]
        threshold = self.uniforms[:, step : step + 1] * cumulative[:, -1:]
        index = (cumulative <= threshold).sum(dim=-1, keepdim=True)
        index = index.clamp(max=(weights > 0).sum(dim=-1, keepdim=True) - 1)  # rounding must not leave the kept set
        return torch.full_like(values, float("-inf")).scatter(1, tokens.gather(1, index), 0.0)

    def _penalised(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        penalty = self.sampling.repetition_penalty
        if penalty == 1:
            return scores
        import torch

        width = self.mask.shape[1]
        seen = input_ids.clone()
        # Padding stands on the left; put a token there that the row has anyway.
        seen[:, :width] = torch.where(self.mask, input_ids[:, :width], input_ids[:, width - 1 : width])
        found = scores.gather(1, seen)
        return scores.scatter(1, seen, torch.where(found < 0, found * penalty, found / penalty))


def _stream(seed: int, prompt: Sequence[int], occurrence: int, length: int) -> Any:
    """``length`` uniform numbers of a prompt's own; the n-th occurrence of one prompt has the n-th stream."""
    import numpy

    text = f"{seed}:{occurrence}:{','.join(map(str, prompt))}"
    entropy = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    return numpy.random.default_rng(entropy).random(length, dtype=numpy.float32)


# --- decoding ---------------------------------------------------------------------------------------------------------


@contextmanager
def inference_mode_of(model: PreTrainedModel) -> Iterator[None]:
    """Put a model into inference and afterwards back into the state it was in, gradient checkpointing included.

    An Unsloth model is switched with its own ``for_inference`` and ``for_training``, any other with ``eval()``.

    On a CPU two more things hold meanwhile. Attention is written out (``written_out_attention``). And a small model decodes
    on one thread: its operations are too short to share, and two threads that wait for each other on a busy machine wait
    very long. (Measured with the embedded model, batch 100, one core: 42 → 17 ms a token; on two busy cores, two threads
    against one: 850 → 23 ms.)
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
    if model.device.type == "cpu" and sum(p.numel() for p in model.parameters()) < _ONE_THREAD_BELOW:
        torch.set_num_threads(1)
    try:
        with written_out_attention(model):
            yield
    finally:
        torch.set_num_threads(threads)
        for_training: Any = getattr(model, "for_training", None)
        if callable(for_inference) and callable(for_training) and training[0]:
            # The kind of checkpointing ("unsloth" or plain) is a value, not a flag; Unsloth restores it the same way.
            for_training(use_gradient_checkpointing=next((c for c in checkpointing if c), False))
        for module, flag in zip(modules, training, strict=True):
            module.training = flag


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


def _context_length(model: PreTrainedModel) -> int | None:
    lengths = [getattr(model.config, "max_position_embeddings", None), getattr(model, "max_seq_length", None)]
    return min((length for length in lengths if isinstance(length, int) and length > 0), default=None)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    batch_size: int,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> list[Reply]:
    """Reply to every prompt.

    Prompts are sorted by length and padded on the left. Temperature 0 is greedy; otherwise a reply is drawn from a
    random stream that only the seed, the prompt and its occurrence among ``prompts`` decide (so n copies of a prompt
    get n different replies). torch's, numpy's and Python's own random states are neither used nor changed.

    Args:
        prompts: token ids, none empty, e.g. from ``ChatFormat.prompt_ids``.
        batch_size: prompts decoded at a time.
        progress: called after each batch with the number of replies that it added.

    Returns:
        One ``Reply`` a prompt, in the order given.

    Raises:
        UserError: a prompt is empty, or it and ``max_new_tokens`` together exceed the model's context; memory does not
            suffice for a single reply. Where it does not for a batch, the batch is halved, and that is said.
    """
    context = _context_length(model)
    if context is not None and virtual_tokens(model):
        # They take positions of the model, but none of max_seq_length, which counts a row's own tokens.
        positions = getattr(model.config, "max_position_embeddings", None) or context + virtual_tokens(model)
        context = min(context, positions - virtual_tokens(model))
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"Prompt {index} is empty.")
        if context is not None and len(prompt) + sampling.max_new_tokens > context:
            raise UserError(
                f"Prompt {index} has {len(prompt)} tokens; with max_new_tokens={sampling.max_new_tokens} that is more "
                f"than the model's context of {context}. Lower evaluation.sampling.….max_new_tokens to at most "
                f"{max(context - len(prompt), 0)}, ask for fewer few-shot examples, or raise model.max_seq_length."
            )
    ends = end_tokens(model, tokenizer)
    style = style_or_none(tokenizer)
    occurrences: dict[tuple[int, ...], int] = {}
    numbered = []
    for prompt in prompts:
        key = tuple(prompt)
        numbered.append(occurrences.get(key, 0))
        occurrences[key] = numbered[-1] + 1
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: list[Reply | None] = [None] * len(prompts)
    with inference_mode_of(model):
        done = 0
        while done < len(order):
            batch = order[done : done + batch_size]
            streams = None
            if sampling.temperature > 0:
                streams = [_stream(seed, prompts[i], numbered[i], sampling.max_new_tokens) for i in batch]
            outputs = _batch_or_none(model, tokenizer, [prompts[i] for i in batch], sampling, streams, ends)
            if outputs is None:
                batch_size = len(batch) // 2  # of the following batches too: they are longer
                say(f"memory does not suffice for {len(batch)} replies at a time; going on with {batch_size}")
                continue
            for i, ids in zip(batch, outputs, strict=True):
                replies[i] = _reply(tokenizer, prompts[i], ids, ends, style)
            done += len(batch)
            if progress is not None:
                progress(len(batch))
    return [reply for reply in replies if reply is not None]


def seconds_a_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], tokens: int
) -> float:
    """Seconds a token of greedy decoding, one prompt, exactly ``tokens`` tokens; the prompt's own pass is in it."""
    sampling = Sampling.model_validate({"temperature": 0, "top_p": 1, "top_k": 0, "max_new_tokens": tokens})
    never = [int(model.config.vocab_size)]  # an end token that cannot come
    with inference_mode_of(model):
        started = time.perf_counter()
        _generate_batch(model, tokenizer, [prompt], sampling, None, never)
        return (time.perf_counter() - started) / tokens


def _batch_or_none(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    streams: Sequence[Any] | None,
    ends: list[int],
) -> list[list[int]] | None:
    """Generated ids of each prompt; None where memory does not suffice and there is more than one prompt.

    Raises:
        UserError: memory does not suffice for one prompt.
    """
    import torch

    from pipeline.model.memory import out_of_memory

    try:
        return _generate_batch(model, tokenizer, prompts, sampling, streams, ends)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        if len(prompts) == 1:
            raise UserError(
                f"Memory does not suffice for one reply to a prompt of {len(prompts[0])} tokens with up to "
                f"{sampling.max_new_tokens} new ones. Lower evaluation.sampling.….max_new_tokens, or free memory."
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    streams: Sequence[Any] | None,
    ends: list[int],
) -> list[list[int]]:
    """Generated ids of each prompt, the end token with them, whatever follows it cut off."""
    import numpy
    import torch

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), int(pad))
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    device = model.device
    ids, mask = ids.to(device), mask.to(device)
    uniforms = None if streams is None else torch.from_numpy(numpy.stack(streams)).to(device)
    inputs, own = {"input_ids": ids, "attention_mask": mask}, mask
    generate: Any = model.generate
    with torch.inference_mode():
        if virtual_tokens(model):
            generate = model.get_base_model().generate
            inputs, own = _with_virtual_tokens(model, ids, mask)
        output = generate(
            **inputs,
            max_new_tokens=sampling.max_new_tokens,
            # _Draw leaves one token possible, so taking the most probable one is drawing. The neutral values keep the
            # model's own generation_config (Qwen3 ships temperature 0.6) from adding warnings about unused settings.
            do_sample=False,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            repetition_penalty=1.0,
            num_beams=1,
            use_cache=True,
            eos_token_id=ends,
            pad_token_id=pad,
            logits_processor=[_Draw(sampling, uniforms, own)],
        )
    rows: list[list[int]] = output[:, own.shape[1] :].tolist()
    cut = []
    for row_ids in rows:
        end = next((i for i, token in enumerate(row_ids) if token in ends), len(row_ids) - 1)
        cut.append(row_ids[: end + 1])
    return cut


def virtual_tokens(model: PreTrainedModel) -> int:
    """How many virtual tokens stand before every prompt of this model: those of prefix or prompt tuning, else 0."""
    config = getattr(model, "active_peft_config", None)
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def _with_virtual_tokens(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor]:
    """The inputs of ``generate`` on the base of a model with virtual tokens, and which positions are the prompt's own.

    PEFT puts virtual tokens in front of the padding, so that their distance from the prompt, and with it the reply, would
    depend on which prompts share the batch. Here every row sees them as in training, directly before its first token: those
    of prefix tuning are in the cache, where the attention mask gives the prompt the positions after them; those of prompt
    tuning are put between padding and prompt.

    Args:
        ids, mask: (batch, width), padded on the left.

    Returns:
        The inputs, and a mask (batch, virtual tokens + width) that is 1 where a token of the prompt stands.
    """
    import torch

    count, (rows, width) = virtual_tokens(model), ids.shape
    prompt = model.get_prompt(batch_size=rows)
    filler = ids.new_zeros(rows, count)  # ids that stand for virtual tokens; the base never looks them up
    if model.active_peft_config.peft_type == "PREFIX_TUNING":
        own = torch.cat([torch.zeros_like(filler), mask], dim=1)
        whole = torch.cat([torch.ones_like(filler), mask], dim=1)
        return {
            "input_ids": torch.cat([filler, ids], dim=1),
            "attention_mask": whole,
            "past_key_values": prompt,
        }, own
    padding = width - mask.sum(dim=1, keepdim=True)  # (batch, 1)
    place = torch.arange(count + width, device=ids.device).expand(rows, -1)
    own = (place >= padding + count).long()
    source = (place - count * (own == 1)).clamp(max=width - 1)  # a virtual token's source is never used
    moved = ids.gather(1, source)
    embeddings = model.word_embeddings(moved)
    is_virtual = (place >= padding) & (own == 0)
    embeddings[is_virtual] = prompt.to(embeddings.dtype).reshape(-1, embeddings.shape[-1])
    return {
        "input_ids": moved,
        "inputs_embeds": embeddings,
        "attention_mask": (place >= padding).long(),
    }, own


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
