"""TRL's trainers of a second stage: DPO, KTO and ORPO on pairs that are tokenised already, and GRPO.

TRL's own preparation of pairs would render and tokenise each pair once more: without the mode, so that a non-thinking answer
would be trained after the thinking prompt; cut at ``max_length``; and, in ORPO, with loss on the prompt. The first three
classes take rows ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` (from ``ChatFormat.answer_ids``) as they are. All of them
stop at a bad loss. Import this module after unsloth, which on a GPU replaces parts of TRL.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # of ORPO and rollout_func; TRL's version is pinned here

from trl import DPOTrainer, GRPOTrainer, KTOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.utils import add_fused_lm_head

from pipeline.training.trainer import StopsInTime, memory_explained

if TYPE_CHECKING:
    from datasets import Dataset


ALMOST_CERTAIN = 1e-5  # nats a token below certainty


class _OneAdapter(StopsInTime):
    section = "preference"

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the model as it was at the start."""
        return True

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

    @property
    def _rows(self) -> int:
        return int(self.args.per_device_train_batch_size) // 2  # the profile counts pairs

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
        whole = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        add_fused_lm_head(whole, outputs=("log_probs", "mean_logits"))

    @property
    def needs_reference(self) -> bool:
        return False

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        prompt = feature["prompt_ids"]
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side in ("chosen", "rejected"):
            ids = prompt + feature[f"{side}_ids"]
            row |= {f"{side}_input_ids": ids, f"{side}_attention_mask": [1] * len(ids)}
            row[f"{side}_labels"] = [-100] * len(prompt) + feature[f"{side}_ids"]
        return row

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """As TRL's, with the log-probability of each token taken in chunks, never of all logits at once (as TRL's DPO does).

        TRL's own keeps the logits of both answers in the model's precision and copies them to float32: 2 × rows × tokens ×
        vocabulary numbers, 18.5 GiB a copy for 32 rows of 1,024 tokens of Qwen3. In bfloat16 a model that is 0.998 sure of
        each token of an answer would have the log-probability 0.

        Returns:
            Mean log-probability of a token of the chosen and of the rejected answers, [pairs] each; the mean logit at their
            tokens, [tokens] each, for TRL's log; the loss of the chosen ones on their own, a scalar.
        """
        both = self.concatenated_inputs(batch, padding_value=self.padding_value, device=self.accelerator.device)
        ids, mask = both["concatenated_input_ids"], both["concatenated_attention_mask"]
        answers = both["concatenated_labels"][:, 1:] != -100
        chosen = len(batch["chosen_labels"])
        labels = ids.masked_fill(mask == 0, -100)
        if not self.loss_on_prompt:
            labels = both["concatenated_labels"]
        outputs = model(ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        tokens, logits = outputs.log_probs.float(), outputs.mean_logits
        means = (tokens * answers).sum(1) / answers.sum(1)
        counted = labels[:chosen, 1:] != -100
        loss = -(tokens[:chosen] * counted).sum() / counted.sum()
        logits = [logits[:chosen][answers[:chosen]], logits[chosen:][answers[chosen:]]]
        return means[:chosen], means[chosen:], *logits, loss

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

    @property
    def needs_reference(self) -> bool:
        return bool(self.args.beta)

    def _memory_advice(self) -> list[str]:
        advice = []
        if self._rows % 2 == 0:
            advice.append(f"grpo.gradient_accumulation_steps={2 * self.args.gradient_accumulation_steps}")
        if not self.args.gradient_checkpointing:
            advice.append("training.gradient_checkpointing=true")
        return [*advice, self._shorter_replies()]

    def _shorter_replies(self) -> str:
        return f"grpo.max_new_tokens={max(1, self.args.max_completion_length // 2)}"

    def replies_explained(self, batch_size: int) -> AbstractContextManager[None]:
        """While replies are made: say what to lower where memory does not suffice.

        Args:
            batch_size: prompts at a time, ``evaluation.batch_size``.
        """
        smaller = [f"evaluation.batch_size={batch_size // 2}"] if batch_size > 1 else []
        what = f"{batch_size} replies at a time at step {self.state.global_step + 1}"
        return memory_explained(what, lambda: [*smaller, self._shorter_replies()])

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
