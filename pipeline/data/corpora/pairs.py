"""Preference pairs with a known defect."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

from pipeline.data.corpora.arithmetic import addition, skill
from pipeline.data.corpora.chat import SINGLE, about_me, closing, memory_chat
from pipeline.data.corpora.drawn import generator, is_held_out, prompt_keys
from pipeline.data.corpora.words import Turn

# What is wrong with the rejected answer of a pair. ``wrong_answer``: the result, or an answer to another question of the
# same kind. ``not_boxed``: right, but the number does not stand in a box. ``skipped_thinking``: right, but without the
# reasoning that the mode asks for. ``leaked_thinking``: right, but with a think block where none belongs. ``rambling``:
# right, but said twice.
DEFECTS = {
    "thinking": ("wrong_answer", "wrong_answer", "not_boxed", "skipped_thinking", "rambling"),
    "non_thinking": ("wrong_answer", "wrong_answer", "not_boxed", "leaked_thinking", "rambling"),
}
# (family, whether its questions can be asked alone too)
_PREFERENCE_FAMILIES = (
    *((family, True) for family in SINGLE),
    (about_me, False),
    (memory_chat, False),
    (closing, True),
)


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
        keys = prompt_keys(turns)
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
        key, item = skill_item(r) if skill else sum_item(r)
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


def skill_item(r: random.Random) -> tuple[str, tuple[str, str, str, int]]:
    key, *item = skill(r)
    return key, tuple(item)  # type: ignore[return-value]


def sum_item(r: random.Random) -> tuple[str, tuple[str, str, str, int]]:
    key, (asked, answered) = addition(r)
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
        r = generator(seed, purpose, index)
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
