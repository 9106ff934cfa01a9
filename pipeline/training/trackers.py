"""Trackers: the run as wandb, SwanLab and TensorBoard show it; offline unless the user says otherwise, no account needed.

In: ``training.report_to``, the settings, the mix, what the trainer logs, the evaluations. Out: below ``trackers/`` of the run
directory:

    wandb/offline-run-*/     ``WANDB_MODE=online`` and a login send them as they come, ``wandb sync`` afterwards
    swanlab/run-*/           ``SWANLAB_MODE=online`` and a login send them as they come, ``swanlab sync`` afterwards
    tensorboard/             ``tensorboard --logdir``
    state.json               what a later process has to know to go on in the same run

What is logged: ``train/loss``, ``train/learning_rate``, ``train/grad_norm``, ``eval/loss`` and what else the trainer says, by
step of the optimiser; ``evaluation/{base,tuned}/{mode}/…``, the base at step 0, the tuned model at the last step;
``mix/{source}/requested`` and ``…/achieved/{rows,tokens,loss_tokens}`` at step 0; the resolved settings as the run's config.

A tracker is a guest: whatever it raises is noted once, and the run goes on without it. Secrets are masked before anything is
handed over, and what trackers collect by themselves (command line, git remote, console, host) is switched off.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint, read_json, write_json
from pipeline.core.redact import masked, masked_text

PROJECT = "hybrid-reasoning"
START_TIMEOUT, FINISH_TIMEOUT = 30, 60  # seconds that an online tracker may keep a run waiting
Values = Mapping[str, float]


class Tracker(Protocol):
    """One tracker, opened. ``step`` is the optimiser's."""

    def log(self, values: Values, step: int) -> None: ...

    def close(self) -> None: ...


# --- the three ----------------------------------------------------------------------------------------------------------


class Wandb:
    """A wandb run. A later process goes on under the same run id, in a folder of its own; ``wandb sync`` joins them."""

    def __init__(self, folder: Path, run_id: str, name: str, config: Mapping[str, Any], step: int):
        os.environ.setdefault(
            "WANDB_CACHE_DIR", str(folder / "cache")
        )  # its service logs there, outside of the run else
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id,
            name=name,
            dir=str(folder.parent),  # wandb adds the folder wandb
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,
            config=dict(config),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                x_transaction_log_flush_interval=1.0,  # seconds that a kill may cost
                init_timeout=START_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
            ),
        )
        self._run.define_metric("train/global_step")
        self._run.define_metric("*", step_metric="train/global_step", step_sync=True)

    def log(self, values: Values, step: int) -> None:
        self._run.log({**values, "train/global_step": step})

    def close(self) -> None:
        self._run.finish()


class SwanLab:
    """A SwanLab run. Offline, it writes a folder a process; the newest one holds the whole curve (see ``replays``)."""

    def __init__(self, folder: Path, run_id: str, name: str, config: Mapping[str, Any], step: int):
        import swanlab

        mode = os.environ.get("SWANLAB_MODE", "offline")
        self._run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJ_NAME") or os.environ.get("SWANLAB_PROJECT") or PROJECT,
            name=name,
            id=run_id,
            resume="allow",
            mode=mode,
            log_dir=str(folder),
            config=dict(config),
            settings=swanlab.Settings(
                interactive=False,
                probe=swanlab.Settings.Probe(runtime=False, git=False, requirements=False, conda=False, swanlab=False),
                terminal=swanlab.Settings.Terminal(proxy_type="none"),
            ),
        )

    def log(self, values: Values, step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class TensorBoard:
    """TensorBoard event files. Going on from step N, whatever a killed process logged after N is discarded by the reader."""

    def __init__(self, folder: Path, run_id: str, name: str, config: Mapping[str, Any], step: int):
        import yaml
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(folder), purge_step=step + 1 if step else None)
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), step)

    def log(self, values: Values, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


TRACKERS: dict[str, Callable[..., Tracker]] = {"wandb": Wandb, "swanlab": SwanLab, "tensorboard": TensorBoard}
# SwanLab writes in blocks, and a kill takes the last one; so a resumed run gives it the history up to its checkpoint again.
REPLAYS = {"swanlab"}


# --- all of them together -----------------------------------------------------------------------------------------------


class Trackers:
    """The trackers of a run, opened when there is something to log.

    Args:
        report_to: names; ``none`` and an empty list mean no tracker, and then nothing here does anything.
        folder: what they write lies below it.
        note: told, once a tracker, why the run goes on without it.
    """

    def __init__(self, report_to: Sequence[str], folder: Path, note: Callable[[str], None] = print):
        # Of several processes that train one model, the first one reports.
        self.names = [
            name for name in dict.fromkeys(report_to) if name != "none" and os.environ.get("RANK", "0") == "0"
        ]
        self.folder, self._note = folder, note
        self._open: dict[str, Tracker] = {}
        self._config: dict[str, Any] | None = None
        self._mix: dict[str, float] = {}
        self._evaluations: dict[str, tuple[dict[str, float], int]] = {}  # all that this process knows of

    @property
    def described(self) -> bool:
        """Whether settings and mix are known."""
        return self._config is not None

    def describe(self, settings: Mapping[str, Any], manifest: Mapping[str, Any] | None = None) -> None:
        """Take the resolved settings (``{"profile", "recipe"}``) and, of a mix, its manifest; nothing is opened yet."""
        if manifest is None:
            self._config = masked(dict(settings), environment=True)
            return
        sources = manifest["sources"]
        mix = {s["name"]: {"requested": s["requested"], "achieved": s["achieved"], "rows": s["rows"]} for s in sources}
        config = {**settings, "mix": {"unit": manifest["unit"], "fingerprint": manifest["fingerprint"], "sources": mix}}
        self._config = masked(config, environment=True)
        self._mix = _scalars(mix, "mix/")

    def begin(self, step: int, history: Sequence[Mapping[str, Any]]) -> None:
        """Training begins, or goes on from ``step`` with what had been logged up to there (transformers' log history)."""
        self.close()
        for name in list(self.names):
            self._start(name, step, history)
        self._log_evaluations(step, history)

    def log(self, values: Values, step: int) -> None:
        """One entry of the trainer's log."""
        for name in list(self._open):
            self._log(name, values, step)

    def evaluation(
        self,
        which: str,
        cells: Mapping[str, Any],
        step: int,
        history: Sequence[Mapping[str, Any]] = (),
        wait: bool = False,
    ) -> None:
        """The evaluation of ``base`` or ``tuned``, {mode: cell}; each is logged once, whatever is killed and resumed.

        Args:
            history: what the training had logged, where it was done by another process.
            wait: until the training begins.
        """
        values = _scalars({mode: evaluation_values(cell) for mode, cell in cells.items()}, f"evaluation/{which}/")
        self._evaluations[which] = (values, step)
        if not wait:
            self._log_evaluations(step, history)

    def _log_evaluations(self, now: int, history: Sequence[Mapping[str, Any]]) -> None:
        for name in list(self.names):
            for which, (values, step) in self._evaluations.items():
                if self._state(name).get("evaluations", {}).get(which) == fingerprint(values):
                    continue
                if (name in self._open or self._start(name, now, history)) and self._log(name, values, step):
                    done = self._state(name).get("evaluations", {})  # read again: a start may have emptied it
                    self._remember(name, evaluations={**done, which: fingerprint(values)})

    def close(self) -> None:
        """Write out and close what is open. A tracker is opened again when there is more to log."""
        for name in list(self._open):
            self._call(name, "finish", lambda tracker: tracker.close())
            self._open.pop(name, None)

    # --- one tracker

    def _start(self, name: str, step: int, history: Sequence[Mapping[str, Any]]) -> bool:
        """Open a tracker and give it what it lacks; False: it failed."""
        state = self._state(name)
        run_id = state.get("id") or secrets.token_hex(8)  # of no random state that training uses

        def start(_: Any) -> None:
            folder = self.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            self._open[name] = TRACKERS[name](folder, run_id, self.folder.parent.name, self._config or {}, step)

        started = self._call(name, "start", start)
        empty = name in REPLAYS or not state
        if started and empty:
            started = self._log(name, self._mix, 0)
            for entry in history if name in REPLAYS else ():
                started = started and self._log(name, trainer_values(entry), int(entry["step"]))
        if started:
            self._remember(name, id=run_id, evaluations={} if empty else state["evaluations"])
        return started

    def _log(self, name: str, values: Values, step: int) -> bool:
        return self._call(name, "log", lambda tracker: tracker.log(values, step))

    def _call(self, name: str, what: str, action: Callable[[Any], None]) -> bool:
        """Do something with a tracker; whatever it raises, it is left out from then on, and that is noted."""
        if name not in self.names:
            return False
        try:
            action(self._open.get(name))
        except Exception as error:  # code of others, which may raise anything; none of it may end a training
            self.names.remove(name)
            self._open.pop(name, None)
            reason = masked_text(" ".join(str(error).split()), environment=True)[:300]
            where = f"could not {what}: {type(error).__name__}: {reason}".rstrip(": ")
            self._note(f"the tracker {name} {where}; the run went on without it")
            return False
        return True

    # --- what a later process has to know

    def _state(self, name: str) -> dict[str, Any]:
        try:
            return dict(read_json(self.folder / "state.json").get(name, {}))
        except (UserError, AttributeError, TypeError):  # there is none yet, or it is damaged: a new tracker run then
            return {}

    def _remember(self, name: str, **new: Any) -> None:
        path = self.folder / "state.json"
        state = {other: self._state(other) for other in TRACKERS if self._state(other)}
        write_json(path, {**state, name: {**self._state(name), **new}})


# --- values -------------------------------------------------------------------------------------------------------------


def trainer_values(entry: Mapping[str, Any]) -> dict[str, float]:
    """An entry of the trainer's log under the names that transformers' own trackers use: ``train/loss``, ``eval/loss``."""
    return {
        f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}": float(value)
        for key, value in entry.items()
        if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def evaluation_values(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation's cell: form of the replies, and the score of each benchmark."""
    form = {key: value for key, value in cell.items() if isinstance(value, (int, float))}
    return {**form, **{name: {"score": entry["score"], "n": entry["n"]} for name, entry in cell["benchmarks"].items()}}


def _scalars(data: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Nested mappings of numbers as one, with slashes in the names."""
    found: dict[str, float] = {}
    for key, value in data.items():
        found |= _scalars(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": float(value)}
    return found
