"""``report.json``: its parts with their types, and what has to hold between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from pipeline.core.errors import UserError
from pipeline.core.modes import MODES, Mode
from pipeline.settings import UNITS, Method, Section, Unit, parse

MODELS: tuple[Literal["base"], Literal["tuned"]] = ("base", "tuned")


# --- the schema -------------------------------------------------------------------------------------------------------


class _Strict(Section):
    """Nothing is converted: "0.5" is not a number and true is not a count. NaN and infinity are refused."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


Rate = Annotated[float, Field(ge=0, le=1)]
RateInterval = Annotated[list[Rate], Field(min_length=2, max_length=2)]
RatioInterval = Annotated[list[NonNegativeFloat], Field(min_length=2, max_length=2)]


class RunSection(_Strict):
    """What was run. ``started`` and ``finished`` are ISO 8601."""

    profile: str
    model: str
    dtype: str | None = None  # what was computed in; None: a run of before it was noted
    seed: int
    data_fingerprint: str
    versions: dict[str, str]
    started: str
    finished: str
    notes: list[str] = Field(default=[])  # what happened on the way that a reader should know


class Achieved(_Strict):
    """A source's part of the final mix, in each unit."""

    rows: Rate
    tokens: Rate
    loss_tokens: Rate


class SourceSection(_Strict):
    """One source: ``requested`` is its share in the mix's unit, ``rows`` the number of its rows in the mix."""

    name: str
    mode: Literal["thinking", "non_thinking", "mixed"]
    requested: Rate
    achieved: Achieved
    rows: NonNegativeInt
    rejected: dict[str, NonNegativeInt]


class MixSection(_Strict):
    """The training mix."""

    unit: Unit
    sources: Annotated[list[SourceSection], Field(min_length=1)]


class LossPoint(_Strict):
    """Mean cross-entropy in nats a loss-bearing token, at an optimiser step."""

    step: NonNegativeInt
    loss: float
    kl: float | None = None  # with training.kl_to_base: mean KL(base ‖ tuned) of the tokens that are held to the base


class TrainingSection(_Strict):
    """What training cost and how the loss went."""

    steps: NonNegativeInt
    loss: list[LossPoint]
    eval_loss: list[LossPoint]
    tokens_per_second: NonNegativeFloat
    loss_tokens_per_second: NonNegativeFloat
    peak_memory_bytes: NonNegativeInt
    trainable_parameters: NonNegativeInt
    total_parameters: PositiveInt
    method: Method | None = None
    training_seconds: NonNegativeFloat | None = None
    memory_above_base_bytes: NonNegativeInt | None = None


class BenchmarkScore(_Strict):
    """Accuracy on ``n`` items."""

    score: Rate
    n: PositiveInt
    ci95: RateInterval


class CellSection(_Strict):
    """One model in one mode. ``n`` is the number of replies; without it, the sum over the benchmarks.

    ``opened``, ``closed``, ``leaked`` and ``truncated`` are shares of the replies.
    """

    benchmarks: Annotated[dict[str, BenchmarkScore], Field(min_length=1)]
    mode_fidelity: Rate
    mode_fidelity_ci95: RateInterval | None = None
    n: PositiveInt | None = None
    opened: Rate
    closed: Rate
    leaked: Rate
    truncated: Rate
    mean_reasoning_tokens: NonNegativeFloat
    mean_answer_tokens: NonNegativeFloat


class ModeCells(_Strict):
    """The modes of one model: both, or the one that it has."""

    thinking: CellSection | None = None
    non_thinking: CellSection | None = None


class EvaluationSection(_Strict):
    """The 2×2."""

    base: ModeCells
    tuned: ModeCells


class Ratio(_Strict):
    """Tuned ÷ base; both null where base is 0."""

    ratio: NonNegativeFloat | None
    ci95: RatioInterval | None


class ModeRetention(_Strict):
    """What was kept in one mode."""

    accuracy: dict[str, Ratio]
    mode_fidelity: Ratio


class RetentionSection(_Strict):
    """What was kept in each mode that the model has."""

    thinking: ModeRetention | None = None
    non_thinking: ModeRetention | None = None


class Distance(_Strict):
    """Mean KL(base ‖ tuned) in nats a token, over the base's own replies to ``n`` items, ``tokens`` in all."""

    kl: NonNegativeFloat
    ci95: RatioInterval
    n: PositiveInt
    tokens: PositiveInt


class DistanceSection(_Strict):
    """By benchmark, in each mode of the model."""

    thinking: dict[str, Distance] | None = None
    non_thinking: dict[str, Distance] | None = None


class Report(_Strict):
    """``report.json``."""

    schema_version: Literal[1]
    run: RunSection
    mix: MixSection
    training: TrainingSection
    evaluation: EvaluationSection
    retention: RetentionSection
    distance: DistanceSection | None = None  # None: not measured, or a run of before it was


def modes_measured(report: Mapping[str, Any]) -> list[Mode]:
    """The modes that a report has, thinking first."""
    return [mode for mode in MODES if report["evaluation"]["base"].get(mode) is not None]


def _check_modes(data: Mapping[str, Any]) -> None:
    """Base, tuned and retention have the same modes, at least one."""
    parts = {f"evaluation.{model}": data["evaluation"][model] for model in MODELS} | {"retention": data["retention"]}
    there = {path: {mode for mode in MODES if part.get(mode) is not None} for path, part in parts.items()}
    wanted = set().union(*there.values()) or {"thinking"}
    for path, modes in there.items():
        for mode in sorted(wanted - modes):
            raise UserError(
                f"report.json: {path}.{mode}: field required, as the other parts of the report have this mode."
            )


def _check_interval(path: str, value: float, interval: Sequence[float]) -> None:
    low, high = interval
    if not low - 1e-9 <= value <= high + 1e-9:
        raise UserError(f"report.json: {path}: the interval [{low:g}, {high:g}] does not contain the value {value:g}.")


def _check_sums(mix: Mapping[str, Any]) -> None:
    sources = mix["sources"]
    names = [source["name"] for source in sources]
    if len(set(names)) < len(names):
        raise UserError(f"report.json: mix.sources: the names must differ, found {', '.join(names)}.")
    totals = {"requested": sum(s["requested"] for s in sources)}
    totals |= {f"achieved.{unit}": sum(s["achieved"][unit] for s in sources) for unit in UNITS}
    for key, total in totals.items():
        if abs(total - 1) > 0.01 and not (total == 0 and key != "requested"):  # a mix may hold no loss-bearing token
            raise UserError(f"report.json: mix.sources[].{key}: the shares add up to {total:g}, not 1.")


def validate_report(data: Any) -> None:
    """Check ``data`` against schema_version 1, and that its parts agree with one another.

    Raises:
        UserError: a missing or unknown key, a value of the wrong type or out of range, NaN, shares that do not add up
            to 1, an interval that does not contain its value, a benchmark that only one of base and tuned was asked.
            The message names the path of the value.
    """
    parse(Report, data, "report.json")
    _check_modes(data)
    _check_sums(data["mix"])
    for key in ("started", "finished"):
        try:
            datetime.fromisoformat(data["run"][key])
        except ValueError as error:
            raise UserError(f"report.json: run.{key}: {data['run'][key]!r} is not an ISO 8601 time.") from error
    for mode in modes_measured(data):
        for model in MODELS:
            cell, path = data["evaluation"][model][mode], f"evaluation.{model}.{mode}"
            for name, result in cell["benchmarks"].items():
                _check_interval(f"{path}.benchmarks.{name}.ci95", result["score"], result["ci95"])
            if cell.get("mode_fidelity_ci95") is not None:
                _check_interval(f"{path}.mode_fidelity_ci95", cell["mode_fidelity"], cell["mode_fidelity_ci95"])
        base, tuned = (set(data["evaluation"][model][mode]["benchmarks"]) for model in MODELS)
        if base != tuned:
            raise UserError(
                f"report.json: evaluation: base and tuned were not asked the same benchmarks in mode {mode}; only one "
                f"of them has {', '.join(sorted(base ^ tuned))}. Evaluate both on the same list."
            )
        kept = data["retention"][mode]
        if set(kept["accuracy"]) != base:
            raise UserError(
                f"report.json: retention.{mode}.accuracy should hold {', '.join(sorted(base))}; "
                f"it holds {', '.join(sorted(kept['accuracy'])) or 'nothing'}."
            )
        for name, entry in [*kept["accuracy"].items(), ("", kept["mode_fidelity"])]:
            path = f"retention.{mode}.accuracy.{name}" if name else f"retention.{mode}.mode_fidelity"
            if (entry["ratio"] is None) != (entry["ci95"] is None):
                raise UserError(f"report.json: {path}: ratio and ci95 are null together or not at all.")
            if entry["ratio"] is not None:
                _check_interval(f"{path}.ci95", entry["ratio"], entry["ci95"])
        for name, entry in ((data.get("distance") or {}).get(mode) or {}).items():
            _check_interval(f"distance.{mode}.{name}.ci95", entry["kl"], entry["ci95"])
