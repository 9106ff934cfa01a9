"""What a learner has done: what each lesson left, which exercises are right, and how the own numbers stand beside the course's.

In: the run directory that the notebooks share, and the folders with the learner's saved notebooks. Out: lines to print. Nothing
is trained or asked: all of it is read from results that are there, and what is not there yet is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, read_jsonl
from pipeline.core.place import ROOT
from pipeline.course.translation import NOTEBOOKS, source_text
from pipeline.data.stored_mix import load_mix
from pipeline.evaluation.report.reference import rates
from pipeline.evaluation.report.schema import MODELS, modes_measured
from pipeline.evaluation.report.words import interval_text, label_of
from pipeline.model.form import judge

CLAIMS = ROOT / "docs" / "claims.md"
FIDELITY = 0.995  # what a tuned hybrid should keep of its form, in each mode
# Notebook → what it leaves, and the file that says so: of the run directory (RUN), or beside it.
LEFT = {
    "02": ("a recipe of your own", "scratch/02/my_recipe.yaml"),
    "02b": ("a mix without leaks", "scratch/02b/clean/manifest.json"),
    "03": ("the mix", "RUN/mix/manifest.json"),
    "04": ("the adapter", "RUN/training.json"),
    "05": ("the report", "RUN/report.json"),
    "06": ("a sweep over the share", "sweep/sweep.json"),
    "06b": ("a run that forgets", "forgetting/mathematics/report.json"),
    "07": ("a search", "search/search.json"),
    "08": ("methods compared", "methods/methods.json"),
    "09": ("an adapter from pairs", "preference/preference.json"),
    "10": ("the merged model", "use/export.json"),
}
# An exercise's line in an output: its name, and "right" in one of the languages.
RIGHT = re.compile(r"^(\w+\.\d+)(?:: right|：正确)$", re.MULTILINE)
CHECK = re.compile(r'check\("(\w+\.\d+)"')
# The part of a line of docs/claims.md that names a rate of the main job: its base, or its tuned model.
RATE = re.compile(
    r"^`keep_rate\.json` (base|points\[recipe_lower_rate\]/modes)/(thinking|non_thinking)/(?:benchmarks/(\w+)|mode_fidelity)$"
)


class Lesson(NamedTuple):
    """A notebook: what it leaves (empty: nothing), whether that is there, and its exercises, those that are right and all."""

    number: str
    leaves: str
    there: bool
    right: int
    asked: int


class Held(NamedTuple):
    """A rate that the course claims, beside that of the own run, both with their 95 % intervals."""

    rate: str
    theirs: float
    theirs_ci95: list[float]
    own: float
    own_ci95: list[float]

    @property
    def verdict(self) -> Literal["agrees", "stands apart"]:
        """It stands apart where the two intervals have no value in common."""
        low, high = max(self.theirs_ci95[0], self.own_ci95[0]), min(self.theirs_ci95[1], self.own_ci95[1])
        return "agrees" if low <= high + 1e-9 else "stands apart"  # an interval may end a rounding error below 1


def _code_cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in read_json(notebook)["cells"] if cell["cell_type"] == "code"]


def _printed(cell: Mapping[str, Any]) -> str:
    texts = [output.get("text", "") for output in cell.get("outputs", [])]
    return "\n".join(text if isinstance(text, str) else "".join(text) for text in texts)


def solved(saved: Sequence[Path]) -> set[str]:
    """Names of the exercises whose saved output says "right", in English or in Chinese.

    Args:
        saved: folders with notebooks that were run and saved; one that does not exist holds none.
    """
    books = [path for folder in saved for path in sorted(folder.glob("[0-9][0-9]*_*.ipynb"))]
    return {name for book in books for cell in _code_cells(book) for name in RIGHT.findall(_printed(cell))}


def lessons(run: Path, saved: Sequence[Path]) -> list[Lesson]:
    """Every notebook of the course, in order; see ``Lesson``.

    Args:
        run: the run directory that the notebooks share; it need not be there.
        saved: as for ``solved``.
    """
    right, found = solved(saved), []
    for book in sorted(NOTEBOOKS.glob("[0-9][0-9]*_*.ipynb")):
        number = book.name.partition("_")[0]
        asked = {name for cell in _code_cells(book) for name in CHECK.findall(source_text(cell))}
        leaves, place = LEFT.get(number, ("", ""))
        path = run / place.removeprefix("RUN/") if place.startswith("RUN/") else run.parent / place
        found.append(Lesson(number, leaves, bool(place) and path.is_file(), len(asked & right), len(asked)))
    return found


def lessons_text(found: Sequence[Lesson]) -> str:
    """The lessons as lines: number, what it leaves and whether that is there, exercises that are right."""
    lines = []
    for lesson in found:
        left = f"{lesson.leaves}: {'there' if lesson.there else 'not yet'}" if lesson.leaves else "leaves nothing"
        lines.append(f"{lesson.number:<4} {left:<34} exercises right: {lesson.right} of {lesson.asked}")
    return "\n".join(lines)


def report_of(run: Path) -> dict[str, Any] | None:
    """The report of a finished run; None where there is none yet."""
    report: dict[str, Any] | None = read_json(run / "report.json") if (run / "report.json").is_file() else None
    return report


def counted_again(run: Path) -> list[str]:
    """What can be checked again without a model, a line each: it is as the files say, or what is wrong.

    The mix against its fingerprint, the account of its rows, and, in each cell of the evaluation, mode fidelity and scores
    counted from the stored replies.
    """
    lines = []
    if (run / "mix" / "manifest.json").is_file():
        try:
            manifest = load_mix(run / "mix").manifest
        except UserError as error:
            lines.append(f"wrong: {error}")
        else:
            lines.append("right: the rows of the mix are those of its fingerprint")
            odd = [s["name"] for s in manifest["sources"] if s["read"] != s["kept"] + sum(s["rejected"].values())]
            lines.append(f"wrong: rows of {', '.join(odd)} are lost" if odd else "right: rows read = kept + rejected")
    report = report_of(run)
    if report is None:
        return lines or ["There is nothing to count yet: notebooks 03 to 05 make it."]
    for which in MODELS:
        for mode in modes_measured(report):
            where = f"{which}, {label_of(mode)}"
            path = run / "evaluation" / which / mode / "predictions.jsonl"
            if not path.is_file():
                lines.append(f"{where}: the replies are not stored here")
                continue
            rows, cell = read_jsonl(path), report["evaluation"][which][mode]
            faithful = sum(judge(row["reply"], row["truncated"], mode)["faithful"] for row in rows) / len(rows)
            own = {name: [row["score"] for row in rows if row["benchmark"] == name] for name in cell["benchmarks"]}
            same = abs(faithful - cell["mode_fidelity"]) < 1e-9 and all(
                scores and abs(sum(scores) / len(scores) - cell["benchmarks"][name]["score"]) < 1e-9
                for name, scores in own.items()
            )
            lines.append(
                f"{'right' if same else 'wrong'}: {where}, {len(rows):,} replies, mode fidelity {faithful:.3f}"
            )
    return lines


def fidelity_lines(report: Mapping[str, Any]) -> list[str]:
    """Mode fidelity of the tuned model in each mode, held against ``FIDELITY``."""
    lines = []
    for mode in modes_measured(report):
        cell = report["evaluation"]["tuned"][mode]
        value, interval = cell["mode_fidelity"], cell["mode_fidelity_ci95"]
        if value >= FIDELITY:
            verdict = "reached"
        elif interval[1] >= FIDELITY:
            verdict = "below, and cannot be told apart from it"
        else:
            verdict = "not reached"
        lines.append(f"{label_of(mode)}: {value:.3f} {interval_text(interval, 3)}, asked is {FIDELITY}: {verdict}")
    return lines


def claims() -> dict[tuple[str, str, str], tuple[float, list[float]]]:
    """(base or tuned, mode, benchmark or "mode fidelity") → result and 95 % interval that docs/claims.md states of the main job.

    Raises:
        UserError: there is no such file, as in an installed package.
    """
    if not CLAIMS.is_file():
        raise UserError(
            f"The course's claims are not at {CLAIMS}. They come with a checkout: open the notebooks there."
        )
    found: dict[tuple[str, str, str], tuple[float, list[float]]] = {}
    for line in CLAIMS.read_text(encoding="utf-8").splitlines():
        parts = [part.strip() for part in line.strip().strip("|").split("|")]
        if len(parts) == 7 and (match := RATE.match(parts[6])):
            place = ("base" if match[1] == "base" else "tuned", match[2], match[3] or "mode fidelity")
            found[place] = float(parts[2]), [float(end) for end in parts[4].split(" to ")]
    return found


def held(report: Mapping[str, Any]) -> list[Held]:
    """Each claim about the main job beside the own number; none where the report is of another profile than ``embedded``."""
    if report["run"]["profile"] != "embedded":
        return []
    found = []
    for (which, mode, name), (value, interval) in claims().items():
        cell = report["evaluation"][which].get(mode)
        own = rates(cell).get(name) if cell else None
        if own is not None:
            rate = f"{name.removeprefix('embedded_')}, {which}, {label_of(mode)}"
            found.append(Held(rate, value, interval, *own))
    return found
