"""The embedded base model: a small Qwen3-architecture model that this project trains from scratch.

In: a seed. Out: a model folder (config, bf16 safetensors, tokenizer with Qwen3's special tokens and chat template), and
the same model pre-quantised to 4 bit.

    python -m pipeline embedded build --output-dir DIR      # about 15 minutes on two cores
    python -m pipeline embedded build --output-dir DIR --set hidden_size=320 --set heads=6      # another size

The model learns templated chat and simple arithmetic in both modes from ``corpora.base_dialogue``; it never sees the
skill that the fine-tuning corpus teaches. Examples are built by ``chat_format``, so the parity rule holds here too.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from pipeline.core.console import foreign, say
from pipeline.core.files import write_json
from pipeline.data import corpora
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Conversation
from pipeline.settings import Section, apply_overrides, parse

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Qwen3's added tokens in its own order; the flag says whether decoding may skip them ("special").
ADDED_TOKENS = (
    *((f"<|{name}|>", True) for name in ("endoftext", "im_start", "im_end")),
    *((name, False) for name in ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")),
    *((name, False) for name in ("<think>", "</think>")),
)


class BuildSettings(Section):
    """Sizes and training of the base model. The defaults made the shipped model (see models/embedded/build.json)."""

    vocab_size: int = Field(1024, gt=256 + len(ADDED_TOKENS))
    hidden_size: int = Field(128, gt=0)
    intermediate_size: int = Field(512, gt=0)
    layers: int = Field(4, gt=0)
    heads: int = Field(4, gt=0)
    kv_heads: int = Field(2, gt=0)
    head_dim: int = Field(64, gt=0, multiple_of=2)
    dialogues: int = Field(160_000, gt=0)
    steps: int = Field(7_500, gt=200)  # 200 of them warm up
    tokens_per_batch: int = Field(2_048, gt=0)  # padded
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    seed: int = 3407

    @model_validator(mode="after")
    def _check(self) -> BuildSettings:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


def build_settings(overrides: list[str]) -> BuildSettings:
    """The shipped model's settings with overrides, as ``--set`` takes them.

    Raises:
        UserError: a setting that does not exist (names the nearest), or a value that does not fit.
    """
    return parse(BuildSettings, apply_overrides({}, overrides), "embedded build with --set")


def _tokenizer_text(seed: int) -> Iterator[str]:
    for index in range(6_000):
        for message in corpora.base_dialogue(seed, index)["messages"]:
            yield message["content"]
            yield message.get("reasoning_content", "")
    for row in corpora.openmath_like(2_000, seed, arithmetic=0.0):
        yield row["problem"]
        yield row["generated_solution"].replace("<think>", "").replace("</think>", "")


def build_tokenizer(settings: BuildSettings, output_dir: Path) -> None:
    """Train a byte-level BPE tokenizer of Qwen2's kind (digits apart, NFC), with Qwen3's template and tokens; save it.

    Runs in a process of its own: importing unsloth patches transformers, and the base is trained without that.
    """
    import unsloth  # noqa: F401  (before transformers)
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import AddedToken, Qwen2Tokenizer
    from unsloth.chat_templates import get_chat_template

    # Qwen2's published pre-tokenisation pattern.
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size - len(ADDED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(_tokenizer_text(settings.seed), trainer)
    state = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
    )
    tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t, special in ADDED_TOKENS])
    get_chat_template(tokenizer, "qwen3").save_pretrained(output_dir)


def _build_tokenizer_quietly(settings: BuildSettings, output_dir: Path) -> None:
    with foreign(output_dir):  # a process of its own has standard streams of its own
        build_tokenizer(settings, output_dir)


_format: ChatFormat | None = None


def _start_worker(folder: str) -> None:
    global _format
    from transformers import AutoTokenizer

    _format = ChatFormat(AutoTokenizer.from_pretrained(folder))


def _tokenise(job: tuple[int, int, int]) -> list[tuple[list[int], int]]:
    """Examples of the dialogues [start, stop) as (input_ids, length of the prompt)."""
    assert _format is not None
    seed, start, stop = job
    conversations = []
    for index in range(start, stop):
        dialogue = corpora.base_dialogue(seed, index)
        conversations.append(Conversation(dialogue["messages"], dialogue["mode"]))
    rows = []
    for entry in _format.examples(conversations):
        if isinstance(entry, Exception):
            raise entry
        rows += [(e.input_ids, sum(label == -100 for label in e.labels)) for e in entry]
    return rows


def _batches(rows: list[tuple[list[int], int]], settings: BuildSettings) -> Iterator[list[tuple[list[int], int]]]:
    """Endless batches of similar length, ``tokens_per_batch`` padded tokens each, shuffled anew every epoch."""
    import random

    r = random.Random(settings.seed)
    while True:
        order = sorted(rows, key=lambda row: (len(row[0]), r.random()))
        batches, batch = [], []  # type: ignore[var-annotated]
        for row in order:
            if batch and len(row[0]) * (len(batch) + 1) > settings.tokens_per_batch:
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
        r.shuffle(batches)
        yield from batches


def _read_rows(settings: BuildSettings, folder: Path) -> list[tuple[list[int], int]]:
    """The examples as (ids, length of the prompt), tokenised by two processes with the tokenizer in ``folder``."""
    chunk = 2_000
    jobs = [(settings.seed, s, min(s + chunk, settings.dialogues)) for s in range(0, settings.dialogues, chunk)]
    with multiprocessing.get_context("spawn").Pool(2, _start_worker, (str(folder),)) as pool:
        return [row for part in pool.imap(_tokenise, jobs) for row in part]


def _new_model(settings: BuildSettings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.head_dim,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=int(tokenizer.pad_token_id),
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def _optimizer(model: PreTrainedModel, settings: BuildSettings) -> tuple[Any, Any]:
    """AdamW, without decay of norms; and its schedule: linear warm-up, linear decay."""
    import torch

    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )
    warm_up = 200
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm_up, max(0.0, (settings.steps - s) / (settings.steps - warm_up)))
    )
    return optimizer, schedule


def _padded(batch: Sequence[tuple[list[int], int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, (batch, width) each, padded on the right; the prompt carries no loss."""
    import torch

    width = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), width), pad)
    labels = torch.full((len(batch), width), -100)
    for i, (row, prompt) in enumerate(batch):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, prompt : len(row)] = torch.tensor(row[prompt:])
    return ids, labels


def _fit(
    model: PreTrainedModel, batches: Iterator[Any], settings: BuildSettings, max_seconds: float | None
) -> dict[str, Any]:
    """Train; returns ``steps``, ``tokens`` and the smoothed ``final_loss``."""
    import torch

    optimizer, schedule = _optimizer(model, settings)
    # Fused kernels make a step 1.4 times as fast; they need a C++ compiler, and the result does not depend on them much.
    decoder = torch.compile(model.model, dynamic=True) if shutil.which("c++") else model.model
    device = model.device
    tokens, recent, step = 0, 0.0, 0
    begin = time.monotonic()
    model.train()
    for step in range(1, settings.steps + 1):
        ids, labels = _padded(next(batches), model.config.pad_token_id)
        # Right padding and a causal mask: no real token sees padding, so no attention mask is needed.
        with torch.autocast(device.type, dtype=torch.bfloat16):
            hidden = decoder(input_ids=ids.to(device), use_cache=False).last_hidden_state[:, :-1]
            wanted = labels[:, 1:].to(device)
            chosen = wanted != -100
            logits = model.lm_head(hidden[chosen])
        loss = torch.nn.functional.cross_entropy(logits.float(), wanted[chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        recent = 0.98 * recent + 0.02 * loss.item() if step > 1 else loss.item()
        if not math.isfinite(recent):
            raise FloatingPointError(f"loss became {recent} at step {step}")
        elapsed = time.monotonic() - begin
        if step % 100 == 0:
            left = elapsed / step * (settings.steps - step)
            say(f"step {step} loss {recent:.4f} {tokens / elapsed:.0f} tokens/s, {left / 60:.1f} min left")
        if max_seconds and elapsed > max_seconds:
            break
    return {"steps": step, "tokens": tokens, "final_loss": round(recent, 5)}


def train_base(settings: BuildSettings, output_dir: Path, max_seconds: float | None = None) -> dict[str, Any]:
    """Train tokenizer and model from scratch and save both to ``output_dir``.

    Plain AdamW, linear warm-up and decay, bf16 autocast; the loss is on the answers alone. The same settings on the
    same machine give the same weights.

    Returns:
        What was done: settings, steps, examples, tokens, seconds, final loss; also written as ``build.json``.
    """
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(_build_tokenizer_quietly, (settings, output_dir))
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    rows = _read_rows(settings, output_dir)
    say(f"{len(rows)} examples, {sum(len(r[0]) for r in rows)} tokens, {time.monotonic() - started:.0f} s")
    torch.manual_seed(settings.seed)
    model = _new_model(settings, tokenizer).to("cuda" if torch.cuda.is_available() else "cpu")
    trained = _fit(model, _batches(rows, settings), settings, max_seconds)
    model.to(torch.bfloat16)
    model.config.dtype = "bfloat16"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = int(tokenizer.pad_token_id)
    model.save_pretrained(output_dir)
    record = {
        "settings": settings.model_dump(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "examples": len(rows),
        "steps": trained["steps"],
        "tokens": trained["tokens"],
        "seconds": round(time.monotonic() - started),
        "final_loss": trained["final_loss"],
    }
    write_json(output_dir / "build.json", record)
    return record


# What the shipped model must reach before any fine-tuning, on 500 held-out prompts a benchmark and mode.
ACCEPTANCE = {"mode_fidelity": 0.99, "embedded_chat": 0.95}  # at least
SKILL_AT_MOST = 0.2  # embedded_skill: what fine-tuning is to teach


def acceptance(cells: dict[str, Any]) -> list[str]:
    """What in the base model's evaluation ({mode: cell}) misses its bound, in words; empty when it is accepted."""
    failed = []
    for mode, cell in cells.items():
        scores = {name: result["score"] for name, result in cell["benchmarks"].items()} | {
            "mode_fidelity": cell["mode_fidelity"]
        }
        failed += [
            f"{mode}: {name} is {scores[name]:.3f}, at least {bound} is needed"
            for name, bound in ACCEPTANCE.items()
            if scores[name] < bound
        ]
        if scores["embedded_skill"] > SKILL_AT_MOST:
            failed.append(
                f"{mode}: embedded_skill is {scores['embedded_skill']:.3f}, at most {SKILL_AT_MOST} is wanted"
            )
    return failed
