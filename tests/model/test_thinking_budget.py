"""A thinking budget: the thought is closed where it is spent, and nothing else of a reply changes."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.model.decode import Reply, generate
from pipeline.model.form import split_reply
from pipeline.model.thinking_budget import SENTENCE, Budget, StopThinking
from pipeline.settings import Sampling

ASKED = [[{"role": "user", "content": f"What is {n} + {n * 7 % 10}?"}] for n in range(8)]
SAMPLED = Sampling(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=160)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained("models/embedded", dtype="float32").eval()


@pytest.fixture(scope="module")
def prompts(embedded_tokenizer: Any) -> list[list[int]]:
    return [ChatFormat(embedded_tokenizer).prompt_ids(messages, "thinking") for messages in ASKED]


@pytest.fixture(scope="module")
def free(model: Any, embedded_tokenizer: Any, prompts: list[list[int]]) -> list[Reply]:
    return generate(model, embedded_tokenizer, prompts, SAMPLED, 8, 1)


def test_the_text_is_qwens_with_the_templates_tags(tokenizer: Any) -> None:
    budget = Budget(tokenizer, 8)
    assert budget.text == f"{SENTENCE}\n</think>\n\n"
    assert SENTENCE.strip().endswith("I have to give the solution based on the thinking directly now.")
    assert tokenizer.decode(budget.closing) == budget.text and tokenizer.decode(budget.opening) == "<think>\n"


@pytest.mark.parametrize("tokens", [0, 5, 17])
def test_the_thought_is_closed_where_the_budget_is_spent(
    model: Any, embedded_tokenizer: Any, prompts: list[list[int]], free: list[Reply], tokens: int
) -> None:
    budget = Budget(embedded_tokenizer, tokens)
    due = tokens + len(budget.opening)
    limited = generate(model, embedded_tokenizer, prompts, SAMPLED, 8, 1, thinking_budget=tokens)
    stopped = 0
    for a, b in zip(free, limited, strict=True):
        assert b.token_ids[:due] == a.token_ids[:due]  # the same draws until then
        if budget.is_thinking("", embedded_tokenizer.decode(a.token_ids[:due])):
            stopped += 1
            assert b.token_ids[due : due + len(budget.closing)] == budget.closing
            assert b.reasoning_tokens <= due + len(budget.closing) and budget.text in b.text
            assert split_reply(b.text)[3]
        else:
            assert b == a
    assert stopped > 0
    one_by_one = generate(model, embedded_tokenizer, prompts, SAMPLED, 3, 1, thinking_budget=tokens)
    assert one_by_one == limited  # rows that leave the batch take nothing with them


def test_a_budget_that_is_not_spent_changes_nothing(
    model: Any, embedded_tokenizer: Any, prompts: list[list[int]], free: list[Reply]
) -> None:
    enough = max(reply.reasoning_tokens for reply in free)
    room = SAMPLED.model_copy(update={"max_new_tokens": 400})
    if any(reply.truncated for reply in free):
        pytest.fail("a reply of this fixture is cut; choose other questions")
    limited = generate(model, embedded_tokenizer, prompts, room, 8, 1, thinking_budget=enough)
    assert [reply.text for reply in limited] == [reply.text for reply in free]


def test_bad_budgets_are_refused(model: Any, embedded_tokenizer: Any, prompts: list[list[int]]) -> None:
    with pytest.raises(UserError, match="from 0 on; given: -1"):
        Budget(embedded_tokenizer, -1)
    with pytest.raises(UserError, match=r"no room .* in 160 tokens. Raise evaluation.sampling"):
        generate(model, embedded_tokenizer, prompts, SAMPLED, 8, 1, thinking_budget=155)


def test_only_an_open_thought_is_stopped(embedded_tokenizer: Any) -> None:
    import torch

    budget = Budget(embedded_tokenizer, 3)
    written = ["<think>\n17 + 25 = 42", "17 + 25 = 42, so 42", "<think>\n</think>\n\n17 + 25", "<think>\n\n<|im_end|>"]
    due = budget.due("")
    rows = [list(embedded_tokenizer(text, add_special_tokens=False)["input_ids"])[:due] for text in written]
    width = max(map(len, rows))
    assert {len(row) for row in rows if row is not rows[-1]} == {due}
    pad = embedded_tokenizer.pad_token_id
    ids: Any = torch.tensor([[1, *row, *[pad] * (width - len(row))] for row in rows])
    scores: Any = torch.zeros(len(rows), len(embedded_tokenizer))
    stop = StopThinking(budget, [[1]] * len(rows), [1] * len(rows), [embedded_tokenizer.eos_token_id])
    after = stop(ids, scores.clone())
    assert int(after[0].argmax()) == budget.closing[0] and bool((after[0].isinf()).sum() == after.shape[1] - 1)
    assert bool((after[1:] == 0).all())
    assert bool((stop(ids[:, :2], scores.clone()) == 0).all())  # not spent yet
    shifted: Any = torch.cat([torch.full((1, 2), pad), ids[:1]], dim=1)  # a row that joined later begins elsewhere
    late = StopThinking(budget, [[1]], [3], [embedded_tokenizer.eos_token_id])
    assert int(late(shifted, scores[:1].clone())[0].argmax()) == budget.closing[0]
    assert bool((late(shifted[:, :-1], scores[:1].clone()) == 0).all())
