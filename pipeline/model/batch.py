"""Prompts are decoded together; a reply that has ended is handed over at once, and its row makes room for what is left.

In: a model, prompts as token ids, sampling, a stream of random numbers a prompt. Out: the generated ids of each prompt, as soon
as it has ended. Decoding is ``model.generate``, which is stopped now and then and called again with the cache: where prompts
wait and the cache lets rows join, as soon as a sixth of the rows have ended; else when half of them have. So nobody waits for
memory or time of those that are done, and nothing is computed twice. (A prefill of prompt and reply in the middle would not
do: Unsloth cuts it at ``max_seq_length``.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.model.draw import Draw
from pipeline.model.growing_cache import growing_cache
from pipeline.model.rows import Rows, padded_prompts
from pipeline.model.thinking_budget import Budget, StopThinking
from pipeline.settings import Sampling

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Ended = Callable[[int, list[int]], None]  # (row, generated ids with the end token)

LOOK_EVERY = 8  # steps between two looks at which rows have ended; a look waits for a GPU
WORTH_IT = 32  # steps that have to be left for a smaller batch
REFILL = 6  # with a part of 1 / REFILL of the rows free, waiting prompts join


class _Watch:
    """A stopping criterion that reports rows as they end, and stops when enough of them have.

    Args:
        ends: ids that end a reply. limit: tokens after which a reply ends anyway.
        enough: given how many have ended and the length so far, whether to stop.
    """

    def __init__(self, rows: Rows, ends: list[int], limit: int, ended: Ended, enough: Callable[[int, int], bool]):
        self.rows, self.ends, self.limit, self.enough = rows, ends, limit, enough
        self._tell, self._steps = ended, 0
        self._done: Any = None  # (rows,) bool
        self._told: set[int] = set()

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.Tensor:
        """(rows, length so far) → (rows,) bool, whether to stop."""
        import torch

        last = input_ids[:, -1]
        done = torch.isin(last, torch.tensor(self.ends, device=last.device))
        done |= input_ids.shape[1] - self.rows.starts >= self.limit
        self._done = done if self._done is None else self._done | done
        self._steps += 1
        stop = self._steps % LOOK_EVERY == 0 and self.report(input_ids) and self._stops(input_ids.shape[1])
        return torch.full_like(done, stop)

    def report(self, input_ids: torch.Tensor) -> bool:
        """Hand over the rows that have ended; whether there were new ones."""
        before = len(self._told)
        for row in self._done.nonzero().flatten().tolist():
            if row not in self._told:
                self._told.add(row)
                self._tell(self.rows.names[row], self._cut(input_ids[row, int(self.rows.starts[row]) :].tolist()))
        return len(self._told) > before

    def left(self) -> list[int]:
        """The rows that go on."""
        return [row for row in range(len(self.rows.names)) if row not in self._told]

    def _stops(self, length: int) -> bool:
        return bool(self.left()) and self.enough(len(self._told), length)

    def _cut(self, ids: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(ids) if token in self.ends), len(ids) - 1)
        return ids[: end + 1]


@dataclass(frozen=True)
class Batch:
    """Prompts that are decoded together.

    Args:
        prompts: token ids, none empty.
        ends: ids that end a reply.
        stream: of a prompt's place, ``sampling.max_new_tokens`` numbers in [0, 1); None: greedy.
        room: tokens that the cache has room for; None: without limit.
        budget: of thinking; None: without limit.
        at_once: rows at a time; the other prompts wait. None: all.
    """

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    ends: list[int]
    stream: Callable[[int], Any] | None = None
    room: int | None = None
    budget: Budget | None = None
    at_once: int | None = None


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


def rows_join(model: PreTrainedModel) -> bool:
    """Whether prompts can join a batch that is being decoded, with the attention that the model has now."""
    return not virtual_tokens(model) and growing_cache(model) is not None


def decode_batch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Batch, ended: Ended) -> None:
    """Decode a batch; ``ended`` is called once for every prompt, with the ids generated for it."""
    import torch

    joins, most = rows_join(model), batch.at_once or len(batch.prompts)
    pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else batch.ends[0])
    # A state of linear attention cannot be divided by rows; such a model decodes its batch to the end.
    divides = "linear_attention" not in (getattr(model.config.get_text_config(), "layer_types", None) or [])
    waiting = list(range(len(batch.prompts)))
    rows: Rows | None = None

    def enough(done: int, length: int) -> bool:
        assert rows is not None
        if waiting and joins:
            return done >= most / REFILL
        left = len(rows.names) - done
        fits = batch.room is None or joins or (len(rows.names) + left) * length <= batch.room
        steps = batch.sampling.max_new_tokens - (length - int(rows.starts.max()))
        return divides and left <= len(rows.names) / 2 and steps >= WORTH_IT and fits

    with torch.inference_mode():
        while waiting or rows is not None:
            free = most - (len(rows.names) if rows is not None else 0)
            if waiting and (rows is None or (joins and free >= most / REFILL)):
                new, waiting = _begin(model, batch, waiting[:free], pad), waiting[free:]
                if rows is None:
                    rows = new
                else:
                    _advance(model, batch, new, pad, ended, lambda *_: False, steps=1)
                    if new.names:
                        rows.join(new, pad)
                    del new
            assert rows is not None
            _advance(model, batch, rows, pad, ended, enough)
            rows = rows if rows.names else None


def _begin(model: PreTrainedModel, batch: Batch, names: list[int], pad: int) -> Rows:
    """Rows for these prompts, before their first call."""
    import numpy
    import torch

    ids, mask = (tensor.to(model.device) for tensor in padded_prompts([batch.prompts[name] for name in names], pad))
    draws = None
    if batch.stream is not None:
        draws = torch.from_numpy(numpy.stack([batch.stream(name) for name in names])).to(model.device)
    starts = torch.full((len(names),), ids.shape[1], device=model.device)
    rows = Rows(names, ids, mask, mask, starts, draws)
    if virtual_tokens(model):
        _with_virtual_tokens(model, rows)
    else:
        rows.cache = growing_cache(model)
    return rows


def _advance(
    model: PreTrainedModel,
    batch: Batch,
    rows: Rows,
    pad: int,
    ended: Ended,
    enough: Callable[[int, int], bool],
    steps: int | None = None,
) -> None:
    """One call of ``generate``, of so many steps (None: as many as the longest reply has left); the rows that go on stay."""
    limit, narrow = batch.sampling.max_new_tokens, rows_join(model)
    generate: Any = model.get_base_model().generate if virtual_tokens(model) else model.generate
    watch = _Watch(rows, batch.ends, limit, ended, enough)
    processors: list[Any] = [Draw(batch.sampling, rows.draws, rows.own, rows.starts)]
    if batch.budget is not None:
        prompts = [batch.prompts[name] for name in rows.names]
        processors.append(StopThinking(batch.budget, prompts, rows.starts.tolist(), batch.ends))
    output = generate(
        **rows.inputs(),
        max_new_tokens=limit - rows.written() if steps is None else steps,
        **_NEUTRAL,
        eos_token_id=batch.ends,
        pad_token_id=pad,
        logits_processor=processors,
        stopping_criteria=[watch],
        return_dict_in_generate=True,
    )
    rows.take(output.sequences, output.past_key_values)
    del output
    watch.report(rows.ids)
    rows.keep(watch.left(), narrow)


def virtual_tokens(model: PreTrainedModel) -> int:
    """How many virtual tokens stand before every prompt of this model: those of prefix or prompt tuning, else 0."""
    config = getattr(model, "active_peft_config", None)
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def _with_virtual_tokens(model: Any, rows: Rows) -> None:
    """Put virtual tokens into rows that have not been called yet; the base of the model is what decodes them.

    PEFT puts virtual tokens in front of the padding, so that their distance from the prompt, and with it the reply, would
    depend on which prompts share the batch. Here every row sees them as in training, directly before its first token: those
    of prefix tuning are in the cache, where the attention mask gives the prompt the positions after them; those of prompt
    tuning are put between padding and prompt.
    """
    import torch

    ids, mask = rows.ids, rows.seen
    count, (number, width) = virtual_tokens(model), ids.shape
    prompt = model.get_prompt(batch_size=number)
    filler = ids.new_zeros(number, count)  # ids that stand for virtual tokens; the base never looks them up
    rows.starts = rows.starts + count
    if model.active_peft_config.peft_type == "PREFIX_TUNING":
        rows.own = torch.cat([torch.zeros_like(filler), mask], dim=1)
        rows.seen = torch.cat([torch.ones_like(filler), mask], dim=1)
        rows.ids, rows.cache = torch.cat([filler, ids], dim=1), prompt
        return
    padding = width - mask.sum(dim=1, keepdim=True)  # (rows, 1)
    place = torch.arange(count + width, device=ids.device).expand(number, -1)
    rows.own = (place >= padding + count).long()
    source = (place - count * (rows.own == 1)).clamp(max=width - 1)  # a virtual token's source is never used
    rows.ids = ids.gather(1, source)
    embeddings = model.word_embeddings(rows.ids)
    is_virtual = (place >= padding) & (rows.own == 0)
    embeddings[is_virtual] = prompt.to(embeddings.dtype).reshape(-1, embeddings.shape[-1])
    rows.embeddings, rows.seen = embeddings, (place >= padding).long()
