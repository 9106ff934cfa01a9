"""The answer in a text, and whether two answers are the same: for cleaning, evaluation and rewards."""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from fractions import Fraction
from functools import lru_cache

_ANSWER_IS = re.compile(
    r"(?i)\banswer[ \t]*(?:is\b|[:：])[ \t]*[:：]?|答案(?:是|为|[:：])[ \t]*[:：]?|^####", re.MULTILINE
)
_NUMBER = r"[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))"
# Neither the end of a name (x2, 1.2.3) nor of a subtraction (5-3); a Chinese character may stand right before it.
_ANY_NUMBER = re.compile(rf"(?:(?<![\w.)])(?=[-−])|(?<![A-Za-z\d_.])(?=[\d.])){_NUMBER}")
_PLAIN_NUMBER = re.compile(
    rf"[$€£¥]?({_NUMBER})(?:/(\d+))?\s*(?:\^?°|%|[A-Za-z一-鿿 ]{{0,24}})?"
)  # a unit may follow, "5 apples"
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(\d+)\}")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?([a-j])\)?(?:[.):：,，].*)?$")
# What sympy would expand until time or memory ends is never given to it: large powers, factorials and binomials, towers.
_TOO_LARGE = re.compile(
    r"(?:\^|\*\*)\s*[{(]?\s*-?\d{4,}|\)\s*(?:\^|\*\*)\s*[{(]?\s*\d{3,}"
    r"|\d\s*(?:\^|\*\*)\s*[{(]?\s*\d+\s*[)}]?\s*(?:\^|\*\*)|(?:\^\s*\{[^{}]*){4}|\^\s*\{?\s*\\binom"
    r"|\d{3,}\s*!|[!)]\s*!|binom\s*\{\s*\d{4,}"
)
LONGEST_ANSWER = 400  # characters that are compared as mathematics
TAIL = 20_000  # characters at the end of a text in which the final answer is looked for
_SECONDS = 5  # math-verify's own limit


def boxed(text: str) -> list[str]:
    r"""The contents of every ``\boxed{…}`` and ``\fbox{…}``, in order; braces may nest. An unclosed one does not count."""
    found = []
    for match in re.finditer(r"\\f?box(?:ed)?\s*\{", text):
        depth, position = 1, match.end()
        for brace in re.compile(r"\\?[{}]").finditer(text, match.end(), match.end() + 4 * LONGEST_ANSWER):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)  # \{ and \} are only characters
            position = brace.start()
            if depth == 0:
                found.append(text[match.end() : position].strip())
                break
    return found


def numbers(text: str) -> list[str]:
    """The numbers of a text as they are written, in order: ``1,234`` is one, and so is LaTeX's ``1{,}234``."""
    return [match[0] for match in _ANY_NUMBER.finditer(text.replace("{,}", ","))]


def final_answers(text: str, expects_number: bool) -> list[str]:
    r"""What may count as the final answer of a text, the likeliest first; empty where there is none.

    The last ``\boxed{}``; several boxes also together. Without a box: what follows the last "the answer is", "答案是" or
    "####"; else the last number if a number is expected; else the whole text if it is short.
    """
    text = text[-TAIL:]
    if boxes := boxed(text):
        return [boxes[-1], ", ".join(boxes)] if len(boxes) > 1 else boxes
    if phrases := list(_ANSWER_IS.finditer(text)):
        phrase = text[phrases[-1].end() :].strip().partition("\n")[0].strip(" \t*")
        sentence = re.split(r"(?<=\S)[.。!！](?:\s|$)|[。！]", phrase)[0].strip()
        found = numbers(sentence) if expects_number else []
        return [sentence, found[0]] if len(found) == 1 else [sentence]
    if expects_number:
        return numbers(text)[-1:]
    return [text.strip()] if len(text.strip()) <= 80 else []


def canonical_answer(answer: str) -> str:
    """An answer without the things that do not matter: wrapping, spaces, case, a full stop."""
    text = answer.strip().replace("−", "-")
    for mark in ("\\left", "\\right", "\\,", "\\!", "\\;", "\\:", "\\ ", "~", "$", "\\(", "\\)", "**"):
        text = text.replace(mark, "")
    text = text.replace("{,}", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\%", "%")
    while (unwrapped := _WRAPPED.sub(r" \1 ", text)) != text:
        text = unwrapped
    return " ".join(text.split()).strip(" .。\"'“”").casefold()


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


def same_answer(expected: str, given: str) -> bool | None:
    """Whether two answers are the same; ``None`` where that cannot be said (too long, or too large a number).

    Equal texts and plain numbers are compared here, exactly; words and letters of a choice as text; the rest by math-verify.
    """
    if len(expected) > LONGEST_ANSWER or len(given) > LONGEST_ANSWER:
        return True if canonical_answer(expected) == canonical_answer(given) else None
    a, b = canonical_answer(expected), canonical_answer(given)
    if a.replace(" ", "") == b.replace(" ", ""):
        return True
    number_a, number_b = as_number(a), as_number(b)
    if number_a is not None and number_b is not None:
        return number_a == number_b
    choice_a, choice_b = _CHOICE.match(a), _CHOICE.match(b)
    if choice_a and choice_b and len(a.strip("()")) == 1:
        return choice_a[1] == choice_b[1]
    words = re.compile(r"[^\W\d_]{2,}(?:[ ,'’-]+[^\W\d_]+)*")
    if words.fullmatch(a) and words.fullmatch(b):
        return False
    if _TOO_LARGE.search(a) or _TOO_LARGE.search(b):
        return None
    return _math_verify(expected, given)


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
    same = math_verify.verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=seconds)
    # Out of time, it says no. That would depend on the machine, and accuse an answer that nobody checked.
    return None if not same and time.monotonic() - start >= _SECONDS else same
