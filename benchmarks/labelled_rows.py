# ruff: noqa: E501
"""Labelled rows of this project's own making, a list for each cleaning step: what it should take, and what only resembles that.

``refusals`` and the pairs of answers are written by hand and lie in files. The others are built from parts that are written by
hand: subjects in both languages, put into frames that make a row one to take or one to keep. Nothing is random, so that the
numbers in ``docs/results/cleaning_quality.json`` can be checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Labelled:
    """A row and whether the step should take (or change) it. ``other``: a benchmark's item, or the earlier row's answer."""

    question: str
    answer: str
    take: bool
    reasoning: str | None = None
    expected: str | None = None
    other: tuple[str, str] | None = None


def _lines(path: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]


def refusals() -> list[Labelled]:
    return [
        Labelled(row["question"], row["answer"], bool(row["take"]))
        for row in _lines("benchmarks/labelled/refusals.jsonl")
    ]


def check_answer() -> list[Labelled]:
    """A wrong answer is one to take."""
    rows = []
    for pair in _lines("tests/data/tables/answers.jsonl"):
        text = pair.get("text") or f"So it is \\boxed{{{pair['answer']}}}."
        rows.append(Labelled("?", text, not pair["right"], expected=pair["expected"]))
    return rows


ENGLISH = (
    "the old mill by the river", "a bakery that opens at five", "the night train to the coast", "bees in a city garden",
    "a bridge made of rope", "the clock in the station hall", "apples that keep until spring", "a lighthouse without a keeper",
    "paper made from straw", "the shortest day of the year", "a violin with three strings", "tea that grows in the hills",
    "the market on the square", "a map drawn from memory", "stones in a dry stream",
)  # fmt: skip
CHINESE = (
    "河边的旧磨坊", "早上五点开门的面包店", "开往海边的夜车", "城里花园的蜜蜂", "用绳子做的桥", "车站大厅的钟", "能放到春天的苹果",
    "没有看守的灯塔", "用稻草做的纸", "一年中最短的一天", "只有三根弦的小提琴", "山上种的茶", "广场上的集市", "凭记忆画的地图", "干河床里的石头",
)  # fmt: skip
SUBJECTS = [*((text, False) for text in ENGLISH), *((text, True) for text in CHINESE)]


def _about(subject: str, chinese: bool, number: int) -> str:
    """A few plain sentences on a subject."""
    english = (
        f"People often ask about {subject}. It is less rare than one may think.",
        f"There is much to say about {subject}, and most of it is pleasant to tell.",
        f"When I first heard of {subject}, I did not believe it. Then I went to see for myself.",
    )
    han = (
        f"常有人问起{subject}，其实它并不少见。",
        f"说到{subject}，可讲的事情很多，而且大多有趣。",
        f"我第一次听说{subject}时并不相信，后来亲眼看到了。",
    )
    return (han if chinese else english)[number % 3]


def normalise() -> list[Labelled]:
    """To take: what is broken in its characters. To keep, to the letter: what an author may want so."""
    rows = []
    for number, (subject, chinese) in enumerate(SUBJECTS):
        text = _about(subject, chinese, number)
        half = len(text) // 2
        broken = (
            f"{text[:half]}\u200b{text[half:]}", f"\ufeff{text}", text.replace("e", "e\u0301", 1) if not chinese else f"{text}\x07",
            f"{text}\r\n{text}", f"{text}\n\n\n\n\n{text}", f"{text[:half]}\u202e{text[half:]}", f"{text} cafÃ© â€œyesâ€\x9d",
        )  # fmt: skip
        kept = (
            f"{text}  \n{text}", f"{text}  {text}", f"```\nx =  1\n\n\n\n\ny = 2\u200b\n```\n{text}", f"    if x:\n        y()\n{text}",
            f">>> for i in x:\n...     y(i)\n{text}", f"| a   | b |\n|-----|---|\n{text}", f"$a  +  b$ ½ ² ① ，。！\n{text}",
        )  # fmt: skip
        rows += [Labelled("?", broken[(number + shift) % 7], True) for shift in (0, 3)]
        rows += [Labelled("?", kept[(number + shift) % 7], False) for shift in (0, 2, 5)]
    return rows


def broken_reasoning() -> list[Labelled]:
    rows = []
    for number, (subject, chinese) in enumerate(SUBJECTS):
        thought = _about(subject, chinese, number) + ("所以答案很清楚。" if chinese else " So the answer is plain.")
        answer = f"答案是{number}。" if chinese else f"It is {number}."
        cut = ("首先，我们看" + subject + "，") if chinese else f"First we look at {subject},"
        broken = (
            (cut, answer), (thought, ""), (" … \n", answer), (answer, answer), (f"{thought}\n```python\nx = {number}", answer),
            (f"{thought} \\frac{{1", answer), (f"{thought} f(", answer),
        )  # fmt: skip
        kept = (
            (thought, answer), (f"{thought} {{1, 2}}", answer), (f"{thought}\n```\nx = {number}\n```", answer),
            (thought.rstrip("。."), answer), (f"{thought} $x_{{1}}$", answer), (f"{thought}:", answer), (None, answer),
        )  # fmt: skip
        for shift in (0, 3):
            rows.append(Labelled("?", broken[(number + shift) % 7][1], True, broken[(number + shift) % 7][0]))
            rows.append(Labelled("?", kept[(number + shift) % 7][1], False, kept[(number + shift) % 7][0]))
    return rows


def _paragraph(start: int, chinese: bool, sentences: int = 12) -> str:
    pool = CHINESE if chinese else ENGLISH
    return ("" if chinese else " ").join(
        _about(pool[(start + i) % len(pool)], chinese, i) + (f"（{start + i}）" if chinese else f" ({start + i})")
        for i in range(sentences)
    )


def repetition() -> list[Labelled]:
    """To take: endless loops. To keep: songs, plans, code before and after, lists, long texts."""
    rows = []
    days = ("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(), [f"星期{d}" for d in "一二三四五六日"])
    for number, (subject, chinese) in enumerate(SUBJECTS):
        line, text = _about(subject, chinese, number), _paragraph(number, chinese)
        gap = "" if chinese else " "
        loops = (
            gap.join([line] * 20), text + gap.join([line] * 40), gap.join([_paragraph(number, chinese, 6)] * 5),
            text[:80] + "\n".join([line] * 120), gap.join(f"{line}{gap}{word}。" for word in map(str, range(60))), text + "哈" * 300,
        )  # fmt: skip
        chorus, code = (
            _paragraph(number + 3, chinese, 3),
            "\n".join(f"item_{i} = load({i}, retries=3, strict=True)" for i in range(30)),
        )
        fine = (
            f"{text}\n\n{chorus}\n{chorus}\n\n{_paragraph(number + 7, chinese)}\n\n{chorus}\n{chorus}\n",
            "\n".join(f"{day}: {line} {line}" for day in days[chinese]),
            f"{code}\n\n{line}\n\n{code.replace('load', 'read')}",
            text, f"{text}\n\n{text}", "\n".join(f"{i}. {line} {i * 7}" for i in range(1, 13)),
        )  # fmt: skip
        rows += [Labelled("?", loops[(number + shift) % 6], True) for shift in (0, 2)]
        rows += [Labelled("?", fine[(number + shift) % 6], False) for shift in (0, 1, 3)]
    return rows


FOREIGN = {
    "Spanish": "El mercado de la plaza abre temprano y los vecinos compran pan, queso y fruta antes de ir al trabajo.",
    "French": "Le marché de la place ouvre tôt, et les voisins achètent du pain, du fromage et des fruits avant de partir.",
    "German": "Der Markt auf dem Platz öffnet früh, und die Nachbarn kaufen Brot, Käse und Obst, bevor sie zur Arbeit gehen.",
    "Italian": "Il mercato della piazza apre presto e i vicini comprano pane, formaggio e frutta prima di andare al lavoro.",
    "Portuguese": "O mercado da praça abre cedo e os vizinhos compram pão, queijo e frutas antes de irem para o trabalho.",
    "Russian": "Рынок на площади открывается рано, и соседи покупают хлеб, сыр и фрукты, прежде чем идти на работу.",
    "Swedish": "Torget öppnar tidigt på morgonen, och grannarna köper bröd, ost och frukt innan de går till arbetet i staden.",
    "Polish": "Targ na placu otwiera się wcześnie, a sąsiedzi kupują chleb, ser i owoce, zanim pójdą do swojej pracy.",
    "Turkish": "Meydandaki pazar erken açılır ve komşular işe gitmeden önce ekmek, peynir ve meyve satın alırlar.",
    "Japanese": "広場の市場は朝早く開き、近所の人々は仕事に行く前にパンとチーズと果物を買います。",
    "Korean": "광장의 시장은 일찍 문을 열고 이웃들은 출근하기 전에 빵과 치즈와 과일을 삽니다.",
}
QUESTIONS = {
    "Spanish": "¿Qué pasa por la mañana en la plaza del pueblo?",
    "French": "Que se passe-t-il le matin sur la place du village ?",
    "German": "Was geschieht am Morgen auf dem Platz im Dorf?",
    "Italian": "Che cosa succede la mattina nella piazza del paese?",
    "Portuguese": "O que acontece de manhã na praça da cidade?",
    "Russian": "Что происходит утром на площади в деревне?",
    "Swedish": "Vad händer på torget i byn på morgonen?",
    "Polish": "Co dzieje się rano na placu w miasteczku?",
    "Turkish": "Sabahları köy meydanında neler olur?",
    "Japanese": "朝、村の広場では何がありますか。",
    "Korean": "아침에 마을 광장에서는 무슨 일이 있습니까?",
}


def languages() -> list[Labelled]:
    """Under [en, zh]."""
    rows = []
    for (name, text), other in zip(FOREIGN.items(), [*list(FOREIGN)[1:], "Spanish"], strict=True):
        question, sentences = QUESTIONS[name], text.split(", ")
        rows += [
            Labelled(question, text, True),
            Labelled(question, f"{text} {text}", True),
            Labelled(f"{question} {question}", f"1. {text}\n2. {text}", True),
            Labelled("Tell me about the market.", f"{text} {text}", True),
            Labelled("说说集市。", f"{text}\n{text}", True),
            Labelled(f"Translate into {name}: The market opens early.", text, False),
            Labelled(f"How would one put this in {name}? The market opens early.", text, False),
            Labelled("把这句话翻译成外语：集市很早就开门。", text, False),
            Labelled(
                f"What does this mean? {text}",
                "It says that the market opens early and that people buy bread and cheese.",
                False,
            ),
            Labelled(f"这句话是什么意思？{text}", "意思是集市很早开门，人们上班前去买面包和奶酪。", False),
            Labelled(f"对还是错：{text}", "对", False),
            Labelled(f"Quote a line in {other}.", FOREIGN[other], False),
        ]
        if name not in ("Japanese", "Korean"):  # whose letters say it at once
            rows.append(Labelled(question, sentences[0][:12], False))  # too short to tell
    for number, (subject, chinese) in enumerate(SUBJECTS):
        rows.append(Labelled("你好" if chinese else "Hello", _about(subject, chinese, number), False))
    return rows


NAMES = ("Ann", "Bo", "Carla", "Dmitri", "Eve", "Farid", "Gita", "Hugo", "Ines", "Jun")


def personal_data() -> list[Labelled]:
    """With the default kinds and ``ip_address``. Values pass their checksums; none is anybody's."""
    rows = []
    for n, name in enumerate(NAMES):
        low = name.lower()
        card, person = (
            ("4111111111111111", "5500000000000004")[n % 2],
            ("11010519491231002X", "440308199901010013")[n % 2],
        )
        rows += [
            Labelled("?", f"Write to {low}{n}@post-{n}.org before Friday.", True),
            Labelled("?", f"请发邮件到{low}.{n}@mail{n}.cn，谢谢。", True),
            Labelled("?", f"{name} can be reached at +44 20 7946 0{n}58.", True),
            Labelled("?", f"我的手机号是138123456{n}8，晚上再打。", True),
            Labelled("?", f"My card number is {card}, it expires in May.", True),
            Labelled("?", f"信用卡{card}被退回了。", True),
            Labelled("Why can I not log in?", f"{name}: my password is qv{n}Lt!9xw{n}", True),
            Labelled("?", f"登录密码：kx{n}Rm7pz，请保密。", True),
            Labelled("?", f"export KEY=sk-proj-Ab12Cd34Ef56Gh78Ij9{n}", True),
            Labelled("?", f"The server at 203.0.113.{n + 41} does not answer.", True),
            Labelled("?", f"The parcel {card} was sent on Monday.", False),
            Labelled("?", f"样本{card}已入库。", False),
            Labelled("?", f"Call the helpline on 0800 11{n} 1{n}9 at any hour.", False),
            Labelled("?", f"心理援助热线：010-8295133{n}", False),
            Labelled("?", f"客服电话400-810-12{n}4，全天开通。", False),
            Labelled("Suggest a password.", f"Use this password: lamp{n}River-moss{n}", False),
            Labelled("给我想一个密码。", f"密码：hs{n}Kp93mw", False),
            Labelled("?", f"For example, password: Blue{n}Horse{n}", False),
            Labelled("?", f"Version 10.4.{n}.12 fixes it; see section 3.{n}.2.1.", False),
            Labelled("?", f"见第 2.{n}.4.1 节；固件升级到 172.16.{n}.5。", False),
            Labelled("?", f"The product of the two is 1381234567{n}.", False),
            Labelled("?", f"订单号：138123456{n}8", False),
            Labelled("?", f"x@self.weight{n} and @{low}_{n} are no addresses.", False),
        ]
        if n < 2:
            rows.append(Labelled("?", f"身份证号{person}", n == 0))
    return rows


def _problems() -> Iterator[tuple[str, str, str]]:
    """(item, the same with other numbers, another problem of the same style)"""
    for n, subject in enumerate(ENGLISH):
        yield (
            f"A story about {subject} has {n + 12} chapters. Nora reads {n + 2} pages of it every evening and twice as many on Sunday. "
            f"How many pages does she read in {n + 3} weeks?",
            f"A story about {subject} has {n + 31} chapters. Nora reads {n + 7} pages of it every evening and twice as many on Sunday. "
            f"How many pages does she read in {n + 5} weeks?",
            f"A shop sells {n + 12} cards of {subject} each day at {n + 2} dollars. Rent costs half of what comes in. What is left after "
            f"{n + 3} days?",
        )
    for n, subject in enumerate(CHINESE):
        yield (
            f"一本写{subject}的书有{n + 12}章，小兰每天晚上读{n + 2}页，星期天读的是平时的两倍，请问她{n + 3}个星期一共读多少页？",
            f"一本写{subject}的书有{n + 31}章，小兰每天晚上读{n + 7}页，星期天读的是平时的两倍，请问她{n + 5}个星期一共读多少页？",
            f"商店每天卖出{n + 12}张印着{subject}的卡片，每张{n + 2}元，房租占收入的一半，{n + 3}天后还剩多少元？",
        )


STOCK = (
    ("Let a, b and c be positive real numbers such that a + b + c = {}. Find the largest value of abc.",
     "Let a, b and c be positive real numbers such that a + b + c = {}. Show that ab + bc + ca is at most 48."),
    ("Find the number of positive integers n less than {} such that n^2 + 1 is divisible by 5.",
     "Find the number of positive integers n less than {} such that the decimal form of 1/n ends."),
    ("Find the remainder when 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 is divided by {}.",
     "List the first days of month {}: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
    ("设a、b、c为正实数，且满足a+b+c={}，求abc的最大值。", "设a、b、c为正实数，且满足a+b+c={}，证明：三个数的平方和不小于十二分之一。"),
)  # fmt: skip


def decontaminate() -> list[Labelled]:
    """``other`` holds the benchmark's item."""
    rows = []
    for item, changed, another in _problems():
        rows.append(Labelled(f"Solve it step by step: {item}", "?", True, other=(item, "")))
        rows.append(Labelled(changed, "?", True, other=(item, "")))
        rows.append(Labelled(another, "?", False, other=(item, "")))
    for (item, another), n in product(STOCK, range(11, 16)):
        rows.append(Labelled(item.format(n + 40), "?", True, other=(item.format(n), "")))
        rows.append(Labelled(another.format(n), "?", False, other=(item.format(n), "")))
    return rows


def near_duplicates() -> list[Labelled]:
    """``other`` holds the earlier row, question and answer."""
    rows = []
    answers = cycle(("lovely", "gorgeous", "pleasant", "mild", "sweet"))
    for number, (_, chinese) in enumerate(SUBJECTS):
        text = _paragraph(number, chinese, 10)
        question = f"{text} {'请总结这段话。' if chinese else 'Sum up this text.'}"
        reply = _paragraph(number + 5, chinese, 6)
        one, other = next(answers), next(answers)
        word, synonym = ("有人", "人们") if chinese else ("pleasant", "nice")
        rows += [
            Labelled(question.replace(word, synonym, 1), reply, True, other=(question, reply)),
            Labelled(question, reply.replace(word, synonym, 1), True, other=(question, reply)),
            Labelled(question.upper(), f"{reply}!", True, other=(question, reply)),
            Labelled(question, _paragraph(number + 9, chinese, 6), False, other=(question, reply)),
            Labelled(question, one, False, other=(question, other)),
            Labelled(
                f"{text} {'给它起个题目。' if chinese else 'Give it a title.'}", one, False, other=(question, other)
            ),
            Labelled(f"{question} {number + 40}", reply, False, other=(f"{question} {number + 50}", reply)),
        ]
    return rows


STEPS = {
    "normalise": normalise,
    "broken_reasoning": broken_reasoning,
    "check_answer": check_answer,
    "repetition": repetition,
    "languages": languages,
    "refusals": refusals,
    "personal_data": personal_data,
    "decontaminate": decontaminate,
    "near_duplicates": near_duplicates,
}
