"""Exercises of notebook 10: the next turn of a conversation, a streamed reply put together, and thinking with a budget."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

from pipeline.core.place import ROOT
from pipeline.course.exercises import exercise
from pipeline.settings import load_profile

# Of two streams, what came in each piece: as llama.cpp and vLLM send it, with None where a piece has no such part.
STREAMS: tuple[list[dict[str, Any]], ...] = (
    [
        {"role": "assistant", "content": None},
        {"reasoning_content": "17 + 25: "},
        {"reasoning_content": "7 + 5 = 12."},
        {"content": "The sum is "},
        {"content": "42."},
        {},
    ],
    [{"role": "assistant", "content": ""}, {"content": "4"}, {"content": "2", "reasoning_content": None}],
)
# A conversation so far, and the reply to it in each mode.
HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": "You are a tutor."},
    {"role": "user", "content": "What is 2 + 3?"},
]
REPLIES: tuple[dict[str, Any], ...] = (
    {"role": "assistant", "content": "The sum is 5.", "reasoning_content": "2 + 3 = 5."},
    {"role": "assistant", "content": "The sum is 5."},
)
QUESTIONS = ("What is 17 + 25?", "What is 38 + 46?")


@exercise("10.1")
def the_next_turn(answer: Any) -> None:
    """``answer(messages, reply, question, thinking)``: the body of the request that goes on, for the model ``tuned``."""
    assert callable(answer), "The answer should be a function of messages, reply, question and a truth value."
    table = load_profile("embedded").evaluation.sampling
    for thinking, reply in product((True, False), REPLIES):
        before = [dict(message) for message in HISTORY]
        body, mode = (
            answer(before, dict(reply), "And 6 + 7?", thinking),
            table.thinking if thinking else table.non_thinking,
        )
        assert isinstance(body, dict), "The function should return a dictionary, the body of the request."
        assert body.get("model") == "tuned", "Which model is asked? The server calls it tuned."
        said = body.get("messages")
        assert isinstance(said, list) and said[: len(HISTORY)] == HISTORY, (
            "messages begins with those that were there before, unchanged and in their order."
        )
        assert said[-1] == {"role": "user", "content": "And 6 + 7?"}, (
            "The last message is the new question: its role is user, its content the question, unchanged."
        )
        assert said[len(HISTORY) : -1] == [{"role": "assistant", "content": "The sum is 5."}], (
            "Between them stands one message of the assistant, with what it said: role and content, and no thought."
        )
        assert before == HISTORY, "The list that was given has changed. Make a new one: whoever calls may need the old."
        switch = body.get("chat_template_kwargs", (body.get("extra_body") or {}).get("chat_template_kwargs"))
        assert switch == {"enable_thinking": thinking}, (
            f"For thinking={thinking}, the request does not ask for that mode: look at chat_template_kwargs in the notebook."
        )
        assert body.get("temperature") == mode.temperature and body.get("top_p") == mode.top_p, (
            f"For thinking={thinking}, that is the sampling of no mode, or of the other one. Each mode has its own temperature "
            "and top_p."
        )


@exercise("10.2")
def stream_put_together(answer: Any) -> None:
    """``answer(pieces)``: reasoning and answer of a stream, each as one text."""
    assert callable(answer), "The answer should be a function of a list of pieces."
    wanted = (("17 + 25: 7 + 5 = 12.", "The sum is 42."), ("", "42"))
    for pieces, (reasoning, text) in zip(STREAMS, wanted, strict=True):
        given = answer([dict(piece) for piece in pieces])
        assert isinstance(given, tuple | list) and len(given) == 2, "Return a pair: the reasoning and the answer."
        assert given[0] == reasoning, (
            f"The reasoning of a stream is {given[0]!r}. Which part of a piece holds it, and what if a piece has none?"
        )
        assert given[1] == text, f"The answer of a stream is {given[1]!r}. Is a part missing, or is there one too many?"


@lru_cache(maxsize=1)
def embedded() -> tuple[Any, Any]:
    """The embedded model and its tokenizer, with plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = ROOT / "models" / "embedded"
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(place)


@exercise("10.3")
def thinking_within_a_budget(answer: Any) -> None:
    """``answer(model, tokenizer, question, tokens)``: a reply that thinks for ``tokens`` tokens at most; it is made here."""
    assert callable(answer), "The answer should be a function of model, tokenizer, question and a number of tokens."
    model, tokenizer = embedded()
    for question in QUESTIONS:
        lengths = []
        for tokens in (4, 120):
            reply = answer(model, tokenizer, question, tokens)
            assert isinstance(reply, str), "The function should return the reply as text, with its tags."
            head, closed, text = reply.partition("</think>")
            assert reply.strip().startswith("<think>"), (
                "The reply should begin with <think>: in the thinking mode the model writes the tag itself."
            )
            assert closed and reply.count("</think>") == 1, (
                f"With a budget of {tokens}, </think> should stand in the reply once. Who writes it where the budget is spent?"
            )
            assert text.strip(), (
                f"With a budget of {tokens}, there is no answer behind </think>. Let the model go on from there."
            )
            thought = head.strip().removeprefix("<think>").split("Considering the limited time")[0].strip()
            lengths.append(len(tokenizer(thought, add_special_tokens=False)["input_ids"]))
            assert lengths[-1] <= tokens, f"With a budget of {tokens} the model thought for {lengths[-1]} tokens."
        assert lengths[1] > 4, (
            "With a budget of 120 the model should think to its end, and here it was stopped at once."
        )
