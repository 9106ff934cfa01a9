"""The engine that a profile asks for, opened for the base or for the tuned model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.data.rehearsal.by_engine import EngineAnswers
from pipeline.model.config import model_config
from pipeline.model.engines.base import Engine
from pipeline.model.engines.local import local_engine
from pipeline.model.engines.server import server_engine
from pipeline.model.engines.vllm import require_served, vllm_engine
from pipeline.model.load import load_tokenizer, model_location
from pipeline.model.memory import release
from pipeline.model.room import positions_of
from pipeline.settings import Profile

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    LoadModel = Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


def require_engine(profile: Profile) -> None:
    """See before anything is built that the engine is there: a server answers for the base, vLLM can be started.

    Raises:
        UserError: it is not, and what to do.
    """
    if profile.evaluation.engine == "vllm":
        require_served(profile)
    elif profile.evaluation.engine == "server":
        with _served(profile, "base"):
            pass


@contextmanager
def open_engine(profile: Profile, which: str, load: LoadModel, adapter: Path | None, log: Path) -> Iterator[Engine]:
    """The engine for ``which``, ``base`` or ``tuned``; it ends with the block.

    Args:
        load: gives model and tokenizer of it; called where this process decodes.
        adapter: the run's adapter; None for the base.
        log: the file for what a server that is started prints.

    Raises:
        UserError: as the engine.
    """
    if profile.evaluation.engine == "transformers":
        model, tokenizer = load()
        with local_engine(model, tokenizer, ChatFormat(tokenizer).prompt_ids, profile.evaluation) as local:
            yield local
    elif profile.evaluation.engine == "server":
        with _served(profile, which) as server:
            yield server
    else:
        release()
        tokenizer = load_tokenizer(profile.model)
        config = model_config(profile.model)
        positions = None if config is None else positions_of(config)
        place = model_location(profile.model)
        prompts = ChatFormat(tokenizer).prompt_ids
        absolute = None if adapter is None else adapter.resolve()
        with vllm_engine(profile, place, absolute, positions, tokenizer, prompts, log) as started:
            yield started


@contextmanager
def other_answers(profile: Profile, log: Path) -> Iterator[EngineAnswers | None]:
    """What answers a rehearsal where the profile's engine is not the model in this process; None where it is."""
    if profile.evaluation.engine == "transformers":
        yield None
        return
    with closing(EngineAnswers(lambda: open_engine(profile, "base", _nothing_to_load, None, log))) as answers:
        yield answers


def _nothing_to_load() -> NoReturn:
    raise AssertionError("a server answers; no model is loaded here")


@contextmanager
def _served(profile: Profile, which: str) -> Iterator[Engine]:
    server = profile.evaluation.server.told(profile.model.chat_template_kwargs)
    name = server.base_model if which == "base" else server.tuned_model
    if name is None:
        raise UserError(
            f"evaluation.server.{which}_model is not set: what does the server call the {which} model? With vLLM: vllm serve "
            "BASE --enable-lora --lora-modules NAME=RUN/adapter, and --set evaluation.server.tuned_model=NAME."
        )
    tokenizer = load_tokenizer(profile.model)
    with server_engine(server, name, tokenizer, ChatFormat(tokenizer).prompt_ids) as engine:
        yield engine
