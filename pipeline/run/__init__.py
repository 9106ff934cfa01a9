"""The whole story in one directory: mix → base evaluation → training → tuned evaluation → report.

In: a ``Profile`` and an output directory. Out: a run directory that holds everything:

    profile.yaml  recipe.yaml      the settings as they were resolved
    run.json                       their fingerprint, versions, seed, start and end, notes
    rehearsal/                     of each source that is the base itself: rows.jsonl, left_out.jsonl, rehearsal.json
    mix/                           train.parquet, validation.parquet, rejected.jsonl, manifest.json
    checkpoints/  adapter/         of training; training.json when it is done
    trackers/                      what wandb, swanlab and tensorboard write, where they are asked for
    evaluation/{base,tuned}/       one folder a mode: predictions.jsonl and cell.json
    evaluation/distance.json       KL(base ‖ tuned) a token, by mode and benchmark
    report.json  report.html  model_card.md
    failure.json                   the error that a command ended with, until the next one begins

Each stage writes its result last and as a whole, so a killed run goes on with the first stage that is not done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import expect, say
from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint, known_sha256, now, read_json, read_jsonl, write_json
from pipeline.core.place import cache_dir
from pipeline.core.processes import first, is_sharded
from pipeline.core.versions import import_unsloth
from pipeline.data.describe import describe_mix, profile_mix
from pipeline.data.mix import Mix
from pipeline.data.rehearsal.rehearse import copy_to, describe_rehearsal, needs_rehearsal, rehearsed
from pipeline.data.stored_mix import load_mix, save_mix
from pipeline.evaluation.cells import finished_cells, modes_in, shown, write_modes
from pipeline.evaluation.engine import open_engine, other_answers, require_engine
from pipeline.evaluation.preflight import require_evaluation
from pipeline.model.config import commit_of, model_config
from pipeline.model.divergence import has_switch
from pipeline.model.dtype import precision
from pipeline.model.load import base_identity, load_model, load_tokenizer
from pipeline.model.memory import release
from pipeline.model.methods import weights_files
from pipeline.model.parts import has_own_logits
from pipeline.model.thinking_style import thinking_style
from pipeline.run.directory import Directory
from pipeline.settings import ModelSettings, Profile, Recipe, load_recipe, parse, read_yaml
from pipeline.training.estimate import global_batch, planned_steps
from pipeline.training.loop import Session, done
from pipeline.training.records import TrainingRecord
from pipeline.training.trackers import Trackers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from pipeline.model.engines.base import Engine


@dataclass
class Run(Directory):
    """A run directory and its stages; the model is loaded when one first needs it.

    Args:
        force: with ``resume``: go on although settings, data or versions differ from those of the unfinished run.

    Raises:
        UserError: from ``open``: the directory belongs to another run, or to an unfinished one and ``resume`` is off.
    """

    trackers: Trackers = field(default_factory=lambda: Trackers([], Path()), repr=False)
    _model: PreTrainedModel | None = field(default=None, repr=False)
    _tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)
    _has_adapter: bool = field(default=False, repr=False)
    _rehearsed: bool = field(default=False, repr=False)

    @classmethod
    def open(
        cls, profile: Profile, folder: Path, resume: bool = False, recipe: Recipe | None = None, force: bool = False
    ) -> Run:
        """Take a new or empty directory, or go on in the directory of the same run; of several processes, the first does."""
        run = cls(profile, recipe or load_recipe(profile.recipe, profile.mix), Path(folder), resume, force)
        run.trackers = Trackers(profile.training.report_to, run.folder / "trackers", run.note)
        first("open the directory", run.take, lambda: None)
        return run

    def _require_evaluation(self) -> None:
        """Fail before the mix is built where the evaluation could not be done."""
        if any(self.cells(which) is None for which in ("base", "tuned")):
            require_engine(self.profile)
            config, tokenizer = model_config(self.profile.model), load_tokenizer(self.model_settings())
            require_evaluation(self.profile, tokenizer, config, self.folder)

    # --- the model

    def model_settings(self) -> ModelSettings:
        """The profile's, at the commit that lay on the hub when the run began, so that base and tuned are the same base."""
        settings, path = self.profile.model, self._path("run.json")
        commit = read_json(path).get("commit") if path.exists() else commit_of(settings)
        return settings.model_copy(update={"revision": commit}) if commit else settings

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._model is None or self._tokenizer is None:
            say(f"loading {self.profile.model.name} ({precision(self.profile.model)})")
            release()  # a model that went before
            self._model, self._tokenizer = load_model(
                self.model_settings(), self.profile.seed, self.profile.chosen_method
            )
        return self._model, self._tokenizer

    def model(self, which: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The ``base``, or the ``tuned`` model: the base with the run's adapter.

        Raises:
            UserError: there is no adapter yet.
        """
        from pipeline.training.train import load_adapter

        if which == "base" and self._has_adapter:
            self._model, self._has_adapter = None, False  # a fresh base, without the adapter
        model, tokenizer = self._load()
        if which == "tuned" and not self._has_adapter:
            self._model = model = load_adapter(model, self._path("adapter"))
            self._has_adapter = True
        return model, tokenizer

    @contextmanager
    def engine(self, which: str) -> Iterator[Engine]:
        """What answers for the ``base`` or the ``tuned`` model, as ``evaluation.engine`` says; it ends with the block.

        Raises:
            UserError: there is no adapter yet; as ``open_engine``.
        """
        adapter = None if which == "base" else self._path("adapter")
        if adapter is not None and not weights_files(adapter):
            raise UserError(f"{adapter} holds no adapter; run train first.")
        if self.profile.evaluation.engine == "vllm":
            self._model, self._has_adapter = None, False  # the memory is for the server
        with open_engine(self.profile, which, lambda: self.model(which), adapter, self._path("vllm.log")) as engine:
            yield engine

    # --- the stages

    def data(self) -> Mix:
        """Build the mix, or load it where it is done; of several processes, the first builds and the others load."""
        return first("mix", self._data, lambda: load_mix(self._path("mix")))

    def _data(self) -> Mix:
        folder = self._path("mix")
        if (folder / "manifest.json").exists():
            return load_mix(folder)
        self._rehearse()
        tokenizer = self._tokenizer or load_tokenizer(self.model_settings())
        mix = profile_mix(self.profile, self.recipe, tokenizer, lambda: self.model("base"))
        save_mix(mix, folder)
        say(describe_mix(mix.manifest))
        return mix

    def rehearse(self) -> dict[str, Any]:
        """Ask the base what the recipe wants it to answer, in the first process; what it wrote is copied to rehearsal/.

        Returns:
            {source: account}.
        """
        return first("rehearse", self._rehearse, dict)

    def rehearsed(self) -> Recipe:
        """The recipe as its pools are built: the base's answers in its place; it is asked for those that are missing."""
        return self._ask()[0]

    def _rehearse(self) -> dict[str, Any]:
        if self._rehearsed or self._path("mix", "manifest.json").exists():
            return {}
        return self._ask()[1]

    def _ask(self) -> tuple[Recipe, dict[str, Any]]:
        tokenizer = self._tokenizer or load_tokenizer(self.model_settings())
        with other_answers(self.profile, self._path("vllm.log")) as other:
            ready, records = rehearsed(
                self.profile, self.recipe, tokenizer, lambda: self.model("base"), cache_dir(), other
            )
        for source in ready.sources:
            if source.rows_at is not None:
                copy_to(self._path("rehearsal", source.name), source.rows_at.parent)
        if records:
            say(describe_rehearsal(records))
        for text in (text for record in records.values() for text in record["warnings"]):
            self.note(text)
        self._rehearsed = True
        return ready, records

    def train(self, callbacks: Sequence[TrainerCallback] = ()) -> TrainingRecord:
        """Train and save the adapter; returns the report's ``training`` section."""
        from pipeline.training.train import train

        record = done(self.folder, self.resume, TrainingRecord)
        if record is not None:
            return record
        mix = self.data()
        model, tokenizer = self._load()
        if self._has_adapter:
            raise UserError("The model in memory has an adapter already; start a new process to train again.")
        self.trackers.describe(self.resolved(), mix.manifest)
        self._track_evaluation("base", wait=True)
        from pipeline.training.callbacks import tracker_callbacks

        own = [*callbacks, *tracker_callbacks(self.trackers)]
        session = Session(self.folder, self.resume, self.force, self.note, own)
        self._model, section = train(model, tokenizer, self.profile, mix, session)
        self._has_adapter = True
        if is_sharded(self._model):
            self._model, self._has_adapter = None, False  # one process cannot evaluate what all hold a part of
        return section

    def _evaluated_weights(self, which: str) -> set[str]:
        """Names of the weights that the stored cells are of."""
        return {record["model_id"] for record in (finished_cells(self._path("evaluation", which)) or {}).values()}

    def identity(self, which: str) -> str:
        """Names the weights: the base by its files' content (by name and commit on a hub), the adapter by its content."""
        identity = base_identity(self.model_settings())
        if which == "base":
            return identity
        files = weights_files(self._path("adapter"))
        if len(files) == 1:
            return f"{identity}-{known_sha256(files[0])[:12]}"
        return f"{identity}-{fingerprint([known_sha256(file) for file in files])[:12]}"

    def evaluate(self, which: str) -> dict[str, Any]:
        """Evaluate ``base`` or ``tuned`` in each of its modes, in the first process; returns {mode: cell}.

        Stored cells of the same weights are taken as they are; of others (the adapter was exchanged), they are made anew.
        """
        return first(f"evaluate {which}", lambda: self._evaluate(which), lambda: self.cells(which) or {})

    def _evaluate(self, which: str) -> dict[str, Any]:
        from pipeline.evaluation.evaluate import evaluate_engine

        cells = self.cells(which)
        if cells is not None and self._evaluated_weights(which) != {self.identity(which)}:
            say(f"the stored evaluation of the {which} model is of other weights than those here; it is done again")
            cells = None
        if cells is None:
            style = thinking_style(load_tokenizer(self.model_settings()))
            folder = self._path("evaluation", which)
            write_modes(folder, style.modes)
            with self.engine(which) as engine:
                cells = evaluate_engine(engine, self.identity(which), self.profile.evaluation, folder, style.modes)
        self._track_evaluation(which)
        return cells

    def distance(self) -> dict[str, Any] | None:
        """How far the tuned model is from its base (``evaluation.distance``), in the first process; None: it is not measured.

        It is measured once both are evaluated, kept in evaluation/distance.json, and made anew for other weights.
        """
        return first("distance", self._distance, self._stored_distance)

    def _stored_distance(self) -> dict[str, Any] | None:
        path = self._path("evaluation", "distance.json")
        if not path.exists():
            return None
        record = read_json(path)
        same = record["model_id"] == self.identity("tuned") and record["items"] == self.profile.evaluation.kl_items
        return dict(record["modes"]) if same else None

    def _distance(self) -> dict[str, Any] | None:
        settings, stored = self.profile.evaluation, self._stored_distance()
        if stored is not None or not settings.kl_items or self._path("report.json").exists():
            return stored
        if any(self.cells(which) is None for which in ("base", "tuned")):
            return None
        from pipeline.evaluation.distance import measure_distance

        model, tokenizer = self.model("tuned")
        if not has_switch(model):
            self.note(
                f"the distance to the base is not measured: method {self.profile.chosen_method} has no adapter that can be "
                "switched off"
            )
            return None
        if not has_own_logits(model):
            self.note(
                f"the distance to the base is not measured: the family {model.config.model_type} changes its logits in a way "
                "that is not known here"
            )
            return None
        base = self._path("evaluation", "base")
        replies = {mode: read_jsonl(base / mode / "predictions.jsonl") for mode in modes_in(base)}
        modes = measure_distance(model, tokenizer, replies, settings.kl_items, settings.batch_size)
        record = {"model_id": self.identity("tuned"), "items": settings.kl_items, "modes": modes}
        write_json(self._path("evaluation", "distance.json"), record)
        return modes

    def _track_evaluation(self, which: str, wait: bool = False) -> None:
        """Give a stored evaluation to the trackers, into the run of the training: the base at step 0, the tuned at its end.

        Args:
            wait: the training is about to begin in this process.
        """
        cells, record = self.cells(which), self._path("training.json")
        if not self.trackers.names or cells is None or not (wait or record.exists()):
            return  # before the training there is nothing to report to; it will hand the base's evaluation on
        if not self.trackers.described:
            self.trackers.describe(self.resolved(), self.data().manifest)
        step = int(read_json(record)["steps"]) if which == "tuned" else 0
        self.trackers.evaluation(which, cells, step, self.history(), wait)

    def report(self) -> dict[str, Any]:
        """Assemble and write the report from what the stages left on disk.

        Raises:
            UserError: a stage is missing (says which command makes it).
        """
        return first("report", self._report, lambda: dict(read_json(self._path("report.json"))))

    def _report(self) -> dict[str, Any]:
        from pipeline.evaluation.report.build import build_report, mix_section, write_report
        from pipeline.evaluation.report.card import hub_datasets

        cells = {which: self.cells(which) for which in ("base", "tuned")}
        missing = [f"evaluation of the {which} model (evaluate)" for which, c in cells.items() if c is None]
        if not self._path("training.json").exists():
            missing.insert(0, "training (train)")
        if missing:
            raise UserError(
                f"{self.folder} is not complete: it lacks {', '.join(missing)}; run that first, or: run --resume."
            )
        adapter = self._path("adapter", "adapter_model.safetensors")
        if adapter.exists() and self._evaluated_weights("tuned") != {self.identity("tuned")}:
            raise UserError(
                f"The evaluation of the tuned model in {self.folder} is of other weights than those in adapter/; evaluate "
                "them first: evaluate --which tuned."
            )
        record = read_json(self._path("run.json"))
        manifest = read_json(self._path("mix", "manifest.json"))
        record["finished"] = record["finished"] or now()
        report = build_report(
            run={k: record.get(k) for k in ("profile", "model", "dtype", "seed", "versions", "started", "finished")}
            | {"data_fingerprint": manifest["fingerprint"], "notes": record.get("notes", [])},
            mix=mix_section(manifest),
            training=read_json(self._path("training.json")),
            evaluation=cells,
            distance=self._stored_distance(),
        )
        predictions: dict[tuple[str, str], list[dict[str, Any]]] = {
            (which, mode): [
                shown(row) for row in read_jsonl(self._path("evaluation", which, mode, "predictions.jsonl"))
            ]
            for which, found in cells.items()
            for mode in found or {}
        }
        sampling, datasets = self.profile.evaluation.sampling, hub_datasets(manifest)
        write_report(report, self.folder, predictions, sampling=sampling, datasets=datasets)
        write_json(self._path("run.json"), record)
        return report

    def _seconds_after(self, stage: str) -> dict[str, float]:
        """Seconds of the long stages behind this one, by the rates measured for the profile; {} where there are none."""
        rates, evaluation = self.profile.estimate, self.profile.evaluation
        if rates is None or evaluation.limit is None:
            return {}
        total = self.data().manifest
        examples = planned_steps(self.profile, total["examples"]["train"]) * global_batch(self.profile)
        tokens = total["total"]["tokens"] / total["examples"]["train"] * examples
        replies = len(modes_in(self._path("evaluation", "base"))) * len(evaluation.benchmarks) * evaluation.limit
        seconds = {"train": tokens / rates.tokens_per_second, "evaluate tuned": replies / rates.replies_per_second}
        return {"evaluate base": seconds, "train": {"evaluate tuned": seconds["evaluate tuned"]}}.get(stage, {})

    def all(self) -> dict[str, Any]:
        """Every stage in order; finished ones are not repeated."""
        if not self._path("training.json").exists() or any(self.cells(which) is None for which in ("base", "tuned")):
            import_unsloth()  # before anything imports transformers, which a tokenizer would
        first("look at the evaluation", self._require_evaluation, lambda: None)
        stages = (
            *([("rehearse", self.rehearse)] if needs_rehearsal(self.recipe) else []),
            ("mix", self.data),
            ("evaluate base", lambda: self.evaluate("base")),
            ("train", self.train),
            ("evaluate tuned", lambda: (self.evaluate("tuned"), self.distance())),
        )
        for number, (name, stage) in enumerate(stages, 1):
            say(f"[{number}/{len(stages) + 1}] {name}")
            expect({} if name in ("rehearse", "mix") else self._seconds_after(name))
            stage()
        expect({})
        self.trackers.close()
        say(f"[{len(stages) + 1}/{len(stages) + 1}] report")
        return self.report()


def open_run(folder: Path) -> Run:
    """A run directory with the settings that it was made with.

    Raises:
        UserError: it is none.
    """
    paths = folder / "profile.yaml", folder / "recipe.yaml"
    if not all(path.exists() for path in paths):
        raise UserError(f"{folder} is no run directory (it has no profile.yaml and recipe.yaml).")
    profile = parse(Profile, read_yaml(paths[0]), str(paths[0]))
    recipe = parse(Recipe, read_yaml(paths[1]), str(paths[1]))
    return Run.open(profile, folder, resume=True, recipe=recipe)
