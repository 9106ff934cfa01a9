"""Raw rows of one source become chunks: token ids, masks, and what became of each row.

In: rows as they were read. Out: a ``Chunk``. (``pipeline.data.crew`` deals them out to processes.) A row passes these
steps, in this order; the first that objects rejects it, with its name, a reason and what was seen: read → convert → the
recipe's cleaning steps → decontaminate → tokenise and mask → length limit. What has to look at all sources together
(duplicates, class balance) comes after, in ``pipeline.data.screen``.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import orjson

from pipeline.core.modes import MODES
from pipeline.data.augment import Augmenter
from pipeline.data.chat_format import ChatFormat, RenderedAnswer, Turns
from pipeline.data.cleaning.clean import Cleaner
from pipeline.data.cleaning.decontaminate import Decontaminator
from pipeline.data.cleaning.duplicates import Signer, exact_key, text_of
from pipeline.data.conversations import NO_REASONING, Conversation, Rejected, converter
from pipeline.data.formats import EXPECTED, is_missing
from pipeline.data.shape import shaped
from pipeline.data.sources import SourceRow
from pipeline.data.switches import check_switches
from pipeline.settings import CleanSettings, NearDuplicates, SourceSettings

TooLong = Literal["drop", "cut"]
CHUNK = 512  # rows that are tokenised in one batch; no result depends on it
COUNTERS = ("formats", "notes", "changed", "augmented", "modes", "unread")  # of a Tally
MOST_UNREAD = 50  # columns that are named
EXAMPLES = 5  # of what a step took or changed, kept for the manifest


@dataclass
class Tally:
    """Counts by step, with a few examples each. Plain data, can be added up."""

    formats: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    rejected: dict[str, Counter[str]] = field(default_factory=dict)  # step → reason → rows
    changed: Counter[str] = field(default_factory=Counter)
    augmented: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)  # step → what it took or changed
    because: dict[str, str] = field(default_factory=dict)  # format → why it was decided for
    modes: Counter[str] = field(default_factory=Counter)  # "mode: why" → rows that were kept
    unread: Counter[str] = field(default_factory=Counter)  # column → rows in which it holds something that is not used

    def show(self, step: str, text: str) -> None:
        """Keep the text as an example of the step, if there are few so far."""
        shown = self.examples.setdefault(step, [])
        if len(shown) < EXAMPLES:
            shown.append(text)

    def add(self, other: Tally) -> None:
        """Count the other's rows too."""
        for name in COUNTERS:
            getattr(self, name).update(getattr(other, name))
        for step, reasons in other.rejected.items():
            self.rejected.setdefault(step, Counter()).update(reasons)
        for step, texts in other.examples.items():
            for text in texts:
                self.show(step, text)
        self.because = other.because | self.because

    def record(self) -> dict[str, Any]:
        """As plain JSON data, sorted."""
        plain: dict[str, Any] = {name: dict(sorted(getattr(self, name).items())) for name in COUNTERS}
        return plain | {
            "rejected": {step: dict(sorted(reasons.items())) for step, reasons in sorted(self.rejected.items())},
            "examples": dict(sorted(self.examples.items())),
            "because": dict(sorted(self.because.items())),
        }

    @classmethod
    def of(cls, record: dict[str, Any]) -> Tally:
        """The inverse of ``record``."""
        counters = {name: Counter(record[name]) for name in COUNTERS}
        rejected = {step: Counter(reasons) for step, reasons in record["rejected"].items()}
        return cls(**counters, rejected=rejected, examples=record["examples"], because=record["because"])


@dataclass
class _Draft:
    """A chunk of rows that is rendered and not yet tokenised."""

    first: int
    rows: list[SourceRow]
    conversations: list[Conversation]
    places: list[int]  # of each conversation's row in ``rows``
    methods: list[str]  # how the conversation was made from its row: "" or the method of augmentation
    rendered: list[list[RenderedAnswer] | Rejected]
    rejected: dict[int, Rejected]
    tally: Tally

    @property
    def answers(self) -> list[RenderedAnswer]:
        return [answer for entry in self.rendered if not isinstance(entry, Rejected) for answer in entry]


@dataclass
class Chunk:
    """What became of some rows. Arrays have one entry an example (tokens: one a token)."""

    read: int
    tokens: np.ndarray
    lengths: np.ndarray
    prompts: np.ndarray
    modes: np.ndarray
    rows: dict[str, list[Any]]  # one entry a tokenised row; ``examples`` is 0 where it is over the limit
    # Originals and augmented copies apart; one entry each that has examples, none where rows are not compared.
    exact: tuple[list[bytes], list[bytes]]
    signatures: tuple[np.ndarray, np.ndarray] | None
    rejected: list[bytes]  # JSON lines
    tally: Tally


ROW_COLUMNS = (
    "row", "file", "line", "key", "question", "examples", "tokens", "loss_tokens", "longest", "mode", "method", "label",
)  # fmt: skip


def json_line(record: dict[str, Any]) -> bytes:
    """One line of JSON, whatever the row holds: NaN becomes null, what JSON cannot say becomes text."""
    options = orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(record, default=str, option=options) + b"\n"
    except TypeError:  # a number beyond 64 bit, half a surrogate pair, nesting beyond 254
        try:
            return orjson.dumps(_plain(record), option=options) + b"\n"
        except (TypeError, RecursionError):
            detail = f"{record['detail']} (the row itself cannot be written as JSON)"
            return orjson.dumps({**record, "row": None, "detail": detail}) + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, int) and value.bit_length() > 63:
        return str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value if isinstance(value, int | float) or value is None else str(value)


def _hash(data: bytes) -> int:
    """64 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _question(conversation: Conversation) -> int:
    """A hash of the first question, whatever its case and spaces: answers to one question must not be parted by the split."""
    first = next((m["content"] for m in conversation.messages if m["role"] == "user"), "")
    return _hash(" ".join(first.casefold().split()).encode("utf-8", "surrogatepass"))


def _asked(conversation: Conversation, row: dict[str, Any] | None, conditions: bool) -> int:
    """A hash of all that stands before the last answer: several answers of the base to it fall on one side, in both modes.

    With conditions it is that of the question's own row, which is asked with them and without.
    """
    if conditions and row is not None:
        return _hash(orjson.dumps(row["rehearsal"]["question"], option=orjson.OPT_SORT_KEYS))
    return _hash(orjson.dumps([[m["role"], m["content"]] for m in conversation.messages[:-1]]))


def _listed(ids: list[int]) -> bytes:
    """The token ids as Python and ``json.dumps`` write a list."""
    return orjson.dumps(ids).replace(b",", b", ")


def _modes(conversation: Conversation) -> str:
    """``thinking`` where any answer has reasoning."""
    return "thinking" if any("reasoning_content" in m for m in conversation.messages) else "non_thinking"


@dataclass
class Preparation:
    """From raw rows of one source to a ``Chunk``, by these options; what a worker process is given."""

    source: SourceSettings
    form: ChatFormat
    limit: int  # tokens; a row with a longer example is rejected as ``too_long``
    turns: Turns = "all"
    cleaning: CleanSettings = field(default_factory=CleanSettings)  # the steps that hold for this source
    comparing: bool = False  # keep a key of each row, for the search for exact duplicates
    signing: NearDuplicates | None = None  # sign rows for the search for near-duplicates; None: no signatures
    decontaminator: Decontaminator | None = None
    too_long: TooLong = "drop"  # ``cut`` ends an example at the limit instead; for measuring what that costs

    # Made where they are used: what they hold need not travel to a worker.
    @cached_property
    def _convert(self) -> Callable[[dict[str, Any]], Conversation]:
        repair = self.source.contradictions == "repair"
        return shaped(converter(self.source.format, self.source.columns, self.source.roles, repair), self.source.shape)

    @cached_property
    def _clean(self) -> Cleaner:
        return Cleaner(self.cleaning)

    @cached_property
    def _augment(self) -> Augmenter:
        return Augmenter(self.source.augment)

    @cached_property
    def _fields(self) -> set[str]:
        """Columns that the cleaning reads."""
        fields = {s.field for s in (self.cleaning.score, self.cleaning.class_balance) if s}
        return fields | (
            {EXPECTED, self.source.columns.get(EXPECTED, EXPECTED)} if self.cleaning.check_answer else set()
        )

    @cached_property
    def _sign(self) -> Signer | None:
        return Signer(self.signing) if self.signing else None

    def _conversation(self, row: SourceRow, tally: Tally) -> Conversation:
        if row.data is None:
            raise Rejected(row.reason or "broken_row", row.error, "read")
        conversation = check_switches(self._convert(row.data), self.source.contradictions)
        conversation.source = self.source.name
        self._require_reasoning(conversation)
        tally.formats[conversation.format] += 1
        tally.because.setdefault(conversation.format, conversation.because)
        tally.notes.update({note.split(":")[0] for note in conversation.notes})
        for name in conversation.unread:
            if name not in self._fields and (name in tally.unread or len(tally.unread) < MOST_UNREAD):
                tally.unread[name] += 1
        raw = self._raw(row.data)
        if self.cleaning.check_answer and is_missing(raw.get(EXPECTED)):
            tally.notes["no_expected_answer"] += 1
        conversation, changes = self._clean(conversation, raw)
        if self.cleaning.class_balance and is_missing(row.data.get(self.cleaning.class_balance.field)):
            raise Rejected("no_label", f"no {self.cleaning.class_balance.field!r}", "class_balance")
        self._require_clean_of_benchmarks(conversation)
        for change in changes:
            tally.changed[change.step] += 1
            tally.show(change.step, f"{row.file}:{row.line} {change.example}")
        return conversation

    def _require_reasoning(self, conversation: Conversation) -> None:
        """In a source of kind reasoning, a row without any is one that lost it, unless it says that it has none."""
        if (
            self.source.kind != "reasoning"
            or self.source.contradictions != "reject"
            or _modes(conversation) != "non_thinking"
        ):
            return
        if conversation.why == NO_REASONING:
            unread = f"; columns that are not read: {', '.join(conversation.unread)}" if conversation.unread else ""
            raise Rejected("no_reasoning", f"the source is of kind reasoning, and the row has none{unread}", "convert")

    def _raw(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row as the cleaning steps look at it: with the expected answer under its name."""
        named = self.source.columns.get(EXPECTED)
        return row if named is None else row | {EXPECTED: row.get(named)}

    def _require_clean_of_benchmarks(self, conversation: Conversation) -> None:
        if self.decontaminator:
            try:
                self.decontaminator(conversation)
            except Rejected as rejected:
                rejected.step = "decontaminate"
                raise

    def draft(self, rows: list[SourceRow], first: int) -> _Draft:
        """Everything but the tokens. ``first``: number of the first row in the source, from 0."""
        draft = _Draft(first, rows, [], [], [], [], {}, Tally())
        for place, row in enumerate(rows):
            try:
                conversation = self._conversation(row, draft.tally)
            except Rejected as rejected:
                rejected.step = rejected.step or "convert"
                draft.rejected[place] = rejected
                continue
            versions = [("", conversation)]
            if self.source.augment:
                for copy in self._augment(conversation, str(first + place)):
                    try:
                        self._require_clean_of_benchmarks(copy.conversation)
                    except Rejected:
                        draft.tally.notes["augmented_copy_left_out"] += 1
                        continue
                    versions.append((copy.method, copy.conversation))
            for method, version in versions:
                draft.conversations.append(version)
                draft.places.append(place)
                draft.methods.append(method)
        if self.source.augment:
            draft.tally.notes.update({f"augmentation_skipped_{k}": n for k, n in self._augment.skipped.items()})
            self._augment.skipped.clear()
        draft.rendered = self.form.render_all(draft.conversations, self.turns)
        return draft

    def chunk(self, draft: _Draft, encoded: Sequence[tuple[list[int], int]]) -> Chunk:
        """Put the tokens of ``draft.answers`` to their rows, apply the length limit, write the account."""
        tally, rejected = draft.tally, draft.rejected
        rows: dict[str, list[Any]] = {name: [] for name in ROW_COLUMNS}
        kept: list[tuple[list[int], int, int]] = []
        compared: tuple[list[Conversation], list[Conversation]] = ([], [])
        answers = iter(encoded)
        key = 0
        for conversation, place, method, entry in zip(
            draft.conversations, draft.places, draft.methods, draft.rendered, strict=True
        ):
            if isinstance(entry, Rejected):
                if method:
                    tally.notes["augmented_copy_left_out"] += 1
                else:
                    entry.step = "tokenise"
                    rejected[place] = entry
                continue
            own = [(*next(answers), MODES.index(mode)) for _, _, mode, _ in entry]
            longest = max(len(ids) for ids, _, _ in own)
            over = longest > self.limit
            if over and self.too_long == "cut" and (shortened := self._cut(own)):
                own, over = shortened, False
                tally.notes["cut_at_the_limit"] += 1
            if method and (over or place in rejected):
                tally.notes["augmented_copy_left_out"] += 1
                continue
            source_row = draft.rows[place]
            if not method:  # what was made from a conversation, and follows it here, falls on its side of the split
                key = self._split_key(conversation, source_row, own[0][0])
            label = ""
            if self.cleaning.class_balance and source_row.data is not None:
                label = str(source_row.data[self.cleaning.class_balance.field])
            tokens = sum(len(ids) for ids, _, _ in own)
            loss = tokens - sum(prompt for _, prompt, _ in own)
            question = _question(conversation)
            values = (draft.first + place, source_row.file, source_row.line, key, question, 0 if over else len(own))
            for name, value in zip(
                ROW_COLUMNS, (*values, tokens, loss, longest, own[-1][2], method, label), strict=True
            ):
                rows[name].append(value)
            if over:
                rejected[place] = Rejected("too_long", f"{longest} tokens, the limit is {self.limit}", "length_limit")
                continue
            kept += own
            compared[bool(method)].append(conversation)
            if method:
                tally.augmented[method] += 1
            else:
                shown = {MODES[mode] for _, _, mode in own}
                tally.modes[f"{shown.pop() if len(shown) == 1 else 'both'}: {conversation.why or NO_REASONING}"] += 1
        exact = [[exact_key(c) for c in side] if self.comparing else [] for side in compared]
        texts = [[text_of(c) for c in side] if self._sign else [] for side in compared]
        lengths = np.fromiter((len(ids) for ids, _, _ in kept), np.int32, len(kept))
        flat = array("i")
        for ids, _, _ in kept:
            flat.fromlist(ids)  # quicker than NumPy's own ways from many lists
        return Chunk(
            read=len(draft.rows),
            tokens=np.array(flat, np.int32),
            lengths=lengths,
            prompts=np.fromiter((prompt for _, prompt, _ in kept), np.int32, len(kept)),
            modes=np.fromiter((mode for _, _, mode in kept), np.int8, len(kept)),
            rows=rows,
            exact=(exact[0], exact[1]),
            signatures=(self._sign(texts[0]), self._sign(texts[1])) if self._sign else None,
            rejected=self._left_out(draft),
            tally=tally,
        )

    def _cut(self, own: Sequence[tuple[list[int], int, int]]) -> list[tuple[list[int], int, int]]:
        """The examples (ids, length of the prompt, mode), cut at the limit, without those that would be left without loss."""
        return [(ids[: self.limit], prompt, mode) for ids, prompt, mode in own if prompt < self.limit]

    def _split_key(self, conversation: Conversation, row: SourceRow, first: list[int]) -> int:
        """Rows with one key fall on one side of the split: with one first example, or the base's answers to one question."""
        if self.source.source == "base":
            again = self.source.questions is not None and self.source.questions.conditions is not None
            return _asked(conversation, row.data, again)
        return _hash(_listed(first))

    def _left_out(self, draft: _Draft) -> list[bytes]:
        """A line for each rejected row, with its reason and the row itself; each is counted in the draft's tally."""
        lines = []
        for place in sorted(draft.rejected):
            row, why = draft.rows[place], draft.rejected[place]
            draft.tally.rejected.setdefault(why.step, Counter())[why.reason] += 1
            draft.tally.show(why.step, f"{row.file}:{row.line} {why.reason}: {why.detail}")
            record = {"source": self.source.name, "file": row.file, "line": row.line, "step": why.step}
            lines.append(json_line({**record, "reason": why.reason, "detail": why.detail, "row": row.data}))
        return lines

    def __call__(self, rows: list[SourceRow], first: int) -> Chunk:
        """All of it at once."""
        draft = self.draft(rows, first)
        return self.chunk(draft, self.form.encode_answers(draft.answers))
