"""Reasoning and answer of one text, whatever tags somebody has put between them.

In: the text of an answer, or the value of a reasoning column. Out: (reasoning, answer), or ``Rejected`` with the reason.
A tag in backticks, quotes or a code fence is text. A tag of another maker, with attributes or in other case, is read like
``<think>``, or the row is rejected: none is ever left in an answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.data.formats import Rejected

# --- answers ------------------------------------------------------------------------------------------------------------

_INDENTED_LINE = re.compile(r"\n(?:  |\t)[ \t]*\S")


def trim_answer(text: str) -> str:
    """An answer without the blank lines and spaces around it. The indentation of its first line stays: it may be code.

    Of fewer than four spaces it stays only where a later line is indented too: much prose begins with a space or two.
    """
    text = text.rstrip()
    body = text.lstrip()
    indent = text[: len(text) - len(body)].rpartition("\n")[2]
    is_code = len(indent) >= 4 or "\t" in indent or (len(indent) >= 2 and _INDENTED_LINE.search(body))
    return indent + body if is_code and not indent.strip(" \t") else body


# --- tags ---------------------------------------------------------------------------------------------------------------

_ATTRIBUTES = r"(?:\s+[\w:.-]{1,40}\s*=\s*(?:\"[^\"<>\n]{0,200}\"|'[^'<>\n]{0,200}'|[^\s\"'<>/]{1,100})){0,5}"
_TAG = re.compile(
    r"<[ \t]{0,3}(?P<close>[/\\])?[ \t]{0,3}(?P<name>(?:antml:|seed:|longcat_)?think(?:ing)?|antthinking|thoughts?|reasoning"
    rf"|scratchpad|inner_monologue|chain_of_thought|thought_process){_ATTRIBUTES}\s{{0,3}}(?P<alone>/)?>"
    r"|\[(?P<square_close>/)?(?P<square>think|thinking|reasoning)\]"
    r"|<\|(?P<edge>begin|start|end)_of_(?P<of>thought|thinking|reasoning)\|>"
    r"|<\|(?P<side>start|end)_(?P<sided>thinking|reasoning)\|>"
    r"|<(?P<part>start|end)_(?P<parted>working_out)>"
    r"|<\|inner_(?P<fix>prefix|suffix)\|>"
    r"|◁(?P<arrow_close>/)?(?P<arrow>think)▷",
    re.IGNORECASE,
)
# Reasoning in forms that are no pair of tags. Those in the first group are control tokens, which nobody writes by chance.
_FOREIGN = re.compile(
    r"(?P<control><\|channel\|?>(?:\s*\w+)?|<\|start\|>assistant|<unused94>thought)"
    r"|\A\s*(?P<start><details\b[^>\n]{0,100}\btype=[\"']reasoning[\"']|&lt;/?think(?:ing)?&gt;|<\|im_start\|>think"
    r"|analysis[A-Z](?=[\s\S]*assistant ?final)"
    r"|here is my thought process:)",
    re.IGNORECASE,
)
_CHANNELS = re.compile(
    r"\s*(?:<\|start\|>assistant)?<\|channel\|>analysis<\|message\|>(?P<reasoning>.*?)<\|end\|>\s*"
    r"(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>(?P<answer>.*?)(?:<\|return\|>|<\|end\|>)?\s*",
    re.DOTALL,
)
_GEMMA = re.compile(r"\s*<\|channel>thought\n(?P<reasoning>.*?)<channel\|>(?P<answer>.*)", re.DOTALL)
_GRANITE = re.compile(
    r"\s*here is my thought process:(?P<reasoning>.*?)\n\s*here is my response:(?P<answer>.*)",
    re.DOTALL | re.IGNORECASE,
)
# What makers put around the answer behind their reasoning: family of the reasoning → the two tags.
_WRAPPERS = {
    "|thought": ("<|begin_of_solution|>", "<|end_of_solution|>"),
    "|thinking": ("<|start_response|>", "<|end_response|>"),
    "working_out": ("<solution>", "</solution>"),
}
_START = re.compile(r"\s*(?:&lt;|analysis[A-Z]|here is my thought process:)", re.IGNORECASE)


class Tag(NamedTuple):
    """A tag of reasoning in a text. ``family`` is the same of the tag that opens a block and of the one that closes it."""

    start: int
    end: int
    closes: bool
    family: str
    alone: bool  # <think/>


def _tag(match: re.Match[str]) -> Tag:
    start, end = match.span()
    if name := match["name"]:
        return Tag(start, end, bool(match["close"]), name.lower(), bool(match["alone"]))
    if name := match["square"]:
        return Tag(start, end, bool(match["square_close"]), f"[{name.lower()}", False)
    if name := match["of"]:
        return Tag(start, end, match["edge"].lower() == "end", f"|{name.lower()}", False)
    if name := match["sided"]:
        return Tag(start, end, match["side"].lower() == "end", f"|{name.lower()}", False)
    if name := match["parted"]:
        return Tag(start, end, match["part"].lower() == "end", name.lower(), False)
    if match["fix"]:
        return Tag(start, end, match["fix"].lower() == "suffix", "inner", False)
    return Tag(start, end, bool(match["arrow_close"]), "◁think", False)


# --- what is text: code and quotations ----------------------------------------------------------------------------------

_FENCE = re.compile(r"^[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)
# Bounded, and on one line: a backtick or an apostrophe that stands alone must not pair with one far away.
_INLINE = re.compile(r"(?<!`)(?P<ticks>`{1,2})(?!`)(?=\S)[^\n]{1,300}?(?<=[^\s`])(?P=ticks)(?!`)")
_QUOTED = re.compile(
    r"(?<!\w)(?P<quote>[\"'])(?=\S)[^\n]{1,200}?(?<=\S)(?P=quote)(?!\w)"
    r"|“[^”\n]{1,200}”|‘[^’\n]{1,200}’|«[^»\n]{1,200}»|「[^」\n]{1,200}」|『[^』\n]{1,200}』|„[^“”\n]{1,200}[“”]"
)


def _fences(text: str) -> list[tuple[int, int]]:
    """Closed code fences. One that holds another opening is none: it may have been opened before a tag, closed behind it."""
    spans: list[tuple[int, int]] = []
    opened: re.Match[str] | None = None
    doubtful = False
    for line in _FENCE.finditer(text):
        if opened is None:
            if "`" not in line[2]:
                opened, doubtful = line, False
        elif line[1].startswith(opened[1]) and not line[2].strip():
            if not doubtful:
                spans.append((opened.start(), line.end()))
            opened = None
        elif line[1][0] == opened[1][0]:
            doubtful = True
    return spans


def literal_spans(text: str) -> list[tuple[int, int]]:
    """Where a tag is text: closed fences, and outside of them code and quotations within a line."""
    spans = _fences(text)
    fenced = list(spans)
    for pattern in (_INLINE, _QUOTED):
        for match in pattern.finditer(text):
            if not any(start <= match.start() < end for start, end in fenced):
                spans.append(match.span())
    return spans


def naked_tags(text: str) -> tuple[list[Tag], list[Tag]]:
    """(tags of reasoning outside code and quotations, all tags)."""
    every = [_tag(match) for match in _TAG.finditer(text)]
    if not every:
        return [], []
    spans = literal_spans(text)
    return [tag for tag in every if not any(start <= tag.start and tag.end <= end for start, end in spans)], every


def naked_tag(text: str) -> str:
    """The first tag of reasoning in a text that is neither in code nor quoted; "" if there is none."""
    if not any(sign in text for sign in "<[◁"):
        return ""
    tags = naked_tags(text)[0]
    return text[tags[0].start : tags[0].end] if tags else ""


def leading_tag(text: str) -> Tag | None:
    """The tag of reasoning that a text begins with."""
    body = text.lstrip()
    found = _TAG.match(body) if body[:1] in ("<", "[", "◁") else None
    return _tag(found) if found else None


# --- splitting ----------------------------------------------------------------------------------------------------------


class Split(NamedTuple):
    """``how``: the tag that the reasoning stood in, as it was written; "" where there was none. ``note``: for a count."""

    reasoning: str
    answer: str
    how: str = ""
    note: str = ""


def split(text: str) -> Split:
    """Split ``<think>reasoning</think>answer``; reasoning is ``""`` where no tag is. Says how the reasoning was marked.

    A chain whose opening tag was cut off with the prompt (``reasoning</think>answer``) is accepted, as some datasets
    store it so. So are the tags of other makers (docs/data.md lists them).

    Raises:
        Rejected: ``unclosed_think`` (a ``<think>`` without ``</think>``), ``nested_think`` (a ``<think>`` within the
            reasoning), ``several_think_blocks``, ``empty_reasoning`` (a lone ``</think>`` with nothing before it),
            ``stray_think_tag`` (one in the middle of a sentence), ``foreign_think`` (a form that is not read).
    """
    if "<" not in text and "[" not in text and "◁" not in text and not _START.match(text):
        return Split("", trim_answer(text))
    naked, every = naked_tags(text)
    foreign = _FOREIGN.search(text)
    if foreign and (foreign["start"] or not _inside(foreign, text)):
        return _split_foreign(text, foreign)
    if not naked:
        return Split("", trim_answer(text))
    first = naked[0]
    opens = [tag for tag in naked if not tag.closes and not tag.alone]
    closes = [tag for tag in naked if tag.closes]
    leads = not text[: first.start].strip()
    if first.alone and leads and len(naked) == 1:
        return Split("", trim_answer(text[first.end :]), text[first.start : first.end])
    if first.closes:
        if len(naked) > 1 or first.family == "reasoning":
            raise Rejected("unclosed_think" if len(opens) > len(closes) else "several_think_blocks", text[:80])
        return _split_at_lone_close(text, first)
    own = [tag for tag in closes if tag.family == first.family]
    if not own and leads:  # a stray backtick or fence may have hidden the one that there is
        own = [tag for tag in every if tag.closes and tag.family == first.family]
        own = own if len(own) == 1 else []
    if not own:
        raise Rejected("unclosed_think", text[:80])
    if sum(tag.start < own[0].start and _alike(tag, first) for tag in opens) > 1:
        raise Rejected("nested_think", text[:80])
    behind = [tag for tag in naked if tag.start > own[0].start]
    if sum(not tag.closes for tag in behind) > sum(tag.closes for tag in behind):
        raise Rejected("unclosed_think", text[:80])
    if behind or not leads:
        raise Rejected("several_think_blocks", text[:80])
    tag = text[first.start : first.end]
    answer = _unwrapped(text[own[0].end :], first.family)
    note = "" if tag == "<think>" and text[own[0].start : own[0].end] == "</think>" else f"foreign_think: {tag}"
    return Split(text[first.end : own[0].start].strip(), _behind_tag(answer), tag, note)


def _alike(tag: Tag, first: Tag) -> bool:
    return tag.family == first.family or tag.family in ("think", "thinking")


def _inside(found: re.Match[str], text: str) -> bool:
    """Whether all control tokens of that kind are quoted."""
    spans = literal_spans(text)
    marks = [m for m in _FOREIGN.finditer(text) if m["control"]]
    return all(any(start <= m.start() < end for start, end in spans) for m in marks) if found["control"] else False


def _split_foreign(text: str, found: re.Match[str]) -> Split:
    for form in (_CHANNELS, _GEMMA, _GRANITE):
        if (whole := form.fullmatch(text)) and not _FOREIGN.search(whole["answer"]):
            tag = found[0].strip()
            return Split(whole["reasoning"].strip(), trim_answer(whole["answer"]), tag, f"foreign_think: {tag}")
    raise Rejected("foreign_think", f"{found[0].strip()!r} marks reasoning in a way that is not read: {text[:80]!r}")


_MENTION_BEFORE, _MENTION_AFTER = re.compile(r"\S[ \t]+\Z"), re.compile(r"[ \t]+\S|[.,;:!?)]")


def _split_at_lone_close(text: str, tag: Tag) -> Split:
    """``reasoning</think>answer``: the opening tag was cut off with the prompt, as some datasets store it."""
    before, after = text[: tag.start], text[tag.end :]
    written = text[tag.start : tag.end]
    if not before.strip():
        raise Rejected("empty_reasoning", f"{written} with nothing before it: {text[:80]!r}")
    if _MENTION_BEFORE.search(before[-80:]) and _MENTION_AFTER.match(after):
        raise Rejected("stray_think_tag", f"{written} in the middle of a sentence; put it in backticks: {text[:80]!r}")
    return Split(
        before.strip(), _behind_tag(after), written, "opening_tag_missing: read as reasoning up to the closing tag"
    )


def _behind_tag(answer: str) -> str:
    """On the tag's line spaces are no indentation."""
    return answer.strip() if answer.partition("\n")[0].strip() else trim_answer(answer)


def _unwrapped(answer: str, family: str) -> str:
    opening, closing = _WRAPPERS.get(family, ("", ""))
    body = answer.strip()
    if not opening or not body.lower().startswith(opening):
        return answer
    body = body[len(opening) :]
    if not body.lower().endswith(closing):
        raise Rejected("foreign_think", f"the answer opens {opening} and does not end with {closing}: …{body[-60:]!r}")
    return body[: -len(closing)]


def without_tags(given: str) -> str:
    """The value of a reasoning column without the tags around it.

    Raises:
        Rejected: ``nested_think``, where more tags stand in it.
    """
    text = given.strip()
    if not any(sign in text for sign in "<[◁"):
        return text
    tags = naked_tags(text)[0]
    if tags and not tags[0].closes and tags[0].start == 0:
        text, tags = text[tags[0].end :], [tag._replace(start=tag.start - tags[0].end) for tag in tags[1:]]
    if tags and tags[-1].closes and text[tags[-1].start :].rstrip()[-1:] in (">", "]", "▷"):
        closing = _TAG.match(text, tags[-1].start)
        if closing and not text[closing.end() :].strip():
            text, tags = text[: tags[-1].start], tags[:-1]
    if any(tag.family in ("think", "thinking") for tag in tags):
        raise Rejected("nested_think", given.strip()[:80])
    return text.strip()
