"""Numbers as people write them, with what stands behind them: mixed numbers, percent, powers of ten, units, currencies."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction

from pipeline.data.answers.units import MONEY, SYMBOLS, PhysicalUnit, converted, equal_amounts, unit_of

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_WRAPPED = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|operatorname|rm)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|([^{}\s\\]))\s*(?:\{([^{}]*)\}|([^{}\s\\]))")
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))"
_NUMBER = re.compile(
    rf"(?P<whole>\d+)(?:\s+|\s*又\s*|&)(?P<over>\d+)/(?P<under>\d+)(?![\d.])"  # mixed: 2 1/2
    r"|(?P<alone>10)\s*\^\s*\{?(?P<power>[+-]?\d{1,3})\}?(?![\d.])"
    rf"|(?P<plain>{_PLAIN})"
    r"(?:/(?P<bottom>\d+)(?![\d.]))?"
    r"(?:[eE](?P<e>[+-]?\d{1,3})(?![\d.])|\s*(?:[×*·x⋅]|\\times|\\cdot)\s*10\s*\^?\s*\{?(?P<ten>(?<=\^)[+-]?\d{1,3}|(?<=\{)[+-]?\d{1,3})\}?)?"
)
_MULTIPLES = {
    **{"hundred": 100, "dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12},
    **{"百": 100, "千": 1000, "万": 10**4, "百万": 10**6, "千万": 10**7, "亿": 10**8},
}
# 千 and 百 may begin a unit (千克): not before one.
_MULTIPLE = re.compile(
    r"\s*(hundred|dozen|thousand|million|billion|trillion)\b|\s*(百万|千万|百|千|万|亿)(?![克米瓦焦帕赫卡])"
)
_PERCENT = re.compile(r"\s*(?:\\?%|(?:percent|per cent)\b)", re.IGNORECASE)
# Words that name nothing: with them an amount is a bare number.
_NO_UNIT = re.compile(
    r"(?i)(?:square |cubic )?units?|(?:in )?total|altogether|each|more|less|times|平方单位|立方单位|单位|个单位|倍|次|个"
)
_REPEATING = re.compile(r"(\d{0,20})\.(\d{0,20})\\(?:overline|dot|bar)\s*\{(\d{1,20})\}")
_NEXT_NUMBER = re.compile(r"(?<=[^\d^*/ -]) ?(?=\d)")
_IN_POWER = re.compile(r"[\^*]\s*-?\{?$")
_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_PLACES = {"十": 10, "百": 100, "千": 1000}
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: i for i, word in enumerate(_SMALL.split())} | {w: 20 + 10 * i for i, w in enumerate(_TENS.split())}
_CHINESE_FRACTION = re.compile(
    r"(?:([一二三四五六七八九十百两\d]+)又)?([一二三四五六七八九十百\d]+)分之([零一二三四五六七八九十百两\d.]+)"
)


@dataclass(frozen=True)
class Quantity:
    """An exact value and what it counts.

    ``percent``: the value is the number before the sign. ``label``: what follows it and is no known unit, "apples".
    ``glued``: one letter right behind the number (3t): a unit only beside another one, else algebra.
    """

    value: Fraction
    unit: PhysicalUnit | None = None
    percent: bool = False
    label: str = ""
    glued: bool = False


def _chinese_number(text: str) -> int | None:
    """三百二十 is 320; below ten thousand."""
    if text.isdigit():
        return int(text)
    total = digit = 0
    for character in text:
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif character in _PLACES:
            total += (digit or 1) * _PLACES[character]
            digit = 0
        else:
            return None
    return total + digit


def _in_words(text: str) -> Fraction | None:
    """Twelve, twenty-five, 十二: a number that is written out whole."""
    words = text.casefold().replace("-", " ").split()
    if 1 <= len(words) <= 2 and all(word in _WORDS for word in words):
        values = [_WORDS[word] for word in words]
        if len(values) == 1 or (values[0] >= 20 and 1 <= values[1] <= 9):
            return Fraction(sum(values))
    if text and all(c in _DIGITS or c in _PLACES for c in text) and (value := _chinese_number(text)) is not None:
        return Fraction(value)
    return None


def plain(text: str) -> str:
    r"""A text with its number written in one way: no dollars of LaTeX, ``\frac{1}{2}`` as 1/2, ½ too, m² as m^2, ％ as %."""
    text = text.strip()
    if len(text) > 1 and text[0] == "$" == text[-1] and text[-2] != "\\":
        text = text.strip("$")
    for mark in ("\\(", "\\)", "\\left", "\\right", "\\!", "**"):
        text = text.replace(mark, "")
    for mark in ("\\,", "\\;", "\\:", "\\ ", "~", "\\quad"):
        text = text.replace(mark, " ")
    text = text.replace("{,}", "").replace("\\$", "$").replace("−", "-").replace("\\%", "%").replace("\\pounds", "£")
    while (unwrapped := _WRAPPED.sub(r" \1", text)) != text:
        text = unwrapped
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|\\circ", "°", text).replace("\\mu", "u").replace("\\Omega", "Ω")
    text = _REPEATING.sub(_repeating, text)
    # A number before a fraction makes it a mixed one: a blank keeps the two apart.
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", text)
    if not text.isascii():
        text = _RAISED.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
        text = "".join(
            f" {unicodedata.normalize('NFKC', c).replace('⁄', '/')}"
            if unicodedata.name(c, "").startswith("VULGAR")
            else c
            for c in text
        )
        text = unicodedata.normalize("NFKC", text.replace("℃", "°C").replace("℉", "°F"))
        text = _CHINESE_FRACTION.sub(_spelled_fraction, text)
    return " ".join(text.split()).rstrip(" .。\"'“”").lstrip(" 。\"'“”")


def _repeating(match: re.Match[str]) -> str:
    """0.\\overline{3} as the fraction that it is."""
    whole, once, again = match.groups()
    nines = 10 ** len(once) * (10 ** len(again) - 1)
    return f"{int(whole or 0) * nines + int(once + again) - int(once or 0)}/{nines}"


def _spelled_fraction(match: re.Match[str]) -> str:
    whole, bottom, top = match.groups()
    if bottom == "百":
        value: str | int | None = top if re.fullmatch(r"[\d.]+", top) else _chinese_number(top)
        return match[0] if value is None or whole else f"{value}%"
    numbers = [None if part is None else _chinese_number(part) for part in (whole, top, bottom)]
    if numbers[1] is None or not numbers[2] or (whole and numbers[0] is None):
        return match[0]
    return f"{f'{numbers[0]} ' if whole else ''}{numbers[1]}/{numbers[2]}"


def _value(match: re.Match[str]) -> Fraction | None:
    if match["whole"] is not None:
        over, under = int(match["over"]), int(match["under"])
        return int(match["whole"]) + Fraction(over, under) if 0 < over < under else None
    if match["alone"] is not None:
        return Fraction(10) ** int(match["power"])
    if not match["plain"] or len(match["plain"]) > 100 or (match["bottom"] is not None and int(match["bottom"]) == 0):
        return None
    value = Fraction(match["plain"].replace(",", "")) / int(match["bottom"] or 1)
    return value * Fraction(10) ** int(match["e"] or match["ten"] or 0)


def quantity(text: str) -> Quantity | None:
    """What a whole answer amounts to; ``None`` where it is no number, or more than one with its unit.

    >>> quantity("2 1/2 hours").value, quantity("\\\\$5").unit.money, quantity("50\\\\%").percent
    (Fraction(5, 2), 'USD', True)
    """
    text = plain(text)
    if not text or len(text) > 200:
        return None
    if (spelled := _in_words(text)) is not None:
        return Quantity(spelled)
    sign = -1 if text[0] == "-" else 1
    rest = text[1:].lstrip() if text[0] in "+-" else text
    symbol = rest[0] if rest and rest[0] in SYMBOLS else ""
    rest = rest[1:].lstrip() if symbol else rest
    if symbol and rest[:1] == "-":
        sign, rest = -sign, rest[1:]
    result = _piece(rest, symbol)
    if result is None:
        return None
    total, rest = result
    while rest:  # 1 hour 30 minutes
        further = _piece(rest, "")
        joined = _sum(total, further[0]) if further else None
        if further is None or joined is None:
            return None
        total, rest = joined, further[1]
    return Quantity(sign * total.value, total.unit, total.percent, total.label, total.glued)


def _sum(one: Quantity, other: Quantity) -> Quantity | None:
    """The two as one amount, in the smaller unit."""
    if one.unit is None or other.unit is None:
        return None
    if one.unit.money and one.unit.money == other.unit.money:  # 1元5角
        return Quantity(
            one.value * one.unit.factor + other.value * other.unit.factor, replace(one.unit, factor=Fraction(1))
        )
    value = converted(one.value, one.unit, other.unit)
    return None if value is None else Quantity(value + other.value, other.unit)


def _piece(text: str, symbol: str) -> tuple[Quantity, str] | None:
    """The number at the start with its unit, and what is left behind it (a further number)."""
    match = _NUMBER.match(text)
    if not match or not match[0].strip():
        return None
    value = _value(match)
    if value is None:
        return None
    rest = text[match.end() :]
    if multiple := _MULTIPLE.match(rest):
        value *= _MULTIPLES[(multiple[1] or multiple[2]).lower()]
        rest = rest[multiple.end() :]
    if percent := _PERCENT.match(rest):
        behind = rest[percent.end() :].strip()
        return (Quantity(value, percent=True), "") if _is_words(behind) else None
    if symbol:
        return (Quantity(value, PhysicalUnit(symbol, *MONEY[symbol])), "") if _is_words(rest.strip()) else None
    name, further = rest, ""
    later = _NEXT_NUMBER.search(rest)
    if later and not _IN_POWER.search(rest, 0, later.start()):
        name, further = rest[: later.start()], rest[later.end() :]
        if re.fullmatch(r"\s*个?小时", name) and further.endswith("分"):
            further += "钟"
        name = re.sub(r"(?:,| and|零)\s*$", "", name)
    glued = re.fullmatch(r"[A-Za-z]{1,3}", name) is not None
    if glued and name in ("t", "d", "h", "a"):
        return None  # rather a variable
    name = name.replace("{", "").replace("}", "").strip()
    if not name:
        return (Quantity(value), "") if not further else None
    if unit := unit_of(name):
        return Quantity(value, unit, glued=glued and len(name) == 1), further
    if further or glued or not _is_words(name) or re.fullmatch(r"(?i)[a-z]|squared|cubed|factorial", name):
        return None  # algebra, or several numbers
    return Quantity(value, label="" if _NO_UNIT.fullmatch(name) else name), ""


def _is_words(text: str) -> bool:
    """Words alone (or nothing): no sign, no digit, no LaTeX."""
    return len(text) <= 60 and re.fullmatch(r"[^\W\d_]*(?:[ ,'’()/-]*[^\W\d_]+)*[ ).,]*", text) is not None


def same_quantity(a: Quantity, b: Quantity) -> bool | None:
    """Whether two amounts are the same. A missing unit is no other unit: 5 and 5 cm are the same, 50 % is 0.5 and 50.

    ``None`` where that depends on whether a letter is a unit or a variable, or two words name the same thing.
    """
    if a.percent or b.percent:
        if a.percent and b.percent:
            return a.value == b.value
        share, other = (a, b) if a.percent else (b, a)
        if other.unit or other.label:
            return False
        # 0.5 is not 0.5 %: below 1 a bare number is a part.
        return share.value / 100 == other.value or (share.value == other.value and abs(share.value) > 1)
    if a.unit and b.unit:
        return equal_amounts(a.value, a.unit, b.value, b.unit)
    named, bare = (a, b) if a.unit else (b, a)
    if named.unit:
        return None if named.glued and a.value == b.value else a.value == b.value and not bare.label
    if a.value == b.value and a.label and b.label and not _share_a_word(a.label, b.label):
        return None  # 5 apples, 5 oranges; but 5 students may be 5 people
    return a.value == b.value


def _share_a_word(one: str, other: str) -> bool:
    """Whether two names have a word in common, singular or plural ("marbles", "red marble"), or a character of Chinese."""
    first, second = (
        {word[:4] for word in re.findall(r"[\u4e00-\u9fff]|[a-z]+", name.lower())} for name in (one, other)
    )
    return bool(first & second)
