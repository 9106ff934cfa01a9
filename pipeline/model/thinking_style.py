"""How a model is switched between its modes and what it writes in each, found out from its tokenizer's chat template.

In: a tokenizer. Out: its ``ThinkingStyle``, plain data that everything else asks: which keyword switches, how the prompt
of each mode ends, where the reasoning begins and ends, what ends a turn, what later turns see of it. Nothing is known by a
model's name: ``pipeline.model.template_probe`` renders small conversations and looks at the text.

The shapes that there are (U a question, R reasoning, A an answer; what is left of ``|`` is the prompt):

====================  ===========================  ================================  ==============================
template              thinking                     non-thinking                      where it is seen
====================  ===========================  ================================  ==============================
Qwen3                 ``U | <think>R</think>A``    ``U<think></think> | A``          the block is part of the prompt
Qwen3.5, Nemotron-3   ``U<think> | R</think>A``    ``U<think></think> | A``          the prompt opens the thought
GLM-4.5               ``U | <think>R</think>A``    ``U/nothink<think></think> | A``  the question changes as well
Gemma-4               ``<|think|>U | …R…A``        ``U | A``                         only the system message changes
Thinking-2507         ``U<think> | R</think>A``    –                                 one mode
Instruct-2507         –                            ``U | A``                         one mode
====================  ===========================  ================================  ==============================
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES, THINK, Mode, Tags
from pipeline.model.template_probe import probe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


@dataclass(frozen=True)
class ThinkingStyle:
    """What a chat template says about thinking. All texts are exactly as they are rendered.

    ``untrainable`` holds the modes in which an answer cannot be shown as the model would have written it, with the reason:
    their prompts are right, and the model can be evaluated in them, but no example can be made.
    """

    modes: tuple[Mode, ...]  # those that the model has, thinking first
    switch: dict[Mode, dict[str, Any]] = field(default_factory=dict)  # keywords of apply_chat_template; {}: none needed
    tags: Tags = THINK
    opening: str = ""  # between the assistant's header and the reasoning, e.g. "<think>\n"
    closing: str = ""  # between reasoning and answer, e.g. "\n</think>\n\n"
    opens_in_prompt: bool = False  # the thinking prompt ends with ``opening``; the model goes on inside the thought
    direct_block: str = ""  # what the non-thinking prompt has behind the header, e.g. "<think>\n\n</think>\n\n"
    # Qwen3's shape: the thinking prompt ends at the header, and the empty block behind it makes the other prompt. Only there
    # can a model be taught to write the empty block itself, as after /no_think.
    soft_switch: bool = False
    reasoning_key: str = "reasoning_content"  # the message's key that the template reads
    end: str = ""  # the token that ends an answer
    end_of_calls: str | None = None  # the same of an answer that calls tools; None: the template shows no tool calls
    end_is_next_turn: bool = False  # the template ends no turn; a model stops by opening the next one (GLM)
    keeps_reasoning: bool = False  # a later question still sees the reasoning of earlier answers
    keeps_reasoning_between_calls: bool = (
        False  # the answer to a tool's result still sees the reasoning before the call
    )
    history_switch: dict[str, Any] = field(default_factory=dict)  # keyword that turns ``keeps_reasoning`` round
    efforts: dict[str, dict[str, Any]] = field(default_factory=dict)  # name of an effort → its keywords
    default_effort: str | None = None
    dated: bool = False  # the prompt holds today's date
    untrainable: dict[Mode, str] = field(default_factory=dict)

    def kwargs(self, mode: Mode) -> dict[str, Any]:
        """Keywords of ``apply_chat_template`` for this mode; ``chat_template_kwargs`` of a server."""
        return self.switch.get(mode, {})

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with their reasoning under the key that the template reads."""
        if self.reasoning_key == "reasoning_content":
            return list(messages)
        return [{self.reasoning_key if k == "reasoning_content" else k: v for k, v in m.items()} for m in messages]

    def end_of(self, answer: Message) -> str:
        """The token that ends this answer."""
        return (self.end_of_calls or self.end) if answer.get("tool_calls") else self.end

    def ends(self) -> tuple[str, ...]:
        """All tokens at which the model stops."""
        return tuple(dict.fromkeys(end for end in (self.end, self.end_of_calls) if end))

    def require_both(self, what: str) -> None:
        """Raise ``UserError`` where the model has one mode, and ``what`` needs two."""
        if len(self.modes) < 2:
            raise UserError(f"{self.only()} {what} needs a model with both modes.")

    def require(self, mode: Mode) -> None:
        """Raise ``UserError`` where the model has no such mode."""
        if mode not in self.modes:
            raise UserError(f"{self.only()} There is no {mode.replace('_', '-')} prompt.")

    def only(self) -> str:
        """Of a model with one mode, a sentence that says so."""
        (mode,) = self.modes
        return f"The chat template has no switch: the model has only its {mode.replace('_', '-')} mode."

    def opened(self, prompt: str) -> str:
        """``opening`` where this prompt ends with it, so that a reply goes on inside the thought; else nothing."""
        return self.opening if self.opening and prompt.endswith(self.opening) else ""

    def whole(self, prompt: str, reply: str) -> str:
        """The reply with the opening tag that its prompt ended with: what is judged, counted and shown."""
        return self.opened(prompt) + reply


_known: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, ThinkingStyle]] = weakref.WeakKeyDictionary()


def thinking_style(tokenizer: PreTrainedTokenizerBase) -> ThinkingStyle:
    """The style of a tokenizer's chat template; probed once for each tokenizer and template.

    Raises:
        UserError: there is no chat template, or one that cannot be used; says why, and what would do.
    """
    now = (tokenizer.chat_template, tokenizer.eos_token, len(tokenizer))
    known = _known.get(tokenizer)
    if known is None or known[0] != now:
        known = _known[tokenizer] = (now, ThinkingStyle(**probe(tokenizer)))
    return known[1]


def style_or_none(tokenizer: PreTrainedTokenizerBase) -> ThinkingStyle | None:
    """``thinking_style``, or None for a tokenizer that has none, such as that of a base model."""
    try:
        return thinking_style(tokenizer)
    except UserError:
        return None


def modes_of(tokenizer: PreTrainedTokenizerBase, wanted: Sequence[Mode] = MODES) -> tuple[Mode, ...]:
    """Those of ``wanted`` that the model has.

    Raises:
        UserError: none of them; see also ``thinking_style``.
    """
    style = thinking_style(tokenizer)
    found = tuple(mode for mode in wanted if mode in style.modes)
    if not found:
        style.require(wanted[0])
    return found
