"""Rows that are no material for a text model, or are examples of what not to say.

In: a row. Out: nothing, or ``Rejected``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipeline.data.formats import LABELS, MEDIA, Rejected, Row, is_empty, is_missing
from pipeline.data.rows.reasoning import literal_spans

_MEDIA, _LABELS = frozenset(MEDIA), frozenset(LABELS)
_PLACEHOLDER = re.compile(
    r"<(?:image|video|audio)(?:[_ ]?\d{1,2})?>|<\|(?:image|video|audio|vision)\w{0,8}\|>|<(?:ImageHere|img)></?(?:ImageHere|img)>"
    r"|<ImageHere>|\[IMG\]"
)


def require_text(row: Row, messages: Sequence[dict[str, Any]]) -> None:
    """Check that nothing but text is needed to understand the messages.

    Raises:
        Rejected: ``needs_media``, for a column of images, videos or sounds, or a placeholder of one in what the user says.
    """
    for name in () if _MEDIA.isdisjoint(row) else MEDIA:
        value = row.get(name)
        if not is_empty(value) and not (isinstance(value, list) and all(map(is_empty, value))):
            raise Rejected("needs_media", f"column {name!r} holds {str(value)[:60]!r}; a text model cannot see it")
    for index, message in enumerate(messages):
        text = message["content"]
        if message["role"] not in ("user", "system", "tool") or ("<" not in text and "[" not in text):
            continue
        for found in _PLACEHOLDER.finditer(text):
            if not any(start <= found.start() < end for start, end in literal_spans(text)):
                raise Rejected(
                    "needs_media", f"message {index} ({message['role']}) has {found[0]} in it: {text[:80]!r}"
                )


def require_good(row: Row, answer: Any) -> None:
    """Check that the row's label, if it has one, does not call the answer a bad one: unpaired preference data (KTO).

    Raises:
        Rejected: ``labelled_bad``. Only false counts, not 0 and not the name of a class; nor what the answer itself says.
    """
    for name in () if _LABELS.isdisjoint(row) else LABELS:
        value = row.get(name)
        if is_missing(value) or not (value is False or (isinstance(value, str) and value.strip().lower() == "false")):
            continue
        if isinstance(value, str) and isinstance(answer, str) and answer.strip().lower().rstrip(".") == "false":
            continue  # a label that is what the model is to say
        raise Rejected(
            "labelled_bad",
            f"{name} is false: an example of what not to say; it is for preference tuning",
        )
