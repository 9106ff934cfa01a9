"""Whether two answers are the same.

Numbers, amounts, sets, letters of a choice and plain words are compared here, exactly; the rest is math-verify's.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pipeline.data.answers.extract import LONGEST_ANSWER, NUMBER, TAIL, boxed, final_answers, numbers
from pipeline.data.answers.members import members, same_members
from pipeline.data.answers.quantities import quantity, same_quantity

_PLAIN_NUMBER = re.compile(
    rf"[$€£¥]?({NUMBER})(?:/(\d+))?\s*(?:\^?°|%|[A-Za-z一-鿿 ]{{0,24}})?"
)  # a unit may follow, "5 apples"
_BARE_NUMBER = re.compile(NUMBER)
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(\d+)\}")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_LETTER = re.compile(
    r"(?i)(?:option|choice|answer|选项|选)?\s*[(（]?([a-j])[)）]?"
    r"(?:\s*[.):：,，、].*| \d.*| (?:because|since) .*|项|选项|正确|因为.*)?",
    re.DOTALL,
)
_LETTERS = re.compile(r"[(（]?[A-J][)）]?(?:(?:\s*(?:[,，、;&]|and|和)\s*|\s*)[(（]?[A-J][)）]?)+")
_TERM = re.compile(r"-?\d+(?:\.\d+)?[tdxyznkpqr]")
_NAMED = re.compile(r"\s*\$?\s*([A-Za-z](?:_\{?\w+\}?)?)\s*=(?!=)\s*(?=\S)")
# What sympy would expand until time or memory ends is never given to it: large powers, factorials and binomials, towers.
_TOO_LARGE = re.compile(
    r"(?:\^|\*\*)\s*[{(]?\s*-?\d{4,}|\)\s*(?:\^|\*\*)\s*[{(]?\s*\d{3,}"
    r"|\d\s*(?:\^|\*\*)\s*[{(]?\s*\d+\s*[)}]?\s*(?:\^|\*\*)|(?:\^\s*\{[^{}]*){4}|\^\s*\{?\s*\\binom"
    r"|\d{3,}\s*!|[!)]\s*!|binom\s*\{\s*\d{4,}"
)
_SECONDS = 5  # math-verify's own limit


def canonical_answer(answer: str) -> str:
    """An answer without the things that do not matter: wrapping, spaces, case, a full stop."""
    text = answer.strip().replace("−", "-")
    for mark in ("\\left", "\\right", "\\,", "\\!", "\\;", "\\:", "\\ ", "~", "$", "\\(", "\\)", "**"):
        text = text.replace(mark, "")
    text = text.replace("{,}", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\%", "%")
    while (unwrapped := _WRAPPED.sub(r" \1 ", text)) != text:
        text = unwrapped
    return " ".join(text.split()).rstrip(" .。\"'“”").lstrip(" 。\"'“”").casefold()


def as_number(canonical: str) -> Fraction | None:
    """The exact value of a plain number or fraction, units and a percent sign aside; ``None`` also where it is too long."""
    if len(canonical) > LONGEST_ANSWER:
        return None
    if match := _FRACTION.fullmatch(canonical):
        sign, top, bottom = match.groups()
        return Fraction(int(sign + "1") * int(top), int(bottom)) if int(bottom) else None
    match = _PLAIN_NUMBER.fullmatch(canonical)
    if not match or not any(character.isdigit() for character in match[1]):
        return None
    bottom = int(match[2] or 1)
    return Fraction(match[1].replace(",", "").replace("−", "-")) / bottom if bottom else None


def score_answer(kind: str, answer: str, reference: str) -> float:
    """1.0 for a right answer, else 0.0; the rule of the embedded benchmarks.

    Args:
        kind: ``text``: equal to the reference once runs of white space count as one blank; ``number``: the number in
            the last ``\\boxed{…}``, or, without one, the last number of the answer, equals the reference.
        answer: what follows ``</think>``.
    """
    if kind == "text":
        return float(bool(answer.strip()) and answer.split() == reference.split())
    found, expected = numbers((boxed(answer) or [answer])[-1])[-1:], numbers(reference)[-1:]
    return float(bool(found) and as_number(canonical_answer(found[0])) == as_number(canonical_answer(expected[0])))


def expected_answer(text: str) -> str:
    r"""The answer alone of what a column or a benchmark expects: what stands in its last ``\boxed{}``, else all of it."""
    text = text[-TAIL:]
    return (boxed(text) or [text.strip()])[-1]


def is_number(answer: str) -> bool:
    """Whether an answer is a number, with or without a unit."""
    return len(answer) <= LONGEST_ANSWER and (
        as_number(canonical_answer(answer)) is not None or quantity(answer) is not None
    )


def judge_answer(expected: str, text: str) -> tuple[bool | None, str]:
    """Whether a text (without its reasoning) comes to the answer that is expected, and the answer that was found in it.

    ``None`` where that cannot be said; "" where the text has no final answer, which counts as wrong.
    """
    answers = final_answers(text, is_number(expected))
    verdicts = [same_answer(expected, answer) for answer in answers]
    right = True if True in verdicts else None if None in verdicts else False
    return right, answers[0] if answers else ""


def same_answer(expected: str, given: str) -> bool | None:
    """Whether two answers are the same; ``None`` where that cannot be said (too long, or too large a number).

    A unit that is missing counts as meant (5 and 5 cm), another unit does not (5 g and 5 kg); 500 cm are 5 m. A number is
    never the same as its rounded value, nor a list in one order as an ordered pair in another.
    """
    if len(expected) > LONGEST_ANSWER or len(given) > LONGEST_ANSWER:
        return True if canonical_answer(expected) == canonical_answer(given) else None
    if _BARE_NUMBER.fullmatch(expected) and _BARE_NUMBER.fullmatch(given):  # nearly all of school mathematics
        number_a, number_b = as_number(canonical_answer(expected)), as_number(canonical_answer(given))
        if number_a is not None and number_b is not None:
            return number_a == number_b
    name_a, name_b = _NAMED.match(expected), _NAMED.match(given)
    if name_a and name_b and name_a[1] != name_b[1] and is_number(expected[name_a.end() :]):
        return False  # x = 5 and y = 5
    amount_a = quantity(expected[name_a.end() if name_a else 0 :])
    amount_b = quantity(given[name_b.end() if name_b else 0 :])
    if amount_a and amount_b and (same := same_quantity(amount_a, amount_b)) is not None:
        return same
    a, b = canonical_answer(expected), canonical_answer(given)
    if _joined(a) == _joined(b):
        return True
    if (letters := _letters(expected)) and (others := _letters(given)):
        return letters == others
    list_a, list_b = members(expected), members(given)
    if list_a and list_b:
        return same_members(list_a, list_b, same_answer)
    if (list_a and amount_b) or (list_b and amount_a):
        items = (list_a or list_b).items  # type: ignore[union-attr]
        return len(items) == 1 and same_answer(items[0], given if list_a else expected)
    if (amount_a and _TERM.fullmatch(b)) or (amount_b and _TERM.fullmatch(a)):
        return False  # 3 and 3t
    words = re.compile(r"[^\W\d_]{2,}(?:[ ,'’-]+[^\W\d_]+)*")
    if words.fullmatch(a) and words.fullmatch(b):
        return False
    if _TOO_LARGE.search(a) or _TOO_LARGE.search(b):
        return None
    return _math_verify(expected, given)


def _joined(canonical: str) -> str:
    """Without spaces, but for those between digits: 2 1/2 is not 21/2."""
    return re.sub(r"(?<!\d) +| +(?!\d)", "", canonical)


def _letters(answer: str) -> frozenset[str]:
    """The letters of a choice that an answer names: A and C for "A, C" or "AC", B for "Option B" or "(B) 12"."""
    text = canonical_answer(answer)
    # Capitals tell the letters of a choice from words and products; canonical texts have none.
    capitals = " ".join(_WRAPPED.sub(r" \1 ", answer).replace("$", "").split()).strip(" .。*")
    if _LETTERS.fullmatch(capitals):
        found = re.findall(r"[A-J](?![a-z])", capitals)
        return frozenset(found) if len(set(found)) == len(found) else frozenset()
    if match := _LETTER.fullmatch(text):
        return frozenset(match[1].upper())
    return frozenset()


def _irrational(parsed: list[Any]) -> bool:
    """Whether what math-verify read is a number that no decimal equals."""
    return any(getattr(value, "is_irrational", None) is True for value in parsed)


@lru_cache(maxsize=4096)
def _math_verify(expected: str, given: str) -> bool | None:
    """math-verify's judgement. Its time limit works by a signal, so outside a main thread there is none."""
    import math_verify

    limited = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    seconds = _SECONDS if limited else None
    # It warns of a missing limit, and each time the limit was reached.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    start = time.monotonic()
    gold, answer = (
        math_verify.parse(f"\\boxed{{{text.strip().strip('$')}}}", parsing_timeout=seconds)
        for text in (expected, given)
    )
    if (_BARE_NUMBER.fullmatch(expected) and _irrational(answer)) or (
        _BARE_NUMBER.fullmatch(given) and _irrational(gold)
    ):
        return False  # it would compare the first decimals
    same = math_verify.verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=seconds)
    # Out of time, it says no. That would depend on the machine, and accuse an answer that nobody checked.
    return None if not same and time.monotonic() - start >= _SECONDS else same
