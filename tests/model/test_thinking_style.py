"""Every chat template that TRL ships: what is found out by probing, and the parity rule in each mode.

The expected prompt is asked from ``tokenizer.apply_chat_template`` itself with the switch of the table below, never from the
module under test. Templates of further kinds are written out here.
"""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES, Mode
from pipeline.data.chat_format import EMPTY_THINK, ChatFormat
from pipeline.data.conversations import Conversation, Rejected
from pipeline.model.decode import _reply, end_tokens
from pipeline.model.form import judge, split_reply
from pipeline.model.thinking_style import ThinkingStyle, modes_of, style_or_none, thinking_style

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("make_templates", ROOT / "docs" / "make_templates.py")
assert _spec and _spec.loader
make_templates = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_templates)

QWEN35 = ("<think>\n", "<think>\n\n</think>\n\n", "<|im_end|>", "<|im_end|>")
NEMOTRON = ("<think>\n", "<think></think>", "<|im_end|>", "<|im_end|>")
GEMMA = ("", "", "<turn|>", "<|tool_response>")
# name → (end of the thinking prompt, end of the other prompt, end of a turn, end of a turn that calls tools)
HYBRID: dict[str, tuple[str, str, str, str]] = {
    "qwen3": ("", "<think>\n\n</think>\n\n", "<|im_end|>", "<|im_end|>"),
    **dict.fromkeys(["qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8"], QWEN35),
    **dict.fromkeys([f"nemotron_3_{size}" for size in ("nano", "super", "ultra", "5_lightning")], NEMOTRON),
    "glm4moe": ("", "\n<think></think>", "<|user|>", "<|observation|>"),
    **dict.fromkeys(["gemma4_v5", "diffusion_gemma"], GEMMA),
}
DIRECT = ["qwen2_5", "qwen3_instruct_2507", "qwen3_vl", "lfm2_v2"]
REFUSED = {
    **dict.fromkeys(["gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4"], "leaves out the reasoning of a last answer"),
    "gptoss": r"does not switch thinking.*reasoning_effort: .*low, medium, high.*none of them turns it off",
    "muse_glimmer": "does not switch thinking.*left to the model",
    **dict.fromkeys(["lfm2_2_5", "lfm2_2_5_v2"], "does not switch thinking.*left to the model"),
    **dict.fromkeys(
        ["deepseekv3", "deepseek_r1_distill"], r"does not switch thinking.*<think>\\n', and an answer is never"
    ),
}


@pytest.fixture(scope="session")
def templated(embedded_tokenizer: PreTrainedTokenizerBase) -> Any:
    """From a name to the embedded tokenizer with that template and its tokens."""
    made: dict[str, PreTrainedTokenizerBase] = {}

    def tokenizer(name: str, template: str | None = None) -> PreTrainedTokenizerBase:
        if template is not None:
            return make_templates.tokenizer_with(embedded_tokenizer, name, template)
        if name not in made:
            made[name] = make_templates.tokenizer_with(embedded_tokenizer, name)
        return made[name]

    return tokenizer


# --- the parity rule ----------------------------------------------------------------------------------------------------


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(text: str, reasoning: str = "", city: str = "") -> Message:
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if city:
        message["tool_calls"] = [{"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}]
    return message


RESULT = {"role": "tool", "name": "weather", "content": "12 degrees"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "where"}},
                "required": ["city"],
            },
        },
    }
]
CONVERSATIONS: dict[str, tuple[list[Message], Any]] = {
    "one": ([user("What is 2 + 2?"), said("It is 4.", "2 and 2 make 4.")], None),
    "system": ([{"role": "system", "content": "Be short."}, user("二加二？"), said("四。", "二加二等于四。")], None),
    "turns": (
        [user("Hi"), said("Hello!", "A greeting."), user("2 + 2?"), said("4", "Add."), user("3?"), said("3", "So.")],
        None,
    ),
    "lines": ([user("Code?\n"), said("```\nprint(1)\n```\n\nDone.", "First.\n\nThen.\n\nLast.")], None),
    "tools": (
        [user("Cold?"), said("", "I must look.", "Oslo"), RESULT, said("Yes, 12 degrees.", "It is cold.")],
        TOOLS,
    ),
    "tools_and_on": (
        [
            user("Cold?"),
            said("", "Look.", "Oslo"),
            RESULT,
            said("Yes.", "Cold."),
            user("And Rome?"),
            said("", "Look.", "Rome"),
        ],
        TOOLS,
    ),
}


def oracle(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], mode: Mode, tools: Any, switch: bool = True
) -> list[int]:
    """What a user of transformers sends."""
    if mode == "non_thinking":
        messages = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages]
    keywords = {"enable_thinking": mode == "thinking"} if switch else {}
    return list(
        tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False, **keywords
        )
    )


def check(
    tokenizer: PreTrainedTokenizerBase, mode: Mode, case: str, ends: tuple[str, str], switch: bool = True
) -> None:
    """All answers of a conversation against the oracle, and read back."""
    messages, tools = CONVERSATIONS[case]
    form = ChatFormat(tokenizer)
    rows = form.example(Conversation(messages, mode, tools=tools))
    at = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(rows) == len(at)
    for row, index in zip(rows, at, strict=True):
        start = next(i for i, label in enumerate(row.labels) if label != -100)
        prompt, target = row.input_ids[:start], row.input_ids[start:]
        assert row.labels[start:] == target
        assert prompt == oracle(tokenizer, messages[:index], mode, tools, switch)
        assert prompt == form.prompt_ids(
            [m if mode == "thinking" else {**m, "reasoning_content": ""} for m in messages[:index]], mode, tools
        )
        answer, end = messages[index], ends[bool(messages[index].get("tool_calls"))]
        assert target[-1] == tokenizer.convert_tokens_to_ids(end) and target.count(target[-1]) == 1
        reply = _reply(tokenizer, prompt, target, [target[-1]], form.style)
        reasoning, text, opened, closed = split_reply(reply.text, reply.tags)
        assert reply.reasoning_tokens + reply.answer_tokens == len(target) - 1 and not reply.truncated
        if mode == "thinking":
            assert (reasoning, opened, closed) == (answer["reasoning_content"], True, True)
            assert reply.reasoning_tokens > 0
        else:
            assert (reasoning, opened, closed, reply.reasoning_tokens) == ("", False, False, 0)
            assert "reasoning_content" not in answer or answer["reasoning_content"] not in tokenizer.decode(target)
        if answer.get("tool_calls"):
            city = answer["tool_calls"][0]["function"]["arguments"]["city"]
            assert "weather" in text and city in text
        else:
            assert text == answer["content"]
            assert judge(reply.text, False, mode, reply.tags)["faithful"]
            other: Mode = "non_thinking" if mode == "thinking" else "thinking"
            assert not judge(reply.text, False, other, reply.tags)["faithful"]


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", HYBRID)
def test_parity_of_hybrid_templates(templated: Any, name: str, mode: Mode, case: str) -> None:
    if name == "diffusion_gemma" and case.startswith(
        "tools"
    ):  # before an answer to a tool's result it opens another turn
        with pytest.raises(Rejected, match="breaks_parity"):
            check(templated(name), mode, case, HYBRID[name][2:])
        return
    check(templated(name), mode, case, HYBRID[name][2:])


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", DIRECT)
def test_parity_of_templates_without_reasoning(templated: Any, name: str, case: str) -> None:
    end = "<|im_end|>"
    check(templated(name), "non_thinking", case, (end, end), switch=False)


@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_8", "nemotron_3_super", "qwen3_instruct_2507"])
@pytest.mark.parametrize("mode", MODES)
def test_parity_on_the_real_tokenizer(qwen3_tokenizer: PreTrainedTokenizerBase, name: str, mode: Mode) -> None:
    tokenizer = make_templates.tokenizer_with(qwen3_tokenizer, name)
    if mode in thinking_style(tokenizer).modes:
        for case in CONVERSATIONS:
            check(tokenizer, mode, case, ("<|im_end|>", "<|im_end|>"), switch=name in HYBRID)


# --- what is found out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HYBRID)
def test_style_of_hybrid_templates(templated: Any, name: str) -> None:
    thinking, direct, end, calls = HYBRID[name]
    style = thinking_style(templated(name))
    assert style.modes == MODES
    assert style.switch == {"thinking": {"enable_thinking": True}, "non_thinking": {"enable_thinking": False}}
    assert (style.opens_in_prompt, style.opening if thinking else "") == (bool(thinking), thinking)
    assert style.direct_block == direct
    assert (style.end, style.end_of_calls, style.end_is_next_turn) == (end, calls, name == "glm4moe")
    assert style.soft_switch == (name == "qwen3")
    assert style.keeps_reasoning == (name == "qwen3_8") and style.keeps_reasoning_between_calls
    assert not style.untrainable and not style.dated


def test_style_of_qwen3(tokenizer: PreTrainedTokenizerBase) -> None:
    style = thinking_style(tokenizer)
    assert (style.opening, style.closing, style.direct_block) == ("<think>\n", "\n</think>\n\n", EMPTY_THINK)
    assert style.end == style.end_of_calls == tokenizer.eos_token
    assert thinking_style(tokenizer) is style


def test_history_and_effort(templated: Any) -> None:
    found = {name: thinking_style(templated(name)) for name in HYBRID}
    assert found["qwen3_6"].history_switch == {"preserve_thinking": True}
    assert found["qwen3_8"].history_switch == {"preserve_thinking": False}
    assert found["nemotron_3_nano"].history_switch == {"truncate_history_thinking": False}
    assert found["qwen3"].history_switch == {}
    assert list(found["qwen3_8"].efforts) == ["low", "medium", "xhigh"] and found["qwen3_8"].default_effort == "xhigh"
    assert found["nemotron_3_super"].efforts == {"low": {"low_effort": True}}
    assert found["nemotron_3_ultra"].efforts == {"medium": {"medium_effort": True}}
    assert found["qwen3"].efforts == found["glm4moe"].efforts == {}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(templated: Any, name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        ChatFormat(templated(name))
    assert "What works" in str(caught.value)
    assert style_or_none(templated(name)) is None


def test_all_templates_are_in_the_lists() -> None:
    switched = {*HYBRID, *(name for name in REFUSED if name.startswith("gemma4"))}
    assert len(switched) == 16
    for name, path in make_templates.shipped().items():
        if "enable_thinking" in path.read_text(encoding="utf-8"):
            assert name in switched


def test_the_pages_are_what_would_be_written(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    found = [page.read_text(encoding="utf-8") for page in make_templates.PAGES]
    assert found == make_templates.pages(embedded_tokenizer), "run: python docs/make_templates.py"


# --- templates from elsewhere -------------------------------------------------------------------------------------------

TURNS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{THOUGHT}{{ m.content }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{PROMPT}{% endif %}"
)


def template(thought: str = "", prompt: str = "") -> str:
    return TURNS.replace("{THOUGHT}", thought).replace("{PROMPT}", prompt)


GLM47 = template(
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}{% endif %}</think>",
    "{% if enable_thinking is defined and not enable_thinking %}</think>{% else %}<think>{% endif %}",
)
KEYWORD = template(
    "{% if m.reasoning %}[THINK]{{ m.reasoning }}[/THINK]{% elif not thinking and loop.last %}[THINK][/THINK]{% endif %}",
    "{% if not thinking %}[THINK][/THINK]{% endif %}",
)
EFFORT = template(
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% elif reasoning_effort == 'none' %}</think>{% endif %}",
    "{% if reasoning_effort == 'none' %}</think>{% endif %}",
)


def thinking_2507(tokenizer: PreTrainedTokenizerBase) -> str:
    """Qwen3's template, whose prompt always ends inside the thought."""
    head, mark, _ = str(tokenizer.chat_template).rpartition("{%- if add_generation_prompt %}")
    assert mark
    return head + mark + "{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"


@pytest.mark.parametrize("case", ["one", "system", "turns", "lines"])
@pytest.mark.parametrize("mode", MODES)
def test_opened_and_closed_by_the_prompt(templated: Any, mode: Mode, case: str) -> None:
    check(templated("qwen3", GLM47), mode, case, ("<|im_end|>", "<|im_end|>"))


@pytest.mark.parametrize(
    ("text", "switch", "key"),
    [
        (KEYWORD, {"thinking": {"thinking": True}, "non_thinking": {"thinking": False}}, "reasoning"),
        (
            EFFORT,
            {"thinking": {"reasoning_effort": "high"}, "non_thinking": {"reasoning_effort": "none"}},
            "reasoning_content",
        ),
    ],
    ids=["thinking", "reasoning_effort"],
)
def test_other_switches_and_keys(templated: Any, text: str, switch: Any, key: str) -> None:
    tokenizer = templated("qwen3", text)
    style = thinking_style(tokenizer)
    assert (style.switch, style.reasoning_key) == (switch, key)
    assert style.end_of_calls is None
    form = ChatFormat(tokenizer)
    for mode in MODES:
        (row,) = form.example(Conversation([user("q"), said("a", "r")], mode))
        start = row.labels.index(next(label for label in row.labels if label != -100))
        expected = tokenizer.apply_chat_template(
            [user("q")], add_generation_prompt=True, tokenize=False, **switch[mode]
        )
        assert tokenizer.decode(row.input_ids[:start]) == expected
        assert ("r" in split_reply(tokenizer.decode(row.input_ids[start:]), style.tags)[0]) == (mode == "thinking")
    with pytest.raises(Rejected, match="no_tool_calls_in_template"):
        form.example(Conversation([user("q"), said("", "r", "Oslo")], "thinking", tools=TOOLS))


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_a_model_that_only_thinks(templated: Any, embedded_tokenizer: PreTrainedTokenizerBase, case: str) -> None:
    tokenizer = templated("qwen3", thinking_2507(embedded_tokenizer))
    style = thinking_style(tokenizer)
    assert style.modes == ("thinking",) and style.opens_in_prompt and not style.soft_switch
    check(tokenizer, "thinking", case, ("<|im_end|>", "<|im_end|>"), switch=False)


def test_a_mode_that_the_model_has_not(templated: Any, embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    thinks = templated("qwen3", thinking_2507(embedded_tokenizer))
    for tokenizer, mode, other in (
        (thinks, "thinking", "non_thinking"),
        (templated("qwen3_instruct_2507"), "non_thinking", "thinking"),
    ):
        form = ChatFormat(tokenizer)
        assert modes_of(tokenizer) == (mode,)
        assert form.example(Conversation([user("q"), said("a", "r")], mode))  # type: ignore[arg-type]
        with pytest.raises(Rejected, match="mode_not_of_model.*has only its"):
            form.example(Conversation([user("q"), said("a", "r")], other))  # type: ignore[arg-type]
        with pytest.raises(Rejected, match="mode_not_of_model"):
            form.answer_ids([user("q")], [said("a", "r")], other)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="has only its"):
            form.prompt_ids([user("q")], other)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="has only its"):
            modes_of(tokenizer, [other])  # type: ignore[list-item]
        with pytest.raises(UserError, match="The sweep needs a model with both modes"):
            form.style.require_both("The sweep")
        with pytest.raises(UserError, match="empty_think=trained"):
            ChatFormat(tokenizer, empty_think="trained")


# --- pairs of answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HYBRID)
def test_answers_of_either_form(templated: Any, name: str) -> None:
    """A rejected answer thinks where it should not, or does not where it should."""
    tokenizer, form = templated(name), ChatFormat(templated(name))
    style = form.style
    for mode in MODES:
        prompt, answers = form.answer_ids([user("q")], [said("Right.", "So."), said("Wrong.")], mode)
        assert prompt == oracle(tokenizer, [user("q")], mode, None)
        texts = [style.whole(tokenizer.decode(prompt), tokenizer.decode(ids[:-1])) for ids in answers]
        assert [split_reply(text, style.tags)[:2] for text in texts] == [("So.", "Right."), ("", "Wrong.")]
        faithful = [judge(text, False, mode, style.tags)["faithful"] for text in texts]
        assert faithful == ([True, False] if mode == "thinking" else [False, True])
        trained = form.example(Conversation([user("q"), said("Right.", "So.")], mode))[0]
        if mode == "thinking":
            assert prompt + answers[0] == trained.input_ids


# --- replies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HYBRID)
def test_replies_end_where_the_template_ends_a_turn(templated: Any, tiny_qwen3: Any, name: str) -> None:
    tokenizer = templated(name)
    ends = end_tokens(tiny_qwen3(1), tokenizer)
    assert set(tokenizer.convert_tokens_to_ids([tokenizer.eos_token, *HYBRID[name][2:]])) <= set(ends)


def test_a_reply_whose_thought_the_prompt_opened(templated: Any) -> None:
    tokenizer = templated("qwen3_5_think")
    form = ChatFormat(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def reply(mode: Mode, text: str, cut: bool = False) -> Any:
        ids = form.encode([text])[0] + [end] * (not cut)
        return _reply(tokenizer, form.prompt_ids([user("<think>\n")], mode), ids, [end], form.style)

    whole = reply("thinking", "So.\n</think>\n\n4")
    assert whole.text == "<think>\nSo.\n</think>\n\n4" and whole.answer_tokens == len(form.encode(["\n\n4"])[0])
    assert judge(whole.text, False, "thinking") == {"opened": True, "closed": True, "leaked": False, "faithful": True}
    for text, faithful in (
        ("\n</think>\n\n4", False),
        ("So.\n</think>", False),
        ("4", False),
        ("<think>a</think>b", False),
    ):
        assert judge(reply("thinking", text).text, False, "thinking")["faithful"] == faithful
    cut = reply("thinking", "So it is", cut=True)
    assert (cut.reasoning_tokens, cut.answer_tokens) == (cut.output_tokens, 0)
    direct = reply("non_thinking", "4")
    assert direct.text == "4" and judge(direct.text, False, "non_thinking")["faithful"]
    assert not judge(reply("non_thinking", "Hm.</think>4").text, False, "non_thinking")["faithful"]


def test_a_closing_tag_of_several_tokens(templated: Any) -> None:
    tokenizer = templated("qwen3", KEYWORD)
    form = ChatFormat(tokenizer)
    (row,) = form.example(Conversation([user("q"), said("Answer.", "Reasons.")], "thinking"))
    start = row.labels.index(next(label for label in row.labels if label != -100))
    reply = _reply(tokenizer, row.input_ids[:start], row.input_ids[start:], [row.input_ids[-1]], form.style)
    assert tokenizer.decode(reply.token_ids[: reply.reasoning_tokens]).strip().endswith("[/THINK]"[-1])
    assert "Answer" in tokenizer.decode(reply.token_ids[reply.reasoning_tokens :])
    assert 0 < reply.reasoning_tokens < len(reply.token_ids) - 1


# --- what may go wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ raise_exception('No.') }}", "cannot show a single question: No"),
        ("{{ messages[7].content }}", "cannot show a single question"),
        (template(prompt="{% if enable_thinking %}<think>{% endif %}"), "leaves out the reasoning"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "no token of the tokenizer"),
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'user' %}{{ m.content }}{% endif %}<|im_end|>"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            "cannot show an answer: it is left out",
        ),
        (template().replace("<|im_end|>", "</think>"), "tokenizer's end token is '<\\|im_end\\|>'"),
    ],
    ids=["raises", "fails", "never_shown", "no_end", "no_answer", "other_end"],
)
def test_templates_that_cannot_be_used(templated: Any, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        thinking_style(templated("qwen3", text))


def test_a_template_that_refuses_a_conversation(templated: Any) -> None:
    """Qwen3.5 allows a system message at the beginning alone: the row is rejected with the template's words."""
    messages = [user("a"), {"role": "system", "content": "b"}, user("c"), said("d")]
    with pytest.raises(Rejected, match="refused_by_template.*System message must be at the beginning"):
        ChatFormat(templated("qwen3_5_think")).example(Conversation(messages, "non_thinking"))


def test_a_dated_prompt_is_noted(templated: Any) -> None:
    assert thinking_style(templated("qwen3", "{{ strftime_now('%Y') }}" + template())).dated


def test_a_changed_template_is_probed_again(templated: Any) -> None:
    tokenizer = copy.deepcopy(templated("qwen3"))
    assert not thinking_style(tokenizer).opens_in_prompt
    tokenizer.chat_template = templated("qwen3_5_think").chat_template
    assert thinking_style(tokenizer).opens_in_prompt


def test_no_empty_thought_in_a_prompt_that_opened_one(templated: Any) -> None:
    """/no_think is Qwen3's: where the template shows no empty thought behind the opened one, such a row is rejected."""
    conversation = Conversation([user("q /no_think"), said("a")], "thinking")
    assert ChatFormat(templated("qwen3")).example(conversation)
    for name in ("nemotron_3_nano", "gemma4_v5"):
        with pytest.raises(Rejected, match="breaks_parity"):
            ChatFormat(templated(name)).example(conversation)


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_reply_read_back(reasoning: str, answer: str) -> None:
    """With the opening tag in front, a reply that went on from it is read as if the model had written the tag."""
    style = ThinkingStyle(MODES, opening="<think>\n", closing="\n</think>\n\n", opens_in_prompt=True)
    written = f"{reasoning}\n</think>\n\n{answer}"
    whole = style.whole("…<|im_start|>assistant\n<think>\n", written)
    assert whole == "<think>\n" + written
    assert split_reply(whole) == split_reply("<think>\n" + written)
    assert style.whole("…<|im_start|>assistant\n", written) == written
    assert style.whole("…<think>\n\n</think>\n\n", written) == written


def test_probing_needs_neither_torch_nor_unsloth() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'unsloth') if m in sys.modules]"
    code = f"import sys, pipeline.model.thinking_style; print({heavy})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    assert run.stdout.split() == [b"[]"]
