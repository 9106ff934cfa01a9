"""Conversations become tokens and a loss mask, by the tokenizer's own chat template.

In: a ``Conversation`` and a tokenizer. Out: ``Example`` rows: ``input_ids``, ``labels`` (−100 where there is no loss),
``mode``, ``source``.

The parity rule: the tokens before the first token with loss are exactly the prompt that inference sends in that mode,
``apply_chat_template(..., add_generation_prompt=True, enable_thinking=…)``. So

* in non-thinking mode the empty think block is prompt, never target;
* in thinking mode the loss starts at ``<think>``, or behind it where the prompt ends with it (Qwen3.5 and later);
* an earlier answer of a multi-turn conversation cannot carry loss inside the last answer's example: the template shows
  it there without its think block, which is not what the model would have been asked to write. Each answer is
  therefore an example of its own, whose history looks as it will look at inference;
* every example ends with the turn's ``<|im_end|>``, in the loss.

Keywords, tags and ends are Qwen3's here; those of a tokenizer are in its ``ThinkingStyle``, which is asked for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint
from pipeline.core.modes import Mode
from pipeline.data.conversations import Conversation, Message, Rejected
from pipeline.model.thinking_style import thinking_style

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


IGNORE_INDEX = -100
EMPTY_THINK = "<think>\n\n</think>\n\n"
Turns = Literal["all", "last"]
EmptyThink = Literal["masked", "trained", "soft_switch"]
LossOn = Literal["answers", "everything"]
RenderedAnswer = tuple[str, str, Mode, str]  # prompt, target, mode, splitting character ("" where none is needed)


@dataclass
class Example:
    """One training row. ``labels[i]`` is ``input_ids[i]`` where the token carries loss, else −100."""

    input_ids: list[int]
    labels: list[int]
    mode: Mode
    source: str


# --- literal control tokens in the data ---------------------------------------------------------------------------------
# A document about chat templates may contain "<|im_end|>". Tokenised as it stands it would end the turn. So every
# added token that occurs in *content* is split by a private-use character before the template runs, and the rendered
# text is tokenised in the pieces between those characters: the letters stay, the control token does not appear.


def _added_token_pattern(tokenizer: PreTrainedTokenizerBase, tags: Iterable[str]) -> re.Pattern[str]:
    tokens = sorted({*map(str, tokenizer.get_added_vocab()), *tags}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def _break_character(texts: str) -> str:
    for code in range(0xE000, 0xF8FF):
        if chr(code) not in texts:
            return chr(code)
    raise Rejected("no_free_private_use_character")


def _strings_in(value: Any) -> list[str]:
    """All strings in lists and dicts, keys among them."""
    if isinstance(value, str):
        return [value]
    found: list[str] = []
    if isinstance(value, dict | list):
        for part in chain.from_iterable(value.items()) if isinstance(value, dict) else value:
            if part.__class__ is str:
                found.append(part)
            else:
                found += _strings_in(part)
    return found


def _map_strings(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map_strings(k, change): _map_strings(v, change) for k, v in value.items()}
    if isinstance(value, list):
        return [_map_strings(v, change) for v in value]
    return value


_DICT = frozenset(dir(dict))


def _quicken_sandbox(tokenizer: Any) -> None:
    """Spare the sandbox in which the tokenizer's template runs three things that it does again and again.

    Whether an attribute may be read depends on the type of the object and the attribute's name alone (jinja2.sandbox), so it
    remembers its own verdicts. ``message.role`` of a dict, which has no such attribute, is looked up at once. And the template's
    globals are one dict, not a chain of two that each rendering copies. transformers compiles a template once and keeps it.
    """
    template = getattr(tokenizer, "compiled_template", None)
    if template is None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        template = _compile_jinja_template(str(tokenizer.chat_template))
    environment = template.environment
    verdict = type(environment).is_safe_attribute
    known: dict[tuple[type, str], bool] = {}

    def is_safe_attribute(obj: Any, attr: str, value: Any) -> bool:
        key = (type(obj), attr)
        if key not in known:
            known[key] = verdict(environment, obj, attr, value)
        return known[key]

    plain = type(environment).getattr

    def getattr_(obj: Any, attribute: str) -> Any:
        if obj.__class__ is dict and attribute not in _DICT:
            return obj[attribute] if attribute in obj else environment.undefined(obj=obj, name=attribute)
        return plain(environment, obj, attribute)

    environment.is_safe_attribute, environment.getattr = is_safe_attribute, getattr_
    template.globals = dict(template.globals)


class ChatFormat:
    """Renders and tokenises with one tokenizer. Holds only what is derived from it once (its added tokens).

    Args:
        empty_think: what becomes of the empty think block before an answer without reasoning. ``masked``: it is part of the
            prompt, as inference sends it. The others break the parity rule, and are there to be measured: ``trained``: the
            prompt ends before it and it carries loss, as in the public notebooks; ``soft_switch``: the same after a
            ``/no_think`` that is put behind the question.
        loss_on: ``everything`` puts loss on the prompt as well; also against the parity rule.

    Raises:
        UserError: the tokenizer has no chat template, or one that cannot be used (see ``thinking_style``), or one whose
            empty block cannot be trained as ``empty_think`` asks.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, empty_think: EmptyThink = "masked", loss_on: LossOn = "answers"
    ):
        self.tokenizer, self.empty_think, self.loss_on = tokenizer, empty_think, loss_on
        self.style = style = thinking_style(tokenizer)
        self._added = _added_token_pattern(tokenizer, style.tags)
        if empty_think != "masked" and not style.soft_switch:
            raise UserError(
                f"data.empty_think={empty_think} trains the empty block behind the thinking prompt, which only models like Qwen3 "
                "have; this chat template's prompts differ in another way. Use data.empty_think=masked."
            )
        _quicken_sandbox(tokenizer)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a worker process: ``__init__`` does not run there, and the sandbox of that process has to learn it too."""
        self.__dict__.update(state)
        _quicken_sandbox(self.tokenizer)

    @cached_property
    def key(self) -> str:
        """A hash of the vocabulary, the template and the masks: equal keys give equal examples."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        whole = backend.to_str() if backend is not None else self.tokenizer.get_vocab()
        return fingerprint([whole, self.tokenizer.chat_template, self.empty_think, self.loss_on])

    def _template(self, messages: Sequence[Message], tools: Any, prompt: bool, mode: Mode) -> str:
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(
                self.style.messages(messages),
                tools=tools or None,
                add_generation_prompt=prompt,
                tokenize=False,
                **self.style.kwargs(mode),
            )
        except jinja2.TemplateError as error:  # e.g. a system message that is not the first
            raise Rejected("refused_by_template", str(error)) from error
        return str(text)

    def _answer(self, messages: Sequence[Message], answer: Message, mode: Mode, tools: Any) -> str:
        """A conversation with its last answer, up to and with the token that ends it."""
        if answer.get("tool_calls") and self.style.end_of_calls is None:
            raise Rejected("no_tool_calls_in_template", "the chat template leaves out what an answer calls")
        end = self.style.end_of(answer)
        text = self._template([*messages, answer], tools, False, mode).rstrip("\n")
        if self.style.end_is_next_turn:
            return text + end
        if not text.endswith(end):
            raise Rejected("breaks_parity", f"an answer that should end with {end!r} ends {text[-60:]!r}")
        return text

    def _require_form(self, target: str, answer: Message, mode: Mode) -> None:
        """A thinking answer has its thought, and nothing that only the prompt should have stands before any answer."""
        tags, reasoning = self.style.tags, answer.get("reasoning_content", "")
        if mode == "thinking" and tags.close not in target:
            raise Rejected("breaks_parity", "the chat template shows no thought in this thinking answer")
        begins = (reasoning or answer["content"]).strip()[:20].rstrip()
        written = target.lstrip().removeprefix(tags.open).lstrip() if mode == "thinking" else target.lstrip()
        if (reasoning or mode == "non_thinking") and not written.startswith(begins):
            raise Rejected("breaks_parity", f"the chat template puts {written[:40]!r} before the answer {begins!r}")

    def _require(self, mode: Mode) -> None:
        if mode not in self.style.modes:
            raise Rejected(
                "mode_not_of_model",
                f"{self.style.only()} The row is for the {mode.replace('_', '-')} mode; give a source of such rows the share 0",
            )

    def _behind(self, prompt: str, text: str, mode: Mode) -> str:
        """What follows the prompt in a rendered answer.

        Raises:
            UserError: the template never lets an answer of this mode follow its prompt.
            Rejected: it does not with this one.
        """
        if reason := self.style.untrainable.get(mode):
            raise UserError(f"The chat template breaks parity: {reason}")
        if not text.startswith(prompt):
            raise Rejected(
                "breaks_parity",
                f"the rendered answer does not continue its prompt. Prompt ends {prompt[-60:]!r}, answer ends {text[-60:]!r}",
            )
        return text[len(prompt) :]

    def _protect(self, conversation_part: Any) -> tuple[Any, str]:
        """Split literal control tokens in all strings; returns the new value and the splitting character ("" if none)."""
        whole = "\0".join(_strings_in(conversation_part))
        try:
            whole.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair; the tokenizer would fail on the whole batch
            raise Rejected("not_unicode", str(error)) from error
        if not self._added.search(whole):
            return conversation_part, ""
        mark = _break_character(whole)
        change = lambda s: self._added.sub(lambda m: m[0][0] + mark + m[0][1:], s)  # noqa: E731
        return _map_strings(conversation_part, change), mark

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered texts, one list a text, nothing added."""
        if not texts:
            return []
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:  # a tokenizer in pure Python
            return list(self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"])
        if backend.truncation or backend.padding:  # an earlier call left its settings there
            backend.no_truncation()
            backend.no_padding()
        # No offsets are computed: about 1.5 times as fast as calling the tokenizer, with the same ids.
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _encode_marked(self, texts: Sequence[str], marks: Sequence[str]) -> list[list[int]]:
        if not any(marks):
            return self.encode(texts)
        pieces = [text.split(mark) if mark else [text] for text, mark in zip(texts, marks, strict=True)]
        flat = iter(self.encode([piece for group in pieces for piece in group]))
        return [[token for _ in group for token in next(flat)] for group in pieces]

    def prompt_text(self, messages: Sequence[Message], mode: Mode, tools: Any = None) -> str:
        """The rendered prompt that inference sends in this mode."""
        self.style.require(mode)
        return self._template(messages, tools, True, mode)

    def prompt_ids(self, messages: Sequence[Message], mode: Mode, tools: Any = None) -> list[int]:
        """Tokens of the prompt that inference sends in this mode; literal control tokens in content stay text."""
        (messages, tools), mark = self._protect([list(messages), tools])
        return self._encode_marked([self.prompt_text(messages, mode, tools)], [mark])[0]

    def answer_ids(
        self, messages: Sequence[Message], answers: Sequence[Message], mode: Mode, tools: Any = None
    ) -> tuple[list[int], list[list[int]]]:
        """Tokens of a prompt as inference sends it in this mode, and of several answers to it, each with its end token.

        An answer need not have the form of the mode, as the rejected one of a pair often does not: one without reasoning in
        thinking mode begins with the empty think block that the template gives it, one with reasoning in non-thinking mode
        with its think block, behind the empty one of the prompt.

        Raises:
            Rejected: the model has no such mode, text that is not Unicode, or an answer that the template shows in no form that
                follows the prompt.
            UserError: the chat template breaks the parity rule.
        """
        self._require(mode)
        before = [m if mode == "thinking" else _without_reasoning(m) for m in messages]
        cleaned = []
        for answer in answers:
            bare = not (answer.get("reasoning_content") or "").strip()
            cleaned.append(
                (_without_reasoning(answer) if bare else answer) | {"content": answer["content"].strip("\n")}
            )
        (before, cleaned, tools), mark = self._protect([before, cleaned, tools])
        prompt = self.prompt_text(before, mode, tools)
        targets = [self._any_target(before, prompt, answer, mode, tools) for answer in cleaned]
        first, *rest = self._encode_marked([prompt, *targets], [mark] * (1 + len(targets)))
        return first, rest

    def _any_target(self, before: Sequence[Message], prompt: str, answer: Message, mode: Mode, tools: Any) -> str:
        """What follows the prompt where this answer is given, whether or not it has the form of the mode."""
        style, text = self.style, self._answer(before, answer, mode, tools)
        if mode == "non_thinking" and "reasoning_content" in answer:
            # Its think block stands where the prompt has the empty one; it is written behind that.
            return self._behind(prompt.removesuffix(style.direct_block), text, mode)
        if mode == "thinking" and "reasoning_content" not in answer and not text.startswith(prompt):
            # The prompt is inside a thought, which is closed at once.
            bare = self.prompt_text(before, "non_thinking", tools)
            direct = self._answer(before, answer, "non_thinking", tools)
            return style.closing + self._behind(bare, direct, "non_thinking")
        return self._behind(prompt, text, mode)

    def targets(self, conversation: Conversation, turns: Turns) -> list[tuple[int, Mode]]:
        """Which messages carry loss, and in which mode."""
        result: list[tuple[int, Mode]] = []
        for index, message in enumerate(conversation.messages):
            last = index == len(conversation.messages) - 1
            if message["role"] != "assistant" or (turns == "last" and not last):
                continue
            if (not message["content"].strip() and not message.get("tool_calls")) or message.get("weight") == 0:
                continue  # OpenAI's weight 0: an answer to read, not to learn
            has_reasoning = bool((message.get("reasoning_content") or "").strip())
            if conversation.each:
                result.append((index, "thinking" if has_reasoning else "non_thinking"))
            elif has_reasoning and conversation.mode == "thinking":
                result.append((index, "thinking"))
            elif conversation.mode == "non_thinking":
                result.append((index, "non_thinking"))
            elif not has_reasoning and soft_switch(conversation.messages[:index]) == "/no_think":
                # Qwen3's own convention: after /no_think the thinking prompt is answered with an empty think block.
                result.append((index, "thinking"))
            elif last:
                raise Rejected("empty_reasoning", "a thinking conversation whose last answer has no reasoning")
        if not result:
            raise Rejected("no_assistant_turn")
        return result

    def render(self, conversation: Conversation, turns: Turns = "all") -> list[RenderedAnswer]:
        """(prompt, target, mode, splitting character) of each answer that carries loss.

        Raises:
            Rejected: the conversation has no answer that could carry loss in its mode, is of a mode that the model has not,
                holds what the chat template cannot show, or text that is not Unicode.
            UserError: the chat template breaks the parity rule (a full conversation does not start with its prompt).
        """
        keep_reasoning = conversation.mode == "thinking" or conversation.each
        messages = [
            {k: v for k, v in m.items() if v is not None and (k != "reasoning_content" or keep_reasoning)}
            for m in conversation.messages
        ]
        (messages, tools), mark = self._protect([messages, conversation.tools])
        # Only content can hold control tokens that must stay text; the roles and keys above are ours.
        result: list[RenderedAnswer] = []
        for index, mode in self.targets(conversation, turns):
            self._require(mode)
            before = messages[:index]
            if mode == "non_thinking" and self.empty_think == "soft_switch":
                before = _with_no_think(before)
            prompt = self.prompt_text(before, mode, tools)
            # Newlines around the answer are no part of it. The prompt keeps its own: inference sends them too.
            answer = messages[index] | {"content": messages[index]["content"].strip("\n")}
            if not answer.get("reasoning_content", "").strip():
                answer.pop("reasoning_content", None)
            target = self._behind(prompt, self._answer(before, answer, mode, tools), mode)
            self._require_form(target, answer, mode)
            if mode == "non_thinking" and self.empty_think != "masked":
                block = self.style.direct_block
                prompt, target = prompt.removesuffix(block), block + target
            result.append((prompt, target, mode, mark))
        return result

    def render_all(
        self, conversations: Iterable[Conversation], turns: Turns = "all"
    ) -> list[list[RenderedAnswer] | Rejected]:
        """``render`` of each conversation in order, or why it was rejected."""
        result: list[list[RenderedAnswer] | Rejected] = []
        for conversation in conversations:
            try:
                result.append(self.render(conversation, turns))
            except Rejected as rejected:
                result.append(rejected)
        return result

    def encode_answers(self, answers: Sequence[RenderedAnswer]) -> list[tuple[list[int], int]]:
        """Of each rendered answer the token ids (prompt and target) and how many of them come before the loss; one batch."""
        marks = [mark for _, _, _, mark in answers]
        ids = self._encode_marked([a[0] for a in answers] + [a[1] for a in answers], marks + marks)
        return [
            (prompt + target, len(prompt) if self.loss_on == "answers" else 0)
            for prompt, target in zip(ids[: len(answers)], ids[len(answers) :], strict=True)
        ]

    def examples(self, conversations: Iterable[Conversation], turns: Turns = "all") -> list[list[Example] | Rejected]:
        """Examples of each conversation, or why it was rejected; tokenised in one batch.

        Args:
            turns: ``all``: every answer that can carry loss becomes an example; ``last``: only the last one.

        Returns:
            One entry a conversation, in order.
        """
        kept = list(conversations)
        rendered = self.render_all(kept, turns)
        encoded = iter(self.encode_answers([a for entry in rendered if not isinstance(entry, Rejected) for a in entry]))
        result: list[list[Example] | Rejected] = []
        for conversation, entry in zip(kept, rendered, strict=True):
            if isinstance(entry, Rejected):
                result.append(entry)
                continue
            rows = []
            for _, _, mode, _ in entry:
                ids, prompt = next(encoded)
                rows.append(Example(ids, [IGNORE_INDEX] * prompt + ids[prompt:], mode, conversation.source))
            result.append(rows)
        return result

    def example(self, conversation: Conversation, turns: Turns = "all") -> list[Example]:
        """Examples of one conversation; raises ``Rejected`` where there is none."""
        result = self.examples([conversation], turns)[0]
        if isinstance(result, Rejected):
            raise result
        return result


def _without_reasoning(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "reasoning_content"}


def _with_no_think(messages: Sequence[Message]) -> list[Message]:
    """The messages with ``/no_think`` behind the last question."""
    result = list(messages)
    for index in reversed(range(len(result))):
        if result[index]["role"] == "user":
            result[index] = {**result[index], "content": f"{result[index]['content']} /no_think"}
            break
    return result


def soft_switch(messages: Sequence[Message]) -> str:
    """The last ``/think`` or ``/no_think`` in the user and system messages, or ``""``. The last one wins (Qwen3)."""
    found = ""
    for message in messages:
        if message["role"] in ("user", "system"):
            for match in re.finditer(r"(?<!\S)/(?:no_)?think(?!\S)", message["content"]):
                found = match[0]
    return found


# --- looking at a mask --------------------------------------------------------------------------------------------------


def coloured(tokenizer: PreTrainedTokenizerBase, example: Example | dict[str, Any], form: str = "ansi") -> str:
    """The example as text with its loss-bearing tokens marked.

    Args:
        form: ``ansi`` (terminal: green on loss, dim elsewhere), ``html`` (notebook), or ``plain`` (``[[loss]]``).
    """
    import html

    row = asdict(example) if isinstance(example, Example) else example
    spans: list[tuple[bool, list[int]]] = []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        loss = label != IGNORE_INDEX
        if not spans or spans[-1][0] != loss:
            spans.append((loss, []))
        spans[-1][1].append(token)
    pieces = [(loss, str(tokenizer.decode(ids, skip_special_tokens=False))) for loss, ids in spans]
    if form == "ansi":
        return "".join(f"\x1b[1;32m{t}\x1b[0m" if loss else f"\x1b[2m{t}\x1b[0m" for loss, t in pieces)
    if form == "plain":
        return "".join(f"[[{t}]]" if loss else t for loss, t in pieces)
    if form != "html":
        raise UserError(f"Unknown form {form!r}; use ansi, html or plain.")
    styles = {True: "background:#c8f0d0;color:#063", False: "color:#777"}
    body = "".join(f'<span style="{styles[loss]}">{html.escape(t)}</span>' for loss, t in pieces)
    return f'<pre style="white-space:pre-wrap;line-height:1.5">{body}</pre>'
