"""Talk to a run in the terminal: base or tuned model, either mode, replies as they are written, the reasoning dimmed.

In: a run, lines of text. A line that begins with ``/`` is a command; every other one is said to the model. Earlier answers are
shown to the model as its chat template shows them, without their reasoning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TextIO

from pipeline.core.errors import UserError, nearest
from pipeline.core.modes import THINK, Mode, Tags
from pipeline.data.conversations import Message
from pipeline.export.source import Source
from pipeline.export.talk import Parts, Talker

COMMANDS = {
    "/think": "answer with reasoning",
    "/no_think": "answer at once",
    "/base": "talk to the base model",
    "/tuned": "talk to the tuned model",
    "/budget": "N: think for N tokens at most; without a number, as long as the model likes",
    "/system": "TEXT: a system message from now on; without text, none",
    "/again": "ask the last question again, e.g. after /no_think or /base",
    "/clear": "forget the conversation",
    "/help": "these commands",
    "/quit": "leave (or Ctrl-D)",
}
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class Dimmer:
    """Text as it arrives, in pieces of any size → the same text with the reasoning dimmed."""

    def __init__(self, colour: bool, tags: Tags = THINK):
        self.colour, self._parts = colour, Parts(tags)

    def feed(self, piece: str) -> str:
        """What can be shown now."""
        return "".join(self._dimmed(kind, text) for kind, text in self._parts.feed(piece))

    def end(self) -> str:
        """What was held back, and the end of the dimming."""
        rest = "".join(text for _, text in self._parts.end())
        return rest + (PLAIN if self.colour and self._parts.inside else "")

    def _dimmed(self, kind: str, text: str) -> str:
        if not self.colour:
            return text
        return DIM + text if kind == "open" else text + PLAIN if kind == "close" else text


@dataclass
class Chat:
    """A conversation and the switches."""

    source: Source
    output: TextIO
    which: str = "tuned"
    mode: Mode = "thinking"
    system: str = ""
    seed: int | None = None
    budget: int | None = None  # tokens of reasoning; None: as many as the model likes
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.talker = Talker(self.source)

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
        elif name == "/budget":
            self._limit(rest.strip())
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

    def _limit(self, text: str) -> None:
        if text and not text.isdecimal():
            self._say("/budget takes a number of tokens, or nothing")
        else:
            self.budget = int(text) if text else None

    def _again(self) -> None:
        while self.messages and self.messages[-1]["role"] != "user":
            self.messages.pop()
        if self.messages:
            self._answer()
        else:
            self._say("nothing was asked yet")

    def prompt_ids(self) -> list[int]:
        """The prompt of the conversation so far; raises ``UserError`` where it leaves no room for a reply."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.talker.prompt_ids([*system, *self.messages], self.mode, self.which, "/clear forgets it")

    def _answer(self) -> None:
        tags = self.talker.style.tags
        dimmer = Dimmer(self.output.isatty(), tags)
        try:
            ids = self.prompt_ids()
            written = self.talker.reply(
                ids, self.which, self.mode, lambda text: self._write(dimmer.feed(text)), self.seed, self.budget
            )
        except UserError as error:
            self.messages.pop()  # the question that did not fit
            self._say(str(error))
            return
        except KeyboardInterrupt:
            self.messages.pop()
            self._write(PLAIN if self.output.isatty() else "")
            self._say("\n(stopped; the question is forgotten)")
            return
        self._say(dimmer.end())
        if written.cut:
            self._say(f"(cut after {written.tokens} tokens)")
        self.messages.append(written.message(tags))

    def _write(self, text: str) -> None:
        self.output.write(text)
        self.output.flush()

    def _say(self, text: str) -> None:
        self._write(text + "\n")
