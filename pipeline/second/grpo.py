r"""GRPO: the model answers questions whose answer is known, and learns from which of its own replies were right.

In: a ``Profile`` with its ``grpo`` section, and a base or, as in practice, a run's adapter to start from. Out: a directory
(see ``pipeline.second.stage``) with ``prompts.jsonl``, ``rejected.jsonl``, the adapter, the 2×2 before and after, and
``grpo.json``: rewards over the steps, with the mean of the first and of the last of them.

Two rewards: ``correct`` is verifiable (the answer behind ``</think>`` against ``expected_answer``, by math-verify), ``form`` is
that of the evaluation (``model.form.judge``). Replies are made in process by ``model.decode.generate``, from exactly the prompt
that inference sends in the mode, each from a random stream of its own, so that a stage that was killed goes on to the same
result.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, fingerprint, read_json, read_jsonl, write_json, write_jsonl
from pipeline.core.modes import MODES, THINK, Mode, Tags
from pipeline.core.redact import masked
from pipeline.core.statistics import bootstrap, interval95
from pipeline.data.answers import expected_answer, judge_answer
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Rejected
from pipeline.data.formats import PROMPTS, filled, is_missing, rename
from pipeline.data.sources import read_rows
from pipeline.model.config import model_config
from pipeline.model.decode import end_tokens, generate
from pipeline.model.form import is_unclosed, judge, split_reply
from pipeline.model.load import load_tokenizer
from pipeline.model.room import positions_of
from pipeline.model.thinking_style import ThinkingStyle, thinking_style
from pipeline.second.records import GRPOResult
from pipeline.second.stage import Stage, Which, evaluation_table, require_plain, shown_arms, training_arguments
from pipeline.settings import Profile, Sampling
from pipeline.training.records import write_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


METRICS = {
    "reward": "reward",
    "correct": "rewards/correct/mean",
    "form": "rewards/form/mean",
    "tokens": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "same_reward": "frac_reward_zero_std",  # part of the prompts whose replies all got the same reward, and taught nothing
    "entropy": "entropy",
    "kl": "kl",
}
ENDS = 10  # logged steps at the start and at the end that are compared
STAGES = 5

# --- rewards ------------------------------------------------------------------------------------------------------------


def correct_reward(text: str, truncated: bool, expected: str, tags: Tags = THINK) -> float:
    """1.0 for a right answer, else 0.0: as in the evaluation, what stands inside or before an unfinished thought is none.

    Args:
        text: the reply with its think tags. expected: the answer alone, e.g. ``42`` or ``\\frac{1}{2}``.
    """
    if truncated or is_unclosed(text, tags):
        return 0.0
    _, answer, _, _ = split_reply(text, tags)
    return float(judge_answer(expected_answer(expected), answer)[0] is True)


def form_reward(text: str, truncated: bool, mode: Mode, tags: Tags = THINK) -> float:
    """1.0 for a reply in the form that its mode asks for (``form.judge``), else 0.0."""
    return float(judge(text, truncated, mode, tags)["faithful"])


def reward_functions(
    read: Callable[[str, list[int]], tuple[str, bool]], tags: Tags = THINK
) -> list[Callable[..., list[float]]]:
    """The two rewards as GRPOTrainer calls them, with the dataset's columns ``answer`` and ``mode``.

    Args:
        read: from a prompt and a reply's token ids to the reply's text, with the opening tag that the prompt ended with, and
            whether it was cut.
    """

    def replies(prompts: list[str], ids: list[list[int]]) -> list[tuple[str, bool]]:
        return [read(prompt, own) for prompt, own in zip(prompts, ids, strict=True)]

    def correct(prompts: list[str], completion_ids: list[list[int]], answer: list[str], **columns: Any) -> list[float]:
        found = replies(prompts, completion_ids)
        return [correct_reward(*reply, expected, tags) for reply, expected in zip(found, answer, strict=True)]

    def form(prompts: list[str], completion_ids: list[list[int]], mode: list[Mode], **columns: Any) -> list[float]:
        found = replies(prompts, completion_ids)
        return [form_reward(*reply, m, tags) for reply, m in zip(found, mode, strict=True)]

    return [correct, form]


# --- questions ----------------------------------------------------------------------------------------------------------


@dataclass
class RewardQuestion:
    """A question in a mode. ``prompt`` is the rendered text and ``prompt_ids`` its tokens, as inference sends them."""

    prompt: str
    prompt_ids: list[int]
    answer: str
    mode: Mode


def _question(row: Mapping[str, Any], mode: Mode, chat_format: ChatFormat, room: int) -> RewardQuestion:
    name = filled(dict(row), PROMPTS)
    if name is None or not isinstance(row[name], str) or not row[name].strip():
        raise Rejected("no_question", f"none of the columns {', '.join(PROMPTS)} holds text")
    expected = row.get("expected_answer")
    if is_missing(expected) or not str(expected).strip():
        raise Rejected(
            "no_expected_answer", "the column 'expected_answer' is missing or empty; see grpo.prompts.columns"
        )
    expected = str(expected).strip()
    if "####" in expected:  # GSM8K's way to end a worked solution
        expected = expected.rpartition("####")[2].strip()
    messages = [{"role": "user", "content": row[name]}]
    ids = chat_format.prompt_ids(messages, mode)
    if len(ids) > room:
        raise Rejected("too_long", f"a prompt of {len(ids)} tokens leaves no room for the reply; {room} allowed")
    return RewardQuestion(chat_format.prompt_text(messages, mode), ids, expected, mode)


@dataclass
class RewardQuestions:
    """Rows read = questions kept + rows rejected."""

    kept: list[RewardQuestion]
    manifest: dict[str, Any]
    rejected: list[dict[str, Any]] = field(default_factory=list)


def room_for(profile: Profile, mode: Mode) -> int:
    """Tokens of the longest prompt: what the longest reply leaves of the model's positions, ``model.max_seq_length`` at most."""
    positions = positions_of(model_config(profile.model) or {})
    most = profile.model.max_seq_length
    return most if positions is None else min(most, positions - new_tokens(profile, mode))


def read_questions(profile: Profile, chat_format: ChatFormat) -> RewardQuestions:
    """The questions of the profile's ``grpo`` section, each in the mode that ``thinking_share`` gives it.

    Raises:
        UserError: none are named, the source cannot be read, or holds no question with an answer.
    """
    settings = profile.grpo
    if settings.prompts is None:
        raise UserError(
            "The profile names no questions. Give a file: --set grpo.prompts.source=local --set grpo.prompts.path=FILE."
        )
    require_plain(settings.prompts, "grpo.prompts")
    room = {mode: room_for(profile, mode) for mode in MODES}
    kept: list[RewardQuestion] = []
    rejected: list[dict[str, Any]] = []
    rng = np.random.default_rng(profile.seed)
    modes = chat_format.style.modes
    if len(modes) == 1 and settings.thinking_share != (share := float(modes == ("thinking",))):
        raise UserError(f"{chat_format.style.only()} Set grpo.thinking_share={share:g}.")
    for row in read_rows(settings.prompts):
        mode: Mode = "thinking" if rng.random() < settings.thinking_share else "non_thinking"
        try:
            if row.data is None:
                raise Rejected(row.reason, row.error)
            data = rename(row.data, settings.prompts.columns) if settings.prompts.columns else row.data
            kept.append(_question(data, mode, chat_format, room[mode]))
        except Rejected as why:
            about = {"file": row.file, "line": row.line, "reason": why.reason, "detail": why.detail}
            rejected.append({**about, "row": row.data})
    reasons = dict(Counter(r["reason"] for r in rejected).most_common())
    if len(kept) < settings.prompts_per_step:
        first = (
            f" The first that was left out, {rejected[0]['file']}:{rejected[0]['line']}: {rejected[0]['detail']}."
            if rejected
            else ""
        )
        raise UserError(
            f"{settings.prompts.path} holds {len(kept)} questions with a known answer, and a step takes "
            f"{settings.prompts_per_step} (grpo.prompts_per_step).{first}"
        )
    manifest = {
        "questions": len(kept),
        "modes": dict(Counter(q.mode for q in kept)),
        "rejected": reasons,
        "fingerprint": fingerprint([[q.prompt_ids, q.answer] for q in kept]),
    }
    return RewardQuestions(kept, manifest, rejected)


def new_tokens(profile: Profile, mode: Mode) -> int:
    """Tokens of the longest reply in a mode."""
    sampling: Sampling = getattr(profile.evaluation.sampling, mode)
    return profile.grpo.max_new_tokens or sampling.max_new_tokens


# --- the trainer --------------------------------------------------------------------------------------------------------


def reader(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, style: ThinkingStyle
) -> Callable[[str, list[int]], tuple[str, bool]]:
    """From a prompt and a reply's token ids to the reply's text, and whether it was cut; see ``reward_functions``."""
    ends = end_tokens(model, tokenizer)

    def read(prompt: str, ids: list[int]) -> tuple[str, bool]:
        cut = not ids or ids[-1] not in ends
        return style.whole(prompt, str(tokenizer.decode(ids if cut else ids[:-1], skip_special_tokens=False))), cut

    return read


def replier(
    tokenizer: PreTrainedTokenizerBase, profile: Profile, questions: Sequence[RewardQuestion]
) -> Callable[[list[str], Any], dict[str, Any]]:
    """GRPOTrainer's hook for generation: from prompts and the trainer to replies from ``model.decode.generate``.

    Each prompt stands there as often as it wants replies, and gets them in the mode of its question.
    """
    g, at_once = profile.grpo, profile.evaluation.batch_size
    known = {q.prompt: q for q in questions}

    def replies(prompts: list[str], trainer: Any) -> dict[str, Any]:
        asked = [known[prompt] for prompt in prompts]
        completions: list[list[int]] = [[] for _ in asked]
        model = trainer.accelerator.unwrap_model(trainer.model)
        seed = profile.seed + 1 + trainer.state.global_step
        for mode in MODES:
            places = [i for i, question in enumerate(asked) if question.mode == mode]
            if not places:
                continue
            sampling = Sampling(  # of the whole distribution, as the loss assumes
                temperature=g.temperature,
                top_p=1.0,
                top_k=0,
                min_p=0.0,
                repetition_penalty=1.0,
                max_new_tokens=new_tokens(profile, mode),
            )
            with trainer.replies_explained(at_once):
                made = generate(model, tokenizer, [asked[i].prompt_ids for i in places], sampling, at_once, seed)
            for place, reply in zip(places, made, strict=True):
                completions[place] = reply.token_ids
        return {"prompt_ids": [q.prompt_ids for q in asked], "completion_ids": completions, "logprobs": None}

    return replies


def make_grpo_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    profile: Profile,
    questions: Sequence[RewardQuestion],
    output_dir: Path,
) -> Any:
    """GRPOTrainer with both rewards, and with replies from ``model.decode.generate``.

    Raises:
        UserError: ``grpo.gradient_accumulation_steps`` does not divide the replies of a step.
    """
    from datasets import Dataset
    from trl import GRPOConfig

    from pipeline.second.trainers import GRPO

    g, style = profile.grpo, thinking_style(tokenizer)
    arguments = training_arguments(profile, g, output_dir, evaluate=False) | {
        "per_device_train_batch_size": check_grpo(profile),
        "num_generations": g.num_generations,
        "max_completion_length": max(new_tokens(profile, mode) for mode in MODES),
        "temperature": g.temperature,
        "beta": g.beta,
        "epsilon": g.epsilon,
        "reward_weights": [g.correct_weight, g.form_weight],
    }
    dataset = Dataset.from_list([{"prompt": q.prompt, "answer": q.answer, "mode": q.mode} for q in questions])
    return GRPO(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward_functions(reader(model, tokenizer, style), style.tags),
        args=GRPOConfig(**arguments),
        train_dataset=dataset,
        rollout_func=replier(tokenizer, profile, questions),
    )


def check_grpo(profile: Profile) -> int:
    """Replies that are trained on at a time.

    Raises:
        UserError: ``grpo.gradient_accumulation_steps`` does not divide the replies of a step; or no reward counts.
    """
    g = profile.grpo
    replies = g.prompts_per_step * g.num_generations
    rows, rest = divmod(replies, g.gradient_accumulation_steps)
    if rest:
        raise UserError(
            f"grpo: a step has {g.prompts_per_step} × {g.num_generations} = {replies} replies, which "
            f"gradient_accumulation_steps={g.gradient_accumulation_steps} does not divide."
        )
    if g.correct_weight + g.form_weight == 0:
        raise UserError("grpo.correct_weight and grpo.form_weight are both 0: nothing would be learnt.")
    return rows


# --- the whole of it ----------------------------------------------------------------------------------------------------


def _questions_of(stage: Stage) -> RewardQuestions:

    folder = stage.folder
    if (folder / "prompts.json").exists():
        return RewardQuestions(
            [RewardQuestion(**row) for row in read_jsonl(folder / "prompts.jsonl")], read_json(folder / "prompts.json")
        )
    questions = read_questions(stage.profile, ChatFormat(load_tokenizer(stage.profile.model)))
    write_jsonl(folder / "prompts.jsonl", map(asdict, questions.kept))
    write_jsonl(folder / "rejected.jsonl", questions.rejected)
    write_json(folder / "prompts.json", questions.manifest)
    return questions


def _measure(stage: Stage, which: Which) -> dict[str, Any]:
    done = stage.cells(which)
    return done if done is not None else stage.evaluate(which, *stage.load(which))


def ends(curve: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Mean of a reward over the first and the last logged steps, each with a bootstrap interval over steps.

    A step draws its prompts anew, so its mean is one independent observation; the replies to one prompt are not.
    """
    values = np.array([entry[name] for entry in curve if entry[name] is not None], float)
    count = min(ENDS, max(1, len(values) // 2))
    result: dict[str, Any] = {"steps": count}
    for which, part in (("first", values[:count]), ("last", values[-count:])):
        draws = bootstrap({"r": part[None, None]}, lambda s: s["r"].mean())
        result[which] = {"value": float(part.mean()), "ci95": interval95(draws)}
    return result


def run_grpo(profile: Profile, folder: Path, run_folder: Path | None = None, resume: bool = False) -> GRPOResult:
    """RewardQuestions → before → training → after → ``grpo.json`` and ``grpo.png``; what is done is not repeated.

    Args:
        run_folder: a run whose adapter is trained further; None: a new adapter on the bare base.
        resume: go on with an unfinished training of the same settings.

    Returns:
        ``grpo.json``.

    Raises:
        UserError: see ``Stage.open``, ``read_questions``, ``Stage.train``.
    """
    check_grpo(profile)
    stage = Stage.open("grpo", profile, folder, run_folder, resume)
    g = profile.grpo
    say(f"[1/{STAGES}] questions")
    questions = _questions_of(stage)
    say(f"[2/{STAGES}] before: both modes")
    before = _measure(stage, "before")
    say(f"[3/{STAGES}] GRPO, {g.max_steps} steps of {g.prompts_per_step} prompts × {g.num_generations} replies")

    def trainer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, checkpoints: Path) -> Any:
        return make_grpo_trainer(model, tokenizer, profile, questions.kept, checkpoints)

    training = stage.train(trainer, METRICS)
    gc.collect()
    say(f"[4/{STAGES}] after: the same")
    after = _measure(stage, "after")
    say(f"[5/{STAGES}] grpo.json")
    document = {
        "settings": masked(g.model_dump()),
        **stage.finish(training, before, after),
        "questions": questions.manifest,
        "rewards": {name: ends(training["curve"], name) for name in ("reward", "correct", "form")},
    }
    result = write_record(folder / "grpo.json", document, GRPOResult)
    draw_grpo(result, folder / "grpo.png")
    return result


def grpo_plan(profile: Profile) -> dict[str, Any]:
    """What a training would do, without doing it: questions, steps, replies to generate."""

    rows = check_grpo(profile)
    questions = read_questions(profile, ChatFormat(load_tokenizer(profile.model)))
    g, limit, rates = profile.grpo, profile.evaluation.limit, profile.estimate
    replies = g.max_steps * rows * g.gradient_accumulation_steps
    evaluated = None if limit is None else 4 * len(profile.evaluation.benchmarks) * limit
    seconds = None
    if rates and evaluated is not None:  # of generation; the training on the replies comes on top
        seconds = round(rates.start_seconds + (replies + evaluated) / rates.replies_per_second)
    return {
        "model": profile.model.name,
        "questions": questions.manifest,
        "steps": g.max_steps,
        "replies_to_train_on": replies,
        "replies_to_evaluate": evaluated,
        "estimated_seconds_of_generation": seconds,
        "estimate_measured_on": rates.machine if rates else None,
    }


def grpo_plan_text(result: Mapping[str, Any]) -> str:
    """``grpo_plan`` for a terminal."""
    q, seconds = result["questions"], result["estimated_seconds_of_generation"]
    modes = ", ".join(f"{n:,} {mode.replace('_', '-')}" for mode, n in q["modes"].items())
    left_out = ", ".join(f"{n:,} {reason}" for reason, n in q["rejected"].items())
    return "\n".join(
        [
            f"{q['questions']:,} questions ({modes})" + (f"; rejected {left_out}" if left_out else ""),
            f"GRPO, {result['steps']:,} steps on {result['model']}: {result['replies_to_train_on']:,} replies to train on, "
            f"{result['replies_to_evaluate'] or 'all'} to evaluate",
            f"time: about {seconds / 60:.1f} minutes of generation on {result['estimate_measured_on']}; training comes on top"
            if seconds
            else "time: no measured rate for this profile",
        ]
    )


# --- showing it ---------------------------------------------------------------------------------------------------------


def grpo_table(result: Mapping[str, Any]) -> str:
    """``grpo.json`` as Markdown tables: the rewards at both ends, and the 2×2 before and after."""
    n = result["settings"]["prompts_per_step"] * result["settings"]["num_generations"]
    steps = result["rewards"]["reward"]["steps"]
    lines = [
        f"| reward, mean of {steps} logged steps of {n} replies | the first | the last |",
        "|---|--:|--:|",
        *(f"| {name} | {shown_arms(r['first'])} | {shown_arms(r['last'])} |" for name, r in result["rewards"].items()),
    ]
    return "\n".join([*lines, "", evaluation_table([{"name": "GRPO", **result}])])


def draw_grpo(result: Mapping[str, Any], path: Path) -> None:
    """Rewards, and length and entropy of the replies, over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    curve = result["training"]["curve"]
    steps = [entry["step"] for entry in curve]
    for name, colour in (("correct", "#0072b2"), ("form", "#009e73"), ("same_reward", "#999999")):
        left.plot(steps, [entry[name] for entry in curve], color=colour, label=name.replace("_", " "))
    left.set(xlabel="step", ylabel="mean reward", title="rewards of the replies", ylim=(-0.03, 1.03))
    right.plot(steps, [entry["tokens"] for entry in curve], color="#e69f00", label="mean tokens")
    right.set(xlabel="step", ylabel="tokens", title="length of the replies", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
