"""Personal data and secrets in a text: found by shape, checksum and surroundings, and masked.

In: a text and the kinds to look for. Out: where they stand, or the text with ``[EMAIL]``, ``[PHONE]``, ``[CHINESE_ID]``,
``[BANK_CARD]``, ``[SECRET]``, ``[IP_ADDRESS]`` in their place.

A number counts only if more than its length speaks for it: a checksum and a valid date (Chinese identity numbers), Luhn and
an issuer's prefix (bank cards), a numbering plan (telephone, by phonenumbers) or a word such as "phone:" before it. A number
inside a calculation never counts, nor one that is called an order, an invoice or a serial number. Addresses and numbers that
are meant as examples (a@example.com, 555-123-4567) look like real ones and are masked like them.

The key and token shapes are the project's own: detect-secrets knows as many, but it works line by line on source code, gives
no positions, and takes a key between Chinese characters for part of a word.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

Span = tuple[int, int]

# First come, first served where two kinds overlap: an identity number may also pass for a card number.
KINDS = ("secret", "email", "chinese_id", "bank_card", "phone", "ip_address")
MASKS = {kind: f"[{kind.upper()}]" for kind in KINDS}


# --- e-mail -------------------------------------------------------------------------------------------------------------

# Written with ASCII classes, not \w and \b: those take Chinese characters for part of the word.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_%+])[A-Za-z0-9_%+](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_%+-])?"
    r"@((?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![A-Za-z0-9]|-[A-Za-z0-9])"
)
# Any two letters are a country. The others are listed, because code is full of x@self.weight and a@b.mean.
_TOP_LEVEL = frozenset(
    "com org net edu gov mil int info biz name pro mobi asia xyz top online site shop store app dev tech cloud club live "
    "email mail wang vip work team world test example invalid local museum aero jobs travel".split()
)


def _emails(text: str) -> Iterator[Span]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        end = match.end()
        labels = match[1].split(".")
        # "Write to a@b.com.Thanks": the last label is not part of the address.
        while len(labels) > 1 and not (len(labels[-1]) == 2 or labels[-1].lower() in _TOP_LEVEL):
            end -= len(labels.pop()) + 1
        is_repository = match[0].startswith("git@") and text[end : end + 1] == ":"
        is_call = labels[-1] == "to" and text[end : end + 1] == "("  # x@y.to(device)
        if len(labels) > 1 and not is_repository and not is_call:
            yield match.start(), end


# --- numbers ------------------------------------------------------------------------------------------------------------

_LONG_NUMBER = re.compile(
    r"(?:\d[ ().\-]{0,2}){7}"
)  # what has no seven digits in a row holds none of the numbers below
_CALCULATION_BEFORE = re.compile(
    r"(?:[\d)\]}]\s*(?:=\s*-|[=+×÷^<>≈≥≤·]|\*{1,2}|\s-\s|\\(?:times|cdot|div|approx|leq?|geq?|pm)\b)|(?<!\d{10})[\d)]\s*/"
    r"|[×÷^≈≥≤]|(?<![A-Za-z])[A-Za-z]\s*=|\\[A-Za-z]+\{|[$€£¥])\s*$"
)
_CALCULATION_AFTER = re.compile(
    r"\s*(?:[+*×÷^<>≈≥≤·]\s*[\d(\\]|\*\*\s*\d|=\s*[\d(\-A-Za-z\\]|/\s*\d{1,9}(?!\d)|[×÷^≈%]|\\(?:times|cdot|div|approx|leq?|geq?|%))"
    r"|\s+-\s+\d{1,9}(?!\d)"
)
_OTHER_NUMBER_BEFORE = re.compile(
    r"(?i)(?:(?<![A-Za-z])(?:order|invoice|tracking|serial|ticket|transaction|isbn|issn|doi|sku|reference|ref|model|batch)"
    r"(?:[ -]?(?:number|no|id|code))?"
    r"|(?:订单|快递|物流)(?:编号|单号|号码|号)?|单号|编号|序列号|流水号?|发票号?码?|货号|型号|批号)"
    r"[ .]*(?:is|was|是|为)?[ :：#=\"'“]*$|#\s?$|(?-i:[A-Z]{2,}\d{0,4}-)(?<!TEL-)$"
)


# What a problem asks for may have the form of a mobile number; it is named as a result, and has no gaps.
_RESULT_BEFORE = re.compile(
    r"(?i)(?:(?<![A-Za-z])(?:answer|result|sum|product|difference|quotient|total|value)"
    r"(?:[ \t]+(?:is|was|equals)(?![A-Za-z])|[ \t]*[:：=])|等于"
    r"|(?:答案|结果|得数|总和|乘积|之和)(?:是|为|[:：=])?"
    r"|(?:^|[^A-Za-z0-9_\"'”’\s\u4e00-\u9fff:：]|\n)[ \t]*=)[ \t]*[*$“\"]{0,3}$"
)


def _is_result(text: str, start: int, end: int) -> bool:
    """The answer is 13812345678, 答案是13812345678."""
    return text[start:end].isdigit() and bool(_RESULT_BEFORE.search(text[max(0, start - 32) : start]))


def _in_calculation(text: str, start: int, end: int) -> bool:
    """Operators, currency or LaTeX beside it: 15000000000 / 3, x = 13800138000, \\boxed{4539578763621486}."""
    before = text[max(0, start - 12) : start]
    return bool(_CALCULATION_BEFORE.search(before) or _CALCULATION_AFTER.match(text, end))


def _has_other_name(text: str, start: int) -> bool:
    return bool(_OTHER_NUMBER_BEFORE.search(text[max(0, start - 32) : start]))


_ID18 = re.compile(
    r"(?<![A-Za-z0-9])(?<!\d\.)[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![A-Za-z0-9])"
)
_ID15 = re.compile(
    r"(?<![A-Za-z0-9])(?<!\d\.)[1-9]\d{5}\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}(?![A-Za-z0-9])"
)
_ID_WORD = re.compile(r"(?i)身份证|证件号|(?<![A-Za-z])id (?:card|number|no)|(?<![A-Za-z])identity (?:card|number)")
_PROVINCES = frozenset(
    "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83 91".split()
)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def is_chinese_id(number: str) -> bool:
    """Whether 18 characters are a Chinese identity number: province, birth date, check character (GB 11643-1999)."""
    if number[:2] not in _PROVINCES or not _is_date(int(number[6:10]), int(number[10:12]), int(number[12:14])):
        return False
    check = sum(int(digit) * weight for digit, weight in zip(number[:17], _WEIGHTS, strict=True)) % 11
    return "10X98765432"[check] == number[17].upper()


def _chinese_ids(text: str) -> Iterator[Span]:
    for match in _ID18.finditer(text):
        if is_chinese_id(match[0]):
            yield match.span()
    for match in _ID15.finditer(text):  # the old form has no check digit, so a word must say what it is
        number = match[0]
        before = text[max(0, match.start() - 24) : match.start()]
        birth = (1900 + int(number[6:8]), int(number[8:10]), int(number[10:12]))
        if number[:2] in _PROVINCES and _ID_WORD.search(before) and _is_date(*birth):
            yield match.span()


_CARD = re.compile(
    r"(?<![A-Za-z0-9+])(?<!\d[ .,\-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{3})?|3[47]\d{2}([ -])\d{6}\2\d{5})"
    r"(?![A-Za-z0-9]|[.\-]\d|,\d{3}(?!\d)| \d{4}(?!\d))"
)
_CARD_WORD = re.compile(r"(?i)card|visa|卡")


def _has_issuer(number: str) -> bool:
    """Prefix and length of Visa, Mastercard, American Express, UnionPay, Discover, JCB, Diners Club (ISO/IEC 7812)."""
    length, two, three, four = len(number), int(number[:2]), int(number[:3]), int(number[:4])
    return (
        (number[0] == "4" and length in (13, 16, 19))
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and length == 16)
        or (two in (34, 37) and length == 15)
        or (two == 62 and 16 <= length <= 19)
        or ((four == 6011 or two == 65 or 644 <= three <= 649) and 16 <= length <= 19)
        or (3528 <= four <= 3589 and 16 <= length <= 19)
        or ((two in (36, 38) or 300 <= three <= 305) and length == 14)
    )


def passes_luhn(number: str) -> bool:
    """The check digit of bank cards (ISO/IEC 7812-1, annex B)."""
    digits = [int(digit) for digit in reversed(number)]
    doubled = (digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _bank_cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        number = re.sub(r"\D", "", match[0])
        if (
            len(number) >= 13
            and len(set(number)) > 1
            and _has_issuer(number)
            # Visa has long given up 13 digits, and results of calculations have them: a word must say what it is.
            and (len(number) > 13 or _CARD_WORD.search(text[max(0, match.start() - 24) : match.start()]))
            and passes_luhn(number)
            and not _in_calculation(text, *match.span())
            and not _has_other_name(text, match.start())
        ):
            yield match.span()


_FREE = r"(?<![A-Za-z0-9+_])"  # not inside a word, a longer number, a name of code
_ENDS = r"(?![A-Za-z0-9_])"
_PLUS = re.compile(r"(?<![A-Za-z0-9+])(?<!\d[.,])(?:\+|00(?=[1-9]\d ))[1-9](?:[ ().\-]{0,2}\d){6,14}(?!\d)")
_CHINESE_MOBILE = re.compile(
    _FREE + r"(?<!\d[.\-])(?:86[ -]?)?1[3-9]\d"
    r"(?:\d{8}(?![.\-]\d|,\d{3}(?!\d))|(?<!\d[ ,]\d{3})([ -])\d{4}\1\d{4}(?!\1\d{4}))" + _ENDS
)
_CHINESE_LANDLINE = re.compile(
    _FREE + r"(?<!-)(?<!\d\.)(?:0\d{2,3}-|\(0\d{2,3}\) ?|（0\d{2,3}）)[2-8]\d{6,7}(?!\.\d|-\d{5})" + _ENDS
)
_AMERICAN = re.compile(
    _FREE + r"(?<!\d[ .,\-])(?:1[-. ])?(?:\([2-9]\d{2}\) ?\d{3}[-. ]|[2-9]\d{2}([-.])\d{3}\1)\d{4}(?![.\-]\d)" + _ENDS
)
_CALLED_PHONE = re.compile(
    r"(?i)(?:(?:(?<![A-Za-z])(?:phone|telephone|tel|mobile|cell(?:phone)?|whatsapp|wechat|fax|hotline)"
    r"(?:[ _-]?(?:number|no))?\.?[\"'”’]?[ \t]*(?:is\b|at\b|[:：=.-])"
    r"|(?<![A-Za-z])(?:tel|fax|phone number)\b|(?<![A-Za-z])call (?:me|us) (?:at|on)\b"
    r"|(?:电话|手机|联系方式|热线|传真)(?:号码|号)?[\"”]?[ \t]*[:：=是为]?))[ \t]*[\"'“‘]?"
    r"(\+?\(?\d(?:[ ().\-]{0,2}\d){6,14})(?![\d%]|\.\d)"
)
_DATE = re.compile(r"(?:19|20)\d\d[-./ ]\d{1,2}[-./ ]\d{1,2}")


def _is_number(candidate: str, region: str | None) -> bool:
    """Whether a numbering plan has such a number; phonenumbers is imported only where a text holds a candidate."""
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(candidate, region))
    except phonenumbers.NumberParseException:
        return False


def _phones(text: str) -> Iterator[Span]:
    for match in _CALLED_PHONE.finditer(text):
        if not _CALCULATION_AFTER.match(text, match.end()) and not _DATE.match(match[1]):
            yield match.span(1)
    plain: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
        (_PLUS, lambda number: _is_number(re.sub(r"^00", "+", number), None)),
        (_CHINESE_MOBILE, lambda number: not number.endswith("0000") and _is_number(number, "CN")),
        (_CHINESE_LANDLINE, lambda number: _is_number(number, "CN")),
        (_AMERICAN, lambda _: True),  # no plan asked: it has no 555 numbers, the ones that people write as examples
    )
    for pattern, accept in plain:
        for match in pattern.finditer(text):
            if (
                not _in_calculation(text, *match.span())
                and (pattern is _PLUS or not _has_other_name(text, match.start()))
                and not (pattern is _CHINESE_MOBILE and _is_result(text, *match.span()))
                and accept(match[0])
            ):
                yield match.span()


# --- secrets ------------------------------------------------------------------------------------------------------------

_KEYS = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"sk-(?:proj-|svcacct-|admin-|ant-[a-z0-9]+-|or-v1-)?(?=[A-Za-z_-]{0,40}\d)[A-Za-z0-9_-]{20,200}"  # OpenAI and alike
    r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,128}"  # Stripe
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|glpat-[A-Za-z0-9_-]{20,64}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # AWS
    r"|AIza[A-Za-z0-9_-]{35}"  # Google
    r"|ya29\.[A-Za-z0-9_-]{30,300}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}"  # Slack
    r"|hf_[A-Za-z0-9]{30,64}"
    r"|npm_[A-Za-z0-9]{36}|pypi-AgE[A-Za-z0-9_-]{50,250}"
    r"|SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"  # SendGrid
    r"|LTAI[A-Za-z0-9]{16,26}|AKID[A-Za-z0-9]{32}"  # Alibaba Cloud, Tencent Cloud
    r"|\d{8,10}:AA[A-Za-z0-9_-]{33}"  # Telegram
    r")"
)
_KEY_HINT = re.compile(
    r"sk-|k_live_|k_test_|gh[pousr]_|_pat_|glpat-|AKI|ASIA|AIza|ya29|xox|hf_|npm_|pypi-|SG\.|LTAI|:AA"
)
_JWT = re.compile(r"(?<![A-Za-z0-9_-])(eyJ[A-Za-z0-9_-]{8,})\.eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{16,}")
_PEM_BEGIN = re.compile(r"-----BEGIN ((?:[A-Z]+ ){0,3}PRIVATE KEY)-----")
_PEM_BODY = re.compile(r"[A-Za-z0-9+/=\s\\]*")  # of a key whose end is missing
_LONGEST_PEM = 20_000  # characters
_URL_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{0,64}:([^\s/@\"'<>]{4,128})@")
_BEARER = re.compile(r"(?i)(?<![A-Za-z])(?:bearer|basic) +([A-Za-z0-9._~+/=-]{20,4000})")
_CALLED_SECRET = re.compile(
    r"(?i)(?:(?<![A-Za-z])(?:pass(?:word|wd|phrase)|pwd)|密码|口令|密钥|令牌"
    r"|(?P<key>(?:api|access|secret|private|auth|client)[_ -]?(?:key|token|secret)|(?<![A-Za-z])(?:token|secret)(?![A-Za-z])))"
    r"[\"'”’`]?[ \t]*(?P<separator>=>|[:：=]|是|为|(?<=[ \t])is(?=[ \t]))[ \t]*"
    r"(?P<quote>[\"'“‘`]?)(?P<value>[!-~]{6,512})"
)
_SECRET_WORDS = ("pass", "pwd", "key", "token", "secret", "密码", "口令", "密钥", "令牌")
_PLACEHOLDER = re.compile(
    r"(?i)^(?:[<\[{(*$%]|your|my[-_]|x{3,}|\.{3}|example|sample|placeholder|change|insert|enter|none|null|true|false|env\b|os\.|process\.)"
    r"|x{4,}|\*{3,}|[(\[{]|::|your[-_]"
)


def entropy(text: str) -> float:
    """Shannon entropy of the characters, in bits a character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _is_jwt_header(part: str) -> bool:
    try:
        header = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError:  # not base64, not UTF-8, not JSON
        return False
    return isinstance(header, dict) and "alg" in header


def _private_keys(text: str) -> Iterator[Span]:
    position = 0
    while begin := _PEM_BEGIN.search(text, position):
        mark = f"-----END {begin[1]}-----"
        end = text.find(mark, begin.end(), begin.end() + _LONGEST_PEM + len(mark))
        body = _PEM_BODY.match(text, begin.end())
        position = end + len(mark) if end >= 0 else body.end() if body else begin.end()
        yield begin.start(), position


def _secrets(text: str) -> Iterator[Span]:
    if _KEY_HINT.search(text):
        yield from (match.span() for match in _KEYS.finditer(text))
    if "eyJ" in text:
        yield from (match.span() for match in _JWT.finditer(text) if _is_jwt_header(match[1]))
    if "PRIVATE KEY-----" in text:
        yield from _private_keys(text)
    if "://" in text:
        yield from (m.span(1) for m in _URL_PASSWORD.finditer(text) if not _PLACEHOLDER.search(m[1]))
    lowered = text.lower()
    if "bearer " in lowered or "basic " in lowered:
        for match in _BEARER.finditer(text):
            if re.search(r"\d", match[1]) and entropy(match[1]) >= 3.5:
                yield match.span(1)
    if any(word in lowered for word in _SECRET_WORDS):
        for match in _CALLED_SECRET.finditer(text):
            value, start = _value(match), match.start("value")
            is_key = match["key"] is not None
            # A word alone is no key, and most words of code (variables, calls) hold no digit.
            if (
                len(value) >= (12 if is_key else 6)
                and re.search(r"\d", value)
                and re.search(r"[A-Za-z]", value)
                and entropy(value) >= (3.0 if is_key else 2.2)
                and not _PLACEHOLDER.search(value)
            ):
                yield start, start + len(value)


def _value(match: re.Match[str]) -> str:
    """What follows ``password:``, up to the closing quote, or to where an unquoted value ends."""
    value, opening = match["value"], match["quote"]
    closing = {"“": "”", "‘": "’"}.get(opening, opening)
    if closing and closing in value:
        return value.partition(closing)[0]
    value = re.split(r"[\"'`,;<>)\]}]", value)[0]
    if match["separator"] == "=":  # user=a&password=b&…
        value = value.partition("&")[0]
    return value if opening else value.rstrip(".:!?")


# --- addresses of machines ----------------------------------------------------------------------------------------------

_IPV4 = re.compile(r"(?<![A-Za-z0-9])(?<!\d\.)(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9]|\.\d)")
_IPV6 = re.compile(r"(?<![A-Za-z0-9:])(?=[0-9A-Fa-f:]*\d)[0-9A-Fa-f]{1,4}(?:::?[0-9A-Fa-f]{1,4}){2,7}(?![A-Za-z0-9:])")
_VERSION_BEFORE = re.compile(r"(?i)(?:(?<![A-Za-z])(?:version|release|section|chapter|v)|版本|第)[ :.]*$")


def _ip_addresses(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        try:
            address = IPv4Address(match[0])
        except AddressValueError:
            continue
        # These name no machine of anybody: this host, a network mask.
        if address.is_loopback or address.is_unspecified or match[0].startswith("255."):
            continue
        if not _VERSION_BEFORE.search(text[max(0, match.start() - 12) : match.start()]):
            yield match.span()
    for match in _IPV6.finditer(text):
        try:
            IPv6Address(match[0])
        except AddressValueError:
            continue
        yield match.span()


# --- all together -------------------------------------------------------------------------------------------------------

_FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "secret": _secrets,
    "email": _emails,
    "chinese_id": _chinese_ids,
    "bank_card": _bank_cards,
    "phone": _phones,
    "ip_address": _ip_addresses,
}
_NUMBER_KINDS = frozenset({"chinese_id", "bank_card", "phone"})


def find(text: str, kinds: Sequence[str] = KINDS) -> list[tuple[str, int, int]]:
    """What is found, as (kind, start, end) in the order of the text; spans never overlap."""
    taken: list[tuple[str, int, int]] = []
    covered = bytearray(len(text))
    has_number = _LONG_NUMBER.search(text) is not None
    for kind in KINDS:
        if kind not in kinds or (kind in _NUMBER_KINDS and not has_number):
            continue
        for start, end in _FINDERS[kind](text):
            if not any(covered[start:end]):
                covered[start:end] = b"\1" * (end - start)
                taken.append((kind, start, end))
    return sorted(taken, key=lambda item: item[1])


def mask(text: str, kinds: Sequence[str] = KINDS) -> tuple[str, Counter[str]]:
    """The text with each find replaced by its mask, and how many of each kind there were. Masking twice changes nothing."""
    counts: Counter[str] = Counter()
    while found := find(text, kinds):  # again, because what stood beside a masked item may only now stand free
        parts, position = [], 0
        for kind, start, end in found:
            parts += [text[position:start], MASKS[kind]]
            position = end
            counts[kind] += 1
        text = "".join([*parts, text[position:]])
    return text, counts


@lru_cache(maxsize=4096)
def mask_cached(text: str, kinds: tuple[str, ...]) -> tuple[str, Counter[str]]:
    """``mask`` for texts that come back row after row, such as descriptions of tools."""
    return mask(text, kinds)
