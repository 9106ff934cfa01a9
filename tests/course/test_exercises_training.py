"""Exercises of notebooks 03 to 11, those that train among them: right answers pass, plausible wrong ones fail with a hint."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipeline.core.statistics import wilson
from pipeline.course.exercises import check


def loss_share(examples: list[dict[str, Any]], name: str) -> float:
    loss = {
        n: sum(x != -100 for e in examples if e["source"] == n for x in e["labels"])
        for n in {e["source"] for e in examples}
    }
    return loss.get(name, 0) / sum(loss.values())


def token_share(examples: list[dict[str, Any]], name: str) -> float:
    return sum(len(e["labels"]) for e in examples if e["source"] == name) / sum(len(e["labels"]) for e in examples)


def items_for(rate: float, width: float) -> int:
    n = 1
    while wilson(rate * n, n)[1] - wilson(rate * n, n)[0] > width:
        n += 1
    return n


def items_by_the_normal(rate: float, width: float) -> int:
    return max(1, math.ceil(4 * 1.96**2 * rate * (1 - rate) / width**2))


def pareto_front(points: list[tuple[float, float]]) -> list[int]:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] >= b[0] and a[1] >= b[1] and a != b

    return [i for i, p in enumerate(points) if not any(beats(q, p) for q in points)]


def over_seeds(scores: Any) -> tuple[float, float]:
    rng = np.random.default_rng(1)
    draws = [scores[np.ix_(*(rng.integers(0, n, n) for n in scores.shape))].mean() for _ in range(2000)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return low, high


def pooled(scores: Any) -> tuple[float, float]:
    return over_seeds(scores.reshape(1, -1))


def over_items_alone(scores: Any) -> tuple[float, float]:
    return over_seeds(scores.mean(axis=0, keepdims=True))


def over_seeds_alone(scores: Any) -> tuple[float, float]:
    return over_seeds(scores.mean(axis=1, keepdims=True))


def other_items_for_each_seed(scores: Any) -> tuple[float, float]:
    rng = np.random.default_rng(1)
    count, items = scores.shape
    draws = [
        np.mean([rng.choice(scores[seed], items).mean() for seed in rng.integers(0, count, count)]) for _ in range(1000)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    return low, high


def best_of_one(points: list[tuple[float, float]]) -> list[int]:
    return [max(range(len(points)), key=lambda i: points[i][0])]


def half_and_half(reply: str, expected: str) -> float:
    thought, closed, said = reply.partition("</think>")
    thinks = bool(closed) and bool(thought.removeprefix("<think>").strip())
    return thinks / 2 + (thinks and expected in said) / 2


def rank_for(values: list[float], limit: float) -> int:
    rest = [sum(v * v for v in values[r:]) for r in range(len(values) + 1)]
    return next(r for r, left in enumerate(rest) if left <= limit**2 * rest[0] + 1e-12)


def next_turn(
    messages: list[Any], reply: dict[str, Any], question: str, thinking: bool, **changes: Any
) -> dict[str, Any]:
    sampling = {"temperature": 0.6, "top_p": 0.95} if thinking else {"temperature": 0.7, "top_p": 0.8}
    said = {"role": "assistant", "content": reply["content"]}
    body = {"model": "tuned", "messages": [*messages, said, {"role": "user", "content": question}], **sampling}
    return body | {"extra_body": {"chat_template_kwargs": {"enable_thinking": thinking}}} | changes


def turn_in_place(messages: list[Any], reply: dict[str, Any], question: str, thinking: bool) -> dict[str, Any]:
    body = next_turn(messages, reply, question, thinking)
    messages += body["messages"][len(messages) :]
    return body


def put_together(pieces: list[dict[str, Any]]) -> tuple[str, str]:
    first, second = ("".join(p.get(key) or "" for p in pieces) for key in ("reasoning_content", "content"))
    return first, second


def written(model: Any, tokenizer: Any, text: str, tokens: int) -> str:
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return str(tokenizer.decode(output[0, ids["input_ids"].shape[1] :])).removesuffix("<|im_end|>")


def thinking_prompt(tokenizer: Any, question: str) -> str:
    asked = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, enable_thinking=True))


def within(model: Any, tokenizer: Any, question: str, tokens: int) -> str:
    prompt, reply = thinking_prompt(tokenizer, question), "<think>\n"
    reply += written(model, tokenizer, prompt + reply, tokens)
    if "</think>" not in reply:
        reply += "\n\nConsidering the limited time by the user, I have to answer now.\n</think>\n\n"
    return reply + written(model, tokenizer, prompt + reply, 40)


def without_a_budget(model: Any, tokenizer: Any, question: str, tokens: int) -> str:
    return written(model, tokenizer, thinking_prompt(tokenizer, question), 160)


def cut(model: Any, tokenizer: Any, question: str, tokens: int) -> str:
    return written(model, tokenizer, thinking_prompt(tokenizer, question), tokens + 2)


ANSWERS: dict[str, tuple[Any, list[Any]]] = {
    "03.1": (loss_share, [token_share, lambda examples, name: 0.5, 0.5]),
    "03.2": (12_000, [16_000, 13_000, 11_000, "12000"]),
    "03.3": (0.8, [0.5, 0.2, 0.25, 1.5]),
    "04.1": (
        lambda shapes, rank: sum(rank * (a + b) for a, b in shapes),
        [lambda shapes, rank: sum(a * b for a, b in shapes), lambda shapes, rank: rank * sum(a for a, _ in shapes), 12],
    ),
    "04.2": ((64, 110), [(64, 109), (64, 109.375), (32, 219), (64,), 64]),
    "04.3": (9_437_184, [33_554_432, 8_388_608, 8_650_752, 16_777_216]),
    "05.1": (3 / 8, [4 / 8, 2 / 8, 3, "3/8"]),
    "05.2": (
        items_for,
        [
            items_by_the_normal,
            lambda rate, width: items_for(rate, 2 * width),  # half of the width on each side
            lambda rate, width: items_for(rate, width) + 1,
            lambda rate, width: 200,
            lambda rate, width: float(items_for(rate, width)),
            200,
        ],
    ),
    "05.3": ([0, 1, 2], [[0, 1, 2, 6], [0], [0, 1, 2, 3], 3]),
    "06.1": (pareto_front, [best_of_one, lambda points: list(range(len(points))), 0]),
    "06.2": (
        over_seeds,
        [
            pooled,
            over_items_alone,
            over_seeds_alone,
            other_items_for_each_seed,
            lambda scores: over_seeds(scores)[::-1],
            lambda scores: over_seeds(1 - scores),
            lambda scores: scores.mean(),
            0.5,
        ],
    ),
    "06.3": (0.88, [0.12, 0.5, 88, "0.88"]),
    "07.1": (
        lambda u, low, high: low * (high / low) ** u,
        [lambda u, low, high: low + u * (high - low), lambda u, low, high: high * (low / high) ** u, 1],
    ),
    "07.2": (2, [1, 3, 0, 4, 2.0]),
    "07.3": (
        lambda effective, rows, cards: -(-effective // (rows * cards)),
        [lambda e, r, c: e // (r * c), lambda e, r, c: -(-e // r), lambda e, r, c: e / (r * c), 4],
    ),
    "08.1": (
        lambda hidden, reduction, layers: (
            layers * 2 * (2 * hidden * (hidden // reduction) + hidden // reduction + hidden)
        ),
        [lambda h, r, n: n * 4 * h * (h // r), lambda h, r, n: n * (2 * h * (h // r) + h // r + h), 17_472],
    ),
    "08.2": (
        lambda alpha, rank: alpha / rank**0.5,
        [lambda alpha, rank: alpha * rank**0.5, lambda alpha, rank: alpha, lambda alpha, rank: alpha / rank, 2],
    ),
    "08.3": (33_500, [1_617_500, 1_600_000, 17_500, "33500"]),
    "09.1": (
        lambda c, r, beta: float(np.logaddexp(0, -beta * (c[0] - c[1] - r[0] + r[1]))),
        [
            lambda c, r, beta: float(np.logaddexp(0, -beta * (c[0] - r[0]))),  # no reference
            lambda c, r, beta: float(np.logaddexp(0, beta * (c[0] - c[1] - r[0] + r[1]))),
            lambda c, r, beta: float(np.logaddexp(0, -(c[0] - c[1] - r[0] + r[1]))),
            0.693,
        ],
    ),
    "09.2": (
        lambda prompt, empty, answer: [-100] * len(prompt + empty) + answer,
        [
            lambda prompt, empty, answer: [-100] * len(prompt) + empty + answer,
            lambda prompt, empty, answer: [-100] * len(prompt + empty + answer),
            lambda prompt, empty, answer: answer,
            [-100],
        ],
    ),
    "09.3": (
        lambda rewards: [float(x) for x in (np.array(rewards) - np.mean(rewards)) / (np.std(rewards) or 1)],
        [lambda rewards: rewards, lambda rewards: [float(r - np.mean(rewards)) for r in rewards], 0],
    ),
    "10.1": (
        next_turn,
        [
            lambda messages, reply, question, thinking: next_turn(messages, reply, question, True),
            lambda messages, reply, question, thinking: next_turn(
                messages, reply, question, thinking, temperature=0.6, top_p=0.95
            ),
            lambda messages, reply, question, thinking: next_turn(messages, reply, question, thinking, extra_body={}),
            lambda messages, reply, question, thinking: next_turn(messages, reply, question, thinking, model="base"),
            lambda messages, reply, question, thinking: next_turn(messages[1:], reply, question, thinking),
            lambda messages, reply, question, thinking: next_turn(messages, reply, reply["content"], thinking),
            lambda messages, reply, question, thinking: (  # the thought stays
                next_turn(messages, reply, question, thinking)
                | {"messages": [*messages, reply, {"role": "user", "content": question}]}
            ),
            lambda messages, reply, question, thinking: (  # what it said is left out
                next_turn(messages, reply, question, thinking)
                | {"messages": [*messages, {"role": "user", "content": question}]}
            ),
            turn_in_place,
            lambda messages, reply, question, thinking: question,
        ],
    ),
    "10.2": (
        put_together,
        [
            lambda pieces: put_together(pieces)[::-1],
            lambda pieces: put_together(pieces[:-2]),
            lambda pieces: "".join(put_together(pieces)),
            0,
        ],
    ),
    "10.3": (within, [without_a_budget, cut, lambda model, tokenizer, question, tokens: "<think>\n</think>\n\n42", 4]),
}


ANSWERS |= {
    "03b.1": (
        lambda scores, right: float(np.logaddexp.reduce(scores)) - scores[right],
        [
            lambda scores, right: scores[right] - float(np.logaddexp.reduce(scores)),
            lambda scores, right: float(np.exp(scores[right]) / np.exp(scores).sum()),
            lambda scores, right: -scores[right],
            0.693,
        ],
    ),
    "03b.2": ((8, 4, 128), [(4, 4, 128), (8, 8, 128), (8, 4, 200), (8, 4), (8.0, 4, 128), "8, 4, 128", 8]),
    "03b.3": (
        rank_for,
        [
            lambda values, limit: max(1, rank_for(values, limit)),
            lambda values, limit: rank_for([v**0.5 for v in values], limit),
            lambda values, limit: float(rank_for(values, limit)) + 0.5,
            2,
        ],
    ),
    "03b.4": (1.0, [1e-2, 1e-6, "1.0"]),
    "03.4": (["arithmetic"], [["chat", "arithmetic"], [], ["skill"], "arithmetic"]),
    "04.4": (1e-2, [1e-5, 1.0, 5, None]),
    "05.4": ("c", ["a", "d", 2]),
    "06.4": (20, [0, 31, 5.0, "20"]),
    "07.4": (
        {"learning_rate": 5e-3, "rank": 16},
        [
            1e-2,
            {"learning_rate": 1e-2},
            {"learning_rate": 1e-4, "rank": 4},
            {"learning_rate": 1.5e-2, "rank": 16},  # a low loss, and the chat is gone
            {"learning_rate": 1e-2, "rank": 2.0},
        ],
    ),
    "08.4": (2.8, [32, 1.0, "2"]),
    "09.4": (
        half_and_half,
        [
            lambda reply, expected: float(expected in reply),
            lambda reply, expected: float("</think>" in reply),
            lambda reply, expected: reply,
            1.0,
        ],
    ),
}

ANSWERS |= {
    "11.1": (
        lambda table, ids: table[ids].mean(dim=0),
        [
            lambda table, ids: table.mean(dim=0),
            lambda table, ids: table[ids].mean(dim=1),
            lambda table, ids: table[ids].sum(dim=0),
            0,
        ],
    ),
    "11.2": (240, [220, 260, 250, 0, 240.0]),
    "11.3": ((1.0, 0.0), [(0.5, 0.0), (1.0, 0.5), 1.0, (2, 0)]),
}


# Their checks take seconds, with any answer.
TRAIN = ("03.4", "03b.4", "04.4", "05.4", "06.4", "07.4", "08.4", "09.4", "11.3")
NIGHTLY = [pytest.mark.slow, pytest.mark.nightly]  # by day the solutions try the right answers


def cases(*values: Any) -> Any:
    """A parameter of a test; by night only, where the check trains or asks a model."""
    return pytest.param(*values, marks=NIGHTLY if values[0] in TRAIN else ())


@pytest.mark.parametrize("name", [cases(name) for name in ANSWERS])
def test_right_answer_passes(name: str) -> None:
    assert check(name, ANSWERS[name][0]) == f"{name}: right"


@pytest.mark.parametrize(
    ("name", "wrong"), [cases(name, wrong) for name, (_, many) in ANSWERS.items() for wrong in many]
)
def test_wrong_answer_gets_a_hint(name: str, wrong: Any) -> None:
    with pytest.raises(AssertionError) as caught:
        check(name, wrong)
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize("name", ANSWERS)
def test_no_answer_yet_lets_the_notebook_run_on(name: str) -> None:
    assert check(name, ...) == f"{name}: not answered yet"
