"""One batch of prompts is decoded; a row that has ended is handed over at once, and leaves the batch with the next half of it.

In: a model, prompts as token ids, sampling, a stream of random numbers a prompt. Out: the generated ids of each prompt, as soon
as it has ended. Decoding is ``model.generate``: when half of the rows have ended it is stopped, the cache keeps the rows that go
on, and it is called again with them. So the rows that are left do not wait for memory or time of those that are done, and
nothing is computed twice. (A prefill of prompt and reply in the middle would not do: Unsloth cuts it at ``max_seq_length``.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.model.draw import Draw
from pipeline.model.thinking_budget import Budget, StopThinking
from pipeline.settings import Sampling

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Ended = Callable[[int, list[int]], None]  # (row, generated ids with the end token)

LOOK_EVERY = 8  # steps between two looks at which rows have ended; a look waits for a GPU
WORTH_IT = 32  # steps that have to be left for a smaller batch


class _Watch:
    """A stopping criterion that reports rows as they end, and stops the batch when half of them have.

    Args:
        ends: ids that end a reply. width: of the prompts. rows: what the rows of the batch are called.
        room: tokens of cache; while the smaller batch is made, its rows are there twice.
        last: steps after which the batch ends anyway; 0: it is never made smaller.
    """

    def __init__(self, ends: list[int], width: int, rows: list[int], ended: Ended, room: int | None, last: int):
        self.ends, self.width, self.rows, self.room, self.last = ends, width, rows, room, last
        self._tell, self._steps = ended, 0
        self._done: Any = None  # (rows,) bool
        self._told: set[int] = set()

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.Tensor:
        """(rows, length so far) → (rows,) bool, whether to stop."""
        import torch

        last = input_ids[:, -1]
        done = torch.isin(last, torch.tensor(self.ends, device=last.device))
        self._done = done if self._done is None else self._done | done
        self._steps += 1
        stop = self._steps % LOOK_EVERY == 0 and self.report(input_ids) and self._smaller(input_ids.shape[1])
        return torch.full_like(done, stop)

    def report(self, input_ids: torch.Tensor, everything: bool = False) -> bool:
        """Hand over the rows that have ended (or all); whether there were new ones."""
        before = len(self._told)
        for row in self.ended(everything):
            if row not in self._told:
                self._told.add(row)
                self._tell(self.rows[row], self._cut(input_ids[row, self.width :].tolist()))
        return len(self._told) > before

    def ended(self, everything: bool = False) -> list[int]:
        return list(range(len(self.rows))) if everything else self._done.nonzero().flatten().tolist()

    def _smaller(self, length: int) -> bool:
        left = len(self.rows) - len(self._told)
        fits = self.room is None or (len(self.rows) + left) * length <= self.room
        return 0 < left <= len(self.rows) / 2 and self.last - (length - self.width) >= WORTH_IT and fits

    def _cut(self, ids: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(ids) if token in self.ends), len(ids) - 1)
        return ids[: end + 1]


@dataclass(frozen=True)
class Batch:
    """Prompts that are decoded together.

    Args:
        prompts: token ids, none empty.
        ends: ids that end a reply.
        streams: of each prompt, ``sampling.max_new_tokens`` numbers in [0, 1); None: greedy.
        room: tokens that the cache has room for; None: without limit.
        budget: of thinking; None: without limit.
    """

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    ends: list[int]
    streams: Sequence[Any] | None = None
    room: int | None = None
    budget: Budget | None = None


# Draw leaves one token possible, so taking the most probable one is drawing. The neutral values keep the model's own
# generation_config (Qwen3 ships temperature 0.6) from adding warnings about unused settings.
_NEUTRAL = {
    "do_sample": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "num_beams": 1,
    "use_cache": True,
}


def _padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, (batch, width) each, padded on the left."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def decode_batch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Batch, ended: Ended) -> None:
    """Decode a batch; ``ended`` is called once for every prompt, with the ids generated for it."""
    import numpy
    import torch

    sampling, ends, budget = batch.sampling, batch.ends, batch.budget
    pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0])
    device = model.device
    ids, mask = (tensor.to(device) for tensor in _padded(batch.prompts, pad))
    uniforms = None if batch.streams is None else torch.from_numpy(numpy.stack(batch.streams)).to(device)
    inputs, own = {"input_ids": ids, "attention_mask": mask}, mask
    generate: Any = model.generate
    rows = list(range(len(batch.prompts)))
    with torch.inference_mode():
        if virtual_tokens(model):
            generate = model.get_base_model().generate
            inputs, own = _with_virtual_tokens(model, ids, mask)
        attention, width = inputs["attention_mask"], own.shape[1]
        # A state of linear attention cannot be divided by rows; such a model decodes its batch to the end.
        stop = None if budget is None else StopThinking(budget, batch.prompts, width, ends)
        last = 0 if "linear_attention" in _layer_types(model) else sampling.max_new_tokens
        while rows:
            watch = _Watch(ends, width, rows, ended, batch.room, last)
            output = generate(
                **inputs,
                max_new_tokens=sampling.max_new_tokens - (inputs["input_ids"].shape[1] - width),
                **_NEUTRAL,
                eos_token_id=ends,
                pad_token_id=pad,
                logits_processor=[Draw(sampling, uniforms, own), *([] if stop is None else [stop])],
                stopping_criteria=[watch],
                return_dict_in_generate=True,
            )
            sequences, cache = output.sequences, output.past_key_values
            del output, inputs
            over = sequences.shape[1] - width >= sampling.max_new_tokens
            watch.report(sequences, everything=over)
            gone = set(watch.ended(everything=over))
            left = [row for row in range(len(rows)) if row not in gone]
            rows = [rows[row] for row in left]
            if rows:
                keep = torch.tensor(left, device=device)
                if stop is not None:
                    stop.keep(left)
                cache = _selected(cache, keep)
                sequences, attention, own = sequences[keep], attention[keep], own[keep]
                uniforms = None if uniforms is None else uniforms[keep]
                generated = attention.new_ones(len(rows), sequences.shape[1] - width)
                inputs = {
                    "input_ids": sequences,
                    "attention_mask": torch.cat([attention, generated], dim=1),
                    "past_key_values": cache,
                }
                del cache


def _layer_types(model: PreTrainedModel) -> list[str]:
    return list(getattr(model.config.get_text_config(), "layer_types", None) or [])


def _selected(cache: Any, keep: torch.Tensor) -> Any:
    """The rows of a cache that go on. Decoding on a GPU, Unsloth hands out (keys, values) of each layer."""
    from transformers import DynamicCache

    if not isinstance(cache, (list, tuple)):
        cache.batch_select_indices(keep)
        return cache
    selected = DynamicCache()
    for place, (keys, values) in enumerate(cache):
        selected.update(keys.index_select(0, keep), values.index_select(0, keep), place)
    return selected


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
