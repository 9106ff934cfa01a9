"""Personal data and secrets in a text: found by shape, checksum and surroundings, and masked.

In: a text and the kinds to look for. Out: where they stand, or the text with ``[EMAIL]``, ``[PHONE]``, ``[CHINESE_ID]``,
``[BANK_CARD]``, ``[SECRET]``, ``[IP_ADDRESS]`` in their place.

A number counts only if more than its length speaks for it: a checksum and a valid date (Chinese identity numbers), Luhn and
an issuer's prefix (bank cards), a numbering plan (telephone, by phonenumbers) or a word such as "phone:" before it. A number
inside a calculation never counts, nor one that is called an order, an invoice or a serial number. Addresses and numbers that
are meant as examples (a@example.com, 555-123-4567) look like real ones and are masked like them.

What is nobody's stays: a card number where no word speaks of cards (kind ``any_bank_card`` takes it all the same), helplines
and toll-free numbers, numbers of versions and sections, passwords that are named as examples (``credentials``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from pipeline.data.cleaning.credentials import key_shapes, may_hold_key, secrets

Span = tuple[int, int]

# First come, first served where two kinds overlap: an identity number may also pass for a card number.
KINDS = ("secret", "email", "chinese_id", "bank_card", "phone", "ip_address")
MASKS = {kind: f"[{kind.upper()}]" for kind in KINDS}
# Wider or narrower than the kind that they are masked as: any_bank_card needs no word that speaks of cards, secret_shape
# leaves out what only a word before it makes a secret ("password: …").
_AS = {"any_bank_card": "bank_card", "secret_shape": "secret"}


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
_MAY_BE_LONG_NUMBER = re.compile(r"\d[\d ().\-]{6}")  # in what the pattern finds; four times as fast
_CALCULATION_BEFORE = re.compile(
    r"(?:[\d)\]}]\s*(?:=\s*-|[=+×÷^<>≈≥≤·]|\*{1,2}|\s-\s|\\(?:times|cdot|div|approx|leq?|geq?|pm)\b)|(?<!\d{10})[\d)]\s*/"
    r"|[×÷^≈≥≤]|(?<![A-Za-z])[A-Za-z]\s*=|\\[A-Za-z]+\{|[$€£¥])\s*$"
)
_CALCULATION_AFTER = re.compile(
    r"\s*(?:[+*×÷^<>≈≥≤·]\s*[\d(\\]|\*\*\s*\d|=\s*[\d(\-A-Za-z\\]|/\s*\d{1,9}(?!\d)|[×÷^≈%]|\\(?:times|cdot|div"
    r"|approx|leq?|geq?|%))"
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
    r"(?: of [a-z ]{1,24})?(?:[ \t]+(?:is|was|equals)(?![A-Za-z])|[ \t]*[:：=])|等于"
    r"|(?:答案|结果|得数|总和|乘积|之和)(?:是|为|[:：=])?"
    r"|(?:^|[^A-Za-z0-9_\"'”’\s\u4e00-\u9fff:：]|\n)[ \t]*=)[ \t]*[*$“\"]{0,3}$"
)


def _is_result(text: str, start: int, end: int) -> bool:
    """The answer is 13812345678, 答案是13812345678."""
    return text[start:end].isdigit() and bool(_RESULT_BEFORE.search(text[max(0, start - 56) : start]))


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
_CARD_WORD = re.compile(
    r"(?i)card|(?<![a-z])(?:visa|amex|american express|credit|debit|payments?|paid|pay|bank|iban|cvv|cvc|expir\w+)(?![a-z])"
    r"|银行|[卡付]|账号|账户|户头|信用|借记|储蓄|银联"
)
_BEFORE_CARD, _AFTER_CARD = 60, 40  # characters beside a number in which such a word is looked for


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


def _any_bank_cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        number = re.sub(r"\D", "", match[0])
        if (
            len(number) >= 13
            and len(set(number)) > 1
            and _has_issuer(number)
            # Visa has long given up 13 digits, and results of calculations have them: a word must say what it is.
            and (len(number) > 13 or _speaks_of_cards(text, *match.span()))
            and passes_luhn(number)
            and not _in_calculation(text, *match.span())
            and not _has_other_name(text, match.start())
        ):
            yield match.span()


def _speaks_of_cards(text: str, start: int, end: int) -> bool:
    around = text[max(0, start - _BEFORE_CARD) : start] + " | " + text[end : end + _AFTER_CARD]
    return _CARD_WORD.search(around) is not None


def _bank_cards(text: str) -> Iterator[Span]:
    """One number in ten passes Luhn, and a long number may be anything: the words around must speak of cards."""
    return ((start, end) for start, end in _any_bank_cards(text) if _speaks_of_cards(text, start, end))


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
# Printed to be called by everybody.
_HELPLINE = re.compile(
    r"(?i)helplines?|hotlines?|lifeline|crisis|emergenc|toll[- ]free|samaritans|customer (?:service|support|care)|"
    r"call cent(?:er|re)|switchboard|front desk|reception|热线|求助|援助|报警|急救|客服|咨询电话|服务电话|投诉|举报"
)
_SOMEBODYS = re.compile(r"(?i)(?<![a-z])(?:my|me|his|her|their)(?![a-z])|我|他|她")
_TOLL_FREE = re.compile(r"(?:\+?1[-. ]?)?\(?8(?:00|33|44|55|66|77|88)\)?[-. ]?\d{3}[-. ]?\d{4}|[48]00-?\d{3}-?\d{4}")
_DATE = re.compile(r"(?:19|20)\d\d[-./ ]\d{1,2}[-./ ]\d{1,2}")


def _is_number(candidate: str, region: str | None) -> bool:
    """Whether a numbering plan has such a number; phonenumbers is imported only where a text holds a candidate."""
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(candidate, region))
    except phonenumbers.NumberParseException:
        return False


def _is_helpline(text: str, start: int, end: int) -> bool:
    """A number that is toll-free, or that the words right around it call a helpline."""
    number = text[start:end].strip()
    if _SOMEBODYS.search(text[max(0, start - 25) : start]):
        return bool(_TOLL_FREE.fullmatch(number))
    around = text[max(0, start - 50) : start].rpartition("\n")[2] + " | " + text[end : end + 25].partition("\n")[0]
    return bool(_TOLL_FREE.fullmatch(number) or _HELPLINE.search(around))


def _phones(text: str) -> Iterator[Span]:
    return ((start, end) for start, end in _all_phones(text) if not _is_helpline(text, start, end))


def _all_phones(text: str) -> Iterator[Span]:
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


# --- addresses of machines ----------------------------------------------------------------------------------------------

_IPV4 = re.compile(r"(?<![A-Za-z0-9])(?<!\d\.)(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9]|\.\d)")
_IPV6 = re.compile(r"(?<![A-Za-z0-9:])(?=[0-9A-Fa-f:]*\d)[0-9A-Fa-f]{1,4}(?:::?[0-9A-Fa-f]{1,4}){2,7}(?![A-Za-z0-9:])")
# What the two find holds these; to look for them first takes a tenth of the time.
_MAY_BE_IPV4 = re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d")
_MAY_BE_IPV6 = re.compile(r":[0-9A-Fa-f]{1,4}:")
_VERSION_BEFORE = re.compile(
    r"(?i)(?:(?<![A-Za-z])(?:versions?|releases?|sections?|chapters?|clauses?|paragraphs?|articles?|appendix"
    r"|build|firmware|driver"
    r"|update[sd]?|upgrade[sd]?|patch|tables?|figures?|items?|v|ver|rev|sec|fig)|版本号?|固件|升级到?|更新到?|章节|条款|第|§|[=>~]=|@)"
    r"[ :.\"'“=]*(?:to )?$"
)
_VERSION_AFTER = re.compile(r"(?i)\s?(?:版本?|节|章|条|(?:version|release|build|section)\b)")
_ADDRESS_WORD = re.compile(
    r"(?i)(?<![a-z])(?:ips?|ipv4|address\w*|hosts?|servers?|ping|dns|subnets?|gateways?|routers?|connect\w*"
    r"|network\w*|ssh|https?|ftp"
    r"|vpn|proxy|firewalls?|nodes?|logs?|login|logged|nameservers?|clients?|machines?)(?![a-z])|网|地址|服务器|主机|端口|路由|连接|登录"
)
_LARGEST_OF_SECTIONS = 40  # 8.8.4.4 and 1.2.3.4 are more often sections than machines


def _ip_addresses(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text) if _MAY_BE_IPV4.search(text) else ():
        try:
            address = IPv4Address(match[0])
        except AddressValueError:
            continue
        # These name no machine of anybody: this host, a network mask.
        if address.is_loopback or address.is_unspecified or match[0].startswith("255."):
            continue
        start, end = match.span()
        if _VERSION_BEFORE.search(text[max(0, start - 24) : start]) or _VERSION_AFTER.match(text, end):
            continue
        if max(map(int, match[0].split("."))) <= _LARGEST_OF_SECTIONS:
            around = f"{text[max(0, start - 60) : start]} | {text[end : end + 40]}"
            if not (_ADDRESS_WORD.search(around) or re.match(r":\d|/\d", text[end : end + 2])):
                continue
        yield start, end
    for match in _IPV6.finditer(text) if _MAY_BE_IPV6.search(text) else ():
        try:
            IPv6Address(match[0])
        except AddressValueError:
            continue
        yield match.span()


# --- all together -------------------------------------------------------------------------------------------------------

_FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "secret": secrets,
    "secret_shape": key_shapes,
    "email": _emails,
    "chinese_id": _chinese_ids,
    "bank_card": _bank_cards,
    "any_bank_card": _any_bank_cards,
    "phone": _phones,
    "ip_address": _ip_addresses,
}
_MAY_HOLD = re.compile(r"[@\d]|PRIVATE KEY|eyJ|://")  # nothing is found without one of these
_NUMBER_KINDS = frozenset({"chinese_id", "bank_card", "any_bank_card", "phone"})


def find(text: str, kinds: Sequence[str] = KINDS) -> list[tuple[str, int, int]]:
    """What is found, as (kind, start, end) in the order of the text; spans never overlap."""
    if not _MAY_HOLD.search(text) and not may_hold_key(text):  # most texts of tool calls, and many others
        return []
    taken: list[tuple[str, int, int]] = []
    covered = bytearray(len(text))
    has_number = _MAY_BE_LONG_NUMBER.search(text) is not None and _LONG_NUMBER.search(text) is not None
    for kind, finder in _FINDERS.items():
        if kind not in kinds or (kind in _NUMBER_KINDS and not has_number):
            continue
        for start, end in finder(text):
            if not any(covered[start:end]):
                covered[start:end] = b"\1" * (end - start)
                taken.append((_AS.get(kind, kind), start, end))
    return sorted(taken, key=lambda item: item[1])


@lru_cache(maxsize=4096)
def find_cached(text: str, kinds: tuple[str, ...]) -> list[tuple[str, int, int]]:
    """``find`` for texts that come back row after row, such as names of fields."""
    return find(text, kinds)


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
