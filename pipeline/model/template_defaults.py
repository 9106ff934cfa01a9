"""What a chat template is told beside the mode (``model.chat_template_kwargs``): effort of reasoning, kept thoughts.

In: a tokenizer and those keywords. Out: the tokenizer, whose template has them as its defaults. So they hold wherever the
template does: in the rows that are trained on, in the evaluation, in what is exported, and in a server that loads what was
exported. A caller who gives such a keyword is still heard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError
from pipeline.model.thinking_style import style_or_none
from pipeline.model.tokenizer import template_environment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Value = bool | int | str
IS_THE_MODE = (
    "model.chat_template_kwargs: {!r} switches the mode; each row, and each part of the evaluation, has its own."
)
GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "enable_thinking"}


def with_defaults(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Value]) -> PreTrainedTokenizerBase:
    """The same tokenizer; its chat template takes these keywords where a caller gives none.

    Raises:
        UserError: there is no chat template, or it does not read one of them (says which it reads), or one is the mode's switch.
    """
    if not kwargs:
        return tokenizer
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise UserError(
            "model.chat_template_kwargs needs a tokenizer with one chat template, and this one has none or several."
        )
    added = "".join(map(_default, kwargs, kwargs.values()))
    if not template.startswith(added):
        known = read_by(template)
        for name in kwargs:
            if name == "enable_thinking":
                raise UserError(IS_THE_MODE.format(name))
            if name not in known:
                raise UserError(
                    f"model.chat_template_kwargs: the chat template reads no {name!r}. It reads {', '.join(known) or 'nothing'}."
                )
        tokenizer.chat_template = added + template
    style = style_or_none(tokenizer)
    for name in kwargs:
        if style is not None and name in style.kwargs("thinking"):
            raise UserError(IS_THE_MODE.format(name))
    return tokenizer


def _default(name: str, value: Value) -> str:
    # JSON's texts are Jinja's too, and so are true and false.
    return "{%- if " + name + " is not defined %}{%- set " + name + " = " + json.dumps(value) + " %}{%- endif %}"


def read_by(template: str) -> list[str]:
    """What a chat template reads beside the messages, the mode, and what transformers gives it; sorted.

    Raises:
        UserError: it is no template.
    """
    from jinja2 import TemplateSyntaxError, meta

    environment = template_environment()
    try:
        found = meta.find_undeclared_variables(environment.parse(template))
    except TemplateSyntaxError as error:
        raise UserError(f"The chat template cannot be read: {error}.") from error
    return sorted(n for n in found - GIVEN - set(environment.globals) if not n.endswith("_token"))
