"""The passages of a folder, and which of them a question is about: SQLite's full-text index, FTS5, with BM25.

In: a folder with text. Out: an ``Index`` in memory that finds passages, each with its file and lines. What is no text, or has no
place to be split at, is listed with the reason.

SQLite comes with Python, so nothing is installed and nothing listens. It splits words by itself, but not Chinese, which has no
spaces: there every character is a word of the index, and two characters side by side are what is looked for.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError

LARGEST = 10 * 2**20  # bytes of a file
# Where a passage that is too long is cut: behind a line, a sentence, a word. The first that helps is taken.
_CUTS = (r"(?<=\n)", r"(?<=[.!?])\s+|(?<=[。！？])", r"\s+")
_WIDE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese and Japanese
_WORD = re.compile(rf"[{_WIDE}]+|[^\W_{_WIDE}]+")


@dataclass(frozen=True)
class Passage:
    """A part of a file. ``first`` and ``last``: its lines, from 1 on."""

    file: str  # below the folder, with "/"
    first: int
    last: int
    text: str

    @property
    def source(self) -> str:
        """Where it stands, as the prompt says it."""
        lines = f"line {self.first}" if self.first == self.last else f"lines {self.first}-{self.last}"
        return f"{self.file}, {lines}"


@dataclass(frozen=True)
class Skipped:
    """What is not in the index, and why."""

    source: str
    reason: str


class Index:
    """Passages that can be searched; made by ``index_folder``."""

    def __init__(self, passages: Sequence[Passage], skipped: Sequence[Skipped]):
        self.passages, self.skipped = list(passages), list(skipped)
        self._database = sqlite3.connect(":memory:")
        try:
            self._database.execute("CREATE VIRTUAL TABLE passages USING fts5(words, tokenize='porter unicode61')")
        except sqlite3.OperationalError as error:
            raise UserError(
                f"The SQLite of this Python ({sqlite3.sqlite_version}) has no full-text search (FTS5). Take a Python from "
                "python.org, uv or your system, which all have it."
            ) from error
        rows = ((place, _spaced(passage.text)) for place, passage in enumerate(self.passages))
        self._database.executemany("INSERT INTO passages (rowid, words) VALUES (?, ?)", rows)

    def search(self, question: str, count: int) -> list[Passage]:
        """The passages that share words with a question, the best by BM25 first; none where no word is shared."""
        wanted = " OR ".join(f'"{words}"' for words in _wanted(question))
        if not wanted:
            return []
        query = "SELECT rowid FROM passages WHERE passages MATCH ? ORDER BY bm25(passages), rowid LIMIT ?"
        return [self.passages[place] for (place,) in self._database.execute(query, (wanted, count))]

    def close(self) -> None:
        """Give the memory back."""
        self._database.close()


def index_folder(folder: Path, count_tokens: Callable[[str], int], longest: int) -> Index:
    """Read all text below a folder.

    Args:
        count_tokens: of a text, by the model's tokenizer.
        longest: tokens of a passage; a longer paragraph is cut behind a line, a sentence or a word.

    Raises:
        UserError: there is no such folder, or no text in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one with text files.")
    passages: list[Passage] = []
    skipped: list[Skipped] = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        text = _text_of(path)
        if isinstance(text, Skipped):
            skipped.append(Skipped(name, text.reason))
            continue
        for part in _paragraphs(name, text):
            for piece in _pieces(part, count_tokens, longest):
                if count_tokens(piece.text) <= longest:
                    passages.append(piece)
                else:
                    reason = f"{count_tokens(piece.text):,} tokens without a place to cut; {longest:,} are the limit"
                    skipped.append(Skipped(piece.source, reason))
    if not passages:
        why = "; ".join(f"{item.source}: {item.reason}" for item in skipped[:3])
        raise UserError(
            f"There is no text in {folder}{f' ({why})' if why else ', it is empty'}. Put text files there (UTF-8: .txt, .md, "
            ".csv, code, …)."
        )
    return Index(passages, skipped)


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, in order; hidden ones and what links lead to are no part of it."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def _text_of(path: Path) -> str | Skipped:
    try:
        if path.stat().st_size > LARGEST:
            return Skipped("", f"larger than {LARGEST // 2**20} MiB")
        data = path.read_bytes()
    except OSError as error:
        return Skipped("", f"cannot be read ({error.strerror})")
    if b"\0" in data:
        return Skipped("", "no text (binary)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Skipped("", f"no UTF-8 (byte {error.start})")
    return text if text.strip() else Skipped("", "empty")


def _paragraphs(file: str, text: str) -> Iterator[Passage]:
    """What empty lines part; a heading by itself goes with the paragraph behind it."""
    lines = text.splitlines()
    start, last = None, 0
    for place, line in enumerate([*lines, ""]):
        if line.strip():
            start, last = place if start is None else start, place
        elif start is not None and (place == len(lines) or not lines[last].startswith("#")):
            yield Passage(file, start + 1, last + 1, "\n".join(lines[start : last + 1]))
            start = None


def _pieces(passage: Passage, count_tokens: Callable[[str], int], longest: int, cut: int = 0) -> Iterator[Passage]:
    """A passage, or pieces of it that are as long as they may be."""
    if count_tokens(passage.text) <= longest or cut == len(_CUTS):
        yield passage
        return
    held, line = "", passage.first
    for part in [*_parts(passage.text, _CUTS[cut]), None]:
        if part is not None and (not held or count_tokens((held + part).strip()) <= longest):
            held += part
            continue
        if held.strip():
            lead = len(held) - len(held.lstrip())
            first, text = line + held[:lead].count("\n"), held.strip()
            piece = Passage(passage.file, first, first + text.count("\n"), text)
            yield from _pieces(piece, count_tokens, longest, cut + 1)
        line, held = line + held.count("\n"), part or ""


def _parts(text: str, pattern: str) -> list[str]:
    """A text cut behind every match; together they are the text."""
    ends = [*(match.end() for match in re.finditer(pattern, text)), len(text)]
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True) if end > start]


def _spaced(text: str) -> str:
    """A text as the index takes it: a space between characters that are words."""
    return re.sub(rf"([{_WIDE}])", r" \1 ", text)


def _wanted(question: str) -> list[str]:
    """What is looked for: each word, and of Chinese every two characters side by side."""
    found: dict[str, None] = {}
    for word in _WORD.findall(question):
        if not re.match(rf"[{_WIDE}]", word):
            found[word.lower()] = None
        for place in range(max(1, len(word) - 1) if re.match(rf"[{_WIDE}]", word) else 0):
            found[" ".join(word[place : place + 2])] = None
    return list(found)
