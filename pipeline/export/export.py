"""Export a run to one or several targets, and check each of them.

In: a run directory and the names of targets. Out, in the output folder:

    adapter/  merged/  int8/  int8_dynamic/  gguf/  ollama/    one folder a target, each with its README.md (the model card)
    export.json                                                which targets are of which adapter
    parity.json  parity.txt                                    what the check found
    log.txt                                                    what the libraries said
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import LOG, say
from pipeline.core.errors import UserError, nearest
from pipeline.core.files import fingerprint, known_sha256, read_json, write_json, write_text
from pipeline.export.card import write_card
from pipeline.export.engines import ExportEngine, LlamaCpp, Transformers
from pipeline.export.folders import size_of
from pipeline.export.gguf import TYPES, require_tools, write_gguf
from pipeline.export.measure import PROMPTS_A_MODE, Measured, greedy, measure
from pipeline.export.ollama import require_qwen3_template, write_ollama
from pipeline.export.parity import compare_replies, parity_text, plain
from pipeline.export.processes import llama_server
from pipeline.export.records import Compared, Parity
from pipeline.export.source import OF_PEFT, Source, base_location, load_base, open_source
from pipeline.export.weights import load_exported, with_adapter, write_adapter, write_int8, write_merged
from pipeline.model.dtype import computing_dtype
from pipeline.model.load import load_tokenizer
from pipeline.model.methods import load_adapter, weights_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TARGETS = ("adapter", "merged", "int8", "int8_dynamic", "gguf", "ollama")
TRAINERS = ("trl", "llama-factory", "ms-swift", "axolotl")  # get a training, not what was trained: data handover
OF_OLLAMA = ("q8_0", "f16", "q4_k_m")  # the first of these that is made is the one in the Modelfile
RECORD = "export.json"
SLOTS = 8  # requests that llama.cpp works on at a time in the check


@dataclass(frozen=True)
class Options:
    """How to export.

    Args:
        dtype: of the merged weights; None: 16 bit, as the base has it.
        base, dequantise: see ``source.load_base``.
        gguf_types: of ``gguf.TYPES``.
        prompts: questions a mode in the check; 0: no check.
    """

    dtype: str | None = None
    base: str | None = None
    dequantise: bool = False
    gguf_types: tuple[str, ...] = TYPES
    prompts: int = PROMPTS_A_MODE


def export(run: Path, targets: Sequence[str], folder: Path, options: Options | None = None) -> dict[str, Any]:
    """Write the targets and check them.

    Returns:
        ``{"targets": {name: {"path", "bytes"}}, "parity": parity.json or None}``

    Raises:
        UserError: an unknown target or one of ``TRAINERS``, an unfinished run, a base that is not the adapter's, a package
            that is missing, no room; what was being written then is removed, what was finished before stays.
    """
    options = options or Options()
    if trainers := [name for name in targets if name in TRAINERS]:
        profile, place = (shlex.quote(str(run / name)) for name in ("profile.yaml", "handover"))
        raise UserError(
            f"{trainers[0]} trains: it gets the data and the settings of this run, not its weights. Type: python -m pipeline "
            f"data handover --to {','.join(trainers)} --profile {profile} --output-dir {place} --check"
        )
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        raise UserError(
            f"There is no target {unknown[0]!r}.{nearest(unknown[0], TARGETS)} Targets: {', '.join(TARGETS)}."
        )
    source = open_source(run)
    if {"gguf", "ollama"} & set(targets):
        require_tools()
    folder.mkdir(parents=True, exist_ok=True)
    if "ollama" in targets:
        require_qwen3_template(load_tokenizer(source.profile.model))
    written = Written(source, folder, options)
    with written.working():
        for name in [name for name in TARGETS if name in targets]:
            say(f"exporting {name}")
            getattr(written, name)()
        parity = check_target(written) if options.prompts else None
    if parity is not None:
        write_json(folder / "parity.json", parity)
        write_text(folder / "parity.txt", parity_text(parity) + "\n")
    for name, path in written.paths.items():
        form = "gguf" if name == "ollama" else name  # what Ollama runs is the file
        found = {} if parity is None else {k: v for k, v in parity["targets"].items() if k.split()[0] == form}
        write_card(source, name, path, written.name, found)
    kept = {name: path.name for name, path in exported(source, folder).items()}
    here = {name: path.name for name, path in written.paths.items()}
    write_json(folder / RECORD, {"adapter": adapter_identity(source), "targets": kept | here})
    paths = {name: {"path": str(path), "bytes": size_of(path)} for name, path in written.paths.items()}
    return {"targets": paths, "parity": parity}


def adapter_identity(source: Source) -> str:
    """A hash of the adapter's weights: what was exported from it is of this adapter."""
    return fingerprint([known_sha256(path) for path in weights_files(source.adapter)])


def exported(source: Source, folder: Path) -> dict[str, Path]:
    """Targets that lie in a folder of exports and are of the adapter that the run has now."""
    path = folder / RECORD
    record = read_json(path) if path.exists() else {"adapter": None, "targets": {}}
    if record["adapter"] != adapter_identity(source):
        return {}
    return {name: folder / part for name, part in record["targets"].items() if (folder / part).is_dir()}


class Written:
    """The targets as they come about. Merged weights that were not asked for lie in a temporary folder meanwhile."""

    def __init__(self, source: Source, folder: Path, options: Options):
        self.source, self.folder, self.options = source, folder, options
        self.paths: dict[str, Path] = {}
        self.files: dict[str, Path] = {}  # GGUF type → file
        self._temporary: Path | None = None
        self._merged: Path | None = None

    @contextmanager
    def working(self) -> Iterator[None]:
        """Remove afterwards what was only a step on the way."""
        try:
            yield
        finally:
            if self._temporary is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)

    def adapter(self) -> None:
        write_adapter(self.source, self.folder / "adapter")
        self.paths["adapter"] = self.folder / "adapter"

    def merged(self) -> None:
        o = self.options
        write_merged(self.source, self.folder / "merged", o.dtype, o.base, o.dequantise)
        self.paths["merged"] = self._merged = self.folder / "merged"

    def merged_weights(self) -> Path:
        """Merged weights in 16 bit: the target's where it is one, else a temporary folder's."""
        if self._merged is None or (self._temporary is None and self.options.dtype == "float32"):
            self._temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=".merged."))
            self._merged = self._temporary / "merged"
            write_merged(self.source, self._merged, None, self.options.base, self.options.dequantise)
        return self._merged

    def int8(self) -> None:
        self._int8("int8", dynamic=False)

    def int8_dynamic(self) -> None:
        self._int8("int8_dynamic", dynamic=True)

    def _int8(self, name: str, dynamic: bool) -> None:
        path = self.folder / name
        dtype = computing_dtype(self.source.profile.model)
        write_int8(self.merged_weights(), path, self.source.tokenizer(), dtype, dynamic)
        self.paths[name] = path

    def gguf(self) -> None:
        self.files = write_gguf(
            self.merged_weights(), self.folder / "gguf", self.name, self.log, self.options.gguf_types
        )
        self.paths["gguf"] = self.folder / "gguf"

    def ollama(self) -> None:
        sampling, context = self.source.profile.evaluation.sampling, context_of(self.source)
        kind = next(kind for kind in OF_OLLAMA if kind in self.options.gguf_types)
        if kind in self.files:
            write_ollama(self.files[kind], self.folder / "ollama", sampling, context)
        else:
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".gguf.") as temporary:
                made = write_gguf(self.merged_weights(), Path(temporary), self.name, self.log, (kind,))
                write_ollama(made[kind], self.folder / "ollama", sampling, context)
        self.paths["ollama"] = self.folder / "ollama"
        if "gguf" not in self.paths:
            self.files = {kind: self.folder / "ollama" / f"{self.name}-{kind}.gguf"}

    @property
    def log(self) -> Path:
        """What the libraries and programs say."""
        return self.folder / LOG

    @property
    def name(self) -> str:
        """Of the model, in file names: the base's, tuned."""
        return f"{Path(self.source.profile.model.name).name}-tuned"


# --- the check ----------------------------------------------------------------------------------------------------------


def check_target(written: Written) -> Parity:
    """Every target that was written against the reference; see ``parity``. The verdict of all is ``broken`` if one's is."""
    source, options = written.source, written.options
    evaluation = source.profile.evaluation
    settings = greedy(evaluation, options.prompts)
    # What is merged without rounding is compared without rounding: in 16 bit even the same sum has other last digits.
    dtype = "float32" if options.dtype == "float32" else computing_dtype(source.profile.model)
    tokenizer = load_tokenizer(source.profile.model)  # of the base: what the run trained and measured with

    def local(model: PreTrainedModel, own: PreTrainedTokenizerBase, name: str) -> Measured:
        return measure(Transformers(_placed(model), own, evaluation.batch_size, evaluation.workers), name, settings)

    model = load_base(source, dtype, base=options.base, dequantise=options.dequantise)
    base = local(model, tokenizer, "the base")
    reference = local(_tuned(source, model), tokenizer, "the reference, the tuned model")
    del model
    targets: dict[str, Compared] = {}
    for name, path in written.paths.items():
        if name == "adapter":
            own = load_base(source, dtype, in_4bit=source.in_4bit, base=None if source.in_4bit else options.base)
            found = local(with_adapter(own, path), _tokenizer(path), name)
            targets[name] = compare_replies(reference, found, base, exact=not source.in_4bit)
        elif name in ("merged", "int8", "int8_dynamic"):
            found = local(load_exported(path, dtype if name == "merged" else None), _tokenizer(path), name)
            targets[name] = compare_replies(
                reference, found, base, exact=name == "merged" and options.dtype == "float32"
            )
    for kind, file in written.files.items():
        context = context_of(source)
        arguments = ["--raw", "--context", str(context), "--parallel", str(SLOTS), "--threads", "1"]
        with llama_server(file, written.log, arguments) as address:
            engine: ExportEngine = LlamaCpp(address, tokenizer, SLOTS)
            targets[f"gguf {kind}"] = compare_replies(reference, measure(engine, f"gguf {kind}", settings), base)
    broken = any(target["verdict"] == "broken" for target in targets.values())
    return {
        "prompts": len(reference.items["thinking"]),
        "dtype": dtype,
        "base": plain(base),
        "reference": plain(reference),
        "targets": targets,
        "verdict": "broken" if broken else "as measured",
    }


def context_of(source: Source) -> int:
    """Tokens that a request to a server may have, prompt and reply: what the model has, at most 4,096."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base_location(source.profile.model), revision=source.profile.model.revision)
    return min(int(getattr(config, "max_position_embeddings", 4096)), 4096)


def _tuned(source: Source, model: PreTrainedModel) -> PreTrainedModel:
    if source.method in OF_PEFT:
        return with_adapter(model, source.adapter)

    return load_adapter(model, source.adapter)


def _tokenizer(path: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def _placed(model: PreTrainedModel) -> PreTrainedModel:
    """On the GPU where there is one, unless it is there already."""
    import torch

    if torch.cuda.is_available() and model.device.type == "cpu":
        return model.to("cuda")
    return model
