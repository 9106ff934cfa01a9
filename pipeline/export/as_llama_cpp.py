"""Is a model folder that was made of a GGUF file the model in that file? llama.cpp, which reads the file itself, is asked.

Two questions: does it turn the same texts into the same tokens, all of them; and does it expect the same next token, with nearly
the same probabilities? llama.cpp computes a quantised file with 8-bit activations, so those are never quite equal.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.export.engines import LlamaCpp
from pipeline.export.processes import llama_server
from pipeline.export.requirements import require_packages
from pipeline.model.hub.compare import TEXTS
from pipeline.model.hub.pieces import opened

# Beside the texts of `models compare`: blanks, digits, code, signs, letters outside Latin, what is no letter. Nothing that
# Unicode's normal form C changes: Qwen's tokenizer changes it first, llama.cpp does not.
MORE_TEXTS = (
    "  two spaces,\ttab\n\nand lines\n   three",
    "12345 + 67,890 = 80235; 3.14159",
    "{'a': x**2}  # 4 spaces\n    return",
    "I'll say: they've, we're, it's, don't!",
    "Die Straße überquert man bei Grün, nicht wahr? ¿Cuántos años tienes?",
    "Привет, мир! 今日は。 שלום",
    "🙂 ½ é \xa0x \x01",
)
PLACES = (0.25, 0.5, 0.75)  # of a text, where the next token is asked for
LIKELIEST = 10  # next tokens that are compared at a place
CONTEXT = 512  # tokens
# In nats. Right conversions had 0.000 to 0.001 in 16 bit and 0.019 to 0.069 quantised, deliberate faults 0.247 and more
# (docs/real_weights.md).
BOUNDS = {"exact": 0.02, "quantised": 0.15}
EXACT = {"F32", "F16", "BF16"}  # kinds of stored weights


def require_llama_cpp() -> None:
    """Fail before long work where llama.cpp is not installed.

    Raises:
        UserError: with the command that installs it.
    """
    require_packages("Comparing a converted GGUF file with llama.cpp", "xllamacpp")


def same_model(file: Path, folder: Path) -> dict[str, Any]:
    """Compare a folder with the GGUF file that it was made of.

    Returns:
        ``tokens``: of all texts, all of them equal; ``places``: where the next token was asked for; ``same_top``: part of them
        with the same likeliest token; ``difference``: mean difference of the log-probabilities of llama.cpp's ten likeliest
        tokens, in nats, weighted by llama.cpp's probabilities.

    Raises:
        UserError: llama.cpp is not installed or cannot load the file; other tokens; or probabilities that are too far apart.
    """
    from transformers import AutoTokenizer

    require_llama_cpp()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as temporary:
        log = Path(temporary) / "llama.cpp.log"
        with llama_server(file, log, ["--context", str(CONTEXT), "--parallel", "1"]) as address:
            server = LlamaCpp(address, tokenizer, 1)
            rows = _same_tokens(server, tokenizer, file)
            prompts = [row[: max(1, int(len(row) * place))] for row in rows[: len(TEXTS)] for place in PLACES]
            asked = [(prompt, _likeliest(server, prompt)) for prompt in prompts]
    places = [(prompt, known) for prompt, known in asked if known]
    if not places:
        raise UserError(f"llama.cpp names no probabilities for {file.name}; is xllamacpp the wanted version?")
    same, difference = _compared(folder, places)
    bound = BOUNDS["exact" if {tensor.tensor_type.name for tensor in opened(file).tensors} <= EXACT else "quantised"]
    found = {
        "tokens": sum(map(len, rows)),
        "places": len(places),
        "same_top": same / len(places),
        "difference": difference,
    }
    if difference > bound:
        raise UserError(
            f"The model made of {file.name} is not the model in it: its probabilities of the next token are {difference:.2f} "
            f"nats from those of llama.cpp, {bound} are allowed, and the likeliest token is the same at {same} of {len(places)} "
            "places. transformers reads this architecture in another way; take the model's safetensors from a hub."
        )
    return found


def same_text(found: dict[str, Any]) -> str:
    """A comparison in words."""
    return (
        f"as llama.cpp reads the file: all {found['tokens']} tokens of the sample texts are the same; the likeliest next token "
        f"is the same at {found['same_top']:.0%} of {found['places']} places, its log-probabilities differ by "
        f"{found['difference']:.3f} nats"
    )


def _same_tokens(server: LlamaCpp, tokenizer: Any, file: Path) -> list[list[int]]:
    """The tokens of all texts, with what is put before a text; the first difference is an error."""
    control = " ".join(f"{token} a" for token in list(tokenizer.get_added_vocab())[:5])
    rows = []
    for text in (*TEXTS, *MORE_TEXTS, control):
        for special in (False, True):
            ours = list(tokenizer(text, add_special_tokens=special)["input_ids"])
            body = {"content": text, "add_special": special, "parse_special": True}
            theirs = list(server.call("/tokenize", body)["tokens"])
            if ours != theirs:
                shorter = min(len(ours), len(theirs))
                place = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
                one, two = (tokenizer.decode(ids[place : place + 1]) for ids in (ours, theirs))
                raise UserError(
                    f"The tokenizer made of {file.name} is not the one in it: of {text!r}, token {place} is {one!r}, and "
                    f"{two!r} for llama.cpp. Take the model's own tokenizer.json from a hub."
                )
        rows.append(ours)
    return rows


def _likeliest(server: LlamaCpp, prompt: list[int]) -> dict[int, float]:
    """llama.cpp's likeliest next tokens with their log-probabilities, before any sampling; none where the likeliest one ends
    within a character, as the server then says nothing."""
    body = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": LIKELIEST, "cache_prompt": False}
    answers = server.call("/completion", body).get("completion_probabilities", [])
    return {entry["id"]: entry["logprob"] for answer in answers for entry in answer["top_logprobs"]}


def _compared(folder: Path, places: list[tuple[list[int], dict[int, float]]]) -> tuple[int, float]:
    """Places with the same likeliest token, and the weighted difference of the log-probabilities."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    same, differences, weight = 0, 0.0, 0.0
    for prompt, known in places:
        with torch.inference_mode():
            ours = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], dim=-1)
        same += int(ours.argmax()) == max(known, key=known.__getitem__)
        their = torch.tensor(list(known.values()))
        apart = (ours[list(known)] - their).abs()
        differences += float((their.exp() * apart).sum())
        weight += float(their.exp().sum())
    return same, differences / weight
