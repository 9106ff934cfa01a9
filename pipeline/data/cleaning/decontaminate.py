"""Rows that contain a benchmark's items are found, so that nothing is trained on what is measured later.

In: the prompts of benchmarks, and conversations one at a time. Out: nothing for a clean row; ``Rejected`` with the
benchmark, the item and the overlap for a contaminated one.

Texts are compared as words: Unicode NFKC and case folded, punctuation, Markdown and LaTeX layout left out, numbers
kept, a CJK character is a word, traditional ones as simplified ones (by OpenCC, character by character). An item
counts as contained where enough of its word n-grams occur in the row. A changed name or number, or an inserted word,
costs only the n-grams that cross it, so short n-grams find reworded copies that longer ones miss. An item of fewer than
``MIN_WORDS`` words ("Compute $7 * 8$." has three) is compared with whole user messages instead, signs included.

What any two texts may have in common is no overlap: n-grams that only count ("1, 2, 3, 4, 5") are left out, and as many as
``overlap`` asks for must be found also among the n-grams with a word of their own. "Let a, b and c be positive real numbers
such that" opens a hundred problems, and all its words are ``STOCK``.

Measured with the prompts of GSM8K (test) and IFEval as items, on changed
copies of them and on GSM8K's training questions, which are of one style with the test questions but others:

    n, overlap   one number changed   all numbers   names   a tenth of the words: inserted, left out   rejected rows
    5, 0.35      0.998                0.930         0.937                         0.993,    0.969      3 of 7,473
    8, 0.5       0.973                0.474         0.774                         0.551,    0.210      2 of 7,473

(benchmarks/cleaning.py). The rejected training questions are near-copies of test questions.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import UserError, nearest
from pipeline.core.files import fingerprint
from pipeline.data.conversations import Conversation, Rejected
from pipeline.data.rows.parts import strings_in
from pipeline.data.sources import read_rows
from pipeline.settings import BenchmarkSettings, Decontamination

PROMPT_COLUMNS = ("question", "problem", "prompt", "instruction", "query", "input", "text")
# So many n-grams must be found at least, or all of an item that has fewer: "what is the greatest common divisor of"
# alone is style, not a copy. With n = 5, overlap = 0.4 and single GSM8K questions of 8 to 16 words as items, 129 of
# 7,473 training questions were taken for copies without this bound, none with it.
MIN_FOUND = 8
# An item with fewer words is not looked for inside a text: "Hi" stands in every other row.
MIN_WORDS = 4
# Where an item has no word of its own, it is a copy only if nearly all of it is found.
ALL_STOCK = 0.8
_VERSION = 3  # of the comparison: part of the key, so that a change here is never served from a cache

Words = NDArray[np.uint64]


@dataclass
class Benchmark:
    """The prompts of one benchmark; ``numbers[i]`` says where prompt i stands in its file, counted from 1."""

    name: str
    prompts: list[str]
    numbers: list[int]


# --- reading benchmarks -------------------------------------------------------------------------------------------------


def _prompt_column(row: dict[str, Any], settings: BenchmarkSettings) -> str:
    if settings.field is not None:
        if settings.field in row:
            return settings.field
        hint = nearest(settings.field, row)
        raise UserError(
            f"benchmark {settings.name!r} ({settings.path}) has no column {settings.field!r}.{hint} "
            f"Its columns: {', '.join(row)}. Change field in the recipe."
        )
    for name in PROMPT_COLUMNS:
        if name in row:
            return name
    raise UserError(
        f"benchmark {settings.name!r} ({settings.path}) has none of the columns {', '.join(PROMPT_COLUMNS)}. "
        f"Its columns: {', '.join(row) or 'none'}. Name the one with the prompt as field in the recipe."
    )


def load_benchmarks(settings: Decontamination, root: str | None = None) -> list[Benchmark]:
    """Read the prompts of all benchmarks; ``root`` is the recipe's, which local paths may not leave.

    Raises:
        UserError: no prompt column, a prompt that is not text, nothing but empty prompts, no rows, or not readable.
            A broken line is an error here and not a rejected row: an item that is not read could not be looked for.
    """
    loaded = []
    for benchmark in settings.benchmarks:
        column = ""
        prompts: list[str] = []
        numbers: list[int] = []
        for row in read_rows(benchmark, root):
            where = f"benchmark {benchmark.name!r}, {row.file}:{row.line}"
            if row.data is None:
                raise UserError(f"{where}: {row.error}. Mend or remove that line.")
            column = column or _prompt_column(row.data, benchmark)
            prompt = row.data.get(column)
            if not isinstance(prompt, str):
                found = type(prompt).__name__ if column in row.data else "missing"
                raise UserError(f"{where}: the prompt {column!r} should be text, it is {found}.")
            prompts.append(prompt)
            numbers.append(row.line)
        if not any(map(whole, prompts)):
            raise UserError(
                f"benchmark {benchmark.name!r} ({benchmark.path}): no {column!r} has a word, so none "
                "can be looked for. Is it the column with the prompt? Name that as field in the recipe."
            )
        loaded.append(Benchmark(benchmark.name, prompts, numbers))
    return loaded


# --- comparing --------------------------------------------------------------------------------------------------------

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
# ASCII characters that are in no word become spaces: several times as fast as finding the words by _WORD, which gives the same.
_BETWEEN_WORDS = {code: " " for code in range(128) if not chr(code).isalnum()}
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")  # soft hyphen, zero-width characters, byte-order mark
_THOUSANDS = re.compile(r",(?<=\d,)(?=\d{3}(?!\d))")
# LaTeX that lays text out and says nothing: a copy may have it or not. \dfrac and \tfrac are \frac.
_LAYOUT = re.compile(
    r"\\(?:(?:text[a-z]*|math(?:rm|bf|it|sf|tt|cal|bb)|left|right|[bB]igg?[lr]?|displaystyle|boxed|q?quad|circ|cdot"
    r"|times)(?![a-zA-Z])|(?:begin|end)\{[\w*]+\}|[dt](?=frac))"
)


# Words of which openings, questions and settings of mathematics are made, and of nothing else by themselves.
STOCK = frozenset(
    "a an the of and or is are be was were for such that with in on to if then where when from by as at it its this "
    "these all any each every both no not let suppose given consider assume define defined denote find determine "
    "compute calculate evaluate solve prove show simplify express what which how many much value values number "
    "numbers integer integers real natural rational complex prime primes even odd positive negative nonnegative non "
    "zero distinct consecutive different sum product difference quotient ratio average mean largest smallest greatest "
    "least maximum minimum maximal minimal possible total exactly function functions equation equations expression "
    "polynomial solution solutions root roots satisfying satisfies satisfy there exist exists digit digits less more "
    "than greater equal equals divided remainder common divisor multiple have has can will do does following question "
    "answer problem please explain write give your you must should step".split()
) | frozenset(
    "已知设为正负实整自然有理数且满足若则当求的值最大小是在中函有个与和或于等不几多少什么下列哪一项正确错误选出请问题目其中所有存使得到共"
)


def _only_counts(gram: tuple[str, ...]) -> bool:
    """Numbers alone, or three that follow one another: nobody is asked anything by them."""
    numbers = sum(map(str.isdecimal, gram))
    if numbers < min(3, len(gram)):
        return False
    if numbers == len(gram):
        return True
    run = 1
    for one, other in pairwise(gram):
        follows = one.isdecimal() and other.isdecimal() and len(other) < 7 and int(other) == int(one[-7:]) + 1
        run = run + 1 if follows else 1
        if run == 3:
            return True
    return False


def _has_own_word(gram: tuple[str, ...]) -> bool:
    return any(word not in STOCK and not word.isdecimal() and not (len(word) == 1 and word.isascii()) for word in gram)


@lru_cache(maxsize=1)
def _simplified() -> dict[int, str]:
    """Traditional character → simplified, for ``str.translate``; one by one, since a word is a character here."""
    import opencc

    blocks = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x2FA20))
    characters = [chr(code) for block in blocks for code in range(*block)]
    converted = opencc.OpenCC("t2s").convert("\n".join(characters)).split("\n")
    return {ord(c): new for c, new in zip(characters, converted, strict=True) if c != new and len(new) == 1}


def words(text: str) -> list[str]:
    """The words of a text as they are compared.

    >>> words("**Weng** earns $1,200 an hour. 小明有三个苹果")
    ['weng', 'earns', '1200', 'an', 'hour', '小', '明', '有', '三', '个', '苹', '果']
    """
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).replace("’", "")
    if "\\" in text:
        text = _LAYOUT.sub(" ", text)
    if "," in text:
        text = _THOUSANDS.sub("", text)
    text = text.casefold().replace("'", "")
    return text.translate(_BETWEEN_WORDS).split() if text.isascii() else _WORD.findall(text)


def _simplified_words(text: str) -> list[str]:
    return words(text if text.isascii() else text.translate(_simplified()))


_FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")
_SPACE_AND_DOLLARS = re.compile(r"[\s$]+")


def whole(text: str) -> str:
    """A text as it is compared with a short item: operators and LaTeX commands kept, "" if it has no word and no digit.

    >>> whole("Compute $7 * 8$."), whole("Compute 7 + 8")
    ('compute7*8', 'compute7+8')
    """
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold()
    if not text.isascii():
        text = text.translate(_simplified())
    text = _SPACE_AND_DOLLARS.sub("", _FRACTION.sub(r"\\frac", text)).strip(".?!。:\"'“”")
    return text if any(map(str.isalnum, text)) else ""


# Polynomial hash modulo 2^64: the n-gram w0 … wn-1 is Σ wi·Bⁱ. B is odd, so it has an inverse; B ≡ 3 (mod 8) keeps
# B^k - 1 from having many factors 2, so that the order of words counts. The words' own hashes are 64 random bits.
_BASE = 0x9E3779B97F4A7C13
_INVERSE = pow(_BASE, -1, 1 << 64)
_BITS = 64


def _powers(base: int, count: int) -> Words:
    """1, base, base², … modulo 2^64, (count,)."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors)


class Decontaminator:
    """Looks for benchmark items in conversations. What a call costs does not depend on n or the number of items.

    ``too_short`` counts the items without a letter or a digit, which are never found.
    The index takes about 80 bytes an n-gram: 9 MB for 2,400 items; worker processes get it as it is, which is quicker than to
    make it again.
    """

    def __init__(self, benchmarks: Sequence[Benchmark], settings: Decontamination):
        self.benchmarks = list(benchmarks)
        self.settings = settings
        content = [asdict(benchmark) for benchmark in self.benchmarks]
        self.key = fingerprint([_VERSION, content, settings.ngram, settings.overlap])
        self._items = [(b, i) for b in range(len(self.benchmarks)) for i in range(len(self.benchmarks[b].prompts))]
        self._index()

    def _index(self) -> None:
        n = self.settings.ngram
        texts = [_simplified_words(prompt) for benchmark in self.benchmarks for prompt in benchmark.prompts]
        # Only words of the benchmarks get a hash of their own. All others share that of "", which is in no item.
        self._vocabulary = {word: i for i, word in enumerate(["", *sorted({w for text in texts for w in text})])}
        digests = b"".join(blake2b(word.encode(), digest_size=8).digest() for word in self._vocabulary)
        self._hashes = np.frombuffer(digests, "<u8").astype(np.uint64)
        if any(not word.isascii() for word in self._vocabulary):  # traditional ones are the same words
            for code, simple in _simplified().items():
                if simple in self._vocabulary:
                    self._vocabulary.setdefault(chr(code), self._vocabulary[simple])
        longest = 4096
        self._power, self._inverse_power = _powers(_BASE, longest), _powers(_INVERSE, longest)

        grams, owners, own = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)], [np.zeros(0, bool)]
        self._needed = np.ones(len(texts), np.int32)
        self._needed_own = np.zeros(len(texts), np.int32)
        short = set()
        self._whole: dict[str, int] = {}
        self.too_short = 0
        for item, text in enumerate(texts):
            if len(text) < MIN_WORDS:
                b, i = self._items[item]
                if key := whole(self.benchmarks[b].prompts[i]):
                    self._whole.setdefault(key, item)
                else:
                    self.too_short += 1
                continue
            length = min(n, len(text))  # an item of fewer than n words is one n-gram of its own length
            if length < n:
                short.add(length)
            found, has_own_word = self._telling(text, length)
            self._needed[item] = max(math.ceil(self.settings.overlap * len(found)), min(len(found), MIN_FOUND))
            if has_own_word.any():
                self._needed_own[item] = math.ceil(self.settings.overlap * has_own_word.sum())
            else:
                self._needed[item] = max(self._needed[item], math.ceil(ALL_STOCK * len(found)))
            grams.append(found)
            owners.append(np.full(len(found), item, np.int32))
            own.append(has_own_word)
        self._longest_whole = max(map(len, self._whole), default=0)
        self._short = sorted(short)
        all_grams, all_owners = np.concatenate(grams), np.concatenate(owners)
        order = np.argsort(all_grams, kind="stable")
        self._owners, self._own = all_owners[order], np.concatenate(own)[order]
        self._sorted, starts = np.unique(all_grams[order], return_index=True)
        self._starts = np.append(starts, len(order))
        self._sizes = np.bincount(all_owners, minlength=len(texts))
        # Most n-grams of a row are in no item. One look into a table by the upper bits says so, without a search.
        bits = max(10, (32 * len(self._sorted)).bit_length())
        self._shift = np.uint64(_BITS - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._sorted >> self._shift] = True

    def _telling(self, text: list[str], length: int) -> tuple[Words, NDArray[np.bool_]]:
        """The different n-grams of an item, and which have a word of their own; if some do, none that only counts."""
        tuples = [tuple(text[start : start + length]) for start in range(len(text) - length + 1)]
        found, first = np.unique(self._grams(self._hash(text), length), return_index=True)
        own = np.array([_has_own_word(tuples[place]) for place in first])
        telling = np.array([not _only_counts(tuples[place]) for place in first])
        if not (telling & own).any():
            return found, own & telling
        return found[telling], own[telling]

    def _hash(self, text: list[str]) -> Words:
        """Hashes of words, (len(text),)."""
        get = self._vocabulary.get
        return self._hashes[np.fromiter(map(get, text, repeat(0)), np.int32, len(text))]

    @staticmethod
    def _joined(texts: list[str]) -> list[str]:
        """The words of several texts, with an unknown word after each: no n-gram reaches from one to the next."""
        return [word for text in texts for word in (*words(text), "")]

    def _grams(self, hashes: Words, n: int) -> Words:
        """Hashes of all n-grams of the words, (len(hashes) - n + 1,), from differences of prefix sums."""
        count = len(hashes)
        if count < n:
            return hashes[:0]
        if count > len(self._power):
            self._power, self._inverse_power = _powers(_BASE, 2 * count), _powers(_INVERSE, 2 * count)
        sums = np.zeros(count + 1, np.uint64)
        np.cumsum(hashes * self._power[:count], out=sums[1:])
        return (sums[n:] - sums[: count + 1 - n]) * self._inverse_power[: count + 1 - n]

    def _find(self, grams: Words) -> NDArray[np.int64]:
        """Positions in ``self._sorted`` of those that are there, each once."""
        grams = grams[self._table[grams >> self._shift]]
        if not len(grams):
            return np.zeros(0, np.int64)
        positions = np.searchsorted(self._sorted, grams)
        positions[positions == len(self._sorted)] = 0
        found = positions[self._sorted[positions] == grams]
        return np.unique(found) if len(found) else found

    def __call__(self, conversation: Conversation) -> None:
        """Check what is said in a conversation: every message, the reasoning of answers, the arguments of tool calls.

        An item of fewer words than an n-gram has to stand whole in a user message; one below ``MIN_WORDS`` words has to
        be the user message. The descriptions of tools are not looked at.

        Raises:
            Rejected: ``contaminated``. The detail names the item with the largest overlap.
        """
        asked = [m["content"] for m in conversation.messages if m["role"] == "user"]
        rest = [m["content"] for m in conversation.messages if m["role"] != "user"]
        rest += [m["reasoning_content"] for m in conversation.messages if m.get("reasoning_content")]
        for message in conversation.messages:
            for call in message.get("tool_calls") or ():
                rest += strings_in(call["function"]["arguments"], "bad_tool_call", "arguments")
        for text in asked if self._whole else ():
            item = self._whole.get(whole(text)) if len(text) <= 4 * self._longest_whole + 200 else None
            if item is not None:
                raise Rejected("contaminated", self._named(item, "identical"))
        if not len(self._sorted):
            return
        said = self._joined(asked)
        of_user = len(said)
        hashes = self._hash(said + self._joined(rest))
        grams = self._grams(hashes, self.settings.ngram)
        if self._short:
            grams = np.concatenate([grams, *(self._grams(hashes[:of_user], length) for length in self._short)])
        found = self._find(grams)
        if not len(found):
            return
        places = np.concatenate([np.arange(self._starts[g], self._starts[g + 1]) for g in found])
        owners = self._owners[places]
        counts = np.bincount(owners, minlength=len(self._items))
        own = np.bincount(owners[self._own[places]], minlength=len(self._items))
        over = np.flatnonzero((counts >= self._needed) & (own >= self._needed_own))
        if len(over):
            best = over[np.argmax(counts[over] / self._sizes[over])]
            raise Rejected("contaminated", self._describe(int(best), int(counts[best]), asked, rest))

    def _describe(self, item: int, count: int, asked: list[str], rest: list[str]) -> str:
        b, i = self._items[item]
        benchmark = self.benchmarks[b]
        wanted = _simplified_words(benchmark.prompts[i])
        texts = [_simplified_words(text) for text in asked + rest]
        inside = f" {' '.join(wanted)} "
        if wanted in texts:
            kind = "identical"
        elif any(inside in f" {' '.join(text)} " for text in texts):
            kind = "contained"
        else:
            kind = f"{count / self._sizes[item]:.2f} of its word {self.settings.ngram}-grams"
        return self._named(item, kind)

    def _named(self, item: int, kind: str) -> str:
        b, i = self._items[item]
        benchmark = self.benchmarks[b]
        start = " ".join(benchmark.prompts[i].split())
        start = start if len(start) <= 60 else start[:60].rstrip() + "…"
        return f'{benchmark.name} item {benchmark.numbers[i]}: {kind}: "{start}"'[:200]
