"""Keep secrets out of what is written: settings, the configs that trackers are given, failure notes.

In: settings as plain data, or a text. Out: the same with ``***`` where a secret stood: values whose key says so, and the
part of a URL that logs in. With ``environment``, also whatever the secret-looking environment variables hold, wherever it
occurs; files that a run compares later are masked without it, so that they do not depend on who reads them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_SECRET_WORDS = {
    *("key", "apikey", "token", "secret", "password", "passwd", "passphrase", "pwd", "credential", "credentials"),
    *("authorization", "auth", "cookie"),
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_LOGIN = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s@]+@")
_QUERY = re.compile(
    r"(?P<name>[?&;][^=&;\s]*(?:key|token|secret|passw|pwd|signature|credential|auth)[^=&;\s]*=)[^&;#\s]+",
    re.IGNORECASE,
)
SHORTEST = 8  # characters; a shorter value of an environment variable would mask ordinary words


def names_a_secret(key: str) -> bool:
    """Whether a key says that its value is a secret: ``api_key``, ``hfToken``, but not ``loss_tokens``."""
    return bool(_SECRET_WORDS.intersection(word.lower() for word in _WORD.findall(key)))


def environment_secrets() -> list[str]:
    """What environment variables hold whose names say that it is a secret, longest first; paths are left out."""
    values = {value for name, value in os.environ.items() if names_a_secret(name) and len(value) >= SHORTEST}
    return sorted((value for value in values if not os.path.exists(value)), key=len, reverse=True)


def masked_text(text: str, environment: bool = False) -> str:
    """A text without the logins of its URLs, and their query parameters that are secrets."""
    for value in environment_secrets() if environment else ():
        text = text.replace(value, MASK)
    return _QUERY.sub(rf"\g<name>{MASK}", _LOGIN.sub(rf"\g<scheme>{MASK}@", text))


def masked(data: Any, environment: bool = False) -> Any:
    """A copy of plain data with its secrets masked, at any depth. What holds none comes back equal."""
    if isinstance(data, Mapping):
        return {key: _masked_value(str(key), value, environment) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [masked(item, environment) for item in data]
    return masked_text(data, environment) if isinstance(data, str) else data


def _masked_value(key: str, value: Any, environment: bool) -> Any:
    if not names_a_secret(key) or value is None or isinstance(value, (bool, Mapping)):
        return masked(value, environment)
    if isinstance(value, (list, tuple)):
        return [MASK for _ in value]
    # The name of a variable is no secret, and is needed; a key given in its place is one.
    is_name = key.lower().endswith("_env") and _VARIABLE.fullmatch(str(value))
    return value if is_name else MASK
