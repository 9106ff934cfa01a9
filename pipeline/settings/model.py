"""Settings of the model and of the method that is put on it."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from pipeline.settings.section import Affects, Section

Method = Literal[
    "full", "lora", "qlora", "dora", "rslora", "lora_attention_full", "adapter", "prefix", "prompt", "ia3"
]  # docs/methods.md
METHODS: tuple[Method, ...] = get_args(Method)
LORA_METHODS = ("lora", "qlora", "dora", "rslora", "lora_attention_full")
WHOLE_MATRICES = ("full", "lora_attention_full")  # methods that train matrices of the base themselves


_AND_MIX = Affects("mix", "training", "evaluation")  # the tokenizer, and the length at which rows are dropped


class ModelSettings(Section):
    """Which base model, from where, how loaded."""

    # a folder (relative to the working directory or to the project), or a hub name such as Qwen/Qwen3-0.6B
    name: Annotated[str, _AND_MIX]
    source: Annotated[Literal["local", "huggingface", "modelscope"], _AND_MIX] = "local"
    revision: Annotated[str | None, _AND_MIX] = None
    load_in_4bit: bool = True  # NF4; quantises a 16-bit checkpoint on the fly, takes a pre-quantised one as it is
    # What is computed in. auto: bfloat16 where the processor has its instructions, else float32 (CPU) or float16 (GPU).
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_seq_length: Annotated[int, _AND_MIX] = Field(gt=0)  # tokens; longer rows are dropped and counted, never cut
    cpu_threads: int | None = Field(None, gt=0)  # of torch on a CPU; null: as many as there are cores
    # What the chat template is told beside the mode, e.g. {reasoning_effort: low} (docs/templates.md); empty: not recorded
    chat_template_kwargs: Annotated[dict[str, bool | int | str], _AND_MIX] = Field(
        {}, exclude_if=lambda value: not value
    )


class LoraSettings(Section):
    """Low-rank adapters."""

    rank: int = Field(16, gt=0)
    alpha: int | None = Field(None, gt=0)  # null: 2 × rank, what Unsloth's guides and most of its notebooks start from
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    use_rslora: bool = False
    # PEFT's own name: tokens, by their numbers, whose rows of the embedding are trained as well. Tokens that are new to a model
    # need it: LoRA leaves the embedding alone
    trainable_token_indices: list[int] = []
    # LoRA+ (Hayou et al. 2024): B learns so many times faster than A; they recommend 16 with half the usual rate. null: off
    plus_lr_ratio: float | None = Field(None, ge=1)

    @property
    def scale_alpha(self) -> int:
        """alpha, or its default."""
        return self.alpha or 2 * self.rank


class AdapterSettings(Section):
    """Bottleneck adapters (Houlsby et al. 2019): a small network after the attention and after the MLP of every layer."""

    reduction: float = Field(16.0, ge=1)  # hidden size ÷ width of the bottleneck; 16 is AdapterHub's default
    activation: Literal["gelu", "relu", "silu"] = "gelu"


class PrefixSettings(Section):
    """Prefix tuning (Li and Liang 2021): keys and values that every layer sees before the prompt."""

    virtual_tokens: int = Field(20, gt=0)  # they take 10 for tables to text, 200 for summaries


class PromptSettings(Section):
    """Prompt tuning (Lester et al. 2021): embeddings that stand before the prompt."""

    virtual_tokens: int = Field(20, gt=0)  # beyond 20 they gain little
    # Start from embeddings of tokens drawn from the vocabulary, or from random numbers; the former learns sooner (ibid.).
    init: Literal["vocabulary", "random"] = "vocabulary"


class Ia3Settings(Section):
    """(IA)³ (Liu et al. 2022): factors on keys, values and the inner activations of the MLP."""

    target_modules: list[str] = ["k_proj", "v_proj", "down_proj"]
    feedforward_modules: list[str] = ["down_proj"]  # of these the input is scaled, of the others the output

    @model_validator(mode="after")
    def _check(self) -> Ia3Settings:
        extra = [name for name in self.feedforward_modules if name not in self.target_modules]
        if extra:
            raise ValueError(f"ia3.feedforward_modules: {', '.join(extra)} is not among ia3.target_modules")
        return self


def method_section(method: Method) -> str | None:
    """The section with the options of a method; None: it has none (``full``)."""
    return "lora" if method in LORA_METHODS else None if method == "full" else method
