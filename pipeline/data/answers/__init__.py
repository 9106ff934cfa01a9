"""The answer in a text, and whether two answers are the same: for cleaning, evaluation and rewards."""

from pipeline.data.answers.compare import (
    as_number,
    canonical_answer,
    expected_answer,
    is_number,
    judge_answer,
    same_answer,
    score_answer,
)
from pipeline.data.answers.extract import LONGEST_ANSWER, TAIL, boxed, final_answers, numbers

__all__ = [
    "LONGEST_ANSWER",
    "TAIL",
    "as_number",
    "boxed",
    "canonical_answer",
    "expected_answer",
    "final_answers",
    "is_number",
    "judge_answer",
    "numbers",
    "same_answer",
    "score_answer",
]
