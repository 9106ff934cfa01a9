"""Near-duplicate removal against a plain loop around datasketch's MinHashLSH, on planted duplicates.

    python benchmarks/near_duplicates.py --rows 100000 --planted 0.1 --output near_duplicates.json

Chat rows are made from 20,000 invented words drawn by Zipf's law, so that no two unplanted rows are alike: among 2,000
of them no pair has a Jaccard similarity above 0.1, which is asserted. A part of them are planted duplicates of six
kinds and hard negatives of five kinds (see ``PLANT``). Both sides read the same file in a fresh process each.
Similarity is judged here by the exact sets of n-grams, in code that shares nothing with the module.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.data.cleaning.duplicates import Duplicates, Signer, exact_key, find_duplicates, text_of  # noqa: E402
from pipeline.data.conversations import Conversation, Rejected  # noqa: E402
from pipeline.settings import NearDuplicates  # noqa: E402

Row = list[dict[str, str]]
MARGIN = 0.05  # planted rows keep this distance from the threshold
READ = 512  # rows a step

# --- rows ---------------------------------------------------------------------------------------------------------------


class Writer:
    """Sentences from a Zipf vocabulary of invented words."""

    def __init__(self, seed: int, size: int = 20_000):
        self.rng = np.random.default_rng(seed)
        syllables = [c + v for c in ["b", "br", "d", "f", "gl", "k", "l", "m", "n", "p", "st", "t"] for v in "aeiou"]
        letters = random.Random(seed)
        words: dict[str, None] = {}
        while len(words) < size:
            words["".join(letters.choices(syllables, k=letters.randint(1, 4)))] = None
        self.words = list(words)
        weights = 1 / (np.arange(size) + 10.0)
        self.cumulative = np.cumsum(weights / weights.sum())

    def draw(self, count: int) -> list[str]:
        places = np.searchsorted(self.cumulative, self.rng.random(count)).clip(max=len(self.words) - 1)
        return [self.words[place] for place in places.tolist()]

    def text(self, count: int) -> str:
        words = self.draw(count)
        sentences = []
        while words:
            size = int(self.rng.integers(6, 20))
            part, words = words[:size], words[size:]
            if len(part) > 8:
                part[len(part) // 2] += ","
            sentences.append(" ".join(part).capitalize() + str(self.rng.choice([".", ".", ".", "!", ":"])))
        return " ".join(sentences)

    def row(self) -> Row:
        """One to three exchanges: questions of about 30 words with two numbers, answers of about 150 words."""
        turns: Row = []
        for _ in range(int(self.rng.choice([1, 1, 1, 2, 3]))):
            a, b = self.rng.integers(2, 1000, 2)
            question = self.text(int(self.rng.lognormal(3.2, 0.6)) + 6)
            turns.append({"role": "user", "content": f"{question} Take {a} of {b}, {' '.join(self.draw(3))}?"})
            turns.append({"role": "assistant", "content": self.text(int(self.rng.lognormal(4.8, 0.6)) + 10)})
        return turns


def grams(row: Row, size: int) -> set[tuple[str, ...]]:
    """The exact set of word n-grams of a row, roles included, without its system prompt."""
    turns = [turn for turn in row if turn["role"] != "system"]
    words = [w for turn in turns for w in [turn["role"], *re.findall(r"\w+", turn["content"].casefold())]]
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def jaccard(one: Row, other: Row, size: int) -> float:
    a, b = grams(one, size), grams(other, size)
    return len(a & b) / len(a | b)


def numbers(row: Row) -> list[str]:
    return [n for turn in row if turn["role"] == "user" for n in re.findall(r"\d+", turn["content"])]


def _edit_once(row: Row, writer: Writer, rng: random.Random) -> Row:
    """Replace, insert or delete one word, nowhere a number."""
    turn = rng.randrange(len(row))
    words = row[turn]["content"].split(" ")
    places = [i for i, word in enumerate(words) if not re.search(r"\d", word)]
    place = rng.choice(places or [0])
    kind = rng.choice(["replace", "insert", "delete"] if places else ["insert"])
    words[place : place + (kind != "insert")] = [] if kind == "delete" else writer.draw(1)
    return [*row[:turn], {**row[turn], "content": " ".join(words)}, *row[turn + 1 :]]


def edited(row: Row, writer: Writer, rng: random.Random, low: float, high: float, size: int) -> Row | None:
    """Edit word by word until the similarity is below a goal drawn from [low, high]; None where the last step leaps."""
    goal = rng.uniform(low, high)
    before = changed = row
    while jaccard(row, changed, size) > goal:
        before, changed = changed, _edit_once(changed, writer, rng)
    for candidate in (changed, before):
        if candidate is not row and low <= jaccard(row, candidate, size) <= high:
            return candidate
    return None


def _map(row: Row, change: Callable[[str], str]) -> Row:
    return [{**turn, "content": change(turn["content"])} for turn in row]


def _spacing_and_case(row: Row, rng: random.Random) -> Row:
    case = rng.choice([str.upper, str.lower, str.title])
    return _map(row, lambda text: re.sub(" ", lambda _: rng.choice([" ", "  ", "\n", " \t"]), case(text)))


def _punctuation(row: Row, rng: random.Random) -> Row:
    return _map(row, lambda text: re.sub(r"[.,!:?](?=\s|$)", lambda _: rng.choice(["", ";", " …", "!!"]), f"“{text}”"))


def _other_number(row: Row, rng: random.Random) -> Row:
    content = row[0]["content"]
    found = rng.choice(list(re.finditer(r"\d+", content)))
    other = str(int(found[0]) + rng.randint(1, 9))
    return [{**row[0], "content": content[: found.start()] + other + content[found.end() :]}, *row[1:]]


def _short_answer(writer: Writer, rng: random.Random) -> tuple[Row, Row]:
    """A long question and an answer of 8 to 20 words, of which one differs, and one of the question."""
    answer = {"role": "assistant", "content": writer.text(rng.randint(8, 20))}
    row = [{"role": "user", "content": writer.text(200)}, answer]
    return row, [_edit_once([turn], writer, rng)[0] for turn in row]


def _shared_system_prompt(writer: Writer, rng: random.Random) -> tuple[Row, Row]:
    """Two different rows under one system prompt of 400 words, numbers the same."""
    system = {"role": "system", "content": writer.text(400)}
    one, other = (
        [{"role": "user", "content": writer.text(20)}, {"role": "assistant", "content": writer.text(40)}] for _ in "ab"
    )
    return [system, *one], [system, *other]


def _shared_context(writer: Writer, rng: random.Random) -> tuple[Row, Row]:
    """Two questions about one text of 400 words, asked before or after it, with answers of 1 to 60 words."""
    context, first = writer.text(400), rng.random() < 0.5

    def ask() -> Row:
        question = writer.text(rng.randint(6, 20))
        content = f"{question}\n\n{context}" if first else f"{context}\n\n{question}"
        return [{"role": "user", "content": content}, {"role": "assistant", "content": writer.text(rng.randint(1, 60))}]

    return ask(), ask()


def _shared_context_and_answer(writer: Writer, rng: random.Random) -> tuple[Row, Row]:
    one, other = _shared_context(writer, rng)
    answer = {"role": "assistant", "content": rng.choice(["Yes.", "No, it is not.", writer.text(12)])}
    return [one[0], answer], [other[0], answer]


PLANT = {  # kind → is it a duplicate? The others are alike in a way, but must stay.
    "same": True,
    "spacing_and_case": True,
    "punctuation": True,
    "few_words": True,  # similarity from threshold + margin to 0.97
    "two_words": True,
    "short_answer": True,
    "below_threshold": False,  # similarity from 0.3 to threshold - margin
    "other_number": False,  # one number of the first question differs
    "shared_system_prompt": False,
    "shared_context": False,  # question and answer differ
    "shared_context_and_answer": False,  # the question differs, the answer has 1 to 12 words
}
PAIRS = {
    "short_answer": _short_answer,
    "shared_system_prompt": _shared_system_prompt,
    "shared_context": _shared_context,
    "shared_context_and_answer": _shared_context_and_answer,
}


def plant(kind: str, row: Row, writer: Writer, rng: random.Random, settings: NearDuplicates) -> tuple[Row, Row] | None:
    """The row and a changed copy of it (or a pair in its place), or None where the row is too short for the kind."""
    if kind in PAIRS:
        return PAIRS[kind](writer, rng)
    copy = _changed(kind, row, writer, rng, settings)
    return (row, copy) if copy else None


def _changed(kind: str, row: Row, writer: Writer, rng: random.Random, settings: NearDuplicates) -> Row | None:
    size, threshold = settings.ngram, settings.threshold
    if kind == "same":
        return [dict(turn) for turn in row]
    if kind == "spacing_and_case":
        return _spacing_and_case(row, rng)
    if kind == "punctuation":
        return _punctuation(row, rng)
    if kind == "few_words":
        return edited(row, writer, rng, threshold + MARGIN, 0.97, size)
    if kind == "two_words":
        changed = _edit_once(_edit_once(row, writer, rng), writer, rng)
        return changed if jaccard(row, changed, size) >= threshold + MARGIN else None
    if kind == "below_threshold":
        return edited(row, writer, rng, 0.3, threshold - MARGIN, size)
    return _other_number(row, rng)


@dataclass
class Planted:
    """A file of rows and what is known of it: for each planted pair (earlier, later, kind)."""

    pairs: list[tuple[int, int, str]]
    rows: int


def make_rows(path: Path, rows: int, planted: float, seed: int, settings: NearDuplicates) -> Planted:
    """Write ``rows`` conversations, one JSON list of turns a line, of which a part ``planted`` are changed copies."""
    writer, rng = Writer(seed), random.Random(seed)
    copies = round(rows * planted)
    order = list(range(rows))
    rng.shuffle(order)  # original and copy stand anywhere, either first
    offsets: list[int] = [0] * rows
    pairs = []
    kinds = list(PLANT)
    with tempfile.TemporaryFile("w+b") as unordered:

        def put(number: int, row: Row) -> None:
            offsets[order[number]] = unordered.tell()
            unordered.write(json.dumps(row).encode() + b"\n")

        waiting = 0  # copies still to be made; the numbers from rows - copies on are theirs
        for number in range(rows - copies):
            row = writer.row()
            if waiting < copies:
                kind = kinds[waiting % len(kinds)]
                pair = plant(kind, row, writer, rng, settings)
                if pair is not None:
                    row, copy = pair
                    place = rows - copies + waiting
                    put(place, copy)
                    pairs.append((min(order[number], order[place]), max(order[number], order[place]), kind))
                    waiting += 1
            put(number, row)
        assert waiting == copies, f"only {waiting} of {copies} copies could be planted"
        with path.open("wb") as file:
            for offset in offsets:
                unordered.seek(offset)
                file.write(unordered.readline())
    return Planted(pairs, rows)


# --- the two sides ------------------------------------------------------------------------------------------------------


def peak_memory() -> int:
    """Peak resident bytes of this process (VmHWM: unlike ru_maxrss it forgets the process that started this one)."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def batches(path: Path, limit: int) -> Iterator[list[Row]]:
    with path.open() as file:
        batch: list[Row] = []
        for number, line in enumerate(file):
            if number == limit:
                break
            batch.append(json.loads(line))
            if len(batch) == READ:
                yield batch
                batch = []
        if batch:
            yield batch


def ours(path: Path, limit: int, settings: NearDuplicates) -> tuple[dict[str, Any], Duplicates]:
    """The module as ``data build`` uses it, in one process: keys, signatures to a file, then the search."""
    signer = Signer(settings)
    signer(["warm up"])
    start, sign = peak_memory(), 0.0
    keys: list[bytes] = []
    with tempfile.TemporaryDirectory() as folder:
        file_name = Path(folder) / "signatures"
        with file_name.open("wb") as file:
            for batch in batches(path, limit):
                began = time.perf_counter()
                conversations = [Conversation(list(row), "non_thinking") for row in batch]
                keys += [exact_key(conversation) for conversation in conversations]
                signer([text_of(conversation) for conversation in conversations]).tofile(file)
                sign += time.perf_counter() - began
        began = time.perf_counter()
        found = find_duplicates(np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16), [file_name], settings)
        find = time.perf_counter() - began
    result = {"rows": len(keys), "sign_seconds": sign, "find_seconds": find, "seconds": sign + find}
    return result | {"peak_memory": peak_memory(), "memory_at_start": start}, found


def datasketch_loop(path: Path, limit: int, settings: NearDuplicates) -> tuple[dict[str, Any], np.ndarray]:
    """What the library's documentation shows: a MinHash a row, ask the index, insert what is new."""
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=settings.threshold, num_perm=settings.permutations)
    start, seconds = peak_memory(), 0.0
    of: list[int] = []
    for batch in batches(path, limit):
        began = time.perf_counter()
        for row in batch:
            words = re.findall(r"\w+", "\n".join(f"{turn['role']} {turn['content']}" for turn in row).lower())
            size = settings.ngram
            minhash = MinHash(num_perm=settings.permutations)
            minhash.update_batch({" ".join(words[i : i + size]).encode() for i in range(max(1, len(words) - size + 1))})
            similar = lsh.query(minhash)
            if similar:
                of.append(min(similar))
            else:
                lsh.insert(len(of), minhash)
                of.append(-1)
        seconds += time.perf_counter() - began
    return {"rows": len(of), "seconds": seconds, "peak_memory": peak_memory(), "memory_at_start": start}, np.array(of)


def synthetic(rows: int, settings: NearDuplicates) -> dict[str, Any]:
    """Time and memory of ``find_duplicates`` alone, on random signatures of which one in ten repeats an earlier row."""
    signer = Signer(settings)
    signer(["warm up"])
    rng = np.random.default_rng(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signatures"
        with path.open("wb") as file:
            for _ in range(rows // 10_000):
                block = rng.integers(0, 2**32, (10_000, signer.width), np.uint32)
                block[:, -1] = 0
                block[9_000:] = block[:1_000]
                block.view(np.uint8)[9_000:, : settings.permutations // 10] += 1  # similarity about 0.9
                block.astype("<u4").tofile(file)
        start = peak_memory()
        began = time.perf_counter()
        found = find_duplicates(np.empty((0, 16), np.uint8), [path], settings)
        seconds = time.perf_counter() - began
    result = {"rows": rows, "seconds": seconds, "memory_at_start": start, "peak_memory": peak_memory()}
    return result | {"rejected": int((found.of >= 0).sum())}


# --- judgement ----------------------------------------------------------------------------------------------------------


def judge(path: Path, limit: int, of: np.ndarray, planted: Planted, settings: NearDuplicates) -> dict[str, Any]:
    """Recall by kind, and precision: a rejected row is right where it is as similar by exact sets, numbers included.

    What is planted with a shared text never is: there the sets are similar, but not the rows.
    """
    pairs = [pair for pair in planted.pairs if pair[1] < limit]
    needed = {row for earlier, later, _ in pairs for row in (earlier, later)}
    needed |= {int(row) for row in np.flatnonzero(of >= 0)} | {int(row) for row in of[of >= 0]}
    rows = {}
    with path.open() as file:
        for number, line in enumerate(file):
            if number in needed:
                rows[number] = json.loads(line)
    total, found = Counter(kind for *_, kind in pairs), Counter(kind for _, row, kind in pairs if of[row] >= 0)
    wrong: Counter[str] = Counter()
    kind_of = {later: kind for _, later, kind in pairs}
    for row in np.flatnonzero(of >= 0).tolist():
        one, other = rows[row], rows[int(of[row])]
        kind, unlike = kind_of.get(row, "unplanted"), jaccard(one, other, settings.ngram) < settings.threshold
        if unlike or numbers(one) != numbers(other) or kind.startswith("shared"):
            wrong[kind] += 1
    rejected = int((of >= 0).sum())
    duplicates = [kind for kind, is_one in PLANT.items() if is_one]
    return {
        "rejected": rejected,
        "recall": sum(found[k] for k in duplicates) / max(1, sum(total[k] for k in duplicates)),
        "precision": 1 - sum(wrong.values()) / max(1, rejected),
        "recall_by_kind": {k: found[k] / total[k] for k in duplicates if total[k]},
        "wrong_by_kind": {k: f"{n} of {total[k] or rejected}" for k, n in sorted(wrong.items())},
    }


def check_variety(path: Path, planted: Planted, settings: NearDuplicates) -> float:
    """The largest exact similarity among 2,000 rows none of which is planted or was planted from."""
    touched = {row for earlier, later, _ in planted.pairs for row in (earlier, later)}
    with path.open() as file:
        rows = [json.loads(line) for number, line in zip(range(20_000), file, strict=False) if number not in touched]
    sets = [grams(row, settings.ngram) for row in rows[:2_000]]
    holders: dict[tuple[str, ...], list[int]] = {}
    for number, one in enumerate(sets):
        for gram in one:
            holders.setdefault(gram, []).append(number)
    shared: Counter[tuple[int, int]] = Counter()
    for group in holders.values():
        if len(group) < 200:  # n-grams of the frame, such as "of 7 assistant", are in very many rows
            shared.update((a, b) for i, a in enumerate(group) for b in group[i + 1 :])
    closest = [pair for pair, _ in shared.most_common(50)]
    return max((len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in closest), default=0.0)


# --- real rows ----------------------------------------------------------------------------------------------------------


def on_real_rows(folder: Path, settings: NearDuplicates) -> None:
    """Print what would be removed from the real files, to be looked at by a person."""
    from pipeline.data.conversations import converter

    conversations: list[Conversation] = []
    for path in sorted([*folder.glob("sft/*.json"), *folder.glob("reason/*.json"), *folder.glob("tools/*.json")]):
        convert = converter("sharegpt" if path.parent.name == "tools" else "alpaca")
        for row in json.loads(path.read_text(encoding="utf-8")):
            try:
                conversations.append(convert(row))
            except Rejected:
                continue
    signer = Signer(settings)
    texts = [text_of(conversation) for conversation in conversations]
    keys = np.frombuffer(b"".join(map(exact_key, conversations)), np.uint8).reshape(-1, 16)
    with tempfile.TemporaryDirectory() as temporary:
        signer(texts).tofile(Path(temporary) / "signatures")
        found = find_duplicates(keys, [Path(temporary) / "signatures"], settings)
    for row in np.flatnonzero(found.of >= 0).tolist():
        kind = "exact" if found.exact[row] else f"{found.similarity[row]:.3f}"
        print(
            f"\n--- row {row} repeats {found.of[row]} ({kind})\n{texts[row][:600]}\n  was\n{texts[found.of[row]][:600]}"
        )
    sizes = Counter(Counter(found.group.tolist()).values())
    print(f"\n{len(texts)} rows, {int((found.of >= 0).sum())} removed, {int(found.exact.sum())} of them exact")
    print(f"groups by size: {dict(sorted(sizes.items()))}")


# --- main ---------------------------------------------------------------------------------------------------------------


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a fresh process, so that its memory is its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def _line(name: str, result: dict[str, Any]) -> str:
    cells = [f"{result['rows']:>9,}", f"{result['seconds']:>8.1f}", f"{result['rows'] / result['seconds']:>8,.0f}"]
    cells += [f"{result['peak_memory'] / 2**20:>8.0f}", f"{result['memory_at_start'] / 2**20:>8.0f}"]
    cells += [f"{result[key]:>9.4f}" if key in result else " " * 9 for key in ("recall", "precision")]
    return f"{name:<13}" + " ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--planted", type=float, default=0.1, help="part of the rows that are planted copies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--permutations", type=int, default=NearDuplicates.model_fields["permutations"].default)
    parser.add_argument("--baseline-rows", type=int, help="give datasketch only the first so many rows (default: all)")
    parser.add_argument("--scale", type=int, nargs="*", default=[], help="also: the search alone on so many signatures")
    parser.add_argument("--shared", type=Path, help="instead: list what goes from the real files in this folder")
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    arguments = parser.parse_args()
    settings = NearDuplicates.model_validate({"permutations": arguments.permutations})
    if arguments.shared:
        on_real_rows(arguments.shared, settings)
        return

    report: dict[str, Any] = {"rows": arguments.rows, "planted": arguments.planted, "seed": arguments.seed}
    report["settings"] = settings.model_dump()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        began = time.perf_counter()
        planted = make_rows(path, arguments.rows, arguments.planted, arguments.seed, settings)
        report["closest_unplanted"] = check_variety(path, planted, settings)
        assert report["closest_unplanted"] < 0.1, report["closest_unplanted"]
        print(
            f"{arguments.rows:,} rows made in {time.perf_counter() - began:.0f} s, {path.stat().st_size / 2**20:.0f} MiB"
        )
        limit = min(arguments.baseline_rows or arguments.rows, arguments.rows)
        report["ours"], found = _alone(ours, path, arguments.rows, settings)
        report["ours"] |= judge(path, arguments.rows, found.of, planted, settings)
        report["datasketch"], of = _alone(datasketch_loop, path, limit, settings)
        report["datasketch"] |= judge(path, limit, of, planted, settings)
    report["scale"] = [_alone(synthetic, rows, settings) for rows in arguments.scale]
    sides = (report["ours"], report["datasketch"])
    report["times_faster"] = sides[0]["rows"] / sides[0]["seconds"] / (sides[1]["rows"] / sides[1]["seconds"])

    print(f"\n{'':<13}     rows  seconds   rows/s peak MiB  (start)    recall precision")
    for name in ("ours", "datasketch"):
        print(_line(name, report[name]))
    for result in report["scale"]:
        print(_line("search alone", result))
    print(f"{report['times_faster']:.1f} times as fast")
    for name in ("ours", "datasketch"):
        print(f"{name}: recall {report[name]['recall_by_kind']}, wrongly rejected {report[name]['wrong_by_kind']}")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
