"""The form of ``training.json``, and how a record of a known form is written and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypeVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json

Entry = dict[str, float | None]  # of a curve: step, loss, and of a second stage what its METRICS name
R = TypeVar("R")


class TrainingRecord(TypedDict):
    """``training.json`` of a run, and the report's section ``training``."""

    method: NotRequired[str]
    steps: int
    loss: list[Entry]
    eval_loss: list[Entry]
    tokens_per_second: float
    loss_tokens_per_second: float
    training_seconds: float
    peak_memory_bytes: int
    memory_above_base_bytes: NotRequired[int | None]
    trainable_parameters: int
    total_parameters: int


class StageTrainingRecord(TypedDict):
    """``training.json`` of a second stage."""

    steps: int
    curve: list[Entry]
    eval_curve: list[Entry]
    seconds: float  # of training, without those of validation
    resumed_from: int
    peak_memory_bytes: int
    trainable_parameters: int
    total_parameters: int


def require_form(document: Any, form: type[R], where: str) -> R:
    """A document as it is, after its form was checked; keys that the form does not name stay.

    Raises:
        UserError: it has another form; names the place.
    """
    try:
        TypeAdapter(form).validate_python(document)
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the whole'}: {e['msg']}" for e in error.errors()[:3])
        raise UserError(f"{where} has not the form of a {form.__name__}: {places}.") from error
    checked: R = document
    return checked


def read_record(path: Path, form: type[R]) -> R:
    """Read a JSON document of a known form.

    Raises:
        UserError: it is missing, is no JSON, or has another form.
    """
    return require_form(read_json(path), form, str(path))


def write_record(path: Path, document: Any, form: type[R]) -> R:
    """Write a document as JSON, after its form was checked; returns it.

    Raises:
        UserError: it has another form; nothing is written.
    """
    record = require_form(document, form, path.name)
    write_json(path, record)
    return record
