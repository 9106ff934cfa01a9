"""Unsloth: rows as text through the chat template, as its notebooks do it, or as tokens; then its trainer (see runner_io)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import unsloth  # noqa: F401  first: it changes the others
from datasets import Dataset
from runner_io import run, unpadded
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer
from unsloth.chat_templates import train_on_responses_only


def prepare(job: dict[str, Any], task: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of token ids and labels."""
    folder = Path(task["folder"])
    settings = dict(task["settings"])
    responses = settings.pop("train_on_responses_only", None)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if settings.pop("form", "text") == "tokens":
        dataset = Dataset.from_list([row["ours"] for row in task["rows"]])
    else:
        texts = [
            tokenizer.apply_chat_template(row["messages"], tools=row["tools"] or None, tokenize=False)
            for row in task["rows"]
        ]
        dataset = Dataset.from_dict({"text": texts})
    config = SFTConfig(
        output_dir=str(folder / "out"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        fp16=False,
        dataset_text_field="text",
        dataset_num_proc=1,
        max_length=job["max_length"],
        per_device_train_batch_size=8,
        **settings,
    )
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 64}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **shape, **heads))
    trainer = SFTTrainer(model, args=config, train_dataset=dataset, processing_class=tokenizer)
    if responses is not None:
        trainer = train_on_responses_only(trainer, **responses)
    made: list[Any] = []
    for row in trainer.train_dataset:
        made += unpadded(
            trainer.data_collator([{n: row[n] for n in row if n in ("input_ids", "labels", "attention_mask")}])
        )
    return made


if __name__ == "__main__":
    run(["unsloth", "trl", "transformers"], prepare)
