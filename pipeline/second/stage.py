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

import gc
import math
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint, read_json, write_json, write_text
from pipeline.core.modes import MODES
from pipeline.core.versions import installed
from pipeline.run import Run, _compare, _now, open_run
from pipeline.settings import Profile, RowsSettings, SecondStageSettings, load_profile, load_recipe, read_yaml
from pipeline.training.trackers import Trackers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Which = Literal["before", "after"]
METHODS = ("lora", "qlora", "dora", "rslora")  # whose adapter TRL copies as the reference


def stage_profile(name: str | None, run_folder: Path | None, overrides: list[str]) -> Profile:
    """The profile of a second stage: the one that is named, else that of the run it starts from, else the embedded one.

    Raises:
        UserError: as ``load_profile``; or the folder is no run directory.
    """
    if name is None and run_folder is not None:
        path = run_folder / "profile.yaml"
        if not path.exists():
            raise UserError(f"--run {run_folder} is no run directory (it has no profile.yaml and recipe.yaml).")
        return load_profile(str(path), overrides)
    return load_profile(name or "embedded", overrides)


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
        self.own = Run(self.profile, load_recipe(self.profile.recipe, self.profile.mix), self.folder)
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
        identity = fingerprint({"kind": kind, "profile": profile.model_dump(), "start": started_from})
        if record_path.exists():
            record = read_json(record_path)
            if record.get("settings_fingerprint") != identity:
                raise UserError(
                    f"{folder} belongs to another training ({stage._difference(record, started_from)}). Choose another "
                    "--output-dir; nothing was changed."
                )
            if not resume and not record.get("finished"):
                raise UserError(
                    f"{folder} holds an unfinished training of the same settings; add --resume to go on with it."
                )
            return stage
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"{folder} exists and is no directory of {kind}. Choose another --output-dir; nothing was changed."
            )
        write_text(folder / "profile.yaml", yaml.safe_dump(profile.model_dump(), sort_keys=False, allow_unicode=True))
        record = {
            "settings_fingerprint": identity,
            "kind": kind,
            "profile": profile.name,
            "model": profile.model.name,
            "start": started_from,
            "seed": profile.seed,
            "versions": {"python": platform.python_version(), **{k: v for k, v in installed().items() if v}},
            "started": _now(),
            "finished": None,
        }
        write_json(record_path, record)
        return stage

    def _difference(self, record: Mapping[str, Any], started_from: str) -> str:
        if record.get("kind") != self.kind:
            return f"it is one of {record.get('kind')}"
        parts = _compare(read_yaml(self.folder / "profile.yaml"), self.profile.model_dump(), "")
        if record.get("start") != started_from:
            parts.append(f"it starts from {record.get('start')}, not from {started_from}")
        return "; ".join(parts[:3]) or "its settings"

    def check_start(self) -> None:
        """See that the method is one of LoRA's, that the run has an adapter, and that it is one of the profile's base.

        Raises:
            UserError: it is not so.
        """
        for profile in [self.profile] if self.start is None else [self.profile, self.start.profile]:
            if profile.chosen_method not in METHODS:
                advice = (
                    "A fully tuned model can be the base: leave --run out and set model.name to its folder RUN/adapter."
                    if profile.chosen_method == "full"
                    else "Train the first stage by one of these, or leave --run out and set method."
                )
                raise UserError(
                    f"A second stage trains a LoRA adapter ({', '.join(METHODS)}), and the method here is "
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

    def finish(self) -> dict[str, Any]:
        """Note the end; returns the record."""
        self.trackers.close()
        record: dict[str, Any] = read_json(self.folder / "stage.json")
        record["finished"] = record["finished"] or _now()
        write_json(self.folder / "stage.json", record)
        return record

    # --- models

    def identity(self, which: Which) -> str:
        """Names the weights before or after, by content."""
        if which == "after":
            return self.own.identity("tuned")
        return self.own.identity("base") if self.start is None else self.start.identity("tuned")

    def load(self, which: Which, trainable: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model before or after, from the disk.

        Args:
            trainable: ready to be trained further: with the run's adapter, or on a bare base with a new one.
        """
        from pipeline.model.load import load_model
        from pipeline.model.methods import add_method, load_adapter

        gc.collect()  # an earlier model of this process, which nobody holds any more
        model, tokenizer = load_model(self.profile.model, self.profile.seed)
        if which == "after":
            return load_adapter(model, self.folder / "adapter"), tokenizer
        if self.start is not None:
            return load_adapter(model, self.start.folder / "adapter", trainable), tokenizer
        if trainable:
            model = add_method(model, self.profile)
        return model, tokenizer

    # --- evaluation

    def cells(self, which: Which) -> dict[str, Any] | None:
        """{mode: cell} of an evaluation that is done, else None."""
        paths = {mode: self.folder / "evaluation" / which / mode / "cell.json" for mode in MODES}
        if not all(path.exists() for path in paths.values()):
            return None
        return {mode: read_json(path)["cell"] for mode, path in paths.items()}

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
        from pipeline.training.checkpoints import STATE, last_checkpoint

        record = self.folder / "training.json"
        if not self.trackers.names or (which == "after" and not record.exists()):
            return
        if not self.trackers.described:
            self._describe()
        checkpoint = last_checkpoint(self.folder / "checkpoints")
        history = read_json(checkpoint / STATE)["log_history"] if checkpoint else []
        step = int(read_json(record)["steps"]) if which == "after" else 0
        self.trackers.evaluation(which, cells, step, history, wait=not record.exists())

    def _describe(self) -> None:
        self.trackers.describe({"profile": self.profile.model_dump(), "start": self.identity("before")})

    # --- training

    def train(
        self,
        make_trainer: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Path], Any],
        metrics: Mapping[str, str],
    ) -> dict[str, Any]:
        """Train, and save the adapter to ``adapter/``.

        Args:
            make_trainer: from (model, tokenizer, folder of checkpoints) to a trainer of TRL.
            metrics: name in the curve → name in the trainer's log, e.g. ``{"margin": "rewards/margins"}``.

        Returns:
            ``steps``, ``curve`` [{"step", "loss", …}], ``eval_curve`` likewise, ``seconds``, ``peak_memory_bytes``,
            ``trainable_parameters``, ``total_parameters``.

        Raises:
            UserError: a loss is not finite, with the step; or checkpoints of an unfinished training are there and ``resume``
                is off.
        """
        from pipeline.model.save import save_adapter
        from pipeline.training.checkpoints import (
            clear_aside,
            identity,
            last_checkpoint,
            require_same,
            resume_point,
            step_of,
        )
        from pipeline.training.measure import count_parameters, peak_memory_bytes

        record = self.folder / "training.json"
        if record.exists():
            return dict(read_json(record))
        checkpoints = self.folder / "checkpoints"
        if not self.resume and last_checkpoint(checkpoints) is not None:
            raise UserError(
                f"{self.folder} holds checkpoints of an unfinished training; add --resume to go on with it."
            )
        checkpoint = resume_point(checkpoints)
        who = identity(self.profile, self.identity("before"))
        if checkpoint is not None:
            require_same(checkpoint, who)
        self.own._require_space()
        model, tokenizer = self.load("before", trainable=True)
        trainable, total = count_parameters(model)
        trainer = with_exact_start(model, lambda: make_trainer(model, tokenizer, checkpoints))
        from pipeline.training.callbacks import CheckpointKeeper, tracker_callbacks

        trainer.add_callback(CheckpointKeeper(who, self.settings.save_total_limit))
        self._describe()
        for callback in tracker_callbacks(self.trackers):
            trainer.add_callback(callback)
        started = time.monotonic()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.monotonic() - started
        history = trainer.state.log_history
        curve = [
            {"step": e["step"], "loss": e["loss"], **{name: e.get(key) for name, key in metrics.items()}}
            for e in history
            if "loss" in e
        ]
        eval_curve = [
            {"step": e["step"], "loss": e["eval_loss"], **{name: e.get(f"eval_{key}") for name, key in metrics.items()}}
            for e in history
            if "eval_loss" in e
        ]
        self._require_finite(curve + eval_curve)
        if "ref" in getattr(model, "peft_config", {}):
            model.delete_adapter("ref")
        save_adapter(model, tokenizer, self.folder / "adapter")
        section = {
            "steps": trainer.state.global_step,
            "curve": curve,
            "eval_curve": eval_curve,
            "seconds": seconds,
            "resumed_from": step_of(checkpoint) if checkpoint else 0,
            "peak_memory_bytes": peak_memory_bytes(),
            "trainable_parameters": trainable,
            "total_parameters": total,
        }
        write_json(record, section)
        clear_aside(checkpoints)
        return section

    def _require_finite(self, entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            if not math.isfinite(entry["loss"]):
                raise UserError(
                    f"The loss became {entry['loss']} at step {entry['step']}. Lower {self.kind}.learning_rate "
                    f"(now {self.settings.learning_rate:g}) or {self.kind}.max_grad_norm and run again; checkpoints before "
                    "it are kept."
                )


def with_exact_start(model: PreTrainedModel, make_trainer: Callable[[], Any]) -> Any:
    """Make a trainer of TRL without letting it round the adapter.

    On a 4-bit base TRL's trainers put the trainable weights into bfloat16, after they have copied them as the reference.
    Training would then start a rounding error away from its reference, and a checkpoint, which is read back as float32,
    would not continue exactly.
    """
    before = {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = make_trainer()
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
        "logging_steps": settings.logging_steps,
        "report_to": "none",  # pipeline.training.trackers reports
        "seed": profile.seed,
        "data_seed": profile.seed,
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def require_plain(source: RowsSettings, where: str) -> None:
    """Refuse settings of a source that only a mix has a use for.

    Raises:
        UserError: there are some.
    """
    for name in ("clean", "augment"):
        if getattr(source, name):
            raise UserError(
                f"{where}.{name} does nothing here; clean the rows first (data build), and give what comes out."
            )


# --- showing it ---------------------------------------------------------------------------------------------------------


def shown(rate: Mapping[str, Any], digits: int = 3) -> str:
    """A value with its interval, as tables have it."""
    low, high = rate["ci95"]
    return f"{rate['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def evaluation_table(arms: Sequence[Mapping[str, Any]]) -> str:
    """The 2×2 of each result before and after; the first column of numbers is what all of them started from."""
    heads = ["before", *(f"after {arm['name']}" for arm in arms)]
    columns = [arms[0]["evaluation"]["before"], *(arm["evaluation"]["after"] for arm in arms)]
    lines = [f"| mode | what | n | {' | '.join(heads)} |", "|---|---|--:|" + "--:|" * len(heads)]
    for mode in MODES:
        first = columns[0][mode]
        rows = [(name, first["benchmarks"][name]["n"]) for name in first["benchmarks"]]
        for name, n in rows:
            texts = [shown({"value": (b := c[mode]["benchmarks"][name])["score"], "ci95": b["ci95"]}) for c in columns]
            lines.append(f"| {mode.replace('_', '-')} | {name} | {n} | {' | '.join(texts)} |")
        texts = [shown({"value": c[mode]["mode_fidelity"], "ci95": c[mode]["mode_fidelity_ci95"]}) for c in columns]
        lines.append(f"| {mode.replace('_', '-')} | mode fidelity | {first['n']} | {' | '.join(texts)} |")
    return "\n".join(lines)
