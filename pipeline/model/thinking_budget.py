"""A thinking budget: after so many tokens of reasoning the thought is closed, and the model has to answer.

The way is that of Qwen3's authors (technical report, section 4.7; "Thinking budget" of their documentation): where the thought is
still open when the budget is spent, a sentence that says so and the closing tag are put in the place of what the model would have
written, and it goes on from there. In decoding that is a logits processor, so it works in batches; until the budget is spent, the
reply is token for token that without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError
from pipeline.model.thinking_style import thinking_style

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

SENTENCE = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
)
_TAIL = 16  # tokens at the end of a prompt, among which an opening tag would be


class Budget:
    """What it takes to stop thinking with one tokenizer.

    Args:
        tokens: of reasoning, from the opening tag on; 0: none at all.
        sentence: said before the closing tag; "": nothing is said.

    Raises:
        UserError: the model has no thinking mode, or the chat template is unknown; the budget is negative.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: int, sentence: str = SENTENCE):
        if tokens < 0:
            raise UserError(f"A thinking budget is a number of tokens from 0 on; given: {tokens}.")
        self.style = thinking_style(tokenizer)
        self.style.require("thinking")
        self.tokenizer, self.tokens = tokenizer, tokens
        self.opening = self._ids(self.style.opening)
        self.text = sentence + (self.style.closing or self.style.tags.close)
        self.closing = self._ids(self.text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def opened_by(self, prompt: Sequence[int]) -> str:
        """The opening that the prompt ends with, so that the reply goes on inside the thought; else nothing."""
        return self.style.opened(self._text(prompt[-_TAIL:]))

    def due(self, opened: str) -> int:
        """Generated tokens after which the budget is spent."""
        return self.tokens + (0 if opened else len(self.opening))

    def is_thinking(self, opened: str, written: str) -> bool:
        """Whether a reply that goes as far as ``written`` is inside its thought."""
        text, tags = opened + written, self.style.tags
        return text.lstrip().startswith(tags.open) and tags.close not in text

    def require_room(self, max_new_tokens: int) -> None:
        """Raise ``UserError`` where the limit of a reply leaves nothing for an answer after the budget."""
        needed = self.due("") + len(self.closing)
        if needed >= max_new_tokens:
            raise UserError(
                f"A thinking budget of {self.tokens} tokens and the {len(self.closing)} that close the thought leave no room for "
                f"an answer in {max_new_tokens} tokens. Raise evaluation.sampling.thinking.max_new_tokens to more than {needed}, "
                "or lower evaluation.thinking_budget."
            )


class StopThinking:
    """A logits processor that writes the end of the thought where the budget is spent.

    Args:
        prompts: of the rows. starts: the columns in which their replies begin. ends: ids that end a reply.
    """

    def __init__(self, budget: Budget, prompts: Sequence[Sequence[int]], starts: Sequence[int], ends: Sequence[int]):
        self.budget, self.starts, self.ends = budget, starts, set(ends)
        self.opened = [budget.opened_by(prompt) for prompt in prompts]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """(batch, length so far), (batch, vocabulary) → scores of the same shape."""
        for row, (opened, start) in enumerate(zip(self.opened, self.starts, strict=True)):
            due = self.budget.due(opened)
            place = input_ids.shape[1] - start - due
            if not 0 <= place < len(self.budget.closing):
                continue
            written = input_ids[row, start : start + due].tolist()
            if not self.ends & set(written) and self.budget.is_thinking(opened, self.budget._text(written)):
                scores[row] = float("-inf")
                scores[row, self.budget.closing[place]] = 0.0
        return scores
