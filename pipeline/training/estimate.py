"""What a training would take, before anything is loaded: memory by part, steps, and time.

In: sizes of the model (a config, or a published Qwen3 by name) and a ``Job`` (method, batch, length, rank, ...), most often
from a ``Profile``. Out: bytes by part, FLOPs, seconds, and a table of the published sizes. Nothing heavy is imported and no
weight is read.

The memory is a count of bytes, tensor by tensor, of what is alive at the worst moment of a step. How each part is counted,
with its source, stands in docs/memory.md; ``benchmarks/estimate.py`` holds it against measurement.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.core.console import duration
from pipeline.core.errors import UserError
from pipeline.core.processes import size
from pipeline.model.attention import SHORT
from pipeline.model.dtype import cpu_has_bfloat16
from pipeline.model.methods import matrix_shapes
from pipeline.settings import Profile, locate, read_yaml

CountedMethod = Literal["full", "lora", "qlora"]
Device = Literal["cpu", "cuda"]
COUNTED_METHODS: tuple[CountedMethod, ...] = ("full", "lora", "qlora")
DEVICES: tuple[Device, ...] = ("cuda", "cpu")
CARDS = (24, 40, 80, 160)  # GiB of memory of the cards in the table; 160: two of 80, the weights divided among them
# Part of a card that an estimate may fill. The rest is for the CUDA context and the allocator's fragments, neither of which
# the count holds nor this project has measured.
CARD_SHARE = 0.9
# Resident memory of a process on a CPU that has imported Unsloth, TRL, PEFT and datasets and made the trainer of the embedded
# model: 590 MiB (full, LoRA) to 604 MiB (QLoRA) here. benchmarks/estimate.py measures it again ("libraries").
LIBRARIES_BYTES = 604 * 2**20

PUBLISHED = Path(__file__).resolve().parent / "qwen3_sizes.yaml"
FLOAT32, BFLOAT16 = 4, 2  # bytes
# bitsandbytes' NF4: blocks of 64 weights share a scale, which double quantisation keeps in 8 bits, blocks of 256 of them
# sharing a float32 scale (Dettmers et al. 2023, QLoRA, section 3: 0.127 bits a weight); two tables and an offset a matrix.
NF4_BLOCK, NF4_SCALE_BLOCK, NF4_TABLES = 64, 256, (16 + 256 + 1) * FLOAT32
# Unsloth's cross-entropy goes through the logits in chunks: on a CPU 16 Mi logits at a time (unsloth_zoo/cpu/ops.py); on a
# GPU 16 bytes a logit within half of the free memory, at most 4 GiB (unsloth_zoo/fused_losses/cross_entropy_loss.py).
CPU_CHUNK_LOGITS = 16 * 2**20
CUDA_LOGIT_BYTES, CUDA_LOGITS_LIMIT = 16, 4 * 2**30
# Bytes of optimizer state a trainable float32 parameter. AdamW keeps two moments (Loshchilov & Hutter 2019); 8-bit keeps a
# byte and 1/256 of a float32 scale for each (Dettmers et al. 2022; bitsandbytes' block size).
EIGHT_BIT = 1 + FLOAT32 / 256
OPTIMIZERS = {
    "adamw_torch": 2 * FLOAT32,
    "adamw_torch_fused": 2 * FLOAT32,
    "adamw_8bit": 2 * EIGHT_BIT,
    "adamw_bnb_8bit": 2 * EIGHT_BIT,
    "paged_adamw_8bit": 2 * EIGHT_BIT,
    "lion_32bit": FLOAT32,
    "lion_8bit": EIGHT_BIT,
    "rmsprop": FLOAT32,
    "adagrad": FLOAT32,
    "sgd": 0,
}
EXPERT = ("gate_proj", "up_proj", "down_proj")  # what each expert of a mixture has
CPU_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "rmsprop", "adagrad", "sgd")


# --- the model ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder of Qwen3's kind: grouped-query attention with norms on queries and keys, a gated MLP, no biases.

    In a mixture of experts each layer has ``experts`` such MLPs of ``intermediate_size`` and a router; a token passes
    ``experts_per_token`` of them.
    """

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied: bool
    experts: int = 0  # 0: one MLP a layer
    experts_per_token: int = 0

    @property
    def q(self) -> int:
        """Width of the queries, and of attention's output."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear modules of one layer."""
        return matrix_shapes(
            {
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "head_dim": self.head_dim,
            }
        )

    def times(self, module: str, active: bool = False) -> int:
        """How often a layer has a module, or with ``active`` a token passes it: one of the MLP stands in each expert."""
        return ((self.experts_per_token if active else self.experts) or 1) if module in EXPERT else 1

    @property
    def router(self) -> int:
        """Parameters of all routers: hidden size × experts a layer. They are not quantised."""
        return self.layers * self.hidden_size * self.experts

    @property
    def linear(self) -> int:
        """Parameters of all linear modules in the layers, without the routers."""
        return self.layers * sum(a * b * self.times(m) for m, (a, b) in self.matrices.items())

    @property
    def active(self) -> int:
        """Those that a token passes, with the routers."""
        return self.router + self.layers * sum(a * b * self.times(m, True) for m, (a, b) in self.matrices.items())

    @property
    def embedding(self) -> int:
        """Parameters of one embedding matrix: vocabulary × hidden size."""
        return self.vocab_size * self.hidden_size

    @property
    def norms(self) -> int:
        """Parameters of the RMS norms."""
        return self.layers * (2 * self.hidden_size + 2 * self.head_dim) + self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters; a tied output matrix counts once."""
        return self.linear + self.router + self.norms + self.embedding * (1 if self.tied else 2)

    def adapter(self, rank: int, modules: tuple[str, ...], active: bool = False) -> int:
        """Parameters of LoRA: rank × (in + out) a module (Hu et al. 2022, section 4.1). Unknown modules count nothing.

        Args:
            active: only those that a token passes.
        """
        known = [m for m in modules if m in self.matrices]
        return self.layers * rank * sum(sum(self.matrices[m]) * self.times(m, active) for m in known)


def sizes_from_config(config: Mapping[str, Any]) -> Sizes:
    """Sizes from a ``config.json`` (or ``PretrainedConfig.to_dict()``).

    Raises:
        UserError: a size is missing or no positive whole number.
    """
    names = {
        "hidden_size": "hidden_size",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "intermediate_size": "intermediate_size",
        "vocab_size": "vocab_size",
    }
    # transformers 5 writes num_local_experts where the published files have num_experts.
    named = next((name for name in ("num_experts", "num_local_experts") if config.get(name)), None)
    if named:  # intermediate_size is that of layers without experts, which published ones have not
        names = {k: v for k, v in names.items() if v != "intermediate_size"} | {
            "moe_intermediate_size": "intermediate_size",
            named: "experts",
            "num_experts_per_tok": "experts_per_token",
        }
    bad = [name for name in names if not isinstance(config.get(name), int) or config[name] < 1]
    if bad:
        raise UserError(f"The model's config.json has no usable {', '.join(bad)}; its memory cannot be estimated.")
    found = {ours: config[theirs] for theirs, ours in names.items()}
    return Sizes(
        **found,
        kv_heads=config.get("num_key_value_heads") or found["heads"],
        head_dim=config.get("head_dim") or found["hidden_size"] // found["heads"],
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def published_sizes() -> dict[str, Sizes]:
    """The published Qwen3 models, by name (``"0.6B"`` … ``"32B"``, the mixtures after them), smallest first."""
    data = read_yaml(PUBLISHED)
    return {name: Sizes(**{k: v for k, v in entry.items() if k != "card"}) for name, entry in data.items()}


def profile_sizes(profile: Profile) -> Sizes:
    """The sizes of a profile's model: from its folder, or by its name where a hub has it; no weight is needed.

    Raises:
        UserError: no such folder, or a name that is no published Qwen3.
    """
    settings = profile.model
    path = locate(settings.name) / "config.json"
    if settings.source == "local":
        try:
            return sizes_from_config(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); give a model folder with model.name.") from error
    found = re.search(r"qwen3-(\d+(?:\.\d+)?b(?:-a\d+b)?)(?![\w.])", settings.name.lower())
    known = published_sizes()
    if found is None or found[1].upper() not in known:
        raise UserError(
            f"The sizes of {settings.name!r} are not known before it is loaded; known are Qwen3-{', '.join(known)}. "
            "Put its config.json in a folder and give that with model.name and model.source=local."
        )
    return known[found[1].upper()]


# --- the job ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """How a model is trained, as far as memory and time depend on it."""

    method: CountedMethod
    batch: int  # rows on the device at a time
    length: int  # tokens of a row, padding included
    rank: int = 16
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    dropout: float = 0.0
    gradient_checkpointing: bool = False
    accumulation: int = 1
    optim: str = "adamw_torch"
    device: Device = "cuda"
    bf16: bool = True  # the device computes in bfloat16; False: float32
    fused_attention: bool = True  # False: scores are written out, as this pipeline does for short rows on a CPU
    # What is trained is held in float32, as this pipeline does (train.make_sft_trainer); 2: full fine-tuning in pure bfloat16,
    # which is what Unsloth does by itself.
    trainable_bytes: int = FLOAT32

    @property
    def tokens(self) -> int:
        """Tokens on the device at a time."""
        return self.batch * self.length


def profile_method(profile: Profile) -> CountedMethod:
    """The method that a profile trains by; of a method that is not counted here, LoRA of the same precision of the base."""
    chosen = profile.chosen_method
    return chosen if chosen in COUNTED_METHODS else "qlora" if profile.model.load_in_4bit else "lora"


def profile_job(profile: Profile, device: Device, method: CountedMethod | None = None) -> Job:
    """The job of a profile on a device, at its batch and the longest row that it lets through."""
    t, dtype = profile.training, profile.model.dtype
    can = device == "cuda" or cpu_has_bfloat16()
    return Job(
        method=method or profile_method(profile),
        batch=t.per_device_train_batch_size,
        length=profile.length_limit,
        rank=profile.lora.rank,
        modules=tuple(profile.lora.target_modules),
        dropout=profile.lora.dropout,
        gradient_checkpointing=t.gradient_checkpointing,
        accumulation=t.gradient_accumulation_steps,
        optim=t.optim,
        device=device,
        bf16=can if dtype == "auto" else dtype == "bfloat16",
        fused_attention=device == "cuda" or profile.model.max_seq_length > SHORT,
    )


# --- memory -------------------------------------------------------------------------------------------------------------


def _nf4(weights: int) -> float:
    """Bytes of a matrix of so many weights in NF4 with double quantisation."""
    scales = weights / NF4_BLOCK
    return weights / 2 + scales + scales / NF4_SCALE_BLOCK * FLOAT32 + NF4_TABLES


def _compute(job: Job) -> int:
    """Bytes of a number that the device computes with."""
    return BFLOAT16 if job.bf16 else FLOAT32


def trainable(sizes: Sizes, job: Job) -> int:
    """Parameters that are trained."""
    return sizes.parameters if job.method == "full" else sizes.adapter(job.rank, job.modules)


def weights_bytes(sizes: Sizes, job: Job) -> float:
    """Bytes of the base: linear modules in the method's precision, embeddings and norms never in 4 bit."""
    number = job.trainable_bytes if job.method == "full" else _compute(job)
    if job.method != "qlora":
        return sizes.parameters * number
    matrices = sizes.layers * sum(_nf4(a * b) * sizes.times(m) for m, (a, b) in sizes.matrices.items())
    return matrices + (sizes.parameters - sizes.linear) * number


def _optimizer(parameters: int, job: Job) -> float:
    """Bytes of the optimizer's state. An optimizer that is not in the list counts as AdamW."""
    each = OPTIMIZERS.get(job.optim, 2 * FLOAT32)
    if job.device == "cpu" and job.optim not in CPU_OPTIMIZERS:
        each = (
            2 * FLOAT32
        )  # Unsloth takes AdamW where a CPU has no kernels for what is asked (unsloth_zoo/cpu/trainer.py)
    # torch's optimizers keep their state in the dtype of the weights; 8-bit states are what they are.
    return parameters * each * (job.trainable_bytes / FLOAT32 if each % 1 == 0 else 1)


def _layer(sizes: Sizes, job: Job) -> float:
    """Bytes a token that one layer keeps for the backward pass: each tensor that autograd saves, counted once."""
    h, q, kv = sizes.hidden_size, sizes.q, sizes.kv
    i = sizes.intermediate_size * sizes.times("up_proj", active=True)
    c = _compute(job)
    wanted = [m for m in job.modules if m in sizes.matrices] if job.method != "full" else []
    inside = sum(FLOAT32 * job.rank * sizes.times(m, active=True) for m in wanted)  # what lora_A gives to lora_B
    inputs = {name: sizes.matrices[name][0] for name in wanted}
    masks = job.dropout and sum(inputs.values()) * (FLOAT32 if job.device == "cpu" else 1)
    # Attention by a fused kernel keeps its inputs, its output and one float32 a head, and no scores (Dao et al. 2022).
    attention: float = 2 * c * q + FLOAT32 * sizes.heads
    if job.device == "cuda":
        # Unsloth's kernels (unsloth/kernels): a norm keeps its input, LoRA_QKV and LoRA_MLP their input and the MLP's two
        # products; the rest is computed again. Full fine-tuning has no such kernel for the linear modules: their inputs too,
        # and silu and its product, under autocast with a residual stream in the weights' precision.
        attention += 2 * c * kv
        norms = 2 * h * (job.trainable_bytes if job.method == "full" else c) + c * (q + kv)
        rest = 2 * c * h + 2 * c * i + (2 * c * i if job.method == "full" else 0)
        return norms + attention + rest + (inside * c / FLOAT32 + masks if wanted else 0)
    # transformers on a CPU. Where rows are padded there is a mask: keys and values are repeated to the width of the queries, and
    # the mask is kept, in each layer, as a number for each place that a token may look at.
    attention += (2 * c * q + c * job.length) if job.batch > 1 else 2 * c * kv
    if not job.fused_attention:
        # Written out: the queries, keys and values at the width of the queries, and of each head a row of probabilities in
        # float32, where softmax computes, and in the computing precision, which multiplies the values.
        attention = 3 * c * q + sizes.heads * job.length * (FLOAT32 + (c if c != FLOAT32 else 0))
        if job.method == "full":
            attention += c * q  # what it gives to the output matrix, whose gradient needs it
    # The four norms compute in float32: they keep their input so, and 1/rms.
    norms = FLOAT32 * (2 * h + q + kv + 2 + sizes.heads + sizes.kv_heads)
    mlp = 3 * c * i  # gate, silu(gate), up
    if job.method == "full":
        if c < job.trainable_bytes:  # autocast: the norms' inputs stay as they are, and each product casts its own
            return norms + FLOAT32 * 2 * h + c * (q + kv) + attention + mlp + c * (5 * h + i)
        # Weights that are trained need their inputs: those of the norms, of q, k, v together, of gate and up together, of down.
        return norms + c * (2 * h + q + kv) + attention + mlp + c * (2 * h + i)
    if c == FLOAT32:  # the adapters take what is there
        shared = h * any(m in inputs for m in ("q_proj", "k_proj", "v_proj"))
        shared += h * any(m in inputs for m in ("gate_proj", "up_proj")) + i * ("down_proj" in inputs)
        if not job.fused_attention:  # which keeps its output itself
            shared += q * ("o_proj" in inputs)
        return norms + attention + mlp + FLOAT32 * shared + inside + masks
    # PEFT casts the input of each adapted module to the adapter's float32 (peft/tuners/lora/layer.py), and autocast that to the
    # computing precision, each for itself; the last is what is kept.
    return norms + attention + mlp + c * sum(inputs.values()) + (inside + masks) * c / FLOAT32


def _backward(sizes: Sizes, job: Job) -> float:
    """Bytes that the backward pass of one layer needs beside what is kept: gradients on their way through the MLP, its widest
    part (of down's input in the adapter's float32 and in the computing precision, of gate, silu and up), and in QLoRA one
    matrix as it is unpacked."""
    c, i = _compute(job), sizes.intermediate_size * sizes.times("up_proj", active=True)
    gradients = 3 * c * i + (
        FLOAT32 * i if job.method != "full" and job.device == "cpu" and "down_proj" in job.modules else 0
    )
    unpacked = c * max(a * b for a, b in sizes.matrices.values()) if job.method == "qlora" else 0
    return gradients * job.tokens + unpacked


def _loss(sizes: Sizes, job: Job) -> float:
    """Bytes of the cross-entropy, chunked as Unsloth does it: a chunk of logits, the last hidden state and its gradient."""
    c, tokens = _compute(job), job.tokens
    hidden = 2 * c * tokens * sizes.hidden_size
    if job.device == "cuda":
        return hidden + min(CUDA_LOGIT_BYTES * tokens * sizes.vocab_size, CUDA_LOGITS_LIMIT)
    rows = min(tokens, max(16, CPU_CHUNK_LOGITS // sizes.vocab_size))
    # logits in float32, and in the computing precision on their way in and out
    return hidden + rows * sizes.vocab_size * (FLOAT32 + (c if c != FLOAT32 else 0))


def memory(sizes: Sizes, job: Job) -> dict[str, int]:
    """Bytes that a training step needs at its worst moment, by part and in ``total``, without the libraries.

    The worst moment is the loss, when every layer's activations are there, or the end of the backward pass, when all gradients
    are: ``gradients``, ``activations`` and ``working`` hold what is alive at the worse of the two. docs/memory.md has the
    formulas.
    """
    full, t = job.method == "full", trainable(sizes, job)
    weights, gradients = weights_bytes(sizes, job), float(t * job.trainable_bytes)
    if full and job.bf16 and job.trainable_bytes == FLOAT32:
        weights += t * BFLOAT16  # autocast keeps the weights' bfloat16 copies until the step ends
    per_layer = _layer(sizes, job) * job.tokens
    final = (2 if full else 1) * FLOAT32 * sizes.hidden_size * job.tokens  # the last norm
    backward, loss, head = _backward(sizes, job), _loss(sizes, job), 0.0
    if full and job.device == "cpu":
        # The output matrix' gradient is summed in float32 while the chunks go by; then it is there again, scaled (and a third
        # time in bfloat16 where that is trained).
        head = float(sizes.embedding * FLOAT32)
        loss = max(loss + head, 2 * head + (head / 2 if job.trainable_bytes == BFLOAT16 else 0))
    if job.gradient_checkpointing:
        # A layer keeps its input and is computed again in the backward pass (Chen et al. 2016); on a GPU Unsloth moves the
        # inputs to the host's memory, two of them underway.
        inputs = 2 if job.device == "cuda" else sizes.layers
        kept: float = inputs * _compute(job) * sizes.hidden_size * job.tokens + final
        moments = [(kept, loss), (kept + per_layer, backward)]
    else:
        kept = per_layer * sizes.layers + final
        moments = [(kept, max(loss, backward))]
    activations, working = max(moments, key=sum)
    if full:
        # All gradients, and where the two are tied, the embedding's beside the output's before they are added.
        at_end = gradients + (sizes.embedding * job.trainable_bytes if sizes.tied else 0)
        held = gradients if job.accumulation > 1 else 0.0  # gradients of the micro-batches before
        if at_end > held + activations + working:
            activations, working = 0.0, at_end - gradients
        else:
            gradients = held
    parts = {
        "weights": weights,
        "adapter": 0.0 if full else float(t * job.trainable_bytes),
        "gradients": gradients,
        "optimizer": _optimizer(t, job),
        "activations": activations,
        "working": working,
    }
    counted = {name: round(value) for name, value in parts.items()}
    return counted | {"total": sum(counted.values())}


def fits(total: int, card_gib: int) -> bool:
    """Whether an estimate fits a card of so many GiB, with room for what is not counted (``CARD_SHARE``)."""
    return total <= CARD_SHARE * card_gib * 2**30


# --- steps and time -----------------------------------------------------------------------------------------------------


def global_batch(profile: Profile) -> int:
    """Rows of an optimizer step. As in TRL, the profile's batch size is that of one process."""
    return profile.training.per_device_train_batch_size * profile.training.gradient_accumulation_steps * size()


def planned_steps(profile: Profile, examples: int) -> int:
    """Optimizer steps of the run over so many examples."""
    if profile.training.max_steps > 0:
        return profile.training.max_steps
    return int(-(-examples // global_batch(profile)) * profile.training.num_train_epochs)


def flops_per_token(sizes: Sizes, job: Job) -> float:
    """Floating-point operations that training takes for one token of a row of ``job.length`` tokens.

    Forward: 2 a weight of every matrix (Kaplan et al. 2020, section 2.1; the output matrix included, the embedding is a
    look-up), and 2 × length × width of the queries in each layer for causal attention (Chowdhery et al. 2022, PaLM, appendix B,
    halved for the mask). Backward: twice the forward pass where weights are trained, so 6 a weight in all; where they are frozen
    their own gradients fall away, so 4 a weight (LoRA, Hu et al. 2022), and 6 for the adapter's. Gradient checkpointing runs the
    layers forward once more. Unpacking 4-bit weights is not counted.
    """
    weights = 2 * (sizes.active + sizes.embedding)
    attention = 2 * job.length * sizes.q * sizes.layers
    adapter = 0 if job.method == "full" else 2 * sizes.adapter(job.rank, job.modules, active=True)
    layers = 2 * sizes.active + attention + adapter
    again = layers if job.gradient_checkpointing else 0
    return (3 if job.method == "full" else 2) * weights + 3 * (attention + adapter) + again


def training_time(profile: Profile, sizes: Sizes, job: Job, tokens: int, tflops: float | None) -> dict[str, Any]:
    """Seconds that training takes for so many tokens, and what that rests on.

    Returns:
        ``seconds`` (None where nothing is known) and ``basis``: ``measured`` (the rate in the profile), ``flops`` (a count ÷ the
        rate given) or ``unknown``, and ``source`` in words.
    """
    if profile.estimate is not None:
        rate = profile.estimate.tokens_per_second
        source = f"{rate:,.0f} tokens/s, measured on {profile.estimate.machine}"
        return {"seconds": tokens / rate, "basis": "measured", "source": source}
    if tflops is not None:
        total = flops_per_token(sizes, job) * tokens
        source = f"{total:.3g} floating-point operations by count ÷ {tflops:g} TFLOP/s as given"
        return {"seconds": total / (tflops * 1e12), "basis": "flops", "source": source}
    source = "no measured rate in this profile; give --tflops, the rate that your device reaches in training"
    return {"seconds": None, "basis": "unknown", "source": source}


# --- the table ----------------------------------------------------------------------------------------------------------


def estimate(profile: Profile, tokens: int | None = None, tflops: float | None = None) -> dict[str, Any]:
    """The profile's own memory on a GPU and on a CPU, and every published size by every method on a GPU.

    Args:
        tokens: of the whole training; None: a million, to compare by.
        tflops: the rate for the times in the table, in 10^12 operations a second.

    Raises:
        UserError: the sizes of the profile's model are not known.
    """
    sizes, method = profile_sizes(profile), profile_method(profile)
    counted = tokens if tokens is not None else 10**6
    jobs = {device: profile_job(profile, device) for device in DEVICES}
    table = []
    for name, published in published_sizes().items():
        for how in COUNTED_METHODS:
            job = replace(jobs["cuda"], method=how)
            parts = memory(published, job)
            seconds = flops_per_token(published, job) * counted / (tflops * 1e12) if tflops else None
            table.append(
                {
                    "model": f"Qwen3-{name}",
                    "method": how,
                    "memory_bytes": parts,
                    "fits": {str(card): fits(parts["total"], card) for card in CARDS},
                    "seconds": seconds,
                }
            )
    return {
        "model": profile.model.name,
        "method": method,
        "parameters": sizes.parameters,
        "trainable_parameters": trainable(sizes, jobs["cuda"]),
        "batch": jobs["cuda"].batch,
        "length": jobs["cuda"].length,
        "gradient_checkpointing": jobs["cuda"].gradient_checkpointing,
        "optim": jobs["cuda"].optim,
        "memory_bytes": {device: memory(sizes, job) for device, job in jobs.items()},
        "libraries_bytes": LIBRARIES_BYTES,
        "tokens": counted,
        "time": training_time(profile, sizes, jobs["cuda"], counted, tflops),
        "table": table,
    }


def _size(count: float) -> str:
    """Bytes in GiB, or in MiB where there are few."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def profile_text(result: dict[str, Any]) -> str:
    """The profile's own estimate in a few lines."""
    checkpointing = ", gradient checkpointing" if result["gradient_checkpointing"] else ""
    lines = [
        f"{result['model']}: {result['parameters']:,} parameters, {result['trainable_parameters']:,} trained "
        f"({result['method']}), {result['batch']} rows of up to {result['length']:,} tokens at a time{checkpointing}, "
        f"{result['optim']}",
    ]
    for device, name in (
        ("cuda", "on a GPU (count, not measured)"),
        ("cpu", "on a CPU (count)"),
    ):
        parts = result["memory_bytes"][device]
        shown = ", ".join(f"{part} {_size(n)}" for part, n in parts.items() if part != "total" and n)
        lines.append(f"memory of training {name}: {_size(parts['total'])} = {shown}")
    lines.append(f"  on a CPU the libraries take {_size(result['libraries_bytes'])} more")
    time = result["time"]
    taken = f"about {duration(time['seconds'])}: " if time["seconds"] is not None else ""
    return "\n".join([*lines, f"time of training, {result['tokens']:,} tokens: {taken}{time['source']}"])


def table_text(result: dict[str, Any]) -> str:
    """The published sizes by method, in Markdown; ``yes`` where the estimate fills at most ``CARD_SHARE`` of the card."""
    timed = result["table"][0]["seconds"] is not None
    head = ["model", "method", "memory", *(f"{card} GB" for card in CARDS), *(["time"] if timed else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in result["table"]:
        cells = [row["model"], row["method"], _size(row["memory_bytes"]["total"])]
        cells += ["yes" if row["fits"][str(card)] else "no" for card in CARDS]
        cells += [duration(row["seconds"])] if timed else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def estimate_text(result: dict[str, Any]) -> str:
    """Everything, for a terminal."""
    note = (
        f"On a GPU, by count and not measured; at {result['batch']} × {result['length']:,} tokens as the profile has it. A card "
        f"counts as large enough where the estimate is at most {CARD_SHARE:.0%} of it; 160 GB: weights divided among cards."
    )
    return "\n\n".join([profile_text(result), table_text(result), note])
