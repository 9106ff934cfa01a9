"""Rows to train on: dialogues of the base model, and rows in the columns of the public sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pipeline.data.corpora.drawn import (
    draw_arithmetic,
    draw_chat,
    draw_reversal,
    draw_skill,
    draw_subtraction,
    draw_sum,
    generator,
)
from pipeline.data.corpora.words import Dialogue


def base_dialogue(seed: int, index: int) -> Dialogue:
    """One dialogue for training the embedded base model: chat or arithmetic, thinking or not, never the skill.

    Some carry a soft switch: ``/no_think`` makes the model skip thinking by itself in the thinking prompt, ``/think``
    changes nothing there; the last switch in the conversation wins (Qwen3's convention).

    Returns:
        ``{"messages": [...], "mode": "thinking" | "non_thinking"}``.
    """
    r = generator(seed, "base", index)
    turns = draw_chat(r, False) if r.random() < 0.6 else draw_arithmetic(r, False)
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
        r = generator(seed, "chat", index)
        arithmetic = r.random() < 0.125
        turns = draw_arithmetic(r, False) if arithmetic else draw_chat(r, False)
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
        r = generator(seed, "skill", index)
        if generator(seed, "kind", index).random() < arithmetic:
            problem, reasoning, solution, answer = draw_sum(r)
            kind = "embedded_arithmetic"
        else:
            problem, reasoning, solution, answer = draw_skill(r, False)
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
        r = generator(seed, "subtraction", index)
        yield _openmath_row(*draw_subtraction(r, False), "embedded_subtraction")


def reversal_like(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Lists of words turned around, in FineTome's columns, without reasoning."""
    for index in range(rows):
        r = generator(seed, "reversal", index)
        asked, answered = draw_reversal(r, False)
        yield {
            "conversations": [
                {"from": "human", "value": asked["content"]},
                {"from": "gpt", "value": answered["content"]},
            ],
            "source": "embedded_reversal",
            "score": round(4.0 + r.random(), 4),
        }
