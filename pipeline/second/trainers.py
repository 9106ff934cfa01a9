"""TRL's trainers of a second stage: DPO, KTO and ORPO on pairs that are tokenised already, and GRPO.

TRL's own preparation of pairs would render and tokenise each pair once more: without the mode, so that a non-thinking answer
would be trained after the thinking prompt; cut at ``max_length``; and, in ORPO, with loss on the prompt. The first three
classes take rows ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` (from ``ChatFormat.answer_ids``) as they are. All of them
stop at a bad loss. Import this module after unsloth, which on a GPU replaces parts of TRL.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # of ORPO and rollout_func; TRL's version is pinned here

from trl import DPOTrainer, GRPOTrainer, KTOTrainer
from trl.experimental.orpo import ORPOTrainer

from pipeline.training.trainer import StopsInTime

if TYPE_CHECKING:
    from datasets import Dataset


ALMOST_CERTAIN = 1e-5  # nats a token below certainty


class _OneAdapter(StopsInTime):
    section = "preference"

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Leave the frozen reference out of a checkpoint.

        Where a checkpoint holds a second adapter in a folder of its own, transformers' Trainer reads that one back alone, and
        training would go on from the start with the optimizer of a later step. The reference is made anew from the start.
        """
        super()._save(output_dir, *args, **kwargs)  # type: ignore[misc]
        shutil.rmtree(Path(output_dir or self.args.output_dir) / "ref", ignore_errors=True)  # type: ignore[attr-defined]


class DPO(_OneAdapter, DPOTrainer):
    """DPOTrainer on tokenised pairs."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


class KTO(_OneAdapter, KTOTrainer):
    """KTOTrainer on tokenised pairs that ``unpaired`` has taken apart."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


class ORPO(_OneAdapter, ORPOTrainer):
    """ORPOTrainer on tokenised pairs, with the loss of the chosen answer on the answer alone.

    TRL puts it on the prompt too, and there stands the empty think block of the non-thinking mode, which no thinking prompt
    may learn to write (see ``pipeline.data.chat_format``).

    Args:
        loss_on_prompt: as TRL has it, to be measured.
    """

    def __init__(self, *args: Any, loss_on_prompt: bool = False, **kwargs: Any):
        self.loss_on_prompt = loss_on_prompt
        super().__init__(*args, **kwargs)

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        prompt = feature["prompt_ids"]
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side in ("chosen", "rejected"):
            ids = prompt + feature[f"{side}_ids"]
            row |= {f"{side}_input_ids": ids, f"{side}_attention_mask": [1] * len(ids)}
            row[f"{side}_labels"] = [-100] * len(prompt) + feature[f"{side}_ids"]
        return row

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> Any:
        chosen_logps, *others = super().concatenated_forward(model, batch)
        if not self.loss_on_prompt:
            # The mean log-probability of each answer, weighted by its length: the mean over all tokens of all answers.
            tokens = (batch["chosen_labels"][:, 1:] != -100).sum(dim=1)
            others[3] = -(chosen_logps * tokens).sum() / tokens.sum()
        return chosen_logps, *others

    @staticmethod
    def get_batch_logps(logits: Any, *args: Any, **kwargs: Any) -> Any:
        """In float32: in bfloat16 a model that is 0.998 sure of each token of an answer has the log-probability 0."""
        return ORPOTrainer.get_batch_logps(logits.float(), *args, **kwargs)

    def odds_ratio_loss(self, policy_chosen_logps: Any, policy_rejected_logps: Any) -> Any:
        """The odds of an answer that is certain are infinite, and their gradient is no number: it may be almost certain."""
        chosen, rejected = (logps.clamp(max=-ALMOST_CERTAIN) for logps in (policy_chosen_logps, policy_rejected_logps))
        return super().odds_ratio_loss(chosen, rejected)

    def _batch_ids(self, inputs: Any) -> torch.Tensor:
        ids: torch.Tensor = inputs["chosen_input_ids"]
        return ids


class GRPO(_OneAdapter, GRPOTrainer):
    """GRPOTrainer; it makes its batches itself, so there is none to show when a loss is bad."""

    section = "grpo"

    def _batch_ids(self, inputs: Any) -> None:
        return None


def unpaired(pairs: Dataset, batch_size: int, seed: int) -> Dataset:
    """Pairs as KTO takes them: each answer a row of its own with its label, in random order.

    ``KL_completion_ids`` is the answer of the row before in the same batch, from which KTO estimates how far the model has
    moved (Ethayarajh et al. 2024, section 4.1). KTOTrainer reads rows in order, so that they stay together.

    Args:
        batch_size: rows a batch. Rows that do not fill a last one are left out.
    """
    from datasets import Dataset

    rows = [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[f"{side}_ids"], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [rows[i] for i in order[: len(rows) // batch_size * batch_size]]
    for start in range(0, len(shuffled), batch_size):
        batch = shuffled[start : start + batch_size]
        for row, before in zip(batch, [batch[-1], *batch[:-1]], strict=True):
            row["KL_completion_ids"] = before["completion_ids"]
    return Dataset.from_list(shuffled)
