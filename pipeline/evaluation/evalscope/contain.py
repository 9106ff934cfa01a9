"""What EvalScope does to the process around it, and what is wrong in it for us: each kept out in one place, with its reason.

``PATCHES`` are names that are replaced while an evaluation runs; tests see that the installed EvalScope still has and uses
them. The rest gives back what EvalScope changes (log handlers, random states, progress bars), cleans up what a kill leaves in
its files, and gives IFEval a model of sentences.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import logging
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATCHES = {  # "module:name", replaced while an evaluation runs → why
    "evalscope.utils.tqdm_utils.tqdm_logging:TqdmLogging.__init__": "its bars would be drawn over ours: to the null device",
    "evalscope.utils.tqdm_utils.tqdm_logging:logging_redirect_tqdm": "every bar would exchange the handlers of the root logger",
    "evalscope.api.dataset.utils:tqdm": "one more bar, while the items are read",
    "evalscope.report:gen_html_report_file": "an HTML report after each benchmark; ours is report.html, and it takes seconds",
    "datasets.config:HF_DATASETS_CACHE": "copies of local files would pile up in the user's cache",
}


def data_dir(output_dir: Path) -> Path:
    """Where the items of benchmarks are laid out while an evaluation runs."""
    return output_dir / ".evaluation_data"


def patched_name(patch: str) -> tuple[Any, str]:
    """The object that holds a name of ``PATCHES``, and its last part."""
    module, _, dotted = patch.partition(":")
    *owners, name = dotted.split(".")
    return functools.reduce(getattr, owners, importlib.import_module(module)), name


@contextmanager
def replaced(patch: str, value: Any) -> Iterator[None]:
    """Put ``value`` in the place of a name of ``PATCHES``, and give the name back."""
    assert patch in PATCHES, patch
    owner, name = patched_name(patch)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def contained(output_dir: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """Everything that EvalScope changes outside its working folder, kept or given back.

    Root log handlers, random states, its console output (its log file stays), progress bars, and the copies that
    ``datasets`` makes of local files.

    Args:
        names: of the benchmarks that will run.

    Yields:
        What a reader of the scores should know about how they came about.
    """
    data = data_dir(output_dir)
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        stack.enter_context(random_states())
        _import_evalscope()
        stack.enter_context(_without_console())
        silent = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        for patch, value in _replacements(silent, data.resolve() / "cache").items():
            stack.enter_context(replaced(patch, value))
        stack.enter_context(_without_datasets_bars())
        # EvalScope collects garbage after each benchmark, for which Python walks through all that the libraries hold: with
        # the HTML report a third of the time of a small model.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        yield stack.enter_context(sentence_model(data / "nltk")) if "ifeval" in names else []


def _replacements(silent: Any, cache: Path) -> dict[str, Any]:
    """The value that stands in the place of each name of ``PATCHES``."""
    from evalscope.api.dataset.utils import tqdm
    from evalscope.utils.tqdm_utils.tqdm_logging import TqdmLogging

    values = (
        functools.partialmethod(TqdmLogging.__init__, file=silent),
        lambda loggers=None: contextlib.nullcontext(),
        functools.partial(tqdm, file=silent),
        lambda *args, **options: "none",
        cache,
    )
    return dict(zip(PATCHES, values, strict=True))


def _import_evalscope() -> None:
    """Import it, and with it the embedded benchmarks. Its import closes whatever handlers the root logger has."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    try:
        import pipeline.evaluation.evalscope.bridge  # noqa: F401  (registers the embedded benchmarks)
    finally:
        root.handlers = handlers
        root.setLevel(level)


@contextmanager
def _without_console() -> Iterator[None]:
    """EvalScope logs to its file alone; the file's handler is closed at the end, as EvalScope never does."""
    logger = logging.getLogger("evalscope")
    console, logger.handlers = logger.handlers[:], []
    try:
        yield
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.handlers = console


@contextmanager
def _without_datasets_bars() -> Iterator[None]:
    """EvalScope reads items with ``datasets``, which draws bars of its own."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    if shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def random_states() -> Iterator[None]:
    """Give the global random states back as they were: EvalScope seeds all of them."""
    import numpy
    import torch

    cudnn = torch.backends.cudnn
    python, array, cpu = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    flags = cudnn.deterministic, cudnn.benchmark
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        cudnn.deterministic, cudnn.benchmark = flags


def cut_torn_lines(work_dir: Path) -> None:
    """Drop the half-written last line that a kill leaves; EvalScope would append its next row to it and lose both."""
    for path in [*work_dir.glob("predictions/*/*.jsonl"), *work_dir.glob("reviews/*/*.jsonl")]:
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)


# --- IFEval's sentences -------------------------------------------------------------------------------------------------

# IFEval counts sentences with nltk's model "punkt_tab", a download of its own. Without it EvalScope drops every item
# that counts sentences or words in capitals, and the score of the rest still looks complete. Where it is missing, nltk
# is given a Punkt model that knows these abbreviations and has learnt nothing else: a sentence ends at . ! or ?
# followed by a blank, unless the full stop belongs to one of them.
ABBREVIATIONS = """
    mr mrs ms dr prof sr jr st gen col capt lt sgt rev hon messrs gov sen rep pres inc ltd co corp bros dept univ assn
    est nos vol vols ed eds pp fig figs sec ch approx etc vs cf al ca e.g i.e viz a.m p.m a.d b.c u.s u.k u.s.a d.c ph.d
    m.d b.a m.a jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri ave blvd rd mt ft oz lb lbs hr hrs
"""


def _punkt_installed() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


@contextmanager
def sentence_model(folder: Path) -> Iterator[list[str]]:
    """Make sentences countable for IFEval.

    Args:
        folder: where the model is written, if nltk lacks its own.

    Yields:
        A note, where it does.
    """
    import nltk
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    if _punkt_installed():
        yield []
        return
    folder = folder.resolve()
    english = folder / "tokenizers" / "punkt_tab" / "english"
    for part in (folder, *reversed(english.parents[:2]), english):  # nltk reads from folders of the user alone
        part.mkdir(mode=0o700)
    nltk.data.path.append(str(folder))  # before saving: nltk writes nowhere else
    try:
        parameters = PunktParameters()
        parameters.abbrev_types = set(ABBREVIATIONS.split())
        save_punkt_params(parameters, str(english))
        yield ["IFEval: nltk's punkt_tab is not installed; sentences were split by a list of abbreviations."]
    finally:
        nltk.data.path.remove(str(folder))
