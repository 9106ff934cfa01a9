"""Keys, tokens and passwords in a text.

In: a text. Out: where they stand. The shapes are the project's own: detect-secrets knows as many, but it works line by line on
source code, gives no positions, and takes a key between Chinese characters for part of a word.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Iterator

Span = tuple[int, int]

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
# One of these stands in every key that ``_KEYS`` finds. To look for each of them takes a tenth of the time of one expression.
_KEY_HINTS: tuple[str, ...] = (
    "sk-",
    "k_live_",
    "k_test_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "_pat_",
    "glpat-",
    "AKI",
    "ASIA",
    "AIza",
)
_KEY_HINTS += ("ya29", "xox", "hf_", "npm_", "pypi-", "SG.", "LTAI", ":AA")
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
    r"(?i)^(?:[<\[{(*$%]|your|my[-_]|x{3,}|\.{3}|example|sample|placeholder|change|insert|enter|none|null|true"
    r"|false|env\b|os\.|process\.)"
    r"|x{4,}|\*{3,}|[(\[{]|::|your[-_]"
)

# Passwords of tutorials, and words that say that what follows is made up.
_INVENTED = re.compile(
    r"(?i)pass(?:word|wd|phrase)?[_!@#$]?\d|p[@a4]ss?w[o0]rd|s3cr3t|secret|dummy|changeme|correct.?horse"
)
_EXAMPLE_BEFORE = re.compile(
    r"(?i)(?:examples?|e\.g\.|for instance|such as|sample|suggest\w*|invented|made[- ]up|generated?|strong|weak|random(?:ly)?"
    r"|imagine|suppose|try|dummy|fake|例如|比如|譬如|示例|例子|假设|建议|随机|生成|虚构)[^.!?。！？\n]{0,40}$"
)


def may_hold_key(text: str) -> bool:
    """Whether a key of a known form may stand in a text."""
    return any(hint in text for hint in _KEY_HINTS)


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


def key_shapes(text: str) -> Iterator[Span]:
    """Keys and tokens that are known by their form alone, passwords in addresses, tokens of a request's header."""
    if may_hold_key(text):
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


def secrets(text: str) -> Iterator[Span]:
    """``key_shapes``, and what a word before it makes a secret ("password: …"), unless it is meant as an example."""
    yield from key_shapes(text)
    lowered = text.lower()
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
                and not _INVENTED.search(value)
                and not _EXAMPLE_BEFORE.search(text[max(0, match.start() - 60) : match.start()])
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
