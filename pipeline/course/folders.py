"""Where a notebook works: the folder that its parameters name, or one beside it where that holds a run of other settings.

In: the wanted folder and the profile. Out: a folder that ``Run.open`` takes. So a change of ``overrides`` begins a run of its
own, and whoever takes the change back finds the earlier run.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.console import say
from pipeline.core.files import fingerprint, read_json
from pipeline.run.directory import OF_A_RUN, Directory
from pipeline.settings import Profile, load_recipe
from pipeline.settings.compare import affects, flat

DIGITS = 6  # of the fingerprint, in a folder's name


def folder_for(wanted: str | Path, profile: Profile) -> Path:
    """The folder for a run of these settings; nothing is written.

    Args:
        wanted: a run directory, or where one may be made.

    Returns:
        ``wanted`` where it holds no run, or the same run as ``Run.open`` compares them; else ``NAME-xxxxxx`` beside it, where x
        are hexadecimal digits of a fingerprint of the settings that change what is in a run. It is said in one line then.

    Raises:
        UserError: the profile's recipe, or the settings that lie in the folder, cannot be read.
    """
    run = Directory(profile, load_recipe(profile.recipe, profile.mix), Path(wanted))
    record = run.folder / "run.json"
    if not record.exists() or run.is_same(read_json(record)):
        return run.folder
    settings = run.resolved()
    counting = {key: value for key, value in flat(settings["profile"]).items() if affects(key, *OF_A_RUN)}
    digits = fingerprint([counting, settings["recipe"]])[:DIGITS]
    own = run.folder.with_name(f"{run.folder.name}-{digits}")
    say(f"{run.folder} holds a run of other settings; this one is in {own}.")
    return own
