"""A tokenizer for data alone: the folder's own ``tokenizer.json`` and chat template, without transformers or torch.

In: a folder. Out: a ``FastTokenizer`` that gives the same ids and the same text as ``AutoTokenizer`` does from that folder (the
tests compare them). Importing transformers' tokenizers loads torch and the code of generation, several seconds of processor time
that no data step needs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.files import read_json

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from tokenizers import Tokenizer

# Classes that add nothing of their own to what tokenizer.json says.
PLAIN_CLASSES = {
    *("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "GPT2Tokenizer"),
    *("GPT2TokenizerFast",),
}
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def reads(folder: Path) -> bool:
    """Whether a folder's tokenizer can be read so; else it takes ``AutoTokenizer``."""
    config = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").is_file() or not config.is_file():
        return False
    settings = read_json(config)
    return isinstance(settings, dict) and settings.get("tokenizer_class") in PLAIN_CLASSES


def _written(token: Any) -> str | None:
    """A special token of tokenizer_config.json: text, or an ``AddedToken`` as an object."""
    return token.get("content") if isinstance(token, dict) else token


def template_environment() -> ImmutableSandboxedEnvironment:
    """The sandbox that transformers gives a chat template, with the same filters, tags and functions."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what the assistant says; what is in it is rendered as it stands."""

        tags = {"generation"}  # noqa: RUF012  as Extension declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class FastTokenizer:
    """What ``ChatFormat`` and the printing of examples need of a tokenizer. It can be pickled.

    Raises:
        UserError: tokenizer.json is no tokenizer.
    """

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        self.name_or_path = str(folder)
        config = read_json(folder / "tokenizer_config.json")
        file = folder / "tokenizer.json"
        written = read_json(file)  # the Rust library says less of what is wrong
        if not isinstance(written, dict) or not isinstance(written.get("model"), dict):
            raise UserError(f"{file} is no tokenizer: it has no 'model'. Download it again.")
        self.backend_tokenizer: Tokenizer = Tokenizer.from_file(str(file))
        self.special_tokens_map = {name: text for name in _SPECIAL if (text := _written(config.get(name)))}
        self.chat_template = _template_of(folder, config)

    @property
    def eos_token(self) -> str | None:
        """The token that ends a turn."""
        return self.special_tokens_map.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Its id."""
        return None if self.eos_token is None else self.backend_tokenizer.token_to_id(self.eos_token)

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def get_added_vocab(self) -> dict[str, int]:
        """Added tokens → ids."""
        added = self.backend_tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in sorted(added.items())}

    def get_vocab(self) -> dict[str, int]:
        """All tokens → ids."""
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of the ids, as it stands there: no spaces are cleaned up."""
        return str(self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    @cached_property
    def compiled_template(self) -> Template:
        """The chat template, ready to be rendered."""
        return template_environment().from_string(str(self.chat_template))

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        **kwargs: Any,
    ) -> str:
        """The messages as text, as transformers renders them.

        Raises:
            UserError: ``tokenize`` is asked for; ``ChatFormat`` does that itself.
        """
        if tokenize:
            raise UserError("This tokenizer renders only; ask ChatFormat.prompt_ids for tokens.")
        values = {**self.special_tokens_map, **kwargs}
        return self.compiled_template.render(
            messages=conversation, tools=tools, documents=None, add_generation_prompt=add_generation_prompt, **values
        )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "compiled_template"}


def _template_of(folder: Path, config: dict[str, Any]) -> str | None:
    """The chat template: a file beside the tokenizer, or an entry of its settings (the one named default of several)."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        return named.get("default")
    return template
