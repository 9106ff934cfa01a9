"""Exported folders to a hub, each into a repository of its own; without ``confirm`` it only says what would be sent.

In: folders of ``export``. Out: private repositories with their model cards. The token comes from the hub's own environment
variable, and is never written or printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import write_text
from pipeline.core.hubs import HUBS, require_hub
from pipeline.core.redact import masked_text
from pipeline.export.folders import size_of

TOKENS = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def plan_push(folders: Mapping[str, Path], hub: str, repository: str) -> list[dict[str, Any]]:
    """What would be sent: ``[{"repository", "files": {name: bytes}}]``; of several targets, a name ends with its target.

    Raises:
        UserError: the name is none, or a folder has no card.
    """
    if hub not in HUBS:
        raise UserError(f"There is no hub {hub!r}; hubs: {', '.join(HUBS)}.")
    if not _NAME.fullmatch(repository):
        raise UserError(f"--repo needs OWNER/NAME, given: {repository!r}.")
    found = []
    for target, folder in folders.items():
        if not (folder / "README.md").exists():
            raise UserError(f"{folder} has no model card (README.md); export it again.")
        name = repository if len(folders) == 1 else f"{repository}-{target.replace('_', '-')}"
        files = {path.name: size_of(path) for path in sorted(folder.iterdir())}
        found.append({"hub": hub, "repository": name, "folder": str(folder), "files": files})
    return found


def plan_text(entries: list[dict[str, Any]], sent: bool) -> str:
    """The plan in words, a line a repository."""
    lines = []
    for entry in entries:
        total = sum(entry["files"].values()) / 2**20
        lines.append(
            f"{'sent' if sent else 'would send'} {len(entry['files'])} files, {total:,.1f} MiB, to {HUBS[entry['hub']]}, "
            f"{entry['repository']} (private): {', '.join(entry['files'])}"
        )
    return "\n".join(lines if sent else [*lines, "nothing was sent; add --confirm to send it"])


def push(entries: list[dict[str, Any]]) -> None:
    """Send what was planned.

    Raises:
        UserError: no token, no way to the hub, or the hub refuses; nothing secret is in the words.
    """
    hub = entries[0]["hub"]
    token = os.environ.get(TOKENS[hub], "").strip()
    if not token:
        raise UserError(f"Set the environment variable {TOKENS[hub]} to a token that may write to {HUBS[hub]}.")
    require_hub(hub, "sending the model", "push from a machine that reaches it.")
    for entry in entries:
        card = Path(entry["folder"]) / "README.md"
        text = card.read_text(encoding="utf-8")
        if masked_text(text, environment=True) != text:
            write_text(card, masked_text(text, environment=True))
        try:
            _send(hub, entry["repository"], entry["folder"], token)
        except (OSError, ValueError) as error:  # requests' and the hubs' own errors are OSErrors and ValueErrors
            words = masked_text(" ".join(str(error).split()).replace(token, "***"), environment=True)[:300]
            raise UserError(f"{HUBS[hub]} does not take {entry['repository']}: {words}") from None


def _send(hub: str, repository: str, folder: str, token: str) -> None:
    if hub == "huggingface":
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
        return
    from modelscope.hub.api import HubApi

    modelscope = HubApi()
    modelscope.login(token)
    modelscope.create_repo(repository, repo_type="model", visibility="private", exist_ok=True)
    modelscope.upload_folder(repo_id=repository, folder_path=folder)
