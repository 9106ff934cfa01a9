"""User turns change; nothing else ever does, and the same identity gives the same copies."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data import augment
from pipeline.data.augment import SYNONYMS, Augmenter, read_synonyms, require_augmentation
from pipeline.data.conversations import Conversation
from pipeline.settings import AugmentationSettings

ROOT = Path(__file__).resolve().parents[2]


def entry(method: str = "synonyms", **values: Any) -> AugmentationSettings:
    return AugmentationSettings.model_validate({"method": method, **values})


def row(question: str, answer: str = "42", **message: Any) -> Conversation:
    return Conversation(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **message}], "non_thinking"
    )


def users(conversation: Conversation) -> list[str]:
    return [m["content"] for m in conversation.messages if m["role"] == "user"]


def copies(conversation: Conversation, *entries: AugmentationSettings, identity: str = "a.jsonl:1") -> list[str]:
    return ["\n\n".join(users(c.conversation)) for c in Augmenter(entries)(conversation, identity)]


EVERY_WORD = entry(rate=1.0)

# --- synonyms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Name the benefits of tea.", "Name the advantages of tea."),
        ("Improve it. improve it. Improve it.", "Enhance it. enhance it. Enhance it."),
        ("为什么海水是咸的？", "为何海水是咸的？"),
        ("请列出三种鸟。", "请列举三种鸟。"),
        ("Summarize\nthe favourite (tasty) soup", "Summarise\nthe favorite (delicious) soup"),
    ],
)
def test_words_are_replaced_and_keep_their_case(question, expected):
    assert copies(row(question), EVERY_WORD) == [expected]


@pytest.mark.parametrize(
    "question",
    [
        "Explain `benefits` and\n```\nprint(benefits)\n```",
        "```python\nbenefits = 1\n# no closing fence, benefits",
        "What does $benefits + 1$ or \\(benefits\\) or \\[benefits\\] mean?",
        "See https://example.org/benefits?tasty=1 and mail benefits@example.org",
        'Who said "tasty soup", “tasty soup”, \'tasty soup\' or "tasty',
        "谁说过“列出一切”、「列出」或《列出》？",
        "Hello {{benefits}}, {benefits}, <benefits> and [benefits]",
        "the file data/benefits.csv, benefits_list, @benefits, #benefits",
        "    benefits = code by indentation",
        "benefits2 and 3-benefits and non-benefits",
        "I met Mr Benefits at the TASTY club",
        "海外列出版社",  # 列 belongs to no word of the table here
    ],
)
def test_code_formulae_links_quotes_placeholders_and_names_stay(question):
    assert copies(row(question), EVERY_WORD) == []


def test_a_word_stays_where_the_answer_has_one_of_its_group():
    question = "Are the benefits of tea huge?"
    assert copies(row(question, "Yes."), EVERY_WORD) == ["Are the advantages of tea enormous?"]
    assert copies(row(question, "Its Benefits are."), EVERY_WORD) == ["Are the benefits of tea enormous?"]
    assert copies(row(question, "Its advantages are."), EVERY_WORD) == ["Are the benefits of tea enormous?"]
    assert copies(row(question, "Yes.", reasoning_content="huge?"), EVERY_WORD) == ["Are the advantages of tea huge?"]
    assert copies(row("他很高兴还是难过？", "他很开心。"), EVERY_WORD) == ["他很高兴还是伤心？"]


def test_a_word_stays_where_a_tool_or_the_system_prompt_has_it():
    question = {"role": "user", "content": "Find tasty, huge and weird cakes."}
    call = {"type": "function", "function": {"name": "find", "arguments": {"taste": "tasty"}}}
    conversation = Conversation(
        [
            {"role": "system", "content": "Sizes are tiny or huge."},
            question,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "[]"},
            {"role": "assistant", "content": "None."},
        ],
        "non_thinking",
        tools=[{"type": "function", "function": {"name": "find", "description": "bizarre things too"}}],
    )
    assert copies(conversation, EVERY_WORD) == []
    conversation.tools = []
    assert copies(conversation, EVERY_WORD) == ["Find tasty, huge and bizarre cakes."]


@pytest.mark.parametrize(
    "question",
    [
        "How many letters has the tasty word?",
        "Give a synonym of huge.",
        "列出的同义词是什么？",
        "How many words describe huge?",
    ],
)
def test_a_task_about_words_is_left_alone(question):
    assert copies(row(question), EVERY_WORD) == []


def test_an_article_is_never_left_wrong():
    assert copies(row("It is a huge house."), EVERY_WORD) == []  # not: a enormous
    assert copies(row("It is the huge house."), EVERY_WORD) == ["It is the enormous house."]


def test_one_word_is_replaced_alike_in_all_turns():
    conversation = row("Name a suggestion quickly.")
    conversation.messages += [{"role": "user", "content": "More quickly."}, {"role": "assistant", "content": "Yes."}]
    [text] = copies(conversation, EVERY_WORD)
    other = re.search(r"recommendation (\w+)\.", text)
    assert other and other.group(1) in ("rapidly", "swiftly") and text.endswith(f"More {other.group(1)}.")


def test_rate_is_a_part_of_the_replaceable_words():
    question = "The tasty, weird, scary, wealthy, difficult, famous, funny and wonderful world of children, photos."
    [text] = copies(row(question), entry(rate=0.3))
    assert sum(a != b for a, b in zip(question.split(), text.split(), strict=True)) == 3


def test_copies_differ_from_each_other_and_are_numbered():
    made = Augmenter([entry(copies=10)])(row("We came quickly."), "x:1")
    assert sorted(users(m.conversation)[0] for m in made) == ["We came rapidly.", "We came swiftly."]
    assert [(m.method, m.number) for m in made] == [("synonyms", 1), ("synonyms", 2)]
    both = Augmenter([entry(copies=2), entry(copies=2, seed=5)])(row("We came quickly."), "x:1")
    assert len({users(m.conversation)[0] for m in both}) == len(both) == 2


def test_fraction_is_a_part_of_the_rows():
    augmenter = Augmenter([entry(fraction=0.25)])
    made = sum(bool(augmenter(row("Name the benefits."), f"f:{i}")) for i in range(1000))
    assert 200 < made < 300


def test_the_shipped_table_passes_its_own_check():
    groups = read_synonyms(SYNONYMS)
    chinese = sum(bool(re.search("[\u4e00-\u9fff]", group[0])) for group in groups)
    assert chinese >= 60 and len(groups) - chinese >= 60


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("- [make sure, ensure]\n- [苹果, 蘋果]\n", encoding="utf-8")
    own = entry(rate=1.0, synonyms=str(path))
    assert copies(row("Make sure that it works. 苹果"), own) == ["Ensure that it works. 蘋果"]
    before = Augmenter([own]).key
    path.write_text("- [make sure, ensure]\n", encoding="utf-8")
    assert Augmenter([own]).key != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b", "list of lists"),
        ("", "list of lists"),
        ("- [one]", "group 1 should be a list of at least two"),
        ("- [big, large]\n- word", "group 2 should be a list"),
        ("- [yes, sure]", "True is not a word. Quote"),
        ("- [word1, word]", "'word1' is not a word"),
        ("- [big, large]\n- [Large, great]", "group 2: 'Large' stands in group 1 too"),
        ("- [big", "not valid YAML"),
    ],
)
def test_a_bad_table_is_an_error(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        Augmenter([entry(synonyms=str(path))])


def test_jieba_is_quiet_and_leaves_no_cache(tmp_path):
    code = (
        "from tests.data.test_augment import *\nassert copies(row('请列出三种鸟。'), EVERY_WORD) == ['请列举三种鸟。']"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"TMPDIR": str(tmp_path), "PATH": "", "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


# --- shuffling ----------------------------------------------------------------------------------------------------------

SHUFFLE = entry("shuffle_sentences", copies=10)


def test_the_middle_of_a_word_problem_changes_places():
    question = "Ann, Bo and Cy keep hens. Ann has 4 hens. Mr. Bo has 1.5 times as many. Cy has 7 hens. How many hens are there?"
    made = copies(row(question), SHUFFLE)
    assert 3 <= len(made) <= 5  # there are five other orders of three sentences
    for text in made:
        assert text.startswith("Ann, Bo and Cy keep hens. ") and text.endswith(" How many hens are there?")
        assert Counter(text.split()) == Counter(question.split())
        assert "Mr. Bo has 1.5 times as many." in text


def test_chinese_sentences_change_places():
    question = "农场里有三种动物。鸡有十二只。鸭有八只！请问动物一共有多少只？"
    assert copies(row(question), SHUFFLE) == ["农场里有三种动物。鸭有八只！鸡有十二只。请问动物一共有多少只？"]


def test_a_sentence_that_points_back_stays_with_the_one_before():
    question = (
        "Two shops sell tea. Red Shop sells 4 boxes. They cost $3 each. Blue Shop sells 9 boxes. What is the income?"
    )
    expected = (
        "Two shops sell tea. Blue Shop sells 9 boxes. Red Shop sells 4 boxes. They cost $3 each. What is the income?"
    )
    assert copies(row(question), SHUFFLE) == [expected]


@pytest.mark.parametrize(
    "question",
    [
        "One fact. Is it so? Another fact.",
        "Tea is hot. First pour water. Then add leaves. Stir well. Drink now.",
        "水开了。先放茶叶。再倒水。盖上盖子。喝茶。",
        "- Tea is hot. Milk is cold. Ice melts.\n1. Tea is hot. Milk is cold. Ice melts.\n> Tea is. Milk is. Ice melts.",
        "Tea is hot. Milk is cold. Ice melts. Look:\n```\nx. Y. Z.\n```",
        "Put the sentences in order. Tea is hot. Milk is cold. Ice melts. Go.",
        'He wrote: "Tea is hot. Milk is cold. Ice melts. Wine ages."',
        "    Tea is hot. Milk is cold. Ice melts. Wine ages.",
        "One sentence only.",
        "",
    ],
)
def test_what_has_an_order_is_left_alone(question):
    assert copies(row(question), SHUFFLE) == []


def test_only_the_last_user_turn_is_shuffled():
    text = "Ann keeps birds. Ann has hens. Bo has ducks. Cy has geese. Who has most?"
    conversation = row(text)
    conversation.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "Cy."}]
    for made in Augmenter([SHUFFLE])(conversation, "x"):
        assert users(made.conversation)[0] == text != users(made.conversation)[1]


# --- back-translation ---------------------------------------------------------------------------------------------------

KEY = "sk-not-a-real-key-0123456789"


class Endpoint(BaseHTTPRequestHandler):
    """Answers chat completions with ``server.reply``: a function of the prompt, or a whole answer (status, body)."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        reply = self.server.reply
        if callable(reply):
            message = {"role": "assistant", "content": reply(body["messages"][0]["content"])}
            status, answer = 200, json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})
        else:
            status, answer = reply
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer.encode())))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch) -> Iterator[Any]:
    monkeypatch.setenv("TEST_KEY", KEY)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(augment, "_RETRIES", 0)
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.seen, server.reply = [], lambda prompt: inner(prompt)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def inner(prompt: str) -> str:
    return prompt.split("<text>\n", 1)[1].split("\n</text>")[0]


def through(server: Any, **values: Any) -> AugmentationSettings:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return entry("back_translation", base_url=url, model="m", api_key_env="TEST_KEY", **values)


QUESTION = "What is the price of 3 cups of `tea` at $x = 2.5$ each?"
BACK = "What do 3 cups of `tea` cost, at $x = 2.5$ for each?"


def test_back_translation_asks_twice_and_keeps_the_rest(endpoint):
    endpoint.reply = lambda prompt: (
        "<think>\n\n</think>\n\n" + (f"<text>{BACK}</text>" if "into English" in prompt else "Was kosten sie?")
    )
    augmenter = Augmenter([through(endpoint, copies=3)])
    [made] = augmenter(row(QUESTION), "x:1")  # greedy: one copy, whatever was asked for
    assert users(made.conversation) == [BACK] and made.method == "back_translation"
    assert made.conversation.messages[1] == {"role": "assistant", "content": "42"}
    assert not augmenter.skipped
    (path, key, first), (_, _, second) = endpoint.seen
    assert (path, key) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert first["model"] == "m" and first["temperature"] == 0
    assert "into German" in first["messages"][0]["content"] and inner(first["messages"][0]["content"]) == QUESTION
    assert (
        "into English" in second["messages"][0]["content"]
        and inner(second["messages"][0]["content"]) == "Was kosten sie?"
    )


def test_chinese_goes_back_to_chinese(endpoint):
    endpoint.reply = lambda prompt: "三杯茶一共要多少钱？" if "into Chinese" in prompt else "How much are three cups?"
    assert copies(row("三杯茶总共多少钱？"), through(endpoint, pivot="English")) == ["三杯茶一共要多少钱？"]


@pytest.mark.parametrize(
    ("back", "answer", "why"),
    [
        (BACK.replace("3", "4"), "42", "numbers"),
        (BACK.replace("3 cups", "3 of 3 cups"), "42", "numbers"),
        (BACK.replace("`tea`", "tea"), "42", "protected_text"),
        (BACK.replace("$x = 2.5$", "x = 2.5"), "42", "protected_text"),
        (BACK + " And" * 60, "42", "length"),
        ("3 `tea`$x = 2.5$", "42", "length"),
        ("  ", "42", "no_reply"),
        (BACK, "price", "words_of_the_answer"),
    ],
)
def test_a_damaged_translation_is_left_out_and_counted(endpoint, back, answer, why):
    endpoint.reply = lambda prompt: back if "into English" in prompt else "Deutsch"
    augmenter = Augmenter([through(endpoint)])
    assert augmenter(row(QUESTION, answer), "x:1") == []
    assert augmenter.skipped == {f"back_translation_{why}": 1}


@pytest.mark.parametrize("question", ["Où est la bibliothèque municipale ?", "こんにちは、世界", "xyzzy"])
def test_an_unknown_language_is_left_out_without_a_request(endpoint, question):
    augmenter = Augmenter([through(endpoint)])
    assert augmenter(row(question), "x:1") == []
    assert augmenter.skipped == {"back_translation_language": 1} and endpoint.seen == []


def test_a_refused_or_cut_text_is_left_out_and_counted(endpoint):
    augmenter = Augmenter([through(endpoint)])
    for reply in (
        (400, '{"error": {"message": "too long"}}'),
        (200, '{"choices": [{"message": {"content": "Was"}, "finish_reason": "length"}]}'),
    ):
        endpoint.reply = reply
        assert augmenter(row(QUESTION), "x:1") == []
    assert augmenter.skipped == {"back_translation_no_reply": 2}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            (401, json.dumps({"error": {"message": f"Incorrect API key: {KEY}"}})),
            "answers 401. Set the environment variable TEST_KEY",
        ),
        ((404, "{}"), "answers 404. Check base_url"),
        ((500, f"trace {KEY}"), "answers 500"),
        ((200, "<html>"), "does not answer as an OpenAI-compatible endpoint"),
        ((200, "[]"), "does not answer as"),
        ((200, '{"choices": []}'), "does not answer as"),
        ((200, '{"choices": [{"message": {"content": null}}]}'), "does not answer as"),
    ],
    ids="key path server html list empty null".split(),
)
def test_an_endpoint_that_fails_is_an_error_without_the_key(endpoint, reply, message, caplog):
    endpoint.reply = reply
    with caplog.at_level(0), pytest.raises(UserError, match=message) as caught:
        Augmenter([through(endpoint)])(row(QUESTION), "x:1")
    shown = "".join(str(e) for e in (caught.value, caught.value.__cause__))
    assert KEY not in shown + caplog.text
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_endpoint_out_of_reach_is_an_error(endpoint):
    settings_ = through(endpoint)
    endpoint.shutdown()
    endpoint.server_close()
    for attempt in (lambda: require_augmentation([settings_]), lambda: Augmenter([settings_])(row(QUESTION), "x")):
        with pytest.raises(UserError, match=r"127\.0\.0\.1:\d+ cannot be reached. Start the endpoint"):
            attempt()


def test_an_endpoint_that_goes_away_is_an_error(endpoint):
    augmenter = Augmenter([through(endpoint)])
    endpoint.reply = lambda prompt: inner(prompt)
    assert augmenter(row(QUESTION), "x:1") == []  # came back as it was
    endpoint.shutdown()
    endpoint.server_close()
    with pytest.raises(UserError, match="no answer after 1 tries .APIConnectionError"):
        augmenter(row(QUESTION), "x:1")


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://host:99999999/v1", "http://[/v1"]
)
def test_a_bad_address_is_an_error(url):
    with pytest.raises(UserError, match="base_url is no address"):
        require_augmentation([entry("back_translation", base_url=url, model="m")])


def test_a_key_that_is_none_is_an_error(endpoint, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "ключ")
    with pytest.raises(UserError, match="what the environment variable TEST_KEY holds is no key") as caught:
        Augmenter([through(endpoint)])(row(QUESTION), "x:1")
    assert "ключ" not in str(caught.value)


def test_a_model_must_be_named_and_be_there(tmp_path):
    with pytest.raises(UserError, match="needs model"):
        Augmenter([entry("back_translation", base_url="http://localhost:1/v1")])
    with pytest.raises(UserError, match="is no folder"):
        Augmenter([entry("back_translation", model=str(tmp_path / "nothing"))])
    with pytest.raises(UserError, match="cannot be loaded as a model"):
        Augmenter([entry("back_translation", model=str(tmp_path))])(row(QUESTION), "x")


def test_a_local_model_is_asked_in_the_non_thinking_mode(embedded_tokenizer, monkeypatch):
    """The embedded model cannot translate; what it says is left out and counted."""
    from pipeline.data import augment as module

    prompts = []
    real = module.generate

    def listening(model: Any, tokenizer: Any, ids: Any, sampling: Any, **rest: Any) -> Any:
        prompts.append((tokenizer.decode(ids[0]), sampling.temperature))
        return real(model, tokenizer, ids, sampling.model_copy(update={"max_new_tokens": 4}), **rest)

    monkeypatch.setattr(module, "generate", listening)
    augmenter = Augmenter([entry("back_translation", model="models/embedded")])
    assert augmenter(row("What is 2 + 3?"), "x:1") == []
    assert sum(augmenter.skipped.values()) == 1
    text, temperature = prompts[0]
    assert temperature == 0 and "What is 2 + 3?" in text and text.endswith("<think>\n\n</think>\n\n")


# --- what always holds --------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    "Name the benefits|quickly|列出|为什么|12|3.5|Ann has 4 hens. |Bo has 7. |鸡有八只。|Why?|`x`|$y$|\n|\n- |{{name}}".split(
        "|"
    )
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=8)), min_size=1, max_size=14).map(" ".join)
TURNS = st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=3)
METHODS = [entry(rate=0.5, copies=2), entry("shuffle_sentences", copies=2, seed=3)]
AUGMENTER = Augmenter(METHODS)


@settings(max_examples=examples(50))
@given(TURNS, st.text(max_size=20))
def test_only_user_turns_change(turns, identity):
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be kind."}]
    for question, answer, reasoning in turns:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, "reasoning_content": reasoning},
        ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    original = Conversation(messages, "thinking", "s", tools)
    before = copy.deepcopy(original)
    made = AUGMENTER(original, identity)
    assert original == before
    again = Augmenter(METHODS)(original, identity)
    assert [(m.conversation, m.method, m.number) for m in again] == [(m.conversation, m.method, m.number) for m in made]
    assert len({tuple(users(c)) for c in [original, *(m.conversation for m in made)]}) == len(made) + 1
    for m in made:
        changed = m.conversation
        assert (changed.mode, changed.source, changed.tools) == ("thinking", "s", tools)
        assert [x if x["role"] != "user" else None for x in changed.messages] == [
            x if x["role"] != "user" else None for x in original.messages
        ]
        numbers = [Counter(re.findall(r"\d+", "\n".join(users(c)))) for c in (original, changed)]
        assert numbers[0] == numbers[1]


@given(st.text(alphabet="ab` \"'$\\{[<。.1\n", max_size=60))
def test_any_text_is_survived(text):
    # Letters and marks without a word of the table: nothing to replace, at most sentences in another order.
    assert all(sorted(users(a.conversation)[0]) == sorted(text) for a in AUGMENTER(row(text), "x"))


@pytest.mark.parametrize(
    "text",
    [
        "`" * 15_000,
        "a" * 15_000,
        "{" * 19_000,
        "." * 19_000,
        "\\(" * 9000,
        "\\begin{a}" * 1500,
        "1." * 7000,
        '"' * 15_000,
        "benefits " * 2000,
        "A. " * 6000,
    ],
)
def test_monotonous_text_is_no_trap(text):
    assert all(len(users(a.conversation)) == 1 for a in AUGMENTER(row(text), "x"))


def test_a_very_long_turn_is_left_alone():
    assert copies(row("Name the benefits. " * 2000), EVERY_WORD) == []


def test_the_order_of_rows_does_not_matter():
    rows = [(row(f"Name {i} benefits quickly, children!"), f"f:{i}") for i in range(20)]
    forward = {identity: users(a.conversation) for r, identity in rows for a in Augmenter(METHODS)(r, identity)}
    one = Augmenter(METHODS)
    backward = {identity: users(a.conversation) for r, identity in reversed(rows) for a in one(r, identity)}
    assert forward == backward and len({text[0].split(" ", 2)[2] for text in forward.values()}) > 1


def test_the_key_follows_the_settings():
    keys = [
        Augmenter(e).key
        for e in ([], [entry()], [entry(seed=1)], [entry(rate=0.2)], [entry(), entry()], [entry("shuffle_sentences")])
    ]
    assert len(set(keys)) == len(keys)
    assert Augmenter([entry()]).key == keys[1] == Augmenter([entry(synonyms=str(SYNONYMS))]).key


def test_real_rows_keep_answers_and_numbers(shared_data):
    for name, methods in (("sft/alpaca_en_demo.json", METHODS), ("sft/alpaca_zh_demo.json", METHODS)):
        rows = json.loads((shared_data / name).read_text(encoding="utf-8"))
        augmenter, made = Augmenter(methods), 0
        for i, r in enumerate(rows):
            question = f"{r['instruction']}\n{r['input']}"
            for m in augmenter(row(question, r["output"]), f"{name}:{i}"):
                made += 1
                assert m.conversation.messages[1]["content"] == r["output"]
                assert Counter(re.findall(r"\d+", users(m.conversation)[0])) == Counter(re.findall(r"\d+", question))
        assert made > 50
