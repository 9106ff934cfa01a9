"""Settings of the data: recipes with their sources, cleaning, shares."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from pipeline.core.modes import Mode
from pipeline.settings.section import NOTHING, Affects, Section

Unit = Literal["rows", "tokens", "loss_tokens"]
UNITS: tuple[Unit, ...] = ("rows", "tokens", "loss_tokens")
Contradictions = Literal["note", "reject", "repair"]


class MixSettings(Section):
    """Overrides of the recipe, so that a share can be swept without a new file. null = as the recipe says."""

    chat_share: float | None = Field(None, ge=0, le=1)
    shares: dict[str, float] | None = None  # of sources by name; those not named get 0
    unit: Unit | None = None
    total: int | None = Field(None, gt=0)
    local: dict[str, str] = {}  # sources by name → a file or folder here that is read in the place of the hub's set
    without: list[str] = []  # sources that are left out altogether; the shares of the others grow in proportion
    rehearsal: bool = True  # false: the same for every ``source: base``; the plain mix, nothing is asked first


class DataSettings(Section):
    """From rows to examples."""

    turns: Literal["all", "last"] = "all"  # which answers of a conversation become examples
    # The next three are the pipeline's rules, each with what it is measured against (ablations/): leave them as they are.
    # Empty think block of an answer without reasoning: part of the prompt; with loss after a bare header, as the public
    # notebooks train it; or with loss after a /no_think in the question.
    empty_think: Literal["masked", "trained", "soft_switch"] = "masked"
    loss_on: Annotated[Literal["answers", "everything"], Affects("mix", "preference")] = "answers"
    too_long: Literal["drop", "cut"] = "drop"  # cut: the example ends at the limit, wherever that is
    # tokens of an example; null: model.max_seq_length
    max_length: Annotated[int | None, Affects("mix", "preference")] = Field(None, gt=0)
    validation_fraction: float = Field(0.05, ge=0, lt=0.5)
    workers: Annotated[int, NOTHING] = Field(1, ge=1)  # processes; the result does not depend on it


class ScoreFilter(Section):
    """Keep rows whose quality score reaches a threshold; a row without a number there is rejected."""

    field: str = "score"  # FineTome's own column
    at_least: float


class LengthFilter(Section):
    """Bounds in characters of the last answer (without its reasoning) and of the last question."""

    min_answer: int = Field(1, ge=0)
    max_answer: int | None = Field(None, gt=0)
    min_prompt: int = Field(1, ge=0)
    max_prompt: int | None = Field(None, gt=0)


class RepetitionFilter(Section):
    """Text that goes in circles: at most this part of an answer's words may lie in blocks said over and over."""

    ngram: int = Field(8, ge=2)
    at_most: float = Field(0.3, ge=0, le=1)


class PersonalDataFilter(Section):
    """What is looked for, and whether it is masked (``[EMAIL]``) or the row is dropped."""

    action: Literal["mask", "drop"] = "mask"
    # any_bank_card: also where no word around the number speaks of cards
    kinds: list[Literal["email", "phone", "chinese_id", "bank_card", "any_bank_card", "secret", "ip_address"]] = [
        "email",
        "phone",
        "chinese_id",
        "bank_card",
        "secret",
    ]


class NearDuplicates(Section):
    """MinHash/LSH over the words of a row; a row as similar as ``threshold`` to an earlier kept one is rejected."""

    threshold: float = Field(0.8, gt=0, le=1)  # Jaccard similarity of the sets of word n-grams
    ngram: int = Field(3, ge=1)  # words; a CJK character counts as a word
    permutations: int = Field(256, ge=16)  # more find pairs near the threshold more surely; 128 miss about 6 % at 0.85


class ClassBalance(Section):
    """For labelled sets: no class keeps more than ``max_ratio`` times the rows of the smallest one."""

    field: str = "label"
    max_ratio: float = Field(1.0, ge=1)


class CleanSettings(Section):
    """The cleaning steps in the order they run. Every one is off unless a recipe names it."""

    # Unicode, line ends and blank lines; spaces also evens out those inside a line and at its end. Code and mathematics stay
    normalise: bool | Literal["spaces"] = False
    score: ScoreFilter | None = None
    broken_reasoning: bool = False  # empty or repeated think tags inside the reasoning, an answer that is missing
    check_answer: bool = False  # \boxed{} (or the final answer) against the column expected_answer, by math-verify
    length: LengthFilter | None = None
    repetition: RepetitionFilter | None = None
    languages: list[str] | None = None  # ISO 639-1 codes, e.g. [en, zh]
    refusals: bool = False
    personal_data: PersonalDataFilter | None = None
    exact_duplicates: bool = False
    near_duplicates: NearDuplicates | None = None
    class_balance: ClassBalance | None = None

    @field_validator("length", "repetition", "personal_data", "near_duplicates", "class_balance", mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        """``true`` means the step with its defaults, ``false`` that it is off."""
        return {} if value is True else None if value is False else value


class BenchmarkSettings(Section):
    """Where the prompts of a benchmark stand, so that no training row may contain them."""

    name: str
    source: Literal["local", "huggingface", "modelscope"]
    path: str
    subset: str | None = None  # the hub's configuration name, e.g. main
    split: str = "test"
    revision: str | None = None
    field: str | None = (
        None  # column with the prompt; null: question, problem, prompt, instruction, query, input or text
    )


class Decontamination(Section):
    """Rows that overlap a benchmark are rejected, with the item's number."""

    benchmarks: list[BenchmarkSettings] = Field(min_length=1)
    ngram: int = Field(5, ge=3)  # normalised words; a CJK character counts as a word
    overlap: float = Field(0.35, gt=0, le=1)  # part of an item's n-grams that a row may not reach


class AugmentationSettings(Section):
    """More rows from rows: the user's wording changes, answers, reasoning and labels never do."""

    method: Literal["synonyms", "shuffle_sentences", "back_translation"]
    copies: int = Field(1, ge=1, le=10)  # a row
    fraction: float = Field(1.0, gt=0, le=1)  # of the rows
    rate: float = Field(0.15, gt=0, le=1)  # synonyms: part of the replaceable words that are replaced
    synonyms: str | None = (
        None  # file: a YAML list of lists of words; null: the project's small English and Chinese list
    )
    base_url: str | None = None  # back_translation: an OpenAI-compatible endpoint, e.g. http://localhost:8000/v1
    model: str | None = None  # back_translation: the endpoint's name of the model, or a local folder
    pivot: str = "German"  # back_translation: the language in between
    api_key_env: str = "OPENAI_API_KEY"  # name of the environment variable; the key itself never stands in a recipe
    seed: int = 0


class QuestionsSettings(Section):
    """What the base is asked in a rehearsal: conversations, of which the last answer is cut off, or bare questions.

    Where a row has a column ``expected_answer``, a reply is kept only if it is right. Keys as those of a source.
    """

    source: Literal["generated", "local", "huggingface", "modelscope"]
    path: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    rows: int | None = Field(None, gt=0)
    seed: int = 0
    format: str = "auto"
    columns: dict[str, str] = {}
    conditions: str | None = (
        None  # a file of them: each question is asked again with one to three (rehearsal/conditions.py)
    )
    licence: str = ""


class ShapeSettings(Section):
    """What becomes of a source's answers before they are cleaned (``pipeline.data.shape``)."""

    drop: str | None = None  # a regular expression; what it matches is taken out of the answers
    # A regular expression. At its last match an answer is parted: before it is reasoning, behind it the answer
    answer_after: str | None = None
    answer_as: str = "{answer}"  # the words of the answer behind the reasoning
    direct: bool = False  # the steps, or the row's reasoning, stand in the answer: a row without thinking
    soft_switch: float = Field(0.0, ge=0, le=1)  # part of the rows that get /think or /no_think behind the question

    @model_validator(mode="after")
    def _check(self) -> ShapeSettings:
        for name in ("drop", "answer_after"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise ValueError(f"{name} is no regular expression: {error}") from error
        if "{answer}" not in self.answer_as:
            raise ValueError("answer_as has to hold {answer}, the place of the answer")
        return self


class SourceSettings(Section):
    """One source of rows.

    With ``source: base`` the rows are answers of the untuned model to ``questions`` (``pipeline.data.rehearsal``), sampled as
    the profile's evaluation samples that mode; ``seed`` is that of the sampling, ``path`` and ``kind`` need not be given.
    """

    name: str
    kind: Literal["chat", "reasoning", "other"]
    source: Literal["generated", "local", "huggingface", "modelscope", "base"]
    path: str  # generator name, file or folder, or dataset name
    subset: str | None = None  # the hub's configuration name
    split: str = "train"
    revision: str | None = None
    streaming: bool = False  # hubs: read while downloading, keep nothing; files are always read so
    rows: int | None = Field(None, gt=0)  # at most so many; for generated rows: exactly so many
    seed: int = 0  # of the generator
    format: str = "auto"  # auto: decided row by row from the columns, and said
    columns: dict[str, str] = {}  # the format's name of a column → the file's name of it
    roles: dict[str, str] = {}  # the file's name of a role → user, assistant, system, tool, call, reasoning
    # Rows that say one mode and show the other: /no_think before a full chain, /think before a plain answer, a row without
    # reasoning in a source of kind reasoning. repair: the switch is taken out. A flag column is always obeyed.
    contradictions: Contradictions = "note"
    licence: str = ""
    share: float = Field(ge=0, le=1)
    shape: ShapeSettings | None = None
    clean: CleanSettings | None = None  # the steps named here replace the recipe's for this source
    augment: list[AugmentationSettings] = []
    # The next four are for source: base.
    questions: QuestionsSettings | None = None
    mode: Mode | None = None  # in which the base is asked
    samples: int | None = Field(None, gt=0)  # replies a question; null: 1
    max_new_tokens: int | None = Field(None, gt=0)  # of a reply; null: as the evaluation of the mode
    _rows_at: Path | None = PrivateAttr(None)

    @property
    def rows_at(self) -> Path | None:
        """The file with the base's answers, once it was asked."""
        return self._rows_at

    def with_rows_at(self, path: Path) -> SourceSettings:
        """A copy that reads the base's answers there; the settings are the same."""
        copy = self.model_copy()
        copy._rows_at = path
        return copy

    @model_validator(mode="before")
    @classmethod
    def _of_the_base(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("source") == "base":
            return {"path": "base", "kind": "other", "format": "messages"} | data
        return data

    @model_validator(mode="after")
    def _check_base(self) -> SourceSettings:
        own = {name: getattr(self, name) for name in ("questions", "mode", "samples", "max_new_tokens")}
        if self.source == "base":
            lacking = [name for name in ("questions", "mode") if own[name] is None]
            if lacking:
                raise ValueError(
                    f"source {self.name!r}: source: base needs {' and '.join(lacking)}: what the base is asked, and in which mode"
                )
        elif given := [name for name, value in own.items() if value is not None]:
            raise ValueError(f"source {self.name!r}: {', '.join(given)} is for source: base only")
        return self


class RowsSettings(SourceSettings):
    """A source that stands alone, so that its name, kind and share need not be given."""

    name: str = "pairs"
    kind: Literal["chat", "reasoning", "other"] = "other"
    share: float = Field(1.0, ge=1, le=1)


class Recipe(Section):
    """What to mix. ``share`` is a source's part of the final mix, counted in ``unit``; the shares add up to 1."""

    name: str
    unit: Unit = "rows"
    total: int | None = Field(None, gt=0)  # size of the training mix in that unit; null: as large as the sources allow
    on_shortage: Literal["error", "repeat"] = "error"
    root: str | None = None  # local paths may not lead out of this folder (by .. or a link); null: any path
    clean: CleanSettings = CleanSettings()
    decontaminate: Decontamination | None = None
    group_near_duplicates: bool = True  # rows that are alike fall on one side of the train/validation split
    sources: list[SourceSettings] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"source names must differ, found {', '.join(names)}")
        total = sum(source.share for source in self.sources)
        if abs(total - 1) > 1e-6:
            parts = " + ".join(f"{s.share:g} ({s.name})" for s in self.sources)
            raise ValueError(f"the shares add up to {total:g}, not 1: {parts}")
        return self

    def cleaning(self, source: SourceSettings) -> CleanSettings:
        """The steps that hold for a source: the recipe's, with those that the source names itself in their place."""
        if source.clean is None:
            return self.clean
        own = {name: getattr(source.clean, name) for name in source.clean.model_fields_set}
        return self.clean.model_copy(update=own)
