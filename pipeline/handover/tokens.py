"""Tokens that any other program made, beside ours: the audit of a framework that this project does not run.

In: a file of JSON lines, one a row of the audit and in its order: ``{"input_ids": [...], "labels": [...]}``, other keys are not
looked at. A label is −100 (no loss) or the id of its own token, as transformers' models take them: not shifted.
Out: ``Tokens``, or an error that names the line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.data.chat_format import IGNORE_INDEX
from pipeline.handover.compare import Tokens
from pipeline.handover.frameworks import Form
from pipeline.handover.rows import AuditRow


def read_tokens(path: Path, vocabulary: int) -> list[Tokens]:
    """The rows of a file; empty lines are passed over.

    Args:
        vocabulary: how many tokens the model's tokenizer has.

    Raises:
        UserError: the file cannot be read, or a line has another form; says which and what is wrong with it.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"--tokens {path} cannot be read: {error.strerror}.") from error
    return [_row(f"{path}:{n}", line, vocabulary) for n, line in enumerate(lines, 1) if line.strip()]


def _row(place: str, line: bytes, vocabulary: int) -> Tokens:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not valid JSON ({error}). A line is one JSON object.") from error
    if not isinstance(row, dict) or not {"input_ids", "labels"} <= row.keys():
        raise UserError(f'{place} needs the form {{"input_ids": [...], "labels": [...]}}.')
    ids, labels = (_numbers(place, name, row[name]) for name in ("input_ids", "labels"))
    if not ids or len(ids) != len(labels):
        raise UserError(f"{place} has {len(ids)} input_ids and {len(labels)} labels; it needs a label for each token.")
    for i, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if not 0 <= token < vocabulary:
            raise UserError(
                f"{place}: input_ids[{i}] is {token}; the model's tokenizer has the ids 0 to {vocabulary - 1}. Were they made by "
                "another tokenizer?"
            )
        if label not in (IGNORE_INDEX, token):
            raise UserError(
                f"{place}: labels[{i}] is {label}, and input_ids[{i}] is {token}. A label is {IGNORE_INDEX} (no loss) or the id "
                "of its own token: labels that are shifted by one have to be shifted back."
            )
    return Tokens(ids, labels)


def _numbers(place: str, name: str, value: Any) -> list[int]:
    if not isinstance(value, list) or any(type(entry) is not int for entry in value):
        raise UserError(f"{place}: {name} has to be a list of whole numbers.")
    return value


def form_of(path: Path, found: Sequence[Tokens], rows: Mapping[str, Sequence[AuditRow]]) -> Form:
    """Whether a line is a conversation or one answer, by how many there are.

    Args:
        rows: the audit's, in both forms.

    Raises:
        UserError: it is neither.
    """
    forms: tuple[Form, ...] = ("conversations", "answers")
    for form in forms:
        if len(found) == len(rows[form]):
            return form
    raise UserError(
        f"{path} has {len(found)} rows. The audit has {len(rows['conversations'])} conversations, or, with one answer a row, "
        f"{len(rows['answers'])}: a line for each is needed, in their order, as the rows*.jsonl of --output-dir have them."
    )
