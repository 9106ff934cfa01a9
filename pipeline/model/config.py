"""A model's ``config.json``, read without its weights: of a folder, or a few kilobytes of a hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.settings import ModelSettings, locate


def model_config(settings: ModelSettings) -> dict[str, Any] | None:
    """The config of a profile's model; None: a hub does not give it now, and loading the model will say why.

    Raises:
        UserError: the folder's file cannot be read.
    """
    if settings.source == "local":
        path = locate(settings.name) / "config.json"
    else:
        found = _from_modelscope(settings) if settings.source == "modelscope" else _from_huggingface(settings)
        if found is None:
            return None
        path = found
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a model folder with model.name.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is no model's config.json; give a model folder with model.name.")
    return config


def standard_names(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config with its sizes under the names of most families too, by transformers' own map: GPT-2 has ``n_head``."""
    if {"num_attention_heads", "max_position_embeddings"} <= config.keys():
        return config
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    names = CONFIG_MAPPING[kind].attribute_map if kind in CONFIG_MAPPING else {}
    return {**{name: config[own] for name, own in names.items() if own in config}, **config}


def commit_of(settings: ModelSettings) -> str | None:
    """The commit of the repository that is loaded; None: the model is no repository of Hugging Face, or out of reach.

    A name alone means whatever lies on its main branch on the day.
    """
    path = _from_huggingface(settings) if settings.source == "huggingface" else None
    # …/snapshots/COMMIT/config.json, see the documentation of huggingface_hub's cache
    return path.parent.name if path is not None and path.parent.parent.name == "snapshots" else None


def _from_huggingface(settings: ModelSettings) -> Path | None:
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(settings.name, "config.json", revision=settings.revision))
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx.HTTPError, OSError):
        return None


def _from_modelscope(settings: ModelSettings) -> Path | None:
    import requests
    from modelscope.hub.errors import HubError
    from modelscope.hub.file_download import model_file_download

    try:
        return Path(model_file_download(settings.name, "config.json", revision=settings.revision))
    except (HubError, requests.RequestException, ValueError, OSError):
        return None
