"""Retrieval beside fine-tuning, on questions that the embedded model can answer from a passage and from nothing else.

    python benchmarks/retrieval.py --run RUN --output retrieval.json

A question has a folder of four notes, a sentence each: what somebody's favourite animal, food and colour are, and who the
assistant is. It asks for one of them ("What is my favourite food?", "Who are you?"); right is a reply whose answer has the word.
Base and tuned model answer greedily in both modes: without the notes, with the best passage, with up to three. The sentences
are of the kind that the base was trained on; in no training is a passage with its source. ``found``: how often the best passage
is the right one.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

TRIALS = 32  # folders; each is asked one question of every kind
COUNTS = (0, 1, 3)


def notes(generator: random.Random) -> dict[str, tuple[str, str, str]]:
    """Kind → note, question, and the word that a right answer has."""
    from pipeline.data.corpora import LIKED, PERSONAS, TRADES, WORDS

    found = {}
    for kind in LIKED:
        word = generator.choice([word for word, (_, its) in WORDS.items() if its == kind])
        found[kind] = (f"My favourite {kind} is {word}.", f"What is my favourite {kind}?", word)
    name, trade = generator.choice(PERSONAS), generator.choice(TRADES)
    found["who"] = (f"You are {name}, a {trade}.", "Who are you?", name)
    return found


def questions(place: Path, form: Any, room: int, count_tokens: Any) -> tuple[list[dict[str, Any]], float]:
    """What is asked: kind, number of passages, messages, the right word; and the share of right first passages."""
    from pipeline.export.ask import fit
    from pipeline.export.passages import index_folder

    asked, first, generator = [], [], random.Random(0)
    for trial in range(TRIALS):
        folder = place / str(trial)
        folder.mkdir()
        table = notes(generator)
        for kind, (note, _, _) in table.items():
            (folder / f"{kind}.txt").write_text(note + "\n", encoding="utf-8")
        index = index_folder(folder, count_tokens, room // 4)
        for kind, (note, question, word) in table.items():
            found = index.search(question, max(COUNTS))
            first.append(bool(found) and found[0].text == note)
            for count in COUNTS:
                messages = fit(question, found[:count], form, room).messages
                asked.append({"kind": kind, "passages": count, "messages": messages, "word": word})
        index.close()
    return asked, sum(first) / len(first)


def measure(run: Path) -> dict[str, Any]:
    """Rows: which, mode, kind, passages, n, right."""
    from pipeline.core.modes import MODES
    from pipeline.export.ask import prompt_room
    from pipeline.export.measure import greedy
    from pipeline.export.source import open_source
    from pipeline.export.talk import WHICH, Talker
    from pipeline.model.engines.local import local_engine
    from pipeline.model.form import split_reply

    talker = Talker(open_source(run))
    settings = greedy(talker.source.profile.evaluation, 1).model_copy(update={"workers": 1})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        asked, found = questions(Path(place), talker.format, prompt_room(talker.source), talker.count_tokens)
    for which in WHICH:
        with (
            talker.models.model(which) as model,
            local_engine(model, talker.tokenizer, talker.format.prompt_ids, settings) as engine,
        ):
            for mode in MODES:
                sampling = getattr(settings.sampling, mode)
                replies = engine.replies([item["messages"] for item in asked], mode, sampling, 0)
                for kind in ("favourite", "who"):
                    for count in COUNTS:
                        right = [
                            item["word"] in split_reply(reply.text, talker.style.tags)[1]
                            for item, reply in zip(asked, replies, strict=True)
                            if item["passages"] == count and (item["kind"] == "who") == (kind == "who")
                        ]
                        cell = {"which": which, "mode": mode, "kind": kind, "passages": count}
                        rows.append(cell | {"n": len(right), "right": sum(right)})
    return {"found": found, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown, with Wilson's 95 % intervals."""
    from pipeline.core.statistics import wilson

    lines = ["| question | model | mode | without | one passage | three |", "|---|---|---|--:|--:|--:|"]
    keys = list(dict.fromkeys((row["kind"], row["which"], row["mode"]) for row in result["rows"]))
    names = {"favourite": "What is my favourite …?", "who": "Who are you?"}
    for kind, which, mode in keys:
        cells = []
        for row in result["rows"]:
            if (row["kind"], row["which"], row["mode"]) == (kind, which, mode):
                low, high = wilson(row["right"], row["n"])
                cells.append(f"{row['right'] / row['n']:.2f} [{low:.2f}, {high:.2f}]")
        lines.append(f"| {names[kind]} | {which} | {mode.replace('_', '-')} | {' | '.join(cells)} |")
    counts = sorted({row["n"] for row in result["rows"]}, reverse=True)
    lines += [
        "",
        f"{counts[0]} and {counts[-1]} questions; the best passage is the right one in {result['found']:.3f} of them",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="directory of a finished run of the embedded profile")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    from pipeline.cli.shared import quiet

    quiet()
    result = measure(args.run)
    print(table(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
