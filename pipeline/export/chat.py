"""Talk to a run in the terminal: base or tuned model, either mode, replies as they are written, the reasoning dimmed.

In: a run, lines of text. A line that begins with ``/`` is a command; every other one is said to the model. Earlier answers are
shown to the model as its chat template shows them, without their reasoning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.core.errors import UserError, nearest
from pipeline.core.modes import CLOSE, OPEN, Mode
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Message
from pipeline.evaluation.report.card import decoding_of
from pipeline.export.source import OF_PEFT, Source, load_base
from pipeline.model.decode import end_tokens, inference_mode_of
from pipeline.model.dtype import computing_dtype
from pipeline.model.form import split_reply
from pipeline.model.methods import load_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMMANDS = {
    "/think": "answer with reasoning",
    "/no_think": "answer at once",
    "/base": "talk to the base model",
    "/tuned": "talk to the tuned model",
    "/system": "TEXT: a system message from now on; without text, none",
    "/again": "ask the last question again, e.g. after /no_think or /base",
    "/clear": "forget the conversation",
    "/help": "these commands",
    "/quit": "leave (or Ctrl-D)",
}
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class Dimmer:
    """Text as it arrives, in pieces of any size → the same text with the reasoning dimmed.

    A piece may end within a tag, so what could become one is held back until more is known.
    """

    def __init__(self, colour: bool):
        self.colour, self.inside, self._held = colour, False, ""

    def feed(self, piece: str) -> str:
        """What can be shown now."""
        text, shown = self._held + piece, ""
        while True:
            tag = CLOSE if self.inside else OPEN
            before, found, after = text.partition(tag)
            if not found:
                break
            if self.inside:
                shown += before + tag + (PLAIN if self.colour else "")
            else:
                shown += before + (DIM if self.colour else "") + tag
            self.inside, text = not self.inside, after
        keep = next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)
        self._held = text[len(text) - keep :]
        return shown + text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, and the end of the dimming."""
        rest, self._held = self._held, ""
        return rest + (PLAIN if self.colour and self.inside else "")


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


@dataclass
class Chat:
    """A conversation and the switches."""

    source: Source
    output: TextIO
    which: str = "tuned"
    mode: Mode = "thinking"
    system: str = ""
    seed: int | None = None
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokenizer: PreTrainedTokenizerBase = self.source.tokenizer()
        self.format = ChatFormat(self.tokenizer)
        self.models = Models(self.source)
        self.decoding = decoding_of(self.source.profile.evaluation.sampling)

    def run(self, lines: TextIO) -> None:
        """Read lines until their end or ``/quit``."""
        self._say(f"{self.source.profile.model.name}; /help lists the commands, /quit leaves")
        while True:
            self._write(f"\n[{self.which}, {self.mode.replace('_', '-')}] > ")
            try:
                line = lines.readline()
            except UnicodeDecodeError as error:
                self._say(f"that line is no UTF-8 (byte {error.start}); say it again")
                continue
            except KeyboardInterrupt:
                line = ""
            if not line:
                self._say("")
                return
            if not self.take(line.strip()):
                return

    def take(self, text: str) -> bool:
        """One line; False: leave."""
        if not text:
            return True
        if text.startswith("/"):
            return self._command(*text.partition(" ")[::2])
        self.messages.append({"role": "user", "content": text})
        self._answer()
        return True

    def _command(self, name: str, rest: str) -> bool:
        if name == "/quit":
            return False
        if name in ("/think", "/no_think"):
            self.mode = "thinking" if name == "/think" else "non_thinking"
        elif name in ("/base", "/tuned"):
            self.which = name[1:]
        elif name == "/system":
            self.system = rest.strip()
        elif name == "/clear":
            self.messages.clear()
        elif name == "/again":
            self._again()
        elif name == "/help":
            self._say("\n".join(f"{command:10} {words}" for command, words in COMMANDS.items()))
        else:
            self._say(f"there is no command {name}.{nearest(name, COMMANDS)} /help lists them")
        return True

    def _again(self) -> None:
        while self.messages and self.messages[-1]["role"] != "user":
            self.messages.pop()
        if self.messages:
            self._answer()
        else:
            self._say("nothing was asked yet")

    def prompt_ids(self) -> list[int]:
        """The prompt of the conversation so far.

        Raises:
            UserError: it leaves no room for a reply.
        """
        system = [{"role": "system", "content": self.system}] if self.system else []
        ids = self.format.prompt_ids([*system, *self.messages], self.mode)
        with self.models.model(self.which) as model:
            room = int(getattr(model.config, "max_position_embeddings", 0) or 2**31) - len(ids)
        if room < 1:
            raise UserError(
                f"The conversation has {len(ids):,} tokens, {1 - room:,} more than the model has room for with a reply; /clear "
                "forgets it."
            )
        return ids

    def _answer(self) -> None:
        try:
            text = self._generate(self.prompt_ids())
        except UserError as error:
            self.messages.pop()  # the question that did not fit
            self._say(str(error))
            return
        except KeyboardInterrupt:
            self.messages.pop()
            self._write(PLAIN if self.output.isatty() else "")
            self._say("\n(stopped; the question is forgotten)")
            return
        reasoning, answer, _, _ = split_reply(text)
        message: Message = {"role": "assistant", "content": answer}
        self.messages.append(message | ({"reasoning_content": reasoning} if reasoning else {}))

    def _generate(self, ids: list[int]) -> str:
        """Stream a reply; returns its text."""
        import torch
        from transformers import TextStreamer, set_seed

        dimmer, write, parts = Dimmer(self.output.isatty()), self._write, []
        end = str(self.tokenizer.eos_token)

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                parts.append(text.removesuffix(end) if stream_end else text)
                write(dimmer.feed(parts[-1]))

        if self.seed is not None:
            set_seed(self.seed)
        options: dict[str, Any] = dict(self.decoding[self.mode])
        with self.models.model(self.which) as model, inference_mode_of(model), torch.inference_mode():
            room = int(getattr(model.config, "max_position_embeddings", 0) or 2**31) - len(ids)
            options["max_new_tokens"] = min(options["max_new_tokens"], room)
            prompt = torch.tensor([ids], device=model.device)
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                streamer=Streamer(self.tokenizer, skip_prompt=True),
                eos_token_id=end_tokens(model, self.tokenizer),
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
        write(dimmer.end() + "\n")
        if int(output[0, -1]) not in end_tokens(model, self.tokenizer):
            self._say(f"(cut after {output.shape[1] - len(ids)} tokens)")
        return "".join(parts)

    def _write(self, text: str) -> None:
        self.output.write(text)
        self.output.flush()

    def _say(self, text: str) -> None:
        self._write(text + "\n")
