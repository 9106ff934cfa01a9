"""What the cleaning steps and the decontamination find, and how often they are wrong, on public files and planted items.

    python benchmarks/cleaning.py --shared DIR --output cleaning.json

DIR holds the files (sft/, reason/, tools/, pref/, eval/). Three parts, each seeded:

- **files**: how many rows each step takes alone, with its default settings, and its time a row. ``check_answer`` is judged
  by a plain comparison: the last number of the solution with GSM8K's gold number.
- **decontamination**: prompts of GSM8K (test) and IFEval, changed in known ways, as user turns. Beside it two plain rules
  in code that shares nothing with the module: one shared n-gram of 13 words (GPT-3's) or of 8 (Open-R1's) is enough.
- **personal data**: made items inside real sentences. Valid ones must be found, invalid ones and mathematics must not;
  checksums are computed here in code of its own.

Times are CPU times of this process, so that other work beside it counts little.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import re
import string
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.core.statistics import wilson  # noqa: E402
from pipeline.data.cleaning import personal_data  # noqa: E402
from pipeline.data.cleaning.clean import Cleaner  # noqa: E402
from pipeline.data.cleaning.decontaminate import Decontaminator, load_benchmarks  # noqa: E402
from pipeline.data.cleaning.duplicates import Signer, exact_key, find_duplicates, text_of  # noqa: E402
from pipeline.data.conversations import Conversation, Rejected, converter  # noqa: E402
from pipeline.data.sources import read_rows  # noqa: E402
from pipeline.settings import CleanSettings, Decontamination, NearDuplicates, PersonalDataFilter, SourceSettings  # noqa: E402

TRAIN, SOLUTIONS = "eval/gsm8k_train.jsonl", "reason/gsm8k_gemini_cot_level2.json"
FILES = (
    *("sft/alpaca_en_demo.json", "sft/alpaca_zh_demo.json", "sft/identity.json", SOLUTIONS, TRAIN),
    *("eval/gsm8k_test.jsonl", "tools/glaive_toolcall_en_demo.json", "tools/glaive_toolcall_zh_demo.json"),
    *("pref/dpo_en_demo.json", "pref/dpo_zh_demo.json"),
)
BENCHMARKS = {"gsm8k": "eval/gsm8k_test.jsonl", "ifeval": "eval/ifeval_input_data.jsonl"}
# Each step alone, as a recipe that only names it has it. score and class_balance need columns that these files lack.
STEPS: dict[str, dict[str, Any]] = {
    "normalise": {"normalise": True},
    "broken_reasoning": {"broken_reasoning": True},
    "check_answer": {"check_answer": True},
    "length": {"length": {}},
    "repetition": {"repetition": {}},
    "languages": {"languages": ["en", "zh"]},
    "refusals": {"refusals": True},
    "personal_data": {"personal_data": {}},
}


@dataclass
class Row:
    """A row as it was read, and the conversation it became."""

    line: int
    data: dict[str, Any]
    conversation: Conversation


@dataclass
class File:
    name: str
    read: int
    rejected: Counter[str]  # by reason, rows that are no conversation
    rows: list[Row]


def read_file(folder: Path, name: str) -> File:
    where = {"name": "file", "kind": "other", "source": "local", "path": str(folder / name), "share": 1}
    source = SourceSettings.model_validate(where)
    convert, file = converter("auto"), File(name, 0, Counter(), [])
    for row in read_rows(source):
        file.read += 1
        if row.data is None:
            file.rejected[row.reason] += 1
            continue
        try:
            file.rows.append(Row(row.line, row.data, convert(row.data)))
        except Rejected as rejected:
            file.rejected[rejected.reason] += 1
    return file


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    cells = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *rest]))


def share(found: int, n: int) -> dict[str, Any]:
    return {"found": found, "n": n, "share": found / n, "interval": wilson(found, n)}


def shown(result: dict[str, Any]) -> str:
    low, high = result["interval"]
    return f"{result['share']:.3f} ({low:.3f}–{high:.3f})"


# --- files --------------------------------------------------------------------------------------------------------------


def run_step(step: Callable[[Row], str], rows: Sequence[Row]) -> dict[str, Any]:
    """What a step did, by reason ("changed" where it only changed the row), and microseconds a row."""
    step(rows[0])  # imports and models are loaded here
    began = time.process_time()
    outcomes = [step(row) for row in rows]
    seconds = time.process_time() - began
    taken = Counter(outcome.partition(":")[0] for outcome in outcomes if outcome)
    places = [f"{row.line} {outcome}" for row, outcome in zip(rows, outcomes, strict=True) if outcome]
    return {"taken": dict(taken.most_common()), "µs_per_row": seconds / len(rows) * 1e6, "rows": places}


def cleaning(cleaner: Cleaner, row: Row) -> str:
    try:
        changes = cleaner(row.conversation, row.data)[1]
    except Rejected as rejected:
        return f"{rejected.reason}: {rejected.detail}"
    return f"changed: {changes[0].example}" if changes else ""


def decontaminated(decontaminator: Decontaminator, conversation: Conversation) -> str:
    try:
        decontaminator(conversation)
    except Rejected as rejected:
        return f"{rejected.reason}: {rejected.detail}"
    return ""


def duplicates(rows: Sequence[Row]) -> dict[str, Any]:
    """Exact and near-duplicates within one file."""
    settings = NearDuplicates.model_validate({})
    signer = Signer(settings)
    signer(["warm up"])
    began = time.process_time()
    keys = np.frombuffer(b"".join(exact_key(row.conversation) for row in rows), np.uint8).reshape(-1, 16)
    exact = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signatures"
        began = time.process_time()
        signer([text_of(row.conversation) for row in rows]).tofile(path)
        found = find_duplicates(keys, [path], settings)
        near = time.process_time() - began
    same, similar = int(found.exact.sum()), int(((found.of >= 0) & ~found.exact).sum())
    per_row = 1e6 / len(rows)
    return {
        "exact_duplicates": {"taken": {"duplicate": same} if same else {}, "µs_per_row": exact * per_row},
        "near_duplicates": {"taken": {"near_duplicate": similar} if similar else {}, "µs_per_row": near * per_row},
    }


_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> Fraction | None:
    numbers = _NUMBER.findall(text)
    return Fraction(numbers[-1].replace(",", "")) if numbers else None


def add_gold(solutions: File, train: File) -> int:
    """Put the gold number in ``expected_answer`` where the question stands in the training set; returns how many got one."""
    gold = {" ".join(row.data["question"].split()): row.data["answer"].rpartition("####")[2] for row in train.rows}
    for row in solutions.rows:
        if (answer := gold.get(" ".join(row.data["instruction"].split()))) is not None:
            row.data["expected_answer"] = answer.strip()
    return sum("expected_answer" in row.data for row in solutions.rows)


def against_plain_judge(solutions: File, outcome: dict[str, Any]) -> dict[str, Any]:
    """Precision and recall of "this answer is wrong" where the last number of the solution is the judge."""
    taken = {int(place.partition(" ")[0]): place for place in outcome["rows"]}
    counts: Counter[tuple[bool, bool]] = Counter()
    differ = []
    for row in solutions.rows:
        if "expected_answer" not in row.data:
            continue
        wrong = last_number(row.data["output"]) != last_number(row.data["expected_answer"])
        counts[row.line in taken, wrong] += 1
        if (row.line in taken) != wrong:
            differ.append({"line": row.line, "step": taken.get(row.line, "passed"), "end": row.data["output"][-100:]})
    both, step_only, judge_only = counts[True, True], counts[True, False], counts[False, True]
    return {
        "rows": counts.total(),
        "both_wrong": both,
        "only_step": step_only,
        "only_judge": judge_only,
        "precision": both / (both + step_only),
        "recall": both / (both + judge_only),
        "differ": differ,
    }


def split_solutions(solutions: File) -> list[Row]:
    """The solutions again, what stands before "The answer is" as reasoning: so that there is reasoning to be judged."""
    convert, rows = converter("reasoning"), []
    for row in solutions.rows:
        reasoning, marker, answer = row.data["output"].rpartition("The answer is")
        data = {"prompt": row.data["instruction"], "reasoning": reasoning, "response": marker + answer}
        if reasoning.strip():
            rows.append(Row(row.line, data, convert(data)))
    return rows


def part_files(files: dict[str, File], decontaminator: Decontaminator) -> dict[str, Any]:
    matched = add_gold(files[SOLUTIONS], files[TRAIN])
    result: dict[str, Any] = {"files": {}, "gold_found": matched}
    cleaners = {name: Cleaner(CleanSettings.model_validate(setting)) for name, setting in STEPS.items()}
    for file in files.values():
        steps = {
            name: run_step(partial(cleaning, cleaner), file.rows)
            for name, cleaner in cleaners.items()
            if name != "check_answer" or file.name == SOLUTIONS
        }
        steps["decontaminate"] = run_step(lambda row: decontaminated(decontaminator, row.conversation), file.rows)
        steps |= duplicates(file.rows)
        result["files"][file.name] = {"read": file.read, "no_conversation": dict(file.rejected), "steps": steps}
    result["judge"] = against_plain_judge(files[SOLUTIONS], result["files"][SOLUTIONS]["steps"]["check_answer"])
    split = split_solutions(files[SOLUTIONS])
    result["split_solutions"] = {"read": len(split)} | run_step(partial(cleaning, cleaners["broken_reasoning"]), split)
    result["personal_data_maths"] = personal_data_in_maths(files)
    return result


def personal_data_in_maths(files: dict[str, File]) -> dict[str, int]:
    """All kinds, ip_address too, in what is mathematics only: GSM8K's questions and solutions."""
    rows = [row for name in (SOLUTIONS, TRAIN, "eval/gsm8k_test.jsonl") for row in files[name].rows]
    hits = sum(bool(personal_data.find(text_of(row.conversation))) for row in rows)
    return {"rows": len(rows), "hits": hits}


def print_files(result: dict[str, Any]) -> None:
    steps = [*STEPS, "decontaminate", "exact_duplicates", "near_duplicates"]
    header = ["file", "rows", "no conversation", *steps]
    rows = []
    for name, file in result["files"].items():
        taken = [sum(file["steps"][step]["taken"].values()) if step in file["steps"] else "" for step in steps]
        rows.append([name, file["read"], sum(file["no_conversation"].values()), *taken])
    print("Rows taken by each step alone (normalise and personal_data: changed)\n")
    table(header, rows)
    print("\nCPU microseconds a row\n")
    table(
        ["file", *steps],
        [
            [name, *(f"{file['steps'][s]['µs_per_row']:.0f}" if s in file["steps"] else "" for s in steps)]
            for name, file in result["files"].items()
        ],
    )
    print("\nReasons")
    for name, file in result["files"].items():
        reasons = {s: file["steps"][s]["taken"] for s in steps if s in file["steps"] and file["steps"][s]["taken"]}
        print(f"  {name}: {reasons | ({'reading': file['no_conversation']} if file['no_conversation'] else {})}")
    split = result["split_solutions"]
    print(f"  {split['read']} solutions split into reasoning and answer: broken_reasoning {split['taken']}")
    maths = result["personal_data_maths"]
    print(f"  personal data of all kinds in {maths['rows']} rows of GSM8K: {maths['hits']}")
    judge = result["judge"]
    print(
        f"\ncheck_answer and the last number, {judge['rows']} solutions with a gold number ({result['gold_found']} joined): "
        f"both say wrong {judge['both_wrong']}, only the step {judge['only_step']}, only the last number "
        f"{judge['only_judge']}; precision {judge['precision']:.4f}, recall {judge['recall']:.4f}"
    )
    for case in judge["differ"][:10]:
        print(f"  line {case['line']}: {case['step']} | …{case['end']!r}")


# --- decontamination ----------------------------------------------------------------------------------------------------

OVERLAPS = ((None, None), (8, 0.5))  # (n-gram, overlap) of the module; None stands for the recipe's default
ANY = (8, 13)  # words of which one shared n-gram is enough: Open-R1's script (after s1), GPT-3's filter

_NAMES = "Olivia Mateo Priya Wei Kofi Ingrid Tariq Yuki Amara Dmitri".split()
_FILLERS = "really also just now very then actually usually often simply".split()
_CAPITALISED = re.compile(r"\b[A-Z][a-z]+\b")


def other_number(number: str, rng: random.Random) -> str:
    return str(int(number) + rng.randint(1, 9))


class Changes:
    """Ways to change a prompt; each gives ``None`` where there is nothing to change, or nothing came of it."""

    def __init__(self, texts: Sequence[str]):
        self.texts = texts
        # A name is a capitalised word that these texts never write in lower case.
        self.lower = {word for text in texts for word in re.findall(r"\b[a-z]+\b", text)}

    def one_number(self, text: str, rng: random.Random) -> str | None:
        numbers = list(re.finditer(r"\d+", text))
        if not numbers:
            return None
        match = rng.choice(numbers)
        return text[: match.start()] + other_number(match[0], rng) + text[match.end() :]

    def all_numbers(self, text: str, rng: random.Random) -> str | None:
        return re.sub(r"\d+", lambda match: other_number(match[0], rng), text) if re.search(r"\d", text) else None

    def names(self, text: str, rng: random.Random) -> str | None:
        own = [word for word in dict.fromkeys(_CAPITALISED.findall(text)) if word.lower() not in self.lower]
        other = {word: rng.choice([name for name in _NAMES if name != word]) for word in own}
        return _CAPITALISED.sub(lambda match: other.get(match[0], match[0]), text) if own else None

    def names_and_numbers(self, text: str, rng: random.Random) -> str | None:
        renamed = self.names(text, rng)
        return renamed and self.all_numbers(renamed, rng)

    def inserted(self, text: str, rng: random.Random, count: int | None = None) -> str:
        parts = text.split(" ")
        for _ in range(count or max(1, len(parts) // 10)):
            parts.insert(rng.randrange(1, len(parts) + 1), rng.choice(_FILLERS))
        return " ".join(parts)

    def three_inserted(self, text: str, rng: random.Random) -> str:
        return self.inserted(text, rng, 3)

    def dropped(self, text: str, rng: random.Random) -> str:
        parts = text.split(" ")
        gone = set(rng.sample(range(len(parts)), max(1, round(len(parts) / 10))))
        return " ".join(part for place, part in enumerate(parts) if place not in gone)

    def replaced(self, text: str, rng: random.Random, one_in: int = 10) -> str:
        parts = text.split(" ")
        for place in rng.sample(range(len(parts)), max(1, round(len(parts) / one_in))):
            parts[place] = rng.choice(_FILLERS)
        return " ".join(parts)

    def fifth_replaced(self, text: str, rng: random.Random) -> str:
        return self.replaced(text, rng, 5)

    def sentence_dropped(self, text: str, rng: random.Random) -> str | None:
        sentences = re.split(r"(?<=[.?!])\s+", text)
        if len(sentences) < 3:
            return None
        del sentences[rng.randrange(len(sentences) - 1)]  # the last one asks
        return " ".join(sentences)

    def case_and_punctuation(self, text: str, rng: random.Random) -> str:
        return re.sub(r"[.,;](?!\d)", lambda _: rng.choice([".", " -", ";", ""]), text).upper()

    def markdown(self, text: str, rng: random.Random) -> str:
        bold = re.sub(r"\w+", lambda match: f"**{match[0]}**" if rng.random() < 0.15 else match[0], text)
        return f"### Problem\n\n> {bold}"

    def latex(self, text: str, rng: random.Random) -> str | None:
        wrap = rng.choice([r"$\textbf{%s}$", r"\(%s\)", r"$%s$", r"\mathrm{%s}"])
        return re.sub(r"\$?(\d+(?:\.\d+)?)", lambda match: wrap % match[1], text) if re.search(r"\d", text) else None

    def in_longer_turn(self, text: str, rng: random.Random) -> str:
        before, after = rng.sample(self.texts, 2)
        return f"{before}\n\nSolve this too. {text}\n\n{after}"

    def verbatim(self, text: str, rng: random.Random) -> str:
        return text

    def kinds(self) -> dict[str, Callable[[str, random.Random], str | None]]:
        return {
            "verbatim": self.verbatim,
            "in a longer turn": self.in_longer_turn,
            "case and punctuation": self.case_and_punctuation,
            "Markdown around it": self.markdown,
            "LaTeX around the numbers": self.latex,
            "one number changed": self.one_number,
            "all numbers changed": self.all_numbers,
            "names changed": self.names,
            "names and all numbers": self.names_and_numbers,
            "three words inserted": self.three_inserted,
            "a tenth of the words inserted": self.inserted,
            "a tenth of the words dropped": self.dropped,
            "a tenth of the words replaced": self.replaced,
            "a fifth of the words replaced": self.fifth_replaced,
            "a sentence dropped": self.sentence_dropped,
        }


class AnySharedGram:
    """The plain rule: a row that shares one n-gram of words with an item falls. A shorter item counts as one n-gram."""

    def __init__(self, prompts: Iterable[str], n: int):
        self.n = n
        self.grams = {gram for prompt in prompts for gram in self._grams(self._words(prompt), n)}
        self.lengths = {len(gram) for gram in self.grams}

    @staticmethod
    def _words(text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())

    @staticmethod
    def _grams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
        if 0 < len(words) < n:
            yield tuple(words)
        yield from zip(*(words[shift:] for shift in range(n)), strict=False)

    def __call__(self, conversation: Conversation) -> str:
        for message in conversation.messages:
            words = self._words(f"{message['content']} {message.get('reasoning_content') or ''}")
            for length in self.lengths:
                if not self.grams.isdisjoint(zip(*(words[shift:] for shift in range(length)), strict=False)):
                    return "contaminated"
        return ""


def decontamination(folder: Path, ngram: int | None = None, overlap: float | None = None) -> Decontamination:
    benchmarks = [{"name": name, "source": "local", "path": str(folder / path)} for name, path in BENCHMARKS.items()]
    given = {key: value for key, value in (("ngram", ngram), ("overlap", overlap)) if value}
    return Decontamination.model_validate({"benchmarks": benchmarks} | given)


def part_decontamination(folder: Path, files: dict[str, File], seed: int) -> dict[str, Any]:
    rules: dict[str, Callable[[Conversation], str]] = {}
    for ngram, overlap in OVERLAPS:
        settings = decontamination(folder, ngram, overlap)
        decontaminator = Decontaminator(load_benchmarks(settings), settings)
        name = f"{settings.ngram}, {settings.overlap}" + ("" if ngram else " (default)")
        rules[name] = partial(decontaminated, decontaminator)
    default = next(iter(rules))
    items = [(b.name, n, p) for b in decontaminator.benchmarks for n, p in zip(b.numbers, b.prompts, strict=True)]
    for n in ANY:
        rules[f"any {n}-gram"] = AnySharedGram((prompt for *_, prompt in items), n)

    changes = Changes([row.data["question"] for row in files[TRAIN].rows])
    result: dict[str, Any] = {"items": len(items), "rules": list(rules), "recall": {}, "by_benchmark": {}}
    for kind, change in changes.kinds().items():
        variants = []
        for name, number, prompt in items:
            text = change(prompt, random.Random(f"{seed} {kind} {name} {number}"))
            if text is not None and (kind == "verbatim" or text != prompt):
                messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "Done."}]
                variants.append((name, number, Conversation(messages, "non_thinking")))
        outcomes = {rule: [find(conversation) for *_, conversation in variants] for rule, find in rules.items()}
        result["recall"][kind] = {r: share(sum(map(bool, found)), len(variants)) for r, found in outcomes.items()}
        right = [
            f" {name} item {number}:" in outcome
            for (name, number, _), outcome in zip(variants, outcomes[default], strict=True)
        ]
        result["recall"][kind]["right item"] = share(sum(right), len(variants))
        result["by_benchmark"][kind] = {
            name: share(sum(bool(o) for o, v in zip(outcomes[default], variants, strict=True) if v[0] == name), n)
            for name, n in Counter(name for name, *_ in variants).items()
        }
    result["rows_taken"] = {}
    for file in files.values():
        if file.name in BENCHMARKS.values():
            continue
        hits = {rule: [(row.line, find(row.conversation)) for row in file.rows] for rule, find in rules.items()}
        taken = {rule: [f"{line} {outcome}" for line, outcome in found if outcome] for rule, found in hits.items()}
        result["rows_taken"][file.name] = {"rows": len(file.rows)} | taken
    return result


def print_decontamination(result: dict[str, Any]) -> None:
    rules = result["rules"]
    print(f"\nShare of changed benchmark prompts that are found ({result['items']} items), 95 % interval\n")
    rows = []
    for kind, found in result["recall"].items():
        rows.append([kind, found[rules[0]]["n"], *(shown(found[rule]) for rule in [*rules, "right item"])])
    table(["changed", "n", *rules, "default names the item"], rows)
    print("\nThe default by benchmark\n")
    names = list(BENCHMARKS)
    table(
        ["changed", *names],
        [
            [kind, *(f"{shown(found[b])} of {found[b]['n']}" if b in found else "" for b in names)]
            for kind, found in result["by_benchmark"].items()
        ],
    )
    print("\nRows of other files that fall\n")
    table(
        ["file", "rows", *rules],
        [[name, file["rows"], *(len(file[r]) for r in rules)] for name, file in result["rows_taken"].items()],
    )
    for name, file in result["rows_taken"].items():
        for hit in file[rules[0]]:
            print(f"  {name}:{hit}")


# --- personal data ------------------------------------------------------------------------------------------------------


def luhn_digit(digits: str) -> str:
    """The digit that makes ``digits`` + it pass Luhn's check."""
    doubled = [sum(divmod(2 * int(d), 10)) if place % 2 == 0 else int(d) for place, d in enumerate(reversed(digits))]
    return str(-sum(doubled) % 10)


def id_digit(digits: str) -> str:
    """ISO 7064 MOD 11-2, as it is defined: step by step, not by a table of weights."""
    value = 0
    for digit in digits:
        value = (value + int(digit)) * 2 % 11
    check = (12 - value) % 11
    return "X" if check == 10 else str(check)


def other_digit(digit: str, rng: random.Random) -> str:
    return rng.choice([d for d in string.digits if d != digit])


MIXED = "English word in Chinese"  # kinds that end so are only planted in Chinese sentences


class Maker:
    """Invented items. Each gives (what stands before, the item, what stands behind); only the item is to be found."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.chinese = False  # the sentence that the next item goes into

    def said(self, english: str, chinese: str) -> str:
        """One of the words (parted by |) that say what an item is, in the sentence's language."""
        return self.rng.choice((chinese if self.chinese else english).split("|"))

    def digits(self, count: int) -> str:
        return "".join(self.rng.choices(string.digits, k=count))

    def token(self, count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
        # One of each sort, as a key of that length practically always has.
        body = [*self.rng.choices(alphabet, k=count - 3), "a" if "a" in alphabet else "Q", "7", "K"]
        self.rng.shuffle(body)
        return "".join(body)

    def email(self) -> str:
        first = self.rng.choice("anna li.wei j_smith zhang.san+news mueller k-tanaka o.brien x99 sales".split())
        host = self.rng.choice("mail post corp uni-x my-firm qq163 web".split())
        end = self.rng.choice("com org net cn com.cn co.uk de fr jp edu io gov.in".split())
        return f"{first}{self.rng.choice(['', self.digits(2)])}@{host}.{end}"

    def mobile(self) -> str:
        start = self.rng.choice("133 135 136 138 139 150 151 158 159 176 177 180 186 187 188 189 199".split())
        return start + self.digits(7) + self.rng.choice("123456789")

    def mobile_written(self) -> str:
        number = self.mobile()
        gap = self.rng.choice(["", " ", "-"])
        return self.rng.choice(["", "", "+86 ", "+86"]) + gap.join((number[:3], number[3:7], number[7:]))

    def landline(self) -> str:
        area = self.rng.choice("010 021 020 0755 0571".split())
        return f"{area}-{self.rng.choice('68')}{self.rng.choice('123456789')}{self.digits(6)}"

    def american(self) -> str:
        area = self.rng.choice("212 415 312 617 206 305".split())
        middle, end = f"{self.rng.choice('23456789')}{self.rng.choice('023456789')}{self.digits(1)}", self.digits(4)
        return self.rng.choice([f"({area}) {middle}-{end}", f"{area}-{middle}-{end}", f"{area}.{middle}.{end}"])

    def abroad(self) -> str:
        return self.rng.choice(
            [
                f"+1 {self.rng.choice(['212', '415'])} {self.rng.choice('2345678')}{self.rng.choice('2345678')}"
                f"{self.digits(1)} {self.digits(4)}",
                f"+44 20 7{self.rng.choice('0123469')}{self.digits(2)} {self.digits(4)}",
                f"+33 6 {self.rng.choice('12456')}{self.digits(1)} {self.digits(2)} {self.digits(2)} {self.digits(2)}",
                f"+49 151 {self.rng.choice('12456')}{self.digits(7)}",
                f"+81 90-{self.rng.choice('123456789')}{self.digits(3)}-{self.digits(4)}",
            ]
        )

    def id_body(self) -> str:
        birth = date(1940, 1, 1) + timedelta(days=self.rng.randrange(70 * 365))
        region = self.rng.choice("110105 310101 320102 440305 500101 510104 610103 330106 420106 370202".split())
        return f"{region}{birth:%Y%m%d}{self.digits(3)}"

    def chinese_id(self) -> str:
        body = self.id_body()
        return body + id_digit(body)

    def card_body(self) -> str:
        prefix, length = self.rng.choice(
            [("4", 16), ("5" + self.rng.choice("12345"), 16), ("37", 15), ("62", 16), ("622848", 19), ("6011", 16)]
        )
        return prefix + self.digits(length - 1 - len(prefix))

    def card(self) -> str:
        body = self.card_body()
        return body + luhn_digit(body)

    def card_written(self) -> str:
        number, gap = self.card(), self.rng.choice(["", " ", "-"])
        if len(number) == 15:
            return gap.join((number[:4], number[4:10], number[10:]))
        return gap.join(number[i : i + 4] for i in range(0, len(number), 4))

    def key(self) -> str:
        upper = string.ascii_uppercase + string.digits
        return self.rng.choice(
            [
                f"sk-proj-{self.token(48)}",
                f"sk-{self.token(48)}",
                f"ghp_{self.token(36)}",
                f"github_pat_{self.token(22)}_{self.token(59)}",
                f"AKIA{self.token(16, upper)}",
                f"AIza{self.token(35)}",
                f"xoxb-{self.digits(12)}-{self.token(24)}",
                f"hf_{self.token(34)}",
                f"glpat-{self.token(20)}",
                f"sk_live_{self.token(24)}",
                f"LTAI{self.token(20)}",
            ]
        )

    def jwt(self) -> str:
        parts = [json.dumps({"alg": "HS256", "typ": "JWT"}), json.dumps({"sub": self.digits(10)}), self.token(32)]
        return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)

    def private_key(self) -> str:
        lines = "\n".join(self.token(64) for _ in range(6))
        return f"-----BEGIN PRIVATE KEY-----\n{lines}\n-----END PRIVATE KEY-----"

    def ip_address(self) -> str:
        return f"{self.rng.choice([8, 52, 93, 104, 203])}.{'.'.join(str(self.rng.randint(1, 254)) for _ in range(3))}"

    def valid(self) -> dict[str, tuple[str, Callable[[], tuple[str, str, str]]]]:
        """Name → (kind, maker)."""
        pick = self.rng.choice

        def bare(make: Callable[[], str]) -> Callable[[], tuple[str, str, str]]:
            return lambda: ("", make(), "")

        def old_id(words: str = "身份证号：|证件号码是") -> tuple[str, str, str]:
            body = self.id_body()
            return self.said("ID number: |identity card ", words), body[:6] + body[8:], ""

        def called_phone(words: str = "电话：|手机号是") -> tuple[str, str, str]:
            return self.said("phone: |call me at ", words), f"{pick('2345678')}{self.digits(pick([6, 7, 9]))}", ""

        return {
            "e-mail": ("email", bare(self.email)),
            "mobile, China": ("phone", bare(self.mobile_written)),
            "landline, China": ("phone", bare(self.landline)),
            "telephone, USA": ("phone", bare(self.american)),
            "telephone, +country": ("phone", bare(self.abroad)),
            "telephone, no known form, named": ("phone", called_phone),
            f"telephone, no known form, {MIXED}": ("phone", lambda: called_phone("phone: |tel ")),
            "identity number, 18": ("chinese_id", bare(self.chinese_id)),
            "identity number, 15, named": ("chinese_id", old_id),
            f"identity number, 15, {MIXED}": ("chinese_id", lambda: old_id("ID number: |identity card ")),
            "bank card": ("bank_card", bare(self.card_written)),
            "key with a known prefix": ("secret", bare(self.key)),
            "JSON web token": ("secret", bare(self.jwt)),
            "private key": ("secret", bare(self.private_key)),
            "password, named": ("secret", lambda: (self.said("password: |pwd=", "密码是|口令："), self.token(12), "")),
            "key, named": ("secret", lambda: (self.said("api_key = |token: ", "密钥：|token: "), self.token(32), "")),
            "password in a URL": ("secret", lambda: ("postgres://admin:", self.token(12), "@db.internal/app")),
            "IPv4 (off by default)": ("ip_address", bare(self.ip_address)),
        }

    def invalid(self) -> dict[str, Callable[[], tuple[str, str, str]]]:
        pick = self.rng.choice

        def wrong_id() -> tuple[str, str, str]:
            number = self.chinese_id()
            return "", number[:17] + other_digit(number[17], self.rng), ""

        def impossible_date() -> tuple[str, str, str]:
            body = self.id_body()
            body = body[:10] + pick(["1301", "0230", "0431", "0000"]) + body[14:]
            return "", body + id_digit(body), ""

        def wrong_card() -> tuple[str, str, str]:
            number = self.card()
            return "", number[:-1] + other_digit(number[-1], self.rng), ""

        def no_issuer() -> tuple[str, str, str]:
            body = pick("01789") + self.digits(14)
            return "", body + luhn_digit(body), ""

        def in_maths() -> tuple[str, str, str]:
            number, other = pick([self.mobile, self.card])(), self.rng.randint(2, 99)
            total = int(number) + other
            return pick(
                [
                    ("", number, f" + {other} = {total}"),
                    ("", number, f" / {other}"),
                    (f"{other} × ", number, ""),
                    ("x = ", number, ""),
                    ("$", number, ""),
                    ("\\boxed{", number, "}"),
                    (f"{other} + {total} = ", number, ""),
                ]
            )

        def called_otherwise(words: str = "订单号：|快递单号是|流水号") -> tuple[str, str, str]:
            return self.said("order number |invoice no. |tracking number: ", words), self.mobile(), ""

        def plain_digits() -> tuple[str, str, str]:
            stamp = self.rng.randint(1_600_000_000, 1_790_000_000)
            moment = f"20{self.rng.randint(10, 26)}-0{pick('123456789')}-1{self.digits(1)} 1{self.digits(1)}:0{self.digits(1)}"
            return (
                "",
                pick([str(stamp), f"{stamp}000", moment, f"0.{self.digits(16)}", f"{int('1' + self.digits(12)):,}"]),
                "",
            )

        def handles() -> tuple[str, str, str]:
            text = pick(
                "x@self.weight a@b.mean left-pad@1.3.0 @property git@github.com:owner/repo.git user@host me@home".split()
            )
            return "", text, ""

        def placeholders() -> tuple[str, str, str]:
            return pick(
                [
                    ("password: ", "********", ""),
                    ("api_key = ", "YOUR_API_KEY_HERE_123", ""),
                    ("api_key = ", "os.environ['API_KEY_1']", ""),
                    ("token: ", "<your-token-1>", ""),
                    ("", "sk-xxxxxxxxxxxxxxxxxxxxxxxx", ""),
                    ("password = ", "get_password(user1)", ""),
                ]
            )

        def hashes() -> tuple[str, str, str]:
            hexadecimal = "".join(self.rng.choices("0123456789abcdef", k=40))
            parts = (hexadecimal[:8], hexadecimal[8:12], hexadecimal[12:16], hexadecimal[16:20], hexadecimal[20:32])
            return "", pick([hexadecimal, "-".join(parts)]), ""

        return {
            "identity number, wrong check digit": wrong_id,
            "identity number, impossible date": impossible_date,
            "bank card, wrong check digit": wrong_card,
            "16 digits, Luhn holds, no issuer": no_issuer,
            "mobile, no such prefix": lambda: ("", pick(["110", "120", "123", "128"]) + self.digits(8), ""),
            "mobile or card number in mathematics": in_maths,
            "mobile number called an order": called_otherwise,
            f"mobile number called an order, {MIXED}": lambda: called_otherwise("order number |invoice no. "),
            "time stamps, dates, decimals": plain_digits,
            "@ in code and handles": handles,
            "placeholders for secrets": placeholders,
            "hashes and UUIDs": hashes,
        }


_PLAIN = re.compile(r"[A-Za-z' ,-]+[.!?]|[一-鿿，、]+[。！？]")


def sentences(files: Iterable[File]) -> list[str]:
    """Real sentences of plain words, 20 to 200 characters, sorted out of the answers."""
    found: dict[str, None] = {}
    for file in files:
        for row in file.rows:
            for part in re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n", row.conversation.messages[-1]["content"]):
                if 20 <= len(part) <= 200 and _PLAIN.fullmatch(part):
                    found[part] = None
    return list(found)


def plant(sentence: str, item: tuple[str, str, str], rng: random.Random) -> tuple[str, int, int]:
    """The item between two words (two characters of a Chinese sentence); the text, and where the item stands in it."""
    before, value, behind = item
    if sentence.isascii():
        place, gap = rng.choice([m.end() for m in re.finditer(r"(?<=[a-z]) (?=[a-z])", sentence)] or [0]), " "
    else:
        place, gap = rng.choice([m.start() for m in re.finditer(r"(?<=[一-鿿])(?=[一-鿿])", sentence)]), ""
    head = sentence[:place] + before
    return f"{head}{value}{behind}{gap}{sentence[place:]}", len(head), len(head) + len(value)


def part_personal_data(files: dict[str, File], number: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    default = tuple(PersonalDataFilter().kinds)
    hosts = [
        [s for s in sentences([files[name]]) if not personal_data.find(s)]
        for name in ("sft/alpaca_en_demo.json", "sft/alpaca_zh_demo.json")
    ]
    maker = Maker(rng)
    result: dict[str, Any] = {
        "sentences": [len(h) for h in hosts],
        "valid": {},
        "invalid": {},
        "missed": {},
        "false": {},
    }
    for name, (kind, make) in maker.valid().items():
        hits, other, missed = 0, 0, []
        for turn in range(number):
            maker.chinese = bool(turn % 2) or name.endswith(MIXED)
            text, start, end = plant(rng.choice(hosts[maker.chinese]), make(), rng)
            spans = personal_data.find(text, personal_data.KINDS if kind not in default else default)
            whole = any(s <= start and end <= e for _, s, e in spans)
            hits += whole
            other += whole and (kind, start, end) not in spans
            if not whole:
                missed.append(text[max(0, start - 20) : end + 20])
        result["valid"][name] = share(hits, number) | {"other_kind_or_span": other}
        result["missed"][name] = missed[:10]
    for name, make in maker.invalid().items():
        hits, false = 0, []
        for turn in range(number):
            maker.chinese = bool(turn % 2) or name.endswith(MIXED)
            text, start, end = plant(rng.choice(hosts[maker.chinese]), make(), rng)
            spans = [span for span in personal_data.find(text, default) if span[1] < end and start < span[2]]
            hits += bool(spans)
            if spans:
                false.append(f"{spans[0][0]}: {text[max(0, start - 20) : end + 20]}")
        result["invalid"][name] = share(hits, number)
        result["false"][name] = false[:10]
    return result


def print_personal_data(result: dict[str, Any]) -> None:
    english, chinese = result["sentences"]
    print(f"\nPersonal data planted in real sentences ({english} English, {chinese} Chinese)\n")
    table(
        ["valid", "n", "masked whole", "other kind or span"],
        [[name, r["n"], shown(r), r["other_kind_or_span"]] for name, r in result["valid"].items()],
    )
    print()
    table(["invalid", "n", "falsely found"], [[name, r["n"], shown(r)] for name, r in result["invalid"].items()])
    for title in ("missed", "false"):
        for name, examples in result[title].items():
            for example in examples[:3]:
                print(f"  {title}: {name}: {example!r}")


# --- main ---------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--shared", type=Path, required=True, help="folder with sft/, reason/, tools/, pref/, eval/")
    parser.add_argument("--items", type=int, default=1_000, help="planted items of personal data, each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the numbers, and the rows behind them, to this JSON file")
    arguments = parser.parse_args()
    folder: Path = arguments.shared
    missing = [name for name in dict.fromkeys((*FILES, *BENCHMARKS.values())) if not (folder / name).is_file()]
    if missing:
        parser.error(
            f"{folder} lacks {', '.join(missing)}. Give the folder that holds sft/, reason/, tools/, pref/, eval/."
        )

    began = time.perf_counter()
    files = {name: read_file(folder, name) for name in FILES}
    settings = decontamination(folder)
    report: dict[str, Any] = {"seed": arguments.seed}
    report["files"] = part_files(files, Decontaminator(load_benchmarks(settings), settings))
    print_files(report["files"])
    report["decontamination"] = part_decontamination(folder, files, arguments.seed)
    print_decontamination(report["decontamination"])
    report["personal_data"] = part_personal_data(files, arguments.items, arguments.seed)
    print_personal_data(report["personal_data"])
    report["seconds"] = time.perf_counter() - began
    print(f"\n{report['seconds']:.0f} s")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
