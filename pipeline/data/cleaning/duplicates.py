"""Rows that say the same as an earlier row: exact duplicates and near-duplicates, over all sources of a recipe.

In: conversations, one by one; each becomes a key of 16 bytes (``exact_key``) and a row of a signature matrix on disk
(``Signer`` on ``text_of``). Out: ``Duplicates``: for every row the earlier kept row that it repeats, or -1.

Similarity is the Jaccard index of two sets of word n-grams: the n-grams they share, divided by all n-grams they have.
MinHash (Broder 1997) estimates it: a slot of two signatures is equal with a probability of J. The hashing is rensa's
R-MinHash. Each slot is cut to its lowest 8 bits (b-bit minwise hashing, Li and König 2010): unlike slots are then
equal by chance once in 256, which the estimate takes out again, and four slots fit where one was. The standard error is
at most sqrt(J (1 - J) / permutations): at J = 0.8, 0.035 with 128 permutations and 0.018 with 512.

Numbers decide. Two long problems that differ in one number share more than 0.8 of their words, but they are different
problems. So near-duplicates must have the same numbers and operators in their user turns, in the same order.

What rows share without being alike does not decide. System messages and tools are left out. Two questions about one long
text share nearly all their words too, so the answers must be alike for themselves, and the more so where the question is
the very same: another answer makes another row. Where the answers are short, as
"Yes." is to many questions, so must be the words that the user begins and ends with (see ``alike``).
"""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pipeline.core.errors import UserError
from pipeline.data.conversations import Conversation, Message, Rejected
from pipeline.settings import NearDuplicates

SEED = 1  # of the hash functions; another seed, another sample of the n-grams
BATCH = 256  # texts hashed at once; no result depends on it
ANSWER_SLOTS = 64  # one byte each
ANSWERS_ALIKE = 0.45  # Jaccard index of the words and pairs of words: two words of eight changed still reach it, in
# the median 0.58; two halves of one answer (every other sentence) do in at most 0.2 % (Alpaca, GSM8K)
SAME_QUESTION_ALIKE = 0.8  # what they must reach after the same question; short ones must be the same
SAME_ANSWER = 0.97  # estimated similarity of answers that are the same: one slot of 64 may differ
WHOLE_ANSWER = 8  # an answer of fewer words is equal or another one: a label is a single word
SHORT_ANSWER = 32  # below so many words the user's first and last words are compared as well
EDGE = 8  # words at the beginning, and as many at the end, of what the user says; 2 bytes each
EDGES_ALIKE = 0.7  # share of those words that is the same: 6 of 8
CHUNK = 8192  # signatures read at once while the band keys are made
MOST_BANDS = 24  # 4 bytes a row and band are held in memory: at most 100 MB for a million rows
CANDIDATE_RECALL = 0.99  # part of the pairs at exactly the threshold that share a band
MOST_CANDIDATES = 64  # about so many earlier rows a row is compared with; keeps crowded buckets from being quadratic
OPEN_FILES = 32

# --- what is compared ---------------------------------------------------------------------------------------------------

# Characters that are a word each: Chinese and Japanese ones, and pictures, since 👍 is not 👎.
_SINGLE = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_SINGLE += "\u2600-\u27bf\U0001f000-\U0001faff"
# Signs that are only ever mathematics, and signs that are so beside a number or between two names of one letter.
# The sign itself stands first, and what is around it is looked at only there: most places of a text hold no sign.
_OPERATOR = (
    r"[+=^×÷±≤≥≠√]|[-*/<>%](?=[ (]?\d)"
    r"|[-*/<>](?:(?<=\b[a-z0-9] .)(?= [a-z0-9]\b)|(?<=\b[a-z0-9].)(?=[a-z0-9]\b))"
)
_WORD = re.compile(rf"[{_SINGLE}]|[^\W{_SINGLE}]+|{_OPERATOR}")
_ASCII_WORD = re.compile(rf"\w+|{_OPERATOR}")  # finds the same in ASCII text, twice as fast
_NUMBER = re.compile(rf"\d+(?:[.,]\d+)*|{_OPERATOR}")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")
_USER = "user "
_ANSWERS = {"assistant", "reasoning", "call"}
# NFKC would turn 10² into 102, and leaves the minus sign of typesetting alone.
_SIGNS = str.maketrans({**{sign: f"^{digit}" for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, "−": "-"})


def _composed(value: Any) -> Any:
    """The same data with every string in composed Unicode (NFC) and every run of whitespace as one space."""
    if isinstance(value, str):
        return " ".join((value if value.isascii() else unicodedata.normalize("NFC", value)).split())
    if isinstance(value, list | tuple):
        return [_composed(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _composed(item) for key, item in value.items()}
    return value


def _canonical(value: Any) -> str:
    if value is None or value == []:  # nothing is called, as in most messages
        return "null" if value is None else "[]"
    try:
        return json.dumps(_composed(value), ensure_ascii=False, sort_keys=True, default=str)
    except RecursionError as error:
        raise Rejected("nested_too_deep", "tools or the arguments of a tool call") from error


def _calls(message: Message) -> list[Any]:
    """[name, arguments] of each tool call; arguments that are JSON in a string are read, others compared as text."""
    result = []
    for call in message.get("tool_calls") or []:
        function = call.get("function") or call
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            with suppress(ValueError, RecursionError):
                arguments = json.loads(arguments)
        result.append([function.get("name"), arguments])
    return result


def _folded(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_SIGNS))
    return " ".join(text.casefold().split())


def text_of(conversation: Conversation) -> str:
    """What near-duplicates are compared by: one line a turn, its role first, with reasoning and tool calls.

    Case, runs of whitespace and compatibility forms (full-width letters, ligatures) are evened out; punctuation is
    still there, since ``Signer`` needs it to tell 3.5 from 3, 5. System messages and ``tools`` are left out: rows that
    share a long system prompt or list of tools are not alike for that.

    Raises:
        Rejected: ``nested_too_deep`` (arguments of a tool call).
    """
    lines = []
    for message in conversation.messages:
        role = message["role"]
        if role == "system":
            continue
        if message.get("reasoning_content"):
            lines.append(f"reasoning {_folded(message['reasoning_content'])}")
        lines.append(f"{role} {_folded(message['content'])}")
        lines += [f"call {_folded(_canonical(call))}" for call in _calls(message)]
    return "\n".join(lines)


def exact_key(conversation: Conversation) -> bytes:
    """16 bytes (BLAKE2b), equal for two conversations that are the same but for whitespace and Unicode composition.

    Roles, contents, reasoning, tool calls (name and arguments, not their ids) and ``tools`` count; case and punctuation
    count; the source does not. A run of whitespace is one space, so code that differs only in its indentation is the same.

    Raises:
        Rejected: ``nested_too_deep`` (tools, or arguments of a tool call).
    """
    turns = [
        [m["role"], _composed(m["content"]), _composed(m.get("reasoning_content") or ""), _canonical(_calls(m))]
        for m in conversation.messages
    ]
    text = json.dumps([turns, _canonical(conversation.tools)], ensure_ascii=False)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# --- signatures ---------------------------------------------------------------------------------------------------------


class _WordHashes(dict[str, int]):
    """CRC-32 of a word, kept for the next time; natural text repeats its words."""

    def __missing__(self, word: str) -> int:
        value = zlib.crc32(word.encode())
        if len(self) >= 1 << 17:
            self.clear()
        if len(word) <= 40:  # a line of base64 is one word, and does not come back
            self[word] = value
        return value


def _numbers(text: str) -> int:
    """Hash of the numbers and operators of the user's turns, in order; 1,000 is 1000."""
    found: list[str] = []
    for line in text.split("\n"):
        if line.startswith(_USER):
            found += _NUMBER.findall(line, len(_USER))
    return zlib.crc32(_THOUSANDS.sub("", " ".join(found)).encode()) if found else 0


class Signer:
    """Texts (from ``text_of``) become signatures. It can be pickled, so that worker processes can have one each.

    A signature is ``width`` 32-bit words: ``permutations`` bytes, one a slot (filled up to whole words); ANSWER_SLOTS
    bytes for the assistant's lines alone; EDGE + EDGE half-words, the hashes of the first and the last words of the
    user's lines; a hash of all their words; a hash of the user's numbers. The same text has the same signature on
    every machine and in every batch.
    """

    def __init__(self, settings: NearDuplicates):
        self.settings = settings
        self.width = signature_width(settings)
        self._words = _WordHashes()

    def __reduce__(self) -> tuple[type[Signer], tuple[NearDuplicates]]:
        return Signer, (self.settings,)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Signatures, little-endian uint32 [len(texts), width], C order: ``tofile`` writes what is read back here."""
        result = np.zeros((len(texts), self.width), "<u4")
        slots, answers, edges = _parts(result.view(np.uint8), self.settings)
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            here = slice(start, start + BATCH)
            words, answered, asked = map(list, zip(*map(_words_of, batch), strict=True))
            slots[here] = self._digest(words, (self.settings.ngram,), self.settings.permutations)
            whole = [row if len(row) >= WHOLE_ANSWER else [" ".join(row)] for row in answered]
            answers[here] = self._digest(whole, (1, 2), ANSWER_SLOTS)
            edges[here] = [self._edges(q, a) for q, a in zip(asked, answered, strict=True)]
            result[here, -2] = [zlib.crc32(" ".join(q).encode()) for q in asked]
            result[here, -1] = [_numbers(text) for text in batch]
        return result

    def _edges(self, asked: list[str], answered: list[str]) -> list[int]:
        """Hashes from 1 to 65535 of the different words at both ends, 0 where there are fewer; after a long answer none."""
        result = []
        for words in (asked[:EDGE], asked[-EDGE:]):
            hashes = {self._words[word] % 65535 + 1 for word in words} if len(answered) < SHORT_ANSWER else set()
            result += [*sorted(hashes), *[0] * (EDGE - len(hashes))]
        return result

    def _digest(self, words: list[list[str]], sizes: tuple[int, ...], permutations: int) -> np.ndarray:
        """MinHash slots, uint8 [len(words), permutations], of each row's n-grams of all these sizes."""
        from rensa import RMinHash

        longest = max(sizes)  # a text shorter than one n-gram is one n-gram itself
        words = [row if len(row) >= longest else row + [""] * (longest - len(row)) for row in words]
        ends = np.cumsum([len(row) for row in words])
        hashes = np.fromiter(map(self._words.__getitem__, chain.from_iterable(words)), np.uint64, int(ends[-1]))
        result = np.full((len(words), permutations), 0xFFFFFFFF, np.uint32)
        for size in sizes:
            grams = np.zeros(len(hashes) - size + 1, np.uint64)
            for offset in range(size):  # a polynomial of the words' hashes, then the last step of SplitMix64
                grams *= np.uint64(0x9E3779B97F4A7C15)
                grams += hashes[offset : offset + len(grams)]
            grams = (grams ^ (grams >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            grams = (grams ^ (grams >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            grams ^= grams >> np.uint64(31)
            inside = np.ones(len(hashes), bool)
            for offset in range(1, size):  # n-grams that would run into the next text
                inside[ends - offset] = False
            offsets = np.concatenate([[0], ends - (size - 1) * np.arange(1, len(ends) + 1)]).astype(np.uint64)
            matrix = RMinHash.digest_matrix_from_flat_token_hashes(
                grams[inside[: len(grams)]], offsets, permutations, SEED
            )
            # The smallest hash of a union of sets is the smallest of their smallest.
            np.minimum(result, np.array(matrix.to_rows(), np.uint32), out=result)
        return result.astype(np.uint8)


def _words_of(text: str) -> tuple[list[str], list[str], list[str]]:
    """(all words with the roles, those of the assistant, those of the user) of a text from ``text_of``."""
    pattern = _ASCII_WORD if text.isascii() else _WORD
    words: list[str] = []
    answered: list[str] = []
    asked: list[str] = []
    for line in text.split("\n"):
        found = pattern.findall(line)
        words += found
        if line.startswith(_USER):
            asked += found[1:]
        elif line.partition(" ")[0] in _ANSWERS:
            answered += found[1:]
    return words, answered, asked


def signature_width(settings: NearDuplicates) -> int:
    """Length of a signature in 32-bit words, see ``Signer``: 90 with 256 permutations."""
    return math.ceil(settings.permutations / 4) + ANSWER_SLOTS // 4 + EDGE + 2


def _parts(signatures: np.ndarray, settings: NearDuplicates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views of signatures (uint8 [n, 4 × width]): slots and answers (uint8), words at the edges (uint16)."""
    start = 4 * math.ceil(settings.permutations / 4)
    middle = start + ANSWER_SLOTS
    edges = signatures[:, middle : middle + 4 * EDGE].view("<u2")
    return signatures[:, : settings.permutations], signatures[:, start:middle], edges


def _estimate(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Jaccard index from the share of equal slots, without those that are equal by chance."""
    return ((own == others).mean(axis=1) - 1 / 256) / (1 - 1 / 256)


def alike(own: np.ndarray, others: np.ndarray, settings: NearDuplicates) -> tuple[np.ndarray, np.ndarray]:
    """(estimated similarity, whether they are near-duplicates) of one signature [1, size] and others [n, size], uint8.

    Near-duplicates are rows of which all of this holds:

    - the whole texts are as similar as the threshold;
    - the numbers of the user's turns are the same;
    - the answers (everything of the assistant, with reasoning and calls) have an estimated similarity of 0.45 by words
      and pairs of words, or of the threshold if that is lower; those of fewer than 8 words are the same;
    - after the same question (the user's words, all of them) the answers have a similarity of 0.8; those of fewer than 32
      words are the same;
    - where both answers are shorter than 32 words: of the user's first 8 words 0.7 are the same, and of the last 8.
    """
    slots, answers, edges = _parts(others, settings)
    own_slots, own_answers, own_edges = _parts(own, settings)
    similarity = _estimate(own_slots, slots)
    result = (similarity >= settings.threshold) & (own[:, -4:] == others[:, -4:]).all(axis=1)
    answers_alike = _estimate(own_answers, answers)
    short = (own_edges > 0).any() & (edges > 0).any(axis=1)
    same_question = (own[:, -8:-4] == others[:, -8:-4]).all(axis=1)
    needed = np.where(short, SAME_ANSWER, min(SAME_QUESTION_ALIKE, settings.threshold))
    result &= answers_alike >= np.where(same_question, needed, min(ANSWERS_ALIKE, settings.threshold))
    for part in (slice(EDGE), slice(EDGE, None)):
        one, other = own_edges[:, part], edges[:, part]
        sizes = (one > 0).sum(axis=1), (other > 0).sum(axis=1)
        shared = ((one[:, :, None] == other[:, None, :]) & (one > 0)[:, :, None]).any(axis=2).sum(axis=1)
        result &= (shared >= EDGES_ALIKE * np.maximum(*sizes)) | (np.minimum(*sizes) == 0)
    return similarity, result


def bands(settings: NearDuplicates) -> tuple[int, int]:
    """(bands, slots a band) that decide which pairs are compared at all.

    Two rows with similarity J share at least one of b bands of r slots with probability 1 - (1 - J^r)^b. Taken is the
    largest r (fewest needless comparisons) with the fewest bands that give 0.99 at the threshold itself. For 0.8 that
    is 16 bands of 6 slots out of 128, or 20 of 7 where there are more: 0.991 at J = 0.8, 0.9996 at 0.85, and 0.145 at
    0.5, 0.004 at 0.3. What is found is then a matter of the estimate: at 0.85 it is below 0.8 in at most 6 % of all
    pairs with 128 permutations, 0.1 % with 512.
    """
    for slots in range(settings.permutations, 0, -1):
        miss = 1 - settings.threshold**slots
        needed = 1 if miss <= 0 else math.ceil(math.log(1 - CANDIDATE_RECALL) / math.log(miss)) if miss < 1 else 0
        if 0 < needed <= min(MOST_BANDS, settings.permutations // slots):
            return needed, slots
    return min(MOST_BANDS, settings.permutations), 1


class _Signatures:
    """Signature files as one matrix of bytes on disk; rows are read when asked for, nothing stays in memory."""

    def __init__(self, paths: Sequence[Path], settings: NearDuplicates):
        self.paths = paths
        self.size = 4 * signature_width(settings)
        rows = []
        for path in paths:
            whole, rest = divmod(path.stat().st_size, self.size)
            if rest:
                raise UserError(
                    f"{path} is cut short: its size is not a multiple of {self.size} bytes, the length of a signature "
                    f"with {settings.permutations} permutations. Remove it and build again."
                )
            rows.append(whole)
        self.starts = np.cumsum([0, *rows])
        self.rows = int(self.starts[-1])
        self._open: dict[int, int] = {}

    def __enter__(self) -> _Signatures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def chunks(self) -> Iterator[np.ndarray]:
        """All rows in order, uint8 [up to CHUNK, size]."""
        for path in self.paths:
            with path.open("rb") as file:
                while len(data := np.fromfile(file, np.uint8, CHUNK * self.size)):
                    yield data.reshape(-1, self.size)

    def take(self, rows: Sequence[int]) -> np.ndarray:
        """Some rows, uint8 [len(rows), size]."""
        parts = []
        for row, number in zip(rows, np.searchsorted(self.starts, rows, "right") - 1, strict=True):
            if number not in self._open:
                if len(self._open) == OPEN_FILES:
                    os.close(self._open.pop(next(iter(self._open))))
                self._open[number] = os.open(self.paths[number], os.O_RDONLY)
            parts.append(os.pread(self._open[number], self.size, (row - int(self.starts[number])) * self.size))
        return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, self.size)


# --- duplicates ---------------------------------------------------------------------------------------------------------


@dataclass
class Duplicates:
    """What each of n rows repeats. All arrays have the shape [n]."""

    of: np.ndarray  # int64: the earlier row that this one repeats, always a kept one; -1: this row is kept
    similarity: np.ndarray  # float32: 1.0 for an exact duplicate, the estimate for a near-duplicate, 0 for a kept row
    exact: np.ndarray  # bool: the row ``of`` has the same key
    group: np.ndarray  # int64: the smallest row of all that hang together as verified duplicates, itself if alone


def find_duplicates(keys: np.ndarray, signatures: Sequence[Path], settings: NearDuplicates | None) -> Duplicates:
    """Which rows repeat an earlier one. Rows are numbered in reading order over all sources.

    A row is rejected if it has the key of an earlier row, or if it is a near-duplicate (see ``alike``) of an earlier *kept*
    row. So a row is never rejected for being like
    a row that is gone itself. Of several kept rows it is said to repeat the most similar, then the earliest.

    Nothing is compared that shares no band (see ``bands``), and a row is compared with about 64 earlier rows at most,
    the latest kept ones of each of its buckets first: in a crowd of many thousands that share a band but are no
    duplicates, a duplicate can be missed. Rows whose whole signatures are the same are always found.

    Args:
        keys: uint8 [n, 16], from ``exact_key``; [0, 16] leaves exact duplicates out.
        signatures: files of little-endian uint32, together [n, width], from ``Signer``; where one ends and the next
            begins does not matter. () leaves near-duplicates out.
        settings: those of the ``Signer``; None leaves near-duplicates out.

    Memory: 4 bytes a row and band (84 MB for a million rows at the threshold 0.8) and some 60 bytes a row.

    Raises:
        UserError: a signature file that is cut short.
        ValueError: keys and signatures of different numbers of rows.
    """
    store = _Signatures(signatures, settings) if settings is not None and signatures else None
    count = len(keys) or (store.rows if store else 0)
    if store and store.rows != count:
        raise ValueError(f"{count} keys, but {store.rows} signatures")
    first = _first_with_same_key(keys) if len(keys) else np.arange(count)
    result = Duplicates(np.full(count, -1), np.zeros(count, np.float32), np.zeros(count, bool), np.arange(count))
    repeats = np.flatnonzero(first != np.arange(count))
    if store and settings:
        with store:
            _find_near(store, settings, np.flatnonzero(first == np.arange(count)), result)
    original = first[repeats]
    gone = result.of[original] >= 0  # the first with this key repeats something itself
    result.of[repeats] = np.where(gone, result.of[original], original)
    result.similarity[repeats] = np.where(gone, result.similarity[original], 1.0)
    result.exact[repeats] = ~gone
    result.group[repeats] = original
    while True:  # each points at a smaller row of its group: until all point at the smallest
        further = result.group[result.group]
        if np.array_equal(further, result.group):
            return result
        result.group = further


def _first_with_same_key(keys: np.ndarray) -> np.ndarray:
    halves = np.ascontiguousarray(keys).view(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal keys stay in reading order
    differs = np.ones(len(order), bool)
    differs[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(differs, np.arange(len(order)), 0))]
    return first


def _previous_in_bucket(store: _Signatures, settings: NearDuplicates, rows: np.ndarray) -> np.ndarray:
    """For each band and row the row before it with the same slots in that band, or -1. int32 [bands + 1, n].

    The numbers' hash belongs to every bucket, so rows with other numbers never meet. The last band is the whole signature.
    """
    count, slots = bands(settings)
    table = np.empty((count + 1, store.rows), np.uint32)
    start = 0
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    for chunk in store.chunks():
        numbers = chunk[:, -4:].copy().view("<u4").astype(np.uint64)
        key = np.repeat(numbers, count, axis=1)
        for slot in range(slots):
            key = (key + chunk[:, slot : count * slots : slots]) * multiplier
            key ^= key >> np.uint64(29)
        table[:count, start : start + len(chunk)] = (key >> np.uint64(32)).T
        table[count, start : start + len(chunk)] = [zlib.crc32(row) for row in chunk]
        start += len(chunk)
    for band in table:  # the keys make room for the rows
        order = (band[rows].astype(np.uint64) << np.uint64(32)) | rows.astype(np.uint64)
        order.sort()
        same = (order[1:] >> np.uint64(32)) == (order[:-1] >> np.uint64(32))
        order &= np.uint64(0xFFFFFFFF)
        band.view(np.int32).fill(-1)
        band[order[1:][same].astype(np.int64)] = order[:-1][same]
    return table.view(np.int32)


def _find_near(store: _Signatures, settings: NearDuplicates, rows: np.ndarray, result: Duplicates) -> None:
    """Fill in what the rows repeat (they are in reading order, none an exact duplicate), and join their groups.

    Each bucket is a chain: from a row to the one before it. When a row is done, its links are moved on to the nearest
    kept rows. So a row sees what is kept by following links, however many rejected ones lie between.
    """
    previous = _previous_in_bucket(store, settings, rows)
    band = np.arange(len(previous))
    meets = np.zeros(store.rows, bool)
    for links in previous:
        meets |= links >= 0
    gone = np.zeros(store.rows + 1, bool)  # one more: -1, no row, is not gone
    group = result.group
    for row in np.flatnonzero(meets).tolist():
        before = previous[:, row].copy()
        kept = np.where(gone[before], previous[band, before], before)
        previous[:, row] = kept
        # Rejected rows too, one a bucket: nothing is rejected for them, but what is like them belongs to their group.
        candidates = {*before.tolist(), *kept.tolist()}
        level, where = kept, band
        while len(candidates) < MOST_CANDIDATES:
            there = level >= 0
            level, where = level[there], where[there]
            if not len(level):
                break
            level = previous[where, level]
            candidates.update(level.tolist())
        candidates.discard(-1)
        others = sorted(candidates)
        read = store.take([row, *others])
        estimate, near = alike(read[:1], read[1:], settings)
        best = -1
        for place in np.flatnonzero(near).tolist():
            _join(group, row, others[place])
            if not gone[others[place]] and (best < 0 or estimate[place] > estimate[best]):
                best = place
        if best >= 0:
            gone[row] = True
            result.of[row] = others[best]
            result.similarity[row] = estimate[best]


def _root(group: np.ndarray, row: int) -> int:
    while group[row] != row:
        group[row] = group[group[row]]
        row = int(group[row])
    return row


def _join(group: np.ndarray, one: int, other: int) -> None:
    one, other = _root(group, one), _root(group, other)
    group[max(one, other)] = min(one, other)
