"""Hand a training over: a folder with data and configuration that another framework trains from.

In: a profile, its mix, a target, a number of GPUs. Out, in the folder:

    data/ | tokenized/ | train.jsonl, validation.jsonl     the rows, in the form that the target reads without changing them
    dataset_info.json                                      llama-factory: names of the data, for its web page
    train.yaml                                             the training, equal in meaning
    zero2.json zero3.json                                  for several GPUs
    fsdp2.yaml | train_fsdp2.yaml                          the same, where it has no settings of its own for it (ms-swift has)
    left_out.jsonl                                         rows that the form cannot carry, each with the reason
    README.md                                              the command; what is not the same there
    handover.json                                          all of it as data; written last
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.core.errors import UserError, nearest
from pipeline.core.files import write_json, write_jsonl, write_text
from pipeline.data.chat_format import IGNORE_INDEX, ChatFormat
from pipeline.data.mix import Mix
from pipeline.handover import configs
from pipeline.handover.frameworks import framework
from pipeline.handover.plan import NOT_CARRIED, HandoverPlan, plan_handover
from pipeline.settings import Profile

if TYPE_CHECKING:
    from datasets import Dataset

CONFIGS: dict[str, Callable[[HandoverPlan], dict[str, Any]]] = {
    "trl": configs.trl,
    "llama-factory": configs.llama_factory,
    "ms-swift": configs.ms_swift,
    "axolotl": configs.axolotl,
}
TARGETS = tuple(CONFIGS)
CONFIG, RECORD, LEFT_OUT = "train.yaml", "handover.json", "left_out.jsonl"
CONFIG_FSDP2 = "train_fsdp2.yaml"  # axolotl's


def require_target(name: str) -> None:
    """Raise ``UserError`` where there is no such target."""
    if name not in TARGETS:
        raise UserError(f"There is no target {name!r}.{nearest(name, TARGETS)} Targets: {', '.join(TARGETS)}.")


def handover(profile: Profile, mix: Mix, form: ChatFormat, target: str, folder: Path, gpus: int = 1) -> dict[str, Any]:
    """Write the folder of one target.

    Returns:
        handover.json: target, version, rows, left_out, steps, commands, not_carried.

    Raises:
        UserError: an unknown target, a folder with other files, what the target cannot express (see ``plan_handover``).
    """
    require_target(target)
    if folder.exists() and any(folder.iterdir()) and not (folder / RECORD).exists():
        raise UserError(
            f"{folder} is not empty and holds no hand-over. Choose another --output-dir; nothing was changed."
        )
    training = plan_handover(profile, len(mix.train), gpus)
    (folder / RECORD).unlink(missing_ok=True)
    left_out = [*_write_data(mix.train, "train", target, folder, form)]
    left_out += _write_data(mix.validation, "validation", target, folder, form)
    write_jsonl(folder / LEFT_OUT, left_out)
    if target == "llama-factory":
        _pair_up(folder)
    config = CONFIGS[target](training)
    write_text(folder / CONFIG, _yaml(config))
    if gpus > 1:
        for stage in (2, 3):
            write_json(folder / f"zero{stage}.json", configs.deepspeed(stage))
        if target == "axolotl":
            write_text(folder / CONFIG_FSDP2, _yaml(config | configs.AXOLOTL_FSDP2))
        elif target != "ms-swift":  # its command names settings that ms-swift brings along
            write_text(folder / "fsdp2.yaml", _yaml(configs.fsdp2(training)))
    one = framework(target)
    record = {
        "target": target,
        "package": one.package,
        "version": one.version or "as in requirements.txt",
        "profile": profile.name,
        "fingerprint": mix.manifest["fingerprint"],
        "rows": {"train": len(mix.train), "validation": len(mix.validation)},
        "left_out": len(left_out),
        "gpus": gpus,
        "steps": training.steps,
        "warmup_steps": training.warmup,
        "commands": configs.commands(target, training),
        "not_carried": not_carried(target, training),
    }
    write_text(folder / "README.md", _readme(record))
    write_json(folder / RECORD, record)
    return record


def not_carried(target: str, training: HandoverPlan) -> list[str]:
    """Sentences about what is not the same in the other framework."""
    found = list(NOT_CARRIED)
    if target == "axolotl" and training.accumulation * training.gpus > 1:
        found.append(
            "The loss of a step: axolotl takes the mean of each micro-batch, and then the mean of these, so a token of a short "
            "answer counts more than one of a long answer. With one GPU, a larger micro_batch_size and "
            "gradient_accumulation_steps: 1 give the mean over all tokens."
        )
    if target == "axolotl" and training.warmup == 1:
        found.append("A warm-up of one step: axolotl makes two of it.")
    if target in ("trl", "axolotl") and training.profile.model.source == "modelscope":
        found.append(
            f"{target} does not read from ModelScope: fetch the model (python -m pipeline models fetch NAME --from modelscope) "
            "and put its folder into train.yaml."
        )
    if training.in_4bit and training.gpus > 1:
        found.append(
            "ZeRO-3 and FSDP2 divide the weights, and a base in 4 bit cannot be divided so: take ZeRO-2, or hand over with "
            "model.load_in_4bit=false."
        )
    if training.profile.training.early_stopping_patience:
        found.append("Early stopping (training.early_stopping_patience).")
    if told := training.profile.model.chat_template_kwargs:
        found.append(
            f"The rows are rendered with model.chat_template_kwargs={told}; the model's own chat template there does not know "
            "it. Give it with each request when you serve what was trained."
        )
    if training.profile.lora.plus_lr_ratio:
        found.append("LoRA+ (lora.plus_lr_ratio), which TRL's command line does not have.")
    return found


def _yaml(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


# --- data ---------------------------------------------------------------------------------------------------------------


def _write_data(rows: Dataset, part: str, target: str, folder: Path, form: ChatFormat) -> list[dict[str, Any]]:
    """Write one part of the mix; returns the rows that the form cannot carry."""
    if target == "ms-swift":
        left_out: list[dict[str, Any]] = []
        write_jsonl(folder / f"{part}.jsonl", _texts(rows, part, form, left_out))
        return left_out
    table = rows.remove_columns([name for name in rows.column_names if name not in ("input_ids", "labels")])
    if target != "trl":
        table = table.add_column("attention_mask", [[1] * len(ids) for ids in table["input_ids"]])
    if target == "llama-factory":
        table.save_to_disk(str(folder / "tokenized" / part))
    else:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(folder / "data" / f"{part}.parquet"))
    return []


def _pair_up(folder: Path) -> None:
    """What makes two saved datasets one that is loaded as a whole, and LLaMA-Factory's list of datasets."""
    write_json(folder / "tokenized" / "dataset_dict.json", {"splits": ["train", "validation"]})
    info = {part: {"file_name": f"tokenized/{part}"} for part in ("train", "validation")}
    write_json(folder / "dataset_info.json", info)


def _texts(rows: Dataset, part: str, form: ChatFormat, left_out: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each row as prompt and answer, rendered; the end token is not in it, as the target puts it there, with loss.

    A row whose text does not become the same tokens again goes to ``left_out``: a document that quotes a control token is one.
    """
    tokenizer, end = form.tokenizer, form.style.end
    for number, row in enumerate(rows):
        ids, labels = row["input_ids"], row["labels"]
        start = next(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
        prompt, answer = (
            str(tokenizer.decode(piece, skip_special_tokens=False)) for piece in (ids[:start], ids[start:])
        )
        head = {"part": part, "row": number, "source": row["source"]}
        if not answer.endswith(end):
            left_out.append({**head, "reason": "cut", "detail": f"it does not end with {end}"})
        elif form.encode([prompt])[0] + form.encode([answer])[0] != ids:
            detail = "as text it has other tokens; most often it quotes a control token"
            left_out.append({**head, "reason": "not_as_text", "detail": detail})
        else:
            said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer.removesuffix(end)}]
            yield {"messages": said}


# --- words --------------------------------------------------------------------------------------------------------------


def _readme(record: dict[str, Any]) -> str:
    rows = record["rows"]
    lines = [
        f"# Training with {record['target']}",
        "",
        f"Profile {record['profile']}: {rows['train']:,} rows to train on, {rows['validation']:,} to validate, "
        f"{record['steps']:,} steps, {record['gpus']} GPUs. For {record['package']} {record['version']}.",
        "",
        "Start it in this folder:",
        "",
    ]
    for title, line in record["commands"].items():
        lines += [f"{title}:", "", "```bash", line, "```", ""]
    lines += [
        "The rows are tokens, or text to which no template is put, so the masks are those of the mix. Not the same there:",
        "",
    ]
    lines += [f"- {text}" for text in record["not_carried"]]
    if record["left_out"]:
        lines += ["", f"{record['left_out']:,} rows could not be carried; {LEFT_OUT} names each with the reason."]
    return "\n".join(lines) + "\n"


def handover_text(record: dict[str, Any], folder: Path) -> str:
    """The record for a terminal."""
    rows = record["rows"]
    lines = [
        f"{record['target']}: {folder}",
        f"{rows['train']:,} rows to train on, {rows['validation']:,} to validate; {record['left_out']:,} could not be carried",
        f"{record['steps']:,} steps, {record['warmup_steps']:,} of them warm-up",
    ]
    lines += [f"{title}: {line}" for title, line in record["commands"].items()]
    if "check" in record:
        check = record["check"]
        lines.append(
            check["error"]
            or f"checked by {record['package']} {check['version']}: {check['equal']:,} of {check['rows']:,} rows have "
            "the same tokens with loss"
        )
        lines += [f"  {title}: {text}" for title, text in check.get("several_gpus", {}).items()]
        lines += [f"  row {row['row']}: {row['reason']}" for row in check["different"]]
    return "\n".join([*lines, "not the same there:", *(f"- {text}" for text in record["not_carried"])])
