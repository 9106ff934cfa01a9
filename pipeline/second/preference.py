"""Preference tuning: pairs of answers to one prompt, of which one is preferred, through TRL's DPO, KTO or ORPO.

In: a ``Profile`` with its ``preference`` section, and a base or a run's adapter to start from. Out: a directory (see
``pipeline.second.stage``) with ``pairs/`` (tokenised pairs, held-out pairs, what was rejected and why), the adapter, the 2×2
before and after, and ``preference.json``: margins and accuracies over the steps, and how often the preferred answer of a
held-out pair wins, with n and intervals.

The parity rule holds for both answers of a pair: the prompt is exactly what inference sends in the pair's mode, the empty
think block of the non-thinking mode with it; each answer ends with its end token; a pair that is too long is dropped and
counted, never cut.

Notebook 09 makes the same library calls one by one.
"""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.console import say
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_path, fingerprint, read_json, read_jsonl, write_json, write_jsonl
from pipeline.core.modes import MODES, Mode
from pipeline.core.statistics import bootstrap, interval95, paired_permutation, wilson
from pipeline.data.chat_format import IGNORE_INDEX, ChatFormat, Example
from pipeline.data.conversations import Message, Rejected, preference_pair
from pipeline.data.formats import is_missing, rename
from pipeline.data.sources import read_rows
from pipeline.model.decode import inference_mode_of
from pipeline.model.load import load_tokenizer
from pipeline.second.records import PreferenceArms, PreferenceResult
from pipeline.second.stage import (
    Stage,
    Which,
    evaluation_table,
    require_plain,
    shown_arms,
    stage_profile,
    training_arguments,
)
from pipeline.settings import Profile, RowsSettings
from pipeline.studies.arms import load_arms, settings_for
from pipeline.training.estimate import DEVICES, memory, profile_job, profile_sizes
from pipeline.training.records import write_record

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


EVAL_PAIRS = 100  # held-out pairs that are looked at during training; all of them before and after
METRICS = {
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "chosen": "rewards/chosen",
    "rejected": "rewards/rejected",
}
STAGES = 5

# --- pairs to tokens ----------------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """One prompt with a preferred and a rejected answer, as token ids. Both answers end with the end token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    mode: Mode
    kind: str  # what is wrong with the rejected answer, where the row says so (its column ``defect``)
    key: str  # of the prompt: equal prompts fall on one side of the split


@dataclass
class Pairs:
    """What became of the rows of a source: rows read = pairs kept + rows rejected."""

    pairs: list[Pair]
    rejected: list[dict[str, Any]] = field(default_factory=list)  # file, line, reason, detail, row

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(r["reason"] for r in self.rejected).most_common())


def mode_of(row: Mapping[str, Any], chosen: Message, rejected: Message) -> Mode:
    """In which mode a pair answers: what its column ``mode`` says, else what both answers show.

    Raises:
        Rejected: ``unknown_mode``; ``mode_disagrees``: the preferred answer has not the form of its mode, and would teach
            the other one; ``mode_unclear``: one answer has reasoning, the other none, and no column says what was asked.
    """
    thinks, other = (bool(message.get("reasoning_content")) for message in (chosen, rejected))
    declared = row.get("mode")
    if is_missing(declared):
        if thinks != other:
            which = "chosen" if thinks else "rejected"
            raise Rejected(
                "mode_unclear",
                f"only the {which} answer has reasoning; a column 'mode' has to say in which mode was asked",
            )
        return "thinking" if thinks else "non_thinking"
    if declared not in MODES:
        raise Rejected("unknown_mode", f"mode is {str(declared)[:40]!r}, not {' or '.join(map(repr, MODES))}")
    if thinks != (declared == "thinking"):
        has = "has" if thinks else "has no"
        raise Rejected("mode_disagrees", f"mode is {declared!r}, but the chosen answer {has} reasoning")
    mode: Mode = declared
    return mode


def tokenise(row: Mapping[str, Any], chat_format: ChatFormat, limit: int) -> Pair:
    """One row in any layout of preference rows as token ids.

    Args:
        limit: tokens of the longer of the two sequences.

    Raises:
        Rejected: it is no pair (see ``preference_pair``), its mode is in doubt (see ``mode_of``), both answers come to the
            same tokens (``same_answers``), or it is ``too_long``.
        UserError: the chat template breaks the parity rule.
    """
    pair = preference_pair(dict(row))
    mode = mode_of(row, pair.chosen, pair.rejected)
    prompt, (chosen, rejected) = chat_format.answer_ids(pair.prompt, [pair.chosen, pair.rejected], mode, pair.tools)
    if chosen == rejected:
        raise Rejected("same_answers", "chosen and rejected come to the same tokens")
    longest = len(prompt) + max(len(chosen), len(rejected))
    if longest > limit:
        raise Rejected("too_long", f"{longest} tokens, {limit} allowed")
    kind = row.get("defect")
    return Pair(prompt, chosen, rejected, mode, kind if isinstance(kind, str) else "", fingerprint(pair.prompt)[:16])


def read_pairs(source: RowsSettings, chat_format: ChatFormat, limit: int) -> Pairs:
    """All pairs of a source.

    Raises:
        UserError: the source cannot be read, or holds no pair at all (says what was wrong with its rows).
    """
    if source.format not in ("auto", "preference"):
        raise UserError(f"preference.pairs.format is {source.format!r}; only preference rows hold pairs.")
    require_plain(source, "preference.pairs")
    result = Pairs([])
    seen: set[str] = set()
    for row in read_rows(source):
        try:
            if row.data is None:
                raise Rejected(row.reason, row.error)
            data = rename(row.data, source.columns) if source.columns else row.data
            pair = tokenise(data, chat_format, limit)
            key = fingerprint([pair.prompt_ids, pair.chosen_ids, pair.rejected_ids])
            if key in seen:
                raise Rejected("exact_duplicate", "the same pair stands above")
            seen.add(key)
            result.pairs.append(pair)
        except Rejected as why:
            about = {"file": row.file, "line": row.line, "reason": why.reason, "detail": why.detail}
            result.rejected.append({**about, "row": row.data})
    if not result.pairs:
        first = result.rejected[0]
        counts = ", ".join(f"{n:,} {reason}" for reason, n in result.reasons.items())
        raise UserError(
            f"{source.path} holds no pair that can be trained on: {counts}. The first, {first['file']}:{first['line']}: "
            f"{first['detail']}. A pair is a row with a prompt, 'chosen' and 'rejected'."
        )
    return result


def _is_held_out(key: str, fraction: float) -> bool:
    return int(key, 16) / 16 ** len(key) < fraction


def share_of_modes(pairs: Sequence[Pair], share: float | None, seed: int) -> list[Pair]:
    """As many pairs as have this part of thinking ones, in random order; all of them where ``share`` is None.

    Raises:
        UserError: there are no pairs of a mode that is asked for.
    """
    rng = np.random.default_rng(seed)
    shuffled = [pairs[i] for i in rng.permutation(len(pairs))]
    if share is None:
        return shuffled
    by_mode = {mode: [p for p in shuffled if p.mode == mode] for mode in MODES}
    wanted: dict[Mode, float] = {"thinking": share, "non_thinking": 1 - share}
    lacking = [mode for mode in MODES if wanted[mode] > 0 and not by_mode[mode]]
    if lacking:
        raise UserError(f"preference.thinking_share={share:g} asks for {lacking[0]} pairs, and there are none.")
    total = min(len(by_mode[mode]) / part for mode, part in wanted.items() if part > 0)
    kept = {id(p) for mode, part in wanted.items() for p in by_mode[mode][: round(total * part)]}
    return [p for p in shuffled if id(p) in kept]


@dataclass
class Prepared:
    """Training pairs in the order of training, held-out pairs, and the account of where they come from."""

    train: list[Pair]
    held_out: list[Pair]
    manifest: dict[str, Any]
    rejected: list[dict[str, Any]] = field(default_factory=list)


def prepare(profile: Profile, chat_format: ChatFormat) -> Prepared:
    """Pairs of the profile's ``preference`` section, split and counted.

    Raises:
        UserError: no pairs are named, a source cannot be read, or one side of the split is empty.
    """
    settings = profile.preference
    if settings.pairs is None:
        raise UserError(
            "The profile names no pairs. Give a file: --set preference.pairs.source=local --set preference.pairs.path=FILE."
        )
    read = read_pairs(settings.pairs, chat_format, profile.length_limit)
    rejected = [{"source": settings.pairs.name, **r} for r in read.rejected]
    account = {"pairs": {"kept": len(read.pairs), "rejected": read.reasons}}
    if settings.held_out is None:
        held_out = [p for p in read.pairs if _is_held_out(p.key, settings.held_out_fraction)]
        train = [p for p in read.pairs if not _is_held_out(p.key, settings.held_out_fraction)]
    else:
        other = read_pairs(settings.held_out, chat_format, profile.length_limit)
        rejected += [{"source": "held_out", **r} for r in other.rejected]
        account["held_out"] = {"kept": len(other.pairs), "rejected": other.reasons}
        prompts = {p.key for p in other.pairs}
        held_out, train = other.pairs, [p for p in read.pairs if p.key not in prompts]
        if len(train) < len(read.pairs):
            account["pairs"]["held_out_prompts"] = len(read.pairs) - len(train)
    if not train or not held_out:
        empty = "train on" if not train else "judge on"
        raise UserError(f"No pairs are left to {empty}; change preference.held_out or preference.held_out_fraction.")
    used = share_of_modes(train, settings.thinking_share, profile.seed)
    manifest = {
        "sources": account,
        "train": _described(used),
        "held_out": _described(held_out),
        "not_used_for_share": len(train) - len(used),
        "fingerprint": fingerprint(
            [[[p.prompt_ids, p.chosen_ids, p.rejected_ids] for p in s] for s in (used, held_out)]
        ),
    }
    return Prepared(used, held_out, manifest, rejected)


def _described(pairs: Sequence[Pair]) -> dict[str, Any]:
    lengths = [len(p.prompt_ids) * 2 + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs]
    return {
        "pairs": len(pairs),
        "modes": dict(Counter(p.mode for p in pairs)),
        "kinds": dict(Counter(p.kind for p in pairs if p.kind)),
        "mean_tokens": sum(lengths) / len(lengths),  # of both sequences of a pair together
        "mean_chosen_tokens": sum(len(p.chosen_ids) for p in pairs) / len(pairs),
        "mean_rejected_tokens": sum(len(p.rejected_ids) for p in pairs) / len(pairs),
    }


def describe(manifest: Mapping[str, Any]) -> str:
    """The pairs in a few lines."""
    lines = []
    for side in ("train", "held_out"):
        d = manifest[side]
        modes = ", ".join(f"{n:,} {mode.replace('_', '-')}" for mode, n in d["modes"].items())
        lines.append(
            f"{side.replace('_', '-')}: {d['pairs']:,} pairs ({modes}); answers of {d['mean_chosen_tokens']:.0f} tokens "
            f"preferred, {d['mean_rejected_tokens']:.0f} rejected"
        )
    for name, account in manifest["sources"].items():
        counts = ", ".join(f"{n:,} {reason}" for reason, n in account["rejected"].items())
        lines.append(f"  {name}: {account['kept']:,} kept" + (f"; rejected {counts}" if counts else ""))
    if manifest["not_used_for_share"]:
        lines.append(f"  {manifest['not_used_for_share']:,} pairs are left out for preference.thinking_share")
    return "\n".join(lines)


def as_examples(pair: Pair) -> tuple[Example, Example]:
    """Both sequences of a pair with their masks, to look at with ``chat_format.coloured``."""
    chosen, rejected = (
        Example(pair.prompt_ids + ids, [IGNORE_INDEX] * len(pair.prompt_ids) + ids, pair.mode, side)
        for side, ids in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids))
    )
    return chosen, rejected


def as_dataset(pairs: Iterable[Pair]) -> Dataset:
    """Rows ``prompt_ids``, ``chosen_ids``, ``rejected_ids``, as TRL's collators take them."""
    from datasets import Dataset

    return Dataset.from_list(
        [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]
    )


# --- the trainer --------------------------------------------------------------------------------------------------------


def make_preference_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    profile: Profile,
    train: Sequence[Pair],
    held_out: Sequence[Pair],
    output_dir: Path,
) -> Any:
    """TRL's trainer of the profile's method. DPO and KTO keep a frozen copy of the adapter as their reference.

    Raises:
        UserError: a setting that the method has no use for.
    """
    from trl import DPOConfig, KTOConfig

    from pipeline.second.trainers import DPO, KTO, ORPO, unpaired

    p = profile.preference
    check_preference(profile)
    arguments = training_arguments(profile, p, output_dir, evaluate=True)
    rows = p.per_device_train_batch_size
    arguments |= {"beta": p.beta, "eval_steps": p.eval_steps, "max_length": None}
    arguments |= {"per_device_train_batch_size": rows, "per_device_eval_batch_size": rows}
    sides = {"train_dataset": as_dataset(train), "eval_dataset": as_dataset(held_out[:EVAL_PAIRS])}
    trainer: Any
    if p.method == "dpo":
        trainer = DPO(model=model, processing_class=tokenizer, args=DPOConfig(**arguments), **sides)
    elif p.method == "kto":  # a row is an answer: twice as many, so that a step sees as much
        arguments |= {"per_device_train_batch_size": 2 * rows, "per_device_eval_batch_size": 2 * rows}
        sides = {name: unpaired(side, 2 * rows, profile.seed) for name, side in sides.items()}
        trainer = KTO(model=model, processing_class=tokenizer, args=KTOConfig(**arguments), **sides)
    else:
        from trl.experimental.orpo import ORPOConfig

        arguments |= {"max_length": profile.length_limit, "remove_unused_columns": False}
        on_prompt = profile.data.loss_on == "everything"
        trainer = ORPO(
            model=model, processing_class=tokenizer, args=ORPOConfig(**arguments), loss_on_prompt=on_prompt, **sides
        )
    trainer.length_limit = profile.model.max_seq_length
    return trainer


def check_preference(profile: Profile) -> None:
    """Refuse what would do nothing, or something else than it says.

    Raises:
        UserError: it is so.
    """
    p = profile.preference
    if profile.data.loss_on == "everything" and p.method != "orpo":
        raise UserError(
            f"data.loss_on=everything does nothing in {p.method}: both answers of a pair share the prompt, so its part "
            "cancels out. Leave it out, or use preference.method=orpo."
        )
    if profile.data.empty_think != "masked":
        raise UserError(
            "data.empty_think is for supervised fine-tuning; in a pair the empty think block is always prompt."
        )


# --- which answer the model finds likelier ------------------------------------------------------------------------------


LOGIT_BYTES = 64 * 2**20  # of the logits that exist at a time, in float32


def log_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], batch_size: int
) -> dict[str, list[float]]:
    """Summed log-probability (nats) of both answers of each pair, given the prompt: {"chosen": [...], "rejected": [...]}.

    Raises:
        UserError: a batch does not fit into memory; says what to lower.
    """
    import torch

    from pipeline.training.trainer import memory_explained

    sequences = [(p.prompt_ids, ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]) + len(sequences[i][1]))
    sums = [0.0] * len(sequences)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with inference_mode_of(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = [sequences[i] for i in order[start : start + batch_size]]
            width = max(len(prompt) + len(ids) for prompt, ids in batch)
            tokens = torch.full((len(batch), width), int(pad))
            mask, answer = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
            for row, (prompt, ids) in enumerate(batch):
                end = len(prompt) + len(ids)
                tokens[row, :end] = torch.tensor(prompt + ids)
                mask[row, :end] = 1
                answer[row, len(prompt) : end] = True
            tokens, mask, answer = (t.to(model.device) for t in (tokens, mask, answer))
            advice = [f"evaluation.batch_size={batch_size // 2}"] if batch_size > 1 else []
            advice.append(f"model.max_seq_length={width // 2} (longer pairs are dropped and counted)")
            with memory_explained(f"the log-probabilities of {len(batch)} answers of {width} tokens", advice.copy):
                values = _answer_sums(model, tokens, mask, answer[:, 1:])
            for i, value in zip(order[start : start + batch_size], values, strict=True):
                sums[i] = value
    return {"chosen": sums[0::2], "rejected": sums[1::2]}


def _answer_sums(model: Any, tokens: Any, mask: Any, answer: Any) -> list[float]:
    """Summed log-probability of the answer of each row; the logits exist for a few tokens at a time (``LOGIT_BYTES``).

    Args:
        tokens, mask: [rows, width]. answer: [rows, width − 1], which of the tokens from the second on are the answer.
    """
    import torch

    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    states = whole.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    head, each = whole.get_output_embeddings(), torch.zeros(answer.shape, device=tokens.device)
    states, targets = states[answer], tokens[:, 1:][answer]  # [tokens of answers, hidden], [tokens of answers]
    count = max(1, LOGIT_BYTES // (4 * head.weight.shape[0]))
    parts = []
    for some, wanted in zip(states.split(count), targets.split(count), strict=True):
        logits = head(some).float()
        parts.append(logits.gather(-1, wanted[:, None])[:, 0] - logits.logsumexp(-1))
    each[answer] = torch.cat(parts)
    return [float(value) for value in each.sum(1)]


def _rate(hits: np.ndarray) -> dict[str, Any]:
    return {"value": float(hits.mean()), "ci95": wilson(float(hits.sum()), len(hits))}


def win_rates(
    pairs: Sequence[Pair], before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], beta: float
) -> dict[str, Any]:
    """How often the preferred answer wins, for all pairs, each mode, and each kind of defect.

    Returns:
        {group: {"n", "before", "after", "p", "per_token_before", "per_token_after", "reward_accuracy", "margin"}}. ``before``
        and ``after``: the preferred answer has the larger log-probability; ``per_token``: the larger mean a token, which long
        answers do not lose by their length. ``reward_accuracy``: its implicit reward, beta × (log-probability after −
        before), is the larger one; before training all of them are 0, so there is no "before". ``margin``: the mean
        difference of the two rewards, with a bootstrap interval. ``p``: paired, of ``before`` against ``after``.
    """
    log = {
        which: np.array([scores["chosen"], scores["rejected"]])
        for which, scores in (("before", before), ("after", after))
    }
    lengths = np.array([[len(p.chosen_ids) for p in pairs], [len(p.rejected_ids) for p in pairs]])
    rewards = beta * (log["after"] - log["before"])
    margins = rewards[0] - rewards[1]
    groups: dict[str, list[int]] = {"all": list(range(len(pairs)))}
    for index, pair in enumerate(pairs):
        groups.setdefault(pair.mode, []).append(index)
        if pair.kind:
            groups.setdefault(f"{pair.mode}: {pair.kind}", []).append(index)
    result = {}
    for name, chosen in groups.items():
        rows = np.array(chosen)
        wins = {which: (values[0] > values[1])[rows] for which, values in log.items()}
        mean = {which: values / lengths for which, values in log.items()}
        draws = bootstrap({"m": margins[rows][None, None]}, lambda s: s["m"].mean())
        result[name] = {
            "n": len(rows),
            **{which: _rate(hits) for which, hits in wins.items()},
            "p": paired_permutation(wins["before"].astype(float), wins["after"].astype(float)),
            **{f"per_token_{which}": _rate((m[0] > m[1])[rows]) for which, m in mean.items()},
            "reward_accuracy": _rate((margins > 0)[rows]),
            "margin": {"value": float(margins[rows].mean()), "ci95": interval95(draws)},
        }
    return result


# --- the whole of it ----------------------------------------------------------------------------------------------------


def _pairs_of(stage: Stage) -> Prepared:
    """The pairs, built or as they were built before."""

    folder = stage.folder / "pairs"
    if (folder / "manifest.json").exists():
        train, held_out = (
            [Pair(**row) for row in read_jsonl(folder / f"{side}.jsonl")] for side in ("train", "held_out")
        )
        return Prepared(train, held_out, read_json(folder / "manifest.json"))
    prepared = prepare(stage.profile, ChatFormat(load_tokenizer(stage.profile.model)))
    for name, pairs in (("train", prepared.train), ("held_out", prepared.held_out)):
        write_jsonl(folder / f"{name}.jsonl", map(asdict, pairs))
    write_jsonl(folder / "rejected.jsonl", prepared.rejected)
    write_json(folder / "manifest.json", prepared.manifest)
    say(describe(prepared.manifest))
    return prepared


def _measure(stage: Stage, which: Which, pairs: Sequence[Pair]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """(cells, log-probabilities) of the model before or after; what is done is read."""
    scores_path = stage.folder / "evaluation" / which / "log_probabilities.json"
    cells = stage.cells(which)
    if cells is None or not scores_path.exists():
        model, tokenizer = stage.load(which)
        cells = stage.evaluate(which, model, tokenizer)
        if not scores_path.exists():
            write_json(scores_path, log_probabilities(model, tokenizer, pairs, stage.profile.evaluation.batch_size))
    return cells, read_json(scores_path)


def run_preference(
    profile: Profile, folder: Path, run_folder: Path | None = None, resume: bool = False
) -> PreferenceResult:
    """Pairs → before → training → after → ``preference.json`` and ``preference.png``; what is done is not repeated.

    Args:
        run_folder: a run whose adapter is trained further; None: a new adapter on the bare base.
        resume: go on with an unfinished training of the same settings.

    Returns:
        ``preference.json``.

    Raises:
        UserError: see ``Stage.open``, ``prepare``, ``Stage.train``.
    """
    check_preference(profile)
    stage = Stage.open("preference", profile, folder, run_folder, resume)
    p = profile.preference
    say(f"[1/{STAGES}] pairs")
    prepared = _pairs_of(stage)
    say(f"[2/{STAGES}] before: both modes, and the log-probabilities of {len(prepared.held_out):,} held-out pairs")
    before, log_before = _measure(stage, "before", prepared.held_out)
    say(f"[3/{STAGES}] {p.method.upper()}, {p.max_steps} steps of {p.per_device_train_batch_size} pairs")

    def trainer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, checkpoints: Path) -> Any:
        return make_preference_trainer(model, tokenizer, profile, prepared.train, prepared.held_out, checkpoints)

    training = stage.train(trainer, METRICS)
    gc.collect()
    say(f"[4/{STAGES}] after: the same")
    after, log_after = _measure(stage, "after", prepared.held_out)
    say(f"[5/{STAGES}] preference.json")
    document = {
        "method": p.method,
        "beta": p.beta,
        "learning_rate": p.learning_rate,
        "loss_on": profile.data.loss_on,
        **stage.finish(training, before, after),
        "pairs": prepared.manifest,
        "win_rates": win_rates(prepared.held_out, log_before, log_after, p.beta),
    }
    result = write_record(folder / "preference.json", document, PreferenceResult)
    draw_preference(result, folder / "preference.png")
    return result


def run_arms(
    arms_path: str,
    profile_name: str | None,
    overrides: list[str],
    folder: Path,
    run_folder: Path | None = None,
    resume: bool = False,
) -> PreferenceArms:
    """Several settings on the same start, one after the other, each in ``folder/NAME``; ``preference.json`` sums them up.

    Args:
        arms_path: a file of arms, as ``sweep --arms`` takes them.

    Returns:
        ``preference.json`` of all of them.

    Raises:
        UserError: as ``run_preference``; or the names of two arms give one folder.
    """

    arms = load_arms(arms_path)
    folders = {name: re.sub(r"[^\w.-]+", "_", name) for name in arms.arms}
    if len(set(folders.values())) < len(folders):
        raise UserError(f"{arms_path}: two arms have names that differ in special characters alone.")
    lineage = stage_profile(profile_name, run_folder, overrides).lineage
    common = settings_for(arms, lineage)
    chosen = {name: settings_for(arm, lineage) for name, arm in arms.arms.items()}
    planned = {
        name: stage_profile(profile_name, run_folder, [*common, *overrides, *own]) for name, own in chosen.items()
    }
    for profile in planned.values():
        check_preference(profile)
    results = []
    first: Path | None = None
    for name, profile in planned.items():
        say(f"--- {name}")
        target = folder / folders[name]
        if first is not None and not target.exists():
            _share_before(first, target, profile, run_folder)
        result = run_preference(profile, target, run_folder, resume or target.exists())
        first = first or target
        results.append({"name": name, "why": arms.arms[name].why, "set": [*common, *chosen[name]], **result})
    summary = write_record(folder / "preference.json", {"question": arms.question, "arms": results}, PreferenceArms)
    draw_preference(summary, folder / "preference.png")
    return summary


def _share_before(first: Path, target: Path, profile: Profile, run_folder: Path | None) -> None:
    """Begin an arm with the replies of the first one: all start from the same weights.

    The cells are taken only if their fingerprint is the one that this arm would give; the log-probabilities only for the
    same held-out pairs.
    """
    import shutil

    stage = Stage.open("preference", profile, target, run_folder)
    shutil.copytree(first / "evaluation" / "before", target / "evaluation" / "before", dirs_exist_ok=True)
    held_out = _pairs_of(stage).held_out
    theirs = [Pair(**row) for row in read_jsonl(first / "pairs" / "held_out.jsonl")]
    if held_out != theirs:
        (target / "evaluation" / "before" / "log_probabilities.json").unlink()


def preference_plan(profile: Profile) -> dict[str, Any]:
    """What a training would do, without doing it: pairs, steps, tokens, and an estimate of time and memory.

    A step of DPO and KTO is a pass forward and back for the model, and one forward for the reference: 4/3 of a step of
    supervised fine-tuning on as many tokens, if back costs twice as much as forward.
    """

    check_preference(profile)
    p = profile.preference
    manifest = prepare(profile, ChatFormat(load_tokenizer(profile.model))).manifest
    tokens = round(
        manifest["train"]["mean_tokens"] * p.max_steps * p.per_device_train_batch_size * p.gradient_accumulation_steps
    )
    rates, limit = profile.estimate, profile.evaluation.limit
    replies = None if limit is None else 4 * len(profile.evaluation.benchmarks) * limit
    seconds = None
    if rates and replies is not None:
        work = tokens * (1 if p.method == "orpo" else 4 / 3)
        seconds = round(rates.start_seconds + work / rates.tokens_per_second + replies / rates.replies_per_second)
    both = profile.model_copy(deep=True)
    both.training.per_device_train_batch_size = 2 * p.per_device_train_batch_size
    return {
        "method": p.method,
        "model": profile.model.name,
        "pairs": manifest,
        "steps": p.max_steps,
        "training_tokens": tokens,
        "replies_to_generate": replies,
        "estimated_seconds": seconds,
        "estimate_measured_on": rates.machine if rates else None,
        "estimated_memory_bytes": {
            device: memory(profile_sizes(profile), profile_job(both, device))["total"] for device in DEVICES
        },
    }


def preference_plan_text(result: Mapping[str, Any]) -> str:
    """``preference_plan`` for a terminal."""
    seconds, replies = result["estimated_seconds"], result["replies_to_generate"]
    return "\n".join(
        [
            describe(result["pairs"]),
            f"{result['method'].upper()}, {result['steps']:,} steps on {result['model']}, "
            f"about {result['training_tokens']:,} tokens",
            f"{replies or 'all'} replies to generate for the evaluation",
            f"time: about {seconds / 60:.1f} minutes on {result['estimate_measured_on']}"
            if seconds
            else "time: no measured rate for this profile",
            "memory of training, of both answers of a pair at a time: "
            + ", ".join(f"{n / 2**20:,.0f} MiB on {d}" for d, n in result["estimated_memory_bytes"].items()),
        ]
    )


# --- showing it ---------------------------------------------------------------------------------------------------------


def _arms_of(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The results in it: those of the arms, or the one."""
    return list(result["arms"]) if "arms" in result else [{"name": result["method"], **result}]


def preference_table(result: Mapping[str, Any]) -> str:
    """``preference.json`` as Markdown tables: wins on held-out pairs, by kind of defect, and the 2×2 before and after."""
    arms = _arms_of(result)
    lines = [
        "| held-out pairs | n | preferred answer likelier: before | after | implicit reward larger | mean margin |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for arm in arms:
        for group in ("all", *MODES):
            if group in arm["win_rates"]:
                w = arm["win_rates"][group]
                cells = [
                    shown_arms(w["before"]),
                    shown_arms(w["after"]),
                    shown_arms(w["reward_accuracy"]),
                    shown_arms(w["margin"], 2),
                ]
                lines.append(f"| {arm['name']}, {group.replace('_', '-')} | {w['n']} | {' | '.join(cells)} |")
    kinds = [name for name in arms[0]["win_rates"] if ": " in name]
    if kinds:
        heads = [f"{arm['name']}: after" for arm in arms]
        lines += ["", f"| preferred to | n | before | {' | '.join(heads)} |", "|---|--:|--:|" + "--:|" * len(arms)]
        for kind in kinds:
            mode, _, defect = kind.partition(": ")
            after = [shown_arms(arm["win_rates"][kind]["after"]) if kind in arm["win_rates"] else "" for arm in arms]
            w = arms[0]["win_rates"][kind]
            name = f"{defect.replace('_', ' ')} ({mode.replace('_', '-')})"
            lines.append(f"| {name} | {w['n']} | {shown_arms(w['before'])} | {' | '.join(after)} |")
    return "\n".join([*lines, "", evaluation_table(arms)])


def draw_preference(result: Mapping[str, Any], path: Path) -> None:
    """Margin and accuracy over the steps: lines for training, dots for held-out pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for number, arm in enumerate(_arms_of(result)):
        colour = f"C{number}"
        for axes, what in zip(panels, ("margin", "accuracy"), strict=True):
            for name, style in (("curve", "-"), ("eval_curve", "o")):
                points = [(e["step"], e[what]) for e in arm["training"][name] if e[what] is not None]
                if points:
                    x, y = zip(*points, strict=True)
                    axes.plot(x, y, style, color=colour, label=arm["name"] if style == "-" else None, markersize=4)
    for axes, what in zip(panels, ("margin of rewards", "preferred answer has the larger reward"), strict=True):
        axes.set(xlabel="step", title=what)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="difference of log-probabilities, times beta")
    panels[1].set(ylabel="part of the pairs", ylim=(-0.03, 1.03))
    panels[0].legend(frameon=False, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
