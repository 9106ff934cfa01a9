"""Precision and recall of each cleaning step on labelled rows of this project (``labelled_rows``), in both languages.

    python benchmarks/cleaning_quality.py --output docs/results/cleaning_quality.json

Precision: of the rows that a step takes (or changes), the part that it should. Recall: of those that it should, the part that it
takes. Each step runs alone, with the defaults of a recipe. ``score``, ``length``, ``exact_duplicates`` and ``class_balance``
compare and judge nothing, so they have no table. The rows were written before the steps were last changed, and the steps were
changed after their errors were seen: on rows of others they may do worse.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from labelled_rows import STEPS, Labelled  # noqa: E402

from pipeline.data.cleaning.clean import Cleaner  # noqa: E402
from pipeline.data.cleaning.decontaminate import Benchmark, Decontaminator  # noqa: E402
from pipeline.data.cleaning.duplicates import Signer, alike, text_of  # noqa: E402
from pipeline.data.conversations import Conversation, Message, Rejected  # noqa: E402
from pipeline.settings import CleanSettings, Decontamination, NearDuplicates  # noqa: E402

SETTINGS: dict[str, Any] = {
    "normalise": True,
    "broken_reasoning": True,
    "check_answer": True,
    "repetition": {},
    "languages": ["en", "zh"],
    "refusals": True,
    "personal_data": {"kinds": ["email", "phone", "chinese_id", "bank_card", "secret", "ip_address"]},
}


def conversation(question: str, answer: str, reasoning: str | None = None) -> Conversation:
    reply: Message = {"role": "assistant", "content": answer}
    if reasoning is not None:
        reply["reasoning_content"] = reasoning
    messages: list[Message] = [{"role": "user", "content": question}, reply]
    return Conversation(messages, "non_thinking" if reasoning is None else "thinking")


def takes(step: str, row: Labelled) -> bool:
    """Whether the step leaves the row out or changes it."""
    given = conversation(row.question, row.answer, row.reasoning)
    if step == "near_duplicates":
        assert row.other is not None
        settings = NearDuplicates()
        signatures = Signer(settings)([text_of(conversation(*row.other)), text_of(given)]).view(np.uint8)
        return bool(alike(signatures[1:], signatures[:1], settings)[1][0])
    try:
        if step == "decontaminate":
            assert row.other is not None
            entry = {"name": "items", "source": "local", "path": "-"}
            Decontaminator(
                [Benchmark("items", [row.other[0]], [1])], Decontamination.model_validate({"benchmarks": [entry]})
            )(given)
            return False
        cleaner = Cleaner(CleanSettings.model_validate({step: SETTINGS[step]}))
        return bool(cleaner(given, {"expected_answer": row.expected})[1])
    except Rejected:
        return True


def measure(step: str) -> dict[str, Any]:
    """Counts, precision, recall, and the rows where step and label differ."""
    rows = STEPS[step]()
    taken = [takes(step, row) for row in rows]
    right = sum(t and row.take for t, row in zip(taken, rows, strict=True))
    wanted, total = sum(row.take for row in rows), sum(taken)
    wrong = [
        {"should_take": row.take, "question": row.question[:120], "answer": row.answer[:120]}
        for t, row in zip(taken, rows, strict=True)
        if t != row.take
    ]
    return {
        "rows": len(rows),
        "to_take": wanted,
        "taken": total,
        "precision": round(right / total, 3),
        "recall": round(right / wanted, 3),
        "wrong": wrong,
    }


def table(result: dict[str, Any]) -> str:
    """Markdown for a result of this script."""
    lines = ["| step | rows | to take | precision | recall |", "|---|--:|--:|--:|--:|"]
    for step, found in result.items():
        counts = f"{found['rows']} | {found['to_take']}"
        lines.append(f"| `{step}` | {counts} | {found['precision']:.3f} | {found['recall']:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument(
        "--output", type=Path, help="write the numbers, and the rows that are judged wrongly, to this file"
    )
    arguments = parser.parse_args()
    result = {step: measure(step) for step in STEPS}
    print(table(result))
    for step, found in result.items():
        for row in found["wrong"][:5]:
            print(
                f"  {step}: {'missed' if row['should_take'] else 'false'}: {row['question']!r} {row['answer']!r}",
                file=sys.stderr,
            )
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
