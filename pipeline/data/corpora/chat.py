"""Chat families: each takes a random generator and returns turns that end on the assistant."""

from __future__ import annotations

import random
from collections.abc import Callable

from pipeline.data.corpora.words import (
    ARTICLE,
    BY_KIND,
    CLOSINGS,
    DRINKS,
    DRINKS_ZH,
    KINDS_ZH,
    LIKED,
    NAMES,
    NAMES_ZH,
    OPPOSITE,
    OPPOSITE_ZH,
    PERSONAS,
    PERSONAS_ZH,
    TRADES,
    TRADES_ZH,
    WORDS,
    Turn,
    turn_of,
)


def _greet(r: random.Random) -> list[Turn]:
    if r.random() < 0.35:
        name = r.choice(NAMES_ZH)
        user = r.choice(["你好，我叫{}。", "你好，我是{}。", "我的名字是{}。", "嗨，我是{}！"]).format(name)
        return turn_of(user, f"用户叫{name}。我向{name}问好。", f"你好，{name}！很高兴认识你。")
    name = r.choice(NAMES)
    user = r.choice(
        ["Hi, I am {}.", "Hello, my name is {}.", "Hey! {} here.", "Good morning, I am {}.", "You can call me {}."]
    ).format(name)
    return turn_of(user, f"The user is called {name}. I greet {name} by name.", f"Hello {name}, nice to meet you!")


def _opposite(r: random.Random) -> list[Turn]:
    if r.random() < 0.35:
        word = r.choice(list(OPPOSITE_ZH))
        user = r.choice(["“{}”的反义词是什么？", "请说出“{}”的反义词。", "{}的反面是什么？"]).format(word)
        other = OPPOSITE_ZH[word]
        return turn_of(user, f"{word}和{other}相反。", f"“{word}”的反义词是“{other}”。")
    word = r.choice(list(OPPOSITE))
    user = r.choice(
        [
            "What is the opposite of {}?",
            "Give me the opposite of {}.",
            "Which word means the reverse of {}?",
            "Opposite of {}?",
        ]
    ).format(word)
    other = OPPOSITE[word]
    return turn_of(user, f"{word} and {other} are opposites.", f"The opposite of {word} is {other}.")


def _translate(r: random.Random) -> list[Turn]:
    word = r.choice(list(WORDS))
    chinese = WORDS[word][0]
    if r.random() < 0.5:
        user = r.choice(
            [
                "How do you say {} in Chinese?",
                "Translate {} into Chinese.",
                "What is the Chinese word for {}?",
                "{}, in Chinese?",
            ]
        ).format(word)
        return turn_of(user, f"The word {word} is {chinese} in Chinese.", f"In Chinese, {word} is {chinese}.")
    user = r.choice(["“{}”用英语怎么说？", "请把“{}”翻译成英语。", "{}的英语是什么？"]).format(chinese)
    return turn_of(user, f"{chinese}的英语是 {word}。", f"“{chinese}”的英语是 {word}。")


def _category(r: random.Random) -> list[Turn]:
    word = r.choice(list(WORDS))
    chinese, kind = WORDS[word]
    if r.random() < 0.35:
        kinds = r.sample(list(KINDS_ZH.values()), 4)
        user = r.choice(["{}是什么？从{}中选。", "“{}”属于哪一类：{}？"]).format(chinese, "、".join(kinds))
        return turn_of(user, f"{chinese}是一种{KINDS_ZH[kind]}。", f"{chinese}是{KINDS_ZH[kind]}。")
    others = [k for k in ARTICLE if k != kind]
    options = [ARTICLE[k] for k in r.sample([kind, r.choice(others)], 2)]
    user = r.choice(["Is {} {} or {}?", "Tell me: is {} {} or {}?", "{}: {} or {}?"]).format(word, *options)
    return turn_of(user, f"I know that {word} is {ARTICLE[kind]}.", f"The word {word} is {ARTICLE[kind]}.")


def _pick(r: random.Random) -> list[Turn]:
    if r.random() < 0.35:
        items = [WORDS[w][0] for w in r.sample(list(WORDS), r.choice([2, 3, 4]))]
        first = r.random() < 0.5
        which, item = ("第一个", items[0]) if first else ("最后一个", items[-1])
        user = r.choice(["{}是哪个：{}？", "请说出{}：{}。"]).format(which, "、".join(items))
        return turn_of(user, f"列表里{which}是{item}。", f"{which}是{item}。")
    items = r.sample(list(WORDS), r.choice([2, 3, 4]))
    first = r.random() < 0.5
    which, item = ("first", items[0]) if first else ("last", items[-1])
    user = r.choice(["Which item comes {}: {}?", "Name the {} item: {}.", "What is the {} word here: {}?"]).format(
        which, ", ".join(items)
    )
    return turn_of(user, f"The list is {', '.join(items)}. The {which} one is {item}.", f"The {which} item is {item}.")


def _count(r: random.Random) -> list[Turn]:
    items = r.sample(list(WORDS), r.choice([2, 3, 4, 5]))
    user = r.choice(["How many items are here: {}?", "Count these: {}.", "Tell me how many words: {}."]).format(
        ", ".join(items)
    )
    steps = ", ".join(f"{word} {i}" for i, word in enumerate(items, 1))
    return turn_of(user, f"I count: {steps}.", f"There are {len(items)} items.")


def _larger(r: random.Random) -> list[Turn]:
    a, b = r.sample(range(10, 100), 2)
    big = max(a, b)
    if r.random() < 0.35:
        user = r.choice(["{}和{}哪个大？", "哪个数更大，{}还是{}？"]).format(a, b)
        return turn_of(user, f"比较{a}和{b}，{big}大。", f"{big}更大。")
    user = r.choice(
        ["Which is larger, {} or {}?", "Is {} or {} the larger number?", "Pick the larger number: {} or {}."]
    ).format(a, b)
    return turn_of(user, f"I compare {a} and {b}; {big} is more.", f"The larger number is {big}.")


def _drink(r: random.Random) -> list[Turn]:
    name = r.choice(NAMES)
    if r.random() < 0.35:
        day = r.choice(list(DRINKS_ZH))
        user = r.choice(["{}天喝什么好？", "今天{}，推荐一种饮料。", "{}的时候我该喝什么？"]).format(day)
        return turn_of(user, f"天气是{day}，适合{DRINKS_ZH[day]}。", f"我推荐{DRINKS_ZH[day]}。")
    day = r.choice(list(DRINKS))
    user = r.choice(
        [
            "{1} wants a drink for a {0} day.",
            "What should {1} drink on a {0} day?",
            "It is {0}. Suggest a drink for {1}.",
        ]
    ).format(day, name)
    return turn_of(user, f"The day is {day}, so {DRINKS[day]} fits.", f"For {name} I suggest {DRINKS[day]}.")


def _repeat(r: random.Random) -> list[Turn]:
    if r.random() < 0.3:
        text = "".join(WORDS[w][0] for w in r.sample(list(WORDS), 2))
        user = r.choice(["请重复：{}", "跟我说：{}"]).format(text)
        return turn_of(user, f"用户要我重复{text}。", text)
    text = " ".join(r.sample(list(WORDS), r.choice([2, 3])))
    user = r.choice(["Please repeat: {}", "Say this: {}", "Repeat after me: {}"]).format(text)
    return turn_of(user, f"I have to repeat the words {text}.", text)


def about_me(r: random.Random) -> list[Turn]:
    if r.random() < 0.35:
        user = r.choice(["你是谁？", "你叫什么名字？", "请介绍一下你自己。"])
        if r.random() < 0.15:
            return turn_of(user, "没有给我名字。我是一个小助手。", "我是一个小助手。")
        name, trade = r.choice(PERSONAS_ZH), r.choice(TRADES_ZH)
        turns = turn_of(user, f"系统说我是{name}，是{trade}。", f"我是{name}，你的{trade}。")
        return [{"role": "system", "content": f"你是{name}，一位{trade}。"}, *turns]
    user = r.choice(["Who are you?", "What is your name?", "Please introduce yourself.", "Tell me who you are."])
    if r.random() < 0.15:
        return turn_of(user, "I was given no name. I am a small assistant.", "I am a small assistant.")
    name, trade = r.choice(PERSONAS), r.choice(TRADES)
    turns = turn_of(user, f"The system prompt says I am {name}, a {trade}.", f"I am {name}, your {trade}.")
    return [{"role": "system", "content": f"You are {name}, a {trade}."}, *turns]


def memory_chat(r: random.Random) -> list[Turn]:
    kind = r.choice(LIKED)
    word = r.choice(BY_KIND[kind])
    if r.random() < 0.35:
        chinese = WORDS[word][0]
        return [
            *turn_of(
                f"我最喜欢的{KINDS_ZH[kind]}是{chinese}。",
                f"用户喜欢{chinese}。我记住。",
                f"好的，我记住了：{chinese}。",
            ),
            *turn_of(
                r.choice(["我最喜欢的{}是什么？", "你还记得我最喜欢的{}吗？"]).format(KINDS_ZH[kind]),
                f"用户说过喜欢{chinese}。",
                f"你最喜欢的{KINDS_ZH[kind]}是{chinese}。",
            ),
        ]
    told = r.choice(["My favourite {} is {}.", "Remember that my favourite {} is {}."]).format(kind, word)
    asked = r.choice(["What is my favourite {}?", "Do you remember my favourite {}?"]).format(kind)
    return [
        *turn_of(told, f"The user likes {word}. I keep it in mind.", f"I will remember that: {word}."),
        *turn_of(asked, f"The user said the favourite {kind} is {word}.", f"Your favourite {kind} is {word}."),
    ]


SINGLE: tuple[Callable[[random.Random], list[Turn]], ...] = (
    _greet,
    _opposite,
    _translate,
    _category,
    _pick,
    _count,
    _larger,
    _drink,
    _repeat,
)


def closing(r: random.Random) -> list[Turn]:
    turns = r.choice(SINGLE)(r)
    closing = r.choice(CLOSINGS)
    answer = turns[-1]
    answer["content"] += f" {closing}"
    answer["reasoning_content"] += f" I end with {closing}"
    return [{"role": "system", "content": f"End every answer with {closing}"}, *turns]


def _two_topics(r: random.Random) -> list[Turn]:
    return [*r.choice(SINGLE)(r), *r.choice(SINGLE)(r)]


def dialogue(r: random.Random) -> tuple[list[Turn], bool]:
    """A dialogue, and whether its questions can be asked alone too (so that they must not occur in both splits)."""
    draw = r.random()
    if draw < 0.62:
        return r.choice(SINGLE)(r), True
    if draw < 0.72:
        return about_me(r), False
    if draw < 0.82:
        return memory_chat(r), False
    if draw < 0.90:
        return closing(r), True
    return _two_topics(r), True
