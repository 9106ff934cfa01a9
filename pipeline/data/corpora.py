"""The embedded corpora: text that this project generates, in the columns of the public datasets they stand for.

In: a seed and a number of rows. Out: rows like FineTome's (``finetome_like``), rows like OpenMathReasoning's
(``openmath_like``), preference pairs (``preference_like``), questions with a known answer (``math_questions``),
dialogues to train the embedded base model on (``base_dialogue``), and held-out test items (``test_items``).

Three kinds of content, and two more skills:

* **chat**: templated small talk, facts, translation, memory over turns, system prompts; English and Chinese.
  The base model has learnt it, so that forgetting can be measured.
* **arithmetic**: addition up to three digits and the times table. The base model has learnt it too.
* **skill**: a number of two or three digits times one digit, written out as at school. The base model has *not* learnt
  it; it is what the fine-tuning corpus teaches.
* **subtraction**, written out with borrows, and **reversal** of a list of words: two more things that the base model has
  not learnt, for fine-tuning on several tasks at once (``data_recipes/multitask.yaml``).

Held-out items never occur in training, by construction: a hash of the item's key decides on which side it lies.
For chat the key is the whole prompt, and each question that can be asked alone; for arithmetic and skill it is the pair
of numbers, whatever the wording and, in a sum, the order; for a reversal it is the list of words, in whichever language.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

from pipeline.core.errors import UserError

Turn = dict[str, str]
Dialogue = dict[str, Any]

TEST_PERCENT = 8  # of all keys are held out

NAMES = (
    "Ada Ben Cleo Dan Ella Finn Gina Hugo Iris Jack Kira Leo Maya Noah Olga Paul Quinn Rosa Sam Tara Uma Vera Will "
    "Xena Yara Zoe Alma Bruno Carla Dora Emil Fay Gus Hana Ivan Jana Karl Lena Marco Nina"
).split()
NAMES_ZH = "李明 王芳 张伟 刘洋 陈静 杨帆 赵磊 黄丽 周杰 吴敏 徐强 孙悦 马超 朱琳 胡军 郭晨 林雪 何涛 高婷 罗兰".split()
PERSONAS = "Nova Orion Echo Pixel Atlas Sage Comet Luna Bolt Maple".split()
PERSONAS_ZH = "小星 小云 小智 小雨 小光 小风".split()
TRADES = "tutor guide coach helper librarian gardener".split()
TRADES_ZH = "老师 向导 教练 助手".split()
# word: (Chinese, kind)
WORDS: dict[str, tuple[str, str]] = {
    "cat": ("猫", "animal"),
    "dog": ("狗", "animal"),
    "horse": ("马", "animal"),
    "bird": ("鸟", "animal"),
    "fish": ("鱼", "animal"),
    "sheep": ("羊", "animal"),
    "tiger": ("虎", "animal"),
    "rabbit": ("兔", "animal"),
    "apple": ("苹果", "food"),
    "rice": ("米饭", "food"),
    "bread": ("面包", "food"),
    "egg": ("鸡蛋", "food"),
    "soup": ("汤", "food"),
    "cake": ("蛋糕", "food"),
    "melon": ("西瓜", "food"),
    "noodle": ("面条", "food"),
    "red": ("红", "colour"),
    "blue": ("蓝", "colour"),
    "green": ("绿", "colour"),
    "white": ("白", "colour"),
    "black": ("黑", "colour"),
    "yellow": ("黄", "colour"),
    "table": ("桌子", "thing"),
    "chair": ("椅子", "thing"),
    "book": ("书", "thing"),
    "clock": ("钟", "thing"),
    "lamp": ("灯", "thing"),
    "door": ("门", "thing"),
}
KINDS_ZH = {"animal": "动物", "food": "食物", "colour": "颜色", "thing": "物品"}
ARTICLE = {"animal": "an animal", "food": "a food", "colour": "a colour", "thing": "a thing"}
OPPOSITES = (
    "hot cold,big small,fast slow,old new,high low,light dark,wet dry,early late,open shut,full empty,"
    "soft hard,rich poor,near far,happy sad,strong weak,long short"
)
OPPOSITES_ZH = "大小,多少,高低,冷热,快慢,长短,新旧,远近,黑白,左右,上下,前后"
DRINKS = {"rainy": "hot tea", "sunny": "lemonade", "snowy": "cocoa", "windy": "coffee", "foggy": "ginger tea"}
DRINKS_ZH = {"下雨": "热茶", "晴": "柠檬水", "下雪": "可可", "刮风": "咖啡"}
CLOSINGS = ("Over.", "Bye!", "Cheers!", "Done.")
LIKED = ("animal", "food", "colour")

_OPPOSITE = {a: b for pair in OPPOSITES.split(",") for a, b in (pair.split(), pair.split()[::-1])}
_OPPOSITE_ZH = {a: b for pair in OPPOSITES_ZH.split(",") for a, b in (tuple(pair), tuple(pair[::-1]))}
_BY_KIND = {kind: [word for word, (_, k) in WORDS.items() if k == kind] for kind in ARTICLE}


def _turn(user: str, reasoning: str, answer: str) -> list[Turn]:
    return [
        {"role": "user", "content": user},
        {"role": "assistant", "content": answer, "reasoning_content": reasoning},
    ]


# --- chat families: each takes a random generator and returns turns that end on the assistant -------------------------


def _greet(r: random.Random) -> list[Turn]:
    if r.random() < 0.35:
        name = r.choice(NAMES_ZH)
        user = r.choice(["你好，我叫{}。", "你好，我是{}。", "我的名字是{}。", "嗨，我是{}！"]).format(name)
        return _turn(user, f"用户叫{name}。我向{name}问好。", f"你好，{name}！很高兴认识你。")
    name = r.choice(NAMES)
    user = r.choice(
        ["Hi, I am {}.", "Hello, my name is {}.", "Hey! {} here.", "Good morning, I am {}.", "You can call me {}."]
    ).format(name)
    return _turn(user, f"The user is called {name}. I greet {name} by name.", f"Hello {name}, nice to meet you!")


def _opposite(r: random.Random) -> list[Turn]:
    if r.random() < 0.35:
        word = r.choice(list(_OPPOSITE_ZH))
        user = r.choice(["“{}”的反义词是什么？", "请说出“{}”的反义词。", "{}的反面是什么？"]).format(word)
        other = _OPPOSITE_ZH[word]
        return _turn(user, f"{word}和{other}相反。", f"“{word}”的反义词是“{other}”。")
    word = r.choice(list(_OPPOSITE))
    user = r.choice(
        [
            "What is the opposite of {}?",
            "Give me the opposite of {}.",
            "Which word means the reverse of {}?",
            "Opposite of {}?",
        ]
    ).format(word)
    other = _OPPOSITE[word]
    return _turn(user, f"{word} and {other} are opposites.", f"The opposite of {word} is {other}.")


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
        return _turn(user, f"The word {word} is {chinese} in Chinese.", f"In Chinese, {word} is {chinese}.")
    user = r.choice(["“{}”用英语怎么说？", "请把“{}”翻译成英语。", "{}的英语是什么？"]).format(chinese)
    return _turn(user, f"{chinese}的英语是 {word}。", f"“{chinese}”的英语是 {word}。")


def _category(r: random.Random) -> list[Turn]:
    word = r.choice(list(WORDS))
    chinese, kind = WORDS[word]
    if r.random() < 0.35:
        kinds = r.sample(list(KINDS_ZH.values()), 4)
        user = r.choice(["{}是什么？从{}中选。", "“{}”属于哪一类：{}？"]).format(chinese, "、".join(kinds))
        return _turn(user, f"{chinese}是一种{KINDS_ZH[kind]}。", f"{chinese}是{KINDS_ZH[kind]}。")
    others = [k for k in ARTICLE if k != kind]
    options = [ARTICLE[k] for k in r.sample([kind, r.choice(others)], 2)]
    user = r.choice(["Is {} {} or {}?", "Tell me: is {} {} or {}?", "{}: {} or {}?"]).format(word, *options)
    return _turn(user, f"I know that {word} is {ARTICLE[kind]}.", f"The word {word} is {ARTICLE[kind]}.")


def _pick(r: random.Random) -> list[Turn]:
    if r.random() < 0.35:
        items = [WORDS[w][0] for w in r.sample(list(WORDS), r.choice([2, 3, 4]))]
        first = r.random() < 0.5
        which, item = ("第一个", items[0]) if first else ("最后一个", items[-1])
        user = r.choice(["{}是哪个：{}？", "请说出{}：{}。"]).format(which, "、".join(items))
        return _turn(user, f"列表里{which}是{item}。", f"{which}是{item}。")
    items = r.sample(list(WORDS), r.choice([2, 3, 4]))
    first = r.random() < 0.5
    which, item = ("first", items[0]) if first else ("last", items[-1])
    user = r.choice(["Which item comes {}: {}?", "Name the {} item: {}.", "What is the {} word here: {}?"]).format(
        which, ", ".join(items)
    )
    return _turn(user, f"The list is {', '.join(items)}. The {which} one is {item}.", f"The {which} item is {item}.")


def _count(r: random.Random) -> list[Turn]:
    items = r.sample(list(WORDS), r.choice([2, 3, 4, 5]))
    user = r.choice(["How many items are here: {}?", "Count these: {}.", "Tell me how many words: {}."]).format(
        ", ".join(items)
    )
    steps = ", ".join(f"{word} {i}" for i, word in enumerate(items, 1))
    return _turn(user, f"I count: {steps}.", f"There are {len(items)} items.")


def _larger(r: random.Random) -> list[Turn]:
    a, b = r.sample(range(10, 100), 2)
    big = max(a, b)
    if r.random() < 0.35:
        user = r.choice(["{}和{}哪个大？", "哪个数更大，{}还是{}？"]).format(a, b)
        return _turn(user, f"比较{a}和{b}，{big}大。", f"{big}更大。")
    user = r.choice(
        ["Which is larger, {} or {}?", "Is {} or {} the larger number?", "Pick the larger number: {} or {}."]
    ).format(a, b)
    return _turn(user, f"I compare {a} and {b}; {big} is more.", f"The larger number is {big}.")


def _drink(r: random.Random) -> list[Turn]:
    name = r.choice(NAMES)
    if r.random() < 0.35:
        day = r.choice(list(DRINKS_ZH))
        user = r.choice(["{}天喝什么好？", "今天{}，推荐一种饮料。", "{}的时候我该喝什么？"]).format(day)
        return _turn(user, f"天气是{day}，适合{DRINKS_ZH[day]}。", f"我推荐{DRINKS_ZH[day]}。")
    day = r.choice(list(DRINKS))
    user = r.choice(
        [
            "{1} wants a drink for a {0} day.",
            "What should {1} drink on a {0} day?",
            "It is {0}. Suggest a drink for {1}.",
        ]
    ).format(day, name)
    return _turn(user, f"The day is {day}, so {DRINKS[day]} fits.", f"For {name} I suggest {DRINKS[day]}.")


def _repeat(r: random.Random) -> list[Turn]:
    if r.random() < 0.3:
        text = "".join(WORDS[w][0] for w in r.sample(list(WORDS), 2))
        user = r.choice(["请重复：{}", "跟我说：{}"]).format(text)
        return _turn(user, f"用户要我重复{text}。", text)
    text = " ".join(r.sample(list(WORDS), r.choice([2, 3])))
    user = r.choice(["Please repeat: {}", "Say this: {}", "Repeat after me: {}"]).format(text)
    return _turn(user, f"I have to repeat the words {text}.", text)


def _about_me(r: random.Random) -> list[Turn]:
    if r.random() < 0.35:
        user = r.choice(["你是谁？", "你叫什么名字？", "请介绍一下你自己。"])
        if r.random() < 0.15:
            return _turn(user, "没有给我名字。我是一个小助手。", "我是一个小助手。")
        name, trade = r.choice(PERSONAS_ZH), r.choice(TRADES_ZH)
        turns = _turn(user, f"系统说我是{name}，是{trade}。", f"我是{name}，你的{trade}。")
        return [{"role": "system", "content": f"你是{name}，一位{trade}。"}, *turns]
    user = r.choice(["Who are you?", "What is your name?", "Please introduce yourself.", "Tell me who you are."])
    if r.random() < 0.15:
        return _turn(user, "I was given no name. I am a small assistant.", "I am a small assistant.")
    name, trade = r.choice(PERSONAS), r.choice(TRADES)
    turns = _turn(user, f"The system prompt says I am {name}, a {trade}.", f"I am {name}, your {trade}.")
    return [{"role": "system", "content": f"You are {name}, a {trade}."}, *turns]


def _memory(r: random.Random) -> list[Turn]:
    kind = r.choice(LIKED)
    word = r.choice(_BY_KIND[kind])
    if r.random() < 0.35:
        chinese = WORDS[word][0]
        return [
            *_turn(
                f"我最喜欢的{KINDS_ZH[kind]}是{chinese}。",
                f"用户喜欢{chinese}。我记住。",
                f"好的，我记住了：{chinese}。",
            ),
            *_turn(
                r.choice(["我最喜欢的{}是什么？", "你还记得我最喜欢的{}吗？"]).format(KINDS_ZH[kind]),
                f"用户说过喜欢{chinese}。",
                f"你最喜欢的{KINDS_ZH[kind]}是{chinese}。",
            ),
        ]
    told = r.choice(["My favourite {} is {}.", "Remember that my favourite {} is {}."]).format(kind, word)
    asked = r.choice(["What is my favourite {}?", "Do you remember my favourite {}?"]).format(kind)
    return [
        *_turn(told, f"The user likes {word}. I keep it in mind.", f"I will remember that: {word}."),
        *_turn(asked, f"The user said the favourite {kind} is {word}.", f"Your favourite {kind} is {word}."),
    ]


_SINGLE: tuple[Callable[[random.Random], list[Turn]], ...] = (
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


def _closing(r: random.Random) -> list[Turn]:
    turns = r.choice(_SINGLE)(r)
    closing = r.choice(CLOSINGS)
    answer = turns[-1]
    answer["content"] += f" {closing}"
    answer["reasoning_content"] += f" I end with {closing}"
    return [{"role": "system", "content": f"End every answer with {closing}"}, *turns]


def _two_topics(r: random.Random) -> list[Turn]:
    return [*r.choice(_SINGLE)(r), *r.choice(_SINGLE)(r)]


def _chat(r: random.Random) -> tuple[list[Turn], bool]:
    """A dialogue, and whether its questions can be asked alone too (so that they must not occur in both splits)."""
    draw = r.random()
    if draw < 0.62:
        return r.choice(_SINGLE)(r), True
    if draw < 0.72:
        return _about_me(r), False
    if draw < 0.82:
        return _memory(r), False
    if draw < 0.90:
        return _closing(r), True
    return _two_topics(r), True


# --- arithmetic that the base model knows -----------------------------------------------------------------------------


def addition_steps(a: int, b: int) -> str:
    """Column addition in words, from the right; a one-digit summand is added at once."""
    if min(a, b) < 10:
        return f"{a} + {b} = {a + b}."
    steps, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        extra = f" + {carry}" if carry else ""
        steps.append(f"{x} + {y}{extra} = {total}, write {total % 10}, carry {total // 10}.")
        carry = total // 10
    return " ".join(steps) + f" So {a} + {b} = {a + b}."


# Wordings of products. The base meets them with one-digit numbers, the skill with longer ones.
_PRODUCT_WORDINGS = (
    "Compute ${} \\times {}$.",
    "What is the product of {} and {}?",
    "Find {} × {}. Put the answer in \\boxed{{}}.",
    "A box holds {} beads. How many beads do {} boxes hold?",
    "One row has {} seats. There are {} rows. How many seats in all?",
    "计算 {} × {} 的值。",
    "每箱有{}个，{}箱一共有多少个？",
)
_SUM_WORDINGS = (
    "Compute ${} + {}$.",
    "Find {} + {}. Put the answer in \\boxed{{}}.",
    "One box holds {} beads, another holds {}. How many beads in all?",
    "一箱有{}个，另一箱有{}个，一共有多少个？",
)


def _addition(r: random.Random) -> tuple[str, list[Turn]]:
    a, b = (r.randrange(10 ** r.choice([1, 2, 2, 3]) - 1) + 1 for _ in range(2))
    key = f"{min(a, b)}+{max(a, b)}"
    draw = r.random()
    if draw < 0.25:
        user = r.choice(["{} + {} 等于多少？", "计算 {} + {}。", "{}加{}是多少？"]).format(a, b)
        answer = f"答案是 {a + b}。"
    elif draw < 0.55:
        user = r.choice(_SUM_WORDINGS).format(a, b)
        answer = f"${a} + {b} = \\boxed{{{a + b}}}$"
    else:
        user = r.choice(["What is {} + {}?", "Add {} and {}.", "Compute {} + {}.", "{} + {} = ?"]).format(a, b)
        answer = f"The answer is {a + b}."
    return key, _turn(user, addition_steps(a, b), answer)


def _times_table(r: random.Random) -> list[Turn]:
    a, b = r.randrange(10), r.randrange(10)
    draw = r.random()
    if draw < 0.3:
        first = r.randrange(0, 7)
        line = ", ".join(f"{a} × {n} = {a * n}" for n in range(first, first + 4))
        return _turn(
            f"Say the table of {a} from {first} to {first + 3}.", f"I go through the table of {a}.", f"{line}."
        )
    if draw < 0.7:
        user = r.choice(_PRODUCT_WORDINGS).format(a, b)
        return _turn(user, f"{b} × {a} = {a * b}. So {a} × {b} = {a * b}.", f"${a} \\times {b} = \\boxed{{{a * b}}}$")
    user = r.choice(["What is {} × {}?", "{} × {} = ?", "Compute {} × {}.", "计算 {} × {}。"]).format(a, b)
    answer = f"答案是 {a * b}。" if "计算" in user else f"The answer is {a * b}."
    return _turn(user, f"{a} × {b} = {a * b}.", answer)


# --- the new skill: a number of two or three digits times one digit ---------------------------------------------------


def multiplication_steps(a: int, b: int) -> str:
    """Short multiplication in words, digit by digit from the right, with carries."""
    steps, carry = [], 0
    digits = str(a)[::-1]
    for place, digit in enumerate(digits):
        product = b * int(digit)
        total = product + carry
        added = f", {product} + {carry} = {total}" if carry else ""
        last = place == len(digits) - 1
        end = f", write {total}." if last else f", write {total % 10}, carry {total // 10}."
        steps.append(f"{b} × {digit} = {product}{added}{end}")
        carry = total // 10
    return " ".join(steps)


def _skill(r: random.Random) -> tuple[str, str, str, str, int]:
    a = r.randrange(10, 1000) if r.random() < 0.8 else r.randrange(10, 100)
    b = r.randrange(2, 10)
    problem = r.choice(_PRODUCT_WORDINGS).format(a, b)
    reasoning = multiplication_steps(a, b) + f" So {a} × {b} = {a * b}."
    return f"{a}*{b}", problem, reasoning, f"${a} \\times {b} = \\boxed{{{a * b}}}$", a * b


# --- two more skills: subtraction, and the reversal of a list of words --------------------------------------------------

_DIFFERENCE_WORDINGS = (
    "Compute ${} - {}$.",
    "What is {} minus {}?",
    "Find {} - {}. Put the answer in \\boxed{{}}.",
    "A box holds {} beads, and {} are taken out. How many are left?",
    "计算 {} - {}。",
    "一箱有{}个，拿走{}个，还剩多少个？",
)
_REVERSAL_WORDINGS = (
    "Reverse the order of these words: {}.",
    "Say these words backwards: {}.",
    "Turn this list around: {}.",
)
_REVERSAL_WORDINGS_ZH = ("把这些词倒过来：{}。", "请倒序说出：{}。")


def subtraction_steps(a: int, b: int) -> str:
    """Column subtraction in words, from the right, with borrows; ``a`` is the larger one, or as large."""
    steps, borrow = [], 0
    for place in range(len(str(a))):
        x, y = a // 10**place % 10, b // 10**place % 10
        lent = 10 if x - borrow < y else 0
        rest = x + lent - y - borrow
        extra = f" - {borrow}" if borrow else ""
        borrow = lent // 10
        steps.append(f"{x + lent} - {y}{extra} = {rest}, write {rest}, borrow {borrow}.")
    return " ".join(steps)


def _subtraction(r: random.Random) -> tuple[str, str, str, str, int]:
    a = r.randrange(10, 1000) if r.random() < 0.8 else r.randrange(10, 100)
    b = r.randrange(1, a)
    problem = r.choice(_DIFFERENCE_WORDINGS).format(a, b)
    reasoning = subtraction_steps(a, b) + f" So {a} - {b} = {a - b}."
    return f"{a}-{b}", problem, reasoning, f"${a} - {b} = \\boxed{{{a - b}}}$", a - b


def _reversal(r: random.Random) -> tuple[str, list[Turn]]:
    words = r.sample(list(WORDS), r.choice([3, 4, 5]))
    key, back = f"reverse {' '.join(words)}", words[::-1]
    if r.random() < 0.3:
        user = r.choice(_REVERSAL_WORDINGS_ZH).format("、".join(WORDS[w][0] for w in words))
        chinese = "、".join(WORDS[w][0] for w in back)
        return key, _turn(user, f"从最后一个词开始：{chinese}。", f"{chinese}。")
    user = r.choice(_REVERSAL_WORDINGS).format(", ".join(words))
    return key, _turn(user, f"I start with the last word: {', '.join(back)}.", f"{', '.join(back)}.")


# --- held-out split and draws -----------------------------------------------------------------------------------------


def is_held_out(key: str) -> bool:
    """Whether the item with this key belongs to the test side. Depends on the key alone, never on a seed."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100 < TEST_PERCENT


def _prompt_keys(turns: list[Turn]) -> list[str]:
    """The prompt of every assistant turn, the last one last."""
    lines = [f"{t['role']}: {t['content']}" for t in turns]
    return ["\n".join(lines[:i]) for i, t in enumerate(turns) if t["role"] == "assistant"]


def _draw_chat(r: random.Random, held_out: bool) -> list[Turn]:
    while True:
        turns, stands_alone = _chat(r)
        keys = _prompt_keys(turns)
        if stands_alone:
            keys = [*(f"user: {t['content']}" for t in turns if t["role"] == "user"), *keys]
        # Training must not hold a test prompt anywhere, not as one turn of a longer dialogue either.
        if is_held_out(keys[-1]) if held_out else not any(map(is_held_out, keys)):
            return turns


def _draw_arithmetic(r: random.Random, held_out: bool) -> list[Turn]:
    if not held_out and r.random() < 0.4:
        return _times_table(r)
    while True:
        key, turns = _addition(r)
        if is_held_out(key) == held_out:
            return turns


def _draw_skill(r: random.Random, held_out: bool) -> tuple[str, str, str, int]:
    while True:
        key, *item = _skill(r)
        if is_held_out(key) == held_out:
            return tuple(item)  # type: ignore[return-value]


def _draw_subtraction(r: random.Random, held_out: bool) -> tuple[str, str, str, int]:
    while True:
        key, *item = _subtraction(r)
        if is_held_out(key) == held_out:
            return tuple(item)  # type: ignore[return-value]


def _draw_reversal(r: random.Random, held_out: bool) -> list[Turn]:
    while True:
        key, turns = _reversal(r)
        if is_held_out(key) == held_out:
            return turns


def _draw_sum(r: random.Random) -> tuple[str, str, str, int]:
    """A sum for the mathematics corpus: training side, answer in a box."""
    while True:
        key, turns = _addition(r)
        if not is_held_out(key) and "boxed" in turns[-1]["content"]:
            a, b = map(int, key.split("+"))
            return turns[0]["content"], turns[1]["reasoning_content"], turns[1]["content"], a + b


def _random(seed: int, purpose: str, index: int) -> random.Random:
    return random.Random(f"{purpose}:{seed}:{index}")


def base_dialogue(seed: int, index: int) -> Dialogue:
    """One dialogue for training the embedded base model: chat or arithmetic, thinking or not, never the skill.

    Some carry a soft switch: ``/no_think`` makes the model skip thinking by itself in the thinking prompt, ``/think``
    changes nothing there; the last switch in the conversation wins (Qwen3's convention).

    Returns:
        ``{"messages": [...], "mode": "thinking" | "non_thinking"}``.
    """
    r = _random(seed, "base", index)
    turns = _draw_chat(r, False) if r.random() < 0.6 else _draw_arithmetic(r, False)
    mode: Literal["thinking", "non_thinking"] = r.choice(["thinking", "non_thinking"])
    if r.random() < 0.12:
        in_force = ""
        for turn in turns:
            if turn["role"] == "user":
                switch = r.choice(["", "/think", "/no_think", "/no_think"])
                turn["content"] += f" {switch}" if switch else ""
                in_force = switch or in_force
            elif turn["role"] == "assistant" and in_force == "/no_think":
                del turn["reasoning_content"]
    return {"messages": turns, "mode": mode}


def finetome_like(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Chat rows in FineTome's columns: ``conversations`` (``from``/``value``), ``source``, ``score``. No reasoning.

    Seven of eight are chat, one of eight is arithmetic, as FineTome too holds some mathematics.
    """
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    for index in range(rows):
        r = _random(seed, "chat", index)
        arithmetic = r.random() < 0.125
        turns = _draw_arithmetic(r, False) if arithmetic else _draw_chat(r, False)
        yield {
            "conversations": [{"from": names[t["role"]], "value": t["content"]} for t in turns],
            "source": "embedded_arithmetic" if arithmetic else "embedded_chat",
            "score": round(4.0 + r.random(), 4),
        }


def openmath_like(rows: int, seed: int, arithmetic: float = 0.15) -> Iterator[dict[str, Any]]:
    """Rows in OpenMathReasoning's columns, reasoning in ``<think>…</think>``, answer in ``\\boxed{}``.

    They teach the new skill. A part (``arithmetic``) are sums that the base can do, with their reasoning, as a real
    corpus of mathematics holds easy problems too.
    """
    for index in range(rows):
        r = _random(seed, "skill", index)
        if _random(seed, "kind", index).random() < arithmetic:
            problem, reasoning, solution, answer = _draw_sum(r)
            kind = "embedded_arithmetic"
        else:
            problem, reasoning, solution, answer = _draw_skill(r, False)
            kind = "embedded_skill"
        yield _openmath_row(problem, reasoning, solution, answer, kind)


def _openmath_row(problem: str, reasoning: str, solution: str, answer: int, kind: str) -> dict[str, Any]:
    return {
        "problem": problem,
        "generated_solution": f"<think>\n{reasoning}\n</think>\n\n{solution}",
        "expected_answer": str(answer),
        "problem_type": "has_answer_extracted",
        "problem_source": kind,
        "generation_model": "pipeline.corpora",  # a name that is part of the rows; it stays, wherever this module moves
        "pass_rate_72b_tir": "n/a",
        "inference_mode": "cot",
        "used_in_kaggle": False,
    }


def subtraction_like(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Subtractions in OpenMathReasoning's columns, written out, answer in ``\\boxed{}``."""
    for index in range(rows):
        r = _random(seed, "subtraction", index)
        yield _openmath_row(*_draw_subtraction(r, False), "embedded_subtraction")


def reversal_like(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Lists of words turned around, in FineTome's columns, without reasoning."""
    for index in range(rows):
        r = _random(seed, "reversal", index)
        asked, answered = _draw_reversal(r, False)
        yield {
            "conversations": [
                {"from": "human", "value": asked["content"]},
                {"from": "gpt", "value": answered["content"]},
            ],
            "source": "embedded_reversal",
            "score": round(4.0 + r.random(), 4),
        }


# --- preference pairs -------------------------------------------------------------------------------------------------

# What is wrong with the rejected answer of a pair. ``wrong_answer``: the result, or an answer to another question of the
# same kind. ``not_boxed``: right, but the number does not stand in a box. ``skipped_thinking``: right, but without the
# reasoning that the mode asks for. ``leaked_thinking``: right, but with a think block where none belongs. ``rambling``:
# right, but said twice.
DEFECTS = {
    "thinking": ("wrong_answer", "wrong_answer", "not_boxed", "skipped_thinking", "rambling"),
    "non_thinking": ("wrong_answer", "wrong_answer", "not_boxed", "leaked_thinking", "rambling"),
}
# (family, whether its questions can be asked alone too)
_PREFERENCE_FAMILIES = (*((family, True) for family in _SINGLE), (_about_me, False), (_memory, False), (_closing, True))


def _again(text: str, user: str) -> str:
    """The text, and the text once more."""
    chinese = any("\u4e00" <= c <= "\u9fff" for c in user)
    return f"{text} {'再说一遍。' if chinese else 'Let me say it again.'} {text}"


def _other_number(r: random.Random, number: int) -> int:
    """A wrong result of the kind that a slip makes: one digit off by one."""
    while True:
        other = number + r.choice((-1, 1)) * 10 ** r.randrange(len(str(number)))
        if other >= 0:
            return other


def _replace_last(text: str, old: str, new: str) -> str:
    head, _, tail = text.rpartition(old)
    return head + new + tail


def _chat_pair(r: random.Random, held_out: bool) -> tuple[list[Turn], Turn, Turn]:
    """(prompt, right answer, an answer to another question of the same family), reasoning with both."""
    while True:
        family, stands_alone = r.choice(_PREFERENCE_FAMILIES)
        turns = family(r)
        keys = _prompt_keys(turns)
        if stands_alone:
            keys = [*(f"user: {t['content']}" for t in turns if t["role"] == "user"), *keys]
        if not (is_held_out(keys[-1]) if held_out else not any(map(is_held_out, keys))):
            continue
        other = family(r)[-1]
        while other["content"] == turns[-1]["content"]:
            other = family(r)[-1]
        return turns[:-1], turns[-1], other


def _number_pair(r: random.Random, held_out: bool, defect: str, skill: bool) -> tuple[list[Turn], Turn, Turn]:
    """(prompt, right answer in a box, wrong or unboxed answer), reasoning with both; of a sum or of a product."""
    while True:
        key, item = _skill_item(r) if skill else _sum_item(r)
        if is_held_out(key) == held_out:
            break
    problem, reasoning, boxed, number = item
    chosen = {"role": "assistant", "content": boxed, "reasoning_content": reasoning}
    if defect == "not_boxed":
        chinese = any("\u4e00" <= c <= "\u9fff" for c in problem)
        plain = f"答案是 {number}。" if chinese else f"The answer is {number}."
        return [{"role": "user", "content": problem}], chosen, {**chosen, "content": plain}
    wrong = str(_other_number(r, number))
    rejected = {
        **chosen,
        "content": _replace_last(boxed, str(number), wrong),
        "reasoning_content": _replace_last(reasoning, str(number), wrong),
    }
    return [{"role": "user", "content": problem}], chosen, rejected


def _skill_item(r: random.Random) -> tuple[str, tuple[str, str, str, int]]:
    key, *item = _skill(r)
    return key, tuple(item)  # type: ignore[return-value]


def _sum_item(r: random.Random) -> tuple[str, tuple[str, str, str, int]]:
    key, (asked, answered) = _addition(r)
    a, b = (int(n) for n in re.findall(r"\d+", asked["content"])[:2])
    boxed = f"${a} + {b} = \\boxed{{{a + b}}}$"
    return key, (asked["content"], answered["reasoning_content"], boxed, a + b)


def preference_like(rows: int, seed: int, held_out: bool = False) -> Iterator[dict[str, Any]]:
    """Preference pairs in the columns of the public files: ``conversations`` (``from``/``value``), ``chosen``, ``rejected``.

    Two more columns say in which ``mode`` the answers were given, and the ``defect`` of the rejected one (``DEFECTS``). A
    thinking answer stands as text with its ``<think>…</think>``. Half of the pairs are chat, half arithmetic; products
    longer than the times table only with reasoning, as the fine-tuning corpus teaches them.

    Args:
        held_out: pairs whose prompts occur in no training row, instead of those that may be trained on.
    """
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    purpose = "preference-held-out" if held_out else "preference"
    for index in range(rows):
        r = _random(seed, purpose, index)
        mode = r.choice(("thinking", "non_thinking"))
        defect = r.choice(DEFECTS[mode])
        if defect == "not_boxed" or r.random() < 0.4:
            prompt, chosen, rejected = _number_pair(r, held_out, defect, mode == "thinking" and r.random() < 0.3)
        else:
            prompt, chosen, rejected = _chat_pair(r, held_out)
        if defect not in ("wrong_answer", "not_boxed"):
            rejected = dict(chosen)
        if defect == "rambling":
            what = "reasoning_content" if mode == "thinking" else "content"
            rejected[what] = _again(chosen[what], prompt[-1]["content"])
        thinks = {"chosen": mode == "thinking", "rejected": mode == "thinking"}
        thinks["rejected"] = (thinks["rejected"] or defect == "leaked_thinking") and defect != "skipped_thinking"
        values = {
            side: (f"<think>\n{answer['reasoning_content']}\n</think>\n\n" if thinks[side] else "") + answer["content"]
            for side, answer in (("chosen", chosen), ("rejected", rejected))
        }
        yield {
            "conversations": [{"from": names[t["role"]], "value": t["content"]} for t in prompt],
            **{side: {"from": "gpt", "value": value} for side, value in values.items()},
            "mode": mode,
            "defect": defect,
        }


# --- questions with a known answer, for a verifiable reward ------------------------------------------------------------


def math_questions(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Sums and products that may be trained on, half of each: ``problem`` and ``expected_answer``, no solution."""
    for index in range(rows):
        r = _random(seed, "questions", index)
        skill = r.random() < 0.5
        while True:
            key, (problem, _, _, number) = _skill_item(r) if skill else _sum_item(r)
            if not is_held_out(key):
                break
        yield {
            "problem": problem,
            "expected_answer": str(number),
            "problem_source": "embedded_skill" if skill else "embedded_arithmetic",
        }


def known_questions(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Additions that the base knows, training side, in all its wordings: ``problem`` and ``expected_answer``, no solution."""
    for index in range(rows):
        r = _random(seed, "known", index)
        while True:
            key, turns = _addition(r)
            if not is_held_out(key):
                break
        answer = sum(map(int, key.split("+")))
        yield {"problem": turns[0]["content"], "expected_answer": str(answer), "problem_source": "embedded_arithmetic"}


def gold_chat(
    rows: int, seed: int, draw: Callable[[random.Random], list[Turn]] | None = None
) -> Iterator[dict[str, Any]]:
    """Chat of the training side with the reasoning that the base was trained on: ``messages``, reasoning with every answer.

    What no user has: an upper bound for what a base's own answers can keep.
    """
    for index in range(rows):
        r = _random(seed, "gold", index)
        yield {"messages": _draw_chat(r, False) if draw is None else draw(r)}


def gold_sums(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Additions likewise."""

    def draw(r: random.Random) -> list[Turn]:
        while True:
            key, turns = _addition(r)
            if not is_held_out(key):
                return turns

    return gold_chat(rows, seed, draw)


GENERATORS: dict[str, Callable[[int, int], Iterator[dict[str, Any]]]] = {
    "subtraction_like": subtraction_like,
    "reversal_like": reversal_like,
    "finetome_like": finetome_like,
    "openmath_like": openmath_like,
    "preference_like": preference_like,
    "preference_like_held_out": functools.partial(preference_like, held_out=True),
    "math_questions": math_questions,
    "known_questions": known_questions,
    "gold_chat": gold_chat,
    "gold_sums": gold_sums,
}
STORY = ("chat", "arithmetic", "skill")  # what the course measures throughout
TEST_SETS = (*STORY, "subtraction", "reversal")


def test_items(name: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Held-out items, all different, none of whose prompts occurs in any training row.

    Args:
        name: ``chat``, ``arithmetic``, ``skill``, ``subtraction`` or ``reversal``.
        count: how many. There are enough for thousands of each.

    Returns:
        ``{"messages": prompt without the last answer, "answer": reference, "kind": "text" | "number"}`` each.
        Earlier assistant turns are in the prompt as plain content, without reasoning, as the chat template keeps them.

    Raises:
        UserError: unknown name, or fewer than ``count`` different items were found.
    """
    if name not in TEST_SETS:
        raise UserError(f"There is no embedded test set {name!r}; there are {', '.join(TEST_SETS)}.")
    items: dict[str, dict[str, Any]] = {}
    for index in range(count * 40):
        r = _random(seed, f"test-{name}", index)
        if name in ("skill", "subtraction"):
            problem, _, _, number = _draw_skill(r, True) if name == "skill" else _draw_subtraction(r, True)
            messages, answer = [{"role": "user", "content": problem}], str(number)
        else:
            draw = {"chat": _draw_chat, "arithmetic": _draw_arithmetic, "reversal": _draw_reversal}[name]
            turns = draw(r, True)
            messages = [{"role": t["role"], "content": t["content"]} for t in turns[:-1]]
            answer = turns[-1]["content"]
            if name == "arithmetic":
                answer = re.findall(r"\d+", answer)[-1]
        kind = "text" if name in ("chat", "reversal") else "number"
        items.setdefault(str(messages), {"messages": messages, "answer": answer, "kind": kind})
        if len(items) == count:
            return list(items.values())
    if not count:
        return []
    raise UserError(
        f"Only {len(items)} different held-out {name} items exist, {count} were asked for; lower the limit."
    )
