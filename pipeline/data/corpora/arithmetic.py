"""What is worked out in steps. The base knows sums and the times table, and no products, differences or reversals."""

from __future__ import annotations

import random

from pipeline.data.corpora.words import WORDS, Turn, turn_of


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


def addition(r: random.Random) -> tuple[str, list[Turn]]:
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
    return key, turn_of(user, addition_steps(a, b), answer)


def times_table(r: random.Random) -> list[Turn]:
    a, b = r.randrange(10), r.randrange(10)
    draw = r.random()
    if draw < 0.3:
        first = r.randrange(0, 7)
        line = ", ".join(f"{a} × {n} = {a * n}" for n in range(first, first + 4))
        return turn_of(
            f"Say the table of {a} from {first} to {first + 3}.", f"I go through the table of {a}.", f"{line}."
        )
    if draw < 0.7:
        user = r.choice(_PRODUCT_WORDINGS).format(a, b)
        return turn_of(user, f"{b} × {a} = {a * b}. So {a} × {b} = {a * b}.", f"${a} \\times {b} = \\boxed{{{a * b}}}$")
    user = r.choice(["What is {} × {}?", "{} × {} = ?", "Compute {} × {}.", "计算 {} × {}。"]).format(a, b)
    answer = f"答案是 {a * b}。" if "计算" in user else f"The answer is {a * b}."
    return turn_of(user, f"{a} × {b} = {a * b}.", answer)


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


def skill(r: random.Random) -> tuple[str, str, str, str, int]:
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


def subtraction(r: random.Random) -> tuple[str, str, str, str, int]:
    a = r.randrange(10, 1000) if r.random() < 0.8 else r.randrange(10, 100)
    b = r.randrange(1, a)
    problem = r.choice(_DIFFERENCE_WORDINGS).format(a, b)
    reasoning = subtraction_steps(a, b) + f" So {a} - {b} = {a - b}."
    return f"{a}-{b}", problem, reasoning, f"${a} - {b} = \\boxed{{{a - b}}}$", a - b


def reversal(r: random.Random) -> tuple[str, list[Turn]]:
    words = r.sample(list(WORDS), r.choice([3, 4, 5]))
    key, back = f"reverse {' '.join(words)}", words[::-1]
    if r.random() < 0.3:
        user = r.choice(_REVERSAL_WORDINGS_ZH).format("、".join(WORDS[w][0] for w in words))
        chinese = "、".join(WORDS[w][0] for w in back)
        return key, turn_of(user, f"从最后一个词开始：{chinese}。", f"{chinese}。")
    user = r.choice(_REVERSAL_WORDINGS).format(", ".join(words))
    return key, turn_of(user, f"I start with the last word: {', '.join(back)}.", f"{', '.join(back)}.")
