"""What the studies write: the form of ``sweep.json``, ``search.json``, ``methods.json``, ``sampling.json``, ``switches.json``,
``budget.json``, ``scale.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NotRequired, TypeVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # of typing's own, pydantic wants Python 3.12

from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.evaluation.cells import Cell

Kind = TypeVar("Kind")


def load_result(path: Path, kind: type[Kind]) -> Kind:
    """Read a study's document and check its form.

    Raises:
        UserError: it cannot be read, or is no document of that kind (names the first key that does not fit).
    """
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']} (expected the form of {kind.__name__}).") from error


# --- sweeps -------------------------------------------------------------------------------------------------------------


class Estimate(TypedDict):
    """A number with its 95 % interval."""

    value: float
    ci95: list[float]  # [low, high]


class Flips(TypedDict):
    """Items that only one of two settings gets right; see ``pipeline.core.statistics.flips``."""

    gained: int
    lost: int
    n: int
    p: float


class PairedDifference(Estimate):
    """A paired difference, and what turned over (missing in documents of before)."""

    flips: NotRequired[Flips]


class SweepRate(Estimate):
    """A mean over seeds and items."""

    from_first: NotRequired[PairedDifference]  # from the tuned model of the first value


class BenchmarkRate(SweepRate):
    """The score of one benchmark in one mode."""

    n: int  # items × seeds
    p: float | None  # paired permutation test against the value's own base; None: this is a base
    flips: NotRequired[Flips]  # against the same
    mode_fidelity: SweepRate


class ModeRates(TypedDict):
    """All of one mode."""

    benchmarks: dict[str, BenchmarkRate]
    mode_fidelity: SweepRate


class Price(TypedDict):
    """Means over the runs of a value; None: not measured."""

    training_seconds: float | None
    memory_above_base_bytes: float | None
    questions: float  # that the base was asked for the mix
    asking_seconds: float


class Point(TypedDict):
    """One value of a sweep."""

    value: Any
    modes: dict[str, ModeRates]
    base: NotRequired[dict[str, ModeRates]]  # missing in documents of before: there ``Sweep.base`` stands for all
    gain: Estimate
    keep: Estimate
    balance: Estimate
    distance: NotRequired[
        dict[str, dict[str, Estimate]]
    ]  # mode → benchmark → KL(base ‖ tuned) a token, mean over seeds
    price: NotRequired[Price]


class Failure(TypedDict):
    """A cell without a result."""

    value: Any
    seed: int
    reason: str


class RankCorrelation(TypedDict):
    """Spearman's, with a 95 % interval by a bootstrap over runs; both None where it is not defined."""

    spearman: float | None
    ci95: list[float] | None
    runs: int


class Forgetting(TypedDict):
    """Does what was lost go with the distance to the base? See ``pipeline.studies.forgetting``."""

    new_task: RankCorrelation  # distance on what was learnt, against the mean loss of what was known
    own_task: RankCorrelation  # distance on each known benchmark, against the loss there


class Dose(TypedDict):
    """One arm of a remedy."""

    value: Any
    dose: float
    effect: Estimate  # rise of the mean score over what the base knew, above the arm of dose 0


class DoseResponse(TypedDict):
    """How much of the effect which dose has. See ``pipeline.studies.dose``."""

    effects: list[Dose]  # by dose
    wanted: float  # part of the largest dose's effect
    enough: Estimate  # the smallest dose that has it


class Sweep(TypedDict):
    """``sweep.json``."""

    axis: str
    question: str
    seeds: list[int]
    base: dict[str, ModeRates]  # of the first value
    points: list[Point]
    learnt: list[str]  # "mode/benchmark"
    known: list[str]
    pareto: list[Any]
    recommended: list[Any]
    rule: str
    failed: list[Failure]
    forgetting: NotRequired[Forgetting]
    dose: NotRequired[DoseResponse]


# --- methods ------------------------------------------------------------------------------------------------------------


class Latency(TypedDict):
    """Milliseconds a token of greedy decoding."""

    base_ms: float
    tuned_ms: float
    added_ms: float
    ci95: list[float]  # of added_ms
    rounds: int


class MethodCosts(TypedDict):
    """One method: means over its seeds."""

    name: str
    method: str
    why: str
    learning_rate: float
    steps: int
    precision: str
    trainable_parameters: int
    total_parameters: int
    tokens_per_second: float
    training_seconds: float
    peak_memory_bytes: float | None  # None: not measured
    memory_above_base_bytes: float | None
    disk_bytes: int
    latency: Latency


class Methods(TypedDict):
    """``methods.json``."""

    how: str
    methods: list[MethodCosts]
    sweep: Sweep


# --- search -------------------------------------------------------------------------------------------------------------


class Trial(TypedDict):
    """One trial; what is None was not reached. The keys that may be missing are so in documents of before."""

    number: int
    state: str  # complete, pruned, fail, running
    params: dict[str, Any]
    balance: NotRequired[float | None]  # the objective
    learnt: NotRequired[float | None]
    kept: NotRequired[float | None]
    score: float | None  # mean over all benchmarks and modes
    mode_fidelity: list[float] | None  # thinking, non-thinking
    seconds: float | None
    folder: str | None
    reason: str | None
    validation_loss: dict[str, float]  # by step
    feasible: bool


class BestTrial(Trial):
    """The trial to take."""

    ci95: list[float]  # of the objective, over items


class BaseRow(TypedDict):
    """The untouched base, measured as the trials are."""

    balance: float
    score: float
    mode_fidelity: list[float]


class Agreement(TypedDict):
    """How far the last validation loss ranks finished trials as the objective does."""

    spearman: float | None  # of (−loss, balance): 1 if a lower loss always goes with a higher balance; None: undefined
    n: int
    ci95: list[float] | None


class SearchResult(TypedDict):
    """``search.json``."""

    study: str
    objective: str
    space: dict[str, dict[str, Any]]
    base: NotRequired[BaseRow | None]  # missing in documents of before; None: no trial has finished
    trials: list[Trial]
    best: BestTrial | None
    loss_agreement: NotRequired[Agreement]
    importance: dict[str, float]


# --- sampling -----------------------------------------------------------------------------------------------------------


class CountedRate(Estimate):
    """A rate over ``n`` replies."""

    n: int


class SamplingBenchmark(TypedDict):
    """Of one benchmark, as evaluation writes it."""

    score: float
    n: int
    ci95: list[float]


class SamplingMode(TypedDict):
    """One row of the study in one mode."""

    accuracy: CountedRate
    mode_fidelity: CountedRate
    truncated: CountedRate
    repetition: CountedRate
    benchmarks: dict[str, SamplingBenchmark]


class SamplingRow(TypedDict):
    """The profile's own table, or one temperature in both modes."""

    name: str
    modes: dict[str, SamplingMode]


class Verdict(TypedDict):
    """The profile's own table against the best temperature."""

    best: str
    difference: CountedRate
    shown_to_be_worse: bool


class SamplingStudy(TypedDict):
    """``sampling.json``."""

    model: Literal["base", "tuned"]
    table: dict[str, dict[str, Any]]
    rows: list[SamplingRow]
    verdict: dict[str, Verdict]


# --- thinking budget -----------------------------------------------------------------------------------------------------


class BudgetRow(TypedDict):
    """The thinking mode under one budget."""

    budget: int | None  # tokens of reasoning; None: as long as the model likes
    accuracy: CountedRate
    mode_fidelity: CountedRate
    stopped: CountedRate  # replies whose thought was closed for the model
    truncated: CountedRate
    loops: CountedRate  # replies that the limit cut, and that repeat themselves
    mean_reasoning_tokens: float
    mean_answer_tokens: float
    benchmarks: dict[str, SamplingBenchmark]


class BudgetStudy(TypedDict):
    """``budget.json``."""

    model: Literal["base", "tuned"]
    closing: str  # what closes a thought
    closing_tokens: int
    max_new_tokens: int
    rows: list[BudgetRow]  # by budget, that without one last
    direct: BudgetRow | None  # the non-thinking mode on the same items; None: the model has none


# --- scale of the adapter ------------------------------------------------------------------------------------------------


class ScaleRow(TypedDict):
    """One value of the scale."""

    scale: float
    modes: dict[str, Cell]
    distance: dict[str, dict[str, dict[str, Any]]] | None  # mode → benchmark → KL to the base
    from_trained: dict[str, dict[str, PairedDifference]] | None  # mode → benchmark; None: scale 1


class ScaleStudy(TypedDict):
    """``scale.json``."""

    method: str
    rows: list[ScaleRow]


# --- soft switches ------------------------------------------------------------------------------------------------------


class SwitchCase(TypedDict):
    """One kind of prompt: the share of replies in the form that it asks for."""

    case: str
    expected: str
    n: int
    base: Estimate
    tuned: Estimate
    p: float


class Switches(TypedDict):
    """``switches.json``."""

    cases: list[SwitchCase]


KINDS: dict[str, type[Any]] = {
    "sweep": Sweep,
    "methods": Methods,
    "search": SearchResult,
    "sampling": SamplingStudy,
    "switches": Switches,
    "budget": BudgetStudy,
    "scale": ScaleStudy,
}
