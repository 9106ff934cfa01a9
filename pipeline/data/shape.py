"""What a recipe's ``shape`` does to the conversations of a source: reasoning told from its answer, and soft switches.

In: the converter of a source's rows. Out: the same, followed by these steps, in this order:

* ``drop``: what it matches is taken out of the answers (GSM8K's ``<<48/2=24>>``);
* ``answer_after``: an answer that is worked out step by step ("… The answer is 24") is parted at the last place that matches:
  what stands before it becomes reasoning, what stands behind it the answer, in the words of ``answer_as``; with ``direct`` the
  steps stay in the answer and the row is one without thinking, as a hybrid works a problem out in its non-thinking mode;
* ``direct`` without ``answer_after``: the row has reasoning already, and it is written before the answer, in the answer;
* ``soft_switch``: of so many rows the last question gets Qwen3's ``/think`` or ``/no_think`` behind it. Of rows with reasoning
  half get ``/think``, half ``/no_think``, and these lose their reasoning; rows without any get ``/no_think``. What has
  ``/no_think`` stands in the thinking prompt, and its answer begins with an empty think block.

Where a kind of question is in the thinking prompt behind ``/no_think`` alone, a model learns to skip the thinking by the
question, not by the switch: so switch the rows that have reasoning, and leave chat without reasoning alone
(docs/real_weights.md).
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable

from pipeline.data.conversations import Conversation, Message, Rejected
from pipeline.data.formats import Row
from pipeline.settings import ShapeSettings

Convert = Callable[[Row], Conversation]


def shaped(convert: Convert, shape: ShapeSettings | None) -> Convert:
    """The converter with these steps behind it; without a shape, the converter itself."""
    if shape is None:
        return convert
    settings = shape
    drop = re.compile(settings.drop) if settings.drop else None
    mark = re.compile(settings.answer_after) if settings.answer_after else None

    def convert_and_shape(row: Row) -> Conversation:
        conversation = convert(row)
        if drop:
            messages = [
                m | {"content": drop.sub("", m["content"])} if m["role"] == "assistant" else m
                for m in conversation.messages
            ]
            conversation = dataclasses.replace(conversation, messages=messages)
        if mark:
            conversation = part(conversation, mark, settings.answer_as, settings.direct)
        elif settings.direct:
            conversation = shown(conversation)
        return switched(conversation, settings.soft_switch)

    return convert_and_shape


def part(conversation: Conversation, mark: re.Pattern[str], answer_as: str, direct: bool = False) -> Conversation:
    """The last answer as reasoning and answer, parted at the last match of ``mark``; with ``direct``, both as the answer.

    Raises:
        Rejected: it has no such place, nothing before it or nothing behind it; or it comes with reasoning already.
    """
    *before, answer = conversation.messages
    if "reasoning_content" in answer:
        raise Rejected("reasoning_twice", "the row has reasoning of its own; leave shape.answer_after out", "shape")
    text = answer["content"]
    places = list(mark.finditer(text))
    if not places:
        raise Rejected("no_answer_mark", f"nothing in the answer matches {mark.pattern!r}: {text[-80:]}", "shape")
    reasoning, final = text[: places[-1].start()].strip(), text[places[-1].end() :].strip()
    if not reasoning or not final:
        raise Rejected("no_reasoning" if final else "no_answer", f"parted at {places[-1][0]!r}: {text[-80:]}", "shape")
    content = answer_as.replace("{answer}", final.rstrip("."))
    parted: Message = {**answer, "content": content, "reasoning_content": reasoning}
    conversation = dataclasses.replace(conversation, messages=[*before, parted], mode="thinking")
    return shown(conversation) if direct else conversation


def shown(conversation: Conversation) -> Conversation:
    """The conversation without thinking: the reasoning of its last answer stands in the answer, before the rest of it.

    Raises:
        Rejected: the last answer has no reasoning.
    """
    *before, answer = conversation.messages
    reasoning = answer.get("reasoning_content", "").strip()
    if not reasoning:
        raise Rejected("no_reasoning", "direct shows the reasoning in the answer, and the answer has none", "shape")
    plain: Message = {key: value for key, value in answer.items() if key != "reasoning_content"}
    plain["content"] = f"{reasoning}\n\n{answer['content']}"
    return dataclasses.replace(conversation, messages=[*before, plain], mode="non_thinking")


def switched(conversation: Conversation, share: float) -> Conversation:
    """The conversation with its switch behind the last question, if its question is among the ``share`` that get one.

    The question's text decides, so that the same rows get it on any number of processes, and in any order.
    """
    messages = list(conversation.messages)
    last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "user"), None)
    if last is None or messages[-1]["role"] != "assistant":
        return conversation
    question = messages[last]["content"]
    drawn = zlib.crc32(question.encode("utf-8", "surrogatepass")) / 2**32
    if drawn >= share:
        return conversation
    thinks = conversation.mode == "thinking" and drawn < share / 2
    messages[last] = {**messages[last], "content": f"{question} {'/think' if thinks else '/no_think'}"}
    if not thinks:
        messages[-1] = {key: value for key, value in messages[-1].items() if key != "reasoning_content"}
    # The prompt is that of the thinking mode either way; the switch in the question decides.
    return dataclasses.replace(conversation, messages=messages, mode="thinking", each=False)
