"""A run directory: which settings it was made with, whether it may be taken or gone on with, and what is noted in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import fingerprint, is_taken, now, read_json, write_json, write_text
from pipeline.core.processes import is_first
from pipeline.core.redact import masked
from pipeline.core.versions import versions_here
from pipeline.evaluation.cells import finished_cells
from pipeline.model.config import commit_of, model_config
from pipeline.model.dtype import computing_dtype
from pipeline.model.load import model_location
from pipeline.model.methods import require_fit
from pipeline.model.room import require_context
from pipeline.settings import Profile, Recipe, parse, read_yaml
from pipeline.settings.compare import affects, differing, shortened
from pipeline.settings.section import AffectedResult
from pipeline.training.checkpoints import STATE, last_checkpoint

OF_A_RUN: tuple[AffectedResult, ...] = ("mix", "training", "evaluation")  # what a run directory holds


def begun(profile: Profile, settings: Any) -> dict[str, Any]:
    """The record that the directory of a run, or of a second stage, begins with; ``finished`` is filled in at its end.

    Args:
        settings: what ``settings_fingerprint`` is of.
    """
    return {
        "settings_fingerprint": fingerprint(settings),
        "profile": profile.name,
        "model": profile.model.name,
        "dtype": computing_dtype(profile.model),
        "seed": profile.seed,
        "versions": versions_here(),
        "started": now(),
        "finished": None,
    }


@dataclass
class Directory:
    """A run directory with its settings.

    Args:
        resume: go on with an unfinished run.
        force: with ``resume``: go on although settings, data or versions differ from those of the unfinished run.
    """

    profile: Profile
    recipe: Recipe
    folder: Path
    resume: bool = False
    force: bool = False

    def _path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def take(self) -> None:
        """Take a new or empty directory, or one of the same run.

        Raises:
            UserError: it belongs to another run, or to an unfinished one and ``resume`` is off; model or data are out of reach.
        """
        record_path = self.folder / "run.json"
        if record_path.exists():
            record = read_json(record_path)
            if not self.is_same(record):
                self._take_over(record)
            elif not self.resume and not record.get("finished"):
                raise UserError(
                    f"{self.folder} holds an unfinished run of the same settings; add --resume to go on with it."
                )
            elif record["settings_fingerprint"] != self._settings_fingerprint():
                self._adopt(record, {})
            return
        if is_taken(self.folder):
            raise UserError(
                f"{self.folder} exists and is no run directory. Choose another --output-dir; nothing was changed."
            )
        self._require_sources()
        self._write_settings()
        record = begun(self.profile, self.resolved())
        write_json(record_path, record | {"commit": commit_of(self.profile.model), "notes": []})

    def resolved(self) -> dict[str, Any]:
        """Profile and recipe as they are written: without secrets, which make no other run either."""
        return {"profile": masked(self.profile.model_dump()), "recipe": masked(self.recipe.model_dump())}

    def cells(self, which: str) -> dict[str, Any] | None:
        """{mode: cell} of an evaluation that is done, else None."""
        found = finished_cells(self._path("evaluation", which))
        return None if found is None else {mode: record["cell"] for mode, record in found.items()}

    def history(self) -> list[dict[str, Any]]:
        """What the finished training logged, from its last checkpoint."""
        checkpoint = last_checkpoint(self._path("checkpoints")) if self._path("training.json").exists() else None
        return list(read_json(checkpoint / STATE)["log_history"]) if checkpoint else []

    def _settings_fingerprint(self) -> str:
        return fingerprint(self.resolved())

    def is_same(self, record: dict[str, Any]) -> bool:
        """Whether the directory was made with these settings, as far as they change anything that is in it.

        It may have been made when this project had fewer settings: then new ones count with their defaults. A file of
        settings that was changed since does not count.
        """
        if record.get("settings_fingerprint") == self._settings_fingerprint():
            return True
        paths = {name: self.folder / f"{name}.yaml" for name in ("profile", "recipe")}
        if not all(path.exists() for path in paths.values()):
            return False
        kept = {name: read_yaml(path) for name, path in paths.items()}
        if fingerprint(kept) != record.get("settings_fingerprint"):
            return False
        try:
            profile = parse(Profile, kept["profile"], str(paths["profile"]))
            recipe = parse(Recipe, kept["recipe"], str(paths["recipe"]))
        except UserError:
            return False
        before, mine = Directory(profile, recipe, self.folder).resolved(), self.resolved()
        changed = differing(before["profile"], mine["profile"])
        return before["recipe"] == mine["recipe"] and not any(affects(key, *OF_A_RUN) for key in changed)

    def _differences(self) -> dict[str, str]:
        """The settings in which the directory's files differ from these: {key: in words that begin with the key}."""
        parts: dict[str, str] = {}
        for name, mine in self.resolved().items():
            path = self.folder / f"{name}.yaml"
            theirs = read_yaml(path) if path.exists() else {}
            parts |= differing(theirs, mine, "" if name == "profile" else "recipe.")
        return parts

    def _write_settings(self) -> None:
        for name, data in self.resolved().items():
            write_text(self.folder / f"{name}.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))

    def _take_over(self, record: dict[str, Any]) -> None:
        """With --resume --force: make the directory one of these settings, and drop what the old ones had made.

        Raises:
            UserError: without --force; or the training is finished, and the change would need another one.
        """
        found = self._differences()
        if not (self.resume and self.force):
            raise UserError(
                f"{self.folder} belongs to another run ({shortened(found.values())}). Choose another --output-dir, or go on "
                "with it under the new settings by --resume --force; nothing was changed."
            )
        trained = [text for key, text in found.items() if affects(key, "mix", "training")]
        if trained and self._path("training.json").exists():
            raise UserError(
                f"The training in {self.folder} is finished, and --force cannot change what it was trained with "
                f"({shortened(trained)}). Choose another --output-dir; nothing was changed."
            )
        if any(affects(key, "mix") for key in found):
            for name in ("mix", "rehearsal"):
                shutil.rmtree(self._path(name), ignore_errors=True)  # it is made again
        if any(affects(key, "evaluation") for key in found):
            for path in self._path("evaluation").glob("*/*/cell.json"):
                path.unlink()  # the replies stay; those of the same settings are not asked again
        other = any(key.startswith("model.") for key in found)
        commit = commit_of(self.profile.model) if other else record.get("commit")
        self._adopt(record, {"finished": None, "commit": commit})
        self.note(f"went on by --force under other settings: {'; '.join(found.values())}")

    def _adopt(self, record: dict[str, Any], changes: dict[str, Any]) -> None:
        """Make the directory one of these settings."""
        self._write_settings()
        profile = self.profile
        new = {"settings_fingerprint": self._settings_fingerprint(), "profile": profile.name}
        write_json(self._path("run.json"), record | new | {"model": profile.model.name, "seed": profile.seed} | changes)

    def note(self, text: str) -> None:
        """Say something that a reader of the report should know, and keep it in run.json; once each."""
        if not is_first():
            return
        path = self._path("run.json")
        record = read_json(path)
        notes = record.get("notes", [])
        if text not in notes:
            say(f"note: {text}")
            write_json(path, record | {"notes": [*notes, text]})

    @contextmanager
    def noting_failure(self, command: str) -> Iterator[None]:
        """Leave the words of a ``UserError`` in failure.json, for whoever started this process; a log may garble them."""
        path = self._path("failure.json")
        path.unlink(missing_ok=True)
        try:
            yield
        except UserError as error:
            with suppress(UserError):  # the disk may be what is full
                write_json(path, {"command": command, "error": str(error), "time": now()})
            raise

    def _require_sources(self) -> None:
        """Fail before anything is written, and before any library is loaded, where model or data are out of reach."""
        from pipeline.data.pools import require_sources

        model_location(self.profile.model)
        config = model_config(self.profile.model)
        if config is not None:
            require_fit(self.profile, config)
            require_context(self.profile, config)
        require_sources(self.recipe)
