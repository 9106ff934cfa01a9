"""``README.md`` of an exported folder: the run's model card, with how to load this form of it, its check, and the licences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.files import write_text
from pipeline.core.modes import MODES, Mode
from pipeline.core.templates import environment
from pipeline.evaluation.report.card import decoding_of, hub_datasets, model_card
from pipeline.evaluation.report.words import cell_text, label_of, public_name
from pipeline.export.ollama import parameters
from pipeline.export.source import Source
from pipeline.model.dtype import computing_dtype
from pipeline.settings import SamplingTable, locate

QUESTION = "What is 17 + 25?"
FRONT: dict[str, dict[str, Any]] = {  # what the hub calls the relation to the base
    "adapter": {},
    "merged": {"base_model_relation": "finetune", "library_name": "transformers"},
    "int8": {"base_model_relation": "quantized", "library_name": "transformers"},
    "int8_dynamic": {"base_model_relation": "quantized", "library_name": "transformers"},
    "gguf": {"base_model_relation": "quantized", "library_name": "gguf"},
    "ollama": {"base_model_relation": "quantized", "library_name": "gguf"},
}


def base_licence(source: Source) -> str:
    """The base's licence, from the card in its folder; empty where that says none."""
    settings = source.profile.model
    card = locate(settings.name) / "README.md"
    if settings.source != "local" or not card.is_file():
        return ""
    head = card.read_text(encoding="utf-8", errors="replace").split("---")
    try:
        front = yaml.safe_load(head[1]) if len(head) > 2 else None
    except yaml.YAMLError:
        return ""
    return str(front.get("license") or "") if isinstance(front, dict) else ""


def licences(source: Source) -> str:
    """Markdown: under which licence base and data stand."""
    name = public_name(source.profile.model.name)
    lines = [
        "## Licences",
        "",
        "| what | licence |",
        "|---|---|",
        f"| base: {cell_text(name)} | {cell_text(base_licence(source) or 'see its own card')} |",
    ]
    for entry in source.manifest["sources"]:
        lines.append(f"| data: {cell_text(entry['name'])} | {cell_text(entry['licence'] or 'see its own card')} |")
    return "\n".join(lines)


def checked(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: what the check of this form found; empty where there was none."""
    if not rows:
        return ""
    lines = [
        "## Checked after the export",
        "",
        "Greedy replies to the same questions, against the tuned model in 16 bit with PEFT; change in brackets.",
        "",
        "| form | mode | questions | same replies | accuracy | mode fidelity | verdict |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for name, found in rows.items():
        for mode, row in found["modes"].items():
            accuracy = f"{row['accuracy']:.3f} ({row['accuracy_change']:+.3f})"
            fidelity = f"{row['fidelity']:.3f} ({row['fidelity_change']:+.3f})"
            lines.append(
                f"| {name} | {label_of(mode)} | {row['prompts']} | {row['same_replies']:.3f} | {accuracy} | {fidelity} | "
                f"{found['verdict']} |"
            )
    return "\n".join(lines)


def usage(source: Source, target: str, name: str, files: Sequence[str], folder: str) -> str:
    """Markdown: how to load this form and ask it in both modes."""
    sampling = source.profile.evaluation.sampling
    template = environment(Path(__file__).parent / "templates", escape=False, label=label_of).get_template(
        "usage.md.j2"
    )
    text = template.render(
        target=target,
        base=public_name(source.profile.model.name),
        folder=folder,
        name=name,
        files=list(files),
        in_4bit=source.in_4bit,
        dtype=computing_dtype(source.profile.model),
        modes=MODES,
        decoding=decoding_of(sampling),
        request=lambda switch, mode: json.dumps(request(sampling, switch, mode, name)),
    )
    return text.strip()


def request(sampling: SamplingTable, switch: str, mode: Mode, name: str) -> dict[str, Any]:
    """A request to a server in one mode: ``think`` and ``options`` as Ollama has them, else OpenAI's fields and llama.cpp's."""
    options = parameters(getattr(sampling, mode))
    body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": QUESTION}]}
    thinking = mode == "thinking"
    if switch == "think":
        return body | {"think": thinking, "stream": False, "options": options}
    options["max_tokens"] = options.pop("num_predict")
    return body | {"chat_template_kwargs": {"enable_thinking": thinking}, **options}


def write_card(source: Source, target: str, path: Path, name: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the card into an exported folder.

    Args:
        rows: of the check, those of this target; see ``parity.compare``.
    """
    files = sorted(file.name for file in path.glob("*.gguf"))
    text = model_card(
        source.report,
        licence=base_licence(source) or "apache-2.0",
        sampling=source.profile.evaluation.sampling,
        datasets=hub_datasets(source.manifest),
        front=FRONT[target],
        usage=usage(source, target, name, files, path.name),
        sections="\n\n".join(part for part in (checked(rows), licences(source)) if part),
    )
    write_text(path / "README.md", text)
