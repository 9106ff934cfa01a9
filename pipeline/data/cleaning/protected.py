"""What in a text is code or mathematics, which no step may change or judge as prose."""

from __future__ import annotations

import re

_OPENING = re.compile(
    r"\\[\\$`]"  # escaped: opens nothing
    r"|^[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})"
    r"|(?P<ticks>`+)"
    r"|(?P<display>\$\$)"
    # Pandoc's rule for $…$ (no space inside the dollars, no digit behind), and loose ones that hold an operator:
    # "from $5 to $10" is money.
    r"|\$(?=\S)(?P<inline>(?:[^$\\\n]|\\.|\n(?!\n))++)(?<!\s)\$(?!\d)"
    r"|\$(?=[^$\n]*[\\^_=])(?P<loose>[^$\n]++)\$(?!\d)"
    r"|\\(?P<bracket>[(\[])"
    r"|\\begin\{(?P<environment>[A-Za-z]+\*?)\}"
    r"|<(?P<tag>pre|code|script|style)\b",
    re.MULTILINE,
)


_MAY_OPEN = ("`", "$", "\\", "<", "~~~")  # nothing is protected without one of these


def protected_spans(text: str) -> list[tuple[int, int]]:
    r"""Code and mathematics: fences (an unclosed one reaches to the end), `` `code` ``, ``$…$``, ``$$…$$``, ``\(…\)``,
    ``\[…\]``, ``\begin{…}…\end{…}``, and HTML's pre, code, script, style. Spans in order, never overlapping.

    Linear in the text: a closing mark that was once looked for in vain is not looked for again.
    """
    if not any(mark in text for mark in _MAY_OPEN):  # a tenth of the time that the pattern takes
        return []
    spans: list[tuple[int, int]] = []
    absent: dict[str, int] = {}  # closing mark → up to where it is known to be missing
    position = 0
    while match := _OPENING.search(text, position):
        start, after = match.start(), match.end()
        end = _closing(text, match, absent)
        if end is None:
            position = after
        else:
            spans.append((start, end))
            position = max(end, after)
    return spans


def _closing(text: str, match: re.Match[str], absent: dict[str, int]) -> int | None:
    """Where the span that ``match`` opens ends; ``None`` if it opens none."""
    after = match.end()

    def find(mark: str) -> int | None:
        if absent.get(mark, -1) >= after:
            return None
        found = text.find(mark, after)
        if found < 0:
            absent[mark] = len(text)
            return None
        return found + len(mark)

    kind = match.lastgroup
    if kind == "fence":
        fence = match["fence"]
        closing = re.compile(rf"^[ \t>]*{fence[0]}{{{len(fence)},}}[ \t]*$", re.MULTILINE).search(text, after)
        return closing.end() if closing else len(text)
    if kind == "ticks":
        ticks = match["ticks"]
        limit = len(text)
        if len(ticks) < 3:  # inside one paragraph; its end is looked for once
            if absent.get("paragraph", -1) < after:
                paragraph = text.find("\n\n", after)
                absent["paragraph"] = len(text) if paragraph < 0 else paragraph
            limit = absent["paragraph"]
        if absent.get(ticks, -1) >= limit:
            return None
        closing = re.compile(rf"(?<!`){ticks}(?!`)").search(text, after, limit)
        if closing:
            return closing.end()
        absent[ticks] = limit
        return len(text) if len(ticks) >= 3 else None
    if kind == "display":
        return find("$$")
    if kind in ("inline", "loose"):
        return after
    if kind == "bracket":
        return find("\\)" if match["bracket"] == "(" else "\\]")
    if kind == "tag":
        return find(f"</{match['tag']}>")
    if kind == "environment":
        name = match["environment"]
        if absent.get(name, -1) >= after:
            return None
        depth = 1
        for part in re.compile(rf"\\(begin|end)\{{{re.escape(name)}\}}").finditer(text, after):
            depth += 1 if part[1] == "begin" else -1
            if depth == 0:
                return part.end()
        absent[name] = len(text)
    return None


_MAY_ADDRESS = ("://", "www.", "\\", "@")  # what _URL finds holds one of these
_URL = re.compile(r"https?://[!-~]+|www\.[!-~]+|\\[A-Za-z]+|[!-?A-~]{1,64}@[!-~]{1,255}")


def unprotected(text: str) -> str:
    """The text without its code and mathematics, a space in the place of each."""
    parts, position = [], 0
    for start, end in protected_spans(text):
        parts.append(text[position:start])
        position = end
    return " ".join([*parts, text[position:]])


def prose(text: str) -> str:
    """The text without code, mathematics, addresses and LaTeX commands, each replaced by a space."""
    plain = unprotected(text)
    return _URL.sub(" ", plain) if any(mark in plain for mark in _MAY_ADDRESS) else plain
