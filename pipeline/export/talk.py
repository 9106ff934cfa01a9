"""Replies as they are written, by the base or the tuned model of a run: what the terminal and the page both talk to.

In: messages, a mode, which model. Out: the reply, piece by piece as it comes, then as a whole. Prompt and sampling are those of
the run's evaluation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.core.errors import UserError
from pipeline.core.modes import THINK, Mode, Tags
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Message
from pipeline.evaluation.report.card import decoding_of
from pipeline.export.source import OF_PEFT, Source, load_base
from pipeline.model.decode import end_tokens, inference_mode_of
from pipeline.model.dtype import computing_dtype
from pipeline.model.form import split_reply
from pipeline.model.methods import load_adapter
from pipeline.model.thinking_budget import Budget, StopThinking
from pipeline.model.thinking_style import thinking_style

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["reasoning", "answer", "open", "close"]
WHICH = ("base", "tuned")


class Parts:
    """Text as it arrives, in pieces of any size → what of it is reasoning and what is answer.

    A piece may end within a tag, so what could become one is held back until more is known.
    """

    def __init__(self, tags: Tags = THINK):
        self.tags, self.inside, self._held = tags, False, ""

    def feed(self, piece: str) -> list[tuple[Kind, str]]:
        """What is known now, in order; the texts together are all that came, but for what is held back."""
        text, found = self._held + piece, []
        while True:
            tag = self.tags.close if self.inside else self.tags.open
            before, there, after = text.partition(tag)
            if not there:
                break
            found += [(self._kind(), before), (self._tag(), tag)]
            self.inside, text = not self.inside, after
        keep = next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)
        self._held = text[len(text) - keep :]
        found.append((self._kind(), text[: len(text) - keep]))
        return [(kind, part) for kind, part in found if part]

    def end(self) -> list[tuple[Kind, str]]:
        """What was held back."""
        rest, self._held = self._held, ""
        return [(self._kind(), rest)] if rest else []

    def _kind(self) -> Kind:
        return "reasoning" if self.inside else "answer"

    def _tag(self) -> Kind:
        return "close" if self.inside else "open"


@dataclass
class Models:
    """Base and tuned model of a run, as they were measured; one in memory where PEFT can switch its adapter off."""

    source: Source
    _loaded: dict[str, PreTrainedModel] = field(default_factory=dict)

    @contextlib.contextmanager
    def model(self, which: str) -> Iterator[PreTrainedModel]:
        """``base`` or ``tuned``, loaded when it is first asked for."""
        if self.source.method in OF_PEFT:
            tuned = self._load("tuned")
            with tuned.disable_adapter() if which == "base" else contextlib.nullcontext():
                yield tuned
        else:
            yield self._load(which)

    def _load(self, which: str) -> PreTrainedModel:
        if which not in self._loaded:
            model = load_base(self.source, computing_dtype(self.source.profile.model), in_4bit=self.source.in_4bit)
            self._loaded[which] = load_adapter(model, self.source.adapter).eval() if which == "tuned" else model
        return self._loaded[which]


@dataclass(frozen=True)
class Written:
    """A reply: its text with the tags, its tokens, and whether the limit cut it."""

    text: str
    tokens: int
    cut: bool

    def message(self, tags: Tags = THINK) -> Message:
        """The reply as a message of the conversation, its reasoning apart."""
        reasoning, answer, _, _ = split_reply(self.text, tags)
        message: Message = {"role": "assistant", "content": answer}
        return message | ({"reasoning_content": reasoning} if reasoning else {})


class Talker:
    """Answers conversations with the models of a run; not from two threads at a time."""

    def __init__(self, source: Source):
        self.source = source
        self.tokenizer: PreTrainedTokenizerBase = source.tokenizer()
        self.format = ChatFormat(self.tokenizer)
        self.style = thinking_style(self.tokenizer)
        self.models = Models(source)
        self.decoding = decoding_of(source.profile.evaluation.sampling)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _room(self, ids: Sequence[int], which: str) -> int:
        with self.models.model(which) as model:
            return int(getattr(model.config, "max_position_embeddings", 0) or 2**31) - len(ids)

    def prompt_ids(
        self, messages: Sequence[Message], mode: Mode, which: str, remedy: str = "begin a new one"
    ) -> list[int]:
        """The prompt of a conversation.

        Args:
            which: the model that is to answer, ``base`` or ``tuned``.
            remedy: what to do where it is too long, to end the error with.

        Raises:
            UserError: it leaves no room for a reply, or the chat template does not take it.
        """
        ids = self.format.prompt_ids(list(messages), mode)
        room = self._room(ids, which)
        if room < 1:
            raise UserError(
                f"The conversation has {len(ids):,} tokens, {1 - room:,} more than the model has room for with a reply; "
                f"{remedy}."
            )
        return ids

    def _longest(self, ids: Sequence[int], which: str, mode: Mode) -> int:
        return min(int(self.decoding[mode]["max_new_tokens"]), self._room(ids, which))

    def require_room(self, ids: Sequence[int], which: str, mode: Mode, budget: int | None) -> Budget | None:
        """What stops the thinking; None: nothing does. Raises ``UserError`` where the budget leaves no room for an answer."""
        if budget is None or mode != "thinking":
            return None
        stop = Budget(self.tokenizer, budget)
        stop.require_room(self._longest(ids, which, mode))
        return stop

    def reply(
        self,
        ids: list[int],
        which: str,
        mode: Mode,
        write: Callable[[str], object],
        seed: int | None = None,
        budget: int | None = None,
    ) -> Written:
        """Answer a prompt.

        Args:
            which: ``base`` or ``tuned``.
            write: called with each piece of text as soon as it is there. What it raises ends the reply and is passed on.
            seed: of the sampling; None: another each time.
            budget: in thinking mode, tokens of reasoning after which the thought is closed; None: it never is.

        Raises:
            UserError: the budget leaves no room for an answer.
        """
        import torch
        from transformers import TextStreamer, set_seed

        options: dict[str, Any] = self.decoding[mode] | {"max_new_tokens": self._longest(ids, which, mode)}
        stop = self.require_room(ids, which, mode, budget)
        end, pieces = str(self.tokenizer.eos_token), []

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                pieces.append(text.removesuffix(end) if stream_end else text)
                write(pieces[-1])

        opened = self.style.opened(str(self.tokenizer.decode(ids)))  # the prompt may end within the thought
        if opened:
            pieces.append(opened)
            write(opened)
        if seed is not None:
            set_seed(seed)
        with self.models.model(which) as model, inference_mode_of(model), torch.inference_mode():
            ends = end_tokens(model, self.tokenizer)
            if stop is not None:
                options["logits_processor"] = [StopThinking(stop, [ids], [len(ids)], ends)]
            prompt = torch.tensor([ids], device=model.device)
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                streamer=Streamer(self.tokenizer, skip_prompt=True),
                eos_token_id=ends,
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
        return Written("".join(pieces), output.shape[1] - len(ids), int(output[0, -1]) not in ends)
