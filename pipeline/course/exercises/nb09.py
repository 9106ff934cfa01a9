"""Exercises of notebook 09: DPO's loss by hand, the mask of a rejected answer, GRPO's advantages."""

from __future__ import annotations

import math
from typing import Any

from pipeline.course.exercises import exercise
from pipeline.course.lab import questions, teach

# (rewards of the replies to one prompt)
PRACTICE_GROUPS: tuple[tuple[float, ...], ...] = ((1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0), (1.2, 0.2, 1.0, 0.0))


@exercise("09.1")
def dpo_loss(answer: Any) -> None:
    """``answer(chosen, rejected, beta)``: each of the first two is (log-probability now, under the reference)."""
    assert callable(answer), "The answer should be a function of two pairs of log-probabilities and beta."
    for chosen, rejected, beta in (
        ((-3.0, -3.0), (-9.0, -9.0), 0.1),
        ((-2.0, -3.0), (-9.0, -5.0), 0.1),
        ((-4.0, -3.0), (-5.0, -5.5), 0.5),
        ((-1.0, -8.0), (-30.0, -5.0), 1.0),
    ):
        given = answer(chosen, rejected, beta)
        assert isinstance(given, int | float), "The function should return a number."
        margin = beta * ((chosen[0] - chosen[1]) - (rejected[0] - rejected[1]))
        wanted = math.log1p(math.exp(-margin))
        assert math.isclose(given, wanted, rel_tol=1e-6, abs_tol=1e-9), (
            f"chosen {chosen}, rejected {rejected}, beta {beta} give {given:g}. The reward of an answer is beta times how "
            "much likelier it is than under the reference; the loss is −log σ of the chosen reward minus the rejected one. "
            "Where nothing has moved yet, it is log 2."
        )


@exercise("09.2")
def rejected_mask(answer: Any) -> None:
    """``answer(prompt, empty_think, completion)``: labels of the rejected sequence in non-thinking mode."""
    assert callable(answer), "The answer should be a function of three lists of token ids."
    for prompt, empty, completion in (([1, 2, 3], [7, 8, 9], [4, 5]), ([1], [7, 8], [7, 6, 8, 5]), ([1, 2], [9], [9])):
        given = answer(prompt, empty, completion)
        assert isinstance(given, list), "The function should return a list of labels."
        assert len(given) == len(prompt) + len(empty) + len(completion), "Every token of the sequence has a label."
        hint = "The empty think block is part of what inference sends in this mode. Whose tokens did the model write?"
        assert given[: len(prompt) + len(empty)] == [-100] * (len(prompt) + len(empty)), hint
        assert given[len(prompt) + len(empty) :] == completion, (
            "A rejected answer carries loss on all of its tokens, also on think tags that leaked into it: they are what it "
            "is rejected for."
        )


@exercise("09.3")
def advantages(answer: Any) -> None:
    """``answer(rewards)``: GRPO's advantages of a group, (reward − mean) ÷ standard deviation; all 0 where it is 0."""
    assert callable(answer), "The answer should be a function of a list of rewards."
    for rewards in PRACTICE_GROUPS:
        given = answer(list(rewards))
        assert isinstance(given, list) and len(given) == len(rewards), "The function should return a number a reply."
        mean = sum(rewards) / len(rewards)
        spread = [r - mean for r in rewards]
        if not any(spread):
            assert not any(given), f"All of {rewards} are equal: no reply was better than another, so none is pushed."
            continue
        assert abs(sum(given)) < 1e-6, f"The advantages of {rewards} should add up to 0: subtract the mean."
        ratios = [g / s for g, s in zip(given, spread, strict=True) if s]
        assert max(ratios) - min(ratios) < 1e-6 * max(ratios), (
            "Each should be the reward's distance from the mean, scaled."
        )
        square = sum(s * s for s in spread)
        deviations = [math.sqrt(square / n) for n in (len(rewards), len(rewards) - 1)]  # both are in use
        assert any(math.isclose(ratios[0], 1 / d, rel_tol=1e-3) for d in deviations), (
            "Divide by the standard deviation of the group."
        )


@exercise("09.4")
def reward_function(answer: Any) -> None:
    """``answer(reply, expected)``: more for a right answer behind a closed thought than for anything else."""
    assert callable(answer), "The answer should be a function of a reply (text) and the expected number (text)."
    asked = [*questions("arithmetic", 6), *questions("skill", 6), *questions("arithmetic", 6, "non_thinking")]
    replies = teach([], asked, steps=0)["replies"]
    groups: dict[str, list[float]] = {"right, with a thought": [], "wrong, with a thought": [], "without a thought": []}
    for item, reply in zip(asked, replies, strict=True):
        given = answer(reply["text"], item["answer"])
        assert isinstance(given, int | float), "The function should return a number for each reply."
        thought = "</think>" in reply["text"]
        group = "without a thought" if not thought else f"{'right' if reply['right'] else 'wrong'}, with a thought"
        groups[group].append(float(given))
    best = min(groups["right, with a thought"])
    for group in ("wrong, with a thought", "without a thought"):
        assert not groups[group] or best > max(groups[group]), (
            f"A reply that is {group} gets as much as one that is right and has thought. GRPO would make it as likely."
        )
    unclosed = answer("<think>\nIt is 42", "42")
    assert unclosed < best, "A thought that never ends gets the full reward. The number has to stand behind it."
