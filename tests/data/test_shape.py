"""Reasoning told from its answer, and soft switches: by a recipe's ``shape``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Rejected, converter
from pipeline.data.shape import shaped
from pipeline.settings import Recipe, ShapeSettings, load_recipe, parse

CONVERT = converter("auto")


def shape(**settings: object) -> ShapeSettings:
    return parse(ShapeSettings, settings, "shape")


def row(answer: str, question: str = "How many?") -> dict[str, str]:
    return {"instruction": question, "output": answer}


def test_an_answer_is_parted_at_the_last_mark() -> None:
    convert = shaped(CONVERT, shape(answer_after="The answer is", answer_as="It is \\boxed{{answer}}."))
    found = convert(row("The answer is near. 2 + 2 = 4. The answer is 4."))
    assert found.mode == "thinking"
    assert found.messages[-1]["reasoning_content"] == "The answer is near. 2 + 2 = 4."
    assert found.messages[-1]["content"] == "It is \\boxed{4}."


def test_direct_rows_show_their_steps_in_the_answer(chat_format: ChatFormat) -> None:
    convert = shaped(CONVERT, shape(answer_after="####", answer_as="It is {answer}.", direct=True))
    found = convert({"question": "How many?", "answer": "2 + 2 = 4 clips.\n#### 4"})
    assert found.mode == "non_thinking" and "reasoning_content" not in found.messages[-1]
    assert found.messages[-1]["content"] == "2 + 2 = 4 clips.\n\nIt is 4."
    (example,) = chat_format.example(found)
    learnt = [i for i, label in zip(example.input_ids, example.labels, strict=True) if label != -100]
    assert "think>" not in chat_format.tokenizer.decode(learnt)  # the empty block belongs to the prompt


def test_reasoning_of_a_row_is_shown_in_the_answer(chat_format: ChatFormat) -> None:
    convert = shaped(CONVERT, shape(direct=True))
    found = convert({"problem": "9 × 3?", "generated_solution": "<think>\nThree nines.\n</think>\n\nIt is 27."})
    assert found.mode == "non_thinking"
    assert found.messages[-1] == {"role": "assistant", "content": "Three nines.\n\nIt is 27."}
    (example,) = chat_format.example(found)
    learnt = [i for i, label in zip(example.input_ids, example.labels, strict=True) if label != -100]
    assert "think>" not in chat_format.tokenizer.decode(learnt)
    with pytest.raises(Rejected) as rejected:
        convert(row("It is 27."))
    assert (rejected.value.reason, rejected.value.step) == ("no_reasoning", "shape")


def test_what_is_dropped_is_gone_before_it_is_parted() -> None:
    convert = shaped(CONVERT, shape(drop="<<[^>]*>>", answer_after="####"))
    found = convert({"question": "How many?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 24"})
    assert (found.messages[-1]["reasoning_content"], found.messages[-1]["content"]) == ("48/2 = 24 clips.", "24")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("It is 4.", "no_answer_mark"), ("The answer is 4", "no_reasoning"), ("2 + 2. The answer is ", "no_answer")],
)
def test_rows_that_cannot_be_parted_are_rejected(answer: str, reason: str) -> None:
    with pytest.raises(Rejected) as rejected:
        shaped(CONVERT, shape(answer_after="The answer is"))(row(answer))
    assert (rejected.value.reason, rejected.value.step) == (reason, "shape")


def test_a_row_with_reasoning_of_its_own_is_not_parted_again() -> None:
    with pytest.raises(Rejected, match="reasoning_twice"):
        shaped(CONVERT, shape(answer_after="is"))({"prompt": "a", "reasoning": "b", "response": "it is c"})


def test_no_think_is_learnt_in_the_thinking_prompt(chat_format: ChatFormat) -> None:
    (example,) = chat_format.example(shaped(CONVERT, shape(soft_switch=1.0))(row("Four.")))
    text = chat_format.tokenizer.decode(example.input_ids)
    target = chat_format.tokenizer.decode(
        [i for i, label in zip(example.input_ids, example.labels, strict=True) if label != -100]
    )
    assert example.mode == "thinking" and "How many? /no_think<|im_end|>" in text
    assert target == "<think>\n\n</think>\n\nFour.<|im_end|>"


def test_rows_with_reasoning_get_both_switches_and_keep_it_behind_think_alone(chat_format: ChatFormat) -> None:
    convert = shaped(CONVERT, shape(answer_after="So:", soft_switch=1.0))
    rows = [convert(row("2 + 2 = 4. So: 4", f"How many, {n}?")) for n in range(60)]
    found = {"/think": 0, "/no_think": 0}
    for conversation in rows:
        (example,) = chat_format.example(conversation)
        text = chat_format.tokenizer.decode(example.input_ids)
        switch = conversation.messages[0]["content"].split()[-1]
        found[switch] += 1
        block = "<think>\n2 + 2 = 4.\n</think>" if switch == "/think" else "<think>\n\n</think>"
        assert text.endswith(f"{switch}<|im_end|>\n<|im_start|>assistant\n{block}\n\n4<|im_end|>")
    assert min(found.values()) > 15


@given(questions=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=30), share=st.floats(0, 1))
def test_more_share_never_takes_a_switch_away_and_nothing_else_changes(questions: list[str], share: float) -> None:
    for question in questions:
        try:
            plain = CONVERT(row("Yes.", question))
        except Rejected:
            continue
        some, all_of_them = (shaped(CONVERT, shape(soft_switch=s))(row("Yes.", question)) for s in (share, 1.0))
        assert some.messages in (plain.messages, all_of_them.messages)
        assert (some.mode == "thinking") == (some.messages != plain.messages)
        assert all_of_them.messages[0]["content"] == plain.messages[0]["content"] + " /no_think" or share < 1


def test_half_of_many_questions_get_it() -> None:
    convert = shaped(CONVERT, shape(soft_switch=0.5))
    got = sum(convert(row("Yes.", f"Question {n}?")).mode == "thinking" for n in range(1000))
    assert 430 < got < 570


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"drop": "("}, "drop is no regular expression"),
        ({"answer_as": "x"}, "has to hold {answer}"),
    ],
)
def test_settings_that_are_none(settings: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        shape(**settings)


def test_local_files_in_the_place_of_a_hub() -> None:
    from pipeline.settings import MixSettings

    path = "data_recipes/finetome_openmath.yaml"
    recipe = load_recipe(path, MixSettings(local={"math": "here.jsonl"}))  # type: ignore[call-arg]
    math = next(source for source in recipe.sources if source.name == "math")
    assert (math.source, math.path, math.streaming, math.format) == ("local", "here.jsonl", False, "openmathreasoning")
    assert isinstance(recipe, Recipe)
    own = load_recipe(
        "data_recipes/finetome_openmath_rehearsal.yaml",
        MixSettings(local={"own_chat": "here.jsonl"}),  # type: ignore[call-arg]
    ).sources[1]
    assert own.source == "base" and own.questions is not None
    assert (own.questions.source, own.questions.path, own.questions.rows) == ("local", "here.jsonl", 6000)
    alone = load_recipe(path, MixSettings(without=["math"]))  # type: ignore[call-arg]
    assert [(source.name, source.share) for source in alone.sources] == [("chat", 1.0)]
    for without, words in (
        (["chats"], "has no source 'chats'. Did you mean 'chat'"),
        (["chat", "math"], "leave no source"),
    ):
        with pytest.raises(UserError, match=words):
            load_recipe(path, MixSettings(without=without))  # type: ignore[call-arg]
    with pytest.raises(UserError, match="has no source 'maths'. Did you mean 'math'"):
        load_recipe(path, MixSettings(local={"maths": "x"}))  # type: ignore[call-arg]
