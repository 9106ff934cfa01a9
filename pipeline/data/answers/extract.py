"""The final answer in a text: what stands in a box, in ``<answer>`` tags, behind "the answer is", or last."""

from __future__ import annotations

import re

from pipeline.data.answers.quantities import quantity

_ANSWER_IS = re.compile(
    r"(?i)\banswer[ \t]*(?:is\b|[:：])[ \t]*[:：]?|答案(?:是|为|[:：])[ \t]*[:：]?|^####"
    r"|\b(?:correct|right|best)[ \t]+(?:option|choice|statement|one)[ \t]*(?:is\b|[:：])[ \t]*[:：]?"
    r"|\b(?:option|choice)[ \t]+is\b[ \t]*[:：]?"
    # 故选：B, 本题选B, 答案选 C: only before a letter, since 选 is an everyday word.
    r"|(?:(?:故|应|本题|所以|因此|正确|答案)(?:应)?选(?:择|项)?(?:是|为)?[ \t]*[:：]?|(?:^|[，,。；;])选[ \t]*[:：]?"
    r"|\b(?:choose|select|pick)(?:[ \t]+option)?)[ \t]*(?=[（(]?[A-Ja-j](?![A-Za-z]))",
    re.MULTILINE,
)
_SENTENCE_END = re.compile(
    r"(?<=\S)[.。!！](?:\s|$)|[。！]|(?<=\S),? (?:not|rather than) |(?<=\S)[，,]?(?:而不是|而非|不是)"
)
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
NUMBER = r"[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))"
# Neither the end of a name (x2, 1.2.3) nor of a subtraction (5-3); a Chinese character may stand right before it.
_ANY_NUMBER = re.compile(rf"(?:(?<![\w.)])(?=[-−])|(?<![A-Za-z\d_.])(?=[\d.])){NUMBER}")
# What may belong to a number: a currency before it, a unit of a word or two behind it.
_AMOUNT = re.compile(
    r"(?:(?<![\w.)])(?=[-−])|(?<![A-Za-z\d_./])(?=[\d.]))"
    rf"(?:[-−]?(?:\d+ )?\d+/\d+(?![\d/]|\.\d)|{NUMBER}(?:[eE][+-]?\d+(?!\w))?(?:\s*(?:×|\\times|\*)\s*10\^\{{?-?\d+\}}?)?)"
)
_UNIT_BEHIND = re.compile(
    r"(?:\s*(?:\\?%|°[CF]?|\\text\{[^{}]{1,20}\}|[\u4e00-\u9fff/]{1,6}|[A-Za-zµΩ°]+(?:[\^²³/][A-Za-z\d^]*)*)){0,2}"
)
LONGEST_ANSWER = 400  # characters that are compared as mathematics
TAIL = 20_000  # characters at the end of a text in which the final answer is looked for


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


def _with_unit(text: str) -> list[str]:
    """The numbers of a text, each with the unit that stands beside it, so that 5 g is not taken for 5."""
    found = []
    for match in _AMOUNT.finditer(text):
        start = match.start() - (text[match.start() - 1 : match.start()] in tuple("$€£¥₹₩"))
        end = match.end()
        behind = _UNIT_BEHIND.match(text, end)
        words = behind[0] if behind else ""
        amount = None
        for length in range(len(words), 0, -1):  # as much of it as names a unit
            if length < len(words) and words[length].isalnum() and words[length - 1].isascii():
                continue  # inside a word
            known = quantity(text[start : match.end() + length])
            if known is not None and (known.unit or known.percent) and amount in (None, known):
                amount, end = known, match.end() + length
        found.append(text[start:end])
    return found


def final_answers(text: str, expects_number: bool) -> list[str]:
    r"""What may count as the final answer of a text, the likeliest first; empty where there is none.

    The last ``<answer>…</answer>``, read for itself. Else the last ``\boxed{}``; several boxes also together. Without a box:
    what follows the last "the answer is", "the correct option is", "答案是", "故选" or "####"; else the last number, with its
    unit, if a number is expected; else the whole text if it is short.
    """
    text = text[-TAIL:]
    if "<answer>" in text.lower() and (tagged := _ANSWER_TAG.findall(text)):
        inside = tagged[-1].strip()
        return list(dict.fromkeys([*final_answers(inside, expects_number), *([inside] if len(inside) <= 80 else [])]))
    if boxes := boxed(text):
        return [boxes[-1], ", ".join(boxes)] if len(boxes) > 1 else boxes
    if phrases := list(_ANSWER_IS.finditer(text)):
        phrase = text[phrases[-1].end() :].strip().partition("\n")[0].strip(" \t*")
        sentence = _SENTENCE_END.split(phrase)[0].strip()
        found = _with_unit(sentence.replace("{,}", ",")) if expects_number else []
        return list(dict.fromkeys([sentence, *found])) if len(found) == 1 else [sentence]
    if expects_number:
        # Their units cost a look at each: only the last one is asked for.
        amounts = list(_AMOUNT.finditer(text := text.replace("{,}", ",")))
        return _with_unit(text[max(0, amounts[-1].start() - 1) :])[-1:] if amounts else []
    return [text.strip()] if len(text.strip()) <= 80 else []
