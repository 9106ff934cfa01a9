"""Profiles and recipes: every setting of a run, read from YAML, checked, overridable one by one.

In: a profile's name or path, a recipe's path, ``key=value`` overrides. Out: ``Profile`` and ``Recipe``. An unknown key
is refused by name with the nearest known one, a value of the wrong type with the place where it stands.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError, nearest

ROOT = Path(__file__).resolve().parent.parent
PROFILES = Path(__file__).resolve().parent / "profiles"
Unit = Literal["rows", "tokens", "loss_tokens"]
UNITS: tuple[Unit, ...] = ("rows", "tokens", "loss_tokens")


class Section(BaseModel):
    """Base of all settings: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())


class ModelSettings(Section):
    """Which base model, from where, how loaded."""

    name: str  # a folder (relative to the working directory or to the project), or a hub name such as Qwen/Qwen3-0.6B
    source: Literal["local", "huggingface", "modelscope"] = "local"
    revision: str | None = None
    load_in_4bit: bool = True  # NF4; quantises a 16-bit checkpoint on the fly, takes a pre-quantised one as it is
    max_seq_length: int = Field(gt=0)  # tokens; longer rows are dropped and counted, never cut
    cpu_threads: int | None = Field(None, gt=0)  # of torch on a CPU; null: as many as there are cores


class LoraSettings(Section):
    """Low-rank adapters."""

    rank: int = Field(16, gt=0)
    alpha: int | None = Field(None, gt=0)  # null: 2 × rank, what Unsloth's guides and most of its notebooks start from
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    use_rslora: bool = False

    @property
    def scale_alpha(self) -> int:
        """alpha, or its default."""
        return self.alpha or 2 * self.rank


class MixSettings(Section):
    """Overrides of the recipe, so that a share can be swept without a new file. null = as the recipe says."""

    chat_share: float | None = Field(None, ge=0, le=1)
    unit: Unit | None = None
    total: int | None = Field(None, gt=0)


class DataSettings(Section):
    """From rows to examples."""

    turns: Literal["all", "last"] = "all"  # which answers of a conversation become examples
    # The next three are the pipeline's rules, each with what it is measured against (ablations/): leave them as they are.
    # Empty think block of an answer without reasoning: part of the prompt; with loss after a bare header, as the public
    # notebooks train it; or with loss after a /no_think in the question.
    empty_think: Literal["masked", "trained", "soft_switch"] = "masked"
    loss_on: Literal["answers", "everything"] = "answers"
    too_long: Literal["drop", "cut"] = "drop"  # cut: the example ends at the limit, wherever that is
    max_length: int | None = Field(None, gt=0)  # tokens of an example; null: model.max_seq_length
    validation_fraction: float = Field(0.05, ge=0, lt=0.5)
    workers: int = Field(1, ge=1)  # processes; the result does not depend on it


class TrainingSettings(Section):
    """What SFTTrainer is given. Names are TRL's and transformers' own."""

    max_steps: int = -1  # -1: num_train_epochs decides
    num_train_epochs: float = Field(1.0, gt=0)
    per_device_train_batch_size: int = Field(16, gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    learning_rate: float = Field(2e-4, gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup", "exponential"] = "cosine"
    warmup_steps: float = Field(0.05, ge=0)  # below 1: a fraction of all steps (transformers 5)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optim: str = "adamw_torch"
    group_by_length: bool = True  # batches of similar length in random order, so that padding is not paid for
    eval_steps: int = Field(50, gt=0)
    save_steps: int = Field(50, gt=0)
    save_total_limit: int = Field(2, gt=0)
    logging_steps: int = Field(5, gt=0)
    early_stopping_patience: int | None = Field(None, gt=0)  # evaluations without improvement; null: off
    gradient_checkpointing: bool = False
    report_to: list[Literal["none", "wandb", "swanlab", "tensorboard"]] = ["none"]

    @property
    def scheduler_name(self) -> str:
        """What transformers is given; the exponential schedule is ``pipeline.trainer``'s own."""
        return "constant_with_warmup" if self.lr_scheduler_type == "exponential" else self.lr_scheduler_type


class Sampling(Section):
    """Decoding parameters of one mode. temperature 0 means greedy."""

    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    top_k: int = Field(ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(gt=0)


class SamplingTable(Section):
    """The one table of sampling by mode. Values: Qwen3's model card (thinking 0.6/0.95/20, non-thinking 0.7/0.8/20)."""

    thinking: Sampling
    non_thinking: Sampling


class EvaluationSettings(Section):
    """Which benchmarks, how many items, how sampled."""

    benchmarks: list[str] = Field(min_length=1)
    limit: int | None = Field(None, gt=0)  # items a benchmark; null: all
    batch_size: int = Field(64, gt=0)
    seed: int = 42
    sampling: SamplingTable
    # EvalScope's dataset_args by benchmark, e.g. {gsm8k: {local_path: DIR, subset_list: [default]}}
    dataset_args: dict[str, dict[str, Any]] = {}


class SweepSettings(Section):
    """How the cells of a sweep differ from a full run of the profile, so that many of them can be paid for."""

    overrides: list[str] = []  # as --set takes them; what the command line sets counts more


class EstimateSettings(Section):
    """Rates measured in a run of this profile, for the estimate before a run starts."""

    machine: str
    tokens_per_second: float = Field(gt=0)  # of training
    replies_per_second: float = Field(gt=0)  # of evaluation, both modes together
    start_seconds: float = Field(ge=0)  # imports, loading, building the mix


class Profile(Section):
    """All settings of a run. One YAML file a size stands in pipeline/profiles/."""

    name: str
    seed: int = 3407
    recipe: str
    model: ModelSettings
    lora: LoraSettings = LoraSettings()  # type: ignore[call-arg]
    mix: MixSettings = MixSettings()  # type: ignore[call-arg]
    data: DataSettings = DataSettings()  # type: ignore[call-arg]
    training: TrainingSettings = TrainingSettings()  # type: ignore[call-arg]
    evaluation: EvaluationSettings
    sweep: SweepSettings = SweepSettings()
    estimate: EstimateSettings | None = None
    preference: PreferenceSettings = Field(default_factory=lambda: PreferenceSettings())  # type: ignore[call-arg]
    grpo: GRPOSettings = Field(default_factory=lambda: GRPOSettings())  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _check(self) -> Profile:
        if self.length_limit > self.model.max_seq_length:
            raise ValueError(
                f"data.max_length ({self.length_limit}) is above model.max_seq_length ({self.model.max_seq_length})"
            )
        return self

    @property
    def length_limit(self) -> int:
        """Tokens of the longest example."""
        return self.data.max_length or self.model.max_seq_length


class ScoreFilter(Section):
    """Keep rows whose quality score reaches a threshold; a row without a number there is rejected."""

    field: str = "score"  # FineTome's own column
    at_least: float


class LengthFilter(Section):
    """Bounds in characters of the last answer (without its reasoning) and of the last question."""

    min_answer: int = Field(1, ge=0)
    max_answer: int | None = Field(None, gt=0)
    min_prompt: int = Field(1, ge=0)
    max_prompt: int | None = Field(None, gt=0)


class RepetitionFilter(Section):
    """Text that goes in circles: at most this part of an answer's word n-grams may be repeats of earlier ones."""

    ngram: int = Field(8, ge=2)
    at_most: float = Field(0.3, ge=0, le=1)


class PersonalDataFilter(Section):
    """What is looked for, and whether it is masked (``[EMAIL]``) or the row is dropped."""

    action: Literal["mask", "drop"] = "mask"
    kinds: list[Literal["email", "phone", "chinese_id", "bank_card", "secret", "ip_address"]] = [
        "email",
        "phone",
        "chinese_id",
        "bank_card",
        "secret",
    ]


class NearDuplicates(Section):
    """MinHash/LSH over the words of a row; a row as similar as ``threshold`` to an earlier kept one is rejected."""

    threshold: float = Field(0.8, gt=0, le=1)  # Jaccard similarity of the sets of word n-grams
    ngram: int = Field(3, ge=1)  # words; a CJK character counts as a word
    permutations: int = Field(256, ge=16)  # more find pairs near the threshold more surely; 128 miss about 6 % at 0.85


class ClassBalance(Section):
    """For labelled sets: no class keeps more than ``max_ratio`` times the rows of the smallest one."""

    field: str = "label"
    max_ratio: float = Field(1.0, ge=1)


class CleanSettings(Section):
    """The cleaning steps in the order they run. Every one is off unless a recipe names it."""

    normalise: bool = False  # Unicode and whitespace; code, mathematics and CJK stay as they are
    score: ScoreFilter | None = None
    broken_reasoning: bool = False  # empty or repeated think tags inside the reasoning, an answer that is missing
    check_answer: bool = False  # \boxed{} (or the final answer) against the column expected_answer, by math-verify
    length: LengthFilter | None = None
    repetition: RepetitionFilter | None = None
    languages: list[str] | None = None  # ISO 639-1 codes, e.g. [en, zh]
    refusals: bool = False
    personal_data: PersonalDataFilter | None = None
    exact_duplicates: bool = False
    near_duplicates: NearDuplicates | None = None
    class_balance: ClassBalance | None = None


class BenchmarkSettings(Section):
    """Where the prompts of a benchmark stand, so that no training row may contain them."""

    name: str
    source: Literal["local", "huggingface", "modelscope"]
    path: str
    subset: str | None = None  # the hub's configuration name, e.g. main
    split: str = "test"
    revision: str | None = None
    field: str | None = (
        None  # column with the prompt; null: question, problem, prompt, instruction, query, input or text
    )


class Decontamination(Section):
    """Rows that overlap a benchmark are rejected, with the item's number."""

    benchmarks: list[BenchmarkSettings] = Field(min_length=1)
    ngram: int = Field(5, ge=3)  # normalised words; a CJK character counts as a word
    overlap: float = Field(0.35, gt=0, le=1)  # part of an item's n-grams that a row may not reach


class AugmentationSettings(Section):
    """More rows from rows: the user's wording changes, answers, reasoning and labels never do."""

    method: Literal["synonyms", "shuffle_sentences", "back_translation"]
    copies: int = Field(1, ge=1, le=10)  # a row
    fraction: float = Field(1.0, gt=0, le=1)  # of the rows
    rate: float = Field(0.15, gt=0, le=1)  # synonyms: part of the replaceable words that are replaced
    synonyms: str | None = (
        None  # file: a YAML list of lists of words; null: the project's small English and Chinese list
    )
    base_url: str | None = None  # back_translation: an OpenAI-compatible endpoint, e.g. http://localhost:8000/v1
    model: str | None = None  # back_translation: the endpoint's name of the model, or a local folder
    pivot: str = "German"  # back_translation: the language in between
    api_key_env: str = "OPENAI_API_KEY"  # name of the environment variable; the key itself never stands in a recipe
    seed: int = 0


class SourceSettings(Section):
    """One source of rows."""

    name: str
    kind: Literal["chat", "reasoning", "other"]
    source: Literal["generated", "local", "huggingface", "modelscope"]
    path: str  # generator name, file or folder, or dataset name
    subset: str | None = None  # the hub's configuration name
    split: str = "train"
    revision: str | None = None
    streaming: bool = False  # hubs: read while downloading, keep nothing; files are always read so
    rows: int | None = Field(None, gt=0)  # at most so many; for generated rows: exactly so many
    seed: int = 0  # of the generator
    format: str = "auto"  # auto: decided row by row from the columns, and said
    columns: dict[str, str] = {}  # the format's name of a column → the file's name of it
    licence: str = ""
    share: float = Field(ge=0, le=1)
    clean: CleanSettings | None = None  # the steps named here replace the recipe's for this source
    augment: list[AugmentationSettings] = []


class RowsSettings(SourceSettings):
    """A source that stands alone, so that its name, kind and share need not be given."""

    name: str = "pairs"
    kind: Literal["chat", "reasoning", "other"] = "other"
    share: float = Field(1.0, ge=1, le=1)


class SecondStageSettings(Section):
    """What preference tuning and GRPO have in common: a training that starts from a base or from a run's adapter."""

    max_steps: int = Field(100, gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    learning_rate: float = Field(5e-6, gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: float = Field(0.1, ge=0)  # below 1: a fraction of all steps
    max_grad_norm: float = Field(1.0, gt=0)
    logging_steps: int = Field(5, gt=0)
    save_steps: int = Field(50, gt=0)
    save_total_limit: int = Field(2, gt=0)


class PreferenceSettings(SecondStageSettings):
    """Preference tuning with TRL. Learning rate, warm-up, schedule: the alignment handbook's QLoRA recipe of zephyr-7b-beta.

    beta is 0.1, TRL's default for all three. Of DPO (Rafailov et al. 2023) and KTO (Ethayarajh et al. 2024) it says how dear
    it is to leave the reference; of ORPO (Hong et al. 2024) it is the weight of the odds ratio beside the chosen answer's loss.
    """

    method: Literal["dpo", "orpo", "kto"] = "dpo"
    beta: float = Field(0.1, gt=0)
    pairs: RowsSettings | None = None  # what to train on; any of the layouts that "preference" rows come in
    held_out: RowsSettings | None = (
        None  # what to judge on; null: held_out_fraction of the prompts of ``pairs``, by their hash
    )
    held_out_fraction: float = Field(0.1, gt=0, lt=1)
    thinking_share: float | None = Field(None, ge=0, le=1)  # of the training pairs; null: as they come
    per_device_train_batch_size: int = Field(8, gt=0)  # pairs
    eval_steps: int = Field(50, gt=0)


class GRPOSettings(SecondStageSettings):
    """GRPO with TRL (Shao et al. 2024). Generations, temperature, beta and epsilon: TRL's defaults."""

    prompts: RowsSettings | None = None  # rows with a question and its ``expected_answer``
    thinking_share: float = Field(1.0, ge=0, le=1)  # of the prompts that are asked in thinking mode
    num_generations: int = Field(8, ge=2)  # replies a prompt: they are compared with each other
    prompts_per_step: int = Field(8, gt=0)
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int | None = Field(None, gt=0)  # null: as the evaluation of the mode
    beta: float = Field(0.0, ge=0)  # weight of the KL divergence from the start; 0: no reference is kept
    epsilon: float = Field(0.2, gt=0, lt=1)
    correct_weight: float = Field(1.0, ge=0)
    # Small: form must not pay for a wrong answer. A power of two, so that equal sums of rewards are equal to the last bit.
    form_weight: float = Field(0.25, ge=0)


Profile.model_rebuild()  # two of its sections stand below it, as their rows are sources


class Recipe(Section):
    """What to mix. ``share`` is a source's part of the final mix, counted in ``unit``; the shares add up to 1."""

    name: str
    unit: Unit = "rows"
    total: int | None = Field(None, gt=0)  # size of the training mix in that unit; null: as large as the sources allow
    on_shortage: Literal["error", "repeat"] = "error"
    root: str | None = None  # local paths may not lead out of this folder (by .. or a link); null: any path
    clean: CleanSettings = CleanSettings()
    decontaminate: Decontamination | None = None
    group_near_duplicates: bool = True  # rows that are alike fall on one side of the train/validation split
    sources: list[SourceSettings] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"source names must differ, found {', '.join(names)}")
        total = sum(source.share for source in self.sources)
        if abs(total - 1) > 1e-6:
            parts = " + ".join(f"{s.share:g} ({s.name})" for s in self.sources)
            raise ValueError(f"the shares add up to {total:g}, not 1: {parts}")
        return self

    def cleaning(self, source: SourceSettings) -> CleanSettings:
        """The steps that hold for a source: the recipe's, with those that the source names itself in their place."""
        if source.clean is None:
            return self.clean
        own = {name: getattr(source.clean, name) for name in source.clean.model_fields_set}
        return self.clean.model_copy(update=own)


S = TypeVar("S", bound=Section)


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the fields at a place inside a settings class."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        current = next((c for c in candidates if hasattr(c, "model_fields")), None)
    return list(current.model_fields) if current is not None else []


def _sentence(error: ValidationError, model: type[BaseModel], where: str) -> str:
    parts = []
    for item in error.errors():
        location = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _known_keys(model, item["loc"][:-1])
            parts.append(f"unknown key {location!r}.{nearest(str(item['loc'][-1]), known)}")
        elif item["type"] == "value_error":
            parts.append(str(item["ctx"]["error"]))
        else:
            given = f" (given: {item['input']!r})" if not isinstance(item["input"], dict) else ""
            parts.append(f"{location}: {item['msg'][0].lower()}{item['msg'][1:]}{given}")
    return f"{where}: " + "; ".join(parts)


def parse(model: type[S], data: Any, where: str) -> S:
    """Check ``data`` against a settings class.

    Raises:
        UserError: one sentence with every problem, each with its place and, for unknown keys, the nearest known one.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(_sentence(error, model, where)) from error


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key given twice is an error, and so, with its place, is a value such as 2024-13-45."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        # Here and not when the mapping is made: by then, keys merged by << stand among its own.
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            name = (key.tag, key.value)
            if name in lines:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} is given twice, first in line {lines[name]}", key.start_mark
                )
            lines[name] = key.start_mark.line + 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # from the makers of dates, numbers and booleans
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} cannot be read as {node.tag.rpartition(':')[2]}", node.start_mark
            ) from error


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{where} is not valid YAML: {place}{error.problem}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise UserError(f"{where} is not valid YAML: it is nested too deeply.") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file (safe loader).

    Raises:
        UserError: missing, unreadable or not YAML, or a key is given twice (with line and column).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    return _parse_yaml(text, str(path))


def locate(path: str) -> Path:
    """A relative path is looked for in the working directory first, then in the project."""
    here = Path(path).expanduser()
    return here if here.is_absolute() or here.exists() else ROOT / path


def apply_overrides(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Set dotted keys: ``["training.learning_rate=1e-4"]``. Values are YAML (numbers, true/false, null, lists).

    Raises:
        UserError: an override without ``=``, or a value that is not YAML. Unknown keys are left to the check that follows.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set needs key=value, for example training.learning_rate=1e-4; given: {text!r}.")
        parsed: Any = _parse_yaml(value, f"--set {text}") if value.strip() else None
        if isinstance(parsed, str):
            with contextlib.suppress(ValueError):
                parsed = float(parsed)  # YAML 1.1 reads 1e-4 as text
        target = data
        *parents, last = key.strip().split(".")
        for parent in parents:
            if not isinstance(target.setdefault(parent, {}), dict):
                raise UserError(f"--set {key}: {parent!r} is a single value, it has no keys below it.")
            target = target[parent]
        target[last] = parsed
    return data


def load_profile(name: str, overrides: list[str] | None = None) -> Profile:
    """Load a profile by name (``embedded``) or by path, with overrides.

    Raises:
        UserError: no such profile (names the nearest), or a value that does not pass (names the place).
    """
    path = PROFILES / f"{name}.yaml"
    if not path.exists():
        path = Path(name)
        if not path.suffix or not path.exists():
            names = sorted(p.stem for p in PROFILES.glob("*.yaml"))
            raise UserError(f"There is no profile {name!r}.{nearest(name, names)} Known: {', '.join(names)}.")
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise UserError(f"{path} should hold keys and values.")
    return parse(
        Profile, apply_overrides(data, overrides or []), f"profile {name}" + (" with --set" if overrides else "")
    )


def load_recipe(path: str, mix: MixSettings | None = None) -> Recipe:
    """Load a recipe; ``mix`` overrides its chat share, unit and total.

    A chat share is divided among the sources of kind ``chat`` in the proportion that the recipe gives them, the rest
    among the others likewise.

    Raises:
        UserError: missing file, bad value, or a chat share where the recipe lacks one of the two sides.
    """
    data = read_yaml(locate(path))
    if not isinstance(data, dict):
        raise UserError(f"{path} should hold keys and values.")
    recipe = parse(Recipe, data, f"recipe {path}")
    if mix is None:
        return recipe
    if mix.chat_share is not None:
        chat = [s for s in recipe.sources if s.kind == "chat"]
        rest = [s for s in recipe.sources if s.kind != "chat"]
        for side, share in ((chat, mix.chat_share), (rest, 1 - mix.chat_share)):
            if not side and share > 0:
                raise UserError(
                    f"recipe {path}: chat_share={mix.chat_share:g} needs both a chat source and another one."
                )
            before = sum(s.share for s in side)
            for source in side:
                source.share = share * source.share / before if before else share / len(side)
    recipe.unit = mix.unit or recipe.unit
    recipe.total = mix.total or recipe.total
    return recipe
