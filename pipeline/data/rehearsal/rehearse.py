"""Rehearsal: the untuned model answers the questions of a recipe's sources ``source: base``, and its answers become rows.

In: a profile, a recipe, a way to load the base. Out: the recipe with files of rows in the place of those sources, and an account
of each. In the cache lie, below ``rehearsals/``,

* ``replies/<model, mode, sampling>/replies.jsonl``: all that was said, by question and seed; recipes share it;
* ``rows/<key>/``: ``rows.jsonl``, ``left_out.jsonl``, and ``rehearsal.json`` last: its presence says "complete".
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import say
from pipeline.core.errors import UserError, nearest
from pipeline.core.files import atomic_path, file_sha256, fingerprint, make_folder, read_json, write_json
from pipeline.core.modes import Mode
from pipeline.data.chat_format import ChatFormat
from pipeline.data.cleaning.decontaminate import Decontaminator, load_benchmarks
from pipeline.data.pools import code_key
from pipeline.data.prepare import json_line
from pipeline.data.rehearsal.ask import Answers, Store, answers_of, ask_base, cannot_do, seed_of
from pipeline.data.rehearsal.conditions import read_conditions
from pipeline.data.rehearsal.keep import account, keep, warnings
from pipeline.data.rehearsal.questions import Questions, Reader
from pipeline.data.sources import content_key, question_source
from pipeline.model.load import base_identity
from pipeline.settings import Profile, Recipe, Sampling, SourceSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Load = Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]

VERSION = 1  # of how the base is asked: part of the key of stored replies
ROWS, LEFT_OUT, RECORD = "rows.jsonl", "left_out.jsonl", "rehearsal.json"


def needs_rehearsal(recipe: Recipe) -> bool:
    """Whether a source of the recipe is the base itself, with a part in the mix."""
    return any(source.source == "base" and source.share > 0 for source in recipe.sources)


def replies_wanted(source: SourceSettings) -> int | None:
    """Replies that a ``source: base`` asks for at most; None where its questions are as many as a set holds."""
    if source.questions is None or source.questions.rows is None:
        return None
    return source.questions.rows * (source.samples or 1) * (2 if source.questions.conditions else 1)


def chosen(recipe: Recipe, name: str | None = None) -> list[SourceSettings]:
    """The sources of a recipe that are the base itself; all of them, or the one of that name.

    Raises:
        UserError: there is none.
    """
    own = [source for source in recipe.sources if source.source == "base"]
    if not own:
        raise UserError(
            f"recipe {recipe.name} has no source: base, so there is nothing to ask. Take data_recipes/embedded_rehearsal.yaml as "
            "an example, or give --questions FILE --mode MODE."
        )
    names = [source.name for source in own]
    if name is not None and name not in names:
        raise UserError(
            f"recipe {recipe.name} has no source: base of the name {name!r}.{nearest(name, names)} It has {', '.join(names)}."
        )
    return [source for source in own if name in (None, source.name)]


def sampling_of(profile: Profile, source: SourceSettings) -> Sampling:
    """How the base is sampled: as the profile's evaluation in that mode, the longest reply as the source says."""
    sampling: Sampling = getattr(profile.evaluation.sampling, mode_of_source(source))
    if source.max_new_tokens is None:
        return sampling
    return sampling.model_copy(update={"max_new_tokens": source.max_new_tokens})


def mode_of_source(source: SourceSettings) -> Mode:
    """The mode in which a ``source: base`` asks."""
    assert source.mode is not None
    return source.mode


def conditions_of(source: SourceSettings) -> str | None:
    """The file of conditions that the questions of a ``source: base`` get, if any."""
    return source.questions.conditions if source.questions else None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time asks for a store; the next finds the answers."""
    from filelock import FileLock, Timeout

    make_folder(folder, "PIPELINE_CACHE")
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another process asks the base the same kind of question; waiting for its answers")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass
class Rehearsal:
    """Asks for sources of one recipe under one profile; the model is loaded when the first reply is missing.

    ``other``: answers in the place of the loaded model, and has to be the same base (a server).
    """

    profile: Profile
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    load: Load
    cache: Path
    other: Answers | None = None

    def __post_init__(self) -> None:
        self.form = ChatFormat(self.tokenizer)
        self.decontaminator = None
        if self.recipe.decontaminate:
            wanted = self.recipe.decontaminate
            self.decontaminator = Decontaminator(load_benchmarks(wanted, self.recipe.root), wanted)
        self._stack = ExitStack()
        self._answers = self.other

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def answers(self) -> Answers:
        """Whatever answers, started when it is first needed."""
        if self._answers is None:
            model, tokenizer = self.load()
            self._answers = self._stack.enter_context(answers_of(model, tokenizer, self.profile.evaluation))
        return self._answers

    def _identity(self, source: SourceSettings) -> dict[str, Any]:
        settings = self.profile.model
        return {
            "model": base_identity(settings),
            "revision": settings.revision,
            "mode": mode_of_source(source),
            "sampling": sampling_of(self.profile, source).model_dump(),
            "version": VERSION,
        }

    def _key(self, source: SourceSettings, identity: dict[str, Any]) -> str:
        asked = question_source(source)
        return fingerprint(
            {
                "identity": identity,
                "seed": source.seed,
                "samples": source.samples or 1,
                "questions": content_key(asked, self.recipe.root),
                "read": asked.model_dump(include={"format", "columns"}),
                "conditions": read_conditions(conditions) if (conditions := conditions_of(source)) else None,
                "decontaminator": self.decontaminator.key if self.decontaminator else None,
                "tokenizer": self.form.key,
                "room": self._room(source),
                "code": code_key(sorted(Path(__file__).parent.glob("*.py")), ("math-verify", "transformers", "jinja2")),
            }
        )

    def _room(self, source: SourceSettings) -> int:
        return self.profile.model.max_seq_length - sampling_of(self.profile, source).max_new_tokens

    def source(self, source: SourceSettings) -> tuple[Path, dict[str, Any]]:
        """Ask for one source; returns the folder with its rows, and the account.

        Raises:
            UserError: no question is left, the base cannot do the mode, or none of its replies can be kept.
        """
        identity = self._identity(source)
        folder = self.cache / "rehearsals" / "rows" / self._key(source, identity)
        if not (folder / RECORD).exists():
            self._make(source, identity, folder)
        record = read_json(folder / RECORD)
        return folder, {**record, "source": source.name}

    def _questions(self, source: SourceSettings) -> Questions:
        room, mode = self._room(source), mode_of_source(source)
        if room <= 0:
            raise UserError(
                f"source {source.name!r}: replies of up to {sampling_of(self.profile, source).max_new_tokens} tokens leave no "
                f"room for a question within model.max_seq_length={self.profile.model.max_seq_length}. Lower max_new_tokens."
            )
        reader = Reader(question_source(source), self.form, mode, room, self.decontaminator, conditions_of(source))
        found = reader.read(self.recipe.root)
        if not found.kept:
            reasons = Counter(record["reason"] for record in found.left_out).most_common(3)
            first = found.left_out[0]
            raise UserError(
                f"source {source.name!r}: none of the {found.read} questions of {reader.source.path} can be asked "
                f"({', '.join(f'{n} × {reason}' for reason, n in reasons)}); the first is {first['file']}:{first['line']}: "
                f"{first['detail']}. Give other questions; those of a benchmark are never asked, and a long one needs a larger "
                "model.max_seq_length or a smaller max_new_tokens."
            )
        return found

    def _make(self, source: SourceSettings, identity: dict[str, Any], folder: Path) -> None:
        mode, sampling = mode_of_source(source), sampling_of(self.profile, source)
        questions = self._questions(source)
        seeds = [seed_of(source.seed, sample) for sample in range(source.samples or 1)]
        place = self.cache / "rehearsals" / "replies" / fingerprint(identity)[:32]
        store = Store(place, identity)
        wanted = [(question, seed) for seed in seeds for question in questions.kept]
        if not all((question.key, seed) in store for question, seed in wanted):
            rates = self.profile.estimate
            with _locked(place):
                store.refresh()
                if not all((question.key, seed) in store for question, seed in wanted):
                    rate = rates.replies_per_second if rates else None
                    ask_base(source.name, wanted, mode, sampling, store, self.form, self.answers(), rate)
        provenance = {**{k: v for k, v in identity.items() if k != "version"}, "seed": source.seed}
        kept = keep(questions.kept, seeds, mode, store, provenance, self.form.style.tags)
        if not kept.faithful:
            raise cannot_do(
                source.name,
                mode,
                [store.get(question.key, seeds[0]) for question in questions.kept[:64]],
                self.form.style.tags,
            )
        found = account(kept)
        if not kept.rows:
            reasons = ", ".join(f"{n} × {reason}" for reason, n in found["left_out"].items())
            raise UserError(
                f"source {source.name!r}: none of the base's {kept.replies} replies can be kept ({reasons}). Ask easier "
                "questions, or take the rows from a dataset."
            )
        make_folder(folder, "PIPELINE_CACHE")
        _write_lines(folder / ROWS, kept.rows)
        _write_lines(folder / LEFT_OUT, [*questions.left_out, *kept.left_out])
        record = {
            **provenance,
            "samples": len(seeds),
            "questions": {
                "read": questions.read,
                "asked": len(questions.kept),
                "left_out": dict(Counter(entry["reason"] for entry in questions.left_out).most_common()),
            },
            **found,
            "seconds": round(kept.seconds, 1),
            "warnings": warnings(source.name, mode, found),
            "rows_sha256": file_sha256(folder / ROWS),
        }
        write_json(folder / RECORD, record)


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(map(json_line, rows))


def rehearsed(
    profile: Profile,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    load: Load,
    cache: Path,
    other: Answers | None = None,
) -> tuple[Recipe, dict[str, dict[str, Any]]]:
    """The recipe with the base's answers in reach, and the account of every source that was asked for.

    Sources without a share are not asked for, and are left out.

    Raises:
        UserError: see ``Rehearsal.source``.
    """
    if not any(source.source == "base" for source in recipe.sources):
        return recipe, {}
    sources, records = [], {}
    with Rehearsal(profile, recipe, tokenizer, load, cache, other) as rehearsal:
        for source in recipe.sources:
            if source.source == "base" and source.share > 0:
                folder, records[source.name] = rehearsal.source(source)
                source = source.with_rows_at(folder / ROWS)
            elif source.source == "base":
                continue
            sources.append(source)
    return recipe.model_copy(update={"sources": sources}), records


def copy_to(folder: Path, rows: Path) -> None:
    """Copy what a rehearsal wrote (the folder of its rows) to a folder of a run.

    Raises:
        UserError: there is the rehearsal of another model already.
    """
    record = folder / RECORD
    if record.exists() and (found := read_json(record))["model"] != (mine := read_json(rows / RECORD))["model"]:
        raise UserError(
            f"{folder} holds the rehearsal of another model ({found['model']}, and now {mine['model']}). Choose another "
            "--output-dir; nothing was changed."
        )
    make_folder(folder)
    for name in (ROWS, LEFT_OUT, RECORD):
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(rows / name, temporary)


def describe_rehearsal(records: dict[str, dict[str, Any]]) -> str:
    """The accounts in a few lines."""
    lines = []
    for name, record in records.items():
        asked = record["questions"]
        lines.append(
            f"{name}: {record['model']} answered {asked['asked']:,} questions in {record['mode'].replace('_', '-')} mode; "
            f"{record['kept']:,} of {record['replies']:,} replies kept ({record['seconds']:,.0f} s of asking)"
        )
        rates = f"fidelity {record['fidelity']:.3f}, cut {record['truncated']:.3f}"
        right = "" if record["right"] is None else f", right {record['right']:.3f}"
        written = "" if record["as_written"] is None else f", trained on as written {record['as_written']:.3f}"
        lines.append(f"  {rates}{right}{written}, {record['mean_tokens']:.0f} tokens a reply")
        for what, counts in (("questions", asked["left_out"]), ("replies", record["left_out"])):
            if counts:
                lines.append(f"  {what} left out: {', '.join(f'{n:,} {reason}' for reason, n in counts.items())}")
        lines += [f"  note: {text}" for text in record["warnings"]]
    return "\n".join(lines)
