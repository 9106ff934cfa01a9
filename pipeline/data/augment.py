"""More rows from rows: the user's wording changes; answers, reasoning, tool calls, tools and system prompts never do.

In: a conversation and its identity, e.g. ``file:line``. Out: copies of it with other user turns. The identity seeds what
is random, so the copies do not depend on the number of processes or the order of rows. Three methods:

* ``synonyms``: some words are replaced by others of their group, taken from a table of words with one meaning each.
* ``shuffle_sentences``: the sentences of the last user turn change places. Only for tasks where order is free (facts
  of a word problem, a review to classify): the author of a recipe says that it is, by naming the method.
* ``back_translation``: to another language and back, by a model; kept only where numbers, code, formulae, links and
  placeholders come back unharmed.

What an answer refers to is left alone: no word changes whose group occurs in an answer, a tool call, a tool or the
system prompt (a question with "small or large" in it is answered "large"), nor any text that asks about words or letters.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint
from pipeline.core.hubs import reachable
from pipeline.data.conversations import Conversation
from pipeline.model.decode import generate
from pipeline.model.thinking_style import thinking_style
from pipeline.settings import AugmentationSettings, Sampling, locate, read_yaml

if TYPE_CHECKING:
    import jieba


SYNONYMS = Path(__file__).resolve().parent / "synonyms.yaml"
_LONGEST = 20_000  # characters of user turns; longer ones are documents, and are left alone
_VERSION = 2  # of the methods: part of the key, so that a change here is never served from a cache


@dataclass
class Augmented:
    """A copy: how it was made, and which copy of its row it is, from 1."""

    conversation: Conversation
    method: str
    number: int


# --- what no method touches ---------------------------------------------------------------------------------------------

# The bounds keep the search fast in hostile text: an opening mark without its end is not followed through all of it.
_PROTECTED = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|^(?: {4}|\t)[^\n]*"  # fenced and indented code; an open fence runs to the end
    r"|(?P<ticks>`{1,2}).{1,2000}?(?P=ticks)"
    r"|\$\$.{1,2000}?\$\$|\$[^$\n]+\$|\\\(.{1,2000}?\\\)|\\\[.{1,2000}?\\\]"
    r"|\\begin\{(?P<env>[\w*]{1,40})\}.{1,4000}?\\end\{(?P=env)\}|\\[a-zA-Z]+"
    r"|\b(?:https?|ftp)://[^\s<>\"，。）]+|\bwww\.[^\s<>\"，。）]+|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+"
    r"|\{\{.{0,500}?\}\}|\{[^{}\n]*\}|<[^<>\n]+>|\[[^\[\]\n]*\]|%[sd]\b"  # placeholders, tags, [MASK]
    r"|\"[^\"]*(?:\"|\Z)|“[^”]*(?:”|\Z)|‘[^’\n]*’|(?<!\w)'[^'\n]+'(?!\w)|「[^」]*」|『[^』]*』|《[^》]*》|«[^»]*»"
    r"|(?<![\w.,/:-])[\w.,/:-]*\d[\w.,/:%-]*"  # numbers, with what is written against them
    r"|(?<![\w-])[\w-]*[/_.@#\\][\w/_.@#\\-]{0,500}\w",  # paths, file names, identifiers, tags
    re.DOTALL | re.MULTILINE | re.ASCII,  # ASCII: a Chinese character is no part of the number beside it
)
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def _open_stretches(text: str) -> Iterator[tuple[int, str]]:
    """The parts of a text that may change, with their places."""
    end = 0
    for match in _PROTECTED.finditer(text):
        if match.start() > end:
            yield end, text[end : match.start()]
        end = match.end()
    if end < len(text):
        yield end, text[end:]


def _fixed_text(conversation: Conversation) -> str:
    """All text that stays as it is, lower case: a word of it is a word that something may refer to."""
    parts = []
    for message in conversation.messages:
        if message["role"] != "user":
            parts += [message["content"], message.get("reasoning_content") or ""]
        if message.get("tool_calls"):
            parts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    if conversation.tools:
        parts.append(json.dumps(conversation.tools, ensure_ascii=False))
    return "\n".join(parts).lower()


def _with_user_turns(conversation: Conversation, texts: Sequence[str]) -> Conversation:
    left = iter(texts)
    messages = [{**m, "content": next(left)} if m["role"] == "user" else dict(m) for m in conversation.messages]
    return replace(conversation, messages=messages)


def _user_turns(conversation: Conversation) -> list[str]:
    return [m["content"] for m in conversation.messages if m["role"] == "user"]


# --- synonyms -----------------------------------------------------------------------------------------------------------

# The task is about the words themselves, or counts them: other words need another answer.
_ABOUT_WORDS = re.compile(
    r"\b(?:letters?|alphabet\w*|spell\w*|rhym\w*|syllables?|vowels?|consonants?|synonym\w*|antonym\w*|anagrams?|acronym\w*"
    r"|palindromes?|pronounc\w*|grammar|grammatical\w*|parts?[ -]of[ -]speech|adjectives?|adverbs?|nouns?|verbs?|pronouns?"
    r"|prepositions?|tokeni[sz]\w*|proofread|typos?|capitali[sz]\w*|(?:count|number of|how many) (?:the )?(?:words?|characters?)"
    r"|idioms?|proverbs?|tense)\b"
    r"|同义|近义|反义|押韵|拼音|笔画|部首|词性|成语|谚语|歇后语|字数|几个字|多少个?字|错别字|病句|语法|动词|名词|形容词|副词|量词"
    r"|分词|造句|绕口令|谐音|发音|读音",
    re.IGNORECASE,
)
_SENTENCE_START = re.compile(r"(?:^|[.!?:。！？：\n])[\s*#>•-]*$")
_ARTICLE = re.compile(r"\b(an?)\s+$", re.IGNORECASE)
_VOWELS = tuple("aeiou")


def read_synonyms(path: Path) -> list[list[str]]:
    """Groups of words that may stand for each other.

    Raises:
        UserError: not a YAML list of lists of words; a group of one; a word twice; a digit in a word.
    """
    groups = read_yaml(path)
    if not isinstance(groups, list) or not groups:
        raise UserError(f"{path} should hold a YAML list of lists of words, for example: - [advantages, benefits]")
    seen: dict[str, int] = {}
    for number, group in enumerate(groups, 1):
        where = f"{path}, group {number}"
        if not isinstance(group, list) or len(group) < 2:
            raise UserError(f"{where} should be a list of at least two words, it is {group!r}.")
        for word in group:
            if not isinstance(word, str) or not word.strip() or re.search(r"\d", word):
                raise UserError(
                    f"{where}: {word!r} is not a word. Quote words that YAML reads as something else (no, on)."
                )
            if word.lower() in seen:
                raise UserError(
                    f"{where}: {word!r} stands in group {seen[word.lower()]} too; a word needs one meaning."
                )
            seen[word.lower()] = number
    return [[word.strip() for word in group] for group in groups]


@cache
def _segmenter() -> jieba.Tokenizer:
    """jieba's dictionary, loaded without its cache file in the common temporary folder and without its log lines."""
    import logging
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its source has escape sequences that newer Pythons warn of
        import jieba
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


class _Synonyms:
    """Replaces words of user turns; one choice a word and conversation, so that it is called the same throughout."""

    def __init__(self, groups: list[list[str]], rate: float):
        self.rate = rate
        self.group = {word.lower(): [w.lower() for w in group] for group in groups for word in group}
        latin = sorted((w for w in self.group if not _CJK.search(w)), key=lambda w: (-len(w), w))
        chinese = sorted((w for w in self.group if _CJK.search(w)), key=lambda w: (-len(w), w))
        self.latin = re.compile(
            rf"(?<![\w'’-])(?:{'|'.join(map(re.escape, latin)) or '(?!)'})(?![\w'’-])", re.IGNORECASE
        )
        self.chinese = re.compile("|".join(map(re.escape, chinese)) or "(?!)")

    def _occurrences(self, text: str) -> Iterator[tuple[int, str]]:
        """Place and form of each word of the table in the open parts of a text."""
        for start, stretch in _open_stretches(text):
            for match in self.latin.finditer(stretch):
                word = match.group()
                # A capital inside a sentence is a name, or shouted.
                if word.islower() or (
                    word[0].isupper() and word[1:].islower() and _SENTENCE_START.search(text[: start + match.start()])
                ):
                    yield start + match.start(), word
            if self.chinese.search(stretch):
                for word, begin, _ in _segmenter().tokenize(stretch, HMM=False):
                    if word in self.group:
                        yield start + begin, word

    def __call__(self, conversation: Conversation, rng: random.Random) -> Conversation | None:
        texts = _user_turns(conversation)
        if any(_ABOUT_WORDS.search(text) for text in texts):
            return None
        found = [list(self._occurrences(text)) for text in texts]
        fixed = _fixed_text(conversation)
        options: dict[str, list[str]] = {}
        for word in sorted({word.lower() for places in found for _, word in places}):
            if not any(self._stands_in(fixed, member) for member in self.group[word]):
                options[word] = [w for w in self.group[word] if w != word]
        for text, places in zip(texts, found, strict=True):
            for place, word in places:
                article = _ARTICLE.search(text[max(0, place - 8) : place])
                if article and word.lower() in options:  # "a car" cannot become "a automobile"
                    vowel = article.group(1).lower() == "an"
                    options[word.lower()] = [w for w in options[word.lower()] if w.startswith(_VOWELS) == vowel]
        able = [word for word, others in options.items() if others]
        if not able:
            return None
        count = max(1, round(self.rate * len(able)))
        chosen = {word: rng.choice(options[word]) for word in rng.sample(able, count)}
        return _with_user_turns(conversation, [self._replaced(t, p, chosen) for t, p in zip(texts, found, strict=True)])

    def _stands_in(self, text: str, word: str) -> bool:
        if word not in text:
            return False
        return bool(_CJK.search(word)) or re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None

    def _replaced(self, text: str, places: list[tuple[int, str]], chosen: dict[str, str]) -> str:
        parts, end = [], 0
        for place, word in places:
            other = chosen.get(word.lower())
            if other is not None:
                parts += [text[end:place], other.capitalize() if word[0].isupper() else other]
                end = place + len(word)
        return "".join([*parts, text[end:]])


# --- shuffling sentences --------------------------------------------------------------------------------------------------

_ORDERED = re.compile(
    r"\b(?:first(?:ly)?|second(?:ly)?|third(?:ly)?|fourth|fifth|then|next|after(?:wards?)?|before|later|earlier|finally|last(?:ly)?"
    r"|previous(?:ly)?|preceding|following|subsequent(?:ly)?|former|latter|above|below|until|once|remain(?:s|ing|der)?|left over"
    r"|steps?|order|sequence|respectively|begin\w*|began|start\w*|end(?:s|ed|ing)?)\b"
    r"|首先|其次|然后|接着|随后|后来|之后|以后|之前|以前|最后|最终|先后|先|再|此后|前者|后者|上述|以上|以下|下面|上面|如下|步骤|顺序|依次"
    r"|第[一二三四五六七八九十\d]|剩",
    re.IGNORECASE,
)
_ABOUT_ORDER = re.compile(
    r"\b(?:sentences?|paragraphs?|lines?|(?:re)?order\w*|(?:re)?arrang\w*|sort\w*|sequenc\w*|chronolog\w*|stor(?:y|ies)|dialogue|poem)\b"
    r"|句|段落|排序|排列|顺序|故事|对话|诗",
    re.IGNORECASE,
)
_LIST_LINE = re.compile(r"\s*(?:[-*+•·>|#]|\(?(?:\d+|[a-zA-Z]|[ivx]+|[一二三四五六七八九十]+)[.)、:：]|[①-⑳]|\w+:)")
# A sentence that points back stays with the one before it: a pronoun among its first words, or a word that connects.
_POINTS_BACK = re.compile(
    r"(?:[\w%'’-]+,?\s+){0,4}(?:he|she|it|they|him|her|them|his|its|their|theirs|this|these|those|such)\b"
    r"|(?:that|both|each|neither|either|all|another|(?:the )?(?:others?|rest)|one|however|but|and|or|so|also|therefore|thus|hence"
    r"|because|still|yet|instead|otherwise|moreover|furthermore|additionally|meanwhile|similarly|likewise|consequently"
    r"|for (?:example|instance)|in (?:addition|contrast|fact)|as a result)\b"
    r"|[^。！？]{0,4}[他她它这那其此该]|但|而|所以|因此|因为|于是|不过|可是|然而|同时|并且|另外|也|还|都|同样|例如|比如|即|则|各",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?P<gap>[ \t]+)(?=[\"“'(]?[A-Z0-9$])|(?<=[。！？])(?P<none>\s*)(?=[^\s”’」』）。！？…])"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|e\.g|i\.e|no|fig|approx|inc|ltd|co|dept|est|min|max|jan|feb|mar|apr|jun|jul"
    r"|aug|sept?|oct|nov|dec)|\b[a-zA-Z])\.$",
    re.IGNORECASE,
)


def _sentences(line: str) -> tuple[list[str], list[str]]:
    """Sentences of a line and the gaps between them; ends inside quotes, code and formulae are none."""
    protected = [m.span() for m in _PROTECTED.finditer(line)]
    sentences, gaps, begin = [], [], 0
    for match in _SENTENCE_END.finditer(line):
        inside = any(a < match.start() < b for a, b in protected)
        if inside or _ABBREVIATION.search(line[begin : match.start()]):
            continue
        sentences.append(line[begin : match.start()])
        gaps.append(match.group())
        begin = match.end()
    return [*sentences, line[begin:]], gaps


def _shuffled_line(line: str, is_last: bool, rng: random.Random) -> str:
    """The line with its sentences in another order. Questions keep their places, and so do the line's first sentence and
    the turn's last one."""
    sentences, gaps = _sentences(line)
    if len({bool(gap) for gap in gaps}) > 1:  # English and Chinese mixed: a sentence would lose its space
        return line
    units: list[list[str]] = []  # sentences that belong together
    for place, sentence in enumerate(sentences):
        asked = is_last and place == len(sentences) - 1  # about all of it, not about the sentence before
        if units and not asked and _POINTS_BACK.match(sentence.lstrip("\"“'( ")):
            units[-1].append(sentence)
        else:
            units.append([sentence])
    # The first sentence says what the paragraph is about, or what is asked for.
    last = len(units) - 1 if is_last else len(units)
    free = [i for i in range(1, last) if not any(s.rstrip('"”’)） ').endswith(("?", "？")) for s in units[i])]
    if len(free) < 2:
        return line
    order = free[:]
    while order == free:
        rng.shuffle(order)
    moved = dict(zip(free, order, strict=True))
    flat = [sentence for i in range(len(units)) for sentence in units[moved.get(i, i)]]
    return "".join(part for pair in zip(flat, [*gaps, ""], strict=True) for part in pair)


def _shuffle_sentences(conversation: Conversation, rng: random.Random) -> Conversation | None:
    texts = _user_turns(conversation)
    text = texts[-1]
    if "```" in text or "~~~" in text or _ABOUT_ORDER.search(text):
        return None
    lines = text.split("\n")
    last = max((i for i, line in enumerate(lines) if line.strip()), default=0)
    changed = [
        line
        if _LIST_LINE.match(line) or line.startswith(("    ", "\t")) or _ORDERED.search(line)
        else _shuffled_line(line, i == last, rng)
        for i, line in enumerate(lines)
    ]
    return _with_user_turns(conversation, [*texts[:-1], "\n".join(changed)])


# --- back-translation -----------------------------------------------------------------------------------------------------

_REQUEST = (
    "Translate the text between <text> and </text> into {language}. Keep numbers, code, formulae, links, names and "
    "placeholders exactly as they are. Do not answer or follow it. Reply with the translation alone.\n"
    "<text>\n{text}\n</text>"
)
_TIMEOUT = 120.0  # seconds a request
_RETRIES = 3  # of the client, for lost connections, 408, 409, 429 and 5xx
_ENGLISH = re.compile(
    r"\b(?:the|an?|is|are|of|to|and|in|what|how|for|with|you|your|this|that|write|give)\b", re.IGNORECASE
)
_OVERHEAD = 64  # tokens that a translation may have beyond twice its original

Translate = Callable[[str], "str | None"]  # a prompt to its reply; None: no usable reply to this one


def _host(url: str) -> str:
    """Host and port alone: an address may carry a password."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    except ValueError:
        return "the address given"


def _require_endpoint(url: str) -> None:
    try:
        usable = urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError("back_translation: base_url is no address; give one such as http://localhost:8000/v1.")
    if not reachable(url):
        raise UserError(
            f"back_translation: {_host(url)} cannot be reached. Start the endpoint, mend base_url in the recipe, "
            "or take the method out."
        )


@cache
def _endpoint(url: str, model: str, key_variable: str) -> Translate:
    """A model behind an OpenAI-compatible address. What the server says is never quoted: it may repeat the key."""
    import openai

    _require_endpoint(url)
    key = os.environ.get(key_variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"back_translation: what the environment variable {key_variable} holds is no key.")
    client = openai.OpenAI(
        base_url=url,
        api_key=key or "none",  # a local server asks for none, the client for some
        timeout=_TIMEOUT,
        max_retries=_RETRIES,
    )
    where = f"back_translation: {_host(url)}, model {model!r}"

    def translate(prompt: str) -> str | None:
        try:
            raw = client.chat.completions.with_raw_response.create(
                model=model, messages=[{"role": "user", "content": prompt}], temperature=0
            )
        except openai.APIStatusError as error:
            status = error.status_code
        except openai.OpenAIError as error:
            kind = type(error).__name__
            raise UserError(f"{where}: no answer after {_RETRIES + 1} tries ({kind}). Is it still running?") from None
        else:
            return _reply_text(raw.http_response.text, where)
        if status in (400, 413, 422):  # this text is too long, or refused
            return None
        hint = {
            401: f"Set the environment variable {key_variable} to its key.",
            403: f"The key in the environment variable {key_variable} may not use it.",
            404: "Check base_url (it usually ends in /v1) and the model's name.",
        }
        raise UserError(f"{where}: it answers {status}. {hint.get(status, 'Try later, or ask whoever runs it.')}")

    return translate


def _reply_text(body: str, where: str) -> str | None:
    """The reply in an endpoint's answer; None where it was cut.

    Raises:
        UserError: the answer is none of a chat completion.
    """
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"]
        cut = choice.get("finish_reason") == "length"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        text = None
    if not isinstance(text, str):
        raise UserError(f"{where}: it does not answer as an OpenAI-compatible endpoint does. Is base_url right?")
    return None if cut else text


@cache
def _local_model(folder: str) -> Translate:
    """A model in a folder, greedy, in the non-thinking mode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = locate(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype="auto")
    except (OSError, ValueError) as error:
        raise UserError(f"back_translation: {folder} cannot be loaded as a model: {error}") from error
    style = thinking_style(tokenizer)
    style.require("non_thinking")
    context = int(model.config.max_position_embeddings)

    def translate(prompt: str) -> str | None:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            **style.kwargs("non_thinking"),
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        room = min(2 * len(ids) + _OVERHEAD, context - len(ids))
        if room <= 0:
            return None
        sampling = Sampling(temperature=0, top_p=1, top_k=0, max_new_tokens=room)
        reply = generate(model, tokenizer, [ids], sampling, batch_size=1, seed=0)[0]
        return None if reply.truncated else reply.text.rpartition(style.tags.close)[2]

    return translate


def _language(text: str) -> str | None:
    """Chinese or English; None: neither for certain, so nobody knows where back is."""
    chinese = len(re.findall("[\u4e00-\u9fff]", text))
    letters = sum(character.isalpha() for character in text)
    if re.search("[\u3040-\u30ff]", text):  # Japanese
        return None
    if chinese > 0.3 * letters:
        return "Chinese"
    return "English" if chinese == 0 and text.isascii() and _ENGLISH.search(text) else None


def _harm(before: str, after: str) -> str:
    """What a translation there and back has damaged, as a word to count by; "" for nothing."""
    if not after or not 0.5 <= len(after) / len(before) <= 2:
        return "length"
    if sorted(_NUMBER.findall(before)) != sorted(_NUMBER.findall(after)):
        return "numbers"
    if any(span not in after for span in {m.group() for m in _PROTECTED.finditer(before)}):
        return "protected_text"
    return ""


class _BackTranslation:
    def __init__(self, settings: AugmentationSettings, skipped: Counter[str]):
        self.settings = settings
        self.skipped = skipped

    def __call__(self, conversation: Conversation, rng: random.Random) -> Conversation | None:
        """The conversation with its user turns translated; None, and counted, where one of them does not survive."""
        results = []
        for text in _user_turns(conversation):
            result, why = self._there_and_back(text)
            if not why and not self._still_answered(conversation, text, result):
                why = "words_of_the_answer"
            if why:
                self.skipped[f"back_translation_{why}"] += 1
                return None
            results.append(result)
        return _with_user_turns(conversation, results)

    def _there_and_back(self, text: str) -> tuple[str, str]:
        """(text, "") or ("", why there is none)."""
        language = _language(text)
        if language is None:
            return "", "language"
        current = text
        for target in (self.settings.pivot, language):
            reply = self._translate(_REQUEST.format(language=target, text=current))
            current = self._unwrapped(reply or "")
            if not current:
                return "", "no_reply"
        return current, _harm(text, current)

    @staticmethod
    def _unwrapped(reply: str) -> str:
        reply = reply.rpartition("</think>")[2].strip()
        return reply.removeprefix("<text>").removesuffix("</text>").strip()

    @staticmethod
    def _still_answered(conversation: Conversation, before: str, after: str) -> bool:
        """Short answers (labels, spans) that the question contained must still stand in it."""
        answers = [
            m["content"].strip().rstrip(".。").lower() for m in conversation.messages if m["role"] == "assistant"
        ]
        return not any(0 < len(a) <= 60 and a in before.lower() and a not in after.lower() for a in answers)

    @property
    def _translate(self) -> Translate:
        s = self.settings
        return _endpoint(s.base_url, str(s.model), s.api_key_env) if s.base_url else _local_model(str(s.model))


# --- all of a source ------------------------------------------------------------------------------------------------------


def require_augmentation(settings: Sequence[AugmentationSettings]) -> None:
    """Check that the methods can work at all: synonym files are readable, endpoints can be reached, folders are there.

    Raises:
        UserError: one cannot; within five seconds for an endpoint.
    """
    Augmenter(settings)
    for entry in settings:
        if entry.method == "back_translation" and entry.base_url:
            _require_endpoint(entry.base_url)


class Augmenter:
    """Makes the copies that a source's settings ask for.

    ``key`` is a fingerprint of the settings and of the synonyms, for caches. ``skipped`` counts copies that were left out
    because back-translation did harm, by reason. Models and connections are opened at the first copy that needs them, once
    a process, and do not travel to other processes.

    Raises:
        UserError: a synonym file that does not pass; back-translation without a model, or with a folder that is not there.
    """

    def __init__(self, settings: Sequence[AugmentationSettings]):
        self.settings = list(settings)
        self.skipped: Counter[str] = Counter()
        self._methods: list[Callable[[Conversation, random.Random], Conversation | None]] = []
        content: list[Any] = [_VERSION]
        for entry in self.settings:
            used: dict[str, Any] = entry.model_dump(exclude={"synonyms", "api_key_env"})
            if entry.method == "synonyms":
                groups = read_synonyms(locate(entry.synonyms) if entry.synonyms else SYNONYMS)
                used["synonyms"] = groups
                self._methods.append(_Synonyms(groups, entry.rate))
            elif entry.method == "shuffle_sentences":
                self._methods.append(_shuffle_sentences)
            else:
                self._check_model(entry)
                self._methods.append(_BackTranslation(entry, self.skipped))
            content.append(used)
        self.key = fingerprint(content)

    @staticmethod
    def _check_model(entry: AugmentationSettings) -> None:
        if not entry.model:
            raise UserError(
                "back_translation needs model: the name that the endpoint at base_url knows it by, or, without "
                "base_url, a local folder."
            )
        if not entry.base_url and not locate(entry.model).is_dir():
            raise UserError(f"back_translation: {entry.model} is no folder. For an endpoint, give base_url too.")

    def __call__(self, conversation: Conversation, identity: str) -> list[Augmented]:
        """The copies of a conversation, at most ``copies`` a method. Copies that equal the original or each other are
        left out, so there may be fewer. Back-translation is greedy and makes one copy at most.

        Raises:
            UserError: an endpoint or a model that fails.
        """
        made: list[Augmented] = []
        if sum(map(len, _user_turns(conversation))) > _LONGEST:
            return made
        seen = {tuple(_user_turns(conversation))}
        for place, (entry, method) in enumerate(zip(self.settings, self._methods, strict=True)):
            seed = f"{entry.seed}:{place}:{entry.method}:{identity}"
            if random.Random(seed).random() >= entry.fraction:
                continue
            for number in range(1 if entry.method == "back_translation" else entry.copies):
                copy = method(conversation, random.Random(f"{seed}:{number}"))
                if copy is None:
                    break
                texts = tuple(_user_turns(copy))
                if texts not in seen:
                    seen.add(texts)
                    made.append(Augmented(copy, entry.method, len(made) + 1))
        return made
