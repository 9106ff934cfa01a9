"""The numbers of a run become a report: a file for programs, a page for people, a card for the hub.

In: what the run was, the mix, the training figures, the 2×2 of evaluation cells (base/tuned × thinking/non-thinking)
and, if wanted, the predictions. Out: ``report.json`` (schema_version 1, checked), ``report.html`` (one file, no script,
no network) and ``model_card.md``; the same input gives the same bytes.

All rates are 0..1. Intervals are 95 %.
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import jinja2
import yaml
from markupsafe import Markup
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from pipeline.conversations import MODES, Mode
from pipeline.errors import UserError
from pipeline.files import write_json, write_text
from pipeline.settings import LORA_METHODS, PROFILES, UNITS, Method, SamplingTable, Section, Unit, load_profile, parse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).resolve().parent / "templates"
MODELS: tuple[Literal["base"], Literal["tuned"]] = ("base", "tuned")
Z95 = NormalDist().inv_cdf(0.975)
LABELS = {"thinking": "thinking", "non_thinking": "non-thinking", "mixed": "both", "loss_tokens": "loss tokens"}
EXAMPLES_PER_CELL = 3
PROMPT_ROOM = 512  # tokens that the card's max_seq_length leaves for the prompt
EXAMPLE_CHARACTERS = 4000  # a longer reply is shown without its middle: the answer stands at the end
# Okabe and Ito (2008), told apart by colour-blind readers too
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")


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


class Cell(_Strict):
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
    """Both modes of one model."""

    thinking: Cell
    non_thinking: Cell


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
    """What was kept in both modes."""

    thinking: ModeRetention
    non_thinking: ModeRetention


class Report(_Strict):
    """``report.json``."""

    schema_version: Literal[1]
    run: RunSection
    mix: MixSection
    training: TrainingSection
    evaluation: EvaluationSection
    retention: RetentionSection


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
    _check_sums(data["mix"])
    for key in ("started", "finished"):
        try:
            datetime.fromisoformat(data["run"][key])
        except ValueError as error:
            raise UserError(f"report.json: run.{key}: {data['run'][key]!r} is not an ISO 8601 time.") from error
    for mode in MODES:
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


# --- intervals --------------------------------------------------------------------------------------------------------


def ratio_interval(tuned: float, tuned_n: int, base: float, base_n: int) -> dict[str, Any]:
    """Return ``{"ratio", "ci95"}`` of two proportions: tuned ÷ base, with the Katz log interval.

    log(ratio) ± 1.96 · sqrt(1/x₁ − 1/n₁ + 1/x₀ − 1/n₀), x = score · n (Katz, Baptista, Azen and Pike 1978, Biometrics
    34:469–474). That is undefined at a rate of 0 and has no width at a rate of 1, so where either rate is 0 or 1, the
    interval is computed with one half added to each of the four cells (the Haldane–Anscombe correction: x + ½ of
    n + 1), and then widened, if need be, to hold the plain ratio: its lower end is 0 where tuned is 0. Simulated with
    n of 100 and 200 and rates from 0.02 to 0.999, it held the true ratio in 94.8 % to 100 % of 4,000 draws each.

    The two samples are taken as independent. Base and tuned answer the same items, so the interval is, as a rule, wider
    than a paired one.

    Args:
        tuned, base: rates, 0..1.
        tuned_n, base_n: the number of items behind each.

    Returns:
        ``ratio`` and ``ci95`` are both None where base is 0.
    """
    if base <= 0:
        return {"ratio": None, "ci95": None}
    ratio = tuned / base
    half = 0.5 if tuned <= 0 or tuned >= 1 or base >= 1 else 0.0
    x1, n1 = tuned * tuned_n + half, tuned_n + 2 * half
    x0, n0 = base * base_n + half, base_n + 2 * half
    centre = math.log(x1 / n1) - math.log(x0 / n0)
    width = Z95 * math.sqrt(max(1 / x1 - 1 / n1 + 1 / x0 - 1 / n0, 0.0))
    low = 0.0 if tuned <= 0 else math.exp(centre - width)
    return {"ratio": ratio, "ci95": [min(low, ratio), max(math.exp(centre + width), ratio)]}


def replies(cell: Mapping[str, Any]) -> int:
    """The number of replies in a cell: its ``n``, or else the sum over its benchmarks."""
    return cell.get("n") or sum(result["n"] for result in cell["benchmarks"].values())


def retention(base_cell: Mapping[str, Any], tuned_cell: Mapping[str, Any]) -> dict[str, Any]:
    """What one mode kept: ``{"accuracy": {benchmark: {"ratio", "ci95"}}, "mode_fidelity": {"ratio", "ci95"}}``.

    Benchmarks that only one of the two cells has are left out; ``validate_report`` refuses them.
    """
    base, tuned = base_cell["benchmarks"], tuned_cell["benchmarks"]
    return {
        "accuracy": {
            name: ratio_interval(tuned[name]["score"], tuned[name]["n"], base[name]["score"], base[name]["n"])
            for name in base
            if name in tuned
        },
        "mode_fidelity": ratio_interval(
            tuned_cell["mode_fidelity"], replies(tuned_cell), base_cell["mode_fidelity"], replies(base_cell)
        ),
    }


class Change(NamedTuple):
    """Tuned − base of one rate in one mode, with n and, where both rates have one, an interval of the difference."""

    name: str
    mode: Mode
    n: str
    base: float
    base_ci95: list[float] | None
    tuned: float
    tuned_ci95: list[float] | None
    ci95: list[float] | None

    @property
    def delta(self) -> float:
        """Tuned − base."""
        return self.tuned - self.base

    @property
    def verdict(self) -> Literal["rose", "fell", "stayed"]:
        """Rose or fell where the interval of the difference leaves out 0, else stayed."""
        if self.ci95 is None or self.ci95[0] <= 0 <= self.ci95[1]:
            return "stayed"
        return "rose" if self.delta > 0 else "fell"


def _change(name: str, mode: Mode, ns: Sequence[int], base: Sequence[Any], tuned: Sequence[Any]) -> Change:
    """Pair (rate, its interval or None) of base and tuned.

    The interval of the difference is Newcombe's hybrid (1998, Statistics in Medicine 17:873–890, method 10), built from
    the limits of the two rates.
    """
    (p0, ci0), (p1, ci1) = base, tuned
    interval = None
    if ci0 is not None and ci1 is not None:
        low = p1 - p0 - math.hypot(p1 - ci1[0], ci0[1] - p0)
        high = p1 - p0 + math.hypot(ci1[1] - p1, p0 - ci0[0])
        interval = [low, high]
    n = f"{ns[0]:,}" if ns[0] == ns[1] else f"{ns[0]:,} / {ns[1]:,}"
    return Change(name, mode, n, p0, ci0, p1, ci1, interval)


def changes(report: Mapping[str, Any]) -> list[Change]:
    """Every benchmark in each mode, base against tuned, in the report's order, thinking first."""
    found = []
    for mode in MODES:
        base, tuned = (report["evaluation"][model][mode]["benchmarks"] for model in MODELS)
        for name, b in base.items():
            t = tuned[name]
            found.append(_change(name, mode, (b["n"], t["n"]), (b["score"], b["ci95"]), (t["score"], t["ci95"])))
    return found


def fidelity_changes(report: Mapping[str, Any]) -> list[Change]:
    """Mode fidelity in each mode, base against tuned, thinking first."""
    found = []
    for mode in MODES:
        base, tuned = (report["evaluation"][model][mode] for model in MODELS)
        pairs = [(c["mode_fidelity"], c.get("mode_fidelity_ci95")) for c in (base, tuned)]
        found.append(_change("mode fidelity", mode, (replies(base), replies(tuned)), *pairs))
    return found


# --- assembling -------------------------------------------------------------------------------------------------------


def mix_section(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The report's ``mix`` out of a mix's manifest (``pipeline.mix``), which holds more."""
    keys = list(SourceSection.model_fields)
    return {"unit": manifest["unit"], "sources": [{key: s[key] for key in keys} for s in manifest["sources"]]}


def build_report(
    *,
    run: Mapping[str, Any],
    mix: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    """Put the sections together, compute ``retention``, check everything.

    The result is plain JSON data and shares nothing with the arguments.

    Raises:
        UserError: something is missing or wrong, with its path (see ``validate_report``).
    """
    sections = {"run": run, "mix": mix, "training": training}
    parts = {**sections, "evaluation": evaluation}
    try:
        plain = json.loads(json.dumps(parts))  # tuples become lists; NaN passes here and is refused below, by name
    except (TypeError, ValueError) as error:
        raise UserError(f"report.json: the report has to be plain JSON data: {error}.") from error
    parse(EvaluationSection, plain["evaluation"], "report.json: evaluation")
    cells = plain["evaluation"]
    kept = {mode: retention(cells["base"][mode], cells["tuned"][mode]) for mode in MODES}
    report = {"schema_version": 1, **plain, "retention": kept}
    validate_report(report)
    return report


def write_report(
    report: dict[str, Any],
    output_dir: Path,
    predictions: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] | None = None,
    *,
    licence: str = "apache-2.0",
    sampling: SamplingTable | None = None,
) -> dict[str, Path]:
    """Write report.json, report.html and model_card.md, each atomically.

    Args:
        report: as ``build_report`` returns it; checked again.
        predictions: by (model, mode), e.g. ``("tuned", "thinking")``; a few are shown. Each has ``prompt`` and
            ``reply`` (text as decoded, think tags included), and may have ``benchmark``, ``expected``, ``correct``
            and ``truncated``; further keys are ignored.
        licence: the card's ``license``, as the hub spells it.
        sampling: what the card gives for decoding; None: that of the run's profile, if it is one of this package.

    Returns:
        The three paths by file name.

    Raises:
        UserError: the report or a prediction is not as described, or the folder cannot be written.
    """
    validate_report(report)
    texts = {
        "report.html": html(report, predictions),
        "model_card.md": model_card(report, licence=licence, sampling=sampling),
    }
    paths = {name: output_dir / name for name in ("report.json", *texts)}
    for name, text in texts.items():
        write_text(paths[name], text)
    write_json(paths["report.json"], report)  # last: its presence says "complete"
    return paths


# --- words and numbers ------------------------------------------------------------------------------------------------


def _rate(value: float, digits: int = 2) -> str:
    """A rate with as many digits as it takes not to show 0 or 1 for what is neither (up to five)."""
    while digits < 5 and round(value, digits) in (0, 1) and value not in (0, 1):
        digits += 1
    return f"{value:.{digits}f}"


def _interval(interval: Sequence[float] | None, digits: int = 2, signed: bool = False) -> str:
    if interval is None:
        return ""
    sign = "+" if signed else ""
    return "[{}]".format(", ".join(f"{end:{sign}.{digits}f}" for end in interval))


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if 0 < value < 1 else f"{100 * value:.0f} %"


def _bytes(count: float) -> str:
    size, unit = count / 2**20, "MiB"
    if size >= 1024:
        size, unit = size / 1024, "GiB"
    return f"{size:,.1f} {unit}"


def _label(name: str) -> str:
    return LABELS.get(name, name)


def _public_name(model: str) -> str:
    """A hub name or a relative path as it stands; of a path of one machine, the last part."""
    here = model.replace("\\", "/").rstrip("/")
    return here.rsplit("/", 1)[-1] if re.match(r"/|~|\.\.?/|[A-Za-z]:", here) else model


def _duration(run: Mapping[str, Any]) -> str:
    """Hours, minutes, seconds from start to finish; empty where the clock makes no sense of it."""
    started, finished = (datetime.fromisoformat(run[key]) for key in ("started", "finished"))
    if (started.tzinfo is None) != (finished.tzinfo is None) or finished < started:
        return ""
    minutes, seconds = divmod(round((finished - started).total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _cut(cell: Mapping[str, Any]) -> int:
    """How many replies of a cell were cut by the token limit; at least 1 where the rate is not 0."""
    return max(round(cell["truncated"] * replies(cell)), 1) if cell["truncated"] > 0 else 0


def _listed(items: Sequence[str], at_most: int = 4) -> str:
    more = f"; and {len(items) - at_most} more" if len(items) > at_most else ""
    return "; ".join(items[:at_most]) + more


def headline(report: Mapping[str, Any]) -> list[str]:
    """What came out, in plain words: what rose, what fell, what stayed, mode fidelity, how many replies were cut.

    "Rose" and "fell" are said only where the 95 % interval of the difference leaves out 0.
    """
    groups: dict[str, list[str]] = {"rose": [], "fell": [], "stayed": []}
    for c in sorted(changes(report), key=lambda c: -abs(c.delta)):
        base, tuned = _rate(c.base), _rate(c.tuned)
        if base == tuned and c.base != c.tuned:
            base, tuned = _rate(c.base, 3), _rate(c.tuned, 3)
        where = f"({_label(c.mode)}, n = {c.n})"
        if c.verdict != "stayed":
            groups[c.verdict].append(f"{c.name} {c.verdict} from {base} to {tuned} {where}")
        elif base == tuned:
            groups["stayed"].append(f"{c.name} stayed at {tuned} {where}")
        else:
            groups["stayed"].append(f"{c.name} went from {base} to {tuned} {where}")
    sentences = [_listed(groups[verdict]) + "." for verdict in ("rose", "fell") if groups[verdict]]
    if not groups["rose"]:
        sentences.append("Nothing rose beyond chance.")
    if not groups["fell"]:
        sentences.append("Nothing fell beyond chance.")
    if groups["stayed"]:
        sentences.append(f"Within chance of the base: {_listed(groups['stayed'])}.")
    fidelity = [f"{_label(c.mode)} {_rate(c.base)} → {_rate(c.tuned)}" for c in fidelity_changes(report)]
    sentences.append(f"Mode fidelity, base → tuned: {', '.join(fidelity)}.")
    cells = [report["evaluation"][model][mode] for model in MODELS for mode in MODES]
    cut = sum(map(_cut, cells))
    verb = "was" if cut == 1 else "were"
    sentences.append(f"{cut:,} of {sum(map(replies, cells)):,} replies {verb} cut by the token limit.")
    return sentences


def truncation_warnings(report: Mapping[str, Any]) -> list[str]:
    """One sentence for every cell in which replies were cut, with the setting to raise."""
    found = []
    for model in MODELS:
        for mode in MODES:
            cell = report["evaluation"][model][mode]
            if cell["truncated"] > 0:
                share = f"{_cut(cell):,} of {replies(cell):,} replies ({_percent(cell['truncated'])})"
                found.append(
                    f"{model}, {_label(mode)}: the token limit cut {share}. "
                    f"Raise evaluation.sampling.{mode}.max_new_tokens and evaluate again."
                )
    return found


def _cell_text(text: str) -> str:
    """Text that stays inside one cell of a Markdown table and is shown as it is."""
    text = " ".join(str(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


def table(report: Mapping[str, Any], *, escape: bool = False) -> str:
    """The 2×2 as an aligned Markdown table: benchmark, mode, n, base, tuned, change, the last three with ci95.

    Args:
        escape: make names safe for Markdown; off for a terminal.
    """
    head = ["benchmark", "mode", "n", "base", "tuned", "change"]
    rows = [head, []]
    for c in [*changes(report), *fidelity_changes(report)]:
        values = [(f"{c.base:.3f}", c.base_ci95, False), (f"{c.tuned:.3f}", c.tuned_ci95, False)]
        values.append((f"{c.delta:+.3f}", c.ci95, True))
        shown = [f"{value} {_interval(ci95, 3, signed)}".rstrip() for value, ci95, signed in values]
        rows.append([_cell_text(c.name) if escape else c.name, _label(c.mode), c.n, *shown])
    widths = [max(len(row[i]) for row in rows if row) for i in range(len(head))]
    rows[1] = ["-" * (width - 1) + ":" if i == 2 else "-" * width for i, width in enumerate(widths)]
    lines = []
    for row in rows:
        pads = [text.rjust if i == 2 else text.ljust for i, text in enumerate(row)]
        lines.append(f"| {' | '.join(pad(width) for pad, width in zip(pads, widths, strict=True))} |")
    return "\n".join(lines)


# --- plots ------------------------------------------------------------------------------------------------------------


def _short(name: str, limit: int = 28) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure as an inline SVG element: no fixed size, page font, black becomes the colour of the page's text.

    ``name`` makes its ids differ from those of the page's other figures.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing", category=UserWarning)  # the browser has them
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = text.replace("#000000", "currentColor")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    opening = f'<svg role="img" aria-label="{Markup.escape(description)}"'
    text = re.sub(r'^<svg([^>]*?) width="[^"]*" height="[^"]*"', lambda m: opening + m[1], text)
    return Markup(text.strip())


def _style_axes(axes: Any, grid: Literal["x", "y"]) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color="#888888", alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)


def _plot_scores(report: Mapping[str, Any]) -> Markup:
    """Base and tuned with their intervals, one panel a mode."""
    found = [*changes(report), *fidelity_changes(report)]
    groups = [[c for c in found if c.mode == mode] for mode in MODES]
    figure = _new_figure(9, 1.1 + 0.5 * max(map(len, groups)))
    for axes, mode, group in zip(figure.subplots(1, 2, sharex=True), MODES, groups, strict=True):
        for row, c in enumerate(group):
            for value, ci95, shift, colour in (
                (c.base, c.base_ci95, -0.14, "#888888"),
                (c.tuned, c.tuned_ci95, 0.14, COLOURS[0]),
            ):
                if ci95 is not None:
                    axes.plot(ci95, [row + shift] * 2, color=colour, linewidth=2, solid_capstyle="butt")
                axes.plot([value], [row + shift], marker="o", markersize=6, color=colour, clip_on=False)
        axes.set_yticks(range(len(group)), [_short(c.name) for c in group])
        axes.set_ylim(len(group) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_title(_label(mode), loc="left", fontsize=10, fontweight="bold")
        axes.tick_params(axis="y", length=0)
        _style_axes(axes, "x")
    return _svg(figure, "scores", "Scores of base and tuned model with 95 % intervals, by mode")


def _plot_mix(report: Mapping[str, Any]) -> Markup:
    """Requested share, and achieved shares in the three units, as stacked bars."""
    mix = report["mix"]
    bars = [(f"requested ({_label(mix['unit'])})", [s["requested"] for s in mix["sources"]])]
    bars += [(f"achieved, {_label(unit)}", [s["achieved"][unit] for s in mix["sources"]]) for unit in UNITS]
    figure = _new_figure(9, 2.3)
    axes = figure.subplots()
    for row, (_, shares) in enumerate(bars):
        left = 0.0
        for index, share in enumerate(shares):
            colour = COLOURS[index % len(COLOURS)]
            axes.barh(row, share, left=left, height=0.62, color=colour)
            if share >= 0.06:
                ink = "#ffffff" if colour in ("#0072b2", "#009e73", "#d55e00") else "#111111"
                axes.text(left + share / 2, row, _percent(share), ha="center", va="center", color=ink, fontsize=9)
            left += share
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.tick_params(axis="y", length=0)
    axes.axhline(0.5, color="#888888", linewidth=0.8, linestyle=":")
    _style_axes(axes, "x")
    return _svg(figure, "mix", "Share of each source, requested and achieved")


def _plot_loss(report: Mapping[str, Any]) -> Markup | None:
    """Training and validation loss over steps; None where neither was logged."""
    training = report["training"]
    if not training["loss"] and not training["eval_loss"]:
        return None
    figure = _new_figure(9, 3)
    axes = figure.subplots()
    for name, points, colour in (
        ("training", training["loss"], COLOURS[0]),
        ("validation", training["eval_loss"], COLOURS[5]),
    ):
        if points:
            marker = "o" if name == "validation" or len(points) == 1 else None  # one point makes no line
            steps, loss = [p["step"] for p in points], [p["loss"] for p in points]
            axes.plot(steps, loss, color=colour, marker=marker, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.legend(frameon=False)
    axes.margins(x=0.02)
    _style_axes(axes, "y")
    return _svg(figure, "loss", "Training and validation loss by step")


def _plots(report: Mapping[str, Any]) -> dict[str, Markup | None]:
    """All figures of the page. Nothing of the user's matplotlib settings gets in, and none is changed."""
    import matplotlib
    import matplotlib.style

    ours: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 10}
    with matplotlib.style.context("default"), matplotlib.rc_context(ours):
        return {"scores": _plot_scores(report), "mix": _plot_mix(report), "loss": _plot_loss(report)}


# --- page and card ----------------------------------------------------------------------------------------------------


def _environment(escape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        rate=_rate, interval=_interval, percent=_percent, bytes=_bytes, label=_label, md=_cell_text, short=_short
    )
    return environment


def _printable(text: str) -> str:
    """Text that can be written as UTF-8 and shown: lone surrogates and control characters become U+FFFD."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", text)


def _pieces(reply: str) -> list[tuple[str, str]]:
    """Split a reply into (kind, text): ``tag`` for the think tags, ``reasoning`` between them, else ``answer``."""
    if len(reply) > EXAMPLE_CHARACTERS:
        left_out = len(reply) - EXAMPLE_CHARACTERS
        head, tail = 3 * EXAMPLE_CHARACTERS // 4, EXAMPLE_CHARACTERS // 4
        reply = f"{reply[:head]}\n[… {left_out:,} characters left out …]\n{reply[-tail:]}"
    found, kind = [], "answer"
    for text in re.split(r"(</?think>)", reply):
        if text in ("<think>", "</think>"):
            found.append(("tag", text))
            kind = "reasoning" if text == "<think>" else "answer"
        elif text:
            found.append((kind, text))
    return found


def _choose(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first row of each benchmark, then the next rows, up to ``EXAMPLES_PER_CELL``: not picked for their looks."""
    first: dict[Any, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row.get("benchmark"), index)
    order = [*first.values(), *(i for i in range(len(rows)) if i not in set(first.values()))]
    return [rows[i] for i in order[:EXAMPLES_PER_CELL]]


def _examples(predictions: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] | None) -> list[dict[str, Any]]:
    """A few replies, those to the same prompt side by side: ``[{benchmark, prompt, expected, replies[…]}]``."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    cells = [(model, mode) for model in MODELS for mode in MODES]
    for model, mode in predictions or {}:
        if (model, mode) not in cells:
            raise UserError(f"predictions: there is no cell {model!r}, {mode!r}; the models are base and tuned.")
    for model, mode in cells:
        for row in _choose((predictions or {}).get((model, mode), ())):
            for key in ("prompt", "reply"):
                if not isinstance(row.get(key), str):
                    raise UserError(f"predictions of {model}, {mode}: {key!r} should be text, found {row.get(key)!r}.")
            benchmark, prompt = str(row.get("benchmark") or ""), row["prompt"]
            expected = row.get("expected")
            group = groups.setdefault(
                (benchmark, prompt),
                {
                    "benchmark": _printable(benchmark),
                    "prompt": _printable(prompt),
                    "expected": None if expected is None else _printable(str(expected)),
                    "replies": [],
                },
            )
            group["replies"].append(
                {
                    "model": model,
                    "mode": mode,
                    "pieces": _pieces(_printable(row["reply"])),
                    "correct": row.get("correct"),
                    "truncated": bool(row.get("truncated")),
                }
            )
    return list(groups.values())


def _context(report: Mapping[str, Any]) -> dict[str, Any]:
    """What both templates need."""
    return {
        **report,
        "model_name": _public_name(report["run"]["model"]),
        "headline": headline(report),
        "warnings": truncation_warnings(report),
        "duration": _duration(report["run"]),
        "units": UNITS,
        "modes": MODES,
        "models": MODELS,
    }


def html(
    report: Mapping[str, Any], predictions: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] | None = None
) -> str:
    """The page: one file with its plots inside, no script, nothing loaded from anywhere.

    Args:
        report: a valid report.
        predictions: see ``write_report``.

    Raises:
        UserError: a prediction is not as described.
    """
    found = changes(report)
    names = list(dict.fromkeys(c.name for c in found))
    grid = [(name, [next((c for c in found if (c.name, c.mode) == (name, m)), None) for m in MODES]) for name in names]
    grid.append(("mode fidelity", list(fidelity_changes(report))))
    cells = [(model, mode, report["evaluation"][model][mode]) for model in MODELS for mode in MODES]
    return (
        _environment(escape=True)
        .get_template("report.html.j2")
        .render(
            **_context(report),
            grid=grid,
            cells=[(model, mode, cell, replies(cell), cell.get("mode_fidelity_ci95")) for model, mode, cell in cells],
            plots=_plots(report),
            colours=COLOURS,
            examples=_examples(predictions),
        )
    )


WHAT = {  # the tuned weights are, by method
    "full": "All weights, fine-tuned, of",
    "lora_attention_full": "A LoRA adapter, and attention matrices trained in full, for",
    "adapter": "Bottleneck adapters for",
    "prefix": "A prefix of keys and values for",
    "prompt": "Virtual tokens before the prompt for",
    "ia3": "(IA)³ factors for",
}


def model_card(report: Mapping[str, Any], *, licence: str = "apache-2.0", sampling: SamplingTable | None = None) -> str:
    """The card in the form of the Hugging Face hub: YAML front matter, then Markdown.

    Args:
        report: a valid report.
        licence, sampling: see ``write_report``.
    """
    profile = report["run"]["profile"]
    method = report["training"].get("method") or "lora"
    if sampling is None and profile in {path.stem for path in PROFILES.glob("*.yaml")}:
        sampling = load_profile(profile).evaluation.sampling
    front = {
        "base_model": _public_name(report["run"]["model"]),
        "base_model_relation": "finetune" if method == "full" else "adapter",
        "library_name": "peft" if method not in ("full", "adapter") else "transformers",
        "pipeline_tag": "text-generation",
        "license": licence,
        "tags": ["unsloth", "trl", "sft", "lora" if method in LORA_METHODS else method, "hybrid-reasoning"],
        "datasets": [s["name"] for s in report["mix"]["sources"] if s["rows"]],
    }
    decoding, room = {}, None
    if sampling is not None:
        for mode in MODES:
            settings = getattr(sampling, mode).model_dump()
            greedy = settings["temperature"] == 0
            drawn = () if greedy else ("temperature", "top_p", "top_k", "min_p")
            keys = (*drawn, "repetition_penalty", "max_new_tokens")
            decoding[mode] = {"do_sample": not greedy, **{key: settings[key] for key in keys}}
        room = PROMPT_ROOM + max(d["max_new_tokens"] for d in decoding.values())
    return (
        _environment(escape=False)
        .get_template("model_card.md.j2")
        .render(
            **_context(report),
            what=WHAT.get(method, "A LoRA adapter for"),
            method=method,
            in_4bit=report["training"].get("method") in (None, "qlora"),
            front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
            scores=table(report, escape=True),
            decoding=decoding,
            room=room,
            prompt_room=PROMPT_ROOM,
            fell=[c for c in changes(report) if c.verdict == "fell"],
            smallest=min(r["n"] for m in MODES for r in report["evaluation"]["tuned"][m]["benchmarks"].values()),
        )
    )
