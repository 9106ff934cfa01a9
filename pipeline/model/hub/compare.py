"""How far apart two folders of one model are, for example its 16-bit original and what a 4-bit file was made to.

Both read the same short texts, and their logits are compared position by position.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError

TEXTS = (
    "The capital of France is Paris. It lies on the river Seine, and about two million people live there.",
    "Question: Tom has 12 apples and buys 7 more. He gives away 4. How many has he now?\nAnswer: 12 + 7 = 19, 19 - 4 = 15.",
    "def fibonacci(n):\n    if n <= 1:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Write a short, friendly letter to your neighbour in which you invite her to dinner on Saturday evening.",
    "La inteligencia artificial cambia el mundo. 人工智能正在改变世界。",
)


def compare_models(first: Path, second: Path) -> dict[str, Any]:
    """Compare the logits of two models with one vocabulary, in float32.

    Returns:
        ``tokens``: positions compared; ``mean_difference``, ``max_difference`` of the log-probabilities of the tokens that
        stand there (in nats), ``kl`` (mean KL divergence of first and second, in nats), ``same_top``: part of the positions
        with the same most probable token; ``loss``: mean negative log-likelihood of each.

    Raises:
        UserError: the tokenizers do not agree on these texts, or the vocabularies differ in size.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = []
    for folder in (first, second):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids.append([list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS])
    if ids[0] != ids[1]:
        raise UserError(f"{first} and {second} turn the same text into different tokens; they are not one model.")
    found = []
    for folder in (first, second):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            found.append([torch.log_softmax(model(torch.tensor([row])).logits[0, :-1], dim=-1) for row in ids[0]])
        del model
    if found[0][0].shape != found[1][0].shape:
        raise UserError(
            f"{first} has {found[0][0].shape[-1]:,} tokens, {second} {found[1][0].shape[-1]:,}; they are not one model."
        )
    a, b = (torch.cat(rows) for rows in found)
    targets = torch.tensor([token for row in ids[0] for token in row[1:]]).unsqueeze(1)
    of_a, of_b = a.gather(1, targets), b.gather(1, targets)
    return {
        "first": str(first),
        "second": str(second),
        "tokens": len(targets),
        "mean_difference": float((of_a - of_b).abs().mean()),
        "max_difference": float((of_a - of_b).abs().max()),
        "kl": float((a.exp() * (a - b)).sum(dim=-1).mean()),
        "same_top": float((a.argmax(dim=-1) == b.argmax(dim=-1)).float().mean()),
        "loss": {"first": float(-of_a.mean()), "second": float(-of_b.mean())},
    }


def text(found: dict[str, Any]) -> str:
    """A comparison in words."""
    return (
        f"over {found['tokens']} tokens the log-probabilities of {found['first']} and {found['second']} differ by "
        f"{found['mean_difference']:.4f} nats on average, by {found['max_difference']:.3f} at most; KL {found['kl']:.4f}; the "
        f"same most probable token at {found['same_top']:.1%}; loss {found['loss']['first']:.3f} and "
        f"{found['loss']['second']:.3f}"
    )
