"""From a pretrained model to a hybrid one, in one directory:

    config.json, model.safetensors, …      the hybrid model, once it is accepted: this folder is what other commands take
    hybrid.json                            what it was made of, and the numbers that it was accepted by
    hybridise/start/                       the base with its new tokens and template
    hybridise/run/                         a run directory: mix, checkpoints, adapter, training.json
    hybridise/candidate/                   the merged model, until it is accepted
    hybridise/evaluation/{base,hybrid}/    one folder a mode

Every step writes its result as a whole, so a stopped one is gone on with by ``--resume``.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint, known_sha256, make_folder, now, read_json, write_json
from pipeline.core.modes import MODES, Mode
from pipeline.data.describe import describe_mix
from pipeline.hybrid.accept import failures
from pipeline.hybrid.export import export_hybrid, publish
from pipeline.hybrid.start import base_folder, make_start
from pipeline.model.hub.check import check_folder
from pipeline.model.hub.fetch import START_BYTES, require_capacity
from pipeline.model.load import load_model
from pipeline.run import Run
from pipeline.settings import LORA_METHODS, EvaluationSettings, HybridSettings, Profile, load_profile
from pipeline.training.estimate import LIBRARIES_BYTES, memory, profile_job, sizes_from_config

RECORD = "hybrid.json"
STEPS = 5
LESS = (
    "Close other programs, or take fewer rows at a time (--set training.per_device_train_batch_size=1, with "
    "training.gradient_accumulation_steps as many times larger), or --set method=lora."
)


def settings_of(profile: Profile) -> HybridSettings:
    """The profile's section ``hybrid``.

    Raises:
        UserError: it has none.
    """
    if profile.hybrid is None:
        raise UserError(
            f"profile {profile.name} has no section hybrid, which says what the hybrid is made of; smollm2-135m has one: "
            "pipeline/profiles/smollm2-135m.yaml. Any model: --set hybrid.base=FOLDER."
        )
    return profile.hybrid


def training_profile(name: str, overrides: Sequence[str], start: Path, tokens: Sequence[int]) -> Profile:
    """The profile of the training: the named one, as its section ``hybrid`` changes it, then as ``overrides`` do."""
    settings = settings_of(load_profile(name, list(overrides)))
    own = [f"recipe={json.dumps(settings.recipe)}", f"model.name={json.dumps(str(start))}", "model.source=local"]
    profile = load_profile(name, [*settings.overrides, *overrides, *own])
    if profile.chosen_method in LORA_METHODS:
        profile.lora.trainable_token_indices = list(tokens)
    elif profile.chosen_method != "full":
        raise UserError(
            f"method={profile.chosen_method} cannot teach new tokens; hybridise takes method=lora (with the new tokens' rows) "
            "or method=full."
        )
    if profile.model.load_in_4bit:
        raise UserError(
            "hybridise merges what it trained into the base, which needs 16 bit; set model.load_in_4bit=false."
        )
    return profile


def needed(profile: Profile, base: Path, parameters: int) -> tuple[int, int]:
    """Bytes of disk (without checkpoints, which the training asks for itself) and of memory.

    Memory: what merging takes, or on a CPU a step of the training, as ``estimate`` counts it. A GPU is asked for nothing.

    Args:
        profile: of the training, as ``training_profile`` makes it. base: the model's folder, with so many ``parameters``.
    """
    import torch

    merge, step = 2 * 4 * parameters + START_BYTES, 0
    config = read_json(base / "config.json")
    if (
        not torch.cuda.is_available() and "intermediate_size" in config
    ):  # without it: a family whose steps are not counted
        step = memory(sizes_from_config(config), profile_job(profile, "cpu"))["total"] + LIBRARIES_BYTES
    return 2 * 2 * parameters, max(merge, step)


def hybridise(name: str, overrides: Sequence[str], folder: Path, resume: bool = False) -> dict[str, Any]:
    """Make a hybrid; returns the record, with ``accepted`` and, where it is not, ``failures``.

    Args:
        name: of the profile, with a section ``hybrid``. overrides: as ``--set`` takes them.

    Raises:
        UserError: no such base, no data, no room; an unfinished one without ``resume``; see also ``pipeline.run``.
    """
    if (folder / RECORD).exists():
        record: dict[str, Any] = read_json(folder / RECORD)
        if record["settings"] != _asked(name, overrides):
            raise UserError(
                f"{folder} holds a hybrid of other settings. Choose another --output-dir; nothing was changed."
            )
        return record
    settings = settings_of(load_profile(name, list(overrides)))
    base = base_folder(settings.base)
    if (folder / "config.json").exists():
        raise UserError(
            f"{folder} holds a model that was not made here. Choose another --output-dir; nothing was changed."
        )
    work = folder / "hybridise"
    say(f"[1/{STEPS}] think tokens and template on {base}")
    parameters = check_folder(base).parameters
    if not (work / "candidate").exists():
        # Asked with any tokens, as the settings decide: before anything is written.
        disk, room = needed(training_profile(name, overrides, work / "start", []), base, parameters)
        require_capacity("hybridise", folder, disk, room, LESS)
    make_folder(work)
    started = make_start(base, work / "start")
    profile = training_profile(name, overrides, work / "start", started["tokens"])
    say(f"[2/{STEPS}] train both modes ({profile.chosen_method})")
    run = Run.open(profile, work / "run", resume=resume)
    run.resume = resume
    training = run.train()
    mix = describe_mix(run.data().manifest)
    del run
    gc.collect()
    say(f"[3/{STEPS}] one model of both")
    export_hybrid(work / "start", work / "run" / "adapter", work / "candidate")
    say(f"[4/{STEPS}] measure the base")
    cells = {"base": _base_cells(base, settings, profile, work / "evaluation" / "base")}
    say(f"[5/{STEPS}] measure the hybrid")
    cells["hybrid"] = _cells(work / "candidate", profile, profile.evaluation, work / "evaluation" / "hybrid", MODES)
    missed = failures(settings, cells["hybrid"], cells["base"].get("non_thinking"))
    record = {
        "made_of": settings.base,
        "settings": _asked(name, overrides),
        "method": profile.chosen_method,
        "new_tokens": started["added"],
        "training": {key: training[key] for key in ("steps", "training_seconds", "tokens_per_second")}
        | {"last_loss": training["loss"][-1]["loss"] if training["loss"] else None},
        "mix": mix,
        "evaluation": cells,
        "accepted": not missed,
        "failures": missed,
        "finished": now(),
    }
    if missed:
        write_json(work / RECORD, record)
        return record
    publish(work / "candidate", folder)
    shutil.rmtree(work / "start")
    write_json(folder / RECORD, record)
    return record


def _asked(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings that a hybrid was asked for with."""
    return {"profile": load_profile(name, list(overrides)).name, "set": list(overrides)}


def _base_cells(base: Path, settings: HybridSettings, profile: Profile, folder: Path) -> dict[str, Any]:
    """The base's own score in the benchmark to keep, by its own template; {} where it has no non-thinking mode."""
    if settings.keep is None:
        return {}
    if settings.keep not in profile.evaluation.benchmarks:
        raise UserError(
            f"hybrid.keep={settings.keep} is not among evaluation.benchmarks ({', '.join(profile.evaluation.benchmarks)})."
        )
    if "non_thinking" not in check_folder(base).modes:
        say(f"the base has no non-thinking mode of its own, so {settings.keep} is not compared")
        return {}
    alone = profile.evaluation.model_copy(update={"benchmarks": [settings.keep]})
    return _cells(base, profile, alone, folder, ("non_thinking",))


def _cells(
    folder: Path, profile: Profile, evaluation: EvaluationSettings, output_dir: Path, modes: Sequence[Mode]
) -> dict[str, Any]:
    """Evaluate a model's folder in these modes; {mode: cell}."""
    from pipeline.evaluation.evaluate import evaluate_model

    weights = fingerprint([known_sha256(path) for path in sorted(folder.glob("*.safetensors"))])[:12]
    settings = profile.model.model_copy(update={"name": str(folder), "source": "local"})
    model, tokenizer = load_model(settings, profile.seed)
    return dict(evaluate_model(model, tokenizer, f"{folder.name}-{weights}", evaluation, output_dir, modes))
