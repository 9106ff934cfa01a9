"""Questions are asked and the replies kept on disk, so that nothing is asked twice.

In: questions, and whatever answers them (``Answers``): a model in this process, or a server. Out: a ``Store`` of replies, one
JSON line each, appended and synchronised as they arrive: a killed process loses the last two seconds of them and what was being
written.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.core.console import Bar, duration, say
from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint, make_folder, read_json, write_json
from pipeline.core.modes import THINK, Mode, Tags
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Message, Rejected
from pipeline.data.rehearsal.questions import Question
from pipeline.model.decode import Reply
from pipeline.model.decoders import decoders
from pipeline.model.engines.base import Arrived
from pipeline.model.form import judge, split_reply
from pipeline.settings import EvaluationSettings, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AHEAD = 4  # batches asked in one call on a CPU, where prompts take the place of replies that have ended
WRITE_EVERY_S = 2.0  # seconds between two writes to the disk
ENOUGH = 64  # replies after which a base that has not once kept to its mode is given up


class Answers(Protocol):
    """Whatever answers: one reply a question, in order."""

    @property
    def at_once(self) -> int:
        """Questions that are given to one call."""
        ...

    def __call__(
        self,
        questions: Sequence[Question],
        mode: Mode,
        sampling: Sampling,
        seed: int,
        arrived: Arrived | None = None,
    ) -> list[Reply]:
        """``arrived`` is told of each reply as soon as it is there, from any thread."""
        ...


@dataclass
class _Here:
    """A model in this process, with others beside it where the profile says so."""

    decoding: Any
    batch_size: int
    at_once: int

    def __call__(
        self,
        questions: Sequence[Question],
        mode: Mode,
        sampling: Sampling,
        seed: int,
        arrived: Arrived | None = None,
    ) -> list[Reply]:
        prompts = [question.prompt_ids for question in questions]
        return list(self.decoding.generate(prompts, sampling, self.batch_size, seed, arrived))


@contextmanager
def answers_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: EvaluationSettings
) -> Iterator[Answers]:
    """The loaded model answers, in as many processes as it is evaluated in."""
    with decoders(model, tokenizer, settings.workers) as decoding:
        batches = (AHEAD if model.device.type == "cpu" else 1) * (1 + len(decoding.others))
        yield _Here(decoding, settings.batch_size, batches * settings.batch_size)


# --- what was said ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """A stored reply. ``as_rendered``: its tokens are those that training will see; None: the tokens were not to be had."""

    key: str
    seed: int
    text: str
    truncated: bool
    tokens: int
    seconds: float  # its part of the time since the last write
    as_rendered: bool | None


class Store:
    """Replies of one model in one mode under one sampling, by question and seed.

    Raises:
        UserError: the folder holds replies of another model, mode or sampling.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.path = folder, folder / "replies.jsonl"
        make_folder(folder, "PIPELINE_CACHE")
        header = folder / "identity.json"
        if not header.exists():
            write_json(header, identity)
        elif (found := read_json(header)) != identity:
            differing = [key for key in identity if found.get(key) != identity[key]]
            key = differing[0] if differing else "its settings"
            raise UserError(
                f"{folder} holds replies of another model or sampling: {key} is {found.get(key)!r} there, and "
                f"{identity.get(key)!r} is asked now. Remove that folder, or set PIPELINE_CACHE to another one."
            )
        self._places: dict[tuple[str, int], tuple[int, int]] = {}  # where a reply's line begins, and its length
        self._end = 0
        self.refresh()

    def refresh(self) -> None:
        """Take in what the file holds beyond what is known; half a line at its end, of a killed process, is no reply."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                said = json.loads(line)
                self._places[said["key"], said["seed"]] = (self._end, len(line))
                self._end += len(line)

    def __contains__(self, place: tuple[str, int]) -> bool:
        return place in self._places

    def get(self, key: str, seed: int) -> Said:
        """A stored reply."""
        start, length = self._places[key, seed]
        with self.path.open("rb") as file:
            file.seek(start)
            return Said(**json.loads(file.read(length)))

    def add(self, replies: Sequence[Said]) -> None:
        """Append replies; when this returns they are on the disk."""
        lines = [
            json.dumps(vars(said), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n" for said in replies
        ]
        with self.path.open("ab") as file:
            file.truncate(self._end)
            file.seek(self._end)
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        for said, line in zip(replies, lines, strict=True):
            self._places[said.key, said.seed] = (self._end, len(line))
            self._end += len(line)


def seed_of(seed: int, sample: int) -> int:
    """The seed of the n-th reply to every question: other numbers for each, and none that another ``seed`` begins with."""
    return int(fingerprint([seed, sample])[:8], 16)


# --- asking -------------------------------------------------------------------------------------------------------------


def message_of(text: str, tags: Tags = THINK) -> Message:
    """A reply as the assistant's message."""
    reasoning, answer, _, _ = split_reply(text, tags)
    message: Message = {"role": "assistant", "content": answer}
    return message | {"reasoning_content": reasoning} if reasoning else message


class _Keeper:
    """Stores replies as they arrive, from any thread, and shares the time among them."""

    def __init__(self, store: Store, bar: Bar):
        self.store, self.bar = store, bar
        self._waiting: list[Said] = []
        self._since, self._lock = time.monotonic(), threading.Lock()

    def take(self, said: Said) -> None:
        with self._lock:
            self._waiting.append(said)
            if time.monotonic() - self._since >= WRITE_EVERY_S:
                self._write()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around one call of the model: the time begins, and at the end, of whatever kind, all that has arrived is stored."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._write()

    def _write(self) -> None:
        if self._waiting:
            seconds = round((time.monotonic() - self._since) / len(self._waiting), 4)
            self.store.add([replace(said, seconds=seconds) for said in self._waiting])
            self.bar.update(len(self._waiting))
            self._waiting, self._since = [], time.monotonic()


def _as_rendered(form: ChatFormat, question: Question, reply: Reply, mode: Mode) -> bool | None:
    tags = form.style.tags
    if not reply.token_ids or not judge(reply.text, reply.truncated, mode, tags)["faithful"]:
        return None
    try:
        _, (target,) = form.answer_ids(question.messages, [message_of(reply.text, tags)], mode, question.tools)
    except Rejected:
        return False
    return target == reply.token_ids


def _batches(missing: list[tuple[Question, int]], size: int, seed: int) -> list[list[tuple[Question, int]]]:
    """Questions of like length and the same seed together, the batches in random order, so that the time left can be told."""
    result = []
    for own in dict.fromkeys(seed for _, seed in missing):
        part = sorted((q for q, s in missing if s == own), key=lambda q: len(q.prompt_ids))
        result += [[(q, own) for q in part[start : start + size]] for start in range(0, len(part), size)]
    random.Random(seed).shuffle(result)
    return result


def ask_base(
    name: str,
    wanted: Sequence[tuple[Question, int]],
    mode: Mode,
    sampling: Sampling,
    store: Store,
    form: ChatFormat,
    answers: Answers,
    rate: float | None = None,
) -> None:
    """Ask what the store lacks.

    Args:
        name: of the source, for what is said.
        wanted: a question and a seed for each reply, the seeds in the order of the samples.
        rate: replies a second, where it is known, for an estimate before the first reply.

    Raises:
        UserError: the base keeps to the mode in none of its first replies (``cannot_do``); or as the decoding.
    """
    missing = [(question, seed) for question, seed in wanted if (question.key, seed) not in store]
    if not missing:
        return
    about = f", about {duration(len(missing) / rate)}" if rate and len(missing) > rate else ""
    known = f"; {len(wanted) - len(missing):,} are known" if len(missing) < len(wanted) else ""
    say(f"rehearse {name}: {len(missing):,} replies in {mode.replace('_', '-')} mode{known}{about}")
    faithful = said = 0
    with Bar(f"rehearse {name}", len(wanted), len(wanted) - len(missing)) as bar:
        keeper = _Keeper(store, bar)
        for batch in _batches(missing, answers.at_once, wanted[0][1]):
            lines: list[Said] = []

            def arrived(place: int, reply: Reply, batch: Any = batch, lines: list[Said] = lines) -> None:
                question, seed = batch[place]
                rendered = _as_rendered(form, question, reply, mode)
                told = Said(question.key, seed, reply.text, reply.truncated, reply.output_tokens, 0.0, rendered)
                lines.append(told)
                keeper.take(told)

            with keeper.call():
                replies = answers([question for question, _ in batch], mode, sampling, batch[0][1], arrived)
            faithful += sum(judge(reply.text, reply.truncated, mode, form.style.tags)["faithful"] for reply in replies)
            said += len(batch)
            if not faithful and said >= ENOUGH:
                raise cannot_do(name, mode, lines, form.style.tags)


def cannot_do(name: str, mode: Mode, replies: Sequence[Said], tags: Tags = THINK) -> UserError:
    """A base that does not keep to a mode: in words, with what it does instead and what to do."""
    cut = sum(said.truncated for said in replies)
    forms = [judge(said.text, False, mode, tags) for said in replies]
    opened = sum(form["opened"] for form in forms)
    what = f"{opened} of {len(replies)} open a think block, {cut} are cut at the length limit"
    return UserError(
        f"source {name!r}: the base keeps to {mode.replace('_', '-')} mode in none of its replies ({what}), so it has nothing to "
        f"rehearse there; trained on, its answers would teach that. The first begins {replies[0].text[:80]!r}. Use another mode, "
        "a higher max_new_tokens if replies are cut, another base, a dataset with answers of that mode, or leave it out: "
        f"--set mix.rehearsal=false, or mix.without=[{name}]."
    )
