"""The cleaning steps that need one row only: each passes it, changes it, or leaves it out with a reason.

In: a conversation, the raw row it came from, and a recipe's ``CleanSettings``. Out: the conversation (a changed copy where a
step changed something) with what was changed, or ``Rejected`` with the reason and the step. Steps that compare rows with each
other (duplicates, class balance) stand elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.data.cleaning import personal_data
from pipeline.data.cleaning.bounds import step_length, step_score
from pipeline.data.cleaning.languages import check_languages, step_languages
from pipeline.data.cleaning.masking import step_personal_data
from pipeline.data.cleaning.normalise import step_normalise
from pipeline.data.cleaning.reasoning import step_broken_reasoning, step_check_answer
from pipeline.data.cleaning.refusals import step_refusals
from pipeline.data.cleaning.repetition import step_repetition
from pipeline.data.cleaning.step import Result
from pipeline.data.conversations import Conversation, Rejected
from pipeline.settings import CleanSettings

STEPS: dict[str, Callable[[Conversation, dict[str, Any], Any], Result]] = {  # in this order
    "normalise": step_normalise,
    "score": step_score,
    "broken_reasoning": step_broken_reasoning,
    "check_answer": step_check_answer,
    "length": step_length,
    "repetition": step_repetition,
    "languages": step_languages,
    "refusals": step_refusals,
    "personal_data": step_personal_data,
}


@dataclass
class Change:
    """What a step changed in a row that it kept: a short excerpt, before → after. Masked data never stands in it."""

    step: str
    example: str


class Cleaner:
    """The steps that a recipe names, ready to be called row by row, in this process or in others (it can be pickled).

    Raises:
        UserError: a language that is not known.
    """

    def __init__(self, settings: CleanSettings):
        self.steps = [(step, setting) for step in STEPS if (setting := getattr(settings, step)) not in (None, False)]
        if settings.languages is not None:
            check_languages(settings.languages)
        self._kinds = tuple(settings.personal_data.kinds) if settings.personal_data else ()

    def __call__(self, conversation: Conversation, row: dict[str, Any]) -> tuple[Conversation, list[Change]]:
        """The conversation after all steps, and what they changed. The one given is never altered.

        Raises:
            Rejected: a step leaves the row out; its ``step`` says which.
        """
        changes: list[Change] = []
        for step, setting in self.steps:
            try:
                result = STEPS[step](conversation, row, setting)
            except Rejected as rejected:
                # A reason quotes the row; what would have been masked must not stand there.
                detail = personal_data.mask(rejected.detail, self._kinds)[0] if self._kinds else rejected.detail
                raise Rejected(rejected.reason, detail[:200], step=step) from None
            if result is not None:
                conversation, example = result
                changes.append(Change(step, example))
        return conversation, changes
