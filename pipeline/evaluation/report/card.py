"""``model_card.md``: what a hub shows of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import yaml

from pipeline.core.hubs import HUBS
from pipeline.core.modes import MODES, Mode
from pipeline.evaluation.report.compare import changes
from pipeline.evaluation.report.page import page_environment, template_context
from pipeline.evaluation.report.schema import modes_measured
from pipeline.evaluation.report.words import public_name, table
from pipeline.settings import LORA_METHODS, PROFILES, SamplingTable, load_profile

PROMPT_ROOM = 512  # tokens that the card's max_seq_length leaves for the prompt


WHAT = {  # the tuned weights are, by method
    "full": "All weights, fine-tuned, of",
    "lora_attention_full": "A LoRA adapter, and attention matrices trained in full, for",
    "adapter": "Bottleneck adapters for",
    "prefix": "A prefix of keys and values for",
    "prompt": "Virtual tokens before the prompt for",
    "ia3": "(IA)³ factors for",
}


def decoding_of(sampling: SamplingTable, modes: Sequence[Mode] = MODES) -> dict[str, dict[str, Any]]:
    """Each mode's decoding as arguments of transformers' ``generate``."""
    decoding: dict[str, dict[str, Any]] = {}
    for mode in modes:
        settings = getattr(sampling, mode).model_dump()
        greedy = settings["temperature"] == 0
        drawn = () if greedy else ("temperature", "top_p", "top_k", "min_p")
        keys = (*drawn, "repetition_penalty", "max_new_tokens")
        decoding[mode] = {"do_sample": not greedy, **{key: settings[key] for key in keys}}
    return decoding


def hub_datasets(manifest: Mapping[str, Any]) -> list[str]:
    """Ids of the hub datasets of which the mix holds rows, from the mix's manifest; local and generated rows have none."""
    rows = {source["name"]: source["rows"] for source in manifest["sources"]}
    used = (source for source in manifest["recipe"]["sources"] if rows[source["name"]])
    return list(dict.fromkeys(source["path"] for source in used if source["source"] in HUBS))


def model_card(
    report: Mapping[str, Any],
    *,
    licence: str = "apache-2.0",
    sampling: SamplingTable | None = None,
    datasets: Sequence[str] = (),
    front: Mapping[str, Any] = MappingProxyType({}),
    usage: str | None = None,
    sections: str = "",
) -> str:
    """The card in the form of the Hugging Face hub: YAML front matter, then Markdown.

    Args:
        report: a valid report.
        licence, sampling, datasets: see ``write_report``.
        front: front matter that stands in the place of the adapter's, or beside it.
        usage: of an exported form: Markdown in the place of the section on how to load and ask the adapter.
        sections: more Markdown, between the results and the usage.
    """
    profile = report["run"]["profile"]
    method = report["training"].get("method") or "lora"
    if sampling is None and profile in {path.stem for path in PROFILES.glob("*.yaml")}:
        sampling = load_profile(profile).evaluation.sampling
    matter = {
        "base_model": public_name(report["run"]["model"]),
        "base_model_relation": "finetune" if method == "full" else "adapter",
        "library_name": "peft" if method not in ("full", "adapter") else "transformers",
        "pipeline_tag": "text-generation",
        "license": licence,
        "tags": ["unsloth", "trl", "sft", "lora" if method in LORA_METHODS else method, "hybrid-reasoning"],
    }
    if datasets:
        matter["datasets"] = list(datasets)
    decoding, room = {}, None
    if sampling is not None:
        decoding = decoding_of(sampling, modes_measured(report))
        room = PROMPT_ROOM + max(d["max_new_tokens"] for d in decoding.values())
    return (
        page_environment(escape=False)
        .get_template("model_card.md.j2")
        .render(
            **template_context(report),
            what=WHAT.get(method, "A LoRA adapter for"),
            method=method,
            in_4bit=report["training"].get("method") in (None, "qlora"),
            front=yaml.safe_dump(matter | dict(front), sort_keys=False, allow_unicode=True).strip(),
            scores=table(report, escape=True),
            decoding=decoding,
            room=room,
            prompt_room=PROMPT_ROOM,
            fell=[c for c in changes(report) if c.verdict == "fell"],
            usage=usage,
            sections=sections,
            smallest=min(
                r["n"] for m in modes_measured(report) for r in report["evaluation"]["tuned"][m]["benchmarks"].values()
            ),
        )
    )
