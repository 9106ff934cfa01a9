"""A training that starts from a base or from a run's adapter: its directory, its models, its evaluation before and after.

In: a ``Profile``, a folder and, where it should start from one, a run directory with an adapter. Out: a ``Stage`` for the
training of ``pipeline.second.preference`` or ``pipeline.second.grpo``, whose directory holds

    profile.yaml                   the settings as they were resolved
    stage.json                     their fingerprint, what it started from, versions, seed, start and end
    checkpoints/  adapter/         of training; training.json when it is done
    evaluation/{before,after}/     one folder a mode: predictions.jsonl and cell.json

and what the training itself writes. Each part is written last and as a whole, so a killed stage goes on with the first that
is not done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint, is_taken, now, read_json, write_json, write_text
from pipeline.core.modes import MODES
from pipeline.core.redact import masked
from pipeline.core.versions import import_unsloth
from pipeline.model.config import model_config
from pipeline.model.dtype import mixed_precision
from pipeline.model.load import load_model
from pipeline.model.memory import release
from pipeline.model.methods import add_method, load_adapter
from pipeline.model.room import positions_of
from pipeline.run import Run, open_run
from pipeline.run.directory import begun
from pipeline.settings import (
    ModelSettings,
    Profile,
    RowsSettings,
    SecondStageSettings,
    load_profile,
    load_recipe,
    read_yaml,
)
from pipeline.settings.compare import affects, differing, masked_keys, shortened
from pipeline.training.checkpoints import identity
from pipeline.training.loop import Session, Task, done, run_task
from pipeline.training.records import StageTrainingRecord
from pipeline.training.trackers import Trackers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.training.loop import Trained


Which = Literal["before", "after"]
STAGE_METHODS = ("lora", "qlora", "dora", "rslora")  # whose adapter TRL copies as the reference


def stage_profile(name: str | None, run_folder: Path | None, overrides: list[str]) -> Profile:
    """The profile of a second stage: the one that is named, else that of the run it starts from, else the embedded one.

    Raises:
        UserError: as ``load_profile``; or the folder is no run directory; or the run's profile holds secrets, which were
            masked when it was written, and the overrides do not give them again.
    """
    if name is None and run_folder is not None:
        path = run_folder / "profile.yaml"
        if not path.exists():
            raise UserError(f"--run {run_folder} is no run directory (it has no profile.yaml and recipe.yaml).")
        profile = load_profile(str(path), overrides)
        lacking = masked_keys(profile.model_dump())
        if lacking:
            raise UserError(
                f"{path} was written without its secrets. Give them again: "
                f"{' '.join(f'--set {key}=VALUE' for key in lacking)}; or name the profile by --profile."
            )
        return profile
    return load_profile(name or "embedded", overrides)


def _repository(profile: Profile) -> tuple[str, str, str | None]:
    return profile.model.source, profile.model.name, profile.model.revision


@dataclass
class Stage:
    """A second stage in its directory.

    Raises:
        UserError: from ``open``: the directory belongs to another stage, or to an unfinished one and ``resume`` is off; the
            run has no adapter, or one of another base.
    """

    kind: Literal["preference", "grpo"]
    profile: Profile
    folder: Path
    start: Run | None = None
    resume: bool = False
    own: Run = field(init=False, repr=False)  # this directory seen as a run: names the weights, knows the paths
    trackers: Trackers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        profile, start = self.profile, self.start
        if start is not None and _repository(profile) == _repository(start.profile):
            revision = start.model_settings().revision  # of the day the run began, whatever lies on the hub by now
            profile = profile.model_copy(update={"model": profile.model.model_copy(update={"revision": revision})})
        self.own = Run(profile, load_recipe(self.profile.recipe, self.profile.mix), self.folder)
        self.trackers = Trackers(self.profile.training.report_to, self.folder / "trackers", say)

    @property
    def settings(self) -> SecondStageSettings:
        """The section of the profile."""
        section: SecondStageSettings = getattr(self.profile, self.kind)
        return section

    @classmethod
    def open(
        cls,
        kind: Literal["preference", "grpo"],
        profile: Profile,
        folder: Path,
        run_folder: Path | None = None,
        resume: bool = False,
    ) -> Stage:
        """Take a new or empty directory, or go on in the directory of the same stage."""
        start = open_run(run_folder) if run_folder is not None else None
        stage = cls(kind, profile, folder, start, resume)
        stage.check_start()
        record_path = folder / "stage.json"
        started_from = stage.identity("before")
        if record_path.exists():
            record = read_json(record_path)
            found = stage._differences(record, started_from)
            if found:
                raise UserError(
                    f"{folder} belongs to another training ({shortened(found)}). Choose another --output-dir; nothing was "
                    "changed."
                )
            if not resume and not record.get("finished"):
                raise UserError(
                    f"{folder} holds an unfinished training of the same settings; add --resume to go on with it."
                )
            return stage
        if is_taken(folder):
            raise UserError(
                f"{folder} exists and is no directory of {kind}. Choose another --output-dir; nothing was changed."
            )
        write_text(folder / "profile.yaml", yaml.safe_dump(stage.resolved(), sort_keys=False, allow_unicode=True))
        record = begun(profile, stage._settled(stage.resolved(), started_from))
        write_json(record_path, record | {"kind": kind, "start": started_from})
        return stage

    def resolved(self) -> dict[str, Any]:
        """The profile as it is written: without secrets, which make no other training either."""
        return dict(masked(self.profile.model_dump()))

    def _settled(self, profile: Any, started_from: str) -> dict[str, Any]:
        """What ``settings_fingerprint`` is of."""
        return {"kind": self.kind, "profile": profile, "start": started_from}

    def _differences(self, record: Mapping[str, Any], started_from: str) -> list[str]:
        """In what the directory's training differs from this one; settings that change nothing in it do not count."""
        if record.get("kind") != self.kind:
            return [f"it is one of {record.get('kind')}"]
        if record.get("start") != started_from:
            return [f"it starts from {record.get('start')}, not from {started_from}"]
        kept = read_yaml(self.folder / "profile.yaml")
        found = differing(masked(kept), self.resolved())
        parts = [text for key, text in found.items() if affects(key, "training", "evaluation", self.kind)]
        if not parts and fingerprint(self._settled(kept, started_from)) != record.get("settings_fingerprint"):
            return ["its profile.yaml was changed"]
        return parts

    def check_start(self) -> None:
        """See that the method is one of LoRA's, that the run has an adapter, and that it is one of the profile's base.

        Raises:
            UserError: it is not so.
        """
        for profile in [self.profile] if self.start is None else [self.profile, self.start.profile]:
            if profile.chosen_method not in STAGE_METHODS:
                advice = (
                    "A fully tuned model can be the base: leave --run out and set model.name to its folder RUN/adapter."
                    if profile.chosen_method == "full"
                    else "Train the first stage by one of these, or leave --run out and set method."
                )
                raise UserError(
                    f"A second stage trains a LoRA adapter ({', '.join(STAGE_METHODS)}), and the method here is "
                    f"{profile.chosen_method}. {advice}"
                )
        if self.start is None:
            return
        if not (self.start.folder / "adapter" / "adapter_config.json").exists():
            raise UserError(f"--run {self.start.folder} has no adapter yet; finish it first (train, or run --resume).")
        mine, theirs = (run.identity("base").rpartition("-")[0] for run in (self.own, self.start))
        if mine != theirs:
            raise UserError(
                f"--run {self.start.folder} holds an adapter of another base ({theirs}, from {self.start.profile.model.name}) "
                f"than the profile's ({mine}, from {self.profile.model.name}). An adapter fits its own base alone: leave "
                "--profile and model.* out, and the run's are taken."
            )

    def finish(
        self, training: StageTrainingRecord, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Note the end; returns what the results of all second stages have in common (``second.records``).

        Args:
            training: what ``train`` gave. before, after: the cells of both evaluations.
        """
        self.trackers.close()
        record: dict[str, Any] = read_json(self.folder / "stage.json")
        record["finished"] = record["finished"] or now()
        write_json(self.folder / "stage.json", record)
        return {
            **{key: record[key] for key in ("start", "model", "profile", "seed", "versions", "started", "finished")},
            "training": training,
            "evaluation": {"before": before, "after": after},
        }

    # --- models

    def identity(self, which: Which) -> str:
        """Names the weights before or after, by content."""
        if which == "after":
            return self.own.identity("tuned")
        return self.own.identity("base") if self.start is None else self.start.identity("tuned")

    def model_settings(self) -> ModelSettings:
        """The profile's; for GRPO with room for a reply behind the longest prompt: Unsloth cuts training rows, too."""
        settings = self.own.model_settings()
        if self.kind != "grpo":
            return settings
        replies = [getattr(self.profile.evaluation.sampling, mode).max_new_tokens for mode in MODES]
        wanted = settings.max_seq_length + (self.profile.grpo.max_new_tokens or max(replies))
        positions = positions_of(model_config(settings) or {})
        most = wanted if positions is None else max(settings.max_seq_length, min(wanted, positions))
        return settings.model_copy(update={"max_seq_length": most})

    def load(self, which: Which, trainable: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model before or after, from the disk.

        Args:
            trainable: ready to be trained further: with the run's adapter, or on a bare base with a new one.
        """

        release()  # an earlier model of this process
        model, tokenizer = load_model(self.model_settings(), self.profile.seed, self.profile.chosen_method)
        if which == "after":
            return load_adapter(model, self.folder / "adapter"), tokenizer
        if self.start is not None:
            adapter, checkpointing = self.start.folder / "adapter", self.profile.training.gradient_checkpointing
            return load_adapter(model, adapter, trainable, checkpointing), tokenizer
        if trainable:
            model = add_method(model, self.profile)
        return model, tokenizer

    # --- evaluation

    def cells(self, which: Which) -> dict[str, Any] | None:
        """{mode: cell} of an evaluation that is done, else None."""
        return self.own.cells(which)

    def evaluate(self, which: Which, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Both modes with EvalScope; what the run has evaluated already with the same settings is taken from there."""
        from pipeline.evaluation.evaluate import evaluate_model

        folder = self.folder / "evaluation" / which
        if which == "before" and self.cells(which) is None:
            source = None if self.start is None else self.start.folder / "evaluation" / "tuned"
            for mode in MODES:
                for name in ("predictions.jsonl", "cell.json"):  # in the order in which they are written
                    if source is not None and (source / mode / "cell.json").exists():
                        (folder / mode).mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(source / mode / name, folder / mode / name)
        cells = evaluate_model(model, tokenizer, self.identity(which), self.profile.evaluation, folder)
        self._track(which, cells)
        return cells

    def _track(self, which: Which, cells: Mapping[str, Any]) -> None:
        """Give an evaluation to the trackers: the one before at step 0 when training begins, the one after at its end."""

        record = self.folder / "training.json"
        if not self.trackers.names or (which == "after" and not record.exists()):
            return
        if not self.trackers.described:
            self._describe()
        step = int(read_json(record)["steps"]) if which == "after" else 0
        self.trackers.evaluation(which, cells, step, self.own.history(), wait=not record.exists())

    def _describe(self) -> None:
        self.trackers.describe({"profile": self.resolved(), "start": self.identity("before")})

    # --- training

    def train(
        self,
        make_trainer: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Path], Any],
        metrics: Mapping[str, str],
    ) -> StageTrainingRecord:
        """Train, and save the adapter to ``adapter/``; see ``pipeline.training.loop``.

        Args:
            make_trainer: from (model, tokenizer, folder of checkpoints) to a trainer of TRL.
            metrics: name in the curve → name in the trainer's log, e.g. ``{"margin": "rewards/margins"}``.

        Returns:
            ``training.json``.

        Raises:
            UserError: checkpoints of an unfinished training are there and ``resume`` is off; see also ``loop.run_task``.
        """

        record = done(self.folder, self.resume, StageTrainingRecord)
        if record is not None:
            return record
        self._describe()
        task = Task(
            session=Session(self.folder, self.resume, callbacks=self._tracker_callbacks()),
            identity=identity(self.profile, self.identity("before"), self.kind),
            keep=self.settings.save_total_limit,
            load=lambda: self.load("before", trainable=True),
            make_trainer=lambda model, *others: with_exact_start(model, lambda: make_trainer(model, *others)),
            finish=without_reference,
            metrics=metrics,
        )
        return run_task(task, stage_training_section)[1]

    def _tracker_callbacks(self) -> list[Any]:
        if not self.trackers.names:
            return []
        import_unsloth()  # it replaces parts of transformers
        from pipeline.training.callbacks import tracker_callbacks

        return tracker_callbacks(self.trackers)


def stage_training_section(trained: Trained) -> StageTrainingRecord:
    """``training.json`` of a second stage."""
    return {
        "steps": trained.steps,
        "curve": trained.curve,
        "eval_curve": trained.eval_curve,
        "seconds": trained.seconds,
        "resumed_from": trained.resumed_from,
        "peak_memory_bytes": trained.peak_memory_bytes,
        "trainable_parameters": trained.trainable_parameters,
        "total_parameters": trained.total_parameters,
    }


def without_reference(model: PreTrainedModel) -> None:
    """Drop TRL's frozen copy of the adapter."""
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")


def with_exact_start(model: PreTrainedModel, make_trainer: Callable[[], Any]) -> Any:
    """Make a trainer of TRL without letting it round the adapter, and with the start as the reference where it needs one.

    On a 4-bit base TRL's trainers put the trainable weights into bfloat16, after they have copied them as the reference.
    Training would then start a rounding error away from its reference, and a checkpoint, which is read back as float32,
    would not continue exactly.
    """
    before = {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = make_trainer()
    if trainer.needs_reference and "ref" not in model.peft_config:
        # On a GPU, Unsloth takes TRL's copy out again, and the bare base would be the reference, whatever the start was.
        model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if name in before:
            parameter.data = before[name]
        elif name.replace(".ref.", ".default.") in before:
            parameter.data = before[name.replace(".ref.", ".default.")].clone()
    return trainer


def training_arguments(
    profile: Profile, settings: SecondStageSettings, output_dir: Path, evaluate: bool
) -> dict[str, Any]:
    """What the configurations of all of TRL's trainers have in common."""
    import torch

    return {
        "output_dir": str(output_dir),
        "max_steps": settings.max_steps,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": profile.training.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": profile.training.optim,
        "gradient_checkpointing": profile.training.gradient_checkpointing,
        "eval_strategy": "steps" if evaluate else "no",
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": None,  # pipeline.training.callbacks.CheckpointKeeper keeps some
        "logging_steps": min(settings.logging_steps, settings.max_steps),  # else there is no curve
        "report_to": "none",  # pipeline.training.trackers reports
        "seed": profile.seed,
        "data_seed": profile.seed,
        **mixed_precision(profile.model),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def require_plain(source: RowsSettings, where: str) -> None:
    """Refuse settings of a source that only a mix has a use for.

    Raises:
        UserError: there are some.
    """
    if source.source == "base":
        raise UserError(
            f"{where}: source: base belongs to a recipe; let the base answer by `rehearse`, and give that file."
        )
    for name in ("clean", "augment"):
        if getattr(source, name):
            raise UserError(
                f"{where}.{name} does nothing here; clean the rows first (data build), and give what comes out."
            )


# --- showing it ---------------------------------------------------------------------------------------------------------


def shown_arms(rate: Mapping[str, Any], digits: int = 3) -> str:
    """A value with its interval, as tables have it."""
    low, high = rate["ci95"]
    return f"{rate['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def evaluation_table(arms: Sequence[Mapping[str, Any]]) -> str:
    """The 2×2 of each result before and after; the first column of numbers is what all of them started from."""
    heads = ["before", *(f"after {arm['name']}" for arm in arms)]
    columns = [arms[0]["evaluation"]["before"], *(arm["evaluation"]["after"] for arm in arms)]
    lines = [f"| mode | what | n | {' | '.join(heads)} |", "|---|---|--:|" + "--:|" * len(heads)]
    for mode, first in columns[0].items():
        rows = [(name, first["benchmarks"][name]["n"]) for name in first["benchmarks"]]
        for name, n in rows:
            texts = [
                shown_arms({"value": (b := c[mode]["benchmarks"][name])["score"], "ci95": b["ci95"]}) for c in columns
            ]
            lines.append(f"| {mode.replace('_', '-')} | {name} | {n} | {' | '.join(texts)} |")
        texts = [
            shown_arms({"value": c[mode]["mode_fidelity"], "ci95": c[mode]["mode_fidelity_ci95"]}) for c in columns
        ]
        lines.append(f"| {mode.replace('_', '-')} | mode fidelity | {first['n']} | {' | '.join(texts)} |")
    return "\n".join(lines)
